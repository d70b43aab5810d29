"""Models that a search tries: merges of checkpoints in memory, decoded from a genome group by group, in one scratch network.

For models that fit in memory several times; the winner is merged once more by the tensors engine, from disk.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AcclimateError
from ..files import digest
from ..kinds import Merge
from ..model import Model, tokenizer_fingerprint
from ..parts.layer_groups import decode, gene_names, group_of, groups
from .merging.in_memory import merge_in_memory

GENES = ("weights", "keep")  # settings of a merge method that are searched where it has them


def signature(model: Model) -> str:
    """What two models must share to be merged weight by weight: family, names and shapes of the weights, tokenizer."""
    shapes = {name: list(weight.shape) for name, weight in model.net.named_parameters()}
    return digest([model.net.config.model_type, shapes, tokenizer_fingerprint(model.tokenizer)])


def alike(models: Sequence[Model]) -> list[list[Model]]:
    """The models in groups of one signature, in order of appearance."""
    found: dict[str, list[Model]] = {}
    for model in models:
        found.setdefault(signature(model), []).append(model)
    return list(found.values())


def weights_of(model: Model) -> dict[str, Tensor]:
    """The weights of a model by name, tied ones once, where merging happens: in the processor's memory."""
    return {name: weight.detach().cpu() for name, weight in model.net.named_parameters()}


@torch.no_grad()
def merged(
    method: Merge,
    base: Model | None,
    tuned: Sequence[Model],
    settings: Callable[[str], dict[str, Any]] | None = None,
    *,
    seed: int = 0,
    into: Model | None = None,
) -> Model:
    """Small models merged in memory, as a model; its weights lie in ``into`` (written over) or in a new copy."""
    start = None if base is None else weights_of(base)
    found = merge_in_memory(method, start, [weights_of(model) for model in tuned], settings, seed=seed)
    made = into or tuned[0].copy("merged")
    for name, weight in made.net.named_parameters():
        weight.copy_(found[name])
    made.net.eval()
    return Model("merged", made.net, tuned[0].tokenizer, tuned[0].kind, "merged in memory")


class Blend:
    """Merges of some models by one method, with genes for each group of tensors: the method's weights, and shares to keep if it has any."""

    def __init__(
        self,
        method: Merge,
        base: Model | None,
        tuned: Sequence[Model],
        *,
        granularity: str = "layer",
        size: int = 1,
        signed: bool = False,
        seed: int = 0,
    ):
        if len({signature(model) for model in [*tuned, *([base] if base is not None else [])]}) > 1:
            raise AcclimateError(f"{', '.join(model.name for model in tuned)} differ in shape or tokenizer, so they cannot be merged")
        self.method, self.base, self.tuned, self.seed = method, base, list(tuned), seed
        self.granularity, self.size, self.signed = granularity, size, signed
        self.kinds = [kind for kind in GENES if kind in type(method).settings()]
        self.groups = groups(weights_of(tuned[0]), granularity, size)
        self.names = gene_names(self.groups, [model.name for model in tuned], self.kinds)
        self.scratch: Model | None = None

    def settings(self, genome: np.ndarray) -> Callable[[str], dict[str, Any]]:
        """The method's settings for a tensor of some name, as ``tools.merge`` takes them."""
        by_group = decode(genome, self.groups, len(self.tuned), self.kinds, self.signed)
        return lambda name: by_group[group_of(name, self.granularity, self.size)]

    def recipe(self, genome: np.ndarray) -> dict[str, dict[str, list[float]]]:
        """The settings of each group, as plain data."""
        return decode(genome, self.groups, len(self.tuned), self.kinds, self.signed)

    def model(self, genome: np.ndarray) -> Model:
        """The merge of a genome; its weights lie in a scratch network that the next call writes over."""
        self.scratch = merged(self.method, self.base, self.tuned, self.settings(genome), seed=self.seed, into=self.scratch)
        return self.scratch


@torch.no_grad()
def variation(base: Model, tuned: Sequence[Model]) -> dict[str, list[float]]:
    """How much each model changed each tensor, as weights that sum to 1: mean squares of the changes (FuseChat's VaRM).

    Equal weights for a tensor that nobody changed. Raises AcclimateError for models of other shapes.
    """
    found = {}
    states = [model.net.state_dict() for model in tuned]  # all names of a tied weight, since either may be asked for
    for name, start in base.net.state_dict().items():
        if any(name not in state or state[name].shape != start.shape for state in states):
            raise AcclimateError(f"{', '.join(model.name for model in tuned)} are not all of {base.name}'s shape, e.g. {name}")
        squares = [float((state[name].double() - start.double()).square().mean()) for state in states]
        total = sum(squares)
        found[name] = [square / total for square in squares] if total > 0 else [1 / len(states)] * len(states)
    return found

"""The network that DAM trains: every weight is a combination of the same weight of several models, with a coefficient per column.

Gauthier-Caron et al. 2024, section 3, https://arxiv.org/abs/2410.08371 . For a linear layer W = sum_j W_j diag(c_j); an embedding and
a norm's gain are combined over their hidden dimensions, a bias by a number per model (or per row). Only the coefficients are
parameters; the weights of all models stay where they were loaded. Tied weights share one set of coefficients.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import AcclimateError
from ..files import digest
from ..model import Model, tokenizer_fingerprint

FILE = Path("dam") / "coefficients.safetensors"  # inside a saved model's folder; in a folder of its own, so that no loader takes it up
SQUASHES = {"none": lambda c: c, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}
INVERSES = {"none": lambda c: c, "tanh": torch.atanh, "sigmoid": torch.logit, "relu": lambda c: c}


def combine(weights: Sequence[Tensor], coefficients: Tensor, axis: int = -1) -> Tensor:
    """Sum over the models of weights [*shape] times coefficients [model, column], the columns lying along ``axis`` -> [*shape].

    >>> first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    >>> combine([first, second], torch.tensor([[1.0, 0.5], [0.0, 0.1]]))
    tensor([[1., 3.],
            [3., 6.]])
    """
    shape = [1] * weights[0].ndim
    shape[axis] = -1
    total = weights[0] * coefficients[0].view(shape)
    for weight, own in zip(weights[1:], coefficients[1:], strict=True):
        total = total + weight * own.view(shape)
    return total.to(weights[0].dtype)


def column_angles(base: Tensor, weights: Sequence[Tensor], axis: int = -1) -> Tensor:
    """Angle between the changes that two models made to a column, for every pair of models [pair, column]; 0 where one made none.

    >>> column_angles(torch.zeros(2, 1), [torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [1.0]])])
    tensor([[0.7854]])
    """
    changes = [(weight.float() - base.float()).movedim(axis, -1).reshape(-1, base.shape[axis]) for weight in weights]
    found = []
    for one, other in combinations(changes, 2):
        lengths = one.norm(dim=0) * other.norm(dim=0)
        cosine = ((one * other).sum(0) / lengths).clamp(-1, 1)
        found.append(torch.where(lengths > 0, cosine.acos(), 0.0))
    return torch.stack(found)


class MergedNetwork(nn.Module):
    """Several networks of one architecture as one, whose parameters are the coefficients; see :func:`merged`.

    ``save_pretrained`` writes an ordinary network (:meth:`collapse`) with the coefficients beside it.
    """

    def __init__(self, base: nn.Module, members: Sequence[nn.Module], identity: str, *, squash: str, bias: str, fixed: Iterable[str] = ()):
        super().__init__()
        self.squash = squash
        self.sites = _sites(base)
        self.kept = [name for name in base.state_dict(keep_vars=True) if name in dict(base.named_buffers())]  # buffers it saves itself
        self.base, self.members = _frozen(base), nn.ModuleList([_frozen(member) for member in members])
        self.coefficients = nn.Module()  # names of weights, with / for .
        for name, (kind, _, size) in self.sites.items():
            size = 1 if name.endswith("bias") and bias == "model" else size
            start = INVERSES[squash](torch.full((len(members), size), 1 / len(members)))
            if kind in fixed:
                self.coefficients.register_buffer(name.replace(".", "/"), start)
            else:
                self.coefficients.register_parameter(name.replace(".", "/"), nn.Parameter(start))
        # what the weights are is no part of the saved state, so which weights they are must be
        self.register_buffer("identity", torch.tensor(list(identity.encode()), dtype=torch.uint8))

    def __deepcopy__(self, memo: dict[int, Any]) -> "MergedNetwork":
        """A copy with coefficients of its own on the same frozen weights."""
        for part in (self.base, *self.members):
            memo |= {id(tensor): tensor for tensor in part.buffers()}
        made = memo[id(self)] = self.__class__.__new__(self.__class__)
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def forward(self, **inputs: Any) -> Any:
        """What the combined network makes of the inputs."""
        return functional_call(self.base, self.weights(), kwargs=inputs)

    def weights(self) -> dict[str, Tensor]:
        """Every combined weight by its name in the architecture."""
        own = [dict(member.named_buffers()) for member in self.members]
        table = self.table()
        return {name: combine([each[name] for each in own], table[name], axis) for name, (_, axis, _) in self.sites.items()}

    def table(self) -> dict[str, Tensor]:
        """The coefficients as they take effect, by the weight's name [model, column] ([model, 1] or [model, row] for a bias)."""
        named = {**dict(self.coefficients.named_buffers()), **dict(self.coefficients.named_parameters())}
        return {name: SQUASHES[self.squash](named[name.replace(".", "/")]) for name in self.sites}

    @torch.no_grad()
    def angles(self) -> dict[str, Tensor]:
        """Angles between the models' changes to the columns of each weight whose coefficients learn, by the parameter's name."""
        own, base = [dict(member.named_buffers()) for member in self.members], dict(self.base.named_buffers())
        learning, found = dict(self.named_parameters()), {}
        for name, (_, axis, _) in self.sites.items():
            key = "coefficients." + name.replace(".", "/")
            if key in learning and not name.endswith("bias"):
                found[key] = column_angles(base[name], [each[name] for each in own], axis)
        return found

    @torch.no_grad()
    def collapse(self) -> Any:
        """An ordinary network of the architecture, with the combined weights in memory of its own."""
        parts, weights = dict(self.base.named_buffers()), self.weights()
        net = copy.deepcopy(self.base, {id(parts[name]): nn.Parameter(weight) for name, weight in weights.items()})
        for module in net.modules():
            for name, tensor in list(module._buffers.items()):
                if isinstance(tensor, nn.Parameter):
                    del module._buffers[name]
                    module._non_persistent_buffers_set.discard(name)
                    module.register_parameter(name, tensor)
        for name in self.kept:
            place, _, leaf = name.rpartition(".")
            net.get_submodule(place)._non_persistent_buffers_set.discard(leaf)
        return net

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the collapsed network as transformers does, and the coefficients in a folder of their own."""
        self.collapse().save_pretrained(folder, **options)
        (Path(folder) / FILE).parent.mkdir(exist_ok=True)
        save_file({name: c.detach().cpu().contiguous() for name, c in self.table().items()}, Path(folder) / FILE)

    @property
    def config(self) -> Any:
        """The architecture's configuration."""
        return self.base.config

    @property
    def generation_config(self) -> Any:
        """How the architecture generates by default."""
        return self.base.generation_config

    @property
    def dtype(self) -> torch.dtype:
        """Of the combined weights."""
        return self.get_input_embeddings().weight.dtype

    @property
    def active_parameters(self) -> int:
        """How many weights a token passes through: those of one model."""
        parts = dict(self.base.named_buffers())
        return sum(parts[name].numel() for name in self.sites)

    def get_input_embeddings(self) -> Any:
        """The base's table, for its size."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The base's output layer, for its size."""
        return self.base.get_output_embeddings()

    def gradient_checkpointing_enable(self, *_: Any) -> None:
        """Refused: what is recomputed would not see the combined weights."""
        raise AcclimateError("a merged network cannot recompute activations; leave gradient_checkpointing off and lower micro_rows")


def merged(
    base: Model, members: Sequence[Model], *, squash: str = "none", bias: str = "model", fixed: Iterable[str] = (), name: str = "dam"
) -> Model:
    """A model that combines ``members``, at first their average; ``base`` gives the architecture and what their changes are measured from.

    squash: what the coefficients pass through: none, tanh, sigmoid or relu. bias: a coefficient per ``model`` or per ``row``.
    fixed: kinds of layers (linear, embedding, norm) whose coefficients stay 1/k. Raises AcclimateError where the models do not fit.
    """
    if len(members) < 2:
        raise AcclimateError(f"a merge combines at least 2 models, but {len(members)} is given; name more under from:")
    nets = [each.copy().net if each.adapted else each.net for each in (base, *members)]
    shapes = [{key: tuple(weight.shape) for key, weight in net.named_parameters()} for net in nets]
    for member, own in zip(members, shapes[1:], strict=True):
        wrong = sorted(key for key in {*own, *shapes[0]} if own.get(key) != shapes[0].get(key))
        if wrong:
            raise AcclimateError(
                f"{member.name} does not fit {base.name}: {wrong[0]} is {own.get(wrong[0], 'absent')} in one and "
                f"{shapes[0].get(wrong[0], 'absent')} in the other; merge models of one architecture and vocabulary size"
            )
        if tokenizer_fingerprint(member.tokenizer) != tokenizer_fingerprint(base.tokenizer):
            raise AcclimateError(f"{member.name} has another tokenizer than {base.name}; merge models of one tokenizer")
    identity = digest([base.fingerprint, [member.fingerprint for member in members], squash, sorted(fixed)])
    net = MergedNetwork(nets[0], nets[1:], identity, squash=squash, bias=bias, fixed=fixed).to(base.device).eval()
    return Model(name, net, base.tokenizer, base.kind, base.source)


def collapsed(model: Model) -> Model:
    """The ordinary model that a merged one stands for; any other model as it is."""
    if not isinstance(model.net, MergedNetwork):
        return model
    return Model(model.name, model.net.collapse().eval(), model.tokenizer, model.kind, model.source, dict(model.notes))


def coefficients(model: Model) -> Mapping[str, Tensor]:
    """The coefficients by the weight's name [model, column], from memory or from the folder that the model was read from."""
    if isinstance(model.net, MergedNetwork):
        return {name: c.detach().cpu() for name, c in model.net.table().items()}
    if not (Path(model.source) / FILE).is_file():
        raise AcclimateError(f"{model.name} has no coefficients: {Path(model.source) / FILE} does not exist")
    return load_file(Path(model.source) / FILE)


def _sites(net: nn.Module) -> dict[str, tuple[str, int, int]]:
    """Every weight by its first name: kind of its layer, the axis of its columns, how many they are."""
    found: dict[str, tuple[str, int, int]] = {}
    first = {name for name, _ in net.named_parameters()}
    for place, module in net.named_modules():
        gain = getattr(module, "weight", None)
        kind = "embedding" if isinstance(module, nn.Embedding) else "norm" if getattr(gain, "ndim", 0) == 1 else "linear"
        transposed = type(module).__name__ == "Conv1D"  # transformers' layer of GPT-2: its weight is [in, out]
        for leaf, weight in module._parameters.items():
            name = f"{place}.{leaf}" if place else leaf
            if weight is not None and name in first:
                axis = 0 if transposed and weight.ndim == 2 else weight.ndim - 1
                found[name] = (kind, axis, weight.shape[axis])
    return found


def _frozen(net: nn.Module) -> Any:
    """The same modules anew, their parameters as buffers that lie in the same memory and are not saved."""
    net = copy.deepcopy(net, {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())})
    plain = {id(weight): weight.detach() for weight in net.parameters()}
    for module in net.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                del module._parameters[name]
                module.register_buffer(name, plain[id(weight)], persistent=False)
        module._non_persistent_buffers_set.update(module._buffers)
    return net

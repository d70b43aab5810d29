"""The engines as a strategy uses them, inside an experiment; what it trains and merges stays in its folder and is made once."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..domain import Domain
from ..measure import limited
from ..recipe import Recipe, Step
from ..runs import Run
from ..tools import Named, Tools

if TYPE_CHECKING:
    from ..model import Model

QUIET = {"checkpoint_every": 10**6, "watch_every": 10**6}


class Workbench(Named):
    """train, merge, keep, bits and note for one seed; ``settings`` of training win over a strategy's own, as a recipe's do."""

    def __init__(self, name: str, seed: int, work: Path, **settings: Any):
        recipe = Recipe.check({"title": name, "seed": seed, "contamination": "off"})
        super().__init__(Tools(recipe, Run(work / "run", seed)), Step(name, f"merging.{name}", "", {}, None, train={**QUIET, **settings}))
        self.notes: dict[str, Any] = {}

    def named(self, name: str, **settings: Any) -> "Workbench":
        """The same tools, whose products and notes carry another name; more settings of training on top."""
        self.step = Step(name, self.step.use, "", {}, None, train={**self.step.train, **settings})
        return self

    def note(self, name: str, value: Any) -> None:
        """Keep a fact of the way, for the details of the result."""
        self.notes[f"{self.step.name}.{name}"] = value


@contextmanager
def kept_from_collection(tiny: bool) -> Iterator[None]:
    """For tiny runs: the trainer collects garbage after each training, which takes longer than a tiny one itself."""
    if not tiny:
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def nats_per_token(model: "Model", domain: Domain, most: int, split: str = "test") -> float:
    """Mean surprise per token of the model's own tokenizer on the first ``most`` bytes of a split."""
    from ..engines.score import bits_per_byte

    found = bits_per_byte(model, limited(domain, split, most), rows=16)
    return float(found.nats.sum() / found.tokens.sum())


def base_model(tiny: bool, work: Path) -> "Model":
    """``seedling-xs``, or for tiny runs a random model that is saved in ``work``."""
    from ..model import Model
    from .fixture import tiny_model

    if not tiny:
        return Model.load("seedling-xs")
    if not (work / "base" / "config.json").is_file():
        tiny_model("causal").save(work / "base")
    return Model.load(str(work / "base"))

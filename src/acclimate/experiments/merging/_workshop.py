"""The engines as strategies of this room use them, in one folder and without a recipe: what was trained or searched is found again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...domain import Domain
from ...measure import limited

if TYPE_CHECKING:
    from ...model import Model


class Workshop:
    """Tools for strategies; ``prefix`` keeps the products of several strategies apart, ``train_settings`` win over a strategy's own."""

    def __init__(self, seed: int, work: Path, prefix: str = "", **train_settings: Any):
        self.seed, self.work, self.prefix, self.train_settings = seed, work, prefix, train_settings
        self.notes: dict[str, Any] = {}

    def train(
        self, name: str, start: "Model", objective: Any, domains: Any, *, adapter: Any = None, teacher: Any = None, **given: Any
    ) -> Any:
        """A trained copy; read from the folder where it was made before."""
        from ...engines.train import Training, train
        from ...model import Model

        folder = self.work / "trained" / f"{self.prefix}{name}"
        if (folder / "model" / "config.json").is_file():
            made = Model.load(str(folder / "model"))
            made.name = name
            return made
        settings = {"seed": self.seed, "watch_every": 10**6, "checkpoint_every": 10**6, **given, **self.train_settings}
        done = train(start, objective, domains, Training(**settings), folder / "work", adapter=adapter, teacher=teacher, name=name)
        done.model.save(folder / "model")
        return done.model

    def merge(self, name: str, method: Any, tuned: "list[Model]", base: "Model | None" = None, settings: Any = None) -> "Model":
        """A merge in memory."""
        import torch

        from ...engines.candidates import weights_of
        from ...engines.tensors import merge_in_memory

        states = [weights_of(model) for model in tuned]
        merged = merge_in_memory(method, None if base is None else weights_of(base), states, settings, seed=self.seed)
        made = tuned[0].copy(name)
        with torch.no_grad():
            for key, weight in made.net.named_parameters():
                weight.copy_(merged[key])
        made.net.eval()
        return made

    def keep(self, name: str, model: "Model") -> "Model":
        """A model as it is."""
        return model

    def search(self, name: str, fitness: Callable, start: Any, **options: Any) -> Any:
        """CMA-ES with its log in the folder."""
        from ...engines.search import search

        return search(fitness, start, seed=self.seed, log=self.work / f"{self.prefix}{name}.jsonl", **options)

    def bits(self, model: "Model", domain: Domain, split: str = "validation", most: int = 60_000) -> float:
        """Bits per byte on held-out text."""
        from ...engines.score import bits_per_byte

        return bits_per_byte(model, limited(domain, split, most), rows=16).value

    def note(self, name: str, value: Any) -> None:
        """Keep a fact for the details."""
        self.notes[name] = value


def nats_per_token(model: "Model", domain: Domain, most: int, split: str = "test") -> float:
    """Mean surprise per token of the model's own tokenizer."""
    from ...engines.score import bits_per_byte

    found = bits_per_byte(model, limited(domain, split, most), rows=16)
    return float(found.nats.sum() / found.tokens.sum())

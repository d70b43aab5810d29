"""Tools as one strategy sees them: what it makes carries its step's name, and is made once per run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .domain import Domain
from .errors import AcclimateError
from .files import atomic_file, cache_dir, digest, write_json
from .kinds import Merge, Objective
from .measure import limited
from .progress import say
from .recipe import Step

if TYPE_CHECKING:
    import numpy as np

    from .engines.finetune import FineTuning, Sources, Tuned
    from .engines.score import Bits
    from .model import FeatureModel, Model
    from .tools import Tools


class Named:
    """Tools as one strategy sees them: its products carry the step's name and its settings the step's own."""

    def __init__(self, tools: "Tools", step: Step):
        self.tools, self.step = tools, step

    def train(self, name: str, start: "Model", objective: Objective, domains: Any, **settings: Any) -> "Model":
        """Train and name the product ``<step>.<name>``; the recipe's train: settings win over the strategy's."""
        given = {key: settings.pop(key) for key in ("adapter", "teacher", "stages") if settings.get(key) is not None}
        return self.tools.train(f"{self.step.name}.{name}", start, objective, domains, {**settings, **self.step.train}, **given)

    def merge(self, name: str, method: Merge, tuned: "list[Model]", base: "Model | None" = None, settings: Any = None) -> "Model":
        """Merge and name the product ``<step>.<name>``; ``settings`` gives a tensor's own settings by its name."""
        return self.tools.merge(f"{self.step.name}.{name}", method, tuned, base, settings)

    def fine_tune(
        self, name: str, model: "FeatureModel", train: "Sources", held: "Sources", plan: "FineTuning", seed: int, *, only: str = ""
    ) -> "Tuned":
        """Fine-tune a classifier of arrays (engines.finetune) and keep it as ``<step>.<name>``: a killed strategy goes on after it."""
        return self.tools.fine_tune(f"{self.step.name}.{name}", model, train, held, plan, seed, only)

    def place(self, name: str) -> Path:
        """Where a training that is not the train engine's keeps its checkpoints in the run directory, so that it resumes."""
        return self.tools.run.folder / "staged" / f"{self.step.name}.{name}"

    def keep(self, name: str, model: "Model", how: str = "") -> "Model":
        """Save a model that was made by hand as the product ``<step>.<name>``."""
        return self.tools.keep(f"{self.step.name}.{name}", model, how or f"{self.step.use.partition('.')[2]} ({name})")

    def shelve(self, name: str, part: Any) -> Path:
        """Save what is no model (a library of tags, a bank) as ``kept/<step>.<name>`` in the run directory, by its own ``save``."""
        return part.save(self.tools.run.folder / "kept" / f"{self.step.name}.{name}")

    def bits(self, model: "Model", domain: Domain, split: str = "validation", most: int = 60_000) -> float:
        """Bits per byte of a model on the first ``most`` bytes of a split."""
        from .engines.score import bits_per_byte

        if split not in domain.splits:
            raise AcclimateError(
                f"{self.step.use} looks at the {split} split of {domain.name}, which has none; give it one, or another domain"
            )
        return float(bits_per_byte(model, limited(domain, split, most)).value)

    def surprise(self, model: "Model", domain: Domain, split: str = "test", most: int = 150_000, width: int = 0) -> "Bits":
        """Surprise and ranks of the true tokens on the first ``most`` bytes of a split, in windows of ``width`` tokens side by side."""
        from .engines.score import bits_per_byte

        if split not in domain.splits:
            raise AcclimateError(f"{self.step.use} measures on the {split} split of {domain.name}, which has none; give it one")
        return bits_per_byte(model, limited(domain, split, most), overlap=0.0, width=width, ranks=True)

    def search(self, name: str, fitness: Callable, start: "np.ndarray", **settings: Any) -> Any:
        """CMA-ES (engines.search) with its log of trials in the run directory, so that a killed search goes on."""
        from .engines.search import search

        return search(fitness, start, seed=self.seed, log=self._log(name), **settings)

    def pareto(self, name: str, fitness: Callable, start: "np.ndarray", **settings: Any) -> Any:
        """The same for several metrics at once (engines.pareto)."""
        from .engines.pareto import pareto

        return pareto(fitness, start, seed=self.seed, log=self._log(name), **settings)

    def _log(self, name: str) -> Path:
        return self.tools.run.folder / "searches" / f"{self.step.name}.{name}.jsonl"

    @property
    def seed(self) -> int:
        """The seed of the recipe, for generators."""
        return self.tools.recipe.seed

    def topics(self, texts: list[str]) -> "np.ndarray":
        """A vector per text [text, topic] from a light embedder (VAMPIRE) fitted on these very texts; kept in the cache."""
        import numpy as np

        from .models.vampire import fit

        path = cache_dir("topics") / f"{digest([texts, self.seed])}.npy"
        if not path.exists():
            say(f"{self.step.name}: topics of {len(texts)} texts")
            with atomic_file(path) as temporary, open(temporary, "wb") as handle:
                np.save(handle, fit(texts, seed=self.seed).embed(texts))
        return np.load(path)

    def vectors(self, texts: list[str], encoder: str = "minilm") -> "np.ndarray":
        """A vector per text [text, width] from a pretrained sentence encoder; kept in the cache."""
        from .shifts import encoded

        return encoded(texts, encoder).numpy()

    def note(self, name: str, value: Any) -> None:
        """Keep what was chosen on the way, as ``notes/<step>.<name>.json`` in the run directory."""
        write_json(self.tools.run.folder / "notes" / f"{self.step.name}.{name}.json", value)

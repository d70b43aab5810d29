"""The engines, as recipes and strategies use them: every product has a name and is kept in the run directory."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .domain import Domain
from .domain.arrays import ArrayDomain, open_domain
from .errors import AcclimateError
from .files import cache_dir, digest, read_json, write_json
from .fitting import fits, fits_arrays, form, root
from .kinds import Adapter, Merge, Objective, Strategy
from .measure import contaminated, hashes, limited, measure_all
from .named import Named
from .progress import say
from .recipe import Recipe, Step
from .runs import Run, now, provenance

if TYPE_CHECKING:
    from torch import Tensor

    from .engines.finetune import FineTuning, Sources, Tuned
    from .model import ArrayModel, FeatureModel, Model


class Tools:
    """The engines, as strategies and recipes use them: models by name, domains by name, every product cached in the run directory."""

    def __init__(self, recipe: Recipe, run: Run):
        self.recipe, self.run = recipe, run
        self.domains: dict[str, Any] = {}  # Domain or ArrayDomain
        self.models: dict[str, Any] = {}  # Model or ArrayModel
        self.costs: dict[str, dict[str, Any]] = {}
        self.curves: dict[str, list] = {}
        self.contaminated: dict[str, Any] = {"checked": 0, "removed": 0, "spans": []}
        self.looked: set[str] = set()

    # what there is

    def open(self) -> None:
        """Open everything that is given, so that what is missing is said before hours of training and not after them."""
        names = {step.name for step in self.recipe.steps}
        for ref in dict.fromkeys(
            [self.recipe.model, *(ref for step in self.recipe.steps for ref in (step.start, step.teacher, *step.tuned))]
        ):
            if ref and ref not in names and ("/" in ref or ref.partition(".")[0] not in names):
                self.model(ref)
        for name, spec in self.recipe.domains.items():
            if "source" in spec:
                self.domain(name)
        forms = {name: domain.form for name, domain in self.domains.items()}
        for step in self.recipe.steps:  # what a hub or a folder holds is known only now
            fits(f"step {step.name}", step, forms)
            start = self.models.get(root(self.recipe.steps, step.start))
            if form(start) == "arrays":
                fits_arrays(step, start, self.domains, [*self.recipe.evaluate["in"], *self.recipe.evaluate["out"]])

    def model(self, ref: str) -> Any:
        """A step's model by name, else any reference that Model.load or ArrayModel.load takes."""
        from .model import open_model

        if ref not in self.models:
            made = self.run.folder / "steps" / ref / "model"
            self.models[ref] = open_model(str(made) if ref in self.run.made else ref, self.recipe.seed)
            self.models[ref].name = ref
        self._make_room(ref)
        return self.models[ref]

    def _make_room(self, keep: str) -> None:
        """Let go of models that can be read again when all together would fill half of the free memory."""
        import psutil

        most = psutil.virtual_memory().available / 2
        for name in list(self.models):
            if sum(model.bytes for model in self.models.values()) <= most:
                return
            if name != keep:
                del self.models[name]

    def domain(self, name: str) -> Any:
        """A domain of the recipe, opened at first use."""
        if name not in self.domains:
            self.domains[name] = self._open(name, dict(self.recipe.domains[name]))
        return self.domains[name]

    def _open(self, name: str, spec: dict[str, Any]) -> "Domain | ArrayDomain":
        if "recall" not in spec:
            return open_domain(name, spec.pop("source"), **spec)
        from .engines.generate import recall

        model = self.model(spec.get("model") or self.recipe.model)
        path = cache_dir("recall") / f"{digest([model.fingerprint, spec['recall'], self.recipe.seed])}.json"
        if not path.exists():
            write_json(path, recall(model, int(spec["recall"]), seed=self.recipe.seed))
        return _recalled(name, read_json(path), f"written by {model.name}")

    # making

    def make(self, step: Step) -> None:
        """Make one step of the recipe."""
        if isinstance(step.method, Strategy):
            roles: dict[str, Any] = {role: self._role(names) for role, names in step.on.items()}
            if step.tuned:
                roles["tuned"] = [self.model(ref) for ref in step.tuned]
            made = step.method.run(Named(self, step), start=self.model(step.start), **roles)
            for stage, model in made.items():
                name = f"{step.name}.{stage}"
                self.models[name] = model if name in self.run.made else self.keep(name, model, f"{step.use.partition('.')[2]} ({stage})")
            self.models[step.name] = self.models[name]
        elif isinstance(step.method, Merge):
            base = self.model(step.start) if "base" in step.method.asked() else None
            self.models[step.name] = self.merge(step.name, step.method, [self.model(ref) for ref in step.tuned], base)
        else:
            domains = {name: (self.clean(name), float(weight)) for name, weight in step.on.items()}
            self.models[step.name] = self.train(
                step.name,
                self._headed(step.start) if step.new_head else self.model(step.start),
                step.method,
                domains,
                step.train,
                adapter=step.adapter,
                teacher=step.teacher,
                stages=step.stages,
            )

    def _role(self, names: Any) -> Any:
        """What a strategy gets for a role: a domain, or several by name."""
        if isinstance(names, list):
            return {name: self.clean(name) for name in names}
        return {name: self._role(part) for name, part in names.items()} if isinstance(names, dict) else self.clean(names)

    def _headed(self, ref: str) -> "Model":
        """An encoder with a fresh output layer, the same for the same seed."""
        import torch

        from .model import Model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            return Model.load(ref, kind="masked", new_head=True)

    def train(
        self,
        name: str,
        start: "Model",
        objective: Objective,
        domains: "dict[str, tuple[Domain, float]] | Domain",
        settings: dict[str, Any] | None = None,
        *,
        adapter: Any = None,
        teacher: "str | Model | Mapping[str, Model]" = "",
        stages: list | None = None,
    ) -> "Model":
        """Train a copy of ``start``; made once per run directory and settings. ``teacher`` may be one per domain."""
        from .engines import train as engine

        domains = {domains.name: (domains, 1.0)} if isinstance(domains, Domain) else domains
        taught = self.model(teacher) if isinstance(teacher, str) and teacher else teacher or None
        plan = engine.Training(**{"seed": self.recipe.seed, **(settings or {})})
        watch = {n: self.domain(n) for n in (*self.recipe.evaluate["in"], *self.recipe.evaluate["out"])}
        parts = {
            "start": start.fingerprint,
            "objective": [objective.name, objective.values()],
            "adapter": adapter and [adapter.name, adapter.values()],
            "teacher": _fingerprints(taught),
            "domains": {n: [d.fingerprint, w] for n, (d, w) in domains.items()},
            "training": plan.values(),
            "stages": stages,
        }
        if plan.max_forgetting is not None:  # then what is watched decides when training stops
            parts["budget"] = [watch[n].fingerprint for n in self.recipe.evaluate["out"]]

        in_place = adapter is None and _too_large_to_copy(start)
        if in_place:  # the weights in memory become the trained ones; whoever asks for the start model again reads it from disk
            self.models = {ref: model for ref, model in self.models.items() if model is not start}

        def make(work: Path) -> tuple[Any, dict]:
            done = engine.train(
                start,
                objective,
                domains,
                plan,
                work,
                adapter=adapter,
                teacher=taught,
                watch=watch,
                outside=set(self.recipe.evaluate["out"]),
                stages=[(float(a), b) for a, b in stages] if stages else None,
                name=name,
                in_place=in_place,
            )
            how = _how(start, objective, adapter, domains, done)
            return done.model, {"how": how, "cost": done.cost, "curve": [row for row in done.curve], "stopped": done.stopped}

        model = self.run.step(name, parts, make)
        facts = self.run.made[name]
        self.costs[name], self.curves[name] = {"how": facts["how"], **facts["cost"]}, facts["curve"]
        return model

    def merge(
        self,
        name: str,
        method: Merge,
        tuned: "list[Model]",
        base: "Model | None" = None,
        settings: Callable[[str], dict[str, Any]] | None = None,
    ) -> "Model":
        """Merge saved models, streamed; made once per run directory. ``settings`` gives a tensor's own settings by its name."""
        import time

        from .merges import merge

        everyone = [*tuned, *([base] if base is not None else [])]
        own = {key: settings(key) for key in everyone[0].net.state_dict()} if settings else {}
        parts = {
            "merge": [method.name, method.values(), own],
            "tuned": [model.fingerprint for model in tuned],
            "base": base and base.fingerprint,
        }

        def make(work: Path) -> tuple[Any, dict]:
            refs = [self._saved(model, work) for model in everyone]
            started = time.perf_counter()
            found = merge(
                method, refs[: len(tuned)], base=refs[-1] if base is not None else "", out=work / "merged", per_tensor=settings,
                dtype="float32", seed=self.recipe.seed, check=False,
            )  # fmt: skip
            how = f"{method.name.partition('.')[2]} of {', '.join(model.name for model in tuned)}"
            cost = {"seconds": round(time.perf_counter() - started, 2), "total_parameters": found["weights"]}
            return work / "merged", {"how": how, "cost": cost, "curve": [], "stopped": ""}

        model = self.run.step(name, parts, make)
        facts = self.run.made[name]
        self.costs[name], self.curves[name] = {"how": facts["how"], **facts["cost"]}, []
        return model

    def fine_tune(
        self, name: str, model: "FeatureModel", train: "Sources", held: "Sources", plan: "FineTuning", seed: int, only: str = ""
    ) -> "Tuned":
        """Fine-tune a classifier of arrays; made once per run directory, data and settings."""
        import time

        from .engines import finetune as engine
        from .model import ArrayModel, fingerprint

        parts = {
            "start": [fingerprint(model), model.classes],
            "rows": {role: {n: _digest(rows) for n, rows in some.items()} for role, some in (("train", train), ("held", held))},
            "tuning": [plan.values(), seed, only],
        }

        def make(work: Path) -> tuple[Any, dict]:
            started = time.perf_counter()
            done = engine.fine_tune(model, train, held, plan, seed, only=only)
            how = f"fine-tuning on {', '.join(train)}, {plan.steps} steps"
            kept = ArrayModel(name, done.model, notes={"made": {"how": how, "seed": seed, **plan.values()}})
            cost = {"seconds": round(time.perf_counter() - started, 2), "steps": plan.steps, "total_parameters": kept.parameters()}
            return kept, {"how": how, "cost": cost, "curve": [], "accuracy": done.accuracy, "validation": done.curve}

        made = self.run.step(name, parts, make)
        facts = self.run.made[name]
        self.costs[name], self.curves[name] = {"how": facts["how"], **facts["cost"]}, []
        return engine.Tuned(made.net, facts["accuracy"], [(int(step), float(score)) for step, score in facts["validation"]])

    def _saved(self, model: "Model", work: Path) -> str:
        """Where a model's weights are on disk; one that is in memory alone is saved first."""
        from .engines.merging.checkpoint import Checkpoint
        from .model import embedded

        if model.adapted or (
            (model.source in embedded() or Path(model.source).is_dir()) and Checkpoint.open(model.source).holds(model.net.state_dict())
        ):
            return model.source
        return str(model.save(work / "inputs" / model.fingerprint))

    def keep(self, name: str, model: "Model | ArrayModel", how: str) -> Any:
        """A model that a strategy made by itself, saved in the run directory like one that was trained."""
        kept = self.run.step(name, {"kept": model.fingerprint}, lambda work: (model, {"how": how, "cost": {}, "curve": [], "stopped": ""}))
        self.costs[name], self.curves[name] = {"how": how}, []
        return kept

    def clean(self, name: str) -> Any:
        """A domain whose training split shares no long span, and no row, with anything it will be measured on (checked once)."""
        domain = self.domain(name)
        if not self.recipe.contamination or name in self.looked or "train" not in domain.splits:
            return domain
        self.looked.add(name)
        measured = {n: self.domain(n) for n in (*self.recipe.evaluate["in"], *self.recipe.evaluate["out"])}
        found = contaminated(domain, measured, self.recipe.evaluate.get("split", "test"))
        self.contaminated["checked"] += found["checked"]
        self.contaminated["removed"] += found["removed"]
        self.contaminated["spans"] += found["spans"]
        if found["removed"]:
            say(f"{name}: {found['removed']} of {found['checked']} training rows share content with what is measured; they are left out")
            domain.splits["train"] = domain.rows("train").select(found["clean"])
        return domain

    # measuring

    def report(self, command: str) -> dict[str, Any]:
        """Measure the start model and every step on every domain, and put all that is known together."""
        recipe, evaluate = self.recipe, self.recipe.evaluate
        names = [recipe.model, *(evaluate.get("models") or self._last())]
        roles = {**dict.fromkeys(evaluate["out"], "out"), **dict.fromkeys(evaluate["in"], "in")}
        domains = {name: self.domain(name) for name in (*evaluate["in"], *evaluate["out"])}
        models = {name: self.model(name) for name in names}
        results, counts = measure_all(models, domains, roles, evaluate.get("split", "test"), int(evaluate.get("bytes") or 150_000))
        unknown = {"how": "made by a strategy"}
        start = {"how": "the start model"}
        if models[recipe.model].kind == "featurizer":
            start["how"] += " with a head probed on " + ", ".join(evaluate["in"])
        facts = {name: self.costs.get(name, start if name == recipe.model else unknown) for name in names}
        return {
            "title": recipe.title,
            "created": now(),
            "base": recipe.model,
            "command": command,
            "recipe": recipe.text(),
            "models": {name: {"total_parameters": models[name].parameters(), **facts[name]} for name in names},
            "domains": counts,
            "results": results,
            "curves": {n: self.curves[n] for n in names if n in self.curves},
            "samples": self._samples(names, domains),
            "contamination": self.contaminated,
            "provenance": {**provenance(recipe.seed), **hashes(models, domains)},
        }

    def _last(self) -> list[str]:
        """What the steps made; of a strategy its stages, and not its own name, which stands for the last of them."""
        steps = {step.name for step in self.recipe.steps}
        made = [name for name in self.models if name in steps or (name.partition(".")[0] in steps and "/" not in name)]
        staged = {name.partition(".")[0] for name in made if "." in name}
        return [name for name in made if name not in staged]

    def _samples(self, names: list[str], domains: dict[str, Domain]) -> list[dict[str, Any]]:
        from .engines.generate import generate

        found = []
        many = int(self.recipe.evaluate.get("samples", 2))
        for name in self.recipe.evaluate["in"]:
            texts = [text for text in limited(domains[name], self.recipe.evaluate.get("split", "test"), 10**9) if len(text) > 200][:many]
            prompts = [text[:120].rsplit(" ", 1)[0] for text in texts]
            said = {
                n: generate(self.model(n), prompts, tokens=int(self.recipe.evaluate.get("sample_tokens", 60)))
                for n in names
                if self.model(n).kind == "causal"
            }
            found += [
                {"domain": name, "prompt": prompt, "texts": {n: out[i] for n, out in said.items()}} for i, prompt in enumerate(prompts)
            ]
        return found


def _fingerprints(taught: "Model | Mapping[str, Model] | None") -> Any:
    if isinstance(taught, Mapping):
        return {key: each.fingerprint for key, each in taught.items()}
    return taught and taught.fingerprint


def _recalled(name: str, texts: list[str], source: str) -> Domain:
    """Independent samples of a model's own text, 70 % to replay, 15 % to watch, 15 % to measure on, in the order they were written."""
    import datasets

    from .files import digest

    if len(texts) < 8:
        raise AcclimateError(f"domain {name!r} recalled {len(texts)} usable texts, too few to split; ask for more with recall:")
    first, second = round(0.7 * len(texts)), round(0.85 * len(texts))
    parts = {"train": (0, first), "validation": (first, second), "test": (second, len(texts))}
    splits = {
        split: datasets.Dataset.from_dict(
            {
                "id": [digest(text) for text in texts[a:b]],
                "origin": [f"recall:{i + 1}" for i in range(a, b)],
                "text": texts[a:b],
            }
        )
        for split, (a, b) in parts.items()
    }
    return Domain(name, "text", splits, source=source)


def _digest(rows: "tuple[Tensor, Tensor]") -> str:
    return digest(b"".join(part.contiguous().numpy().tobytes() for part in rows))


def _too_large_to_copy(model: "Model") -> bool:
    """Whether a second copy of the weights, with gradients and two moments for it, would not fit."""
    import psutil

    return model.bytes * 5 > psutil.virtual_memory().available


def _how(start: "Model", objective: Objective, adapter: Adapter | None, domains: Iterable[str], done: Any) -> str:
    what = f"{objective.name.partition('.')[2]}" + (f" with {adapter.name.partition('.')[2]}" if adapter else "")
    return f"{what} on {', '.join(domains)} from {start.name}, {done.cost['steps']} steps" + (f"; {done.stopped}" if done.stopped else "")

"""A recipe: a short YAML of domains and steps, checked whole before any weight loads, then run step by step.

title: numpy expert
model: seedling                                   # what every model is compared with
domains:
  numpy: python_docs/numpy                        # a file, folder, named dataset or Hugging Face id; or images (domain/arrays.py)
  recall: {recall: 200}                           # text the start model writes by itself
steps:
  - {as: full,   use: objectives.causal_lm, on: numpy, train: {steps: 60}}
  - {as: replay, use: objectives.causal_lm, on: {numpy: 0.75, recall: 0.25}, train: {steps: 60}}
  - {as: lora,   use: objectives.causal_lm, on: numpy, adapter: {use: adapters.lora, with: {r: 16}}}
  - {as: merged, use: merging.ties, from: [full, replay]}        # base: the recipe's model if not named
evaluate: {in: [numpy], out: [recall]}
"""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .domain.arrays import form_of
from .errors import AcclimateError, nearest
from .files import read_yaml, yaml_text
from .fitting import among, fits, form_of_model, root, several
from .kinds import Adapter, Merge, Objective, Strategy
from .method import Method, find

KEYS = ("title", "seed", "model", "domains", "steps", "evaluate", "contamination")
STEP = ("as", "use", "from", "base", "on", "with", "train", "adapter", "teacher", "stages", "new_head")
EXAMPLES = {"objectives": "causal_lm", "adapters": "lora", "merging": "ties"}
EVALUATE = ("in", "out", "models", "split", "bytes", "samples", "sample_tokens")


@dataclass
class Step:
    """One step: a method, where it starts from, what it learns on."""

    name: str
    use: str
    start: str
    on: dict[str, Any]  # weights by domain; for a strategy what each role is: a domain, or on arrays also several, or several by name
    method: Any  # an Objective, a Strategy or a Merge
    train: dict[str, Any] = field(default_factory=dict)
    adapter: Any = None
    adapter_spec: dict[str, Any] | None = None
    teacher: str = ""
    stages: list | None = None
    new_head: bool = False
    tuned: list[str] = field(default_factory=list)  # the models to merge


@dataclass
class Recipe:
    """A checked recipe; ``data`` is its plain form, ready for YAML."""

    data: dict[str, Any]
    title: str
    seed: int
    model: str
    domains: dict[str, dict[str, Any]]
    steps: list[Step]
    evaluate: dict[str, Any]
    contamination: bool = True

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Read and check a YAML file (or one of the package's own, by name such as ``quickstart``)."""
        path = Path(path)
        own = Path(__file__).parent / "recipes" / f"{path}.yaml"
        if not path.exists() and own.exists():
            path = own
        if not path.is_file():
            known = [str(p.relative_to(own.parent).with_suffix("")) for p in (Path(__file__).parent / "recipes").rglob("*.yaml")]
            raise AcclimateError(f"no recipe {path}: no such file, and not one of the package's own{nearest(str(path), known)}")
        return cls.check(read_yaml(path), str(path))

    @classmethod
    def check(cls, data: Any, where: str = "the recipe") -> "Recipe":
        """Check every key, name, setting and reference. Raises AcclimateError with the nearest known name."""
        _keys(where, data, KEYS)
        steps = data.get("steps") or []
        if not isinstance(steps, list):
            raise AcclimateError(f"{where}: steps must be a list")
        model = str(data.get("model") or "seedling")
        domains = {str(name): _domain(where, name, spec) for name, spec in _mapping(f"{where}, domains", data.get("domains")).items()}
        names = [str(step.get("as") or f"step{i + 1}") if isinstance(step, dict) else f"step{i + 1}" for i, step in enumerate(steps)]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise AcclimateError(f"{where}: two steps are called {sorted(doubled)[0]!r}; give each its own name with as:")
        read = [_step(f"{where}, step {name}", name, step, model, domains) for name, step in zip(names, steps, strict=True)]
        evaluate = dict(_mapping(f"{where}, evaluate", data.get("evaluate")))
        _keys(f"{where}, evaluate", evaluate, EVALUATE)
        for role in ("in", "out"):
            evaluate[role] = _list(f"{where}, evaluate.{role}", evaluate.get(role))
            for name in evaluate[role]:
                _known(f"{where}, evaluate.{role}", name, domains, "domain")
        for key in ("bytes", "samples", "sample_tokens"):
            if key in evaluate:
                evaluate[key] = _whole(f"{where}, evaluate.{key}", evaluate[key], 0 if key == "samples" else 1)
        strategies = {step.name for step in read if isinstance(step.method, Strategy)}
        for name in _list(f"{where}, evaluate.models", evaluate.get("models")):
            stem = str(name).partition(".")[0]
            _known(f"{where}, evaluate.models", stem if stem in strategies else name, {step.name: 1 for step in read}, "step")
        ordered = _order(where, read)
        forms = {name: form_of(spec) for name, spec in domains.items()}
        for step in ordered:
            fits(f"{where}, step {step.name}", step, forms, form_of_model(root(ordered, step.start)))
        return cls(
            dict(data),
            str(data.get("title") or "run"),
            _whole(f"{where}, seed", data.get("seed") or 0, 0),
            model,
            domains,
            ordered,
            evaluate,
            data.get("contamination") not in (False, "off"),
        )

    def text(self) -> str:
        """The resolved recipe as YAML: every default written out."""
        steps = []
        for step in self.steps:
            spec: dict[str, Any] = {
                "as": step.name,
                "use": step.use,
                **({"from": step.tuned, "base": step.start} if step.tuned else {"from": step.start}),
                "on": step.on,
                "with": step.method.values(),
            }
            if isinstance(step.method, Merge):
                del spec["on"]
            elif not isinstance(step.method, Strategy):
                spec["train"] = training(step, self.seed).values()
            elif step.train:
                spec["train"] = step.train
            if step.adapter_spec:
                spec["adapter"] = {"use": step.adapter_spec["use"], "with": step.adapter.values() if step.adapter else {}}
            spec |= {k: v for k, v in (("teacher", step.teacher), ("stages", step.stages), ("new_head", step.new_head)) if v}
            steps.append(spec)
        whole = {
            "title": self.title,
            "seed": self.seed,
            "model": self.model,
            "domains": self.domains,
            "steps": steps,
            "evaluate": self.evaluate,
        }
        if not self.contamination:
            whole["contamination"] = "off"
        return yaml_text(whole)


def training(step: Step, seed: int) -> Any:
    """The step's training settings; the recipe's seed counts where the step names none."""
    from .engines.settings import Training

    return Training(**{"seed": seed, **step.train})


def _step(where: str, name: str, step: Any, model: str, domains: dict) -> Step:
    _keys(where, step, STEP)
    if not re.fullmatch(r"\w[\w -]*", name):
        raise AcclimateError(f"{where}: a step's name is the name of its folder: letters, digits, _, - and spaces only")
    method = _method(where, step, (Objective, Strategy, Merge))
    merged = isinstance(method, Merge)
    tuned = _list(f"{where}, from", step.get("from")) if merged or isinstance(step.get("from"), list) else []
    _check_merge(where, step, method, tuned)
    spec = step.get("adapter")
    spec = {"use": spec} if isinstance(spec, str) else spec
    if spec:
        _keys(f"{where}, adapter", spec, ("use", "with"))
    adapter = _method(f"{where}, adapter", spec, (Adapter,)) if spec else None
    on = step.get("on")
    on = on if isinstance(on, dict) else dict.fromkeys(_list(f"{where}, on", on), 1.0)
    roles = isinstance(method, Strategy)
    if not roles and not step.get("teacher") and (asked := [word for word in method.needs() if word.startswith("teacher_")]):
        raise AcclimateError(f"{where}: {method.name} needs {asked[0]}; name a model with teacher:")
    for key, value in on.items():
        if roles and not isinstance(value, str) and not several(method, key):
            raise AcclimateError(f"{where}: role {key!r} of {method.name} is one domain, but here is {value!r}")
        if not (used := among(value) if roles else [key]):
            raise AcclimateError(f"{where}: role {key!r} of {method.name} names no domain")
        for each in used:
            _known(where, each, domains, "domain")
        if not roles and (not _number(value) or value < 0):
            raise AcclimateError(f"{where}: the weight of domain {key!r} is {value!r}, but must be a number of 0 or more")
    if not on and not tuned:
        raise AcclimateError(f"{where}: on: is missing; name the domain to learn on")
    _check_stages(where, step.get("stages"), on)
    made = Step(
        name,
        step["use"],
        str((step.get("base") if tuned else step.get("from")) or model),
        on,
        method,
        dict(_mapping(f"{where}, train", step.get("train"))),
        adapter,
        spec,
        str(step.get("teacher") or ""),
        step.get("stages"),
        bool(step.get("new_head")),
        tuned,
    )
    if roles and made.train and not method.trains:
        raise AcclimateError(f"{where}: train: reaches nothing in {method.name}, which trains by its own settings; give them with with:")
    if not merged:
        try:
            training(made, 0)
        except AcclimateError as error:
            raise AcclimateError(f"{where}, train: {error}") from error
    return made


def _check_merge(where: str, step: dict[str, Any], method: Any, tuned: list[str]) -> None:
    """A merge has models and no domains; only what merges takes a list of models."""
    if isinstance(method, Merge):
        if not tuned:
            raise AcclimateError(f"{where}: {method.name} merges models; list them with from: [a, b]")
        for key in ("on", "train", "adapter", "teacher", "stages", "new_head"):
            if step.get(key):
                raise AcclimateError(f"{where}: {key}: has no meaning for {method.name}, which trains nothing; leave it out")
        from .merges import checked

        try:
            checked(method, len(tuned), True)
        except AcclimateError as error:
            raise AcclimateError(f"{where}: {error}") from error
    elif tuned and not (isinstance(method, Strategy) and "tuned" in method.needs() + method.wishes()):
        raise AcclimateError(f"{where}: from: is one model for {method.name}, not a list")
    elif step.get("base") and not tuned:
        raise AcclimateError(f"{where}: base: belongs to a list of models in from: [a, b]; name the one start model with from:")


def _method(where: str, spec: dict[str, Any], kinds: tuple[type[Method], ...]) -> Any:
    """The method a step or an adapter names, with its settings."""
    if not isinstance(spec.get("use"), str):
        raise AcclimateError(f"{where}: use: is missing; name a method such as {kinds[0].room}.{EXAMPLES[kinds[0].room]}")
    try:
        method = find(spec["use"])(**_mapping("with", spec.get("with")))
    except AcclimateError as error:
        raise AcclimateError(f"{where}: {error}") from error
    if not isinstance(method, kinds):
        raise AcclimateError(
            f"{where}: {spec['use']} cannot stand here; use: takes a method of {' or '.join(k.__name__ for k in kinds)} kind"
        )
    return method


def _domain(where: str, name: Any, spec: Any) -> dict[str, Any]:
    """What a domain is made of: a source with the options of Domain.load or ArrayDomain.load, or text recalled by a model."""
    from .domain.arrays import ArrayOptions
    from .domain.loading import Options

    spec = copy.deepcopy(spec) if isinstance(spec, dict) else {"source": str(spec)} if spec else {}
    where = f"{where}, domain {name}"
    if ("source" in spec) == ("recall" in spec):
        raise AcclimateError(f"{where} needs either source: (a file, folder, dataset) or recall: (a number of texts)")
    if "recall" in spec:
        _keys(where, spec, ("recall", "model"))
        return {**spec, "recall": _whole(f"{where}, recall", spec["recall"], 1)}
    kind = ArrayOptions if form_of(spec) == "arrays" else Options
    _keys(where, spec, ("source", *kind.settings()))
    try:
        kind(**{key: value for key, value in spec.items() if key != "source"})
    except AcclimateError as error:
        raise AcclimateError(f"{where}: {error}") from error
    return {**spec, "source": str(spec["source"])}


def _check_stages(where: str, stages: Any, on: dict[str, Any]) -> None:
    """Stages are [end as a share of the run, {domain: weight}], the ends rising."""
    form = f"{where}: a stage is written [share of the run at its end, {{domain: weight}}], e.g. [0.5, {{legal: 1}}]"
    if stages is not None and not isinstance(stages, list):
        raise AcclimateError(form)
    before = 0.0
    for stage in stages or []:
        if not isinstance(stage, (list, tuple)) or len(stage) != 2 or not isinstance(stage[1], dict) or not _number(stage[0]):
            raise AcclimateError(f"{form}, but here is {stage!r}")
        if not before < stage[0] <= 1:
            raise AcclimateError(f"{where}: the ends of stages must rise from above 0 to 1, but {stage[0]} follows {before:g}")
        before = stage[0]
        for key, weight in stage[1].items():
            _known(where, key, on, "domain of this step")
            if not _number(weight) or weight < 0:
                raise AcclimateError(f"{where}: the weight of domain {key!r} in a stage is {weight!r}, but must be a number of 0 or more")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise AcclimateError(f"{where} must be a mapping of keys, but is {value!r}")
    return value or {}


def _list(where: str, value: Any) -> list[str]:
    value = [value] if isinstance(value, str) else value or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise AcclimateError(f"{where} must be a name or a list of names, but is {value!r}")
    return list(value)


def _whole(where: str, value: Any, least: int) -> int:
    try:
        number = int(str(value).replace("_", ""))
    except ValueError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise AcclimateError(f"{where} = {value!r}, but must be a whole number of {least} or more")
    return number


def _keys(where: str, data: Any, known: tuple[str, ...]) -> None:
    if not isinstance(data, dict):
        raise AcclimateError(f"{where} must be a mapping of keys, but is {type(data).__name__}")
    for key in data:
        if key not in known:
            raise AcclimateError(f"{where}: unknown key {key!r}{nearest(str(key), known)}")


def _known(where: str, name: str, among: dict, what: str) -> None:
    if name not in among:
        raise AcclimateError(f"{where}: no {what} {name!r}{nearest(str(name), among)}")


def _order(where: str, steps: list[Step]) -> list[Step]:
    """Steps in an order in which everything referred to is made before; a cycle is an error that names it."""
    by_name = {step.name: step for step in steps}
    done: list[Step] = []
    state: dict[str, int] = {}

    def visit(step: Step, trail: list[str]) -> None:
        if state.get(step.name) == 2:
            return
        if state.get(step.name) == 1:
            raise AcclimateError(f"{where}: steps go round in a circle: {' -> '.join([*trail[trail.index(step.name) :], step.name])}")
        state[step.name] = 1
        for ref in (step.start, step.teacher, *step.tuned):
            before = by_name.get(ref) or by_name.get(ref.partition(".")[0] if "/" not in ref else "")
            if before is not None:
                visit(before, [*trail, step.name])
        state[step.name] = 2
        done.append(step)

    for step in steps:
        visit(step, [])
    return done

"""Whether what a step is given fits it: text or arrays, networks and the shapes they take, classes that are learned and measured."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .domain.arrays import ArrayDomain
from .errors import AcclimateError, nearest
from .kinds import Strategy

if TYPE_CHECKING:
    from .recipe import Step


def form(made: Any) -> str:
    """What a method or a model works on, "text" or "arrays"; those on arrays say so with a class variable ``works_on``."""
    return getattr(made, "works_on", "text")


def several(method: Any, role: str) -> bool:
    """Whether a strategy's role takes several domains: on arrays any role does, on text one that is annotated as a mapping."""
    asked = inspect.signature(type(method).run).parameters.get(role)
    return form(method) == "arrays" or (asked is not None and "Mapping[" in str(asked.annotation))


def among(role: Any) -> list[str]:
    """The names of the domains that a role holds: one, a list, or lists by name.

    >>> among({"hands": ["mnist", "usps"], "styles": "photo"})
    ['mnist', 'usps', 'photo']
    """
    if isinstance(role, (list, dict)):
        return [name for part in (role.values() if isinstance(role, dict) else role) for name in among(part)]
    return [role]


def fits(where: str, step: "Step", forms: dict[str, str], start: str = "") -> None:
    """Refuse text for a method on arrays and arrays for one on text; a form that is not known yet ("") passes."""
    mine = form(step.method)
    images = "images: a folder of class folders, or a dataset such as pacs/photo"
    for name in among(list(step.on.values())) if isinstance(step.method, Strategy) else step.on:
        holds = forms.get(name) and ("arrays" if forms[name] == "arrays" else "text")
        if holds and holds != mine:
            mend = f"name {images}" if mine == "arrays" else "name a domain of text"
            raise AcclimateError(f"{where}: {step.use} works on {mine}, but domain {name!r} holds {holds}; {mend}")
    if start and start != mine:
        mend = "a network for arrays such as convnet" if mine == "arrays" else "a model of text"
        raise AcclimateError(f"{where}: {step.use} works on {mine}, but {step.start!r} is a model of {start}; start from {mend}")


def root(steps: "list[Step]", ref: str) -> str:
    """The model that a chain of steps begins with: it has the shape of all that follow."""
    by_name = {step.name: step for step in steps}
    while (step := by_name.get(ref) or by_name.get(ref.partition(".")[0] if "/" not in ref else "")) is not None:
        ref = step.start
    return ref


def form_of_model(ref: str) -> str:
    """ "text", "arrays", or "" where a reference may be anything."""
    from .model import embedded, is_array_model

    if is_array_model(ref):
        return "arrays"
    return "text" if ref in embedded() or Path(ref).expanduser().is_dir() else ""


def fits_arrays(step: "Step", start: Any, domains: dict[str, Any], measured: list[str]) -> None:
    """Refuse arrays that the step's network cannot take, and measured ones with a class that the step does not learn."""
    used = among(list(step.on.values()))
    learned = {label for name in among(step.on.get("target", used)) for label in domains[name].classes}
    wanted = start.featurizer.inputs
    for name in dict.fromkeys([*used, *measured]):
        domain = domains.get(name)
        if not isinstance(domain, ArrayDomain):
            continue
        shape = next(iter(domain.splits.values())).x.shape[1:]
        if len(shape) != len(wanted) or shape[0] != wanted[0]:
            raise AcclimateError(
                f"step {step.name}: a row of domain {name!r} has the shape {shape}, but {start.name} takes {wanted}; "
                f"for images say channels: {wanted[0]} at the domain"
            )
        if name in measured and (unknown := [label for label in domain.classes if label not in learned]):
            raise AcclimateError(
                f"domain {name!r} is measured, but step {step.name} learns no class {unknown[0]!r}{nearest(unknown[0], learned)}; "
                "choose what to measure with classes: at the domain"
            )

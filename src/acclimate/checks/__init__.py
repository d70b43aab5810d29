"""Checks every method must pass: common ones for all kinds, and one file per room, found by its name; public for plugin authors.

A check is a public function of ``common.py`` or ``<room>.py`` whose only argument is ``cls``, the method's class; it raises
when the method fails. A room whose file has ``example`` (see common.py) gets the common checks of behaviour as well.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import AcclimateError
from ..kinds import KINDS
from ..method import Method, class_in, find
from . import common

Check = Callable[[type[Method]], None]


@dataclass(frozen=True)
class Outcome:
    """What one check found; ``excused`` is the reason the method itself gives for not being checked."""

    check: str
    ok: bool
    message: str = ""
    excused: str = ""


def checks_for(cls: type[Method]) -> list[tuple[str, Check]]:
    """The checks that apply to a method's class, by name.

    >>> from acclimate.method import find
    >>> found = [name for name, _ in checks_for(find("objectives.dpo"))]
    >>> found[:3], found[-2:]
    (['cited', 'first_line', 'doctested'], ['splits', 'corruption'])
    """
    room = room_checks(cls)
    behaviour = room is not None and hasattr(room, "example")
    found = [(name, check) for name, check in _in(common) if behaviour or name not in common.BEHAVIOUR]
    return found + (_in(room) if room else [])


def room_checks(cls: type[Method]) -> ModuleType | None:
    """The room's own module of checks; None where it has none, and for strategies, whose verb is another."""
    if cls.room not in KINDS or not issubclass(cls, KINDS[cls.room]) or not (Path(__file__).parent / f"{cls.room}.py").is_file():
        return None
    return importlib.import_module(f"{__name__}.{cls.room}")


def _in(module: ModuleType) -> list[tuple[str, Check]]:
    return [
        (name, value)
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and list(inspect.signature(value).parameters) == ["cls"]
    ]


def run(what: str | Path) -> list[Outcome]:
    """Check a method by its name, or the one that a Python file defines.

    Raises AcclimateError if there is no such method, or the file cannot be imported or defines none.
    """
    cls = from_file(Path(what)) if str(what).endswith(".py") else find(str(what))
    return [outcome(cls, name, check) for name, check in checks_for(cls)]


def outcome(cls: type[Method], name: str, check: Check) -> Outcome:
    """Run one check on a method's class, unless the method is exempt from it."""
    if name in cls.exempt and name != "exemptions":
        return Outcome(name, True, excused=cls.exempt[name])
    try:
        check(cls)
    except Exception as error:
        kind = "" if isinstance(error, AssertionError | AcclimateError) else f"{type(error).__name__}: "
        return Outcome(name, False, kind + (str(error).strip() or "no message"))
    return Outcome(name, True)


def from_file(path: Path) -> type[Method]:
    """The method class of somebody's file, imported under a name of its own."""
    if not path.is_file():
        raise AcclimateError(f"{path} does not exist")
    path = path.resolve()
    name = f"acclimate_checked_{hashlib.sha256(path.read_bytes() + str(path).encode()).hexdigest()[:12]}.{path.stem}"
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # type hints and doctests look their module up here
    try:
        spec.loader.exec_module(module)
        return class_in(module)
    except AcclimateError as error:
        raise AcclimateError(f"{path}: {str(error).replace(name, path.stem)}") from error
    except Exception as error:
        raise AcclimateError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error

"""What a method is: typed settings plus one verb in one file; the file's path is its name in the registry."""

import ast
import dataclasses
import importlib
import inspect
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from .errors import AcclimateError, nearest

GROUP = "acclimate.methods"  # entry-point group: name = "room.method", value = "module:Class" or "module"
FOLDER = Path(__file__).parent / "methods"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one setting means, with its range (ends included) or its choices."""

    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple = ()

    def check(self, where: str, value: Any) -> None:
        """Raise one clear line if the value is out of range."""
        if self.choices and value not in self.choices:
            raise AcclimateError(f"{where} = {value!r}, but must be one of {', '.join(map(repr, self.choices))}")
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)) and not (
                (self.low is None or number >= self.low) and (self.high is None or number <= self.high)
            ):
                raise AcclimateError(f"{where} = {value!r}, but must lie in [{_end(self.low)}, {_end(self.high)}]")


def _end(bound: float | None) -> str:
    return "..." if bound is None else f"{bound:g}"


@typing.dataclass_transform(kw_only_default=True)
class Settings:
    """A class whose annotated fields are settings: ``name: Annotated[type, Setting(meaning, low, high)] = default``.

    Subclasses are keyword-only dataclasses that check types and ranges and refuse what they do not know.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        dataclasses.dataclass(kw_only=True, repr=True, eq=False)(cls)
        build = cls.__init__

        def __init__(self, *args, **given):
            unknown = [name for name in given if name not in cls.settings()]
            if unknown:
                raise AcclimateError(f"{cls.__name__} has no setting {unknown[0]!r}{nearest(unknown[0], cls.settings())}")
            build(self, *args, **given)

        cls.__init__ = __init__  # type: ignore[method-assign]

    @classmethod
    @cache
    def settings(cls) -> dict[str, "Field"]:
        """Every setting by name: its type, default and :class:`Setting`."""
        hints = typing.get_type_hints(cls, include_extras=True)
        found = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            hint = hints[field.name]
            notes = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Setting)]
            if not notes:
                raise TypeError(f"{cls.__name__}.{field.name} needs Annotated[type, Setting(...)]")
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            found[field.name] = Field(typing.get_args(hint)[0], default, notes[0])
        return found

    def __post_init__(self):
        for name, field in self.settings().items():
            value = field.cast(f"{type(self).__name__}.{name}", getattr(self, name))
            setattr(self, name, value)
            if value is not None:
                field.setting.check(f"{type(self).__name__}.{name}", value)

    def values(self) -> dict[str, Any]:
        """The settings as plain data, ready for JSON or YAML."""
        return {name: getattr(self, name) for name in self.settings()}


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting as declared: type, default, meaning."""

    type: Any
    default: Any
    setting: Setting

    def cast(self, where: str, value: Any) -> Any:
        """The value in the declared type; numbers, true and false in text ("1e-4", as YAML and the command line read them) are accepted."""
        wanted = typing.get_args(self.type) if isinstance(self.type, (types.UnionType,)) else (self.type,)
        if value is None and type(None) in wanted:
            return None
        for kind in wanted:
            plain = typing.get_origin(kind) or kind
            if plain is bool and isinstance(value, str) and value.lower() in ("true", "false"):
                return value.lower() == "true"
            if isinstance(value, bool) != (plain is bool) and plain in (bool, int, float):
                continue
            if isinstance(value, plain):
                return value
            if plain is tuple and isinstance(value, list):  # as JSON and YAML read them
                return tuple(value)
            if plain in (int, float) and isinstance(value, (int, float, str)):
                try:
                    number = float(value)
                except ValueError:
                    continue
                if plain is float or number.is_integer():
                    return plain(number)
        names = " or ".join("nothing" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in wanted)
        raise AcclimateError(f"{where} = {value!r}, but must be {names}")


class Method(Settings):
    """The base of all kinds (kinds.py): settings and one verb."""

    room: ClassVar[str] = ""  # the folder under methods/
    verb: ClassVar[str] = ""  # the one function a method writes
    works_on: ClassVar[str] = "text"  # what its rows are: text, or arrays (images, series ...)
    extra: ClassVar[str] = ""  # optional dependency group, "" for none
    exempt: ClassVar[dict[str, str]] = {}  # check name -> why this method is excused from it

    @property
    def name(self) -> str:
        """``room.file``, as the registry knows it."""
        return f"{self.room}.{type(self).__module__.rpartition('.')[2]}"

    @classmethod
    def needs(cls) -> list[str]:
        """Words the verb cannot do without: its arguments that have no default."""
        return [name for name, arg in _arguments(cls).items() if arg.default is arg.empty]

    @classmethod
    def wishes(cls) -> list[str]:
        """Words the verb takes if the engine has them: its arguments with a default."""
        return [name for name, arg in _arguments(cls).items() if arg.default is not arg.empty]

    @classmethod
    @cache
    def asked(cls) -> tuple[str, ...]:
        """Needs and wishes."""
        return (*cls.needs(), *cls.wishes())


def _arguments(cls: type[Method]) -> dict[str, inspect.Parameter]:
    return arguments(cls, cls.verb)


def arguments(cls: type[Method], function: str) -> dict[str, inspect.Parameter]:
    """The arguments of one of a method's functions by name, self left out."""
    found = dict(inspect.signature(getattr(cls, function)).parameters)
    found.pop("self", None)
    return found


@cache
def names(room: str = "") -> dict[str, str]:
    """Every method by name with its first docstring line, read from the files; nothing is imported.

    >>> names("objectives")["objectives.dpo"].partition(":")[0]
    'DPO'
    """
    found = {}
    for path in sorted(FOLDER.glob("*/[!_]*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[f"{path.parent.name}.{path.stem}"] = doc.partition("\n")[0]
    for point in _outside():
        found[point.name] = f"from {point.value}"
    return {name: line for name, line in found.items() if name.startswith(room + "." if room else "")}


@cache
def find(name: str) -> type[Method]:
    """The class of one method, importing its file alone. Raises AcclimateError with the nearest names."""
    room, _, stem = name.partition(".")
    if stem.isidentifier() and (FOLDER / room / f"{stem}.py").is_file():
        return class_in(importlib.import_module(f"acclimate.methods.{room}.{stem}"))
    for point in _outside():
        if point.name == name:
            loaded = point.load()
            return class_in(loaded) if inspect.ismodule(loaded) else loaded
    raise AcclimateError(f"no method {name!r}{nearest(name, names())}")


def load(name: str, **settings: Any) -> Any:
    """One method, ready: ``load("objectives.dpo", beta=0.2)``."""
    return find(name)(**settings)


def class_in(module: Any) -> type[Method]:
    """The one method class that a module defines."""
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise AcclimateError(f"{module.__name__} must define one method class, but defines {len(found)}")
    return found[0]


def _outside() -> list:
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda point: point.name)

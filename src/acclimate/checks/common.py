"""Checks for methods of every kind: manners first (read off the file), then behaviour on the kind's tiny data.

Checks of behaviour use ``example(method, dtype)`` of the room's file: it returns the verb and its inputs (a dict of fresh
arguments, the same at every call), floating-point ones in ``dtype``.
"""

import ast
import copy
import dataclasses
import doctest
import inspect
import io
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import AcclimateError
from ..method import Method

LONGEST = 150  # lines of a method's file
SLOWEST = 1.0  # seconds of processor time on tiny data, warm
BEHAVIOUR = ("repeatable", "inputs_untouched", "quick", "half_precision")


def expect(condition: Any, message: str) -> None:
    """Fail with the message unless the condition holds (a plain assert would vanish under python -O)."""
    if not condition:
        raise AssertionError(message)


# manners


def cited(cls: type[Method]) -> None:
    """The module's docstring links to the paper."""
    expect("https://" in _doc(cls), "the module's docstring has no https:// link to a paper")


def first_line(cls: type[Method]) -> None:
    """The docstring's first line is "Name: what it does." and fits in a listing."""
    line = _doc(cls).partition("\n")[0]
    expect(
        re.fullmatch(r"[^:]{1,40}: .{15,}\.", line),
        f'the docstring must begin with "Name: what it does in plain words.", but begins with {line!r}',
    )


def doctested(cls: type[Method]) -> None:
    """The module's docstring has a doctest that ends in a number, and all doctests pass."""
    module = sys.modules[cls.__module__]
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    examples = doctest.DocTestParser().get_examples(_doc(cls))
    expect(examples, "the module's docstring has no doctest (a line that starts with >>>)")
    expect(re.search(r"\d", examples[-1].want), f"the doctest must end in a number, but ends in {examples[-1].want.strip()!r}")
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=flags)
    for test in doctest.DocTestFinder().find(module):
        runner.run(test, out=said.write)
    expect(not runner.failures, "a doctest fails: " + re.sub(r"\s+", " ", said.getvalue())[-400:])


def settings_explained(cls: type[Method]) -> None:
    """Every setting says what it means, in more than one word."""
    for name, field in cls.settings().items():
        expect(len(field.setting.meaning.split()) > 1, f"setting {name!r} is not explained: {field.setting.meaning!r}")


def defaults_in_range(cls: type[Method]) -> None:
    """Every setting has a default, and the defaults are allowed values."""
    for name, field in cls.settings().items():
        expect(field.default is not dataclasses.MISSING, f"setting {name!r} has no default")
    cls()


def unknown_setting_refused(cls: type[Method]) -> None:
    """A misspelt setting is an error that names the right one."""
    right = next(iter(cls.settings()), "")
    try:
        cls(**{right + "_x": 1})
    except AcclimateError as error:
        expect(right in str(error).replace(right + "_x", ""), f"the error for {right + '_x'!r} does not name {right!r}: {error}")
    else:
        raise AssertionError(f"a setting that does not exist ({right + '_x'}) is accepted")


def survives_saving(cls: type[Method]) -> None:
    """Settings come back equal from JSON: the defaults, and each choice and switch turned."""
    cases: list[dict[str, Any]] = [{}]
    for name, field in cls.settings().items():
        cases += [{name: choice} for choice in field.setting.choices]
        cases += [{name: not field.default}] if isinstance(field.default, bool) else []
    for case in cases:
        method = cls(**case)
        again = cls(**json.loads(json.dumps(method.values())))
        expect(again.values() == method.values(), f"settings change when saved and loaded: {method.values()} becomes {again.values()}")


def listed(cls: type[Method]) -> None:
    """The file can be listed without being imported: a plain lower-case name and a literal docstring."""
    path = _file(cls)
    expect(re.fullmatch(r"[a-z][a-z0-9_]*", path.stem), f"the file's name {path.name!r} must be lower case and begin with a letter")
    expect(
        ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) == inspect.cleandoc(_doc(cls)),
        "the docstring must be a literal at the top",
    )


def short(cls: type[Method]) -> None:
    """The file holds one idea: at most 150 lines."""
    lines = len(_file(cls).read_text(encoding="utf-8").splitlines())
    expect(lines <= LONGEST, f"{lines} lines, but a method has at most {LONGEST}; shared maths belongs in parts/, plumbing in an engine")


def no_plumbing(cls: type[Method]) -> None:
    """No device, optimizer, file, network, print or global seed: engines own these."""
    for node in ast.walk(ast.parse(_file(cls).read_text(encoding="utf-8"))):
        found = _plumbing(node)
        expect(not found, f"line {getattr(node, 'lineno', 0)}: {found} is an engine's work, not a method's")


def exemptions(cls: type[Method]) -> None:
    """Every exemption names a check and gives a reason."""
    from . import checks_for

    known = [name for name, _ in checks_for(cls)]
    for name, reason in cls.exempt.items():
        expect(name in known, f"exempt from {name!r}, which is no check of this kind: {', '.join(known)}")
        expect(len(reason.split()) > 3, f"exempt from {name!r} without a real reason: {reason!r}")


# behaviour


def repeatable(cls: type[Method]) -> None:
    """The same inputs give the same result twice; randomness comes in as a generator or by the engine's seed."""
    expect(same(_result(cls), _result(cls)), "two runs on the same inputs differ; take randomness from a generator that is passed in")


def inputs_untouched(cls: type[Method]) -> None:
    """The verb leaves its inputs as they were."""
    verb, inputs = _example(cls)
    before = copy.deepcopy(inputs)
    verb(**inputs)
    changed = [name for name in inputs if not same(before[name], inputs[name])]
    expect(not changed, f"the verb writes into its input {', '.join(changed)}")


def quick(cls: type[Method]) -> None:
    """On tiny data the verb takes less than a second of processor time, warm, whatever else the machine does."""
    _result(cls)
    taken = []
    for _ in range(3):
        verb, inputs = _example(cls)
        started = time.process_time()
        verb(**inputs)
        taken.append(time.process_time() - started)
        if taken[-1] < SLOWEST:
            return
    raise AssertionError(f"takes {min(taken):.1f} s on tiny data, more than {SLOWEST:g} s")


def half_precision(cls: type[Method]) -> None:
    """bf16 and fp16 inputs give finite results."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        expect(finite(_result(cls, dtype)), f"the result in {dtype} is not finite")


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal bit for bit: tensors, arrays, modules, and what holds them; nan equals nan."""
    import numpy as np
    import torch

    if isinstance(a, torch.nn.Module):
        return same(dict(a.state_dict()), dict(b.state_dict()))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(one, other) for one, other in zip(a, b, strict=True))
    return bool(a == b)


def finite(value: Any) -> bool:
    """Whether every number in a result is finite."""
    import torch

    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _example(cls: type[Method], dtype: Any = None) -> tuple[Any, dict[str, Any]]:
    import torch

    from . import room_checks

    room: Any = room_checks(cls)
    return room.example(cls(), dtype or torch.float32)


def _result(cls: type[Method], dtype: Any = None) -> Any:
    verb, inputs = _example(cls, dtype)
    return verb(**inputs)


def _doc(cls: type[Method]) -> str:
    return (sys.modules[cls.__module__].__doc__ or "").strip()


def _file(cls: type[Method]) -> Path:
    return Path(inspect.getfile(cls))


NETWORK = {"requests", "urllib", "http", "httpx", "socket"}


def _plumbing(node: ast.AST) -> str:
    """What an ast node does that no method should; "" if nothing."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            modules += [f"torch.{alias.name}" for alias in node.names]
        bad = [name for name in modules if name.split(".")[0] in NETWORK or name.startswith("torch.optim")]
        return f"import of {bad[0]}" if bad else ""
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.optim":
        return "torch.optim"
    if not isinstance(node, ast.Call):
        return ""
    called = ast.unparse(node.func)
    name = called.rpartition(".")[2]
    arguments = [ast.unparse(argument) for argument in [*node.args, *(keyword.value for keyword in node.keywords)]]
    moved = any(re.search(r"\bdevice$|^['\"](cpu|cuda|mps|xpu)", argument) for argument in arguments)
    if (
        called in ("print", "open")
        or name in ("manual_seed", "cuda", "read_text", "write_text")
        or called in ("random.seed", "np.random.seed")
    ):
        return f"{called}(...)"
    if name == "to" and moved:
        return f"{called}({', '.join(arguments)})"
    if name == "default_rng" and not arguments:
        return "a generator without a seed"
    return ""

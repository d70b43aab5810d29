"""Python docstrings: the documentation inside the installed packages, one domain per package; always there, no network.

The domain is the import name of any installed package, or ``stdlib``: ``load("python_docs/scipy")``. Packages are found and
read by path and parsed, never imported. Column ``text``: one docstring of a module, class or function, of 80 characters or more,
without its indentation; ``origin`` is ``package/module.py:line qualified.name``. About 80 % of the docstrings are train, 10 %
validation and 10 % test, by a hash of the text; repeats are dropped, and from train also what nearly repeats a tested one. The
licence is the distribution's own. A package needs 10 docstrings or more.

What for: a tree of related technical domains (``TOPICS``, given as ``parent``) on every machine. Serves first runs, tests,
routing between packages and transfer between topics.

Traps. The text depends on the versions installed: the domain's fingerprint says which it was. Docstrings of one package share
paragraphs (parameters, returns): a test docstring is rarely all new. Packages copy from each other too (jax.numpy
and numpy, torch and functorch). Many rows hold doctests. Compiled packages such as tokenizers have few docstrings to parse.
"""

import ast
import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ..domain import Domain
from ..errors import AcclimateError, nearest
from ._texts import divided

TOPICS = {
    "numerics": ("numpy", "scipy", "sympy", "mpmath", "networkx", "numba", "jax", "cma", "ot", "statsmodels"),
    "learning": (
        *("torch", "transformers", "sklearn", "peft", "trl", "accelerate", "datasets", "sentence_transformers", "tokenizers"),
        *("huggingface_hub", "safetensors", "optuna", "tiktoken", "keras", "tensorflow", "lightning"),
    ),
    "data": ("pandas", "pyarrow", "polars", "narwhals", "fsspec", "dill", "dateutil", "sqlalchemy", "duckdb", "dask", "ray"),
    "web": ("fastapi", "starlette", "uvicorn", "requests", "httpx", "aiohttp", "jinja2", "typer", "click", "rich", "flask", "django"),
    "language": ("stdlib", "mypy", "setuptools", "pip", "pytest", "hypothesis", "pydantic", "pygments", "packaging", "babel", "nltk"),
    "plots": ("matplotlib", "fontTools", "PIL", "seaborn", "plotly", "bokeh", "altair"),
}
SHORTEST = 80  # characters; shorter ones are mostly one-line restatements of the name
SKIPPED = {"tests", "test", "testing", "vendor", "vendored", "_vendor", "_vendored", "__pycache__", "site-packages", "dist-packages"}

CARD: dict[str, Any] = {
    "source": "docstrings of the packages installed beside this one",
    "licence": "each distribution's own",
    "size": "30 KB (typer) to 6 MB (transformers) per package",
    "columns": {"text": "one docstring"},
    "hub": None,
}


def topic(package: str) -> str:
    """The room of the taxonomy a package belongs to, or "other".

    >>> topic("scipy"), topic("no_such_package")
    ('numerics', 'other')
    """
    return next((room for room, packages in TOPICS.items() if package in packages), "other")


def domains() -> list[str]:
    """The packages of the taxonomy that are installed; any other installed package's import name works too."""
    return [package for packages in TOPICS.values() for package in packages if _place(package)]


def _place(package: str) -> list[Path]:
    """The folders (or the one file) of a package, found without importing it; empty where it is not installed."""
    if package == "stdlib":
        return [Path(sysconfig.get_paths()["stdlib"])]
    if not package.isidentifier():
        return []
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module made by hand in this process
        spec = None
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(folder) for folder in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _facts(package: str) -> tuple[str, str, str]:
    """Distribution, version and licence of a package."""
    if package == "stdlib":
        return "Python", platform.python_version(), "PSF-2.0"
    names = _distributions().get(package)
    if not names:
        return package, "", ""
    data = importlib.metadata.metadata(names[0])
    classifiers = [line.rpartition(" :: ")[2] for line in data.get_all("Classifier") or [] if line.startswith("License ::")]
    stated = {key: data[key].strip().partition("\n")[0][:80] for key in ("License-Expression", "License") if key in data}
    return data["Name"], data["Version"], stated.get("License-Expression") or ", ".join(classifiers) or stated.get("License", "")


def _docstrings(node: ast.AST, prefix: str = "") -> Iterator[tuple[int, str, str]]:
    """(line, qualified name, text) of a module's docstrings, without those of functions inside functions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield node.body[0].lineno, prefix or "module", text
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{prefix}.{child.name}" if prefix else child.name)
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _docstrings(child, prefix)


def _harvest(paths: list[Path], root: Path) -> list[tuple[str, str]]:
    rows = []
    for path in paths:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                tree = ast.parse(source)
        except (SyntaxError, ValueError):  # templates and files for other versions of Python
            continue
        for line, name, text in _docstrings(tree):
            text = text.strip().encode("utf-8", "replace").decode()  # lone surrogates are not storable
            if len(text) >= SHORTEST:
                rows.append((f"{path.relative_to(root).as_posix()}:{line} {name}", text))
    return rows


def load(domain: str) -> Domain:
    """The docstrings of one installed package (or ``stdlib``) as a domain of texts."""
    places = _place(domain)
    if not places:
        raise AcclimateError(f"no installed package {domain!r} to read docstrings from{nearest(domain, [*_distributions(), 'stdlib'])}")
    distribution, version, licence = _facts(domain)
    root = places[0] if domain == "stdlib" else places[0].parent
    paths = [places[0]] if places[0].is_file() else []
    for place in places:
        for folder, inner, files in os.walk(place):
            inner[:] = sorted(set(inner) - SKIPPED)
            paths += [Path(folder, name) for name in sorted(files) if name.endswith(".py")]
    parts = divided(f"python_docs/{domain}", paths, __file__, lambda: _harvest(paths, root))
    return Domain(
        name=f"python_docs/{domain}",
        form="text",
        **parts,
        source=f"docstrings of {distribution} {version}".strip(),
        licence=licence,
        parent=topic(domain),
    )

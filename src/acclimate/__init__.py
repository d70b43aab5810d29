"""Acclimate turns a general model into a domain expert, and proves it.

>>> import acclimate
>>> acclimate.load("objectives.dpo", beta=0.2).beta
0.2
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_VERBS = {  # name -> module that holds it, imported at first use
    "Domain": "domain",
    "Model": "model",
    "adapt": "execute",
    "evaluate": "measure",
    "compare": "report",
    "run": "execute",
    "merge": "merges",
    "extract": "merges",
    "combine": "merges",
    "shift": "shifts",
    "continual": "shifts",
    "load": "method",
    "names": "method",
    "reproduce": "experiments",
    "papers": "catalogue",
    "AcclimateError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'acclimate' has no attribute {name!r}")
    module = import_module(f"acclimate.{_VERBS[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(_VERBS)

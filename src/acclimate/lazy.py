"""Torch, imported when it is first used: what may do without it does not wait for it.

>>> torch.zeros(1)
tensor([0.])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Late:
        """A module that is looked up at every use, and imported at the first."""

        def __init__(self, name: str):
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self._name), name)

    torch = _Late("torch")

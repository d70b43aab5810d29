"""Progress bars with rate and time left, on stderr, only where a person looks (a terminal)."""

import os
import sys
from collections.abc import Iterable
from typing import Any


def wanted() -> bool:
    """Whether bars are shown: stderr is a terminal and ``ACCLIMATE_QUIET`` is not set."""
    return sys.stderr.isatty() and not os.environ.get("ACCLIMATE_QUIET")


def bar(items: Iterable | None = None, what: str = "", total: float | None = None, unit: str = "it") -> Any:
    """A tqdm bar: iterate over it, or call ``update(n)`` and ``close()``; silent where nobody looks."""
    from tqdm import tqdm

    return tqdm(
        items,
        desc=what,
        total=total,
        unit=unit,
        unit_scale=True,
        disable=not wanted(),
        leave=False,
        dynamic_ncols=True,
        smoothing=0.1,
    )


def say(text: str) -> None:
    """One line to stderr (stdout belongs to results), unless ``ACCLIMATE_QUIET`` is set."""
    if not os.environ.get("ACCLIMATE_QUIET"):
        print(text, file=sys.stderr, flush=True)

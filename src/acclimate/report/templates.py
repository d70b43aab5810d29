"""The page's templates."""

from functools import cache
from pathlib import Path
from typing import Any

from .numbers import minus


@cache
def environment() -> Any:
    """Where templates come from; everything that is put into them is escaped."""
    from jinja2 import Environment, FileSystemLoader

    made = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.filters["minus"] = minus
    return made

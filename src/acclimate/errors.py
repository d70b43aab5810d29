"""Errors for people: one clear line that says what went wrong, where, and how to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches


class AcclimateError(Exception):
    """Bad input or a fault of the surroundings; its text is the whole message, no traceback is needed."""


class MissingExtraError(AcclimateError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed; mend it with: pip install 'acclimate[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error line that names the closest known word.

    >>> nearest("scael", ["scale", "keep"])
    '; nearest: scale'
    >>> nearest("xyz", ["scale", "keep"])
    '; known: keep, scale'
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "; nearest: " + ", ".join(close)
    return "; known: " + (", ".join(names[:12]) + (" ..." if len(names) > 12 else "") if names else "none")

"""Checks for methods of domain generalization."""

from ..kinds import DomainGeneralization
from . import _shifted
from ._shifted import example, reference_number

__all__ = ["example", "reference_number"]


def words_known(cls: type[DomainGeneralization]) -> None:
    """The arguments of step are words of the closed list."""
    _shifted.check_words(cls)


def modalities(cls: type[DomainGeneralization]) -> None:
    """It runs on rows of numbers and on images."""
    _shifted.check_modalities(cls)


def same_seed(cls: type[DomainGeneralization]) -> None:
    """The same seed gives the same weights."""
    _shifted.check_same_seed(cls)


def resumes(cls: type[DomainGeneralization]) -> None:
    """A killed run goes on as if it had not been killed."""
    _shifted.check_resumes(cls)


def learns(cls: type[DomainGeneralization]) -> None:
    """On rows that can be learned, it learns."""
    _shifted.check_learns(cls)

"""Checks for methods of domain adaptation."""

from ..kinds import DomainAdaptation
from . import _shifted
from ._shifted import example, reference_number

__all__ = ["example", "reference_number"]


def words_known(cls: type[DomainAdaptation]) -> None:
    """The arguments of step are words of the closed list."""
    _shifted.check_words(cls)


def modalities(cls: type[DomainAdaptation]) -> None:
    """It runs on rows of numbers and on images."""
    _shifted.check_modalities(cls)


def same_seed(cls: type[DomainAdaptation]) -> None:
    """The same seed gives the same weights."""
    _shifted.check_same_seed(cls)


def resumes(cls: type[DomainAdaptation]) -> None:
    """A killed run goes on as if it had not been killed."""
    _shifted.check_resumes(cls)


def learns(cls: type[DomainAdaptation]) -> None:
    """On rows that can be learned, it learns."""
    _shifted.check_learns(cls)


def beats_source_only(cls: type[DomainAdaptation]) -> None:
    """On a shifted target it beats plain training on the sources."""
    _shifted.check_beats_source_only(cls)

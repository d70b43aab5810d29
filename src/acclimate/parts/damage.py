"""How much a model may lose of what it was good at while it learns something else, and which checkpoint to keep under that rule.

Majumdar et al. 2022, section 2, https://arxiv.org/abs/2210.03255. Works for any model with error rates on old sets and on the new one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import AcclimateError


@dataclass(frozen=True)
class ConstrainedSelector:
    """SCORE = OSCALE x ASCALE: what is left of the allowed loss on the old sets, times the share of the new set's errors that went.

    ``kappa`` is the rise in error rate that is allowed, one for all old sets or one by name (0.03: three points). The authors' code takes
    the absolute change of an old error rate; here, as in the text, a set that got better has lost nothing.

    >>> chooser = ConstrainedSelector(0.03)
    >>> round(chooser.score({"a": 0.05, "b": 0.10}, {"a": 0.06, "b": 0.09}, 0.40, 0.10), 4)  # (2/3 + 1) / 2 x 3/4
    0.625
    >>> chooser.best([0.0, 0.2, 0.5, 0.5]), chooser.best([0.0, 0.0])  # the earliest of the highest; none where all are 0
    (2, None)
    """

    kappa: float | Mapping[str, float] = 0.03

    def __post_init__(self) -> None:
        if min(self.kappa.values() if isinstance(self.kappa, Mapping) else [self.kappa], default=0) <= 0:
            raise AcclimateError(f"kappa = {self.kappa!r}, but must be above 0: the rise in error rate that is allowed (0.03 = 3 points)")

    def allowed(self, name: str) -> float:
        """The rise allowed on one old set. Raises AcclimateError where none was given for it."""
        if not isinstance(self.kappa, Mapping):
            return self.kappa
        if name not in self.kappa:
            raise AcclimateError(f"no kappa for the old set {name!r}; there are: {', '.join(self.kappa)}")
        return self.kappa[name]

    def oscale(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        """Mean over the old sets of the share of kappa that is not used up, 0 to 1."""
        if not before:
            raise AcclimateError("the score needs error rates on at least one old set")
        left = [max(0.0, 1 - max(0.0, after[name] - rate) / self.allowed(name)) for name, rate in before.items()]
        return sum(left) / len(left)

    def ascale(self, before: float, after: float) -> float:
        """Share of the new set's errors that went, 0 to 1."""
        return max(0.0, (before - after) / before) if before > 0 else 0.0

    def score(self, old_before: Mapping[str, float], old_after: Mapping[str, float], new_before: float, new_after: float) -> float:
        """SCORE of one checkpoint, 0 to 1; 0 says that it must not be used."""
        return self.oscale(old_before, old_after) * self.ascale(new_before, new_after)

    def best(self, scores: Sequence[float]) -> int | None:
        """Number of the highest score, the earliest of equals; None where all are 0: then nothing is worth its damage."""
        if not scores or max(scores) <= 0:
            return None
        return max(range(len(scores)), key=lambda i: (scores[i], -i))

"""What each source is worth by itself: a model of it alone, measured where it may be."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...errors import AcclimateError
from .learner import Learner
from .loop import Training, accuracy, fit
from .pools import Data


def alone(method: Any, make: Callable[[], Learner], data: Data, training: Training | None = None) -> list[float]:
    """Accuracy of a model of each labelled domain alone, on the held-out rows of the other domains: a number per domain.

    ``method`` trains each learner that ``make`` gives on one domain (plain: domain_generalization.erm). The target is not looked at.
    """
    if len(data.labelled) < 2 or len(data.validation) != len(data.labelled):
        raise AcclimateError("weighing sources needs two of them or more, and held-out rows (validation) of each, in the same order")
    found = []
    for place, (pool, held) in enumerate(zip(data.labelled, data.validation, strict=True)):
        learner = make()
        fit(method, learner, replace(data, labelled=[pool], target=None, validation=[held], distances=None, oracle=None), training)
        others = [other for number, other in enumerate(data.validation) if number != place]
        found.append(sum(accuracy(method, learner, other) for other in others) / len(others))
    return found

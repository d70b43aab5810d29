"""What experiments at test time share: one source model per unseen domain, and arms that meet its rows as a stream."""

import copy
from typing import TYPE_CHECKING, Any

from .shift_sets import Cut

if TYPE_CHECKING:
    from ..engines.shift import Batch, Data, Learner, Pool, Training


def source_model(method: Any, cuts: list[Cut], training: "Training", width: int = 16) -> "tuple[Learner, Data]":
    """A small convolutional network that ``method`` trained on some domains, and these; weights chosen on held-out rows of theirs."""
    from ..engines.shift import fit
    from .generalization import learner_for
    from .shift_sets import gathered

    data, learner = gathered(cuts), learner_for(cuts[0], training.seed, width)
    fit(method, learner, data, training)
    return learner, data


def arm(method: Any, learner: "Learner", source: "Batch | None" = None, **settings: Any) -> Any:
    """A copy of a source model on which a method waits for a stream; ``settings`` are of its training."""
    from ..engines.online import Online
    from ..engines.shift import Training

    given = {**method.training, **getattr(method, "online", {}), **settings}
    return Online(method, copy.deepcopy(learner), Training(**given), source=source)


def points(online: Any, pool: "Pool", batch: int, seed: int) -> float:
    """Accuracy in points on a domain's rows as they come, in an order drawn by the seed; the arm goes on from where it is."""
    from ..engines.online import stream, streamed_accuracy

    return 100 * streamed_accuracy(online, stream(pool, batch, seed=seed))

"""The online engine: a model that goes on learning while it predicts on a stream of batches without labels.

A method's ``adapt`` sees one batch: it yields losses and who learns from them, like a step of the shift engine, and returns scores. The
model is snapshotted at the start; ``reset`` brings back weights, buffers, memory, optimizer and draws bit for bit.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..domain.arrays import IGNORED
from ..errors import AcclimateError
from ..progress import bar
from .shift.learner import Learner
from .shift.loop import Training, add_parts, seeded
from .shift.plays import as_plays, finite, optimizer_of, play
from .shift.pools import Batch, Pool

Shot = tuple[Tensor, Tensor | None]  # rows of a batch and their labels, which only the score sees


class Online:
    """A learner on a stream.

    ``begin`` of the method sees the source rows (a batch) where they are at hand, and the snapshot is taken after it. ``training`` holds
    optimizer and rates; its number of steps is not used.

    Raises AcclimateError for an empty batch, rows of another shape, and a loss that is not finite.
    """

    def __init__(self, method: Any, learner: Learner, training: Training | None = None, *, source: Batch | None = None):
        self.method, self.learner = method, learner
        self.training = training or Training(**{**method.training, **getattr(method, "online", {})})
        if source is not None and learner.sample is None:
            learner.sample = source.x[:1]
        add_parts(method, learner, self.training.seed)
        with seeded(self.training.seed, learner):
            method.begin(learner, source, None)
        self.optimizer = optimizer_of(learner, self.training)
        learner.eval()
        self.seen, self.updates = 0, 0
        self.snapshot = self._state()

    def predict(self, x: Tensor) -> Tensor:
        """Scores [row, class] of the next batch [row, *shape], after or before the method has learned from it, as the method says."""
        if not len(x):
            raise AcclimateError(f"batch {self.seen + 1} of the stream is empty; leave it out")
        learner = self.learner
        learner.step = self.seen
        with seeded(1_000_003 * self.training.seed + self.seen, learner):
            made = self.method.adapt(learner, x)
            scores = self._driven(made) if inspect.isgenerator(made) else made
        learner.eval()
        self.seen += 1
        return scores.detach()

    def _driven(self, steps: Iterator) -> Tensor:
        while True:
            try:
                plays = as_plays(next(steps))
            except StopIteration as end:
                if end.value is None:
                    raise TypeError(f"{self.method.name}: adapt returns no scores") from None
                return end.value
            mend = f"lower lr (now {self.training.lr:g}), or reset and leave the batch out"
            for loss, _ in plays:
                finite(loss, self.method.name, f"batch {self.seen + 1} of the stream", mend)
            play(self.learner, self.optimizer, plays, self.training.clip)
            self.updates += 1

    def run(self, stream: Iterable[Tensor]) -> list[Tensor]:
        """Scores of every batch of a stream, in order. Raises AcclimateError for an empty stream."""
        found = [self.predict(x) for x in bar(stream, self.method.name, unit="batch")]
        if not found:
            raise AcclimateError("the stream is empty: it holds no batch")
        return found

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the model as it was before the first batch, bit for bit."""
        state = copy.deepcopy(self.snapshot)
        self.learner.load_state_dict(state["weights"])
        self.learner.memory = state["memory"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.zero_grad(set_to_none=True)
        self.learner.eval()
        self.seen, self.updates = 0, 0

    def _state(self) -> dict[str, Any]:
        learner = self.learner
        return copy.deepcopy({"weights": learner.state_dict(), "memory": learner.memory, "optimizer": self.optimizer.state_dict()})


def stream(pool: Pool, batch: int, *, seed: int | None = 0, drop: int = 1) -> Iterator[Shot]:
    """A domain's rows once, in an order drawn by the seed (None: as they lie), ``batch`` at a time; no batch of fewer than ``drop`` rows.

    >>> pool = Pool("d", torch.arange(5.0)[:, None], torch.arange(5))
    >>> [y.tolist() for _, y in stream(pool, 2, seed=None)]
    [[0, 1], [2, 3], [4]]
    """
    order = torch.arange(len(pool))
    if seed is not None:
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    for rows in order.split(batch):
        if len(rows) >= drop:
            yield pool.x[rows], None if pool.y is None else pool.y[rows]


def chosen(methods: Sequence[Any], make: Callable[[Any], Online], pools: Sequence[Pool], batch: int, seed: int = 0) -> Any:
    """The one of several methods (of one with several settings) that does best on held-out source rows; the first of equals.

    ``make`` puts a method on the source model. Each pool is a stream of its own, after a reset.
    """
    if not methods or not pools:
        raise AcclimateError("choosing needs methods to choose from, and held-out rows of the sources (validation) to choose by")

    def worth(method: Any) -> float:
        online, found = make(method), []
        for pool in pools:
            online.reset()
            found.append(streamed_accuracy(online, stream(pool, batch, seed=seed)))
        return sum(found) / len(found)

    return max(methods, key=worth)


def streamed_accuracy(online: Online, shots: Iterable[Shot]) -> float:
    """The share of rows of a labelled stream that are predicted right as they come."""
    right, count = 0, 0
    for x, y in shots:
        if y is None:
            raise AcclimateError("the stream has no labels to measure by")
        right += int((online.predict(x).argmax(1) == y).sum())
        count += int((y != IGNORED).sum())
    if not count:
        raise AcclimateError("the stream is empty: it holds no batch")
    return right / count

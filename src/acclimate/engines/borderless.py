"""Streams without borders: tasks pass over into each other, and nobody says which one a row is of.

For all continual methods that need no borders (``Continual.borders``). The rows of every step are drawn beforehand, so a killed run goes
on like any other of the shift engine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AcclimateError
from .continual import Memory, Task, measured
from .shift.learner import Learner
from .shift.loop import Training, fit
from .shift.pools import Data, Pool


def learn_borderless(
    method: Any,
    learner: Learner,
    tasks: Sequence[Task],
    training: Training | None = None,
    memory: Memory | None = None,
    *,
    overlap: float = 0.25,
    folder: Path | None = None,
) -> list[float]:
    """Learn all tasks as one stream of ``training.steps`` batches (:func:`mixed`); accuracy on each task's test rows at the end.

    A memory of ``rows`` rows is a fair draw from all that has passed (:func:`reservoir`): nobody knows which task a row is of.

    Raises AcclimateError for a method that needs borders, a memory that counts rows by class or chooses them by task, no batch.
    """
    if not tasks:
        raise AcclimateError("the stream has no task")
    training, memory = training or Training(**method.training), memory or Memory()
    if method.borders:
        raise AcclimateError(f"{method.name} must be told where a task ends, which a stream without borders never says; use learn")
    if memory.per_class or memory.choose != "random":
        raise AcclimateError("without borders a memory is a number of rows drawn at random; set rows of Memory and nothing else")
    if not training.batch:
        raise AcclimateError("a stream comes in batches; set batch to how many rows come at a time")
    own = Training(**{**training.values(), "choose": "last"})
    rows = mixed([len(task.train) for task in tasks], own.steps, own.batch, overlap=overlap, seed=own.seed)
    course = {"source": rows, "domains": rows}
    if memory.rows and "replay" in {*method.needs(), *method.wishes()}:
        course["replay"] = reservoir(rows, memory.rows, own.seed)
    labels = [task.train.y for task in tasks if task.train.y is not None]
    pool = Pool("stream", torch.cat([task.train.x for task in tasks]), torch.cat(labels))
    fit(method, learner, Data([pool], course=course), own, folder=folder)
    seen = sorted({c for task in tasks for c in task.classes}) or None
    return [measured(method, learner, task.test, seen) for task in tasks]


def mixed(sizes: Sequence[int], steps: int, batch: int, *, overlap: float = 0.25, seed: int = 0) -> Tensor:
    """Rows [step, batch] of tasks of so many rows each, numbered one task after another; neighbouring tasks pass over into each other.

    All tasks last equally long; from ``overlap`` of this time before a task's end until as long after it, rows of the next one come with a
    probability that rises in a straight line from 0 to 1 (Zeno et al. 2018, https://arxiv.org/abs/1803.10123, a quarter).

    >>> rows = mixed([10, 10], 8, 1000)
    >>> [round((rows[step] >= 10).double().mean().item(), 1) for step in range(8)]  # 1/4 and 3/4 on both sides of the middle
    [0.0, 0.0, 0.0, 0.2, 0.8, 1.0, 1.0, 1.0]
    """
    draw = np.random.default_rng([seed, 13])
    time = (np.arange(steps) + 0.5) / steps * len(sizes)
    begun = np.stack([np.clip((time - task) / max(2 * overlap, 1e-9) + 0.5, 0, 1) for task in range(len(sizes))], 1)
    begun[:, 0] = 1  # [step, task]: probability that the stream is in this task or in a later one
    task = (draw.random((steps, batch, 1)) < begun[:, None]).sum(2) - 1
    count = np.asarray(sizes)
    return torch.from_numpy((count.cumsum() - count)[task] + draw.integers(count[task]))


def reservoir(rows: Tensor, most: int, seed: int = 0) -> Tensor:
    """Rows to replay at each step of a stream [step, row], drawn from ``most`` kept ones that are a fair draw of all before the step.

    Vitter 1985, algorithm R, https://doi.org/10.1145/3147.3165. At the first step there are none (-1).

    >>> reservoir(torch.tensor([[5, 5], [7, 8], [9, 9]]), 2)[:2].tolist()
    [[-1, -1], [5, 5]]
    """
    draw, kept, count = np.random.default_rng([seed, 17]), np.zeros(0, np.int64), 0
    found = np.full(tuple(rows.shape), -1, np.int64)
    for step, new in enumerate(rows.numpy()):
        if len(kept):
            found[step] = kept[draw.integers(len(kept), size=len(new))]
        for row in new:
            count += 1
            if len(kept) < most:
                kept = np.append(kept, row)
            elif (place := draw.integers(count)) < most:
                kept[place] = row
    return torch.from_numpy(found)

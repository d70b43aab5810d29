"""The continual engine: tasks one after another on one learner, a memory of rows, and the matrix of what is known after each task.

A task's rows are seen while it lasts and never again, but for those that the memory keeps (word ``replay``). After every task each
task's test rows are measured, with the classes that have been seen so far as possible answers; the matrix [learned last, measured] gives
final accuracy, forgetting, backward and forward transfer (parts/continual.py). Rows of a task without labels come as word ``target``
instead of ``domains``, and are kept under the labels that the method itself gives them.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AcclimateError
from ..files import atomic_file
from ..method import Setting, Settings
from ..progress import bar
from .shift.learner import Learner
from .shift.loop import Training, add_parts, fit, hits, predict, seeded
from .shift.pools import Batch, Data, Pool, whole


@dataclass(frozen=True)
class Task:
    """Rows to learn from and to be measured on; ``classes`` are the numbers of the classes that the task teaches."""

    name: str
    train: Pool = field(repr=False)
    test: Pool = field(repr=False)
    classes: tuple[int, ...] = ()
    number: int = 0

    @property
    def batch(self) -> Batch:
        """All training rows."""
        return whole([self.train])


class Memory(Settings):
    """Which rows are kept of earlier tasks."""

    rows: Annotated[int, Setting("rows kept in all, shared evenly over tasks and classes; 0 = none", 0)] = 0
    per_class: Annotated[int, Setting("rows kept of each class of each task, instead of a total; 0 = use the total", 0)] = 0
    choose: Annotated[str, Setting("by lot, or those whose mean stays nearest the class's mean feature", choices=("random", "herding"))] = (
        "random"
    )


@dataclass
class Learned:
    """What is known: accuracy [learned last, measured] (all tasks are measured after each), and how many rows the memory held."""

    matrix: list[list[float]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)


def learn(
    method: Any,
    learner: Learner,
    tasks: Sequence[Task],
    training: Training | None = None,
    memory: Memory | None = None,
    *,
    arrivals: Mapping[int, Learner] | None = None,
    watch: Callable[[Task, Learner], None] | None = None,
    folder: Path | None = None,
) -> Learned:
    """Learn the tasks in order. In ``folder`` a killed run goes on at the task and step where it was.

    ``arrivals`` are better networks by the number of the task that begins with them: featurizer, parts and what it remembers come from
    there, the head stays. ``watch`` sees the learner after every task.

    Raises AcclimateError for a stream without tasks, a method that needs a memory where none is kept, classes beyond the learner's, and
    an arrival that does not fit.
    """
    if not tasks:
        raise AcclimateError("the stream has no task")
    training, memory = training or Training(**method.training), memory or Memory()
    if "replay" in method.needs() and not (memory.rows or memory.per_class):
        raise AcclimateError(f"{method.name} replays rows of earlier tasks, but no memory is kept; set rows or per_class of Memory")
    done, store = Learned(), _Store(memory, training.seed)
    learner.sample = tasks[0].train.x[:1]
    add_parts(method, learner, training.seed)
    for task in bar(tasks, method.name, unit="task"):
        if task.classes and max(task.classes) >= learner.classes:
            raise AcclimateError(f"task {task.name!r} has class {max(task.classes)}, but the learner only {learner.classes} classes")
        if arrivals and task.number in arrivals:
            _replace(learner, arrivals[task.number], task)
            add_parts(method, learner, training.seed)
        path = folder / f"task-{task.number}.pt" if folder else None
        if path and path.is_file():
            _restore(path, learner, store, done)
            if watch:
                watch(task, learner)
            continue
        with seeded(training.seed + 1000 * task.number, learner):
            method.before(learner, task)
        own = Training(**{**training.values(), "seed": training.seed + 1000 * task.number, "choose": "last"})
        replay = store.pool()
        given = {"target": task.train} if task.train.y is None else {"labelled": [task.train]}
        data = Data(**given, replay=replay)
        fit(method, learner, data, own, folder=folder / f"task-{task.number}" if folder else None)
        with seeded(training.seed + 1000 * task.number + 1, learner):
            method.after(learner, task)
        store.add(task, learner, task.train.y if task.train.y is not None else predict(method, learner, task.train.x).argmax(1))
        seen = sorted({c for each in tasks[: task.number + 1] for c in each.classes}) or None
        done.matrix.append([measured(method, learner, each.test, seen) for each in tasks])
        done.kept.append(0 if store.pool() is None else len(store.rows[0]))
        if path:
            with atomic_file(path) as temporary:
                state = {"weights": learner.state_dict(), "memory": learner.memory, "rows": store.rows, "done": vars(done)}
                torch.save(state, temporary)
        if watch:
            watch(task, learner)
    return done


def _replace(learner: Learner, arrival: Learner, task: Task) -> None:
    if arrival.width != learner.width:
        raise AcclimateError(
            f"the network that arrives at task {task.name!r} has {arrival.width} features, but the head takes {learner.width}; "
            "give it features of as many columns"
        )
    learner.featurizer, learner.parts = copy.deepcopy(arrival.featurizer), copy.deepcopy(arrival.parts)
    learner.memory |= copy.deepcopy(arrival.memory)


def _restore(path: Path, learner: Learner, store: "_Store", done: Learned) -> None:
    state = torch.load(path, weights_only=True)
    learner.load_state_dict(state["weights"])
    learner.memory, store.rows = state["memory"], state["rows"]
    done.matrix, done.kept = state["done"]["matrix"], state["done"]["kept"]


def measured(method: Any, learner: Learner, pool: Pool, seen: list[int] | None) -> float:
    """Accuracy on a task's test rows with the classes seen so far (None: all) as possible answers."""
    assert pool.y is not None
    if seen is not None and not torch.isin(pool.y, torch.tensor(seen, device=pool.y.device)).any():
        return 0.0  # none of the task's classes is a possible answer yet
    scores = predict(method, learner, pool.x)
    if seen is not None:
        hidden = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device).index_fill_(0, torch.tensor(seen), False)
        scores = scores.masked_fill(hidden.view(-1, *[1] * (scores.ndim - 2)), -torch.inf)
    return float(hits(scores, pool.y).mean())


class _Store:
    """Rows of earlier tasks: x, y and the task's number of each."""

    def __init__(self, plan: Memory, seed: int):
        self.plan, self.seed = plan, seed
        self.rows: list[Tensor] = []

    def pool(self) -> Pool | None:
        if not self.rows or not len(self.rows[0]):
            return None
        return Pool("memory", self.rows[0], self.rows[1])

    def add(self, task: Task, learner: Learner, y: Tensor) -> None:
        plan = self.plan
        if not (plan.rows or plan.per_class):
            return
        old = self.rows or [task.train.x[:0], y[:0], y[:0].long()]
        groups = [(old[0][own], old[1][own], number) for number, own in self._groups(old)]
        for c in y.unique().tolist():
            own = y == c
            groups.append((task.train.x[own], y[own], task.number))
        most = plan.per_class or max(1, plan.rows // len(groups))
        kept = [self._kept(x, y, number, most, learner) for x, y, number in groups]
        self.rows = [torch.cat(each) for each in zip(*kept, strict=True)]

    def _groups(self, rows: list[Tensor]) -> list[tuple[int, Tensor]]:
        pairs = torch.stack([rows[2], rows[1].long()], 1)
        return [(int(pair[0]), (pairs == pair).all(1)) for pair in pairs.unique(dim=0)]

    def _kept(self, x: Tensor, y: Tensor, number: int, most: int, learner: Learner) -> tuple[Tensor, Tensor, Tensor]:
        if len(x) > most:
            if self.plan.choose == "herding":
                order = torch.tensor(herded(learner.outputs(x)[0], most))
            else:
                order = torch.from_numpy(np.random.default_rng([self.seed, number, int(y[0]), len(x)]).permutation(len(x))[:most])
            x, y = x[order], y[order]
        return x, y, torch.full((len(x),), number)


def herded(z: Tensor, count: int) -> list[int]:
    """Rows whose running mean stays nearest the mean of all, one after another.

    Welling 2009; Rebuffi et al. 2017, algorithm 4, https://arxiv.org/abs/1611.07725

    >>> herded(torch.tensor([[0.0], [4.0], [1.0], [3.0]]), 2)  # the mean is 2: first 1, then 3
    [2, 3]
    """
    mean, total, taken = z.mean(0), torch.zeros_like(z[0]), []
    free = torch.ones(len(z), dtype=torch.bool, device=z.device)
    for number in range(min(count, len(z))):
        gap = (mean - (total + z) / (number + 1)).square().sum(1).masked_fill(~free, torch.inf)
        taken.append(int(gap.argmin()))
        free[taken[-1]] = False
        total = total + z[taken[-1]]
    return taken


# streams


def class_stream(train: Pool, test: Pool, per_task: int, *, first: int = 0, order: Sequence[int] | None = None) -> list[Task]:
    """Tasks of new classes: ``first`` classes (0: as many as the others) and then ``per_task`` at a time, in an order of the classes.

    >>> pool = Pool("d", torch.arange(8.0)[:, None], torch.arange(8) % 4)
    >>> [task.classes for task in class_stream(pool, pool, 2)]
    [(0, 1), (2, 3)]
    """
    assert train.y is not None
    listed = list(order) if order is not None else sorted(train.y.unique().tolist())
    starts = [0, *range(first or per_task, len(listed), per_task)]
    found = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(listed)], strict=True)):
        own = listed[start:end]
        rows = [torch.isin(pool.y, torch.tensor(own)).nonzero()[:, 0] for pool in (train, test) if pool.y is not None]
        if not len(rows[0]) or not len(rows[1]):
            raise AcclimateError(f"classes {own} have no rows to learn from or to be measured on; leave them out of the order")
        found.append(Task(f"classes {own[0]} to {own[-1]}", train.select(rows[0]), test.select(rows[1]), tuple(own), number))
    return found


def domain_stream(pairs: Sequence[tuple[Pool, Pool]], *, labelled: int | None = None) -> list[Task]:
    """Tasks of the same classes in other domains, in the order given: (training rows, test rows) of each.

    Where ``labelled`` is given, the labels of the training rows are withheld after so many tasks; a method then sees them as ``target``.
    """
    found = []
    for number, (train, test) in enumerate(pairs):
        assert train.y is not None
        seen = train if labelled is None or number < labelled else train.unlabelled()
        found.append(Task(train.name, seen, test, tuple(sorted(train.y.unique().tolist())), number))
    return found

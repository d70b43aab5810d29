"""Control tasks that come one after the other: what may learn them (one policy, copies, adapters), and how success develops in closed loop.

Every arm starts from the same pretrained policy and sees a task's demonstrations only while it learns that task; what it keeps of them is
part of its memory. EWC and PackNet are those of ``parts.continual``; for PackNet a task claims the weights that it changed most from the
pretrained ones (not the largest), so that the pretrained policy is what is left where nothing was claimed.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..domain.demonstrations import Demonstrations
from ..errors import AcclimateError, nearest
from ..files import atomic_dir, read_json, write_json
from ..kinds import Adapter
from ..method import load
from ..model import fingerprint
from ..model.injected import Injected
from ..models.control import Policy
from ..parts.continual import claimed, ewc_penalty, faded
from .control import Cloning, Fitted, clone, copied, log_probs, prepare

TASKS, OWN = "tasks.json", "own.safetensors"
Learner = Policy | Injected


@dataclass(frozen=True)
class ControlTask:
    """A task with the demonstrations to learn from and those that say when to stop."""

    name: str
    demos: Demonstrations
    held: Demonstrations


class Arm(ABC):
    """Learns tasks in turn, and acts in any that it has learned."""

    @abstractmethod
    def learn(self, task: ControlTask, seed: int) -> Fitted:
        """Learn one more task."""

    @abstractmethod
    def using(self, name: str) -> AbstractContextManager[Learner]:
        """The policy for one task, inside a ``with`` block."""

    @property
    @abstractmethod
    def stored(self) -> int:
        """Numbers that must be kept for the tasks learned so far, beside the pretrained policy."""


class Sequential(Arm):
    """Full tuning of one policy. replay: demonstrations kept of each task. ewc: strength of the penalty; decay: of its importances."""

    def __init__(self, start: Policy, training: Cloning, *, replay: int = 0, ewc: float = 0.0, decay: float = 0.9):
        self.policy, self.training = copy.deepcopy(start).requires_grad_(True), training
        self.replay, self.ewc, self.decay = replay, ewc, decay
        self.kept: list[Demonstrations] = []
        self.anchors: dict[str, Tensor] = {}
        self.importance: dict[str, Tensor] = {}

    def learn(self, task: ControlTask, seed: int) -> Fitted:
        """Tune everything."""
        penalty = (lambda weights: ewc_penalty(weights, self.anchors, self.importance, self.ewc)) if self.importance else None
        again = Demonstrations.together("replay", self.kept) if self.kept else None
        made = clone(self.policy, task.demos, task.held, self.training, seed, replay=again, penalty=penalty)
        if self.replay:
            self.kept.append(task.demos.few(self.replay, seed))
        if self.ewc:
            self.importance = faded(self.importance, importances(self.policy, task.demos, self.training.window), self.decay)
            self.anchors = copied(dict(self.policy.named_parameters()))
        return made

    def using(self, name: str) -> AbstractContextManager[Learner]:
        """The one policy, whatever the task."""
        return nullcontext(self.policy)

    @property
    def stored(self) -> int:
        """Weights, with EWC also anchors and importances, and the numbers of what is replayed."""
        held = sum(_numbers(demos) for demos in self.kept)
        return _count(self.policy) * (3 if self.ewc else 1) + held


class Copies(Arm):
    """Full tuning of a copy of the pretrained policy for each task."""

    def __init__(self, start: Policy, training: Cloning):
        self.start, self.training = copy.deepcopy(start), training
        self.made: dict[str, Policy] = {}

    def learn(self, task: ControlTask, seed: int) -> Fitted:
        """Tune a new copy."""
        self.made[task.name] = copy.deepcopy(self.start).requires_grad_(True)
        return clone(self.made[task.name], task.demos, task.held, self.training, seed)

    def using(self, name: str) -> AbstractContextManager[Learner]:
        """The task's own copy."""
        _known(name, self.made)
        return nullcontext(self.made[name])

    @property
    def stored(self) -> int:
        """A whole policy for each task."""
        return sum(map(_count, self.made.values()))


class Packed(Arm):
    """Like PackNet: a task tunes what no earlier one claimed, claims ``share`` of each tensor, and tunes these once more."""

    def __init__(self, start: Policy, training: Cloning, share: float):
        if not 0 < share <= 1:
            raise AcclimateError(f"share = {share}, but must be above 0 and at most 1: the part of each tensor that a task claims")
        self.start, self.policy = copy.deepcopy(start).requires_grad_(False), copy.deepcopy(start).requires_grad_(True)
        self.training, self.share = training, share
        self.first = dict(self.start.named_parameters())
        self.owner = {name: torch.zeros(weight.shape, dtype=torch.uint8) for name, weight in self.first.items()}  # 0: nobody's
        self.tasks: list[str] = []

    def learn(self, task: ControlTask, seed: int) -> Fitted:
        """Tune, claim, give back, tune again."""
        self._show(len(self.tasks))
        free = {name: owner == 0 for name, owner in self.owner.items()}
        clone(self.policy, task.demos, task.held, self.training, seed, free=free)
        self.tasks.append(task.name)
        mine = {}
        with torch.no_grad():
            for name, weight in self.policy.named_parameters():
                mine[name] = claimed(weight - self.first[name], free[name], self.share)
                weight.copy_(torch.where(free[name] & ~mine[name], self.first[name], weight))
                self.owner[name][mine[name]] = len(self.tasks)
        made = clone(self.policy, task.demos, task.held, self.training, seed, free=mine)
        self.values = copied(dict(self.policy.named_parameters()))
        return made

    @contextmanager
    def using(self, name: str) -> Iterator[Learner]:
        """The policy as the task left it: what later tasks claimed is as it was pretrained."""
        _known(name, self.tasks)
        self._show(self.tasks.index(name) + 1)
        yield self.policy.eval()

    @torch.no_grad()
    def _show(self, last: int) -> None:
        """Weights of the first ``last`` tasks, the pretrained ones elsewhere."""
        for name, weight in self.policy.named_parameters():
            owned = (self.owner[name] > 0) & (self.owner[name] <= last)
            weight.copy_(torch.where(owned, self.values[name], self.first[name]) if last else self.first[name])

    @property
    def stored(self) -> int:
        """All weights, and whose each is."""
        return 2 * _count(self.policy)


class TaskAdapters(Arm):
    """One frozen policy, and for each task an adapter, a fusion module and a head of its own; without ``adapter`` the latter two alone.

    begin: a task's parts begin as new ones (``fresh``), or as those of the task before (``previous``).
    """

    def __init__(self, start: Policy, adapter: Adapter | None, training: Cloning, *, begin: str = "fresh"):
        self.policy = Injected(copy.deepcopy(start)).eval()
        self.adapter, self.training, self.begin = adapter, training, begin
        net: Any = self.policy.net
        self.plain = nn.ModuleDict({"fusion": net.fusion, "head": net.head})
        self.own = nn.ModuleDict()  # task -> fusion and head
        self.goals: dict[str, Tensor] = {}  # task -> goal as the frozen policy embeds it [goal width]
        self.weights = _count(start)

    @property
    def tasks(self) -> list[str]:
        """The tasks learned so far."""
        return list(self.own)

    def learn(self, task: ControlTask, seed: int) -> Fitted:
        """Train the task's own parts; nothing else changes. A run that fails leaves nothing behind."""
        name = task.name
        if name in self.own or not name or set(name) & set("(),;. "):
            raise AcclimateError(f"a task cannot be named {name!r}: the name is taken, or is no word of letters, digits, - and _")
        before = self.tasks[-1] if self.begin == "previous" and self.own else None
        self.own[name] = copy.deepcopy(self.plain if before is None else self.own[before])
        try:
            if self.adapter is not None:
                self.policy.add(name, self.adapter, seed=seed)
                if before is not None and before in self.policy.adapters:
                    self._begin_as(name, before)
            self._put(name)
            self.policy.requires_grad_(False)
            if self.adapter is not None:
                self.policy.learn(name)
            self.own[name].requires_grad_(True)
            made = clone(self.policy, task.demos, task.held, self.training, seed)
        except BaseException:
            self._put(None)
            del self.own[name]
            if name in self.policy.adapters:
                self.policy.delete(name)
            raise
        self.policy.requires_grad_(False)
        self._put(None)
        self.goals[name] = self.embed(task.demos.goals).mean(0)
        return made

    @contextmanager
    def using(self, name: str) -> Iterator[Learner]:
        """The policy with one task's parts; before and afterwards it is the pretrained one."""
        _known(name, self.own)
        self._put(name)
        try:
            yield self.policy
        finally:
            self._put(None)

    def select(self, goal: str) -> str:
        """The task whose goal is nearest to ``goal`` by cosine, where nobody says which task it is."""
        if not self.goals:
            raise AcclimateError("no task was learned yet, so there is none to choose")
        near = functional.cosine_similarity(self.embed([goal]), torch.stack([*self.goals.values()]))
        return list(self.goals)[int(near.argmax())]

    @torch.no_grad()
    def embed(self, goals: Sequence[str]) -> Tensor:
        """Goals as the frozen policy's text encoder embeds them, whatever the task [goal, goal width]."""
        with self.policy.using(None) as policy:
            return policy.text(policy.goal_ids(goals))

    def trained(self, name: str) -> int:
        """Weights that one task has for itself."""
        return _count(self.own[name]) + (_count(self.policy.adapters[name]) if name in self.policy.adapters else 0)

    @property
    def stored(self) -> int:
        """The tasks' own weights."""
        return sum(map(self.trained, self.own))

    def _put(self, name: str | None) -> None:
        """The parts of one task, or of none, into the policy."""
        parts: Any = self.plain if name is None else self.own[name]
        self.policy.net.fusion, self.policy.net.head = parts["fusion"], parts["head"]
        self.policy.activate(name if name is not None and name in self.policy.adapters else None)

    def _begin_as(self, name: str, before: str) -> None:
        specs = self.policy.specs
        if specs[name] != specs[before]:
            raise AcclimateError(f"task {name!r} cannot begin as {before!r}: their adapters are of different makes; set start = fresh")
        for held in (self.policy.adapters, self.policy.common):
            held[name].load_state_dict(held[before].state_dict())

    # what is stored

    def save_pretrained(self, folder: str | Path) -> None:
        """All tasks' parts; of the policy only the hash of its weights."""
        from safetensors.torch import save_file

        about: dict[str, Any] = {
            "tasks": self.tasks,
            "base": fingerprint(self.policy.net),
            "begin": self.begin,
            "training": self.training.values(),
        }
        about["adapter"] = None if self.adapter is None else {"use": self.adapter.name, "with": self.adapter.values()}
        state = {f"own.{name}": value for name, value in self.own.state_dict().items()} | {
            f"goal.{name}": v for name, v in self.goals.items()
        }
        with atomic_dir(folder) as place:
            self.policy.save_pretrained(place)
            write_json(place / TASKS, about)
            save_file({name: value.contiguous() for name, value in state.items()}, place / OWN)

    @classmethod
    def from_pretrained(cls, start: Policy, folder: str | Path) -> "TaskAdapters":
        """Stored tasks on their policy. Raises AcclimateError for another policy than the one they were learned on."""
        from safetensors.torch import load_file

        about = read_json(Path(folder) / TASKS)
        if (given := fingerprint(start)) != about["base"]:
            raise AcclimateError(f"{folder} belongs to a policy with weights {about['base']}, but this one has {given}; load that policy")
        adapter = about["adapter"] and load(about["adapter"]["use"], **about["adapter"]["with"])
        made = cls(start, adapter, Cloning(**about["training"]), begin=about["begin"])
        made.policy = Injected.from_pretrained(made.policy.net, folder).eval()
        state = load_file(Path(folder) / OWN)
        for name in about["tasks"]:
            made.own[name] = copy.deepcopy(made.plain)
            made.goals[name] = state[f"goal.{name}"]
        made.own.load_state_dict({name.removeprefix("own."): value for name, value in state.items() if name.startswith("own.")})
        made.own.requires_grad_(False)
        made._put(None)
        return made


def stream(arm: Arm, tasks: Sequence[ControlTask], seed: int, measure: Callable[[Learner, str], float]) -> tuple[np.ndarray, list[Fitted]]:
    """Learn the tasks in turn; ``measure`` each one right after it was learned, and all at the end: [task learned last, task measured].

    What was not measured is nan; the matrix goes to ``parts.continual``.
    """
    matrix, fitted = np.full((len(tasks), len(tasks)), np.nan), []
    for place, task in enumerate(tasks):
        fitted.append(arm.learn(task, seed))
        with arm.using(task.name) as policy:
            matrix[place, place] = measure(policy, task.name)
    for place, task in enumerate(tasks[:-1]):
        with arm.using(task.name) as policy:
            matrix[-1, place] = measure(policy, task.name)
    return matrix, fitted


def importances(policy: Policy, demos: Demonstrations, window: int = 0, most: int = 64) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher matrix: mean square of the gradient of log pi(action) over up to ``most`` steps, one by one."""
    policy.eval()
    ready = prepare(policy, demos)
    windows, counts = ready.looks(window or policy.window)
    places = counts.nonzero()[torch.linspace(0, int(counts.sum()) - 1, min(most, int(counts.sum()))).long()]
    weights = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for row, place in places.tolist():
        gradients = torch.autograd.grad(log_probs(policy, ready, windows[row : row + 1])[place], list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                found[name] += gradient.square() / len(places)
    return found


def _known(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise AcclimateError(f"no task {name!r} was learned{nearest(name, list(known))}")


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _numbers(demos: Demonstrations) -> int:
    parts = [part for each in demos.trajectories for part in (each.image, each.state, each.actions) if part is not None]
    return sum(part.size for part in parts)

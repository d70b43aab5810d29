"""One frozen policy that has, for each task, an adapter in its encoders and decoder and a fusion and head of its own.

Liu et al. 2023, section 3, https://arxiv.org/abs/2310.05905. What a task learned is never written to again, so nothing is forgotten.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ..errors import AcclimateError, nearest
from ..files import atomic_dir, read_json, write_json
from ..kinds import Adapter
from ..method import load
from ..model.injected import Injected
from .control import Policy

OWN = ("fusion", "head")  # parts that a task has for itself
CONFIG, WEIGHTS = "skills.json", "skills.safetensors"


class Skills(nn.Module):
    """The policy and its tasks by name; outside of :meth:`using` the policy is as it came."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.net = Injected(copy.deepcopy(policy))
        self.own = nn.ModuleDict()
        self.goals: dict[str, list[str]] = {}

    def add(self, task: str, method: Adapter, goals: Sequence[str], *, seed: int = 0, like: str = "") -> "Skills":
        """A new task: a fresh adapter with copies of the policy's fusion and head, or copies of all that task ``like`` has."""
        if like:
            self._known(like)
        self.net.add(task, method, seed=seed)
        self.net.activate(None)
        self.goals[task] = list(goals)
        source: Any = self.own[like] if like else self.net
        self.own[task] = nn.ModuleDict({part: copy.deepcopy(getattr(source, part)) for part in OWN})
        if like:
            for held in (self.net.adapters, self.net.common):
                held[task].load_state_dict(held[like].state_dict())
        return self

    @contextmanager
    def using(self, task: str, *, learn: bool = False) -> Iterator[Injected]:
        """A block in which the policy does one task; with ``learn`` that task's weights, and no others, want a gradient."""
        self._known(task)
        plain = {part: getattr(self.net.net, part) for part in OWN}
        own: Any = self.own[task]
        try:
            for part in OWN:
                setattr(self.net.net, part, own[part])
            self.net.activate(task)
            self.requires_grad_(False)
            if learn:
                self.net.learn(task)
                own.requires_grad_(True)
            yield self.net
        finally:
            self.requires_grad_(False)
            self.net.activate(None)
            for part, module in plain.items():
                setattr(self.net.net, part, module)
            self.eval()

    def weights(self, task: str) -> int:
        """How many weights a task has for itself."""
        held = (self.net.adapters[task], self.net.common[task], self.own[task])
        return sum(weight.numel() for part in held for weight in part.parameters())

    @torch.no_grad()
    def nearest(self, goal: str) -> str:
        """The task one of whose goals is nearest to ``goal`` in the plain policy's embedding of goals (cosine)."""
        if not self.goals:
            raise AcclimateError("there is no task to choose from; add one first")
        owners = [task for task, goals in self.goals.items() for _ in goals]
        known = self._embedded([said for goals in self.goals.values() for said in goals])
        return owners[int(cosine_similarity(self._embedded([goal]), known).argmax())]

    def _embedded(self, goals: Sequence[str]) -> Tensor:
        policy: Any = self.net
        return policy.text(policy.goal_ids(goals))

    def _known(self, task: str) -> None:
        if task not in self.own:
            raise AcclimateError(f"no task is named {task!r}{nearest(task, list(self.own))}")

    def save(self, folder: str | Path) -> Path:
        """Policy, and for each task its adapter, fusion and head; the folder appears whole or not at all."""
        from safetensors.torch import save_file

        folder = Path(folder)
        with atomic_dir(folder) as place:
            policy: Any = self.net.net
            policy.save_pretrained(place / "policy")
            write_json(place / CONFIG, {task: {"goals": self.goals[task], **self.net.specs[task]} for task in self.own})
            state = {name: value.contiguous() for name, value in self.state_dict().items() if not name.startswith("net.net.")}
            save_file(state, place / WEIGHTS)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Skills":
        """What :meth:`save` wrote."""
        from safetensors.torch import load_file

        folder = Path(folder)
        made = cls(Policy.from_pretrained(folder / "policy"))
        for task, about in read_json(folder / CONFIG).items():
            made.add(task, load(about["use"], **about["with"]), about["goals"])
        stored = load_file(folder / WEIGHTS)
        missing = made.load_state_dict(stored, strict=False)
        if missing.unexpected_keys or any(not name.startswith("net.net.") for name in missing.missing_keys):
            raise AcclimateError(f"{folder}/{WEIGHTS} does not hold the tasks that {CONFIG} names; save it again")
        return made.eval()

"""TAIL: adapts one frozen language-conditioned policy to a stream of control tasks, each with a small adapter of its own.

Liu et al. 2023, section 3, https://arxiv.org/abs/2310.05905
Use where a policy pretrained on many tasks meets new ones that come one after the other with few demonstrations each, and none may be
forgotten. Not where tasks should help those before them: what is learned later never reaches an earlier task. A task gets an adapter in the
text encoder, the spatial encoder and the temporal decoder, and its own fusion module and head; all of them learn by behaviour cloning and
stop early by held-out demonstrations. LoRA changes queries and values, bottlenecks stand behind attention and feed-forward parts, a prefix
adds keys and values (here plain ones, without the network that makes them); ``none`` is the paper's frozen baseline. Without ``size`` all
kinds come as near to ``share`` of the policy's weights as whole numbers let them, so kinds can be compared. One size for encoders and
decoder; the paper's ranks for each are not in its text. Where no task is named the one with the nearest goal acts (``select``).

>>> from acclimate.models.control import Policy
>>> policy = Policy(["go"], image=(12, 15), state=3, actions=6)
>>> [Tail(kind=kind).size_on(policy) for kind in ("lora", "bottleneck", "prefix")]  # of 974,886 weights
[4, 3, 7]
"""

import copy
from collections.abc import Mapping
from typing import Annotated, Any

from ...domain.demonstrations import Demonstrations
from ...engines.control import Cloning
from ...engines.control_stream import ControlTask, TaskAdapters
from ...errors import AcclimateError
from ...kinds import Adapter, Strategy
from ...method import Setting, load
from ...model.roles import find
from ...models.control import Policy
from ...parts.prefixes import ATTENTION

TARGETS = {"lora": ["attn.q", "attn.v"], "bottleneck": ["attn.out", "ff.out"], "prefix": [ATTENTION]}


class Tail(Strategy):
    """Gives ``adapted``: the frozen policy with the parts of every task (engines/control_stream.py, TaskAdapters)."""

    room = "adapters"
    works_on = "arrays"
    trains = False

    kind: Annotated[str, Setting("what kind of adapter a task gets", choices=(*TARGETS, "none"))] = "lora"
    share: Annotated[float, Setting("weights of an adapter over weights of the policy, as near as can be", 1e-6, 1)] = 0.01
    size: Annotated[int, Setting("rank, width or positions; 0 = what share allows", 0)] = 0
    scale: Annotated[float, Setting("size of the change that LoRA makes (alpha over rank)", 0)] = 2.0
    window: Annotated[int, Setting("steps that the policy looks back on (T); 0 = as many as it can", 0)] = 0
    demos: Annotated[int, Setting("demonstrations of a task that are used", 2)] = 10
    held: Annotated[int, Setting("demonstrations among them that only say when to stop", 1)] = 2
    start: Annotated[str, Setting("what a task's parts begin as: new, or the task before's", choices=("fresh", "previous"))] = "fresh"
    lr: Annotated[float, Setting("learning rate", 0)] = 1e-4
    weight_decay: Annotated[float, Setting("decoupled weight decay", 0)] = 1e-2
    epochs: Annotated[int, Setting("passes over the demonstrations, at most", 1)] = 100
    patience: Annotated[int, Setting("epochs without a better held-out loss after which it stops; 0 = never", 0)] = 20
    batch: Annotated[int, Setting("windows per step", 1)] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held >= self.demos:
            raise AcclimateError(f"Tail.held = {self.held} leaves nothing of Tail.demos = {self.demos} to learn from; hold out fewer")

    def run(self, tools: Any, *, start: Any = None, tasks: Mapping[str, Demonstrations] | None = None, **others: Any) -> dict[str, Any]:
        """start: a policy, or what an earlier run gave, which stays as it is. tasks: demonstrations by name, in the order of learning.

        Notes: ``table``, for each task the weights that are its own, their share of the policy's, the epoch kept, and its held-out loss.
        """
        if not isinstance(start, Policy | TaskAdapters) or not tasks or others:
            raise AcclimateError("tail needs start, a policy or what an earlier run gave, and tasks: demonstrations by name")
        made = self.arm(start)
        table = {}
        for name, demos in tasks.items():
            found = made.learn(self.task(name, demos, tools.seed), tools.seed)
            weights = made.trained(name)
            table[name] = {"weights": weights, "share": weights / made.weights, "kept": found.kept, "held": found.held}
        tools.note("table", table)
        return {"adapted": made}

    def arm(self, start: Policy | TaskAdapters) -> TaskAdapters:
        """What learns one task after another: on a policy, or on a copy of what has learned some."""
        policy: Any = start if isinstance(start, Policy) else start.policy.net
        adapter = None if self.kind == "none" else self.adapter(policy)
        if isinstance(start, Policy):
            return TaskAdapters(start, adapter, self.training(), begin=self.start)
        made = copy.deepcopy(start)
        made.adapter, made.training, made.begin = adapter, self.training(), self.start
        return made

    def task(self, name: str, demos: Demonstrations, seed: int) -> ControlTask:
        """A task with as many demonstrations as are used, some of them held out."""
        return ControlTask(name, *demos.few(self.demos, seed).split(self.held, seed))

    def training(self) -> Cloning:
        """How a task is learned."""
        same = ("window", "lr", "weight_decay", "epochs", "patience", "batch")
        return Cloning(**{name: getattr(self, name) for name in same})

    def adapter(self, policy: Policy) -> Adapter:
        """The adapter of one task."""
        size, target = self.size_on(policy), TARGETS[self.kind]
        if self.kind == "lora":
            return load("adapters.lora", r=size, alpha=self.scale * size, target=target)
        if self.kind == "bottleneck":
            return load("adapters.bottleneck", reduction=policy.width / size, activation="gelu", target=target)
        return load("adapters.mam", tokens=size, hidden=0, target=target)  # MAM at attention layers alone is a prefix

    def size_on(self, policy: Policy) -> int:
        """Rank, width or positions: as set, or so many that the adapter has about ``share`` of the policy's weights, 1 at least."""
        if self.size:
            return self.size
        sites = find(policy, TARGETS[self.kind])
        each, fixed = {
            "lora": (sum(site.inputs + site.outputs for site in sites), 0),
            "bottleneck": (sum(2 * site.outputs + 1 for site in sites), sum(site.outputs for site in sites)),
            "prefix": (sum(2 * site.outputs for site in sites), 0),
        }[self.kind]
        allowed = self.share * sum(weight.numel() for weight in policy.parameters())
        return max(1, round((allowed - fixed) / each))

"""SLM: a pool of low-rank weight increments, of which each row's own vector picks and mixes a few for a frozen network.

Peng et al. 2024, section 3 (retrieval, joint adaptive re-parameterisation), https://arxiv.org/abs/2404.07470; github.com/Pbihao/SLM
For streams of tasks whose inputs look different, on a good frozen network, without kept rows or task numbers; of little use where tasks
share their inputs. Each task owns ``slots`` of the pool. First its keys are fitted to its rows' vectors, then its increments and, for
classes that were not learned before, the head's rows; what earlier tasks own is put back at every step. The vector of a row is given
by ``learner.parts["encoder"]`` (rows -> [row, ``encoder.features``]) where one is put there beforehand, for text a sentence encoder; else
by the frozen network itself. The loss is over the task's own classes, or over all tokens of answers where a language model writes
(models/causal.py; for LLaMA-2 the paper takes ``top`` 2 and ``rank`` 8). ``pooled`` picks once for a whole batch, as the authors' code
does. Increments sit at attention's output layers, or at all layers with matrices where there is no attention. Slots of tasks to come are
never picked, which the authors' code allows.

>>> import torch
>>> keys = torch.eye(2).expand(2, 2, 2)  # [group, slot, column]
>>> s = likeness(torch.tensor([[3.0, 0.0, 3.0, 4.0]]), keys).mean(1)  # (1 + 0.6) / 2 and (0 + 0.8) / 2
>>> [round(value, 4) for value in mixture(s, 2)[0].tolist()]
[0.6667, 0.3333]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from ...errors import AcclimateError
from ...kinds import Continual
from ...method import Setting
from ...model.roles import role
from ...parts.increments import Increments, Keys, likeness, mixture


class Slm(Continual):
    """The pool, how keys are fitted, and how increments are picked."""

    exempt = {"first_task_is_plain_training": "the network stays frozen: increments of its weights learn"}
    pool: Annotated[int, Setting("slots of the pool for all tasks (N)", 1)] = 20
    slots: Annotated[int, Setting("slots of each task", 1)] = 4
    top: Annotated[int, Setting("slots that are mixed for a row", 1)] = 4
    rank: Annotated[int, Setting("rank of an increment (r)", 1)] = 12
    groups: Annotated[int, Setting("parts of a row's vector that are compared one by one (G)", 1)] = 6
    hidden: Annotated[float, Setting("share of the slots hidden in each comparison while keys are fitted", 0, 1)] = 0.25
    fitted: Annotated[int, Setting("nearest slots per group that a row pulls at while keys are fitted", 1)] = 2
    keys: Annotated[float, Setting("share of a task's steps in which keys are fitted: 3 of 3 + 5 epochs", 0, 1)] = 0.375
    clip: Annotated[float, Setting("largest gradient norm of the keys; 0 = no clipping", 0)] = 0.1
    apart: Annotated[float, Setting("weight of the likeness to earlier tasks' keys (centrifugal term)", 0)] = 0.0
    pooled: Annotated[bool, Setting("pick once for the mean score of a batch, not row by row")] = False
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.01, "batch": 8, "rates": {"retriever": 1e-3 / 3e-4},
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Keys, orthogonal at the start, and increments."""
        wide = int(learner.parts["encoder"].features) if "encoder" in learner.parts else learner.width
        return {
            "retriever": Keys(self.groups, self.pool, -(-wide // self.groups), learner.generator),
            "increments": Increments(learner.featurizer, places(learner.featurizer), self.pool, self.rank, learner.generator),
        }

    def before(self, learner: Any, task: Any) -> None:
        """The task's slots and classes, and what belongs to earlier tasks as it is now."""
        memory = learner.memory
        first = memory.get("seen", 0)
        if first + self.slots > self.pool:
            raise AcclimateError(f"the pool has {self.pool} slots, too few for task {task.name!r}; raise the setting pool")
        known = memory.get("classes", [])
        own = sorted(task.classes)  # none: all, which are learned in every task
        memory |= {"first": first, "seen": first + self.slots, "known": known, "classes": sorted({*known, *own}), "own": own}
        memory["kept"] = {name: weight.detach().clone() for name, weight, _ in _owned(learner, first, self.slots, known)}

    def step(self, learner: Any, domains: Any) -> Iterator[Any]:
        """Keys: mean cosine with the nearest slots that are not hidden, to be large. Then: cross-entropy with the increments mixed in."""
        memory, keys = learner.memory, learner.parts["retriever"].weight
        self.put_back(learner)
        learner.featurizer.eval()  # running statistics are frozen with the rest
        first, seen = memory.get("first", 0), memory.get("seen", self.slots)
        q = self.vectors(learner, domains.x)
        if learner.progress < self.keys:
            s = likeness(q, keys[:, first:seen])
            gone = torch.rand(s.shape, generator=learner.generator).to(s) < self.hidden
            near = s.detach().masked_fill(gone, -100.0).topk(min(self.fitted, s.shape[2]), 2).indices
            loss = -s.gather(2, near).mean()
            if self.apart and first:
                loss = loss + self.apart * (normalize(keys[:, first:seen], dim=2) @ normalize(keys[:, :first], dim=2).mT).mean()
            norm = torch.autograd.grad(loss, keys, retain_graph=True)[0].norm()
            yield (loss * (self.clip / norm).clamp(max=1.0) if self.clip else loss), "retriever"
            return
        scores, y = self.scores(learner, domains.x, q), domains.y
        if (own := torch.tensor(memory.get("own", []), device=q.device)).numel():
            scores, y = scores[:, own], torch.searchsorted(own, y)
        yield learner.loss(scores, y), ("increments", "head")

    def after(self, learner: Any, task: Any) -> None:
        """The last step's change of what belongs to others is undone too."""
        self.put_back(learner)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores with the increments that the rows pick from all tasks so far."""
        return self.scores(learner, x, self.vectors(learner, x))

    @torch.no_grad()
    def vectors(self, learner: Any, x: Tensor) -> Tensor:
        """What rows are compared by [row, width]: a pass in evaluation mode."""
        players = learner.players()
        encoder = players.get("encoder", players["featurizer"]).eval()
        return getattr(encoder, "vectors", encoder)(x)

    def picked(self, learner: Any, q: Tensor) -> Tensor:
        """Weight of each slot for each row [row, slot], 0 for those that are not picked."""
        seen = learner.memory.get("seen", self.slots)
        s = likeness(q, learner.parts["retriever"].weight.detach()[:, :seen]).mean(1)
        return pad(mixture(s.mean(0, keepdim=True).expand_as(s) if self.pooled else s, self.top), (0, self.pool - seen))

    def scores(self, learner: Any, x: Tensor, q: Tensor) -> Tensor:
        """[row, class]."""
        with learner.parts["increments"].applied(learner.featurizer, self.picked(learner, q)):
            return learner(x)

    @torch.no_grad()
    def put_back(self, learner: Any) -> None:
        """Earlier tasks' keys, increments and rows of the head are what they were."""
        memory = learner.memory
        for name, weight, other in _owned(learner, memory.get("first", 0), self.slots, memory.get("known", [])):
            if name in memory.get("kept", {}):
                weight[other] = memory["kept"][name][other]


def _owned(learner: Any, first: int, slots: int, known: list[int]) -> Iterator[tuple[str, Tensor, Any]]:
    """Weights by name, each with the places that are not the task's."""
    others = torch.tensor(
        [n for n in range(learner.parts["retriever"].weight.shape[1]) if not first <= n < first + slots], dtype=torch.long
    )
    yield "retriever", learner.parts["retriever"].weight, (slice(None), others)
    yield from ((f"increments.{name}", weight, others) for name, weight in learner.parts["increments"].named_parameters())
    for name, weight in learner.head.named_parameters():
        rows = weight.ndim > 0 and len(weight) == learner.classes
        yield f"head.{name}", weight, torch.tensor(known, dtype=torch.long) if rows else ... if known else slice(0, 0)


def places(net: nn.Module) -> list[str]:
    """Attention's output layers; all linear layers and convolutions where there are none."""
    layers = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return [name for name in layers if role(name) == "attn.out"] or layers

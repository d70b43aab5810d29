"""ADAM: class means on a pretrained encoder beside a copy that was tuned on the first task; nothing learns afterwards.

Zhou et al. 2023, section 4, equations 4 to 6, https://arxiv.org/abs/2303.07338; github.com/LAMDA-CL/RevisitingCIL (now named APER)
For streams of new classes on a good pretrained encoder, without a memory of rows. ``module`` = "none" is SimpleCIL: class means on the
encoder as it is. What tunes the copy depends on the network: "adapter" (bottleneck beside each feed-forward part, or behind each layer
where there is none), "ssf" (scale and shift of every layer), "lora", "full", "prompt" (transformers: learned keys and values in every
attention layer, in the place of deep prompts; shallow ones are left out), "norms" (batch-norm statistics of the task's rows alone). A
class that comes again in a later task keeps one mean over all its rows. Of no use where the encoder knows nothing of the field, and little
where the first task says nothing of the later ones. The cosine head begins at scale 10 (ours).

>>> import torch
>>> from acclimate.engines.continual import Task
>>> from acclimate.engines.shift import Learner, Pool
>>> learner, method = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity()), AdamCil(module="none")
>>> pool = Pool("d", torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1]))
>>> method.after(learner, Task("d", pool, pool))  # means (2, 0) and (0, 2)
>>> [round(score, 4) for score in method.predict(learner, torch.tensor([[3.0, 4.0]]))[0].tolist()]
[0.6, 0.8]
"""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...errors import AcclimateError
from ...kinds import Continual
from ...method import Setting, load
from ...model.injected import Injected
from ...model.roles import role
from ...parts.heads import Cosine
from ...parts.norms import batch_norms
from ...parts.prefixes import ATTENTION
from ...parts.views import random_view

MODULES = ("none", "full", "adapter", "ssf", "lora", "prompt", "norms")
BLOCK = 256  # rows at a time


class AdamCil(Continual):
    """What tunes the copy, and what the means are taken of."""

    exempt = {
        "first_task_is_plain_training": "the encoder and its head stay as they are: a copy with a module learns, class means classify"
    }
    module: Annotated[str, Setting("what learns in the copy of the encoder in the first task; none = SimpleCIL", choices=MODULES)] = (
        "adapter"
    )
    width: Annotated[int, Setting("units of the bottleneck at the encoder's width, rank of lora, positions of the prompt", 1)] = 64
    scale: Annotated[float, Setting("size of what bottleneck or lora add", 0)] = 0.1
    joined: Annotated[bool, Setting("means of both branches side by side; otherwise of the tuned one alone")] = True
    views: Annotated[float, Setting("strength of the random views of rows in tuning; class means see rows as they are", 0)] = 1.0
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "batch": 48,
    }  # fmt: skip

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The copy with its module, and the cosine head that tunes it."""
        if self.module == "none":
            return {}
        seed = int(torch.randint(2**31, (1,), generator=learner.generator))
        tuned = _with_module(copy.deepcopy(learner.featurizer), self.module, self.width, self.width / learner.width, self.scale, seed)
        return {"tuned": tuned, "cosine": Cosine(learner.width, learner.classes)}

    def before(self, learner: Any, task: Any) -> None:
        """The classes of the first task, the only one that tunes."""
        learner.memory["classes"] = sorted(set(task.train.y.tolist()))

    def step(self, learner: Any, domains: Any) -> Iterator[Any]:
        """First task: cross-entropy of the cosine head over its classes. Later ones: nothing."""
        if self.module == "none" or "sums" in learner.memory:
            return
        tuned = learner.parts["tuned"].train(self.module in ("full", "norms"))  # else batch-norm and dropout are frozen with the rest
        x = random_view(domains.x, learner.generator, self.views) if domains.x.is_floating_point() else domains.x
        scores = learner.parts["cosine"](tuned(x))
        if self.module != "norms":  # whose statistics the pass has moved already
            classes = torch.tensor(learner.memory.get("classes", range(learner.classes)), device=scores.device)
            yield learner.loss(scores[:, classes], torch.searchsorted(classes, domains.y)), ("tuned", "cosine")

    def after(self, learner: Any, task: Any) -> None:
        """Adds up features by class, and how many rows there are of each."""
        batch, memory = task.batch, learner.memory
        learner.eval()
        with torch.no_grad():
            z = torch.cat([self.features(learner, rows) for rows in batch.x.split(BLOCK)])
        sums, counts = memory.get("sums", z.new_zeros(learner.classes, z.shape[1])), memory.get("counts", 0)
        memory["sums"] = sums.index_add(0, batch.y, z)
        memory["counts"] = counts + torch.bincount(batch.y, minlength=learner.classes)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Cosine with each class's mean; -1 for classes that have none yet [row, class]."""
        sums, counts = learner.memory["sums"], learner.memory["counts"]
        cosine = normalize(self.features(learner, x), dim=1) @ normalize(sums, dim=1).T  # a mean points where the sum does
        return cosine.masked_fill(counts == 0, -1.0)

    def features(self, learner: Any, x: Tensor) -> Tensor:
        """[phi(x), phi'(x)] [row, width or 2 x width]."""
        tuned = [learner.parts["tuned"](x)] if self.module != "none" else []
        return torch.cat([learner.featurizer(x), *tuned] if self.joined or not tuned else tuned, 1)


def _with_module(net: nn.Module, module: str, width: int, share: float, scale: float, seed: int) -> nn.Module:
    """The network with what learns in it, all else being frozen; ``share`` is the bottleneck's part of a layer's width."""
    if module == "full":
        return net.requires_grad_(True)
    if module == "norms":
        if not batch_norms(net):
            raise AcclimateError('module = "norms" takes new batch-norm statistics, but this network has no batch-norm; choose another one')
        return net.requires_grad_(False)
    feedforward = any(role(name) == "ff.out" for name, _ in net.named_modules())
    layers = _named(net, lambda layer: not isinstance(layer, nn.Embedding))
    matrices = _named(net, lambda layer: any(weight.ndim > 1 for weight in layer.parameters(recurse=False)))
    reduction = max(1.0, 1 / share)
    made = {
        "adapter": lambda: load(
            "adapters.bottleneck", reduction=reduction, scale=scale, parallel=feedforward, target="ff" if feedforward else matrices
        ),
        "ssf": lambda: load("adapters.ssf", target=layers),
        "lora": lambda: load("adapters.lora", r=width, alpha=scale * width, target="linear"),
        "prompt": lambda: load("adapters.mam", tokens=width, hidden=0, target=ATTENTION),
    }[module]()
    return Injected(net).add("tuned", made, seed=seed).learn("tuned")


def _named(net: nn.Module, wanted: Callable[[nn.Module], bool]) -> str:
    """A regular expression for the layers with weights of their own that are wanted."""
    names = [name for name, layer in net.named_modules() if list(layer.parameters(recurse=False)) and wanted(layer)]
    return "[r]" + "|".join(map(re.escape, names))

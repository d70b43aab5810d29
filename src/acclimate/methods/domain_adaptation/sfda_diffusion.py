"""SFDA diffusion: source-free; images drawn by a diffusion model of the target, pushed to look like the source, stand in for lost data.

Chopra et al. 2023, sections on generation and adaptation, https://arxiv.org/abs/2310.01701 ; no code was found, so the numbers are ours.
Three phases in one run. (1) A class-conditional diffusion model learns the target, with pseudo-labels of the source model, or with true
labels of rows that were asked for: the paper's abstract has labelled rows, which is more than source-free adaptation grants;
``learner.memory["labels"]`` says which. (2) The frozen source model teaches: low-rank adapters of the diffusion model learn to draw rows
that it takes for their class and is sure of, gradients running through the last steps of a short sampler, while the noise loss on the
target keeps them real; this ends early when the source model is sure. (3) So many rows are drawn of each class, those that the source
model takes for another are dropped (``memory["drawn"]``; ``memory["kept"]`` counts them by class), and an ordinary method adapts from
these to the target, starting from the source model. The paper fine-tunes Stable Diffusion by prompts "a {class}"; here a small model learns
from nothing (or give a trained one as ``learner.parts["generator"]``, and a small ``learn``). For images, and vectors of few columns.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity()); learner.progress = 0.5
>>> target = Batch(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), None, torch.zeros(2), torch.arange(2), [2])
>>> learner.sample = target.x[:1]; method = SfdaDiffusion(sampler=1, noise=0.0, learn=0.5)
>>> learner.parts.update(method.build(learner)); method.begin(learner, None, target)
>>> for weight in learner.parts["generator"].parameters(): _ = weight.data.zero_()
>>> [(round(loss.item(), 3), who) for loss, who in method.step(learner, target)]  # corners (0, 0) and (0, 1): 2 log 2 and 1.3133 + 0.5823
[(1.641, 'adapter')]
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...engines.shift import Batch
from ...kinds import DomainAdaptation
from ...method import Setting, load
from ...models.unet import noise_net
from ...parts.certainty import entropy
from ...parts.diffusion import SCHEDULES, Chain, drawn, noise_loss


class SfdaDiffusion(DomainAdaptation):
    """The three phases: how long each is, the weights of the second, what the third runs."""

    learn: Annotated[float, Setting("share of the steps in which the diffusion model learns the target", 0, 1)] = 0.5
    guide: Annotated[float, Setting("share of the steps after these in which the source model teaches it; 0 = never", 0, 1)] = 0.1
    sure: Annotated[float, Setting("weight of the source model's entropy on what is drawn (a)", 0)] = 1.0
    noise: Annotated[float, Setting("weight of the noise loss on the target meanwhile (b)", 0)] = 0.1
    enough: Annotated[float, Setting("mean probability of the class at which the teaching ends", 0, 1)] = 0.98
    sampler: Annotated[int, Setting("steps in which rows are drawn (DDIM)", 1)] = 20
    schedule: Annotated[str, Setting("course of the noise; cosine for images of few pixels", choices=SCHEDULES)] = "linear"
    tail: Annotated[int, Setting("last ones of these through which gradients run (K)", 1)] = 3
    rank: Annotated[int, Setting("rank of the adapters", 1)] = 4
    per_class: Annotated[int, Setting("rows that are drawn of each class", 1)] = 100
    base: Annotated[str, Setting("the method that adapts from these to the target", choices=("dann", "cdan", "mcd"))] = "dann"
    width: Annotated[int, Setting("width of the diffusion model", 8)] = 48
    exempt: ClassVar[dict[str, str]] = {
        "learns": "most of the 150 steps train the diffusion model; DANN, which has the rest, is held to this on source rows alone"
    }
    training: ClassVar[dict[str, Any]] = {"choose": "last", "batch": 64, "clip": 1.0}

    def __post_init__(self):
        super().__post_init__()
        self.adapts = load(f"domain_adaptation.{self.base}")

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The diffusion model, its adapters, and what the base method builds."""
        net = noise_net(learner.sample, learner.classes, self.width)
        return {"generator": net, "adapter": LowRank(net, self.rank), **self.adapts.build(learner)}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """The range of the rows, and the source model's labels of them."""
        learner.parts["generator"].fit_range(target.x)
        learner.memory |= {"pseudo": learner.outputs(target.x)[1].argmax(1), "labels": "pseudo"}

    def step(self, learner: Any, target: Any, labelled: Any = None) -> Iterator[Any]:
        """The noise loss; then the source model's; then those of the base method."""
        net, start = learner.parts["generator"], self.learn + self.guide
        if learner.progress < self.learn:
            learner.memory["labels"] = "pseudo" if labelled is None else "given"
            yield self.noise_of(net, net, learner, target, labelled), "generator"
        elif learner.progress < start and not learner.memory.get("taught"):
            yield self.taught(learner, target, labelled), "adapter"
        else:
            if "drawn" not in learner.memory:
                learner.memory |= self.replaced(learner)
            x, y = learner.memory["drawn"]
            rows = torch.randint(len(y), (len(target),), generator=learner.generator)
            source = Batch(x[rows], y[rows], torch.zeros_like(rows), rows, [len(rows)])
            learner.progress = max(0.0, learner.progress - start) / (1 - start) if start < 1 else 1.0  # as the base method counts it
            yield from self.adapts.step(learner, source=source, target=target)

    def noise_of(self, net: Any, model: Callable, learner: Any, target: Any, labelled: Any) -> Tensor:
        """Squared error of the noise in target rows, under their pseudo-labels or given labels."""
        x, y = (target.x, learner.memory["pseudo"][target.rows]) if labelled is None else (labelled.x, labelled.y)
        return noise_loss(model, net.scaled(x), y, Chain.of(1000, 0, self.schedule), learner.generator)

    def taught(self, learner: Any, target: Any, labelled: Any) -> Tensor:
        """CE(f(x_0), c) + a H(f(x_0)) + b noise loss, of rows drawn for random classes; f is the source model as it was."""
        net = learner.parts["generator"]
        model = learner.parts["adapter"](net)
        y = torch.randint(learner.classes, (len(target),), generator=learner.generator).to(learner.memory["pseudo"])
        learner.eval()
        scores = learner(self.draw(learner, model, y, self.tail))
        learner.memory["taught"] = bool(scores.softmax(1)[torch.arange(len(y)), y].mean() >= self.enough)
        loss = learner.loss(scores, y) + self.sure * entropy(scores).mean()
        return loss + self.noise * self.noise_of(net, model, learner, target, labelled)

    def draw(self, learner: Any, model: Callable, y: Tensor, tail: int = 0) -> Tensor:
        """A row of each class in y [row, *shape]."""
        noise = torch.randn(len(y), *learner.sample.shape[1:], generator=learner.generator).to(learner.sample)
        return learner.parts["generator"].restored(drawn(model, noise, y, Chain.of(1000, self.sampler, self.schedule), tail=tail))

    @torch.no_grad()
    def replaced(self, learner: Any) -> dict[str, Any]:
        """Rows of each class that the source model takes for theirs, with these classes, and how many were kept of each."""
        model = learner.parts["adapter"](learner.parts["generator"])
        y = torch.arange(learner.classes, device=learner.device).repeat_interleave(self.per_class)
        x = torch.cat([self.draw(learner, model, some) for some in y.split(learner.block)])
        right = learner.outputs(x)[1].argmax(1) == y
        return {"drawn": [x[right], y[right]], "kept": y[right].bincount(minlength=learner.classes).tolist()}


class LowRank(nn.Module):
    """Adapters W + B A of all matrices of a network, B = 0 at the start (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    >>> net = nn.Linear(2, 1, bias=False); adapter = LowRank(net, 1); _ = net.weight.data.zero_()
    >>> adapter.a[0].data, adapter.b[0].data = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    >>> adapter(net)(torch.ones(1, 2)).item()
    9.0
    """

    def __init__(self, net: nn.Module, rank: int):
        super().__init__()
        shapes = {name: weight.shape for name, weight in net.named_parameters() if weight.ndim > 1}
        self.names = list(shapes)
        self.a = nn.ParameterList(torch.randn(rank, shape[1:].numel()) / shape[1:].numel() ** 0.5 for shape in shapes.values())
        self.b = nn.ParameterList(torch.zeros(shape[0], rank) for shape in shapes.values())

    def forward(self, net: nn.Module) -> Callable[..., Tensor]:
        """The network with its weights changed; they themselves get no gradient."""
        weights = {name: weight.detach() for name, weight in net.named_parameters()}
        for name, a, b in zip(self.names, self.a, self.b, strict=True):
            weights[name] = weights[name] + (b @ a).view_as(weights[name])
        return lambda *given: functional_call(net, weights, given)

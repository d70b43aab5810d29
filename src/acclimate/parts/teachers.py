"""A slow copy of a network that teaches it, and weights that go back to where they came from.

Tarvainen & Valpola 2017 (mean teacher), https://arxiv.org/abs/1703.01780; Wang et al. 2022, equations 2 and 7 (CoTTA),
https://arxiv.org/abs/2203.13591"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def teacher_of(*modules: nn.Module) -> nn.Sequential:
    """A frozen copy of modules that follow one another."""
    return nn.Sequential(*(copy.deepcopy(module) for module in modules)).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: Iterable[Tensor], student: Iterable[Tensor], keep: float) -> None:
    """Moving average of weights, in place: teacher <- keep x teacher + (1 - keep) x student.

    >>> old = torch.tensor([1.0])
    >>> follow([old], [torch.tensor([3.0])], 0.75); old.item()
    1.5
    """
    for own, other in zip(teacher, student, strict=True):
        own.mul_(keep).add_(other.detach(), alpha=1 - keep)


@torch.no_grad()
def restore(weights: Mapping[str, Tensor], source: Mapping[str, Tensor], share: float, generator: torch.Generator) -> None:
    """Each entry goes back to its source value with a chance of ``share``, in place (stochastic restore).

    >>> weight = torch.zeros(10_000)
    >>> restore({"w": weight}, {"w": torch.ones(10_000)}, 0.01, torch.Generator().manual_seed(0)); 70 < weight.sum() < 130
    tensor(True)
    """
    for name, weight in weights.items():
        mask = torch.rand(weight.shape, generator=generator).to(weight.device) < share
        weight.copy_(torch.where(mask, source[name], weight))


def cross_entropy_of(teacher: Tensor, student: Tensor) -> Tensor:
    """-sum softmax(teacher) log softmax(student), each row's [row]; the teacher carries no gradient.

    >>> cross_entropy_of(torch.zeros(1, 2), torch.zeros(1, 2)).item()  # log 2
    0.6931471824645996
    """
    return -(teacher.detach().softmax(1) * student.log_softmax(1)).sum(1)

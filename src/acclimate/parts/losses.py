"""Shared maths of training losses: log-probabilities of labels, means over a whole step, distributions with a tail bucket."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 2**20  # cells of the logits worked on at once in fp32 (4 MiB): large enough for speed, small enough for the cache


class _TokenLogps(torch.autograd.Function):
    """Log-probabilities without an fp32 copy of the logits: both passes go block by block and skip rows without a label."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(rows, ids)
        found = rows.new_zeros(len(rows), dtype=_wide(rows))
        for block in _blocks(rows, ids):
            found[block] = -F.cross_entropy(rows[block].to(found.dtype), ids[block], reduction="none")
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows, ids = ctx.saved_tensors
        (gradient,) = gradients
        found = torch.zeros_like(rows)
        for block in _blocks(rows, ids):
            share = rows[block].to(gradient.dtype).softmax(1)
            label = ids[block, None]
            step = share.scatter_add(1, label, -torch.ones_like(label, dtype=share.dtype)) * -gradient[block, None]
            found[block] = step.to(rows.dtype)
        return found, None


def _blocks(rows: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    return (ids != -100).nonzero()[:, 0].split(max(1, CELLS // rows.shape[1]))


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label, in fp32 at least, 0 where the label is -100.

    logits [..., vocabulary] aligned with labels [...] -> [...]. Needs no fp32 copy of the logits.

    >>> token_logps(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([1, -100]))
    tensor([-0.6931,  0.0000])
    """
    rows = logits.reshape(-1, logits.shape[-1])
    return _TokenLogps.apply(rows, labels.reshape(-1)).view(labels.shape)


def token_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None, items: Tensor | float | None = None) -> Tensor:
    """Cross-entropy in nats, summed over the labels that count and divided by ``items``, or else by their number: scalar.

    logits [..., vocabulary] aligned with labels [...]; a label counts if it is not -100 and mask [...] is not 0 there.

    >>> logits, labels = torch.zeros(1, 3, 4), torch.tensor([[1, 2, -100]])
    >>> token_cross_entropy(logits, labels), token_cross_entropy(logits, labels, torch.tensor([[0, 1, 1]]), items=2)
    (tensor(1.3863), tensor(0.6931))
    """
    if mask is not None:
        labels = labels.masked_fill(mask == 0, -100)
    number = (labels != -100).sum().clamp(min=1) if items is None else items
    return -token_logps(logits, labels).sum() / number


def mean_over(values: Tensor, items: Tensor | float | None = None) -> Tensor:
    """Sum of the values divided by ``items``, or else by how many values there are: scalar.

    >>> mean_over(torch.tensor([1.0, 2.0])), mean_over(torch.tensor([1.0, 2.0]), items=4)
    (tensor(1.5000), tensor(0.7500))
    """
    return values.sum() / (max(values.numel(), 1) if items is None else items)


def coarse_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the tokens named by ``ids``, and behind them that of all other tokens together.

    logits [row, vocabulary], ids [row, K] without repeats -> [row, K + 1], which sums to 1 in probability; [row, K] if K is
    the whole vocabulary and nothing is left for the tail.

    >>> coarse_logprobs(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), torch.tensor([[2]])).exp()
    tensor([[0.2500, 0.7500]])
    """
    logits = logits.to(_wide(logits))
    whole = logits.logsumexp(1, keepdim=True)
    seen = logits.gather(1, ids) - whole
    if ids.shape[1] == logits.shape[1]:
        return seen
    tail = logits.scatter(1, ids, float("-inf")).logsumexp(1, keepdim=True) - whole
    return torch.cat([seen, tail], 1)


def teacher_divergence(logits: Tensor, ids: Tensor, logprobs: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) at temperature T in nats, summed over the rows: scalar.

    logits [row, vocabulary]; the teacher's view is sparse: ids [row, K] and their log-probabilities [row, K] at temperature 1. All other
    tokens make one bucket on both sides, tempered as if it were a single token: exact at K = vocabulary, and 0 for equal models.

    >>> ids, logprobs = torch.tensor([[0]]), torch.tensor([[0.5]]).log()
    >>> teacher_divergence(torch.tensor([[2.0, 0.0, 0.0]]), ids, logprobs)  # 0.5 log(0.5 / 0.787) + 0.5 log(0.5 / 0.213)
    tensor(0.1998)
    """
    student = coarse_logprobs(logits, ids)  # [row, K + 1]
    teacher = logprobs.to(student.dtype)  # [row, K]
    if student.shape[1] > teacher.shape[1]:
        rest = 1 - teacher.exp().sum(1, keepdim=True)
        teacher = torch.cat([teacher, rest.clamp(min=torch.finfo(rest.dtype).tiny).log()], 1)
    student, teacher = ((side / temperature).log_softmax(1) for side in (student, teacher))
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2

"""Mixtures of experts: scores become weights, each expert computes only the items that chose it, and two losses keep the scores in order.

One layer serves many gates. Weights are always dense [item, expert] with zeros where an expert was not chosen:

- linear (Branch-Train-MiX), deep or projected gates are modules that give scores [item, expert] (or [item, expert, width], a weight for
  every feature apart); ``over`` says whether the softmax runs over the chosen experts alone or over all,
- without a gate the weights are held from outside for whole sequences (perplexity routing), or else uniform (gateless); weights that are
  given from outside (enforced domains) win over a gate,
- ``base`` is an expert that is always on, beside the others or as what they differ from.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError


def gate_weights(scores: Tensor, top_k: int, over: str = "chosen") -> Tensor:
    """Weights [..., expert] that are 0 but for the ``top_k`` largest scores [..., expert].

    over: ``chosen`` is a softmax over the chosen scores, whose weights sum to 1; ``all`` one over all scores, of which the chosen are kept.

    >>> gate_weights(torch.tensor([2.0, 0.0, 2.0]), 2), gate_weights(torch.zeros(4), 1, over="all").max()
    (tensor([0.5000, 0.0000, 0.5000]), tensor(0.2500))
    """
    top, at = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
    part = top.softmax(-1) if over == "chosen" else scores.softmax(-1).gather(-1, at)
    return torch.zeros_like(scores).scatter(-1, at, part)


def perplexity_weights(perplexity: Tensor, top_k: int) -> Tensor:
    """Weights from each expert's perplexity of the prompt [..., expert]: softmax over the ``top_k`` largest of 1 / perplexity.

    >>> perplexity_weights(torch.tensor([8.0, 2.0, 4.0]), 2)
    tensor([0.0000, 0.5622, 0.4378])
    """
    return gate_weights(perplexity.reciprocal(), top_k)


def balance_loss(scores: Tensor, weights: Tensor) -> Tensor:
    """N * sum_i f_i p_i for scores and weights [item, expert]: 1 for an even load, N when all items go to one expert.

    f_i is the share of choices that fell on expert i, p_i the mean of its softmax probability; the gradient flows through p alone.

    >>> even, one = torch.zeros(4, 4), torch.tensor([[9.0, -9.0]] * 3)
    >>> balance_loss(even, torch.eye(4)), balance_loss(one, gate_weights(one, 1))
    (tensor(1.), tensor(2.))
    """
    chosen = (weights != 0).to(scores.dtype)
    share = chosen.sum(0) / chosen.sum().clamp(min=1)
    return scores.shape[-1] * (share * scores.softmax(-1).mean(0)).sum()


def z_loss(scores: Tensor) -> Tensor:
    """Mean of log-sum-exp squared over items [item, expert]: keeps scores small (Zoph et al. 2022).

    >>> z_loss(torch.zeros(3, 1) + 2)
    tensor(4.)
    """
    return scores.logsumexp(-1).square().mean()


def mixture(x: Tensor, weights: Tensor, experts: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Weighted sum of the experts' outputs [item, width]; an expert sees only the items whose weight for it is not 0.

    x [item, width], weights [item, expert] or [item, expert, width].

    >>> mixture(torch.ones(2, 1), torch.tensor([[1.0, 0.0], [0.25, 0.75]]), [lambda x: 4 * x, lambda x: 8 * x])
    tensor([[4.],
            [7.]])
    """
    total: Tensor | None = None
    for number, expert in enumerate(experts):
        weight = weights[:, number].reshape(len(weights), -1)
        at = (weight != 0).any(1).nonzero()[:, 0]
        if not len(at):
            continue
        whole = len(at) == len(x)
        part = expert(x if whole else x[at])
        part = part * (weight if whole else weight[at]).to(part.dtype)
        if whole:
            total = part if total is None else total + part
        else:
            total = (part.new_zeros(len(x), part.shape[-1]) if total is None else total).index_add(0, at, part)
    return torch.zeros_like(x) if total is None else total


def per_document(values: Tensor, document: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the counted tokens of each document, given back to all of its tokens [row, token, k], and how many were counted.

    values [row, token, k]; document [row, token]: which of the row's documents a token belongs to; counted [row, token]: bool.

    >>> values = torch.tensor([[[1.0], [3.0], [5.0], [7.0]]])
    >>> mean, count = per_document(values, torch.tensor([[0, 0, 0, 1]]), torch.tensor([[True, True, False, False]]))
    >>> mean.flatten().tolist(), count.flatten().tolist()
    ([2.0, 2.0, 2.0, 0.0], [2.0, 2.0, 2.0, 0.0])
    """
    rows, _, width = values.shape
    many = int(document.max()) + 1
    kept = counted.to(values.dtype)
    index = document[..., None]
    total = values.new_zeros(rows, many, width).scatter_add(1, index.expand_as(values), values * kept[..., None])
    count = values.new_zeros(rows, many).scatter_add(1, document, kept).gather(1, document)
    return total.gather(1, index.expand_as(values)) / count.clamp(min=1)[..., None], count


@dataclass
class Held:
    """What a network's layers share during one pass: weights held for whole sequences, which tokens are real, losses, loads."""

    weights: Tensor | None = None  # [row, expert], or [row, token, expert]
    fixed: bool = False  # given from outside, so that the network does not route by itself
    real: Tensor | None = None  # [row, token]: False for padding
    losses: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (balance, z) of each gate of the pass
    loads: list[Tensor] | None = None  # mean weight per expert [expert] of each layer and pass, where someone watches

    def __deepcopy__(self, memo: dict[int, Any]) -> "Held":
        memo[id(self)] = made = Held()  # what belongs to a pass is not copied; the layers of the copy share one again
        return made

    def spread(self, x: Tensor, experts: int) -> Tensor:
        """The held weights for each token of x [row, token, width] -> [row, token, expert]; uniform where nothing is held."""
        rows, tokens = x.shape[:2]
        if self.weights is None:
            return x.new_full((rows, tokens, experts), 1 / experts)
        weights = self.weights if self.weights.ndim == 3 else self.weights[:, None]
        if rows % len(weights) or weights.shape[1] not in (1, tokens) or weights.shape[2] != experts:
            raise AcclimateError(
                f"the weights held for routing are {list(self.weights.shape)}, but {rows} rows of {tokens} tokens go to {experts} experts"
            )
        return weights.repeat_interleave(rows // len(weights), 0).expand(rows, tokens, experts)  # several beams to a row


class MoEFFN(nn.Module):
    """Experts in place of one feed-forward layer: y = sum_i g_i E_i(x), with or without a base that is always on.

    relative: experts count as differences to the base, y = B(x) + sum_i g_i (E_i(x) - B(x)).
    """

    def __init__(
        self,
        experts: Iterable[nn.Module],
        gate: nn.Module | None = None,
        *,
        top_k: int = 2,
        over: str = "chosen",
        base: nn.Module | None = None,
        relative: bool = False,
        held: Held | None = None,
    ):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gate, self.base = gate, base
        self.top_k, self.over, self.relative = top_k, over, relative
        self.held = held if held is not None else Held()

    def forward(self, x: Tensor) -> Tensor:
        """x [row, token, width] -> [row, token, width]."""
        flat = x.reshape(-1, x.shape[-1])
        if self.gate is None or self.held.fixed:
            weights = self.held.spread(x, len(self.experts)).reshape(len(flat), -1)
        else:
            weights = self._choose(flat)
        if self.held.loads is not None:
            self.held.loads.append(self._real(weights).detach().float().mean(0))
        out = mixture(flat, weights, list(self.experts))
        if self.base is not None:
            always = self.base(flat)
            out = out + (always * (1 - weights.sum(1, keepdim=True)).to(always.dtype) if self.relative else always)
        return out.reshape(*x.shape[:-1], -1)

    def _choose(self, flat: Tensor) -> Tensor:
        assert self.gate is not None
        scores = self.gate(flat).float()
        if scores.ndim == 3:  # a score for every feature apart
            return gate_weights(scores.transpose(1, 2), self.top_k, self.over).transpose(1, 2)
        weights = gate_weights(scores, self.top_k, self.over)
        if self.training and torch.is_grad_enabled():
            some = self._real(scores)
            self.held.losses.append((balance_loss(some, self._real(weights)), z_loss(some)))
        return weights

    def _real(self, values: Tensor) -> Tensor:
        real = self.held.real
        return values[real.flatten()] if real is not None and real.numel() == len(values) else values

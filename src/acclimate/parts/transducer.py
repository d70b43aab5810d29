"""The loss of a transducer: minus the log of the sum over all ways to interleave a target's symbols with a sequence of frames.

Graves 2012, sections 2.3 to 2.5, https://arxiv.org/abs/1211.3711. The lattice has a node for each frame t and each number u of symbols
said so far; "blank" goes to the next frame, a symbol to the next u, and a path ends with a blank after the last frame. Both recursions
run in log space over the lattice's anti-diagonals (t + u constant), all nodes of one and all rows of the batch at once, and the gradient
comes from them directly.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import AcclimateError


def transducer_loss(logits: Tensor, targets: Tensor, frames: Tensor, lengths: Tensor, blank: int = 0) -> Tensor:
    """Minus log-probability of each row's target, in nats [row].

    logits [row, frame, symbol + 1, vocabulary] (any scale: they are normalised here), targets [row, symbol] without blanks, and how many
    frames [row] and symbols [row] of each row are real; what stands behind them counts nothing.

    Raises AcclimateError for shapes that do not fit and for rows without frames.

    >>> both = torch.zeros(1, 2, 2, 2)  # two frames, one symbol: two paths of three steps, each step of probability 1/2
    >>> transducer_loss(both, torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])).exp()
    tensor([4.])
    """
    rows, longest, nodes, vocabulary = logits.shape
    if targets.shape != (rows, nodes - 1):
        raise AcclimateError(f"targets have the shape {tuple(targets.shape)}, but logits of {tuple(logits.shape)} want {(rows, nodes - 1)}")
    if int(frames.min()) < 1 or int(frames.max()) > longest or int(lengths.max()) > nodes - 1:
        raise AcclimateError(f"rows must have 1 to {longest} frames and 0 to {nodes - 1} symbols, as their logits have")
    if not 0 <= blank < vocabulary:
        raise AcclimateError(f"blank = {blank}, but there are {vocabulary} symbols")
    logps = logits.log_softmax(-1)
    real = torch.arange(nodes - 1, device=targets.device) < lengths[:, None]
    chosen = targets.masked_fill(~real, blank)[:, None, :, None].expand(-1, longest, -1, 1)
    emit = logps[:, :, :-1].gather(-1, chosen)[..., 0]
    return -_Lattice.apply(logps[..., blank], emit, frames, lengths)


class _Lattice(torch.autograd.Function):
    """Log of the sum over all paths [row], of the log-probabilities of blanks [row, frame, node] and of symbols [row, frame, node - 1]."""

    @staticmethod
    def forward(ctx: Any, blank: Tensor, emit: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
        ctx.frames, ctx.lengths = frames, lengths
        blank, emit = _bounded(blank, emit, frames, lengths)
        alpha, total = _forward(_skew(blank), _skew(emit), frames, lengths)
        ctx.save_for_backward(blank, emit, alpha, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        blank, emit, alpha, total = ctx.saved_tensors
        skewed = _skew(blank), _skew(emit)
        beta = _backward(*skewed, ctx.frames, ctx.lengths)
        later = beta[:, 1:]  # after a blank; the first symbol's node stays
        said = torch.nn.functional.pad(later[..., 1:], (0, 1), value=-torch.inf)  # after a symbol
        scale = grad[:, None, None]
        passed = [(alpha + step + after - total[:, None, None]).exp() * scale for step, after in zip(skewed, (later, said), strict=True)]
        blanks, symbols = (_unskew(values, blank.shape[1]) for values in passed)
        return blanks, symbols[..., :-1], None, None


def _bounded(blank: Tensor, emit: Tensor, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Both of one shape [row, frame, node], with probability 0 outside each row's own lattice."""
    t, u = torch.arange(blank.shape[1], device=blank.device), torch.arange(blank.shape[2], device=blank.device)
    late = (t >= frames[:, None])[..., None]
    emit = torch.nn.functional.pad(emit, (0, 1))
    over = u >= lengths[:, None]
    return blank.masked_fill(late | (u > lengths[:, None])[:, None], -torch.inf), emit.masked_fill(late | over[:, None], -torch.inf)


def _skew(values: Tensor) -> Tensor:
    """[row, frame, node] -> [row, frame + node, node]: row n of the middle axis is the diagonal t + u = n."""
    rows, frames, nodes = values.shape
    diagonals = frames + nodes - 1
    t = torch.arange(diagonals, device=values.device)[:, None] - torch.arange(nodes, device=values.device)
    inside = (t >= 0) & (t < frames)
    found = values.gather(1, t.clamp(0, frames - 1).expand(rows, -1, -1))
    return found.masked_fill(~inside, -torch.inf)


def _unskew(values: Tensor, frames: int) -> Tensor:
    """The reverse of :func:`_skew`."""
    rows, _, nodes = values.shape
    diagonal = torch.arange(frames, device=values.device)[:, None] + torch.arange(nodes, device=values.device)
    return values.gather(1, diagonal.expand(rows, -1, -1))


def _forward(blank: Tensor, emit: Tensor, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of reaching each node [row, diagonal, node], and of the whole [row] (equation 16)."""
    rows, diagonals, nodes = blank.shape
    now = blank.new_full((rows, nodes), -torch.inf)
    now[:, 0] = 0
    alpha = [now]
    for n in range(diagonals - 1):
        said = torch.nn.functional.pad((now + emit[:, n])[:, :-1], (1, 0), value=-torch.inf)
        now = torch.logaddexp(now + blank[:, n], said)
        alpha.append(now)
    stacked = torch.stack(alpha, 1)
    row = torch.arange(rows, device=blank.device)
    end = (row, frames - 1 + lengths, lengths)
    return stacked, stacked[end] + blank[end]


def _backward(blank: Tensor, emit: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
    """Log-probability of what follows each node [row, diagonal + 1, node] (equation 18); 0 behind the last blank."""
    rows, diagonals, nodes = blank.shape
    row, last = torch.arange(rows, device=blank.device), frames + lengths
    now = blank.new_full((rows, nodes), -torch.inf)
    beta = []
    for n in range(diagonals, -1, -1):
        if n < diagonals:
            said = torch.nn.functional.pad(now[:, 1:], (0, 1), value=-torch.inf) + emit[:, n]
            now = torch.logaddexp(now + blank[:, n], said)
        ends = last == n
        now = now.clone()
        now[row[ends], lengths[ends]] = 0
        beta.append(now)
    return torch.stack(beta[::-1], 1)

"""Heads of adapters' own: what a network's last states come to for one adapter, so that each of many answers in its own terms.

Pfeiffer et al. 2020, section 3.3, https://arxiv.org/abs/2007.07779; Poth et al. 2023, https://arxiv.org/abs/2311.11077
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError, nearest
from ..parts.pooling import pooled
from .calls import repeated
from .composition import Rows, branches, copies

if TYPE_CHECKING:
    from .injected import Injected

KINDS = ("classification", "tagging", "question_answering", "language_model")
UNLABELLED = ("question_answering", "language_model")
POOLING = ("mean", "cls", "last")
DROPOUT = 0.1


class Head(nn.Module):
    """From last states [row, token, width]: scores [row, label] (classification), [row, token, label] or [row, token, id]; for questions
    [row, token, 2], how well an answer starts and how well it ends there (Devlin et al. 2019, section 4.2; parts/spans.py reads them).

    Classification pools over the tokens that are not padding ("mean"), or takes the first ("cls") or the last of them ("last"), and has
    one tanh layer; the others read each token.
    """

    def __init__(self, kind: str, labels: Sequence[str], width: int, pooling: str, out: nn.Module):
        super().__init__()
        self.kind, self.labels, self.pooling = kind, list(labels), pooling
        self.dropout = nn.Dropout(DROPOUT if labels else 0.0)
        self.dense = nn.Linear(width, width) if kind == "classification" else None
        self.out = out

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """mask [row, token]: 0 for padding."""
        hidden = hidden.to(next(self.parameters()).dtype)
        if self.dense is None:
            return self.out(self.dropout(hidden))
        return self.out(self.dropout(self.dense(self.dropout(pooled(hidden, mask, self.pooling))).tanh()))


def made(net: Any, kind: str, labels: Sequence[str], pooling: str, seed: int) -> Head:
    """A head for a network; that of a language model begins as a copy of the network's own output layer.

    Raises AcclimateError for a kind or pooling that is unknown, labels that are missing, doubled or of no use, and a network that has
    two stacks or (for a language model) not one output layer.
    """
    for word, value, known in (("kind", kind, KINDS), ("pooling", pooling, POOLING)):
        if value not in known:
            raise AcclimateError(f"a head's {word} cannot be {value!r}{nearest(str(value), known)}")
    config: Any = net.config
    if getattr(config, "is_encoder_decoder", False):
        raise AcclimateError("heads read the last states of one stack, and this network is an encoder-decoder; use its own output layer")
    if isinstance(labels, str) or len(set(labels)) != len(labels) or bool(labels) == (kind in UNLABELLED):
        takes = "has no labels" if kind in UNLABELLED else "needs a list of labels, each once"
        raise AcclimateError(f"a {kind} head {takes}, but was given {labels!r}")
    width = config.hidden_size
    if kind == "language_model":
        own = [layer for layer in net.children() if layer is not net.base_model]
        if net.base_model is net or len(own) != 1:
            raise AcclimateError("a language_model head begins as the network's output layer, and this network has not exactly one")
        return Head(kind, (), width, pooling, copy.deepcopy(own[0]).requires_grad_(True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Head(kind, labels, width, pooling, nn.Linear(width, len(labels) or 2))


def answers(net: "Injected", **inputs: Any) -> list[Tensor]:
    """What the heads of the active adapters say: one tensor for each branch, or for each row where rows have adapters of their own.

    See :meth:`Injected.answers`.
    """
    if net.active is None:
        raise AcclimateError("no adapter is active, so no head answers; activate one first")
    count = copies(net.active)
    inputs = {key: repeated(value, count) for key, value in inputs.items()}
    body: Any = getattr(net.net, "base_model", net.net)
    hidden = body(**inputs).last_hidden_state
    mask = inputs.get("attention_mask")
    mask = hidden.new_ones(hidden.shape[:2]) if mask is None else mask
    if mask.ndim != 2:
        raise AcclimateError(f"heads need the attention mask as [row, token], but it has shape {list(mask.shape)}")
    if isinstance(net.active, Rows):
        return _by_row(net, net.active, hidden, mask)
    found, at = [], 0
    for size, levels in branches(net.active, len(hidden)):
        head = _topmost(net, levels)
        found.append(head(hidden[at : at + size], mask[at : at + size]))
        at += size
    return found


def _topmost(net: "Injected", levels: list[tuple[str, ...]]) -> Head:
    """The head of the topmost adapter of a branch that has one; levels from the lowest on."""
    for level in reversed(levels):
        having = [name for name in level if name in net.heads]
        if len(having) > 1:
            raise AcclimateError(f"{' and '.join(having)} each have a head and stand side by side; stack one adapter with a head on top")
        if having:
            return net.heads[having[0]]  # type: ignore[return-value]
    names = [name for level in levels for name in level]
    raise AcclimateError(f"{', '.join(names)}: no head; give one with put_head({names[-1]!r}, kind, labels)")


def _by_row(net: "Injected", rows: Rows, hidden: Tensor, mask: Tensor) -> list[Tensor]:
    if "" in rows.names:
        raise AcclimateError(f"row {rows.names.index('') + 1} has no adapter, so no head answers it; leave it out of the batch")
    found: dict[int, Tensor] = {}
    for name in rows.parts:
        own = [i for i, other in enumerate(rows.names) if other == name]
        found |= dict(zip(own, _topmost(net, [(name,)])(hidden[own], mask[own]), strict=True))
    return [found[i] for i in range(len(rows.names))]

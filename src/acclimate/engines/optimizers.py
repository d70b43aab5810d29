"""Optimizers that torch lacks: Muon for the weight matrices with AdamW for all else, and AdamW on the strongest entries alone (MoFO).

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) steps along the orthogonalised momentum of a matrix.
Its steps are scaled to AdamW's size (Liu et al. 2025, equation 4, https://arxiv.org/abs/2502.16982), so that one rate serves both.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """Optimizers of different weights that share a step, a schedule and a state file."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        self.defaults: dict[str, Any] = dict(parts[-1].defaults)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all parts; a schedule changes their rates in place."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """What the parts remember of each weight."""
        return {weight: kept for part in self.parts for weight, kept in part.state.items()}

    def step(self, closure: Callable | None = None) -> Any:
        """One step of each part."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts], "param_groups": self.param_groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The states back."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def muon_adamw(net: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float, fused: bool) -> MuonAdamW:
    """Muon on the matrices inside the network; AdamW on embeddings, output layer, norms and biases (the last two without decay)."""
    tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    output = getattr(net, "get_output_embeddings", lambda: None)()
    tables |= {id(output.weight)} if output is not None else set()
    learning = [weight for weight in net.parameters() if weight.requires_grad]
    matrices = [weight for weight in learning if weight.ndim == 2 and id(weight) not in tables]
    taken = {id(weight) for weight in matrices}
    tables_and_others = [
        {"params": [w for w in learning if w.ndim >= 2 and id(w) not in taken], "weight_decay": weight_decay},
        {"params": [w for w in learning if w.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in tables_and_others if group["params"]]
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
    if groups:
        parts.append(torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused))
    return MuonAdamW(parts)


class MoFO(torch.optim.AdamW):
    """AdamW that moves, of each tensor, only the share ``alpha`` of entries whose momentum is largest; the others stay as they are.

    Chen et al. 2024, Algorithm 1, https://arxiv.org/abs/2407.20999 . At least one entry moves. What stays is not decayed either.
    """

    def __init__(self, groups: Any, *, alpha: float, **options: Any):
        super().__init__(groups, **options)
        self.alpha = alpha

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        """One step on the chosen entries."""
        moving = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        before = [weight.clone(memory_format=torch.contiguous_format) for weight in moving]
        loss = super().step(closure)
        for weight, old in zip(moving, before, strict=True):
            strength = self.state[weight]["exp_avg"].abs().flatten()
            chosen = strength.topk(max(1, round(self.alpha * strength.numel())), sorted=False).indices
            old.view(-1)[chosen] = weight.flatten()[chosen]
            weight.copy_(old)
        return loss


def mofo_adamw(net: nn.Module, *, alpha: float, weight_decay: float, **options: Any) -> MoFO:
    """MoFO on everything that learns; norms and biases without decay."""
    learning = [weight for weight in net.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in learning if w.ndim >= 2], "weight_decay": weight_decay},
        {"params": [w for w in learning if w.ndim < 2], "weight_decay": 0.0},
    ]
    return MoFO([group for group in groups if group["params"]], alpha=alpha, **options)

"""Learned keys and values that one attention layer attends to beside its own, hung on the layer without touching its code.

Li & Liang 2021, equation 3, https://arxiv.org/abs/2101.00190. The layer must take a cache (``past_key_values``), as attention layers of
transformers do: its keys and values pass through the cache's ``update``, and there the prefix joins them. It stands behind the layer's own
keys, whose relative positions stay what they are; to attention the order of keys is nothing.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError
from .beside import Beside, small_linear

ATTENTION = r"[r](?:.*\.)?(?:self_attn|attention\.self|attn|SelfAttention|self_attention)"  # self-attention of the usual families
MASKS = ("attention_mask", "mask")  # what families call it
HEADS = ("head_dim", "attention_head_size", "key_value_proj_dim")  # and the width of a head


class Positions(nn.Module):
    """What makes the prefixes of all layers, as far as they share it: P [position, width] and tanh(W P) [position, hidden]."""

    def __init__(self, count: int, width: int, hidden: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width))
        self.inner = nn.Linear(width, hidden)

    def forward(self) -> Tensor:
        """[position, hidden]."""
        return self.inner(self.weight).tanh()


class Prefix(Beside):
    """The prefix of one attention layer, of ``count`` positions; ``positions`` (held, not stored) makes it with a last linear map.

    ``gate``: times a sigmoid of the mean of the layer's input, row by row; of a learned number where a token may not see what follows it.
    """

    def __init__(self, layer: nn.Module, width: int, count: int, *, positions: Positions | None = None, gate: bool = False):
        super().__init__()
        self.heads, self.head, self.causal = shape(layer)
        self._positions: tuple[Positions, ...] = () if positions is None else (positions,)
        made = 2 * self.heads * self.head
        self.last = nn.Linear(positions.inner.out_features, made) if positions is not None else None
        self.weight = nn.Parameter(torch.randn(count, made)) if positions is None else None
        self.gate = small_linear(width, 1) if gate and not self.causal else None
        self.shut = nn.Parameter(torch.zeros(())) if gate and self.causal else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Nothing is added to the output: the prefix works inside the layer."""
        return torch.zeros((), dtype=y.dtype, device=y.device).expand_as(y)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For the layer's input x [row, token, width]: keys and values [row, head, position, width of a head]."""
        made: Any = self.weight if self.last is None else self.last(self._positions[0]())
        if self.gate is not None:
            made = torch.sigmoid(self.gate(x.to(made.dtype))).mean(1, keepdim=True) * made
        elif self.shut is not None:
            made = torch.sigmoid(self.shut) * made
        made = made.expand(len(x), -1, -1).to(x.dtype)
        keys, values = made.view(*made.shape[:2], 2, self.heads, self.head).permute(2, 0, 3, 1, 4)
        return keys, values

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The layer's arguments with a cache that adds the prefix, and with the mask that lets all tokens see it."""
        given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        x = next(value for value in given.values() if isinstance(value, Tensor))
        cache = given.get("past_key_values")
        own = getattr(cache, "self_attention_cache", cache)
        keys, values = self.keys_values(x)
        name = next(word for word in MASKS if word in inspect.signature(layer.forward).parameters)
        past = own.get_seq_length(getattr(layer, "layer_idx", 0)) if own is not None else 0
        given[name] = _longer(given.get(name), x, int(past), keys.shape[2], self.causal)
        given["past_key_values"] = _Joined(own, keys, values)
        return (), given


class _Joined:
    """A cache, or none, whose answers are followed by a prefix; the prefix is never stored in it."""

    def __init__(self, cache: Any, keys: Tensor, values: Tensor):
        self.cache, self.keys, self.values = cache, keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *args, **kwargs)
        return torch.cat([keys, self.keys.to(keys.dtype)], 2), torch.cat([values, self.values.to(values.dtype)], 2)

    def get_seq_length(self, *args: Any) -> Any:
        return self.cache.get_seq_length(*args) if self.cache is not None else 0


def shape(layer: Any) -> tuple[int, int, bool]:
    """Heads of keys, width of a head, and whether a token may see what follows it not. Raises AcclimateError for other layers."""
    words = inspect.signature(layer.forward).parameters
    width = next((int(getattr(layer, word)) for word in HEADS if hasattr(layer, word)), 0)
    keys = [part for path, part in layer.named_modules() if path in ("k_proj", "key", "k", "c_attn")]
    if "past_key_values" not in words or not set(MASKS) & set(words) or not width or not keys:
        raise AcclimateError(f"{type(layer).__name__} takes no cache of keys and values, so a prefix cannot join it; name attention layers")
    outputs = keys[0].weight.shape[1] // 3 if type(keys[0]).__name__ == "Conv1D" else keys[0].weight.shape[0]
    return outputs // width, width, bool(getattr(layer, "is_causal", False) or getattr(layer, "is_decoder", False))


def _longer(mask: Any, x: Tensor, past: int, more: int, causal: bool) -> Tensor:
    """A mask [.., query, key] with columns for the prefix; made anew where there was none."""
    if mask is None:
        mask = torch.ones(x.shape[1], past + x.shape[1], dtype=torch.bool, device=x.device)
        mask = (mask.tril(past) if causal else mask)[None, None]
        mask = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, torch.finfo(x.dtype).min)
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise AcclimateError("a prefix needs a mask [row, head, query, key]; load the model with attn_implementation='sdpa' or 'eager'")
    return torch.cat([mask, mask.new_full((*mask.shape[:-1], more), bool(mask.dtype == torch.bool))], -1)

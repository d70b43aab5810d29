"""Merging small models that are in memory, for searches that try many merges."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kinds import Merge


def merge_in_memory(
    method: Merge,
    base: Mapping[str, Tensor] | None,
    tuned: Sequence[Mapping[str, Tensor]],
    settings: Callable[[str], dict[str, Any]] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Merge small models that are in memory, in fp32, for searches that try many merges.

    ``settings`` gives settings that differ from the method's own, by the tensor's name. Integer tensors are the first model's.
    """
    found = {}
    with torch.no_grad():
        wide = _wide_in_memory(method, base, tuned) if method.model_wide and settings is None else None
        for name, first in tuned[0].items():
            if not first.is_floating_point():
                found[name] = first.clone()
                continue
            own = type(method)(**{**method.values(), **settings(name)}) if settings else method
            stacked = torch.stack([model[name].float() for model in tuned])
            start = None if base is None else base[name].float()
            rows = stacked.ndim < 3 and own.rows
            if rows:
                stacked, start = stacked.reshape(len(tuned), 1, -1), None if start is None else start.reshape(1, -1)
            merged = own.whole(start, stacked, seed=[seed, zlib.crc32(name.encode())], seen=wide)
            found[name] = merged.reshape(first.shape)
    return found


def _wide_in_memory(method: Merge, base: Mapping[str, Tensor] | None, tuned: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    seen: list[Tensor] = []
    while True:
        total: Tensor | None = None
        for name, first in tuned[0].items():
            if first.is_floating_point():
                stacked = torch.stack([model[name].float() for model in tuned])
                look = method.look(None if base is None else base[name].float(), stacked, seen)
                if look is None:
                    return seen
                total = look if total is None else total + look
        if total is None:
            return seen
        seen.append(total)

"""Types of stored tensors, as safetensors names them; torch's own are looked up where they are used.

>>> DTYPES["BF16"].name, DTYPES["BF16"].itemsize, DTYPES["BF16"].torch
('bfloat16', 2, torch.bfloat16)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...lazy import torch

if TYPE_CHECKING:
    import torch as _torch


@dataclass(frozen=True)
class Dtype:
    """One type of entries."""

    code: str  # in a safetensors header
    name: str  # torch's
    itemsize: int  # bytes
    is_floating_point: bool = True

    @property
    def torch(self) -> _torch.dtype:
        """The same type in torch."""
        return getattr(torch, self.name)


DTYPES = {
    dtype.code: dtype
    for dtype in (
        Dtype("F64", "float64", 8), Dtype("F32", "float32", 4), Dtype("F16", "float16", 2), Dtype("BF16", "bfloat16", 2),
        Dtype("F8_E4M3", "float8_e4m3fn", 1), Dtype("F8_E5M2", "float8_e5m2", 1), Dtype("I64", "int64", 8, False),
        Dtype("I32", "int32", 4, False), Dtype("I16", "int16", 2, False), Dtype("I8", "int8", 1, False), Dtype("U8", "uint8", 1, False),
        Dtype("BOOL", "bool", 1, False),
    )
}  # fmt: skip
NAMED = {dtype.name: dtype for dtype in DTYPES.values()}

"""SLERP: goes from one model to another on an arc instead of a line, tensor by tensor; more than two meet on the sphere.

Shoemake 1985, https://doi.org/10.1145/325334.325242; for weights as used by Alexandrov et al. 2024, https://arxiv.org/abs/2407.08699
Use for two tunes whose lengths a mean would shrink; nearly parallel tensors are interpolated on the line. With three or more models (or
``weights``) the unit vectors are averaged in the tangent space at their weighted mean and sent back to the sphere, with the weighted
mean of the lengths. ``origin="base"`` turns around the base instead of around zero.

>>> from torch import tensor
>>> Slerp(t=0.5).whole(None, tensor([[2.0, 0.0], [0.0, 2.0]]))
tensor([1.4142, 1.4142])
>>> Slerp().whole(None, tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
tensor([0.5774, 0.5774, 0.5774])
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ...errors import AcclimateError
from ...kinds import Merge
from ...lazy import torch
from ...method import Setting
from ...parts.checkpoints import each, gram
from ...parts.fused import Fused

if TYPE_CHECKING:
    from torch import Tensor


class Slerp(Merge):
    """Spherical interpolation."""

    takes = (2, 1000)

    t: Annotated[float, Setting("place on the arc from the first model (0) to the second (1), for two models", 0, 1)] = 0.5
    weights: Annotated[list[float], Setting("weights of the models instead of t; needed for none, used for three or more", 0)] = (
        dataclasses.field(default_factory=lambda: [1.0])
    )
    parallel: Annotated[float, Setting("cosine from which two tensors count as parallel and the line is taken", 0, 1)] = 0.9995
    origin: Annotated[str, Setting("centre of the sphere", choices=("zero", "base"))] = "zero"

    def look(self, base: Tensor | None, tuned: Tensor, seen: list[Tensor], bits: int = 32) -> Tensor | None:
        """Inner products of the models' tensors."""
        return None if seen else gram(self._seen_from(base, tuned))

    def settle(self, seen: list[Any], models: int) -> np.ndarray:
        """Coefficients of the models [model]."""
        products = np.asarray(seen[0])
        return (self._two(products) if models == 2 and len(self.weights) == 1 else self._many(products)).astype(np.float32)

    def fused(self, models: int) -> Fused:
        """The same as numbers."""
        return Fused(each(self.weights, models), changes=self.origin == "base", look="gram")

    def merge(self, tuned: Tensor, seen: np.ndarray, base: Tensor | None = None) -> Tensor:
        """tuned [model, *shape] -> [*shape]."""
        vectors = self._seen_from(base, tuned)
        merged = torch.tensordot(torch.from_numpy(seen).to(vectors.dtype), vectors, dims=1)
        return merged + base if self.origin == "base" and base is not None else merged

    def _seen_from(self, base: Tensor | None, tuned: Tensor) -> Tensor:
        if self.origin == "zero":
            return tuned
        if base is None:
            raise AcclimateError("slerp with origin = 'base' needs a base model")
        return tuned - base

    def _two(self, products: np.ndarray) -> np.ndarray:
        """Coefficients of both models [2] (Shoemake's formula); the line where they are parallel, opposed, or zero."""
        a, b = np.sqrt(products.diagonal()).tolist()
        cosine = products[0, 1].item() / (a * b) if a * b > 1e-16 else 1.0
        if abs(cosine) >= self.parallel:
            return np.array([1 - self.t, self.t])
        angle = math.acos(cosine)
        return np.array([math.sin((1 - self.t) * angle), math.sin(self.t * angle)]) / math.sin(angle)

    def _many(self, products: np.ndarray) -> np.ndarray:
        """Coefficients of every model [model]: all vectors of the construction lie in the span of the models."""
        weights = each(self.weights, len(products)).astype(np.float64)
        weights = weights / weights.sum()
        lengths = np.sqrt(products.diagonal()).clip(min=1e-12)
        cosines = products / lengths[:, None] / lengths
        size = math.sqrt(max(0.0, weights @ cosines @ weights))
        if size < 1e-8:
            raise AcclimateError("slerp: the weighted mean of the directions is zero (opposed tensors balance); change the weights")
        mean = weights / size  # the mean direction, as coefficients of the unit vectors
        tangent = weights - (weights * (cosines @ mean)).sum() * mean
        turn = math.sqrt(max(0.0, tangent @ cosines @ tangent))
        found = mean * math.cos(turn) + tangent * (math.sin(turn) / turn if turn > 1e-8 else 1.0)
        return found / lengths * (lengths @ weights)

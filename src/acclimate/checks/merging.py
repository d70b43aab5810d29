"""Checks for merge methods: known words, equal models give that model, one model gives itself, chunks, order, shape."""

from typing import Any

import torch
from torch import Tensor

from ..kinds import Merge
from ..words import WORDS
from .common import expect, same

SHAPE = (6, 16)
# settings under which nothing is cut
FULL = {"scale": 1.0, "keep": [1.0], "drop": [0.0], "window": [0.0], "select": 1.0, "outliers": [0.0], "t": 0.5}


def example(method: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """A merge of one tensor of three models (two, or one beside the base, where the method takes no more)."""
    base, tuned = _given(method, dtype)
    return method.whole, {"base": base, "tuned": tuned, "seed": 0}


def reference_number(method: Any, inputs: dict[str, Any]) -> list[float]:
    """The merged tensor, flat, of base and tuned given as nested lists."""
    base = torch.tensor(inputs["base"]) if inputs.get("base") is not None else None
    return method.whole(base, torch.tensor(inputs["tuned"]), inputs.get("seed", 0)).flatten().tolist()


def words_known(cls: type[Merge]) -> None:
    """The arguments are words of the closed list, the models' weights among them."""
    asked = [*cls.needs(), *cls.wishes()]
    expect("tuned" in asked, "merge does not ask for tuned, so it cannot merge anything")
    known = ("base", "tuned", "seen", "generator")
    for word in asked:
        expect(word in WORDS and word in known, f"argument {word!r} is no word the tensors engine has: {', '.join(known)}")


def shape_kept(cls: type[Merge]) -> None:
    """Matrices and vectors come out in the shape and type of the base, finite."""
    for shape in (SHAPE, (7,)) if not cls.rows else (SHAPE, (1, 7)):
        base, tuned = _given(cls(), torch.float32, shape)
        merged = cls().whole(base, tuned)
        expect(merged.shape == shape and merged.dtype == torch.float32, f"{tuple(shape)} became {tuple(merged.shape)} {merged.dtype}")
        expect(torch.isfinite(merged).all(), "the merged tensor is not finite")


def equal_models(cls: type[Merge]) -> None:
    """Models that are all equal give that model, whatever the base, where nothing is cut and the changes are averaged."""
    method = _full(cls, normalize=True)
    base, tuned = _given(method, torch.float32)
    tuned[:] = tuned[0]
    expect(torch.allclose(method.whole(base, tuned), tuned[0], atol=1e-6), "equal models do not give that model")


def one_model(cls: type[Merge]) -> None:
    """One model, nothing cut, at scale 1, gives itself."""
    if cls.takes[0] > 1:
        return
    method = _full(cls)
    base, tuned = _given(method, torch.float32)
    expect(torch.allclose(method.whole(base, tuned[:1]), tuned[0], atol=1e-6), "one model at scale 1 does not give itself")


def base_kept(cls: type[Merge]) -> None:
    """Models equal to the base give the base, with the default settings."""
    if "base" not in cls.needs():
        return
    base, tuned = _given(cls(), torch.float32)
    merged = cls().whole(base, base.expand_as(tuned).clone())
    expect(torch.allclose(merged, base, atol=1e-6), "models equal to the base do not give the base")


def order_free(cls: type[Merge]) -> None:
    """The order of the models does not matter; a method with random draws may differ in the draws only."""
    if "generator" in cls.needs():
        method = _full(cls)
    else:
        method = cls()
    base, tuned = _given(method, torch.float32)
    gap = (method.whole(base, tuned) - method.whole(base, tuned.flip(0))).abs().max().item()
    expect(gap < 1e-5, f"turning the order of the models changes the merge by {gap:.2g}")


def chunks(cls: type[Merge]) -> None:
    """A tensor merged in two chunks equals the tensor merged whole, random draws apart."""
    method = _full(cls) if "generator" in cls.needs() else cls()
    base, tuned = _given(method, torch.float32)
    seen: list[Tensor] = []
    cuts = [slice(0, 2), slice(2, None)]
    parts = [(base[cut], tuned[:, cut]) for cut in cuts]
    while (found := [method.look(*part, seen) for part in parts])[0] is not None:
        seen.append(torch.stack([part for part in found if part is not None]).sum(0))
    settled = method.settle(seen, len(tuned))
    import numpy as np

    asked = (*cls.needs(), *cls.wishes())
    merged = []
    for part_base, part in parts:
        given: dict[str, Any] = {"base": part_base, "tuned": part, "seen": settled, "generator": np.random.default_rng(0)}
        merged.append(method.merge(**{word: given[word] for word in asked}))
    whole = method.whole(base, tuned)
    expect(torch.allclose(torch.cat(merged), whole, atol=1e-6), "two chunks do not give what the whole tensor gives")


def seeds(cls: type[Merge]) -> None:
    """A method with random draws gives other results for other seeds, the same for the same."""
    if "generator" not in cls.needs():
        return
    base, tuned = _given(cls(), torch.float32)
    first, again, other = (cls().whole(base, tuned, seed) for seed in (0, 0, 1))
    expect(same(first, again), "the same seed gives two results")
    expect(not same(first, other), "another seed gives the same result")


def compiled(cls: type[Merge]) -> None:
    """What the method says of itself as numbers, run by compiled code, gives the merge that it makes in torch."""
    from ..engines.merging import fused

    method = cls()
    if not fused.available() or method.fused(method.takes[0]) is None:
        return
    base, tuned = _given(method, torch.float32)
    found = fused.whole(method, base if "base" in cls.asked() else None, tuned.numpy())
    gap = (torch.tensor(found) - method.whole(base, tuned)).abs().max().item()
    expect(gap < 1e-5, f"compiled code and torch differ by {gap:.2g}")


def _full(cls: type[Merge], **more: Any) -> Any:
    return cls(**{key: value for key, value in {**FULL, **more}.items() if key in cls.settings()})


def _given(method: Any, dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    """Base and tuned models, small changes around the base, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    tuned = base + 0.1 * torch.randn(min(max(3, method.takes[0]), method.takes[1]), *shape, generator=generator)
    return base.to(dtype), tuned.to(dtype)

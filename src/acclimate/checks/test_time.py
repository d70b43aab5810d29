"""Checks for methods that adapt while they predict: they run on two modalities, reset exactly, and cope with single rows."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..engines.online import Online
from ..engines.shift import Learner, fit
from ..engines.shift.loop import seeded
from ..engines.shift.plays import as_plays
from ..kinds import TestTime
from . import _shifted, tiny
from .common import expect


def example(method: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Scores of one batch, no weight being changed."""
    made, _ = _shifted.source_model("table")

    def scores(learner: Learner, x: Tensor) -> Tensor:
        return _driven(method, copy.deepcopy(learner), x)[0]

    return scores, {"learner": made.to(dtype), "x": _rows("table")[:8].to(dtype)}


def reference_number(method: Any, inputs: dict[str, Any]) -> list[float]:
    """Scores of the last of several batches x [batch, row, column]: x are the features, ``head`` the head without bias.

    Weights stay as they are; with ``losses`` what the last batch yields instead. With ``featurizer`` [width, column] features are its
    products with x.
    """
    made = _shifted.headed(inputs["head"])
    if "featurizer" in inputs:
        made.featurizer = _shifted.headed(inputs["featurizer"]).head
    _driven(method, made, torch.tensor(inputs["x"][0]), filled=True)
    for x in inputs["x"][1:-1]:
        _driven(method, made, torch.tensor(x), first=False)
    scores, losses = _driven(method, made, torch.tensor(inputs["x"][-1]), first=len(inputs["x"]) == 1, filled=True)
    return losses if inputs.get("losses") else scores.flatten().tolist()


def modalities(cls: type[TestTime]) -> None:
    """It predicts on rows of numbers and on images: one score per row and class, finite ones."""
    for name in _shifted.MODALITIES:
        online, rows = _online(cls, name), _rows(name)
        for x in rows.split(8):
            scores = online.predict(x)
            expect(scores.shape == (len(x), 2), f"scores of {len(x)} rows of {name} have the shape {list(scores.shape)}, not [row, class]")
            expect(bool(scores.isfinite().all()), f"scores of {name} are not finite")


def resets(cls: type[TestTime]) -> None:
    """After a stream, reset brings back every weight and buffer, and the stream gives the same scores again."""
    for name in _shifted.MODALITIES:
        online, rows = _online(cls, name), _rows(name)[:16].split(8)
        before = copy.deepcopy(online.learner)
        first = online.run(rows)
        online.reset()
        _shifted.equal(before, online.learner, f"reset leaves other weights behind on {name}")
        expect(all(map(torch.equal, first, online.run(rows))), f"after reset the same stream of {name} gives other scores; use memory")


def single_rows(cls: type[TestTime]) -> None:
    """A stream of single images is predicted, with finite scores."""
    online = _online(cls, "images")
    for x in _rows("images")[:4].split(1):
        expect(bool(online.predict(x).isfinite().all()), "a batch of one image gives scores that are not finite")


def labels_unseen(cls: type[TestTime]) -> None:
    """Adapting asks for rows and the learner, and for nothing else."""
    from ..method import arguments

    asked = list(arguments(cls, "adapt"))
    expect(asked == ["learner", "x"], f"adapt asks for {', '.join(asked)}; a stream has rows only")


def _online(cls: Any, modality: str) -> Online:
    return Online(cls(), copy.deepcopy(_trained(cls, modality)), source=_shifted.MODALITIES[modality]().source)


@cache
def _trained(cls: Any, modality: str) -> Learner:
    made, method = _shifted.learner(modality, normed=True), cls()
    fit(method, made, _shifted.MODALITIES[modality](), _shifted.training(method, steps=40, choose="last", **_shifted.QUICK))
    return made


def _rows(modality: str) -> Tensor:
    target = _shifted.MODALITIES[modality]().target
    assert target is not None
    return target.x[:24]


def _driven(method: Any, made: Learner, x: Tensor, first: bool = True, filled: bool = False) -> tuple[Tensor, list[float]]:
    """Scores and losses of one batch, with the weights as they are."""
    import inspect

    losses: list[float] = []
    with seeded(0, made):
        if first and not made.parts:
            made.sample = x[:1]
            made.parts.update({name: part.to(x.dtype) for name, part in method.build(made).items()})
            if filled:
                tiny.fill(weight for weight in made.parts.parameters() if weight.requires_grad)
            method.begin(made, _source(made, x), None)
        made.eval()
        made.generator.manual_seed(0)
        found: Any = method.adapt(made, x)
        while inspect.isgenerator(found):
            try:
                losses += [loss.item() for loss, _ in as_plays(next(found))]
            except StopIteration as end:
                found = end.value
    return found.detach(), losses


def _source(made: Learner, x: Tensor) -> Any:
    from ..engines.shift import Batch

    y = torch.arange(len(x)) % made.classes
    return Batch(x, y, torch.zeros(len(x), dtype=torch.long), torch.arange(len(x)), [len(x)])

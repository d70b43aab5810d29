"""Checks for query strategies: as many different rows of the pool as were asked for, on two modalities; rounds that resume."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engines.active import Rounds, learn
from ..engines.shift import Learner, whole
from ..engines.shift.loop import seeded
from ..kinds import ActiveLearning
from . import _shifted
from .common import expect


def example(method: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The rows that are wanted of a target, by a model that was trained on the sources."""
    made, _ = _shifted.source_model("table")
    target = _shifted.table().target
    assert target is not None
    return lambda learner, x: _wanted(method, copy.deepcopy(learner), x, 6), {"learner": made.to(dtype), "x": target.x.to(dtype)}


def reference_number(method: Any, inputs: dict[str, Any]) -> list[float]:
    """The rows wanted of x [row, column], which are the features; ``head`` [class, column] is the head without bias."""
    made = _shifted.headed(inputs["head"])
    return [float(row) for row in _wanted(method, made, torch.tensor(inputs["x"]), inputs["budget"])]


def rows_of_the_pool(cls: type[ActiveLearning]) -> None:
    """As many different rows of the pool as were asked for, up to all of them, on rows of numbers and on images."""
    for name in _shifted.MODALITIES:
        made, data = _shifted.source_model(name)
        assert data.target is not None
        for budget in (1, 5, len(data.target)):
            found = _wanted(cls(), copy.deepcopy(made), data.target.x, budget)
            expect(len(set(found)) == budget, f"{budget} rows of {name} were asked for, but {len(set(found))} different ones came")
            expect(all(0 <= row < len(data.target) for row in found), f"rows of {name} lie outside the pool")


def resumes(cls: type[ActiveLearning]) -> None:
    """Run again in its folder it asks for the same rows and ends with the same weights, and labels make it better than none."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for where in (Path(folder), Path(folder), None):
            method = cls()
            made, data = _start(cls)
            oracle = _shifted.table().oracle
            assert oracle is not None
            training = _shifted.training(method, steps=30, choose="last", **_shifted.QUICK)
            done = learn(method, made, data, oracle, Rounds(rounds=2, share=0.1), training, folder=where)
            results.append((done.rows, [value.clone() for value in made.state_dict().values()]))
    first = results[0]
    for rows, weights in results[1:]:
        expect(rows == first[0], "run again it asks for other rows; take draws from learner.generator")
        expect(all(map(torch.equal, weights, first[1])), "run again it ends with other weights")


def _start(cls: type[ActiveLearning]) -> tuple[Learner, Any]:
    made, data = _shifted.source_model("table")
    return (made, data) if cls.source_free() else (made, _shifted.table())


def _wanted(method: Any, made: Learner, x: Tensor, budget: int) -> list[int]:
    from ..engines.shift import Pool

    with seeded(0, made):
        made.parts.update(method.build(made))
        made.eval()
        return [int(row) for row in method.query(made, whole([Pool("target", x)]), budget)]

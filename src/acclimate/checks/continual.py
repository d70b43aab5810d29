"""Checks for continual methods: a stream on two modalities, resume between and within tasks, one task as plain training, rows not kept."""

import contextlib
import tempfile
from pathlib import Path

import torch

from ..engines.continual import Learned, Memory, class_stream, domain_stream, learn
from ..engines.shift import Data, Learner, fit
from ..kinds import Continual
from ..method import arguments, load
from . import _shifted
from ._shifted import example, reference_number
from .common import expect

__all__ = ["example", "reference_number"]


def words_known(cls: type[Continual]) -> None:
    """The arguments of step are words of the closed list."""
    _shifted.check_words(cls)


def streams(cls: type[Continual]) -> None:
    """It learns domains and classes one after another, on rows of numbers and on images; figures are shares, weights finite.

    Where it can learn without labels, only the first domain has some.
    """
    for name in _shifted.MODALITIES:
        made, done = _learned(cls, name)
        expect(len(done.matrix) == 3 and all(0 <= v <= 1 for row in done.matrix for v in row), f"the matrix of {name} is {done.matrix}")
        expect(all(bool(v.isfinite().all()) for v in made.state_dict().values()), f"a stream of {name} leaves weights that are not finite")
    pool = _shifted.table().labelled[0]
    made, method = _shifted.learner("table"), cls()
    tasks = class_stream(pool, pool, 1)
    learn(method, made, tasks, _shifted.training(method, steps=4, **_shifted.QUICK), Memory(per_class=4))


def resumes(cls: type[Continual]) -> None:
    """Killed within the second task and run again it ends with the weights, the memory's rows and the figures of a run that was not."""
    whole, told = _learned(cls, "table")
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(KeyboardInterrupt):
            _learned(cls, "table", folder=Path(folder), dies=9)
        again, figures = _learned(cls, "table", folder=Path(folder))
    _shifted.equal(whole, again, "killed and resumed it ends with other weights; keep what it needs in learner.memory")
    expect(figures.matrix == told.matrix, "killed and resumed it measures other figures")


def first_task_is_plain_training(cls: type[Continual]) -> None:
    """With one task there is nothing to forget, so the weights are those of plain training."""
    method, pool = cls(), _shifted.table().labelled[0]
    made, plain = _shifted.learner("table"), _shifted.learner("table")
    training = _shifted.training(method, steps=10, choose="last", **_shifted.QUICK)
    learn(method, made, domain_stream([(pool, pool)]), training, Memory(per_class=4))
    fit(load("continual.fine_tuning"), plain, Data([pool]), training)
    wrong = [name for name, value in plain.state_dict().items() if not torch.allclose(value, made.state_dict()[name], atol=1e-6)]
    expect(not wrong, f"one task gives other weights than plain training: {', '.join(wrong[:3])}")


def _learned(cls: type[Continual], modality: str, *, folder: Path | None = None, dies: int = 0) -> tuple[Learner, Learned]:
    made, method, pools = _shifted.learner(modality), cls(), _shifted.MODALITIES[modality]().labelled
    if dies:
        _shifted.killed(method, dies)
    training = _shifted.training(method, steps=6, checkpoints=2)
    tasks = domain_stream([(pool, pool) for pool in pools], labelled=1 if "target" in arguments(cls, "step") else None)
    return made, learn(method, made, tasks, training, Memory(per_class=4), folder=folder)

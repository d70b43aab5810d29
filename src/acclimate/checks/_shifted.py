"""Checks of every method that trains a learner under shift, on rows of two modalities; the rooms' own files add theirs."""

import contextlib
import copy
import itertools
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..domain.graphs import Graph
from ..engines.shift import Batch, Data, Learner, Pool, Training, accuracy, fit, predict
from ..engines.shift.loop import seeded
from ..engines.shift.plays import as_plays
from ..method import arguments, load
from ..words import WORDS
from . import tiny
from .common import expect

STEPS = 6


def table(target: bool = True) -> Data:
    """Three labelled domains of two classes in four columns, each shifted a little, and a target that is shifted further.

    The first two columns tell the classes; the other two say which domain a row is of. In the target the first two are moved as well, so
    that plain training on the sources takes many rows of one class for the other.
    """
    draw = torch.Generator().manual_seed(0)
    pools = []
    for number, shift in enumerate([0.0, 0.4, -0.4, 1.6]):
        y = torch.arange(48) % 2
        x = 0.5 * torch.randn(48, 4, generator=draw)
        x[:, :2] += 2.0 * y[:, None] - 1
        x[:, 2:] += shift
        if number == 3:
            x[:, :2] += 1.4
        pools.append(Pool(f"domain {number}", x, y, about=torch.tensor([float(number), shift])))
    sources, last = pools[:3], pools[3]
    gaps = (torch.arange(4.0)[:, None] - torch.arange(4.0)).abs()
    return Data(
        sources, last.unlabelled() if target else None, sources, ["no", "yes"],
        gaps if target else gaps[:3, :3], oracle=last,
    )  # fmt: skip


def images(target: bool = True) -> Data:
    """The same as pictures of 8 x 8 in one colour: a bar that lies or stands, on a brightness of the domain's own."""
    draw = torch.Generator().manual_seed(1)
    pools = []
    for number, light in enumerate([0.1, 0.3, 0.2, 0.6]):
        y = torch.arange(24) % 2
        x = light + 0.1 * torch.rand(24, 1, 8, 8, generator=draw)
        for row, kind in enumerate(y.tolist()):
            place = int(torch.randint(1, 7, (1,), generator=draw))
            (x[row, 0, place] if kind else x[row, 0, :, place]).add_(0.5)
        pools.append(Pool(f"domain {number}", x, y, about=torch.tensor([float(number), light])))
    gaps = (torch.arange(4.0)[:, None] - torch.arange(4.0)).abs()
    return Data(pools[:3], pools[3].unlabelled() if target else None, (), ["lies", "stands"], gaps if target else gaps[:3, :3])


MODALITIES = {"table": table, "images": images}


@cache
def graphs() -> list[Graph]:
    """The table's rows as nodes with about six neighbours each, of both classes in the sources and of their own in the target."""
    found = []
    for number, pool in enumerate([*table().labelled, table().oracle]):
        draw, x, y = np.random.default_rng(number), pool.x.numpy(), pool.y.numpy()  # type: ignore[union-attr]
        ends = draw.integers(len(y), size=(2, 6 * len(y)))
        likely = np.where(y[ends[0]] == y[ends[1]], 1.0, 0.2 * (number < 3))
        found.append(Graph(f"domain {number}", x, ends[:, draw.random(ends.shape[1]) < likely], y, ["no", "yes"]))
    return found


def graph(target: bool = True) -> Data:
    """The numbers of these nodes, graph after graph."""
    from ..models.graph import GraphNet

    given, pools = table(target), GraphNet(4, 8, 2).attach(graphs())
    pools = [replace(pool, about=torch.tensor([float(number)])) for number, pool in enumerate(pools)]
    return replace(given, labelled=pools[:3], target=pools[3].unlabelled() if target else None, validation=pools[:3], oracle=pools[3])


ROWS: dict[str, Any] = {**MODALITIES, "graph": graph}


def forms(cls: Any) -> dict[str, Any]:
    """The kinds of rows that a method is checked on, the first one as its usual one."""
    return {"graph": graph} if cls.form else MODALITIES


def learner(modality: str, seed: int = 0, normed: bool = False) -> Learner:
    """A network for one of them: two layers (with layer-norm where ``normed``), or a small convolutional one with batch-norm."""
    from ..models.convnet import ConvNet
    from ..models.graph import GraphNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if modality == "graph":
            net = GraphNet(4, 8, 2)
            net.attach(graphs())
            return Learner(net, ["no", "yes"])
        if modality == "table":
            return Learner(
                nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16) if normed else nn.Identity(), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()),
                ["no", "yes"],
                width=8,
            )
        return Learner(ConvNet(width=4, channels=1), ["lies", "stands"])


def training(method: Any, **given: Any) -> Training:
    """The method's own training settings, short and in small batches."""
    return Training(**{**method.training, "batch": 8, "target_batch": 0, "steps": STEPS, **given})


def example(method: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The losses of one step on the table (or on graphs), no weight being changed in between."""
    form, data = next(iter(forms(type(method)).items()))
    made, data = learner(form).to(dtype), data()
    arrays = {"source": torch.cat([pool.x[:8] for pool in data.labelled]), "target": data.target.x[:24]}
    arrays = {name: x.to(dtype) if x.is_floating_point() else x for name, x in arrays.items()}
    y = torch.cat([pool.y[:8] for pool in data.labelled if pool.y is not None])

    def losses(learner: Learner, source: Tensor, target: Tensor) -> list[Tensor]:
        return one_step(method, copy.deepcopy(learner), source, y, [8] * 3, target)

    return losses, {"learner": made, **arrays}


def reference_number(method: Any, inputs: dict[str, Any]) -> list[float]:
    """The losses of one step: x [row, column] are the features, ``head`` [class, column] the head without bias, parts filled by tiny.fill.

    ``sizes`` are rows per source domain; ``step`` and ``progress`` where they matter. With ``predict`` the scores of these rows instead.
    With ``edges`` (of each domain, the target last [domain][2, edge]) rows are nodes, and features come from layers filled by tiny.fill.
    ``memory`` is what a continual method remembers at this step, and ``replay`` {x, y} the rows it kept.
    """
    if "edges" in inputs:
        return _graph_number(method, inputs)
    made = headed(inputs["head"])
    made.step, made.progress = inputs.get("step", 0), inputs.get("progress", 0.0)
    source = torch.tensor(inputs["source"])
    target = torch.tensor(inputs["target"]) if inputs.get("target") else None
    kept = {"memory": _tensors(inputs.get("memory", {})), "replay": _tensors(inputs.get("replay"))}
    losses = one_step(method, made, source, torch.tensor(inputs["y"]), inputs["sizes"], target, filled=True, **kept)
    if "predict" in inputs:
        return method.predict(made, torch.tensor(inputs["predict"])).flatten().tolist()
    return [loss.item() for loss in losses]


def _tensors(given: Any) -> Any:
    """What JSON holds, its matrices as tensors."""
    if isinstance(given, dict):
        return {key: _tensors(value) for key, value in given.items()}
    return torch.tensor(given) if given and isinstance(given[0], list) else given


def _graph_number(method: Any, inputs: dict[str, Any]) -> list[float]:
    from ..models.graph import GraphNet

    rows = [*np.split(np.array(inputs["source"], np.float32), np.cumsum(inputs["sizes"])[:-1]), np.array(inputs["target"], np.float32)]
    net = GraphNet(rows[0].shape[1], len(inputs["head"][0]), inputs.get("depth", 2))
    tiny.fill(net.parameters())
    labels = [*np.split(np.array(inputs["y"]), np.cumsum(inputs["sizes"])[:-1]), np.zeros(len(rows[-1]), int)]
    names = [str(number) for number in range(len(inputs["head"]))]
    given = zip(rows, inputs["edges"], labels, strict=True)
    pools = net.attach([Graph(f"domain {number}", x, np.array(e), y, names) for number, (x, e, y) in enumerate(given)])
    made = headed(inputs["head"])
    made.featurizer, made.step, made.progress = net, inputs.get("step", 0), inputs.get("progress", 0.0)
    x = torch.cat([pool.x for pool in pools[:-1]])
    return [loss.item() for loss in one_step(method, made, x, torch.tensor(inputs["y"]), inputs["sizes"], pools[-1].x, filled=True)]


def headed(head: list[list[float]]) -> Learner:
    """A learner whose features are the rows themselves, with a given head [class, column] without bias."""
    weight = torch.tensor(head)
    linear = nn.Linear(weight.shape[1], len(weight), bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return Learner(nn.Identity(), len(weight), width=weight.shape[1], head=linear)


def one_step(
    method: Any, made: Learner, source: Tensor, y: Tensor, sizes: list[int], target: Tensor | None = None, filled: bool = False,
    memory: dict[str, Any] | None = None, replay: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    """The losses that one step yields, after ``build``, ``begin`` and ``refresh``, with the weights as they are."""
    count = len(sizes)
    domain = torch.repeat_interleave(torch.arange(count), torch.tensor(sizes))
    batch = Batch(source, y, domain, torch.arange(len(source)), sizes)
    other = None
    if target is not None:
        other = Batch(target, None, torch.full((len(target),), count), torch.arange(len(target)), [len(target)])
    made.domains = [f"domain {number}" for number in range(count + (other is not None))]
    made.sources = count
    made.distances = (torch.arange(len(made.domains))[:, None] - torch.arange(len(made.domains))).abs().float()
    kind = next(made.parameters()).dtype
    made.about = torch.arange(len(made.domains)).to(kind)[:, None]
    made.sample = (target if method.source_free() and target is not None else source)[:1]
    words: dict[str, Any] = {"learner": made, "source": batch, "domains": batch, "target": other}
    with seeded(0, made):
        made.parts.update({name: part.to(kind) for name, part in method.build(made).items()})
        if filled:
            tiny.fill(made.parts.parameters())
        if method.fresh and other:
            method.adopt(made, made, other.x)
        method.begin(made, batch, other)
        method.refresh(made, batch, other)
        made.memory.update(memory or {})
        if replay:
            rows = len(replay["y"])
            words["replay"] = Batch(replay["x"], torch.tensor(replay["y"]), torch.zeros(rows), torch.arange(rows), [rows])
        asked = arguments(type(method), "step")
        found = list(method.step(**{name: words[name] for name in asked if name in words}))
    return [loss.detach() for given in found for loss, _ in as_plays(given)]


# checks that rooms share: each takes the class


def check_words(cls: Any) -> None:
    """The arguments of step are words of the closed list."""
    for word in arguments(cls, "step"):
        expect(word in WORDS, f"argument {word!r} of step is no word: see words.py")
    expect("learner" in arguments(cls, "step"), "step does not ask for the learner, so nothing can learn")


def check_modalities(cls: Any) -> None:
    """It runs on rows of numbers and on images (or on graphs, where it is for these), moves weights, and leaves finite ones."""
    for name in forms(cls):
        made, before = unbroken(cls, name), dict(start(cls, name)[0].named_parameters())
        now = dict(made.named_parameters())
        expect(any(not torch.equal(before[key], now[key]) for key in before), f"training on {name} moves no weight")
        expect(all(bool(value.isfinite().all()) for value in now.values()), f"training on {name} leaves weights that are not finite")


def check_same_seed(cls: Any) -> None:
    """The same seed gives the same weights."""
    usual = next(iter(forms(cls)))
    equal(unbroken(cls, usual), trained(cls, usual), "the same seed gives other weights")


def check_resumes(cls: Any) -> None:
    """A run that is killed on its way ends with the weights of one that is not."""
    for name in forms(cls):
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(KeyboardInterrupt):
                trained(cls, name, folder=Path(folder), dies=5)
            again = trained(cls, name, folder=Path(folder))
        equal(unbroken(cls, name), again, f"killed and resumed on {name} it ends elsewhere; keep what it needs in learner.memory")


def check_learns(cls: Any, least: float = 0.9) -> None:
    """On rows that can be learned, it learns: ``least`` of the source rows are right, or of the target's where no source is seen."""
    (made, data), method = taught(cls), cls()
    pools = data.labelled or [data.oracle or data.labelled[0]]
    found = sum(_among_known(method, made, pool) for pool in pools) / len(pools)
    expect(found >= least, f"after {_lesson(cls)} steps {found:.0%} of the rows are right, fewer than {least:.0%}")


def _among_known(method: Any, made: Learner, pool: Pool) -> float:
    """Accuracy of the best class of the learner's own: a last column "unknown" is left out."""
    if not method.open:
        return accuracy(method, made, pool)
    assert pool.y is not None
    return float((predict(method, made, pool.x)[:, : made.classes].argmax(1) == pool.y).float().mean())


def check_beats_source_only(cls: Any) -> None:
    """On a target that is moved away from the sources, more rows are right than after plain training on the sources."""
    plain, data = source_model(next(iter(forms(cls))))
    (made, _), method = taught(cls), cls()
    erm = load("domain_generalization.erm")
    assert data.oracle is not None
    before, after = accuracy(erm, plain, data.oracle), accuracy(method, made, data.oracle)
    expect(after > before, f"{after:.0%} of the target's rows are right, but {before:.0%} after plain training on the sources")


@cache
def taught(cls: Any) -> tuple[Learner, Data]:
    """A learner after a whole lesson on the usual rows, made once for all checks: to be read, not to be changed."""
    made, data = start(cls, next(iter(forms(cls))))
    method = cls()
    fit(method, made, data, training(method, steps=_lesson(cls), batch=24, choose="last", **QUICK))
    return made, data


def _lesson(cls: Any) -> int:
    """Steps: more where a target is to be won than where sources alone are learned."""
    return 300 if cls.room == "domain_adaptation" and "beats_source_only" not in cls.exempt else 150


QUICK: dict[str, Any] = {"optimizer": "adam", "lr": 0.003, "schedule": "constant", "rates": None, "weight_decay": 0.0}


def start(cls: Any, modality: str) -> tuple[Learner, Data]:
    """What a method starts from: a fresh learner and all data, or a source model and the target where no source row may be seen."""
    if not cls.source_free():
        return learner(modality), ROWS[modality]()
    model, data = source_model(modality, cls().vendor().name)
    if not cls.fresh:
        return model, data
    made = learner(modality, seed=1)
    cls().adopt(made, model, data.target.x)  # type: ignore[union-attr]
    return made, data


@cache
def _source_model(modality: str, vendor: str) -> Learner:
    data, made, method = ROWS[modality](), learner(modality), load(vendor)
    fit(method, made, replace(data, target=None, oracle=None), training(method, steps=300, batch=24, choose="last", **QUICK))
    return made


def source_model(modality: str, vendor: str = "domain_generalization.erm") -> tuple[Learner, Data]:
    """A learner that a method (plain training unless said) made of the sources, and the data without the sources."""
    made, data = copy.deepcopy(_source_model(modality, vendor)), ROWS[modality]()
    return made, Data(target=data.target, classes=data.classes, oracle=data.oracle)


def trained(cls: Any, modality: str, *, folder: Path | None = None, dies: int = 0) -> Learner:
    """A learner after a few steps with the method's own training settings; ``dies`` is the step at which the process is killed."""
    made, data = start(cls, modality)
    method = cls()
    if dies:
        killed(method, dies)
    fit(method, made, data, training(method, choose="last", checkpoints=2), folder=folder)
    return made


@cache
def unbroken(cls: Any, modality: str) -> Learner:
    """What ``trained`` makes of a run that nobody kills, made once for all checks: to be read, not to be changed."""
    return trained(cls, modality)


def killed(method: Any, at: int) -> None:
    """Let a method's process die when its step is called for the time of this number."""
    step, count = method.step, itertools.count(1)

    def dying(**words: Any) -> Any:
        if next(count) >= at:
            raise KeyboardInterrupt
        yield from step(**words)

    method.step = dying


def equal(one: Learner, two: Learner, message: str) -> None:
    """Weights and buffers are the same, bit for bit."""
    first, second = one.state_dict(), two.state_dict()
    wrong = [name for name in first if not torch.equal(first[name], second[name])]
    expect(not wrong, f"{message}: {', '.join(wrong[:3])}")

"""One method on one target: trained, and measured as its room measures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from ..engines import active
from ..engines.online import Online, stream
from ..engines.pygda import PREFIX, PygdaModel
from ..engines.shift import Data, Learner, Pool, Training, fit, right
from ..engines.shift.pools import whole
from ..errors import AcclimateError, nearest
from ..kinds import Strategy
from ..method import Setting, Settings, arguments, find, load, names
from .domains import Scale

Make = Callable[[int], Learner]  # seed -> learner


@dataclass
class Seen:
    """What a run may see; the rows that it is measured on at the end; how the target's columns were standardised."""

    data: Data
    test: Pool
    sources: list[Pool]
    pool: Pool  # the target's training rows with labels: only active learning asks for some
    scale: Scale | None = None
    new: Sequence[str] = ()  # the target's classes that no source has; their rows are labelled by the number of classes


@dataclass
class Outcome:
    """A learner, which test rows it got right [row], and what there is to tell of the run."""

    learner: Learner
    right: Tensor
    told: dict[str, Any]


class Stream(Settings):
    """How a target comes in at test time."""

    rows: Annotated[int, Setting("rows of the stream that come in at a time", 1)] = 64


def method_named(name: str, settings: dict[str, Any], rooms: Sequence[str]) -> Any:
    """A method of some rooms by its full name or by what stands behind the dot; ``pygda.NAME`` is a model of that package."""
    if name.startswith(PREFIX):
        return method_of(name, settings)
    known = [full for room in rooms for full in names(room)]
    full = name if "." in name else next((each for each in known if each.partition(".")[2] == name), "")
    if full not in known:
        short = [each.partition(".")[2] for each in known]
        raise AcclimateError(f"no method {name!r} of {', '.join(rooms)}{nearest(name, [*known, *short])}")
    if issubclass(find(full), Strategy):
        raise AcclimateError(f"{full} works through the training of language models; name it with use: in a recipe (acclimate run)")
    return method_of(full, settings)


def method_of(full: str, settings: dict[str, Any]) -> Any:
    """A method by its full name, of whatever room, or a model of pygda; no list of names is made."""
    return PygdaModel(full, **settings) if full.startswith(PREFIX) else load(full, **settings)


def plan_of(room: str) -> list[type[Settings]]:
    """What a room takes beside training: the stream and its rates, the rounds of queries."""
    kinds: dict[str, list[type[Settings]]] = {"test_time": [Stream, Training], "active_learning": [active.Rounds]}
    return kinds.get(room, [])


def run(method: Any, seen: Seen, make: Make, training: dict[str, Any], plan: dict[str, Any]) -> Outcome:
    """Train a method on what it may see, with the training its paper names unless ``training`` says otherwise.

    A source-free method starts from a model that its vendor (mostly ERM) trained on the sources. ``plan`` holds settings of plan_of. For
    batches of several domains see :func:`training_of`.
    """
    if method.room == "pygda":
        return _packaged(method, seen, make, training)
    own = training_of(method, training, len(seen.data.labelled))
    if method.room == "test_time":
        return _streamed(method, seen, make, own, plan)
    learner, data = make(own.seed), seen.data
    if method.room == "active_learning":
        return _queried(method, seen, learner, own, plan)
    if method.source_free():
        fit(method.vendor(), learner, replace(data, target=None, oracle=None), Training(**training))
        if method.fresh and data.target:
            model, learner = learner, make(own.seed + 1)
            method.adopt(learner, model, data.target.x)
    elif "target" not in method.asked():
        data = replace(data, target=None)
    done = fit(method, learner, data, own)
    return Outcome(learner, right(method, learner, seen.test), {"step": done.kept, "choice": done.choice})


def training_of(method: Any, given: dict[str, Any], sources: int) -> Training:
    """The training that a method's paper names, unless ``given`` says otherwise, with batches for so many sources.

    A paper's batch of *the* source is shared among the sources. Where a method looks at domains one by one, a target is one of them, with
    as many rows as each.

    >>> dann, shot, mmd = (load(name) for name in ("domain_adaptation.dann", "domain_adaptation.shot", "domain_generalization.mmd"))
    >>> training_of(dann, {}, 11).batch, training_of(dann, {"batch": 32}, 11).batch, training_of(shot, {}, 11).batch
    (6, 32, 64)
    >>> training_of(mmd, {}, 11).target_batch
    32
    """
    own, asked = {**method.training, **given}, arguments(type(method), "step")
    if "target_batch" not in own and "target" in asked:
        if "domains" in asked:
            own["target_batch"] = Training(**own).batch
        elif "source" in asked and "batch" in method.training and "batch" not in given:
            own["batch"] = -(-own["batch"] // max(1, sources))
    return Training(**own)


def _packaged(method: PygdaModel, seen: Seen, make: Make, training: dict[str, Any]) -> Outcome:
    """A package's own model on all nodes of the graphs."""
    learner = make(int(training.get("seed", 0)))
    method.fit(learner, [*seen.data.labelled, *seen.data.validation, *seen.sources], seen.test, training)
    return Outcome(learner, right(method, learner, seen.test), {"step": training.get("steps"), "choice": "last"})


def _streamed(method: Any, seen: Seen, make: Make, training: Training, plan: dict[str, Any]) -> Outcome:
    """A source model that meets the target's test rows once, in batches: right where it was right as they came."""
    learner = make(training.seed)
    done = fit(method, learner, replace(seen.data, target=None, oracle=None), training)
    given = {**method.training, **method.online, "seed": training.seed, **plan}
    batch = given.pop("rows", Stream().rows)
    online = Online(method, learner, Training(**given), source=whole(seen.data.labelled))
    hits = []
    for x, y in stream(seen.test, batch, seed=training.seed):
        assert y is not None
        hits.append((online.predict(x).argmax(1) == y).float())
    return Outcome(learner, torch.cat(hits), {"step": done.kept, "choice": done.choice, "updates": online.updates})


def _queried(method: Any, seen: Seen, learner: Learner, training: Training, plan: dict[str, Any]) -> Outcome:
    """A source model that asks for labels of the target's training rows, round after round."""
    first = load("domain_generalization.erm")
    fit(first, learner, replace(seen.data, target=None, oracle=None), Training(**{**training.values(), "choose": "source_validation"}))
    rounds = active.Rounds(**{"warm": False, **plan})
    asked = active.learn(method, learner, replace(seen.data, target=None), seen.pool, rounds, training, test=seen.test)
    labels = sum(len(rows) for rows in asked.rows)
    told = {"step": training.steps, "choice": "last", "labels": labels, "by_round": asked.accuracy}
    return Outcome(learner, right(method, learner, seen.test), told)

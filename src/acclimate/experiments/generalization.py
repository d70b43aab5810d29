"""What experiments in domain generalization share: images in several styles, and each style left out in turn."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import datasets
from .shift_sets import Cut, Sizes, gathered, made_up

if TYPE_CHECKING:
    from ..engines.shift import Learner, Pool, Training

STYLES = ("photo", "art_painting", "cartoon")
Tell = Callable[[str, str, Any, "Learner"], None]


def pictures(name: str, sizes: Sizes, seed: int) -> Cut:
    """PACS in one style [row, 3, 32, 32]."""
    given = datasets.load(f"pacs/{name}")
    x, y = given.tensors()
    return Cut.of(name, x, y, given.classes, sizes, seed)


def made_up_images(name: str) -> Cut:
    """Three classes on a brightness of the domain's own, for tiny runs [row, 3, 8, 8]; names are single letters."""
    return made_up(name, (3, 8, 8), 3, ord(name) - ord("a"))


def everything(cut: Cut) -> "Pool":
    """All rows of a domain that nobody learned from."""
    import torch

    from ..engines.shift import Pool

    pools = [cut.train, cut.validation, cut.test]
    return Pool(cut.train.name, torch.cat([pool.x for pool in pools]), torch.cat([pool.y for pool in pools if pool.y is not None]))


def learner_for(cut: Cut, seed: int, width: int = 16) -> "Learner":
    """A fresh convolutional network for images like these, drawn from the seed."""
    from ..shifts import make_learner

    return make_learner(cut.train.x, cut.classes, "convnet", seed=seed, options={"width": width})


def left_out(
    cuts: dict[str, Cut],
    targets: Sequence[str],
    arms: dict[str, Any],
    training: "Training",
    *,
    make: Callable[[Cut, int], "Learner"] | None = None,
    sources: Sequence[str] = (),
    tell: Tell | None = None,
) -> dict[str, list[float]]:
    """Accuracy in points of each arm on each target, none of whose rows was seen: {arm: [figure per target]}.

    An arm is a method, or a method with settings of its training: (method, {setting: value}). It learns from ``sources``, by default from
    all domains but the target, and always from the same first weights, which ``make`` (rows, seed) gives. ``tell`` (target, arm, what fit
    returned, learner) may look at each.
    """
    from ..engines.shift import Training, accuracy, fit

    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for target in targets:
        names = [name for name in (sources or cuts) if name != target]
        data = gathered([cuts[name] for name in names])
        for arm, given in arms.items():
            method, settings = given if isinstance(given, tuple) else (given, {})
            learner = (make or learner_for)(cuts[target], training.seed)
            fitted = fit(method, learner, data, Training(**{**training.values(), **settings}))
            found[arm].append(100 * accuracy(method, learner, everything(cuts[target])))
            if tell:
                tell(target, arm, fitted, learner)
    return found

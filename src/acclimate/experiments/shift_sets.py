"""What experiments under shift share: digits, reviews and objects as pools, cut into rows to learn from, to choose by, to test on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import datasets
from ..errors import AcclimateError

if TYPE_CHECKING:
    from torch import Tensor

    from ..engines.shift import Data, Pool

DIGITS = {  # names in papers -> what stands for them here
    "MNIST": "digits/mnist",
    "MNIST-M": "digit_styles/mnist_m",
    "USPS": "digits/usps",
    "sklearn": "digits/sklearn",
    "fonts": "digit_styles/fonts",
    "MNIST test": "digits/mnist_test",
}
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Cut:
    """Disjoint rows of one domain."""

    train: "Pool"
    validation: "Pool"
    test: "Pool"
    classes: Sequence[str]

    @classmethod
    def of(cls, name: str, x: "Tensor", y: "Tensor", classes: Sequence[str], sizes: Sizes, seed: int, first: int = 0) -> "Cut":
        """So many rows of each, drawn by the seed from the rows after ``first``; a size -1 takes what the others leave."""
        import torch

        from ..engines.shift import Pool

        order = torch.from_numpy(np.random.default_rng([seed, 11]).permutation(np.arange(first, len(y))))
        wanted = [size if size >= 0 else len(order) - sum(other for other in sizes if other >= 0) for size in sizes]
        if sum(wanted) > len(order) or min(wanted) < 1:
            raise AcclimateError(f"{name} has {len(order)} rows, too few for {sizes}")
        parts = order[: sum(wanted)].split(wanted)
        train, validation, test = (Pool(name, x[rows].contiguous(), y[rows]) for rows in parts)
        return cls(train, validation, test, classes)


def digits(name: str, sizes: Sizes, seed: int, *, side: int = 16, channels: int = 3, first: int = 0) -> Cut:
    """Digits as images [row, channels, side, side], the rows before ``first`` left out: a name of DIGITS, or a style of digit_styles.

    "MNIST test" and "MNIST-M" hold the same digits row for row: they stay apart if one takes rows that the other skips.
    """
    from torch.nn import functional

    given = datasets.load(DIGITS.get(name, f"digit_styles/{name}"))
    x, y = given.tensors()
    if x.shape[-1] != side:
        x = functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=x.shape[-1] > side)
    if x.shape[1] != channels:
        x = x.expand(-1, channels, -1, -1) if x.shape[1] == 1 else x.mean(1, keepdim=True)
    return Cut.of(name, x, y, given.classes, sizes, seed, first)


def objects(name: str, sizes: Sizes, seed: int) -> Cut:
    """Office-Caltech's counts as the published tables use them, each domain standardised by itself [row, 800]."""
    import torch

    from ..datasets.office_caltech import standardised

    given = datasets.load(f"office_caltech/{name}")
    return Cut.of(name, torch.from_numpy(standardised(given.x)), given.tensors()[1], given.classes, sizes, seed)


def review_rows(name: str, most: int) -> list[dict[str, Any]]:
    """``most`` reviews of FDU-MTL's one kind, of all splits, always the same."""
    domain = datasets.load(f"fdu_mtl/{name}")
    rows = [row for split in ("train", "validation", "test") for row in domain.rows(split)]
    return [rows[place] for place in np.random.default_rng(7).permutation(len(rows))[:most]]


def reviews(name: str, sizes: Sizes, seed: int, *, most: int = 1000) -> Cut:
    """Reviews of FDU-MTL as vectors of all-MiniLM-L6-v2, frozen [row, 384]: the same ``most`` rows for every seed, encoded once."""
    import torch

    from ..shifts import encoded

    rows = review_rows(name, most)
    labels = torch.tensor([int(row["label"] == "good") for row in rows])
    return Cut.of(name, encoded([row["text"] for row in rows]), labels, ["bad", "good"], sizes, seed)


def made_up(name: str, shape: Sequence[int], classes: int, number: int, rows: int = 12) -> Cut:
    """Rows for tiny runs, for which no data are needed: one pattern per class, moved a little further with the domain's number."""
    import torch

    draw = torch.Generator().manual_seed(1)
    patterns = torch.rand(classes, *shape, generator=draw)
    y = torch.arange(3 * rows) % classes
    x = patterns[y] + 0.1 * number + 0.1 * torch.rand(3 * rows, *shape, generator=draw.manual_seed(number))
    return Cut.of(name, x, y, [str(label) for label in range(classes)], (rows, rows, rows), number)


def centred(*cuts: Cut) -> list[Cut]:
    """The same images less the mean of each channel over what may be learned from in all of these domains."""
    import torch

    mean = torch.cat([cut.train.x for cut in cuts]).mean((0, 2, 3), keepdim=True)
    return [
        replace(cut, **{part: replace(getattr(cut, part), x=getattr(cut, part).x - mean) for part in ("train", "validation", "test")})
        for cut in cuts
    ]


def gathered(sources: Sequence[Cut], target: Cut | None = None) -> "Data":
    """What a run may see of some sources and of a target without its labels."""
    from ..engines.shift import Data

    hidden = target.train.unlabelled() if target else None
    return Data([cut.train for cut in sources], hidden, [cut.validation for cut in sources], list(sources[0].classes))


def learner_for(cut: Cut, seed: int, *, width: int = 64, dropout: float = 0.0) -> Any:
    """A fresh network for rows like these, with features of so many columns: two strided convolutions and a layer for images of side 8
    or more, one layer for vectors."""
    import torch
    from torch import nn

    from ..engines.shift import Learner
    from ..models.mlp import Mlp

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = cut.train.x.shape[1:]
        if len(shape) == 1:
            return Learner(Mlp(shape[0], width), cut.classes, dropout=dropout)
        side = -(-shape[-1] // 4)
        net = nn.Sequential(
            nn.Conv2d(shape[0], 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * side * side, width), nn.BatchNorm1d(width), nn.ReLU(),
        )  # fmt: skip
        return Learner(net, cut.classes, width=width, dropout=dropout)

"""Rows by domain, and the batches a step sees: as many rows of each domain, found by the step's number alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ...domain.arrays import Arrays
from ...errors import AcclimateError


@dataclass(frozen=True)
class Pool:
    """Rows of one domain: x [row, *shape], y [row] of class numbers (or values), None where no labels may be seen.

    ``about`` describes the domain itself [fact], for methods that use such facts: coordinates, a date, an embedding of its description.
    """

    name: str
    x: Tensor = field(repr=False)
    y: Tensor | None = field(default=None, repr=False)
    about: Tensor | None = field(default=None, repr=False)
    numbers: Tensor | None = field(default=None, repr=False)  # what batches call its rows; by default their places

    def __post_init__(self):
        if not len(self.x):
            raise AcclimateError(f"domain {self.name!r} has no rows")
        if self.y is not None and len(self.y) != len(self.x):
            raise AcclimateError(f"domain {self.name!r} has {len(self.x)} rows and {len(self.y)} labels; give one label per row")
        if self.x.is_floating_point():
            finite = self.x.flatten(1).isfinite().all(1)
            if not finite.all():
                row = int((~finite).nonzero()[0])
                raise AcclimateError(f"domain {self.name!r}: row {row + 1} holds nan or infinity; drop or fill it")

    @classmethod
    def of(cls, rows: Arrays, name: str = "", about: Tensor | None = None) -> "Pool":
        """The rows of a split of a domain of arrays."""
        return cls(name or rows.name, *rows.tensors(), about=about)

    def __len__(self) -> int:
        return len(self.x)

    def unlabelled(self) -> "Pool":
        """The same rows without their labels."""
        return replace(self, y=None)

    def select(self, rows: Sequence[int] | np.ndarray | Tensor) -> "Pool":
        """Some rows by number, in the order given."""
        numbers = torch.as_tensor(rows, dtype=torch.long)
        return replace(
            self,
            x=self.x[numbers],
            y=None if self.y is None else self.y[numbers],
            numbers=None if self.numbers is None else self.numbers[numbers],
        )


@dataclass
class Batch:
    """Rows of one or several domains, domain after domain: x [row, *shape], y [row] or None, domain [row], and where each row lies.

    ``rows`` [row] numbers the rows of their pool: over all pools in order, so that a table can be kept per row. ``sizes`` says how many
    rows of each domain there are.
    """

    x: Tensor
    y: Tensor | None
    domain: Tensor
    rows: Tensor
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.x)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values [row, ...] of this batch, domain by domain.

        >>> batch = Batch(torch.zeros(3, 1), None, torch.tensor([0, 0, 1]), torch.arange(3), [2, 1])
        >>> [part.tolist() for part in batch.split(torch.tensor([5, 6, 7]))]
        [[5, 6], [7]]
        """
        return values.split(self.sizes)


def each_once(names: Sequence[str]) -> None:
    """Raise AcclimateError for a domain that is given twice."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise AcclimateError(f"domain {twice[0]!r} is given twice, as source and target perhaps; each domain plays one part")


@dataclass
class Data:
    """What a run may see: labelled domains, an unlabelled target, held-out labelled rows that choose the model.

    ``others`` are further targets, in methods that adapt to many domains at once: batches of the target hold them all, domain after
    domain. ``distances`` [domain, domain] are between the domains in the order labelled, target, others; ``classes`` name the labels
    (none: values).
    ``asked`` are target rows whose labels were asked for; ``oracle`` are labelled target rows: only the choice "oracle" looks
    at them, and what it chooses is marked as such.
    """

    labelled: Sequence[Pool] = ()
    target: Pool | None = None
    validation: Sequence[Pool] = ()
    classes: Sequence[str] = ()
    distances: Tensor | None = None
    oracle: Pool | None = None
    asked: Pool | None = None  # target rows whose labels were asked for
    replay: Pool | None = None  # rows of earlier tasks
    others: Sequence[Pool] = ()
    course: dict[str, Tensor] | None = None  # by word (domains, replay): rows of the one labelled domain that each step sees [step, row]

    def __post_init__(self):
        pools = [*self.labelled, *self.targets]
        if not pools:
            raise AcclimateError("no domain was given; give labelled domains, a target, or both")
        names = [pool.name for pool in pools]
        each_once(names)
        for pool in pools:
            if pool.x.shape[1:] != pools[0].x.shape[1:]:
                raise AcclimateError(
                    f"rows of {pool.name!r} have the shape {list(pool.x.shape[1:])}, but those of {names[0]!r} {list(pools[0].x.shape[1:])}"
                )
        for pool in self.labelled:
            if pool.y is None:
                raise AcclimateError(f"domain {pool.name!r} has no labels; give it as the target, or label it")
        for pool in self.targets:
            if pool.y is not None:
                raise AcclimateError(
                    f"labels of the target {pool.name!r} were passed to training, where they would leak; pass target.unlabelled()"
                )
        if len(pools[0]) > 1 and pools[0].x.is_floating_point() and all(bool((pool.x == pools[0].x[0]).all()) for pool in pools):
            raise AcclimateError(
                f"all rows of {', '.join(names)} are the same, so nothing can be learned from them; check how they were made"
            )

    @property
    def targets(self) -> list[Pool]:
        """The unlabelled domains."""
        return [*([self.target] if self.target else []), *self.others]

    @property
    def names(self) -> list[str]:
        """The domains by number: the labelled ones, then the target and further ones."""
        return [pool.name for pool in (*self.labelled, *self.targets)]

    @cached_property
    def source(self) -> Batch | None:
        """All labelled rows as one batch."""
        return whole(self.labelled) if self.labelled else None

    @cached_property
    def whole_target(self) -> Batch | None:
        """All target rows as one batch."""
        return whole(self.targets, len(self.labelled)) if self.targets else None


def whole(pools: Sequence[Pool], first: int = 0) -> Batch:
    """All rows of some domains, numbered from ``first``."""
    sizes = [len(pool) for pool in pools]
    y = None if any(pool.y is None for pool in pools) else torch.cat([pool.y for pool in pools if pool.y is not None])
    domain = torch.repeat_interleave(torch.arange(first, first + len(pools)), torch.tensor(sizes))
    x = pools[0].x if len(pools) == 1 else torch.cat([pool.x for pool in pools])
    given = pools[0].numbers if len(pools) == 1 else None
    return Batch(x, y, domain, torch.arange(sum(sizes)) if given is None else given, sizes)


class Sampler:
    """Batches of ``size`` rows of each domain, whose rows come in a new order in every pass; batch ``k`` is always the same.

    ``size`` 0 gives all rows at every step, domains that differ in size as they are.
    """

    def __init__(self, pools: Sequence[Pool], size: int, seed: int, first: int = 0):
        self.all, self.size, self.seed, self.first = whole(pools, first), size, seed, first
        self.starts = np.cumsum([0, *self.all.sizes[:-1]])
        self.domain = torch.repeat_interleave(torch.arange(first, first + len(pools)), size)
        self.order = lru_cache(maxsize=2 * len(pools) + 2)(self._order)

    def _order(self, domain: int, turn: int) -> np.ndarray:
        draw = np.random.default_rng([self.seed, 7, self.first + domain, turn])
        return self.starts[domain] + draw.permutation(self.all.sizes[domain])

    @property
    def epoch(self) -> int:
        """Batches until the largest domain was seen once."""
        return -(-max(self.all.sizes) // self.size) if self.size else 1

    def __getitem__(self, k: int) -> Batch:
        if not self.size:
            return self.all
        found = []
        for domain, rows in enumerate(self.all.sizes):
            start, end = k * self.size, (k + 1) * self.size
            while start < end:
                turn, place = divmod(start, rows)
                taken = self.order(domain, turn)[place : place + end - start]
                found.append(taken)
                start += len(taken)
        numbers = torch.from_numpy(np.concatenate(found))
        y = None if self.all.y is None else self.all.y[numbers]
        return Batch(self.all.x[numbers], y, self.domain, self.all.rows[numbers], [self.size] * len(self.all.sizes))


class Course:
    """Batches of one domain whose rows a stream has set [step, row], by number; -1 stands for no row, a batch without rows is None."""

    def __init__(self, pool: Pool, rows: Tensor):
        self.all, self.rows, self.epoch = whole([pool]), rows, len(rows)

    def __getitem__(self, k: int) -> Batch | None:
        rows = self.rows[k]
        rows = rows[rows >= 0]
        y = None if self.all.y is None else self.all.y[rows]
        return Batch(self.all.x[rows], y, self.all.domain[rows], self.all.rows[rows], [len(rows)]) if len(rows) else None

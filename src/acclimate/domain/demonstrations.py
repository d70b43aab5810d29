"""Demonstrations: what an expert saw and did at each step while it reached a goal that is given in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import AcclimateError


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode. Observations are an image, a vector, or both; actions are numbers of choices or vectors.

    image [step, channel, side, side]; state [step, width]; actions [step] whole numbers, or [step, width] fp32, of which the first ``used``
    are real where robots of several builds share one width (0 = all).
    """

    goal: str
    actions: np.ndarray = field(repr=False)
    image: np.ndarray | None = field(default=None, repr=False)
    state: np.ndarray | None = field(default=None, repr=False)
    success: bool = True
    used: int = 0

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def discrete(self) -> bool:
        """Whether actions are numbers of choices."""
        return self.actions.ndim == 1

    @property
    def shape(self) -> tuple:
        """What must be the same in all trajectories: shapes of image, state and action."""
        return (*(None if part is None else part.shape[1:] for part in (self.image, self.state)), self.actions.shape[1:])

    def fault(self) -> str:
        """What is wrong with it, "" if nothing."""
        if not self.goal.split():
            return "has no goal; say in words what it reaches"
        if not len(self):
            return "has no steps"
        if self.image is None and self.state is None:
            return "has no observation: neither image nor state"
        for name in ("image", "state"):
            part = getattr(self, name)
            if part is not None and len(part) != len(self):
                return f"has {len(self)} actions, but {name} has {len(part)} steps; give one for each"
            if part is not None and part.ndim != (4 if name == "image" else 2):
                wanted = "channel, side, side" if name == "image" else "width"
                return f"has {name} of shape {list(part.shape)}, but it must be [step, {wanted}]"
        for name in ("image", "state", "actions"):
            part = getattr(self, name)
            if part is not None and part.dtype.kind == "f" and not np.isfinite(part).all():
                step = int(np.argwhere(~np.isfinite(part))[0][0])
                return f"has a number that is not finite in {name}, step {step}; mend or leave out the trajectory"
        if self.discrete and (self.actions.dtype.kind not in "iu" or self.actions.min() < 0):
            return "has actions that are no numbers of choices; give whole numbers from 0, or vectors [step, width]"
        if self.actions.ndim > 2 or not 0 <= self.used <= (0 if self.discrete else self.actions.shape[1]):
            return f"has actions of shape {list(self.actions.shape)}, {self.used} of them used; give [step], or [step, width]"
        return ""


@dataclass
class Demonstrations:
    """Trajectories of one shape. Raises AcclimateError where there is none, where one is malformed, and where shapes differ."""

    name: str
    trajectories: Sequence[Trajectory] = field(repr=False)
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.trajectories:
            raise AcclimateError(f"{self.name} has no trajectories; give at least one")
        first = self.trajectories[0]
        for number, each in enumerate(self.trajectories, 1):
            if fault := each.fault():
                raise AcclimateError(f"{self.name}: trajectory {number} {fault}")
            if each.shape != first.shape:
                raise AcclimateError(
                    f"{self.name}: trajectory {number} has shapes (image, state, action) {each.shape}, but the first has {first.shape}; "
                    "widen them, or keep them apart"
                )

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def steps(self) -> int:
        """Steps of all trajectories."""
        return sum(map(len, self.trajectories))

    @property
    def goals(self) -> list[str]:
        """The different goals, in the order of their first trajectory."""
        return list(dict.fromkeys(each.goal for each in self.trajectories))

    @property
    def words(self) -> list[str]:
        """The words of all goals, sorted: a vocabulary."""
        return sorted({word for goal in self.goals for word in words_of(goal)})

    def select(self, rows: Iterable[int]) -> "Demonstrations":
        """Some trajectories by number."""
        return replace(self, trajectories=[self.trajectories[row] for row in rows])

    def few(self, count: int, seed: int) -> "Demonstrations":
        """``count`` trajectories drawn at random, all where there are no more."""
        order = np.random.default_rng(seed).permutation(len(self))
        return self.select(sorted(order[:count].tolist()))

    def successful(self) -> "Demonstrations":
        """The trajectories that reach their goal."""
        return self.select(row for row, each in enumerate(self.trajectories) if each.success)

    def split(self, held: int, seed: int) -> tuple["Demonstrations", "Demonstrations"]:
        """(to learn from, held out): ``held`` whole trajectories drawn at random are held out, so no trajectory stands on both sides."""
        if not 0 < held < len(self):
            raise AcclimateError(f"{self.name} has {len(self)} trajectories, so {held} cannot be held out; hold out 1 to {len(self) - 1}")
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        return self.select(sorted(order[held:])), self.select(sorted(order[:held]))

    def cut(self, first: int, last: int | None = None) -> "Demonstrations":
        """The steps of each trajectory from ``first`` up to before ``last``; for long recordings of one movement."""
        part = slice(first, last)
        made = [
            replace(
                each,
                actions=each.actions[part],
                image=None if each.image is None else each.image[part],
                state=None if each.state is None else each.state[part],
            )
            for each in self.trajectories
        ]
        return replace(self, trajectories=made)

    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each number of the state, from these trajectories alone."""
        if self.trajectories[0].state is None:
            raise AcclimateError(f"{self.name} has no state to be scaled")
        held = np.concatenate([each.state for each in self.trajectories if each.state is not None])
        return held.mean(0), held.std(0)

    def scaled(self, scales: tuple[np.ndarray, np.ndarray]) -> "Demonstrations":
        """States less the mean, over the deviation; numbers that never change become 0. ``scales`` come from what is learned from."""
        mean, deviation = scales
        if self.trajectories[0].state is None or mean.shape != self.trajectories[0].state.shape[1:]:
            raise AcclimateError(
                f"{self.name} has shapes {self.trajectories[0].shape}, but the scales are for {len(mean)} numbers of state"
            )
        inverse = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0)
        made = [replace(each, state=((each.state - mean) * inverse).astype(np.float32)) for each in self.trajectories]
        return replace(self, trajectories=made)

    def widened(self, state: int, actions: int) -> "Demonstrations":
        """States and actions with zeros up to a common width; ``used`` says how many numbers of the action are real."""
        made = []
        for each in self.trajectories:
            if each.state is None or each.discrete or each.state.shape[1] > state or each.actions.shape[1] > actions:
                raise AcclimateError(
                    f"{self.name} has shapes {each.shape}, which cannot be widened to a state of {state}, actions of {actions}"
                )
            padded = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part, width in ((each.state, state), (each.actions, actions))]
            made.append(replace(each, state=padded[0], actions=padded[1], used=each.used or each.actions.shape[1]))
        return replace(self, trajectories=made)

    @staticmethod
    def together(name: str, parts: "Sequence[Demonstrations]") -> "Demonstrations":
        """The trajectories of several sets as one."""
        made = [each for part in parts for each in part.trajectories]
        about = parts[0] if parts else None
        return Demonstrations(name, made, about.source if about else "", about.licence if about else "")


def words_of(goal: str) -> list[str]:
    """The words of a goal.

    >>> words_of("Go to the red ball.")
    ['go', 'to', 'the', 'red', 'ball']
    """
    return goal.lower().replace(",", " ").replace(".", " ").split()

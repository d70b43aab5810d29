"""Goal grids: a grid world whose goals are given in words, made on the spot, with an expert that searches for the shortest way.

Made by this module (Apache-2.0, as the package). A goal says what to do with one object of a colour and a shape: go to it, or pick it up,
perhaps without ever standing on floor of some colour. 12 tasks to pretrain on stand in open grids, with pillars or with scattered walls;
6 new ones join verbs and objects as none of the 12 does, each in walls of its own, where start and goal have their corners.
``load("goal_grids/rooms")`` gives demonstrations, ``world("rooms")`` the world itself with gymnasium's ``reset`` and ``step``.

Observations: image [12, 15, 15] of zeros and ones (wall, three shapes, four colours of objects, four colours of floor) with the agent in
its middle, walls all around the grid of 8 x 8; state [3]: row and column from 0 to 1, whether the last step was blocked. Actions: up,
down, left, right, pick, done. The episode ends with pick and done, in success where the agent stands on the goal's object and the verb is
the goal's, and at once on forbidden floor, without success.

What for: imitation learning and continual adaptation measured by success instead of a loss. The same seed gives the same episodes.

Traps. Seeds of demonstrations and of tests must differ, or the test was seen: demonstrations take theirs from ``seed`` x 1,000,000 on. The
expert always prefers up to down to left to right, so there is one right action in each place, and a learner may tell a worse one that is
just as short from it by habit alone. Each goal has two wordings; demonstrations of new tasks use the first.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..domain.demonstrations import Demonstrations, Trajectory
from ..errors import AcclimateError
from . import known_domain

SIDE = 8
VIEW = 2 * SIDE - 1  # the agent stands in the middle and sees the whole grid from every place
SHAPES, COLOURS = ("ball", "box", "key"), ("red", "green", "blue", "yellow")
ACTIONS = ("up", "down", "left", "right", "pick", "done")
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
WALL, SHAPE, COLOUR, FLOOR = 0, 1, 4, 8  # where channels of the image begin
CHANNELS, STATE = 12, 3
LONGEST = 40  # steps of an episode
OBJECTS, NEAREST = 4, 3  # objects in a grid; least distance of the goal's from the start
CARD: dict[str, Any] = {
    "source": "made by acclimate.datasets.goal_grids",
    "licence": "Apache-2.0",
    "size": "any number of episodes; 100 demonstrations of each of 18 tasks by default",
    "columns": {
        "image": "zeros and ones [12, 15, 15]",
        "state": "row, column, blocked",
        "actions": "0 to 5",
        "goal": "what to do, in words",
    },
    "form": "demonstrations",
    "hub": None,
}
LAYOUTS = {  # wall, a: where the agent may start, g: where the goal's object may lie; anywhere where none is marked
    "open": "........|........|........|........|........|........|........|........",
    "pillars": "........|.#..#.#.|........|..#...#.|....#...|.#....#.|...#....|........",
    "rooms": "aaa#....|aaa#..gg|.......g|##.##.##|...#....|........|...#....|...#....",
    "gap": "........|..aaaa..|######.#|........|........|#.######|.gg.....|.g......",
    "cross": "...#.gg.|...#..g.|...#....|##...###|...#....|aa.#....|aaa#....|...#....",
    "comb": "........|........|.#.#.#.#|.#.#.#.#|.#.#.#.#|a#.#.#g#|a#a#.#g#|a#a#.#g#",
    "ring": "a.......|a######.|a#....#.|.#.gg...|.#..g.#.|.#....#.|.######.|aa......",
    "bands": "aa#.....|aa#..#g.|.....#g.|..#..#g.|..#..#..|..#.....|.....#..|..#..#..",
}


@dataclass(frozen=True)
class GridTask:
    """A goal and where it is to be reached. ``avoid`` is the colour of forbidden floor, "" for none."""

    name: str
    verb: str  # go or pick
    colour: str
    shape: str
    avoid: str
    layout: str

    def goal(self, wording: int = 0) -> str:
        """The goal in words; there are two wordings."""
        what = f"the {self.colour} {self.shape}"
        said = {"go": ("go to", "walk over to"), "pick": ("pick up", "take")}[self.verb][wording]
        floor = (f" and avoid the {self.avoid} floor", f" but stay off {self.avoid} floor")[wording] if self.avoid else ""
        return f"{said} {what}{floor}"


def _tasks(*rows: str) -> dict[str, GridTask]:
    made = [GridTask(*(part.strip("-") for part in row.split())) for row in rows]
    return {task.name: task for task in made}


PRETRAINING = _tasks(
    "go-red-ball go red ball - scattered", "go-green-box go green box - open",
    "go-blue-key go blue key - pillars", "go-yellow-key go yellow key - scattered",
    "pick-red-box pick red box - open", "pick-green-ball pick green ball - pillars",
    "pick-blue-ball pick blue ball - scattered", "pick-yellow-box pick yellow box - scattered",
    "avoid-green go red key green open", "avoid-red go yellow ball red pillars",
    "avoid-yellow go blue box yellow scattered", "avoid-blue go green ball blue scattered",
)  # fmt: skip
NEW = _tasks(
    "rooms go yellow box - rooms", "gap pick red ball - gap", "cross go green key yellow cross",
    "comb pick blue box - comb", "ring go red box - ring", "bands pick yellow ball red bands",
)  # fmt: skip
TASKS = {**PRETRAINING, **NEW}


class GridWorld:
    """One task's world. ``reset(seed=...)`` begins an episode, ``step`` goes on, ``expert`` says what an expert would do."""

    def __init__(self, task: GridTask, wording: int = 0):
        self.task, self.goal = task, task.goal(wording)
        self._draw = np.random.default_rng(0)
        self._over = True
        self.agent, self.target = (0, 0), (0, 0)  # (row, column); drawn by reset

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A new episode: (observation, info). Without a seed the episodes follow from the one that was given last."""
        if seed is not None:
            self._draw = np.random.default_rng([seed, *self.task.name.encode()])
        while not self._laid_out():
            pass
        self._blocked, self._steps, self._over = False, 0, False
        return self._observation(), {"goal": self.goal, "success": False}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """(observation, reward, terminated, truncated, info); the reward of success is 1."""
        if self._over:
            raise AcclimateError("the episode is over, or none has begun; call reset first")
        if not 0 <= action < len(ACTIONS):
            raise AcclimateError(f"action = {action}, but must be 0 to {len(ACTIONS) - 1}: {', '.join(ACTIONS)}")
        self._steps += 1
        success, ended = False, action >= len(MOVES)
        if ended:
            success = self.agent == self.target and ACTIONS[action] == self._verb
        else:
            place = (self.agent[0] + MOVES[action][0], self.agent[1] + MOVES[action][1])
            self._blocked = not _inside(place) or bool(self.walls[place])
            self.agent = self.agent if self._blocked else place
            ended = bool(self._forbidden()[self.agent])
        truncated = not ended and self._steps >= LONGEST
        self._over = ended or truncated
        return self._observation(), float(success), ended, truncated, {"goal": self.goal, "success": success}

    def expert(self) -> int:
        """The first action in the order of ACTIONS that shortens the way; pick or done at the goal."""
        if self.agent == self.target:
            return ACTIONS.index(self._verb)
        for action, (down, right) in enumerate(MOVES):
            place = (self.agent[0] + down, self.agent[1] + right)
            if _inside(place) and 0 <= self.distance[place] < self.distance[self.agent]:
                return action
        raise AcclimateError("there is no way to the goal from here")

    @property
    def _verb(self) -> str:
        return {"go": "done", "pick": "pick"}[self.task.verb]

    def _forbidden(self) -> np.ndarray:
        """Floor that must not be stood on [row, column]."""
        return self.floor == COLOURS.index(self.task.avoid) if self.task.avoid else np.zeros((SIDE, SIDE), bool)

    def _laid_out(self) -> bool:
        """Draw walls, floor, objects and the agent; whether there is a way that is not too short."""
        self.walls = walls(self.task.layout, self._draw)
        order = [(row, column) for row, column in np.argwhere(~self.walls).tolist()]
        order = [order[i] for i in self._draw.permutation(len(order))]
        self.agent = next(place for place in order if place in marked(self.task.layout, "a", order))
        self.target = next(place for place in order if place != self.agent and place in marked(self.task.layout, "g", order))
        rest = [place for place in order if place not in (self.agent, self.target)]
        self.objects = {self.target: (COLOURS.index(self.task.colour), SHAPES.index(self.task.shape))}
        self.objects |= dict(zip(rest, self._others(), strict=False))
        self.floor = np.full((SIDE, SIDE), -1)
        if self.task.avoid:
            bare = rest[OBJECTS - 1 :]
            other = int(self._draw.choice([i for i, name in enumerate(COLOURS) if name != self.task.avoid]))
            for place in bare[:8]:
                self.floor[place] = COLOURS.index(self.task.avoid)
            for place in bare[8:12]:
                self.floor[place] = other
        self.distance = distances(self.target, self.walls | self._forbidden())
        return bool(NEAREST <= self.distance[self.agent] < LONGEST)

    def _others(self) -> Iterator[tuple[int, int]]:
        """Colour and shape of the other objects: the goal's colour in another shape, its shape in another colour, and any."""
        colour, shape = COLOURS.index(self.task.colour), SHAPES.index(self.task.shape)
        every = [(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES)) if (c, s) != (colour, shape)]
        every = [every[i] for i in self._draw.permutation(len(every))]
        first = [next(pair for pair in every if pair[0] == colour), next(pair for pair in every if pair[1] == shape)]
        yield from [*first, *(pair for pair in every if pair not in first)][: OBJECTS - 1]

    def _observation(self) -> dict[str, np.ndarray]:
        image = np.zeros((CHANNELS, VIEW, VIEW), np.uint8)
        image[WALL] = 1
        row, column = self.agent
        inside = image[:, SIDE - 1 - row : 2 * SIDE - 1 - row, SIDE - 1 - column : 2 * SIDE - 1 - column]
        inside[WALL] = self.walls
        for place, (colour, shape) in self.objects.items():
            inside[(SHAPE + shape, *place)] = inside[(COLOUR + colour, *place)] = 1
        for colour in range(len(COLOURS)):
            inside[FLOOR + colour] = self.floor == colour
        return {"image": image, "state": np.array([row / (SIDE - 1), column / (SIDE - 1), self._blocked], np.float32)}


def domains() -> list[str]:
    """The tasks, those to pretrain on first."""
    return list(TASKS)


def load(domain: str) -> Demonstrations:
    """100 demonstrations of one task."""
    return demonstrations(domain, 100, 0)


def world(name: str, wording: int = 0) -> GridWorld:
    """The world of one task. Raises AcclimateError for a task that does not exist."""
    known_domain("goal_grids", name, TASKS)
    return GridWorld(TASKS[name], wording)


def demonstrations(name: str, count: int, seed: int, wordings: Sequence[int] = (0,)) -> Demonstrations:
    """``count`` episodes of the expert, with the wordings in turn."""
    worlds = [world(name, wording) for wording in wordings]
    made = [_shown(worlds[i % len(worlds)], seed * 1_000_000 + i) for i in range(count)]
    return Demonstrations(f"goal_grids/{name}", made, CARD["source"], CARD["licence"])


def _shown(world: GridWorld, seed: int) -> Trajectory:
    seen, _ = world.reset(seed=seed)
    images, states, actions, over = [], [], [], False
    while not over:
        images.append(seen["image"])
        states.append(seen["state"])
        actions.append(world.expert())
        seen, _, ended, truncated, info = world.step(actions[-1])
        over = ended or truncated
    return Trajectory(world.goal, np.array(actions), np.stack(images), np.stack(states), info["success"])


def walls(layout: str, draw: np.random.Generator) -> np.ndarray:
    """Where walls are [row, column]; scattered ones are drawn."""
    if layout == "scattered":
        made = np.zeros(SIDE * SIDE, bool)
        made[draw.permutation(SIDE * SIDE)[: int(draw.integers(6, 15))]] = True
        return made.reshape(SIDE, SIDE)
    return np.array([[mark == "#" for mark in row] for row in LAYOUTS[layout].split("|")])


def marked(layout: str, mark: str, others: Collection[tuple[int, int]]) -> Collection[tuple[int, int]]:
    """The places that a layout marks, ``others`` where it marks none."""
    rows = LAYOUTS.get(layout, "").split("|")
    return {(row, column) for row, line in enumerate(rows) for column, found in enumerate(line) if found == mark} or others


def distances(target: tuple[int, int], closed: np.ndarray) -> np.ndarray:
    """Steps from each place to ``target`` by breadth-first search, -1 where there is no way [row, column].

    >>> distances((0, 0), np.array([[False, True], [False, False]])).tolist()
    [[0, -1], [1, 2]]
    """
    found = np.full(closed.shape, -1)
    found[target] = 0
    waiting = deque([target])
    while waiting:
        row, column = waiting.popleft()
        for down, right in MOVES:
            place = (row + down, column + right)
            inside = 0 <= place[0] < closed.shape[0] and 0 <= place[1] < closed.shape[1]
            if inside and not closed[place] and found[place] < 0:
                found[place] = found[row, column] + 1
                waiting.append(place)
    return found


def _inside(place: tuple[int, int]) -> bool:
    return 0 <= place[0] < SIDE and 0 <= place[1] < SIDE

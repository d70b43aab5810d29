"""A small policy, and walks on a line to teach it."""

import json
from pathlib import Path

import numpy as np
import torch

from acclimate.domain.demonstrations import Demonstrations, Trajectory
from acclimate.engines.control_stream import ControlTask
from acclimate.models.control import Policy

CASES = json.loads((Path(__file__).parent / "reference" / "control.json").read_text())
SMALL = {"width": 8, "text_blocks": 1, "spatial_blocks": 1, "temporal_blocks": 2, "heads": 2, "goal_width": 4, "window": 3, "stem": 4}
FEW = {"epochs": 2, "patience": 0, "lr": 1e-2}


def policy(seed=0, words=("go", "left", "right", "now"), **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(words, **{**SMALL, "state": 2, "actions": 2, **settings}).eval()


class Line:
    """A walk on a line of 7 places: the goal says at which end to arrive; actions are left and right."""

    def __init__(self, goal="go left"):
        self.goal = goal

    def reset(self, *, seed=None):
        self.place = int(np.random.default_rng(seed).integers(2, 5))
        return self.seen(), {"success": False}

    def seen(self):
        return {"state": np.array([self.place / 3 - 1, 1.0], np.float32)}

    def step(self, action):
        self.place += 2 * int(action) - 1
        ended, success = self.place in (0, 6), self.place == (0 if "left" in self.goal else 6)
        return self.seen(), float(success), ended, False, {"success": ended and success}


def walks(goal="go left", count=6, seed=0):
    made = []
    for i in range(count):
        world, states, actions, over = Line(goal), [], [], False
        seen, _ = world.reset(seed=seed + i)
        while not over:
            states.append(seen["state"])
            actions.append(int("right" in goal))
            seen, _, over, _, _ = world.step(actions[-1])
        made.append(Trajectory(goal, np.array(actions), state=np.stack(states)))
    return Demonstrations(goal, made)


def task(goal, name="", **given):
    return ControlTask(name or goal.replace(" ", "-"), walks(goal, **given), walks(goal, 2, 100))


def trajectory(goal="go", steps=3, **given):
    return Trajectory(**{"goal": goal, "actions": np.zeros(steps, int), "state": np.zeros((steps, 2), np.float32), **given})

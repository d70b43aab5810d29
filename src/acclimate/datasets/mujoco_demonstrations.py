"""MuJoCo demonstrations: expert episodes of three simulated robots that run, as recorded observations and actions.

github.com/berkeleydeeprlcourse/homework_fall2023, hw1/cs285/expert_data, MIT (as the repository states): 2 episodes of 1,000 steps each
of Ant-v4, HalfCheetah-v4 and Hopper-v4. Each robot loads as ``acclimate.domain.demonstrations.Demonstrations``: state (27, 17 and 11
numbers), actions (8, 6 and 3 numbers), a goal in words, no image.

What for: imitation of continuous actions, and adapting a policy across robots of different builds (``widened``). The simulator is not
part of it, so success cannot be measured, only the likelihood of held-out actions.

Traps. Two episodes of a robot are two runs of one movement that repeats itself; cut by time (``cut``) or hold out a whole episode, never
single steps. States are not scaled and reach 26 in size (Hopper's velocities are clipped at 10); scale by what is learned from. Actions
are the expert's own, before the simulator clips them to its range, and reach 5.
"""

from typing import Any

import numpy as np

from ..domain.demonstrations import Demonstrations, Trajectory
from . import known_domain, locate

ROBOTS = {"ant": "Ant-v4", "half_cheetah": "HalfCheetah-v4", "hopper": "Hopper-v4"}
GOALS = {"ant": "make the ant run forward", "half_cheetah": "make the cheetah run forward", "hopper": "make the hopper hop forward"}
EPISODES = 2
CARD: dict[str, Any] = {
    "source": "github.com/berkeleydeeprlcourse/homework_fall2023",
    "licence": "MIT",
    "size": "3 robots of 2 episodes of 1,000 steps; 1 MB",
    "columns": {"state": "joint positions and velocities", "actions": "torques", "goal": "what to do, in words"},
    "form": "demonstrations",
    "hub": None,
}


def domains() -> list[str]:
    """The robots."""
    return list(ROBOTS)


def load(domain: str) -> Demonstrations:
    """The episodes of one robot."""
    known_domain("mujoco_demonstrations", domain, ROBOTS)
    made = []
    with np.load(locate(f"other/demo_mujoco_expert/{ROBOTS[domain]}.npz"), allow_pickle=False) as stored:
        for episode in range(EPISODES):
            state, actions = (stored[f"{part}_{episode}"].astype(np.float32) for part in ("observation", "action"))
            made.append(Trajectory(GOALS[domain], actions, state=state))
    return Demonstrations(f"mujoco_demonstrations/{domain}", made, CARD["source"], CARD["licence"])

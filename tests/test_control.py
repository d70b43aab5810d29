"""Policies: the likelihood against torch's, no look ahead, closed loops, tasks that keep their weights, ways to learn in turn."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributions as d

from acclimate import datasets
from acclimate.datasets import goal_grids
from acclimate.domain.demonstrations import Demonstrations, Trajectory
from acclimate.engines.control import Cloning, clone, likelihood, prepare, rollouts, success_rate
from acclimate.engines.lifelong import WAYS, fisher, in_turn
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import fingerprint
from acclimate.models.control import Policy, mixture_log_prob
from acclimate.models.skills import Skills
from acclimate.parts.continual import backward_transfer

WORDS = ["go", "to", "the", "red", "blue", "box", "run", "left", "right"]
SMALL = {"width": 16, "heads": 2, "text_blocks": 1, "temporal_blocks": 1, "stem": 4, "goal_width": 8, "window": 4}


def vectors(goal="run left", count=3, steps=9, seed=0):
    """A line to walk on: the action is the direction of the goal."""
    draw = np.random.default_rng(seed)
    way = -1.0 if goal.endswith("left") else 1.0
    made = []
    for _ in range(count):
        state = draw.normal(size=(steps, 2)).astype(np.float32)
        made.append(Trajectory(goal, np.stack([way * np.ones(steps), state[:, 0]], 1).astype(np.float32), None, state, True))
    return Demonstrations(goal, made)


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return Policy(WORDS, state=2, action_width=2, **SMALL).eval()


def test_the_mixture_is_that_of_torch():
    torch.manual_seed(0)
    logits, means, spreads, actions = torch.randn(5, 3), torch.randn(5, 3, 4), torch.rand(5, 3, 4) + 0.1, torch.randn(5, 4)
    theirs = d.MixtureSameFamily(d.Categorical(logits=logits), d.Independent(d.Normal(means, spreads), 1))
    assert torch.allclose(mixture_log_prob(logits, means, spreads, actions), theirs.log_prob(actions), atol=1e-5)
    part = d.MixtureSameFamily(d.Categorical(logits=logits), d.Independent(d.Normal(means[..., :2], spreads[..., :2]), 1))
    real = torch.tensor([True, True, False, False]).expand(5, 4)
    assert torch.allclose(mixture_log_prob(logits, means, spreads, actions, real), part.log_prob(actions[:, :2]), atol=1e-5)


def test_a_step_sees_itself_and_those_before(policy):
    state, goals = torch.randn(1, 4, 2), policy.goal_ids(["go to the red box"])
    with torch.no_grad():
        first = policy(None, state, goals)
        state[:, 2] += 1
        second = policy(None, state, goals)
        other = policy(None, state, policy.goal_ids(["run left"]))
    assert torch.equal(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2:], second[:, 2:])
    assert not torch.allclose(other, second)
    with pytest.raises(AcclimateError, match=r"does not know the word 'rad'.*red"):
        policy.goal_ids(["go to the rad box"])
    with pytest.raises(AcclimateError, match="5 steps were given, but the policy looks back on 4"):
        policy(None, torch.randn(1, 5, 2), goals)


def test_cloning_raises_the_likelihood_of_what_is_held_out(policy):
    before = likelihood(policy, vectors(seed=1))
    found = clone(policy, vectors(), vectors(seed=2), Cloning(epochs=30, lr=1e-2), 0)
    assert likelihood(policy, vectors(seed=1)) > before + 1
    assert found.held == pytest.approx(-likelihood(policy, vectors(seed=2)), abs=1e-6)
    assert found.kept > 0
    wide = Trajectory("run left", np.zeros((4, 2), np.float32), None, np.zeros((4, 3), np.float32), True)
    with pytest.raises(AcclimateError, match=r"has state \[3\], but the policy reads \[2\]"):
        prepare(policy, Demonstrations("wide", [wide]))
    policy.requires_grad_(False)
    with pytest.raises(AcclimateError, match="nothing of the policy learns"):
        clone(policy, vectors(), vectors(), Cloning(epochs=1), 0)


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "prefix"])
def test_each_task_keeps_what_it_learned(policy, kind, tmp_path):
    method = load("adapters.tail", adapter=kind, demos=0, held=1, epochs=8, lr=1e-2, batch=2, reduction=4)
    tasks = {"left": vectors("run left"), "right": vectors("run right", seed=1)}
    before, told = fingerprint(policy), {}
    plain = likelihood(policy, tasks["left"])
    skills = Skills(policy)
    method.learn(skills, "left", tasks["left"], 0)
    with skills.using("left") as net:
        first = likelihood(net, tasks["left"])
    made = method.run(SimpleNamespace(seed=0, note=told.__setitem__), start=policy, tasks=tasks)["skills"]
    assert fingerprint(policy) == before
    with made.using("left") as net:
        assert likelihood(net, tasks["left"]) == first > plain
    assert likelihood(made.net, tasks["left"]) == plain  # outside of a task the policy is as it came
    where = {name.split(".")[0].split("/")[0] for name in made.net.adapters["left"]}
    assert where == {"text", "spatial", "temporal"}
    assert told["tasks"]["left"]["weights"] == made.weights("left")
    assert made.nearest("run right") == "right"
    again = Skills.load(made.save(tmp_path / "skills"))
    for task, demos in tasks.items():
        with made.using(task) as mine, again.using(task) as theirs:
            assert likelihood(mine, demos) == likelihood(theirs, demos)
    with pytest.raises(AcclimateError, match="no task is named 'lift'"), made.using("lift"):
        pass


def test_a_task_may_begin_where_the_last_one_ended(policy):
    method = load("adapters.tail", demos=0, held=1, epochs=6, lr=1e-2, begin="previous")
    skills = Skills(policy)
    method.learn(skills, "left", vectors(), 0)
    load("adapters.tail", demos=0, held=1, epochs=1, lr=0.0, begin="previous").learn(skills, "again", vectors(seed=3), 0)
    with skills.using("left") as one:
        first = likelihood(one, vectors(seed=5))
    with skills.using("again") as other:
        assert likelihood(other, vectors(seed=5)) == first


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_learn_in_turn(policy, way):
    names = ("left", "right")
    tasks = {name: (vectors(f"run {name}", seed=i), vectors(f"run {name}", 1, seed=9 + i)) for i, name in enumerate(names)}
    before = fingerprint(policy)
    matrix = np.full((2, 2), np.nan)
    for row, (name, at) in enumerate(in_turn(policy, tasks, way, Cloning(epochs=10, lr=1e-2, batch=2), 0)):
        assert name == names[row]
        for column in range(row + 1):
            matrix[row, column] = likelihood(at(names[column]), tasks[names[column]][0])
    assert fingerprint(policy) == before
    assert matrix[0, 0] > likelihood(policy, tasks["left"][0])
    if way in ("packnet", "copies"):
        assert backward_transfer(matrix) == 0
    else:
        assert backward_transfer(matrix) != 0
    with pytest.raises(AcclimateError, match="no way to learn in turn is named 'pack'; nearest: packnet"):
        next(in_turn(policy, tasks, "pack", Cloning(), 0))


def test_fisher_is_the_mean_square_of_gradients(policy):
    demos = vectors(count=2, steps=3)
    found = fisher(policy, demos)
    squares = []
    for each in range(2):
        policy.zero_grad()
        ready = prepare(policy, demos.select([each]))
        scores = policy(None, ready.state[None], ready.goals)
        policy.log_prob(scores, ready.actions[None]).mean().backward()
        squares.append(policy.head.weight.grad.clone().square())
    assert torch.allclose(found["head.weight"], (squares[0] + squares[1]) / 2, rtol=1e-3, atol=1e-9)


def test_the_expert_of_the_grids_succeeds_and_a_policy_acts_in_them():
    shown = {name: goal_grids.demonstrations(name, 3, 5) for name in goal_grids.TASKS}
    assert all(each.success for demos in shown.values() for each in demos.trajectories)
    again = goal_grids.demonstrations("rooms", 3, 5)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(again.trajectories, shown["rooms"].trajectories, strict=True))
    words = Demonstrations.together("all", list(shown.values())).words
    torch.manual_seed(0)
    policy = Policy(words, image=(goal_grids.CHANNELS, goal_grids.VIEW), state=goal_grids.STATE, actions=6, **SMALL).eval()
    acted = rollouts(policy, lambda: goal_grids.world("gap"), [1, 2, 3])
    assert len(acted) == 3
    assert all(1 <= len(each) <= goal_grids.LONGEST for each in acted)
    assert 0 <= success_rate(policy, lambda: goal_grids.world("gap"), [1, 2]) <= 1
    with pytest.raises(AcclimateError, match="no domain 'gab'"):
        goal_grids.world("gab")
    with pytest.raises(AcclimateError, match="no seeds were given"):
        rollouts(policy, lambda: goal_grids.world("gap"), [])


def test_what_demonstrations_refuse():
    good = vectors().trajectories[0]
    with pytest.raises(AcclimateError, match="empty has no trajectories"):
        Demonstrations("empty", [])
    bad = Trajectory("run left", good.actions, None, np.full_like(good.state, np.nan), True)
    with pytest.raises(AcclimateError, match="bad: trajectory 2"):
        Demonstrations("bad", [good, bad])
    with pytest.raises(AcclimateError, match="tail needs a policy and demonstrations by task"):
        load("adapters.tail").run(None)
    with pytest.raises(AcclimateError, match="3 trajectories, so 3 cannot be held out"):
        vectors().split(3, 0)


@pytest.mark.skipif(not os.environ.get("ACCLIMATE_DATA"), reason="needs the MuJoCo demonstrations in $ACCLIMATE_DATA")
def test_robots_load_and_widen():
    ant = datasets.load("mujoco_demonstrations/ant")
    assert [each.shape for each in ant.trajectories] == [(None, (27,), (8,))] * 2
    hopper = datasets.load("mujoco_demonstrations/hopper").widened(27, 8)
    assert hopper.trajectories[0].shape == (None, (27,), (8,))
    assert hopper.trajectories[0].used == 3

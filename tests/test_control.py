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
from acclimate.engines.control_stream import ControlTask, Copies, Packed, Sequential, TaskAdapters, importances, stream
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import fingerprint
from acclimate.models.control import Policy, mixture_log_prob
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


def tail(**settings):
    given = {"demos": 3, "held": 1, "epochs": 8, "lr": 1e-2, "batch": 2, "window": 0, "size": 2, **settings}
    return load("adapters.tail", **given)


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "prefix", "none"])
def test_each_task_keeps_what_it_learned(policy, kind, tmp_path):
    tasks = {"left": vectors("run left"), "right": vectors("run right", seed=1)}
    before, told = fingerprint(policy), {}
    plain = likelihood(policy, tasks["left"])
    tools = SimpleNamespace(seed=0, note=told.__setitem__)
    one = tail(kind=kind).run(tools, start=policy, tasks={"left": tasks["left"]})["adapted"]
    with one.using("left") as net:
        first = likelihood(net, tasks["left"])
    made = tail(kind=kind).run(tools, start=one, tasks={"right": tasks["right"]})["adapted"]
    assert fingerprint(policy) == before
    assert one.tasks == ["left"]
    assert made.tasks == ["left", "right"]
    with made.using("left") as net:
        assert likelihood(net, tasks["left"]) == first > plain
    assert likelihood(made.policy, tasks["left"]) == plain  # outside of a task the policy is as it came
    if kind != "none":
        assert {name.split("/")[0] for name in made.policy.adapters["left"]} == {"text", "spatial", "temporal"}
    assert told["table"]["right"]["weights"] == made.trained("right")
    assert made.stored == made.trained("left") + made.trained("right")
    assert made.select("run right") == "right"
    made.save_pretrained(tmp_path / "tasks")
    again = TaskAdapters.from_pretrained(policy, tmp_path / "tasks")
    for task, demos in tasks.items():
        with made.using(task) as mine, again.using(task) as theirs:
            assert likelihood(mine, demos) == likelihood(theirs, demos)
    other = Policy(WORDS, state=2, action_width=2, **SMALL)
    with pytest.raises(AcclimateError, match="belongs to a policy with weights"):
        TaskAdapters.from_pretrained(other, tmp_path / "tasks")
    with pytest.raises(AcclimateError, match="lift"), made.using("lift"):
        pass


def test_a_task_may_begin_where_the_last_one_ended(policy):
    tools = SimpleNamespace(seed=0, note=lambda *_: None)
    one = tail().run(tools, start=policy, tasks={"left": vectors()})["adapted"]
    both = tail(epochs=1, lr=0.0, start="previous").run(tools, start=one, tasks={"again": vectors(seed=3)})["adapted"]
    with both.using("left") as first:
        expected = likelihood(first, vectors(seed=5))
    with both.using("again") as second:
        assert likelihood(second, vectors(seed=5)) == expected


PLAN = Cloning(epochs=10, lr=1e-2, batch=2)
ARMS = {
    "full": lambda policy: Sequential(policy, PLAN),
    "replay": lambda policy: Sequential(policy, PLAN, replay=2),
    "ewc": lambda policy: Sequential(policy, PLAN, ewc=100.0),
    "packnet": lambda policy: Packed(policy, PLAN, 0.5),
    "copies": lambda policy: Copies(policy, PLAN),
}


@pytest.mark.parametrize("name", ARMS)
def test_what_tasks_in_turn_do_to_each_other(policy, name):
    tasks = [
        ControlTask(way, vectors(f"run {way}", seed=i), vectors(f"run {way}", 1, seed=9 + i)) for i, way in enumerate(("left", "right"))
    ]
    shown = {task.name: task.demos for task in tasks}
    before = fingerprint(policy)
    matrix, fitted = stream(ARMS[name](policy), tasks, 0, lambda net, task: likelihood(net, shown[task]))
    assert fingerprint(policy) == before
    assert matrix[0, 0] > likelihood(policy, shown["left"])
    assert np.isnan(matrix[0, 1])
    assert len(fitted) == 2
    assert (backward_transfer(matrix) == 0) == (name in ("packnet", "copies"))


def test_importances_are_the_mean_square_of_gradients(policy):
    demos = vectors(count=1, steps=2)
    found = importances(policy, demos)
    ready, squares = prepare(policy, demos), []
    for step in range(2):
        policy.zero_grad()
        scores = policy(None, ready.state[None, : step + 1], ready.goals)
        policy.log_prob(scores, ready.actions[None, : step + 1])[0, -1].backward()
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
    with pytest.raises(AcclimateError, match="tail needs start, a policy or what an earlier run gave"):
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

"""Policies that learn: cloning, closed loops, streams of tasks and their arms, and TAIL."""

import copy

import numpy as np
import pytest
import torch

from acclimate.domain.demonstrations import Demonstrations, Trajectory
from acclimate.engines.control import Cloning, clone, likelihood, log_probs, prepare, rollouts, success_rate
from acclimate.engines.control_stream import ControlTask, Copies, Packed, Sequential, TaskAdapters, importances, stream
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model.injected import Injected
from acclimate.models.control import Policy
from acclimate.parts.continual import backward_transfer, claimed, ewc_penalty, final_success, forward_transfer
from control_tools import FEW, Line, policy, task, trajectory, walks
from strategy_tools import Notes

# ---- cloning


def test_a_policy_refuses_what_it_cannot_read():
    net = policy()
    for demos, said in (
        (Demonstrations("d", [trajectory(state=np.zeros((3, 4), np.float32))]), r"state \[4\], but the policy reads \[2\]"),
        (Demonstrations("d", [trajectory(image=np.zeros((3, 1, 2, 2)))]), "the policy reads None"),
        (Demonstrations("d", [trajectory(actions=np.array([0, 2, 0]))]), "has action 2, but the policy has 2"),
        (Demonstrations("d", [trajectory(actions=np.zeros((3, 2), np.float32))]), r"shape \[2\] \(none = choices\)"),
        (Demonstrations("d", [trajectory("stop")]), "does not know the word 'stop'"),
    ):
        with pytest.raises(AcclimateError, match=said):
            prepare(net, demos)


def test_every_frame_stands_in_one_window():
    ready = prepare(policy(), Demonstrations("d", [trajectory(steps=steps) for steps in (1, 3, 10)]))
    for draw in (None, torch.Generator().manual_seed(0)):
        for _ in range(5):
            windows = ready.windows(3, draw)
            assert sorted(windows[windows >= 0].tolist()) == list(range(14))
            for row in windows:
                real = row[row >= 0]
                assert (real.diff() == 1).all()
                assert any(first <= real[0] and real[-1] < last for first, last in ready.borders)
    windows, counts = ready.looks(3)
    assert sorted(windows[counts].tolist()) == list(range(14))
    for row, counted in zip(windows, counts, strict=True):
        for place in counted.nonzero()[:, 0].tolist():
            first = next(first for first, last in ready.borders if first <= row[place] < last)
            assert place == min(int(row[place]) - first, 2)  # as many steps before it as there are, two at most


def test_likelihood_is_that_of_each_action_given_its_last_steps():
    net, demos = policy(3), Demonstrations.together("d", [walks("go left"), walks("go right now")])
    total, steps = 0.0, 0
    for each in demos.trajectories:
        goals, state = net.goal_ids([each.goal]), torch.from_numpy(each.state)
        for t in range(len(each)):
            with torch.no_grad():
                scores = net(None, state[None, max(0, t - 2) : t + 1], goals)[0, -1]
            total, steps = total + float(scores.log_softmax(-1)[each.actions[t]]), steps + 1
    assert likelihood(net, demos) == pytest.approx(total / steps, abs=1e-5)
    ready = prepare(net, demos)
    windows = ready.windows(3)
    with torch.no_grad():
        together, apart = log_probs(net, ready, windows), torch.cat([log_probs(net, ready, row[None]) for row in windows])
    assert torch.allclose(together, apart, atol=1e-5)
    assert likelihood(net, demos, 1) != likelihood(net, demos)
    with pytest.raises(AcclimateError, match="window = 4, but the policy looks back on 3"):
        likelihood(net, demos, 4)


def test_padding_of_actions_does_not_count():
    net = policy(actions=0, action_width=3)
    state, actions = np.ones((4, 2), np.float32), np.ones((4, 3), np.float32)
    other = actions * [1, 1, 50]
    found = [
        likelihood(net, Demonstrations("d", [Trajectory("go", given.astype(np.float32), state=state, used=used)]))
        for given, used in ((actions, 2), (other, 2), (other, 0))
    ]
    assert found[0] == found[1] != found[2]


@pytest.fixture(scope="module")
def walker():
    """A policy that walks left and right as it is told."""
    net = policy()
    both = [Demonstrations.together("d", [walks("go left", 12, seed), walks("go right", 12, seed)]) for seed in (0, 50)]
    found = clone(net, *both, Cloning(epochs=40, patience=0, lr=1e-2, batch=8), 0)
    assert found.held < 0.1 < found.curve[0]["held"]
    return net


def test_a_cloned_policy_reaches_its_goals(walker):
    for goal in ("go left", "go right"):
        assert success_rate(walker, lambda goal=goal: Line(goal), range(20)) == 1
    assert success_rate(walker, lambda: Line("go left"), range(4), window=1) == 1
    with pytest.raises(AcclimateError, match="no seeds"):
        rollouts(walker, Line, [])


class Noise(Line):
    """Observations that nobody decides on; episodes of two to six steps."""

    def reset(self, *, seed=None):
        self.draw = np.random.default_rng(seed)
        self.left = 2 + seed % 5
        return self.seen(), {"success": False}

    def seen(self):
        return {"state": self.draw.normal(size=2).astype(np.float32)}

    def step(self, action):
        self.left -= 1
        return self.seen(), 0.0, False, not self.left, {"success": False}


def test_rollouts_take_the_likeliest_action_of_the_last_steps():
    net = policy(5)
    with torch.no_grad():
        net.head.weight.mul_(20)
    found = rollouts(net, Noise, range(10))
    assert [len(each) for each in found] == [2, 3, 4, 5, 6] * 2
    assert {int(action) for each in found for action in each.actions} == {0, 1}
    for each in found:
        for t in range(len(each)):
            with torch.no_grad():
                scores = net(None, torch.from_numpy(each.state)[None, max(0, t - 2) : t + 1], net.goal_ids([each.goal]))
            assert scores[0, -1].argmax() == each.actions[t]
    assert [len(each) for each in rollouts(net, Noise, [4], most=3)] == [3]
    assert not Demonstrations("made", found).trajectories[0].success  # they are trajectories like any other


def test_early_stopping_keeps_the_best_epoch():
    net = policy()
    found = clone(net, walks("go left"), walks("go right", 3), Cloning(epochs=30, patience=3, lr=1e-2), 0)
    assert found.kept == 0  # the more it learns to go left, the worse
    assert len(found.curve) == 3
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in policy().state_dict().items())


def test_the_same_seed_gives_the_same_weights_and_failures_are_one_line():
    made = [policy(dropout=0.2) for _ in range(2)]
    for net in made:
        clone(net, walks(), walks(count=2, seed=9), Cloning(**FEW), 1)
    assert all(torch.equal(value, made[1].state_dict()[name]) for name, value in made[0].state_dict().items())
    with pytest.raises(AcclimateError, match="nothing of the policy learns"):
        clone(policy().requires_grad_(False), walks(), walks(), Cloning(), 0)
    made[0].head.bias.data.fill_(torch.nan)
    with pytest.raises(AcclimateError, match="the loss is nan in epoch 1; lower lr"):
        clone(made[0], walks(), walks(), Cloning(), 0)


# ---- continual learning


def test_penalty_and_claims():
    with pytest.raises(AcclimateError, match="no anchor"):
        ewc_penalty({"w": torch.ones(1)}, {}, {"w": torch.ones(1)}, 1.0)
    assert ewc_penalty({}, {}, {}, 1.0) == 0
    taken = claimed(torch.arange(10.0), torch.arange(10) < 7, 0.4)
    assert taken.nonzero()[:, 0].tolist() == [3, 4, 5, 6]
    assert claimed(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), 0.5).sum() == 3  # also where nothing changed
    assert not claimed(torch.ones(4), torch.zeros(4, dtype=torch.bool), 1.0).any()


def test_transfer_needs_what_it_is_made_of():
    with pytest.raises(AcclimateError, match="task 2 was not measured right after"):
        forward_transfer([[1, 0], [1, np.nan]])
    with pytest.raises(AcclimateError, match="task 1 was not measured at the end"):
        backward_transfer([[1, np.nan], [np.nan, 1]])
    with pytest.raises(AcclimateError, match="at least two"):
        backward_transfer([[1.0]])
    with pytest.raises(AcclimateError, match="must be \\[task, task\\]"):
        final_success([[1.0, 2.0]])


def test_importances_are_mean_squares_of_single_gradients():
    net, demos = policy(2), walks(count=2)
    found, steps = {name: torch.zeros_like(weight) for name, weight in net.named_parameters()}, 0
    for each in demos.trajectories:
        for t in range(len(each)):
            net.zero_grad()
            scores = net(None, torch.from_numpy(each.state)[None, max(0, t - 2) : t + 1], net.goal_ids([each.goal]))
            scores[0, -1].log_softmax(-1)[each.actions[t]].backward()
            steps += 1
            for name, weight in net.named_parameters():
                found[name] += 0 if weight.grad is None else weight.grad.square()
    ours = importances(net, demos)
    assert all(torch.allclose(ours[name], value / steps, atol=1e-7) for name, value in found.items())


def scores_of(learner, goal="go left"):
    """What a policy says to some fixed observations."""
    state = torch.linspace(-1, 1, 24).view(4, 3, 2)
    with torch.no_grad():
        return learner.eval()(None, state, learner.goal_ids([goal] * 4))


def said(arm, name):
    with arm.using(name) as learner:
        return scores_of(learner).clone()


TAILS = ["lora", "bottleneck", "prefix", "none"]


@pytest.mark.parametrize("kind", TAILS)
def test_old_tasks_act_as_before_to_the_bit(walker, kind):
    start = copy.deepcopy(walker.state_dict())
    arm = load("adapters.tail", kind=kind, size=int(kind != "none"), lr=1e-2, epochs=3).arm(walker)
    arm.learn(task("go left now"), 0)
    before = said(arm, "go-left-now")
    with arm.using("go-left-now") as learner:
        saved = rollouts(learner, Line, range(3))
    for goal in ("go right now", "now go left"):
        arm.learn(task(goal), 0)
    assert torch.equal(said(arm, "go-left-now"), before)
    assert not torch.equal(said(arm, "go-right-now"), before)
    assert torch.equal(scores_of(arm.policy), scores_of(walker))  # outside a task it is the pretrained policy
    assert all(torch.equal(value, walker.state_dict()[name]) for name, value in start.items())
    assert all(torch.equal(value, dict(arm.policy.net.state_dict())[name]) for name, value in start.items())
    with arm.using("go-left-now") as learner:
        again = rollouts(learner, Line, range(3))
    assert all((one.actions == two.actions).all() for one, two in zip(saved, again, strict=True))


@pytest.mark.parametrize("kind", TAILS)
def test_what_a_task_learns(walker, kind):
    arm = load("adapters.tail", kind=kind, size=int(kind != "none"), lr=1e-2, epochs=3, patience=0).arm(walker)
    found = arm.learn(task("go right now"), 0)
    assert found.weights == arm.trained("go-right-now") == arm.stored
    own = arm.own["go-right-now"]
    assert set(own) == {"fusion", "head"}
    if kind == "none":
        assert not arm.policy.adapters
        return
    places = {key.split("/")[0] for key in arm.policy.adapters["go-right-now"]}
    assert places == {"text", "spatial", "temporal"}  # all three modules
    assert not any(weight.requires_grad for weight in arm.policy.parameters())


def test_kinds_are_of_one_size():
    net = Policy(["go"], image=(12, 15), state=3, actions=6)
    whole = sum(weight.numel() for weight in net.parameters())
    assert 0.9e6 < whole < 1.1e6
    for kind in TAILS[:3]:
        made = Injected(copy.deepcopy(net)).add("a", load("adapters.tail", kind=kind).adapter(net))
        weights = sum(weight.numel() for weight in made.adapters.parameters())
        assert abs(weights / whole - 0.01) < 0.002
        assert load("adapters.tail", kind=kind, share=0.03).size_on(net) > load("adapters.tail", kind=kind).size_on(net)


def test_a_task_that_fails_leaves_nothing(walker):
    arm = load("adapters.tail", size=1).arm(walker)
    before = scores_of(arm.policy).clone()
    with pytest.raises(AcclimateError, match="does not know the word 'stop'"):
        arm.learn(ControlTask("stop", Demonstrations("d", [trajectory("stop")]), walks()), 0)
    assert arm.tasks == list(arm.policy.adapters) == []
    assert torch.equal(scores_of(arm.policy), before)
    arm.learn(task("go left", "a"), 0)
    for name in ("a", "a.b", ""):
        with pytest.raises(AcclimateError, match="cannot be named"):
            arm.learn(task("go left", name or " "), 0)
    with pytest.raises(AcclimateError, match="no task 'b' was learned; known: a"), arm.using("b"):
        pass


def test_a_task_may_begin_as_the_one_before(walker):
    for begin in ("fresh", "previous"):
        arm = load("adapters.tail", size=1, lr=1e-2, epochs=4, start=begin).arm(walker)
        arm.learn(task("go right now", "a"), 0)
        arm.training = Cloning(epochs=1, lr=0.0, weight_decay=0.0)  # so that the start is all there is
        arm.learn(task("go left now", "b"), 0)
        assert torch.equal(said(arm, "b"), said(arm, "a")) == (begin == "previous")
        assert torch.equal(said(arm, "b"), scores_of(walker)) == (begin == "fresh")


def test_the_nearest_goal_chooses_the_task(walker):
    arm = load("adapters.tail", size=1, epochs=1).arm(walker)
    with pytest.raises(AcclimateError, match="no task was learned yet"):
        arm.select("go left")
    for goal in ("go left", "go right"):
        arm.learn(task(goal), 0)
    assert arm.select("go left now") == "go-left"
    assert arm.select("go right now") == "go-right"
    with pytest.raises(AcclimateError, match="does not know the word"):
        arm.select("halt")


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_tasks_are_saved_without_the_policy(walker, tmp_path, kind):
    arm = load("adapters.tail", kind=kind, size=int(kind == "lora"), lr=1e-2, epochs=2).arm(walker)
    for goal in ("go left now", "go right now"):
        arm.learn(task(goal), 0)
    arm.save_pretrained(tmp_path / "tasks")
    assert sum(path.stat().st_size for path in (tmp_path / "tasks").iterdir()) < 4 * sum(w.numel() for w in walker.parameters())
    again = TaskAdapters.from_pretrained(walker, tmp_path / "tasks")
    assert again.tasks == arm.tasks
    assert all(torch.equal(said(again, name), said(arm, name)) for name in arm.tasks)
    assert again.select("go right now") == "go-right-now"
    again.learn(task("go left", "more"), 0)
    with pytest.raises(AcclimateError, match="load that policy"):
        TaskAdapters.from_pretrained(policy(9), tmp_path / "tasks")


def test_sequential_tuning_forgets_and_the_others_less(walker):
    plan = Cloning(epochs=8, patience=0, lr=1e-2)
    tasks = [task("now left", count=4), task("now right", count=4)]  # goals the policy has not seen

    def moved(arm):
        matrix, fitted = stream(arm, tasks, 0, lambda learner, name: success_rate(learner, lambda: Line(name.replace("-", " ")), range(8)))
        assert len(fitted) == 2
        assert np.isnan(matrix[0, 1])
        return matrix

    for arm in (Copies(walker, plan), Packed(walker, plan, 0.5)):
        assert backward_transfer(moved(arm)) == 0
    plain, held = Sequential(walker, plan), Sequential(walker, plan, ewc=1e6)
    assert forward_transfer(moved(plain)) == 1
    moved(held)
    start = list(walker.parameters())
    distance = [sum((one - two).square().sum() for one, two in zip(arm.policy.parameters(), start, strict=True)) for arm in (plain, held)]
    assert distance[1] < distance[0]
    again = Sequential(walker, plan, replay=2)
    assert moved(again)[-1].tolist() == [1, 1]
    assert [len(kept) for kept in again.kept] == [2, 2]
    whole = sum(weight.numel() for weight in walker.parameters())
    assert plain.stored == whole
    assert held.stored == 3 * whole
    assert again.stored == whole + sum(3 * kept.steps for kept in again.kept)


def test_packed_tasks_act_as_before_to_the_bit(walker):
    arm = Packed(walker, Cloning(**FEW), 1 / 3)
    given = [task("now left"), task("now right"), task("go now left")]
    seen = {}
    for each in given:
        arm.learn(each, 0)
        seen[each.name] = said(arm, each.name)
    for name, before in seen.items():
        assert torch.equal(said(arm, name), before)
    taken = torch.cat([owner.flatten() for owner in arm.owner.values()])
    assert set(taken.tolist()) <= {0, 1, 2, 3}
    assert all((taken == number).float().mean() == pytest.approx(1 / 3, abs=0.05) for number in (1, 2, 3))
    with pytest.raises(AcclimateError, match="share = 0"):
        Packed(walker, Cloning(), 0.0)


# ---- TAIL


def test_the_strategy_learns_tasks_and_goes_on_later(walker):
    method, bench = load("adapters.tail", size=1, demos=5, held=2, epochs=2, lr=1e-2), Notes()
    first = method.run(bench, start=walker, tasks={"a": walks("go left now"), "b": walks("go right now")})["adapted"]
    assert set(bench.notes["table"]) == {"a", "b"}
    assert bench.notes["table"]["a"]["weights"] == first.trained("a")
    before = said(first, "a")
    later = method.run(bench, start=first, tasks={"c": walks("now left")})["adapted"]
    assert (first.tasks, later.tasks) == (["a", "b"], ["a", "b", "c"])  # the earlier one stays as it was
    assert torch.equal(said(later, "a"), before)
    assert torch.equal(said(first, "a"), before)
    other = load("adapters.tail", kind="bottleneck", size=1, demos=5, epochs=1).run(bench, start=first, tasks={"c": walks("now left")})
    assert other["adapted"].policy.specs["c"]["use"] == "adapters.bottleneck"
    chosen = method.task("a", walks(count=20), 0)
    assert (len(chosen.demos), len(chosen.held)) == (3, 2)


def test_the_strategy_refuses_what_it_cannot_do(walker):
    with pytest.raises(AcclimateError, match="held = 3 leaves nothing"):
        load("adapters.tail", demos=3, held=3)
    with pytest.raises(AcclimateError, match="needs start, a policy"):
        load("adapters.tail").run(Notes(), start=walker)
    with pytest.raises(AcclimateError, match="kind = 'ia3'"):
        load("adapters.tail", kind="ia3")
    with pytest.raises(AcclimateError, match="window = 8, but the policy looks back on 3"):
        load("adapters.tail", window=8, demos=4).run(Notes(), start=walker, tasks={"a": walks()})

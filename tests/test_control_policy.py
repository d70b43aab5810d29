"""Policies: what they see and when, likelihoods, files; demonstrations."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from acclimate.checks import tiny
from acclimate.domain.demonstrations import Demonstrations, words_of
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model.injected import Injected
from acclimate.models.control import Policy, mixture_log_prob
from acclimate.parts.continual import backward_transfer, ewc_penalty, faded, final_success, forward_transfer
from control_tools import CASES, SMALL, policy, trajectory

# ---- numbers of an independent source


def figure(case):
    inputs = case["inputs"]
    if inputs["figure"] == "transfer":
        matrix = np.array(inputs["matrix"], dtype=float)
        return [forward_transfer(matrix), backward_transfer(matrix), final_success(matrix)]
    if inputs["figure"] == "ewc":
        old, new = ({"w": torch.tensor(value)} for value in inputs["importance"])
        weights, anchors = ({"w": torch.tensor(inputs[key])} for key in ("weights", "anchors"))
        return [ewc_penalty(weights, anchors, faded(old, new, inputs["decay"]), inputs["strength"]).item()]
    about = {**SMALL, "image": (2, 4), "state": 2, "action_width": 2, "longest": 4, "patch": 2, "mixtures": 2}
    net = Policy(["go", "left", "now"], **about).eval()
    tiny.fill(net.parameters())
    held = Injected(net)
    if case["settings"]["kind"] != "none":
        held.add("a", load(case["method"], **case["settings"]).adapter(net))
        tiny.fill(held.adapters.parameters())
    image = torch.arange(1, 97, dtype=torch.float64).sin().view(1, 3, 2, 4, 4).float()
    state = torch.arange(1, 7, dtype=torch.float64).cos().view(1, 3, 2).float()
    actions = (2 * torch.arange(1, 7, dtype=torch.float64)).sin().view(1, 3, 2).float()
    with torch.no_grad():
        return net.log_prob(held(image, state, net.goal_ids([inputs["goal"]])), actions)[0].tolist()


@pytest.mark.parametrize("case", CASES, ids=[f"{case['inputs']['figure']}-{i}" for i, case in enumerate(CASES)])
def test_reference(case):
    assert case["source"].strip()
    assert figure(case) == pytest.approx(case["expected"], rel=case["tolerance"], abs=case["tolerance"]), case["source"]


# ---- the policy


@pytest.mark.parametrize("adapter", ["", "lora", "prefix"])
def test_a_step_sees_nothing_that_comes_after_it(adapter):
    net = policy(image=(2, 4), patch=2)
    held = Injected(net)
    if adapter:
        held.add("a", load("adapters.tail", kind=adapter, size=2).adapter(net))
        torch.nn.init.normal_(next(iter(held.adapters.parameters())))
    draw = torch.Generator().manual_seed(0)
    image, state = torch.randn(2, 3, 2, 4, 4, generator=draw), torch.randn(2, 3, 2, generator=draw)
    goals = net.goal_ids(["go left", "go right now"])
    with torch.no_grad():
        before = held(image, state, goals)
        image[:, 2], state[:, 2] = 9.0, -9.0
        after = held(image, state, goals)
        assert torch.allclose(before[:, :2], after[:, :2], atol=1e-6)
        assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-3)
        state[:, 0] = 5.0
        assert not torch.allclose(held(image, state, goals)[:, 1:], after[:, 1:], atol=1e-4)  # but all that came before
        assert torch.allclose(held(image[:, :2], state[:, :2], goals), held(image, state, goals)[:, :2], atol=1e-6)  # padding is nothing


def test_goals_and_padded_words():
    net = policy()
    with torch.no_grad():
        alone, both = net.text(net.goal_ids(["go left"])), net.text(net.goal_ids(["go left", "go right now now"]))
    assert torch.allclose(alone[0], both[0], atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    assert torch.isfinite(net.text(torch.zeros(1, 3, dtype=torch.long))).all()  # a row of nothing but padding is no nan
    with pytest.raises(AcclimateError, match="does not know the word 'lift' of the goal 'go lift'; nearest: left"):
        net.goal_ids(["go lift"])
    with pytest.raises(AcclimateError, match="has 17 words"):
        net.goal_ids(["go " * 17])


def test_film_scales_and_shifts_each_channel():
    fusion = policy().fusion
    goal, x = torch.randn(2, 4), torch.randn(2, 5, 5, 4)
    gamma, beta = fusion.gamma(goal), fusion.beta(goal)
    expected = torch.stack([gamma[i] * x[i, 2, 3] + beta[i] for i in range(2)])
    assert torch.allclose(fusion(x, goal)[:, 2, 3], expected, atol=1e-6)
    assert torch.allclose(fusion(x, torch.zeros(2, 4)), x)  # the identity where the goal says nothing, at the start


def test_mixture_is_that_of_torch():
    draw = torch.Generator().manual_seed(0)
    logits, means = torch.randn(4, 3, generator=draw), torch.randn(4, 3, 2, generator=draw)
    spreads, actions = torch.rand(4, 3, 2, generator=draw) + 0.1, torch.randn(4, 2, generator=draw)
    theirs = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(means, spreads), 1)).log_prob(actions)
    assert torch.allclose(mixture_log_prob(logits, means, spreads, actions), theirs, atol=1e-5)
    first = torch.tensor([True, False]).expand(4, 2)
    one = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(means[..., :1], spreads[..., :1]), 1)).log_prob(actions[:, :1])
    assert torch.allclose(mixture_log_prob(logits, means, spreads, actions, first), one, atol=1e-5)


def test_scores_of_any_size_give_finite_likelihoods_and_gradients():
    net = policy(action_width=2, actions=0, mixtures=2)
    scores = (torch.randn(6, 10) * torch.tensor([0.0, 1.0, 1e2, 1e4, -1e4, 1e6])[:, None]).requires_grad_()
    found = net.log_prob(scores, torch.full((6, 2), 3.0))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(scores.grad).all()
    best = net.act(torch.tensor([[0.0, 1.0, 9, 9, 4, 5, 0, 0, 0, 0]]))
    assert best.tolist() == [[4.0, 5.0]]  # the mean of the likelier part


def test_settings_that_make_no_policy():
    for settings, said in (
        ({"actions": 0}, "so give one"),
        ({"action_width": 2}, "so give one"),
        ({"state": 0}, "needs something to see"),
        ({"heads": 3}, "multiple of heads"),
        ({"image": (2, 5), "patch": 2}, "multiple"),
    ):
        with pytest.raises(AcclimateError, match=said):
            policy(**settings)
    with pytest.raises(AcclimateError, match="4 steps were given, but the policy looks back on 3"):
        policy()(None, torch.zeros(1, 4, 2), torch.ones(1, 1, dtype=torch.long))


def test_saved_and_loaded(tmp_path):
    net = policy(image=(2, 4), patch=2)
    net.save_pretrained(tmp_path / "net")
    again = Policy.from_pretrained(tmp_path / "net")
    given = torch.randn(1, 3, 2, 4, 4), torch.randn(1, 3, 2), net.goal_ids(["go"])
    assert torch.equal(again(*given), net(*given))
    (tmp_path / "net" / "model.safetensors").write_bytes(b"")
    with pytest.raises(AcclimateError, match="save it again"):
        Policy.from_pretrained(tmp_path / "net")


# ---- demonstrations


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"goal": " "}, "trajectory 2 has no goal"),
        ({"steps": 0}, "trajectory 2 has no steps"),
        ({"state": None}, "has no observation"),
        ({"state": np.zeros((2, 2))}, "has 3 actions, but state has 2 steps"),
        ({"state": np.zeros(3)}, r"state of shape \[3\], but it must be \[step, width\]"),
        ({"state": np.array([[0, 0], [0, np.nan], [0, 0]])}, "not finite in state, step 1"),
        ({"actions": np.array([0, -1, 0])}, "no numbers of choices"),
        ({"actions": np.zeros((3, 2), np.float32), "used": 3}, "3 of them used"),
        ({"state": np.zeros((3, 5), np.float32)}, r"the first has \(None, \(2,\), \(\)\)"),
    ],
)
def test_faulty_trajectories_are_one_line(given, said):
    with pytest.raises(AcclimateError, match=said):
        Demonstrations("d", [trajectory(), trajectory(**given)])


def test_empty_and_too_few():
    with pytest.raises(AcclimateError, match="d has no trajectories"):
        Demonstrations("d", [])
    with pytest.raises(AcclimateError, match="2 cannot be held out; hold out 1 to 1"):
        Demonstrations("d", [trajectory(), trajectory()]).split(2, 0)
    with pytest.raises(AcclimateError, match="no trajectories"):
        Demonstrations("d", [trajectory(success=False)]).successful()


def test_splits_are_by_trajectory():
    demos = Demonstrations("d", [trajectory(steps=i + 1, success=i > 2) for i in range(9)])
    learned, held = demos.split(3, 0)
    lengths = [sorted(len(each) for each in part.trajectories) for part in (learned, held)]
    assert sorted(lengths[0] + lengths[1]) == list(range(1, 10))
    assert (len(learned), len(held), demos.steps) == (6, 3, 45)
    assert demos.split(3, 0)[1].trajectories == held.trajectories != demos.split(3, 1)[1].trajectories
    assert len(demos.successful()) == 6
    assert len(demos.few(4, 0)) == 4
    assert len(demos.few(40, 0)) == 9
    assert Demonstrations.together("both", [learned, held]).words == ["go"]
    assert words_of("Go, to the ball.") == ["go", "to", "the", "ball"]


def test_states_are_scaled_and_widened():
    states = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
    demos = Demonstrations("d", [trajectory(steps=2, state=states, actions=np.ones((2, 1), np.float32))])
    ready = demos.scaled(demos.scales()).widened(3, 2)
    assert ready.trajectories[0].state.tolist() == [[-1, 0, 0], [1, 0, 0]]  # what never changes is 0
    assert ready.trajectories[0].actions.tolist() == [[1, 0], [1, 0]]
    assert ready.trajectories[0].used == 1
    assert demos.cut(1).trajectories[0].state.tolist() == [[3, 5]]
    with pytest.raises(AcclimateError, match="cannot be widened"):
        demos.widened(1, 2)
    with pytest.raises(AcclimateError, match="scales are for 3"):
        demos.scaled((np.zeros(3), np.ones(3)))

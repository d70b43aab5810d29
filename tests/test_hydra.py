"""Hydra: exact folding and taking it back, branches apart, and the analysis of features and singular subspaces."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import tiny as small
from acclimate.errors import AcclimateError
from acclimate.experiments.adapters import hydra as experiment
from acclimate.experiments.classification import fold_gap, labelled, tuned
from acclimate.method import load
from acclimate.model import Injected
from acclimate.model.roles import Site
from acclimate.parts.subspaces import cka, cosine, held_share, principal_cosines, subspace_overlap
from worlds import model_of, network

IDS = small.tokens()


def logits(net):
    with torch.no_grad():
        return net(input_ids=IDS).logits


def drawn(make, **settings):
    made = Injected(make()).add("h", load("adapters.hydra", **settings)).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in made.adapters.parameters():
        weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return made


def test_both_branches_by_hand():
    layer = nn.Linear(5, 3).double()
    part = load("adapters.hydra", r_par=2, r_seq=1, scale=0.7).wrap(Site("a", "a", 5, 3, layer)).double()
    for weight in part.parameters():
        nn.init.normal_(weight)
    x = torch.randn(4, 5, dtype=torch.float64)
    f = layer(x)
    par, seq = part.par, part.seq
    expected = torch.stack(
        [
            0.7 * (par.up.weight @ (par.down.weight @ x[i] + par.down.bias) + par.up.bias)
            + 0.7 * (seq.up.weight @ (seq.down.weight @ f[i] + seq.down.bias) + seq.up.bias)
            for i in range(4)
        ]
    )
    assert torch.allclose(part(x, f), expected, atol=1e-12)
    change, shift = part.delta(layer.weight, layer.bias)
    assert torch.allclose(f + expected, x @ (layer.weight + change).T + layer.bias + shift, atol=1e-12)


@pytest.mark.parametrize("make", [small.encoder, small.decoder, small.fused_decoder])
def test_folded_with_biases_and_taken_back(make):
    made = drawn(make, target=["ff.out", "attn.out"])
    apart, plain = logits(made), logits(make())
    kept = {name: value.clone() for name, value in made.net.state_dict().items()}
    folded = copy.deepcopy(made).merge_and_unload()
    assert (logits(folded) - apart).abs().max() < 1e-5
    assert all(torch.equal(value, kept[name]) for name, value in made.net.state_dict().items())  # the copy was folded
    known = {name: value for name, value in folded.state_dict().items() if name in kept}
    assert {name for name, value in known.items() if not torch.equal(value, kept[name])}
    for name, value in folded.named_parameters():  # W0 and b0 again; a bias that was not there is zero again
        value.data.copy_(kept.get(name, torch.zeros_like(value)))
    assert torch.equal(logits(folded), plain)


def test_one_branch_alone_is_the_others_absence():
    whole = drawn(small.encoder, r_par=2, r_seq=3)
    for branch, settings in (("par", {"r_par": 2, "r_seq": 0}), ("seq", {"r_par": 0, "r_seq": 3})):
        single = Injected(small.encoder()).add("h", load("adapters.hydra", **settings)).eval()
        for key, part in single.parts("h").items():
            assert [name for name, _ in part.named_children()] == [branch]
            getattr(part, branch).load_state_dict(getattr(whole.parts("h")[key], branch).state_dict())
        other = copy.deepcopy(whole)
        for part in other.parts("h").values():
            for weight in getattr(part, "seq" if branch == "par" else "par").parameters():
                weight.data.zero_()
        assert torch.allclose(logits(single), logits(other), atol=1e-6)
    with pytest.raises(AcclimateError, match="both 0"):
        Injected(small.encoder()).add("h", load("adapters.hydra", r_par=0, r_seq=0))


def test_arms_of_the_experiment_are_of_about_equal_size():
    """At the width of the real encoder: 384, with 1536 inner units."""
    sizes = {}
    for name, method in experiment.arms(False).items():
        if method is not None:
            places = [(384, 384)] * 2 if name == "LoRA q,v" else [(1536, 384)]
            parts = [method.wrap(Site("a", "a", a, b, nn.Linear(a, b))) for a, b in places]
            sizes[name] = sum(weight.numel() for part in parts for weight in part.parameters())
    assert all(sizes["Hydra"] <= size <= 1.1 * sizes["Hydra"] for size in sizes.values()), sizes


# analysis


def test_cka_agrees_with_the_kernel_form_and_ignores_rotation():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(30, 6)), draw.normal(size=(30, 4))
    y[:, :2] += x[:, :2]
    centre = np.eye(30) - 1 / 30
    k, other = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * other).sum() / np.sqrt((k * k).sum() * (other * other).sum())
    assert cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-10)
    turn = np.linalg.qr(draw.normal(size=(6, 6)))[0]
    assert cka(torch.tensor(x), torch.tensor(2.5 * x @ turn + 1)) == pytest.approx(1, abs=1e-10)
    assert cka(torch.tensor(x), torch.ones(30, 2)) == 0
    with pytest.raises(AcclimateError, match="same inputs"):
        cka(torch.ones(3, 2), torch.ones(4, 2))


def test_principal_angles_agree_with_scipy():
    from scipy.linalg import subspace_angles

    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(9, 12)), draw.normal(size=(9, 7))
    left = [np.linalg.svd(matrix)[0][:, :3] for matrix in (a, b)]
    expected = np.cos(subspace_angles(*left))[::-1]
    found = principal_cosines(torch.tensor(a), torch.tensor(b), 3)
    assert found.numpy() == pytest.approx(np.sort(expected)[::-1], abs=1e-10)
    assert subspace_overlap(torch.tensor(a), torch.tensor(b), 3) == pytest.approx(np.linalg.norm(left[0].T @ left[1]) ** 2 / 3, rel=1e-10)
    assert subspace_overlap(torch.zeros(9, 12), torch.tensor(b), 3) == 0
    with pytest.raises(AcclimateError, match="share no right space"):
        principal_cosines(torch.tensor(a), torch.tensor(b), 3, "right")


def test_a_sequential_change_stays_in_the_inputs_of_the_weight():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 2, generator=generator) @ torch.randn(2, 20, generator=generator)  # rank 2
    behind = torch.randn(6, 6, generator=generator) @ weight
    beside = torch.randn(6, 20, generator=generator)
    assert held_share(behind, weight, 2, "right") == pytest.approx(1, abs=1e-6)
    assert subspace_overlap(behind, weight, 5, "right") == pytest.approx(1, abs=1e-6)  # cut to the rank there is
    assert held_share(beside, weight, 2, "right") < 0.5
    assert held_share(torch.zeros(6, 20), weight, 2) == 0


def test_mean_cosine():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert cosine(x, torch.tensor([[3.0, 0.0], [0.0, -1.0], [1.0, 1.0]])) == pytest.approx(0)
    assert cosine(x[:2], x[:2]) == pytest.approx(1)


# the shared way to train a classifier


def test_a_trained_hydra_is_measured_on_the_model_it_stands_on(mask_tokenizer):
    net = network("bert", mask_tokenizer)
    model = model_of(net, mask_tokenizer, "masked")
    before = copy.deepcopy(net.state_dict())
    sets = labelled("made-up", (20, 8, 8), 0, tiny=True)
    done, learner = tuned(model, load("adapters.hydra"), sets, steps=6, seed=0, lr=1e-2, width=32)
    assert done.classes == ["biomedical", "software"]
    assert set(done.scores) == {"macro_f1", "accuracy", "dev_f1"}
    assert [step for step, _ in done.fitted.looks] == [3, 6]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all((part.par.up.weight != 0).any() for part in learner.net.parts("default").values())
    assert 0 < fold_gap(learner, sets["test"].texts, 32) < 1e-4
    found = experiment.overlaps(learner, 4)
    assert 0 < found["parallel"]["energy"] < 1
    assert experiment.alike(learner, sets["test"].texts, 32)["sequential"]["cka"] > 0
    again, _ = tuned(model, load("adapters.hydra"), sets, steps=6, seed=0, lr=1e-2, width=32)
    assert again.fitted.curve == done.fitted.curve
    alone, plain = tuned(model, None, sets, steps=2, seed=0, width=32)
    assert not isinstance(plain.net, Injected)
    assert alone.fitted.curve[-1]["step"] == 2

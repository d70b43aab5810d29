"""TSDA: many targets at once, what the tree does to encodings, a flat tree as in DANN, and what is said when something is missing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from acclimate.checks import _shifted
from acclimate.engines.shift import Data, Learner, Sampler, Training, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.parts.taxonomy import hops

FLAT = torch.ones(4, 4) - torch.eye(4)


def trained(method, steps: int = 300, seed: int = 0, **given) -> Learner:
    learner, data = _shifted.learner("table", seed), replace(_shifted.table(), **given)
    fit(method, learner, data, Training(steps=steps, batch=16, target_batch=16, lr=1e-3, choose="last", looks=1, seed=seed))
    return learner


def apart(learner: Learner, encode) -> np.ndarray:
    """Squared distances of the domains' mean encodings, in units of the variance within domains [domain, domain]."""
    data = _shifted.table()
    with torch.no_grad():
        z = [encode(learner, pool.x, number) for number, pool in enumerate([*data.labelled, data.target])]
    within = torch.stack([rows.var(0).sum() for rows in z]).mean()
    means = torch.stack([rows.mean(0) for rows in z])
    return (torch.cdist(means, means).square() / within).numpy()


def of_tsda(learner: Learner, x, number: int):
    return load("domain_adaptation.tsda")._encode(learner, x, learner.memory["vectors"][number].expand(len(x), -1))


def features(learner: Learner, x, number: int):
    return learner.features(x)


def test_a_flat_tree_aligns_as_dann_does():
    flat = apart(trained(load("domain_adaptation.tsda", hidden=32, together=0.0), distances=FLAT), of_tsda)
    dann = apart(trained(load("domain_adaptation.dann", domains="all", hidden=(32, 32), gamma=0.0)), features)
    plain = apart(trained(load("domain_generalization.erm")), features)
    assert max(flat.max(), dann.max()) < 0.5 * plain.max()


def test_the_map_has_the_distances_of_the_tree():
    wanted = hops(["a/one", "a/two", "b/one", "b/two"])
    maps = [trained(load("domain_adaptation.tsda", hidden=32), seed=seed, distances=wanted).memory["map"] for seed in range(3)]
    u, v = np.triu_indices(4, 1)
    alike = [np.corrcoef(torch.cdist(found, found).numpy()[u, v], wanted.numpy()[u, v])[0, 1] for found in maps]
    assert np.median(alike) > 0.6  # six distances; single seeds lie between 0.3 and 0.98


def test_many_targets_give_as_many_rows_each():
    data = _shifted.table()
    target = data.target.select(range(20))
    others = [replace(data.target.select(range(20, 40)), name="further"), replace(data.target.select(range(40, 47)), name="furthest")]
    more = Data(data.labelled, target, (), data.classes, hops([f"{n // 2}/{n}" for n in range(6)]), others=others)
    assert more.names == ["domain 0", "domain 1", "domain 2", "domain 3", "further", "furthest"]
    batch = Sampler(more.targets, 5, 0, 3)[2]
    assert batch.domain.tolist() == [3] * 5 + [4] * 5 + [5] * 5
    assert more.whole_target.sizes == [20, 20, 7]
    learner = _shifted.learner("table")
    fit(load("domain_adaptation.tsda", hidden=8), learner, more, Training(steps=2, batch=5, target_batch=5))
    assert learner.memory["map"].shape == (6, 2)
    assert learner.place("further").number == 4
    with pytest.raises(AcclimateError, match="leak"):
        Data(data.labelled, target, others=[replace(data.labelled[0], name="new")])


def test_vectors_that_are_given_are_not_learned():
    learner = trained(load("domain_adaptation.tsda", hidden=8, vectors="given"), steps=5)
    assert torch.equal(learner.memory["vectors"], learner.about)


def test_what_is_missing_is_said():
    with pytest.raises(AcclimateError, match=r"Data\.distances"):
        fit(load("domain_adaptation.tsda"), _shifted.learner("table"), replace(_shifted.table(), distances=None))
    learner = trained(load("domain_adaptation.tsda", hidden=8), steps=5)
    with pytest.raises(AcclimateError, match="must know which domain"):
        load("domain_adaptation.tsda").predict(learner, torch.zeros(1, 4), learner.place("elsewhere"))

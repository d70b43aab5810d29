"""Similarity DA: votes of neighbours, label words, the likeness loss across widths, and what is handed over."""

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.checks import _shifted
from acclimate.engines.shift import Data, Learner, Pool, Training, accuracy, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.methods.domain_adaptation.similarity_da import likeness, votes


def test_likeness_across_widths_agrees_with_loops_in_numpy():
    draw = np.random.default_rng(0)
    large, small, t, found = draw.normal(size=(6, 9)), draw.normal(size=(6, 2)), 0.3, 0.0

    def row(x, i):
        cosines = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in range(6) if j != i]
        share = np.exp(np.array(cosines) / t)
        return share / share.sum()

    for i in range(6):
        p, q = row(large, i), row(small, i)
        found += (p * np.log(p / q)).sum() / 6
    assert likeness(torch.tensor(large), torch.tensor(small), t).item() == pytest.approx(found, rel=1e-9)
    assert likeness(torch.tensor(large), 3 * torch.tensor(large), t).item() == pytest.approx(0, abs=1e-12)
    assert likeness(torch.ones(1, 3), torch.ones(1, 2), t) == 0  # a row alone is like no other


def test_votes_do_not_depend_on_the_scale_of_the_space():
    draw = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(5, 3, generator=draw), torch.randn(7, 3, generator=draw)
    one, two = votes(queries, keys, 3, 0.1), votes(1000 * queries, 1000 * keys, 3, 0.1)
    assert torch.equal(one[1], two[1])
    assert torch.allclose(one[0], two[0], atol=1e-4)
    assert votes(queries, keys, 99, 0.1)[0].shape == (5, 7)


def shifted(said=None):
    """A table whose larger model sees the classes without the shift."""
    data, learner = _shifted.table(), _shifted.learner("table")
    clear = torch.Generator().manual_seed(5)
    whole = [*data.labelled, data.oracle]
    seen = [torch.nn.functional.one_hot(pool.y, 2) + 0.1 * torch.randn(len(pool), 2, generator=clear) for pool in whole]
    learner.memory |= {"source_vectors": torch.cat(seen[:3]), "target_vectors": seen[3]}
    if said is not None:
        learner.memory["said"] = said
    return data, learner


def test_with_a_better_space_it_beats_plain_training():
    data, learner = shifted()
    method = load("domain_adaptation.similarity_da")
    fit(method, learner, data, Training(steps=300, batch=24, lr=0.003, choose="last"))
    plain, _ = _shifted.source_model("table")
    assert accuracy(method, learner, data.oracle) > 0.9 > accuracy(load("domain_generalization.erm"), plain, data.oracle)
    assert learner.memory["neighbours"].shape == (48, 16)
    assert torch.allclose(learner.memory["votes"].sum(1), torch.ones(48))  # over the three sources


def test_label_words_are_mixed_in():
    said = torch.tensor([[1.0, 0.0]]).expand(48, 2)
    for share in (0.0, 0.25, 1.0):
        data, learner = shifted(said)
        method = load("domain_adaptation.similarity_da", neighbours=share)
        method.begin(learner, data.source, data.whole_target)
        alone = load("domain_adaptation.similarity_da", neighbours=1.0)
        data, other = shifted(said)
        alone.begin(other, data.source, data.whole_target)
        assert torch.allclose(learner.memory["labels"], share * other.memory["labels"] + (1 - share) * said)


def test_the_source_teaches_nothing():
    data, learner = shifted()
    method = load("domain_adaptation.similarity_da")
    method.begin(learner, data.source, data.whole_target)
    found = [next(iter(method.step(learner, source, data.whole_target))) for source in (data.source, None)]
    assert torch.equal(*found)


def test_token_ids_need_vectors():
    rows = torch.arange(12).view(4, 3)
    data = Data([Pool("a", rows, torch.tensor([0, 1, 0, 1]))], Pool("b", rows + 1), classes=["no", "yes"])
    learner = Learner(nn.Sequential(nn.Embedding(20, 4), nn.Flatten()), ["no", "yes"], width=12)
    method = load("domain_adaptation.similarity_da", k=2)
    with pytest.raises(AcclimateError, match=r"4 source rows.*holds none"):
        fit(method, learner, data, Training(steps=2))
    learner.memory |= {"source_vectors": torch.rand(4, 5), "target_vectors": torch.rand(3, 5)}
    with pytest.raises(AcclimateError, match=r"4 target rows.*holds 3"):
        fit(method, learner, data, Training(steps=2))
    learner.memory["target_vectors"] = torch.rand(4, 5)
    fit(method, learner, data, Training(steps=2, choose="last"))


def test_a_decoder_gives_its_last_tokens_state():
    from acclimate.engines.embed import embed

    class Net:
        def __call__(self, input_ids, attention_mask, output_hidden_states):
            class Out:
                last_hidden_state = input_ids[..., None].float()

            return Out()

    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert embed(Net(), {"input_ids": ids, "attention_mask": mask}, "last").flatten().tolist() == [7, 9]

"""Map-tuning: entities of a graph put into texts, mention-masked training with dropout, plugs into models tuned before the map."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.engines import overlay as engine
from acclimate.engines import transe
from acclimate.engines.staged import Stage, fit
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import fingerprint
from acclimate.model.knowledge import Knowledge, Mapped, Mention, inject
from acclimate.model.overlay import Overlay
from worlds import WORDS, domain_of, model_of, network

TOOLS = SimpleNamespace(seed=0)
NOUNS = WORDS["pipes"][0] + WORDS["kitchen"][0]


@pytest.fixture(scope="module")
def knowledge():
    return Knowledge(NOUNS, torch.randn(len(NOUNS), 6, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def masked(mask_tokenizer):
    return model_of(network("bert", mask_tokenizer), mask_tokenizer, "masked")


def linked(text, *nouns):
    return [Mention(text.index(noun), text.index(noun) + len(noun), noun) for noun in nouns]


def corpus(count=12):
    rows = []
    for i in range(count):
        head, tail = NOUNS[i % 20], NOUNS[(i + 3) % 20]
        text = f"The {head} is near the {tail}."
        rows.append({"text": text, "mentions": [vars(each) for each in linked(text, head, tail)]})
    return domain_of("linked", "text", rows)


def test_entities_stand_before_their_mentions(mask_tokenizer, knowledge):
    text = "The valve feeds the thing."
    plain = mask_tokenizer(text).input_ids
    slash = mask_tokenizer("/", add_special_tokens=False).input_ids
    mentions = [*linked(text, "valve"), Mention(text.index("thing"), text.index("thing") + 5, "unknown")]
    found = inject(mask_tokenizer, text, mentions, knowledge, 1000)
    place = found.ids.index(1000)
    assert found.ids[place : place + 1 + len(slash)] == [1000, *slash]
    assert [*found.ids[:place], *found.ids[place + 1 + len(slash) :]] == plain
    assert mask_tokenizer.decode([found.ids[i] for i in found.mentions[0]]).strip() == "valve"
    assert mask_tokenizer.decode([found.ids[i] for i in found.mentions[1]]).strip() == "thing"
    assert inject(mask_tokenizer, text, mentions, None, 1000).ids == plain
    inner = Mention(text.index("valve") - 4, text.index("valve") + 5, "pump")  # "The valve", which holds the other
    over = inject(mask_tokenizer, text, [inner, *linked(text, "valve")], knowledge, 1000)
    assert sorted(token for token in over.ids if token >= 1000) == [1000, 1001]
    assert all(over.ids[place] < 1000 for places in over.mentions.values() for place in places)
    short = inject(mask_tokenizer, text, mentions, knowledge, 1000, max_len=6)
    assert len(short.ids) == 6
    assert short.ids[-1] == mask_tokenizer.sep_token_id
    assert all(place < 5 for places in short.mentions.values() for place in places)


@torch.no_grad()
def test_the_loss_is_that_of_the_plain_network(masked, knowledge):
    """Independent: float64 copy, embeddings put together by hand, one row at a time without padding."""
    import copy

    overlay = Overlay(masked.copy(share=True).net, Mapped(knowledge, 32, 6)).eval()
    method, rows = load("inputs.map_tuning", input_dim=6), []
    for text, nouns in (("The valve cools the pump.", ("valve", "pump")), ("A cook warms butter", ("cook", "butter"))):
        rows += engine.masked_mentions(method.spell(masked, text, linked(text, *nouns), knowledge), masked.tokenizer.mask_token_id)
    assert len(rows) == 6
    net, affine = copy.deepcopy(masked.net).double(), overlay.source.map
    table, mapped = net.get_input_embeddings().weight, knowledge.vectors.double() @ affine.weight.double().T + affine.bias.double()
    both, losses = torch.cat([table, mapped]), []
    for ids, labels in rows:
        logps = net(inputs_embeds=both[ids][None]).logits[0].log_softmax(-1)
        losses += [-float(logps[i, label]) for i, label in enumerate(labels) if label >= 0]
    term = engine.mention_term(overlay, rows, size=6, seed=0, fill=masked.tokenizer.pad_token_id)
    assert term.loss(0).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_only_the_map_learns_and_the_frozen_model_drops_out(masked, knowledge):
    before, seen = fingerprint(masked.net), []
    shares = [layer.p for layer in masked.net.modules() if isinstance(layer, nn.Dropout)]
    method = load("inputs.map_tuning", input_dim=6, steps=3, batch=8, lr=1e-2)
    hook = nn.modules.module.register_module_forward_hook(
        lambda layer, *_: seen.append((layer.p, layer.training)) if isinstance(layer, nn.Dropout) else None
    )
    try:
        made = method.run(TOOLS, start=masked, knowledge=knowledge, corpus=corpus())["general"]
    finally:
        hook.remove()
    assert set(seen) == {(0.25, True)}
    assert fingerprint(masked.net) == before
    assert [layer.p for layer in made.net.modules() if isinstance(layer, nn.Dropout)] == shares
    assert [name for name, weight in made.named_parameters() if weight.requires_grad] == ["source.map.weight", "source.map.bias"]
    other = load("inputs.map_tuning", **{**method.values(), "permuted": True}).run(
        TOOLS, start=masked, knowledge=knowledge, corpus=corpus()
    )["general"]
    assert not torch.equal(other.source.vectors, made.source.vectors)
    assert torch.equal(other.source.vectors.sort(0).values, made.source.vectors.sort(0).values)


def test_general_and_task_plug_into_a_model_tuned_before(masked, knowledge):
    """Classes are known from the embeddings alone: without a plug the tuned model can only guess."""
    method = load("inputs.map_tuning", input_dim=6, steps=80, batch=16, lr=3e-2, dropout=0.0)
    classes = (knowledge.vectors[:, 0] > 0).long().tolist()
    text = "It is the one."
    mention = [Mention(7, 14, noun) for noun in NOUNS]
    plain = [method.spell(masked, text, [each], None).ids for each in mention]
    given = [method.spell(masked, text, [each], knowledge).ids for each in mention]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        headed = engine.Headed(masked.copy().net.base_model, 32, 2)
        fit(headed, {"l": engine.label_term(headed, plain, classes, size=20, seed=0)}, {".": 1e-3}, Stage(steps=10))
        before = fingerprint(headed)
        made = method.run(TOOLS, start=masked, knowledge=knowledge, corpus=corpus(), task=(headed, given, classes))
    assert fingerprint(headed) == before
    mapped = made["general"].source
    general = engine.plug(headed, mapped)
    assert engine.accuracy(general, plain, classes) == engine.accuracy(headed, plain, classes)  # texts without entities: the model itself
    assert engine.accuracy(made["task"], given, classes) > 0.8
    assert not torch.equal(made["task"].body.source.map.weight, mapped.map.weight)  # a copy was trained on
    assert engine.plug(general, None).body is headed.body
    zero = mapped.over(Knowledge(NOUNS, torch.zeros(len(NOUNS), 6)))
    assert engine.accuracy(engine.plug(headed, zero), given, classes) < 0.8


def test_what_does_not_fit_is_one_line(masked, knowledge):
    method = load("inputs.map_tuning", input_dim=128)
    with pytest.raises(AcclimateError, match="have width 6, but the map reads 128; set input_dim = 6"):
        method.run(TOOLS, start=masked, knowledge=knowledge, corpus=corpus())
    with pytest.raises(AcclimateError, match="no mention is of an entity"):
        load("inputs.map_tuning", input_dim=6).run(TOOLS, start=masked, knowledge=Knowledge(["nobody"], torch.zeros(1, 6)), corpus=corpus())
    with pytest.raises(AcclimateError, match="no column mentions"):
        load("inputs.map_tuning", input_dim=6).run(
            TOOLS, start=masked, knowledge=knowledge, corpus=domain_of("bare", "text", [{"text": "The valve."}])
        )
    with pytest.raises(AcclimateError, match="needs a masked language model"):
        method.run(TOOLS)
    with pytest.raises(AcclimateError, match="2 entities have 3 embeddings"):
        Knowledge(["a", "b"], torch.zeros(3, 2))


def test_a_map_is_stored_without_the_knowledge(knowledge, tmp_path):
    mapped = Mapped(knowledge, 32)
    mapped.save(tmp_path / "map")
    again = Mapped.load(tmp_path / "map", knowledge)
    assert torch.equal(again(torch.tensor([3])), mapped(torch.tensor([3])))
    assert sum(path.stat().st_size for path in (tmp_path / "map").iterdir()) < 2000
    with pytest.raises(AcclimateError, match="trained with other embeddings"):
        Mapped.load(tmp_path / "map", knowledge.permuted(0))


def test_transe_brings_facts_together():
    facts = [(f"town{i}", "in", f"land{i % 4}") for i in range(24)] + [(f"land{i}", "next", f"land{(i + 1) % 4}") for i in range(4)]
    made = transe.train(facts, width=16, epochs=150, batch=16)
    assert torch.allclose(made.vectors.norm(dim=1), torch.ones(len(made.names)), atol=1e-5)
    again = transe.train(facts, width=16, epochs=150, batch=16)
    assert torch.equal(made.vectors, again.vectors)
    towns = {i % 4: [made.vectors[made.number[f"town{j}"]] for j in range(24) if j % 4 == i % 4] for i in range(4)}
    same = torch.stack([torch.stack(some).mean(0) for some in towns.values()])
    found = [int((same - made.vectors[made.number[f"town{i}"]]).norm(dim=1).argmin()) == i % 4 for i in range(24)]
    assert np.mean(found) == 1.0
    with pytest.raises(AcclimateError, match="no facts"):
        transe.train([])

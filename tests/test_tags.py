"""Soft tags: templates, spans, numbers read at the last tag token, three stages, and a library that is stored and recombined."""

import json

import numpy as np
import pytest
import torch

from acclimate.domain import Domain
from acclimate.engines import overlay as engine
from acclimate.engines.staged import Stage, fit
from acclimate.errors import AcclimateError
from acclimate.execute import run
from acclimate.method import load
from acclimate.model import Model, fingerprint
from acclimate.model.overlay import Overlay
from acclimate.model.tags import Encoded, Tags, isolated, norm_matched
from acclimate.recipe import Recipe
from worlds import domain_of, sentences


def some(tiny, **names):
    """An overlay with tags by name: kind and count."""
    overlay = Overlay(tiny.copy(share=True).net, Tags.of(tiny.net))
    generator = torch.Generator().manual_seed(0)
    for name, (kind, count) in names.items():
        overlay.source.add(name, kind, count, norm_matched(tiny.net.get_input_embeddings().weight), numeric=name == "NUM")
        overlay.source.vectors[-1].data.copy_(torch.randn(count, 32, generator=generator))
    return overlay.eval()


def lengths(topic, count, seed=0):
    """Texts labelled by how many characters they have."""
    texts = [text[: 20 + 7 * (i % 9)] for i, text in enumerate(sentences(topic, count, seed))]
    return domain_of(topic, "labelled", [{"text": text, "label": str(len(text))} for text in texts])


def test_templates_expand_tags_and_find_spans(tiny):
    tags = some(tiny, LAW=("domain", 3), ART=("domain", 1), ASK=("function", 2)).source
    first, tokenizer = tags.first, tiny.tokenizer
    assert tags.ids("ART") == [first + 3]
    assert len(tags.encode("<LAW>{a}", {"a": "valve pump boiler flange"}, tokenizer, most=2).ids) == 1 + 3 + 2
    made = tags.encode("<LAW>{a} and <ART>{b}<ASK>{label}", {"a": "valve", "b": "pump", "label": "oven"}, tokenizer)

    def ids(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    law, art = [*tags.ids("LAW"), *ids("valve"), *ids(" and ")], [*tags.ids("ART"), *ids("pump")]
    front = [tokenizer.bos_token_id]
    assert made.ids == [*front, *law, *art, *tags.ids("ASK"), *ids("oven"), tokenizer.eos_token_id]
    assert made.spans == [(1, 1 + len(law)), (1 + len(law), 1 + len(law) + len(art))]
    assert made.read == 1 + len(law) + len(art) + 1
    assert made.label == made.read + 1
    with pytest.raises(AcclimateError, match=r"no tag is named 'LAV'.*LAW"):
        tags.encode("<LAV>{a}", {"a": ""}, tokenizer)
    with pytest.raises(AcclimateError, match=r"asks for \{b\}"):
        tags.encode("<LAW>{b}", {"a": ""}, tokenizer)


def test_vectors_begin_as_the_mean_embedding_at_the_mean_length(tiny):
    table = tiny.net.get_input_embeddings().weight.double().detach().numpy()
    mean = table.mean(0)
    wanted = mean / np.sqrt((mean**2).sum()) * np.sqrt((table**2).sum(1)).mean()
    start = norm_matched(torch.from_numpy(table).float())
    assert start.numpy() == pytest.approx(wanted, abs=1e-6)
    tags = Tags.of(tiny.net).add("A", "domain", 4, start)
    assert torch.equal(tags(torch.arange(4)), start.expand(4, -1))


@torch.no_grad()
def test_losses_are_those_of_the_plain_network(tiny):
    """Independent: float64 copy, one row at a time, embeddings put together by hand, no mask and no padding."""
    import copy

    overlay = some(tiny, LAW=("domain", 3), NUM=("function", 2))
    tags = overlay.source
    rows = [
        tags.encode("<LAW>{t}<NUM>{label}", {"t": t, "label": label}, tiny.tokenizer)
        for t, label in (("The pump", "12"), ("A valve opens", "3"))
    ]
    net = copy.deepcopy(tiny.net).double()
    table, vectors = net.get_input_embeddings().weight, torch.cat(list(tags.vectors)).double()
    both = torch.cat([table, vectors])
    sums, counts, whole, reads = [], [], [], []
    for row in rows:
        out = net(inputs_embeds=both[row.ids][None], output_hidden_states=True)
        logps = out.logits[0].log_softmax(-1)
        own = [float(logps[i - 1, row.ids[i]]) for i in range(row.label, len(row.ids))]
        sums.append(sum(own))
        counts.append(len(own))
        whole.append(sum(float(logps[i - 1, row.ids[i]]) for i in range(1, len(row.ids)) if row.ids[i] < tags.first))
        reads.append(float(out.hidden_states[-1][0, row.read] @ tags.heads["head_NUM"].weight[0].double()))
    found, tokens = engine.said(overlay, rows)
    assert tokens.tolist() == counts
    assert found.tolist() == pytest.approx(sums, rel=1e-5)
    assert engine.said(overlay, rows, whole=True)[0].tolist() == pytest.approx(whole, rel=1e-5)
    assert engine.text_term(overlay, rows, size=2, seed=0).loss(0).item() == pytest.approx(-sum(sums) / sum(counts), rel=1e-5)
    assert engine.numbers(overlay, "NUM", rows).tolist() == pytest.approx(reads, rel=1e-4, abs=1e-5)
    tags.scales["NUM"] = (7.5, 4.5)
    term = engine.number_term(overlay, "NUM", rows, [12.0, 3.0], weight=100.0, size=2, seed=0)
    assert term.weight == 100
    assert term.loss(0).item() == pytest.approx(((reads[0] - 1) ** 2 + (reads[1] + 1) ** 2) / 2, rel=1e-4)


@torch.no_grad()
def test_an_isolated_span_does_not_read_what_stands_before(tiny):
    overlay = some(tiny, LAW=("domain", 2), ASK=("function", 1))
    rows = [overlay.source.encode(text + "<LAW>{t}<ASK>", {"t": "The pump"}, tiny.tokenizer) for text in ("one two six", "six two one")]
    assert len(rows[0].ids) == len(rows[1].ids)
    start, end = rows[0].spans[0]
    apart, joint = (engine.read(overlay, rows, isolate=isolate) for isolate in (True, False))
    assert torch.allclose(apart[0, start:end], apart[1, start:end], atol=1e-5)
    assert not torch.allclose(joint[0, start:end], joint[1, start:end], atol=1e-3)
    assert not torch.allclose(apart[0, end:], apart[1, end:], atol=1e-4)  # the function tag reads everything
    plain = [Encoded(row.ids) for row in rows]
    assert torch.allclose(engine.read(overlay, plain, isolate=True), joint, atol=1e-5)
    assert isolated(3, []).equal(torch.ones(3, 3).bool().tril())


def test_three_stages_with_domain_tags_that_stay(tiny):
    before = fingerprint(tiny.net)
    texts = {topic: Domain.from_texts(topic, sentences(topic, 24), splits=False) for topic in ("pipes", "kitchen")}
    rows = {topic: lengths(topic, 24) for topic in texts}
    method = load("inputs.tag_llm", p_domain=3, p_function=2, steps=3, lr=0.05, batch=4, numeric=["LONG"])
    first = method.learn(tiny, texts)
    tags = engine.library(first)
    domain_vectors = [value.detach().clone() for value in tags.vectors]
    assert not torch.equal(domain_vectors[0], domain_vectors[1])
    made = method.learn(tiny, tags=tags, functions={"LONG": rows, "SPELL": {"pipes": rows["pipes"]}})
    assert list(tags.kinds) == ["pipes", "kitchen", "SPELL", "LONG"]  # functions of one domain come first
    assert list(tags.kinds.values()) == ["domain", "domain", "function", "function"]
    assert all(torch.equal(a, b) for a, b in zip(domain_vectors, tags.vectors, strict=False))
    assert fingerprint(tiny.net) == before
    labels = [float(row["label"]) for topic in rows for row in rows[topic].rows("train")]
    assert tags.scales["LONG"] == pytest.approx((np.mean(labels), np.std(labels)))
    # the function learned with pipes alone is asked of the other domain
    asked = [{"text": text} for text in texts["kitchen"].texts()[:3]]
    said = engine.choose(made, "<kitchen>{text}<SPELL>{label}", asked, ["20", "27"], tiny.tokenizer)
    assert len(said) == 3
    assert set(said) <= {"20", "27"}
    enriched = load("inputs.tag_llm", **{**method.values(), "freeze_domain_tags": False})
    enriched.learn(tiny, tags=tags, functions={"MORE": {"pipes": rows["pipes"]}})
    assert not torch.equal(tags.vectors[0], domain_vectors[0])
    assert torch.equal(tags.vectors[1], domain_vectors[1])


def test_numbers_are_learned(tiny):
    rows = lengths("pipes", 40)
    method = load(
        "inputs.tag_llm",
        p_domain=2,
        p_function=4,
        steps=60,
        lr=0.05,
        batch=16,
        numeric=["LONG"],
        function_template="{{text}}<LONG>{{label}}",
    )
    overlay = Overlay(tiny.copy(share=True).net, Tags.of(tiny.net))
    method.function(overlay, tiny.tokenizer, "LONG", {"pipes": rows}, 0)
    given = [dict(row) for row in rows.rows("train")]
    found = engine.predict(overlay, "LONG", "{text}<LONG>{label}", given, tiny.tokenizer)
    labels = np.array([float(row["label"]) for row in given])
    assert np.abs(found - labels).mean() < 0.6 * np.abs(labels - labels.mean()).mean()
    with pytest.raises(AcclimateError, match=r"no tag is named 'OTHER'|no head for numbers"):
        engine.predict(overlay, "OTHER", "{text}<OTHER>", given, tiny.tokenizer)


def test_a_library_is_stored_with_its_names_ids_and_heads(tiny, tmp_path):
    overlay = some(tiny, LAW=("domain", 3), NUM=("function", 2))
    tags = overlay.source
    tags.scales["NUM"] = (2.0, 3.0)
    tags.save(tmp_path / "tags")
    again = Tags.load(tmp_path / "tags", tiny.net)
    assert (again.kinds, again.scales, again.ids("NUM")) == (tags.kinds, tags.scales, tags.ids("NUM"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in tags.state_dict().items())
    from acclimate.checks.tiny import decoder

    with pytest.raises(AcclimateError, match=r"width 32 with .* this one has width 16"):
        Tags.load(tmp_path / "tags", decoder())
    with pytest.raises(AcclimateError, match="already"):
        tags.add("LAW", "domain", 1, torch.zeros(32))


def test_only_the_named_tag_learns(tiny):
    overlay = some(tiny, A=("domain", 2), B=("domain", 2))
    rows = [overlay.source.encode("<A>{t}<B>{label}", {"t": "pump", "label": "valve"}, tiny.tokenizer)] * 2
    kept = overlay.source.vectors[0].detach().clone()
    fit(overlay, {"t": engine.text_term(overlay, rows, size=2, seed=0)}, {overlay.source.weights("B"): 0.1}, Stage(steps=2))
    assert torch.equal(overlay.source.vectors[0], kept)
    assert not any(weight.requires_grad for weight in overlay.net.parameters())


def test_what_is_missing_is_said():
    with pytest.raises(AcclimateError, match="tag_llm needs a model and text"):
        load("inputs.tag_llm").learn(None)


def _rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_recipe_learns_tags_and_measures_the_model_behind_each(tiny, tmp_path):
    base = tiny.save(tmp_path / "base")
    for topic in ("pipes", "kitchen"):
        _rows(tmp_path / f"{topic}.jsonl", [{"text": text} for text in sentences(topic, 80)])
    rows = [{"text": text[:30], "label": "long" if len(text) > 60 else "short"} for text in sentences("pipes", 40)]
    _rows(tmp_path / "asked.jsonl", rows)
    step = {
        "as": "tags",
        "use": "inputs.tag_llm",
        "on": {"domains": {"PIPES": "pipes", "KITCHEN": "kitchen"}, "functions": {"SIZE": {"PIPES": "asked"}}},
        "with": {"p_domain": 4, "p_function": 2, "steps": 30, "lr": 0.05, "batch": 8},
    }
    recipe = {
        "model": str(base),
        "domains": {name: str(tmp_path / f"{name}.jsonl") for name in ("pipes", "kitchen", "asked")},
        "steps": [step],
        "evaluate": {"in": ["pipes"], "out": ["kitchen"]},
    }
    found = run(recipe, tmp_path / "run")
    values = {(row["model"], row["domain"]): row["value"] for row in found["results"]}
    assert values["tags.PIPES", "pipes"] < values[str(base), "pipes"]
    tags = Tags.load(tmp_path / "run" / "kept" / "tags.library", tiny.net)
    assert tags.kinds == {"PIPES": "domain", "KITCHEN": "domain", "SIZE": "function"}
    stored = Model.load(str(tmp_path / "run" / "steps" / "tags.PIPES" / "model"))  # peft's own format
    assert torch.equal(next(iter(stored.net.prompt_encoder.values())).embedding.weight, tags.vectors[0])
    again = run(recipe, tmp_path / "run")
    assert [row["value"] for row in again["results"]] == [row["value"] for row in found["results"]]
    with pytest.raises(AcclimateError, match=r"role 'corpus' of inputs.adapti_vocab is one domain, but here is"):
        Recipe.check({**recipe, "steps": [{"use": "inputs.adapti_vocab", "on": {"corpus": {"a": "pipes"}}}]})

"""Sentence encoders with adapters: losses and gradients against sentence-transformers, batches, mixed domains, saving, figures."""

import copy
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import normalize

from acclimate.domain import Domain
from acclimate.engines.embed import Contrast, Encoder, embed, embed_cached, pooling, retrieval, together, tune
from acclimate.engines.rows import padded
from acclimate.engines.sentences import SentenceBatches
from acclimate.errors import AcclimateError
from acclimate.execute import run
from acclimate.experiments.workbench import Workbench
from acclimate.measure import retrieved
from acclimate.method import load
from acclimate.model import Injected, Model
from acclimate.parts.retrieval import average_precision, recall_at
from worlds import WORDS, domain_of, model_of, network

FP32 = {"precision": "fp32"}


@pytest.fixture(scope="module")
def encoder(places, mask_tokenizer):
    """A tiny BERT without dropout, saved."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = model_of(network("bert body", mask_tokenizer, **still), mask_tokenizer, "encoder", "sentences")
    model.source = str(model.save(places / "sentences"))
    return Model.load(model.source)


def intents(name="intents", classes=6, each=6):
    """A class is two words that only training can bring together."""
    words = WORDS["pipes"][0], WORDS["kitchen"][0]
    rows = [{"text": f"It is the {words[i % 2][c]} {i}.", "label": f"c{c}"} for c in range(classes) for i in range(each)]
    made = domain_of(name, "labelled", rows)
    made.splits["test"] = made.splits["train"]
    return made


def batch_of(texts, tokenizer):
    return padded([np.array(ids) for ids in tokenizer(texts).input_ids], tokenizer.pad_token_id)


# the loss and gradient caching


def peer(folder):
    """The same network in sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    body = Transformer(folder)
    return SentenceTransformer(modules=[body, Pooling(32, pooling_mode="mean")], device="cpu")


def sides_of(domain, encoder, k=0, **settings):
    rows = SentenceBatches(domain, encoder, batch=4, width=64, seed=1, **settings)
    views = Encoder(encoder).encode(rows.anchors)
    rows.views = (views, views)
    return rows.texts(k)


@pytest.mark.parametrize("cached", [False, True])
def test_loss_and_gradient_are_those_of_sentence_transformers(encoder, cached):
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    sides = sides_of(intents(), encoder, mine=True)
    assert len(sides) == 3
    other = peer(encoder.source)
    given = {"scale": 20.0}
    theirs = (
        CachedMultipleNegativesRankingLoss(other, mini_batch_size=3, **given) if cached else MultipleNegativesRankingLoss(other, **given)
    )
    features = [dict(other.tokenizer(side, padding=True, return_tensors="pt")) for side in sides]
    for each in features:
        each.pop("token_type_ids", None)
    expected = theirs(features, torch.empty(0))
    expected.backward()
    net = copy.deepcopy(encoder.net)
    flat = [text for side in sides for text in side]
    vectors = embed_cached(net, batch_of(flat, encoder.tokenizer), "mean", 3 if cached else 0)
    mine = load("objectives.contrastive", scale=20.0).loss(*vectors.chunk(3))
    mine.backward()
    assert mine.item() == pytest.approx(expected.item(), rel=1e-5)
    compared = 0
    gradients = {name.rpartition("auto_model.")[2].removeprefix("0.model."): weight.grad for name, weight in other.named_parameters()}
    for name, weight in net.named_parameters():
        if weight.grad is not None:
            found = next(value for key, value in gradients.items() if key.endswith(name))
            assert torch.allclose(weight.grad, found, atol=1e-5, rtol=1e-4), name
            compared += 1
    assert compared > 20


def test_cached_gradient_is_the_plain_one_with_the_dropout_it_had(mask_tokenizer):
    """The chunks' dropout is drawn again as it was: without that the second pass would go through other networks."""
    net = network("bert body", mask_tokenizer).train()  # dropout 0.1
    texts = [f"The valve {i} opens." for i in range(8)]
    batch = {key: value for key, value in batch_of(texts, mask_tokenizer).items()}
    objective = load("objectives.contrastive")

    def gradient(vectors):
        net.zero_grad()
        objective.loss(*vectors.chunk(2)).backward()
        return [weight.grad.clone() for weight in net.parameters() if weight.grad is not None]

    torch.manual_seed(0)
    cached = gradient(embed_cached(net, batch, "mean", 3))
    torch.manual_seed(0)
    parts = [{key: value[i : i + 3] for key, value in batch.items()} for i in (0, 3, 6)]
    plain = gradient(torch.cat([embed(net, part, "mean") for part in parts]))
    assert max((a - b).abs().max().item() for a, b in zip(cached, plain, strict=True)) < 1e-5


def test_caching_holds_less_in_memory(encoder):
    net = copy.deepcopy(encoder.net).train()
    batch = batch_of([f"The valve {i} opens the pump near pipe {i}." for i in range(32)], encoder.tokenizer)

    def held(chunk):
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            embed_cached(net, batch, "mean", chunk)
        return kept

    assert held(4) < held(0) / 20


# batches


@pytest.mark.parametrize("mine", [False, True])
def test_no_batch_tells_apart_what_belongs_together(encoder, mine):
    domain = intents(each=5)
    rows = SentenceBatches(domain, encoder, batch=4, width=64, seed=0, mine=mine)
    views = Encoder(encoder).encode(rows.anchors)
    rows.views = (views, views)
    label = dict(zip(domain.rows()["text"], domain.rows()["label"], strict=True))
    seen = []
    for k in range(rows.per_epoch):
        anchors, positives, *negatives = rows.texts(k)
        assert len({label[text] for text in anchors}) == 4
        assert [label[text] for text in positives] == [label[text] for text in anchors]
        assert all(a != p for a, p in zip(anchors, positives, strict=True))
        for text in negatives[0] if mine else []:
            assert label[text] not in {label[other] for other in anchors}
        seen += anchors
    assert rows.per_epoch == 7  # 30 rows in batches of 4
    assert len(set(seen)) == 28
    assert rows.texts(0) == SentenceBatches(domain, encoder, batch=4, width=64, seed=0).texts(0)[:2] + rows.texts(0)[2:]
    assert rows.texts(7) != rows.texts(0)  # the next epoch has another order


def test_mined_negatives_are_the_nearest_of_other_groups(encoder):
    domain = intents()
    rows = SentenceBatches(domain, encoder, batch=3, width=64, seed=0, mine=True)
    views = Encoder(encoder).encode(rows.anchors)
    rows.views = (views, views)
    anchors, _, negatives = rows.texts(0)
    label = dict(zip(rows.anchors, domain.rows()["label"], strict=True))
    here = {label[text] for text in anchors}
    free = [i for i, text in enumerate(rows.anchors) if label[text] not in here]
    scores = views[rows.anchors.index(anchors[0])] @ views[free].T
    assert negatives[0] == rows.anchors[free[int(scores.argmax())]]
    assert len(set(negatives)) == 3


def test_pairs_that_share_a_text_stay_apart_and_given_negatives_are_used(encoder):
    rows = [{"anchor": f"question {i}", "positive": f"answer {i // 2}", "negative": f"wrong {i}"} for i in range(12)]
    rows[2]["negative"] = "answer 5"  # right for rows 10 and 11
    batches = SentenceBatches(domain_of("qa", "pairs", rows), encoder, batch=5, width=32, seed=0)
    for k in range(8):
        anchors, positives, negatives = batches.texts(k)
        assert len(set(positives)) == 5
        for anchor, negative in zip(anchors, negatives, strict=True):
            i = int(anchor.split()[1])
            assert negative == rows[i]["negative"] or (i == 2 and negative not in positives)


def test_plain_text_is_its_own_positive(encoder):
    texts = [{"text": f"Valve {i} opens."} for i in range(5)] + [{"text": "Valve 0 opens."}]
    batches = SentenceBatches(domain_of("plain", "text", texts), encoder, batch=8, width=32, seed=0, mine=True)
    assert batches.rows == 5  # of two equal texts one may stand in a batch
    anchors, positives = batches.texts(0)
    assert anchors == positives
    assert len(set(anchors)) == 5


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (lambda: domain_of("same", "labelled", [{"text": f"t{i}", "label": "x"} for i in range(4)]), "too few for a contrast"),
        (lambda: domain_of("chat", "messages", [{"messages": [{"role": "user", "content": "hi"}]}]), "holds messages"),
    ],
)
def test_domains_without_a_contrast_are_refused(encoder, domain, words):
    with pytest.raises(AcclimateError, match=words):
        tune(encoder, load("objectives.contrastive"), domain(), Contrast(steps=1), adapter=load("adapters.bottleneck"))


# adapters per domain


@pytest.fixture(scope="module")
def adapted(encoder):
    """Two domains' adapters, of which the second is of another make, and the encoder that holds both."""
    plan = Contrast(batch=4, steps=40, lr=2e-2, **FP32)
    objective = load("objectives.contrastive")
    made = {}
    for name, adapter in (
        ("pipes", load("adapters.bottleneck", reduction=4)),
        ("shop", load("adapters.lora", target=["attn.q", "ff.out"])),
    ):
        made[name] = tune(encoder, objective, intents(name), plan, adapter=adapter, name=name)
    return made, together(encoder, made)


def test_training_helps_and_leaves_the_base_bit_equal(encoder, adapted):
    made, both = adapted
    texts = intents().texts("train")
    before = Encoder(encoder).encode(texts)
    assert torch.equal(Encoder(both).encode(texts), before)
    assert torch.equal(Encoder(made["pipes"]).encode(texts), before)  # no domain named: the base
    fresh = Model.load(encoder.source)
    assert all(torch.equal(value, fresh.net.state_dict()[name]) for name, value in encoder.net.state_dict().items())
    base = retrieval(Encoder(encoder), intents())["map"][0]
    assert retrieval(Encoder(both), intents(), adapter="pipes")["map"][0] > base + 0.1


def test_a_batch_of_mixed_domains_gives_what_each_gives_alone(adapted):
    made, both = adapted
    texts = [f"Why opens the pump {'again ' * (i % 3)}{i}?" for i in range(9)]
    own = ["pipes", "shop", ""] * 3
    mixed = Encoder(both, rows=9).encode(texts, own)
    for name in ("pipes", "shop", ""):
        picked = [i for i, other in enumerate(own) if other == name]
        alone = Encoder(both).encode([texts[i] for i in picked], name)
        assert torch.allclose(mixed[picked], alone, atol=1e-6)
        if name:
            single = Encoder(made[name]).encode([texts[i] for i in picked], name)
            assert torch.allclose(alone, single, atol=1e-6)
            assert not torch.allclose(alone, Encoder(both).encode([texts[i] for i in picked]), atol=1e-3)


def test_saved_adapters_are_all_that_is_saved_and_load_again(adapted, tmp_path):
    _, both = adapted
    both.save(tmp_path / "all")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "all").glob("*.safetensors")}
    assert set(sizes) == {"adapters.safetensors"}
    again = Model.load(str(tmp_path / "all"))
    texts = ["The valve opens.", "The pump closes."]
    for name in ("pipes", "shop", ""):
        assert torch.equal(Encoder(again).encode(texts, name), Encoder(both).encode(texts, name))


def test_a_killed_run_goes_on_to_the_same_weights(encoder, tmp_path, monkeypatch):
    from acclimate.engines import embed as engine

    plan = Contrast(batch=4, steps=6, lr=1e-2, **FP32)
    given = {"adapter": load("adapters.bottleneck", reduction=4, dropout=0.2)}
    objective = load("objectives.contrastive")
    whole = tune(encoder, objective, intents(), plan, **given)
    plain, calls = engine.embed_cached, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(engine, "embed_cached", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(encoder, objective, intents(), plan, folder=tmp_path / "run", **given)
    resumed = tune(encoder, objective, intents(), plan, folder=tmp_path / "run", **given)
    assert len(calls) == 7
    assert all(torch.equal(a, b) for a, b in zip(whole.net.state_dict().values(), resumed.net.state_dict().values(), strict=True))


@pytest.mark.parametrize("make", ["houlsby", "pfeiffer", "parallel", "lora", "full"])
def test_the_strategy_with_each_make(encoder, make, tmp_path):
    method = load("adapters.sentence_embeddings", adapter=make, reduction=4, batch=4, chunk=5, steps=2, lr=1e-2)
    bench = Workbench("sentences", 0, tmp_path)
    plain = Domain.from_texts("plain", [f"Note {i}: the valve opens." for i in range(12)], splits=False)
    made = method.run(bench, start=encoder, intents=intents(), plain=plain)
    assert set(made) == {"intents", "plain"} | (set() if make == "full" else {"all"})
    texts = ["The valve opens."]
    if make == "full":
        assert not torch.equal(Encoder(made["intents"]).encode(texts), Encoder(encoder).encode(texts))
        return
    learned = [weight for name, weight in made["plain"].net.named_parameters() if "adapters." in name]
    assert made["plain"].net.adapters.keys() == {"plain"}
    assert sum(weight.numel() for weight in learned) < 0.3 * encoder.parameters()
    assert not torch.equal(Encoder(made["all"]).encode(texts, "plain"), Encoder(made["all"]).encode(texts))
    assert torch.equal(Encoder(made["all"]).encode(texts, "intents"), Encoder(made["intents"]).encode(texts, "intents"))
    assert isinstance(made["all"].net, Injected)


def test_what_the_encoder_refuses(adapted):
    _, both = adapted
    with pytest.raises(AcclimateError, match="nearest: pipes"):
        Encoder(both).encode(["a"], "pipe")
    with pytest.raises(AcclimateError, match="2 texts, but domains for 1"):
        Encoder(both).encode(["a", "b"], ["pipes"])
    assert Encoder(both).encode([]).shape == (0, 32)
    with pytest.raises(AcclimateError, match="role named all"):
        load("adapters.sentence_embeddings").run(None, start=None)


@pytest.mark.parametrize(
    ("config", "how"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "cls"),
        ({"pooling_mode": "max"}, "max"),
    ],
)
def test_pooling_is_the_one_it_was_trained_with(encoder, tmp_path, config, how):
    encoder.save(tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps(config))
    model = Model.load(str(tmp_path / "model"))
    assert pooling(model) == how
    ids = batch_of(["one", "two and more"], model.tokenizer)
    hidden = model.net(**ids).last_hidden_state
    lengths = ids["attention_mask"].sum(1)
    own = {"cls": lambda i: hidden[i, 0], "max": lambda i: hidden[i, : lengths[i]].max(0).values}[how]
    expected = normalize(torch.stack([own(0), own(1)]), dim=1)
    assert torch.allclose(Encoder(model).encode(["one", "two and more"]), expected, atol=1e-5)
    tuned = tune(model, load("objectives.contrastive"), intents(), Contrast(batch=3, steps=1))
    tuned.save(tmp_path / "tuned")  # without sentence-transformers' own files
    assert pooling(Model.load(str(tmp_path / "tuned"))) == how


# figures


def test_average_precision_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    scores, relevant = draw.normal(size=(20, 15)), draw.random((20, 15)) < 0.3
    relevant[:, 0] = True
    expected = [average_precision_score(own, row) for own, row in zip(relevant, scores, strict=True)]
    assert average_precision(scores, relevant) == pytest.approx(expected)
    hits = [own[np.argsort(-row)[:10]].sum() / own.sum() for own, row in zip(relevant, scores, strict=True)]
    assert recall_at(scores, relevant, 10) == pytest.approx(hits)
    with pytest.raises(AcclimateError, match="query 1 has nothing relevant"):
        average_precision(scores[:2], np.array([relevant[0], relevant[0] * 0]))


def test_retrieval_by_hand(encoder):
    """Three texts of a class and one alone: the lone one is no query, and no text finds itself."""
    rows = [{"text": text, "label": label} for text, label in (("a b", "x"), ("a c", "x"), ("d d", "x"), ("q", "y"))]
    found = retrieval(Encoder(encoder), domain_of("few", "labelled", rows), "train")
    vectors = Encoder(encoder).encode([row["text"] for row in rows]).numpy()
    expected = []
    for i in range(3):
        others = [j for j in range(4) if j != i]
        expected.append(average_precision_score([j < 3 for j in others], vectors[others] @ vectors[i]))
    assert found["map"] == (pytest.approx(np.mean(expected)), 3)
    assert found["recall@10"] == (1.0, 3)
    pairs = domain_of("pairs", "pairs", [{"anchor": f"q {i}", "positive": f"p {i // 2}"} for i in range(6)])
    count = retrieval(Encoder(encoder), pairs, "train")["map"][1]
    assert count == 6


def test_a_recipe_measures_encoders_by_what_they_find(encoder, tmp_path):
    base = encoder.save(tmp_path / "base")
    words = WORDS["pipes"][0], WORDS["kitchen"][0]
    rows = [{"text": f"Number {i}: it is the {words[i % 2][c]}.", "label": f"c{c}"} for c in range(5) for i in range(40)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"reduction": 2, "batch": 5, "steps": 60, "lr": 1e-2, "mine": False}
    recipe = {
        "model": str(base),
        "domains": {"asked": str(tmp_path / "asked.jsonl")},
        "steps": [{"as": "fitted", "use": "adapters.sentence_embeddings", "on": {"asked": "asked"}, "with": settings}],
        "evaluate": {"in": ["asked"]},
    }
    found = run(recipe, tmp_path / "run")
    by_model = {row["model"]: row for row in found["results"]}
    assert set(by_model) == {str(base), "fitted.asked", "fitted.all"}
    assert {row["metric"] for row in found["results"]} == {"mean_average_precision"}
    fitted = by_model["fitted.asked"]
    assert fitted["value"] == by_model["fitted.all"]["value"] > by_model[str(base)]["value"]
    assert fitted["change"] == pytest.approx(fitted["value"] - by_model[str(base)]["value"])
    assert fitted["low"] < fitted["value"] < fitted["high"]
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8").count("mean average precision")


def test_a_domain_in_which_nothing_belongs_together_is_passed_over(encoder, capsys):
    rows = [{"text": f"Note {i}: the valve opens.", "label": f"c{i}"} for i in range(6)]
    assert retrieved({"base": encoder}, domain_of("alone", "labelled", rows, "test"), "test") == []
    assert "base is not measured: domain 'alone'" in capsys.readouterr().err

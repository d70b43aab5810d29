"""Scores: each against plain transformers, one document and one token at a time."""

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from acclimate.domain import Task
from acclimate.engines.score import Answers, Bits, bits_per_byte, macro_f1, masked_bits, option_logps, solve
from acclimate.errors import AcclimateError
from worlds import model_of, network, sentences

LONG = " ".join(sentences("pipes", 30))  # about 900 tokens
TEXTS = [*sentences("pipes", 6), "x", "", "The", LONG, "é", *sentences("kitchen", 3)]


@torch.no_grad()
def by_hand(model, text: str, width: int, shared: int) -> tuple[float, int]:
    """Nats and scored tokens of a document: a sliding window, each new token with all the context the window has."""
    tokenizer = model.tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    nats, scored, start = 0.0, 1, 0
    while scored < len(ids):
        window = ids[start : start + width]
        surprise = -model.net(torch.tensor([window])).logits[0].double().log_softmax(1)
        for position in range(scored - start, len(window)):
            nats += surprise[position - 1, window[position]].item()
        scored = start + len(window)
        start = scored - shared
    return nats, len(ids) - 1


@pytest.mark.parametrize(("family", "width", "overlap"), [("llama", 0, 0.5), ("llama", 40, 0.25), ("gpt2", 64, 0.0), ("llama", 32, 0.9)])
def test_bits_per_byte_equals_a_loop_over_plain_transformers(family, width, overlap, tokenizer):
    model = model_of(network(family, tokenizer), tokenizer)
    found = bits_per_byte(model, TEXTS, width=width, overlap=overlap)
    real = min(width or 512, model.context)
    for i, text in enumerate(TEXTS):
        nats, tokens = by_hand(model, text, real, max(1, int(real * overlap)))
        assert found.tokens[i] == tokens
        assert found.nats[i] == pytest.approx(nats, rel=1e-4)
        assert found.bytes[i] == len(text.encode())
    assert found.value == pytest.approx(found.nats.sum() / np.log(2) / sum(len(t.encode()) for t in TEXTS))
    assert found.perplexity == pytest.approx(np.exp(found.nats.sum() / found.tokens.sum()))
    value, low, high = found.interval()
    assert low < value == found.value < high


def test_the_batch_changes_no_figure(tiny, monkeypatch):
    found = bits_per_byte(tiny, TEXTS)
    for rows in (1, 3, 50):
        assert np.allclose(bits_per_byte(tiny, TEXTS, rows=rows).nats, found.nats, rtol=1e-5)
    assert np.allclose(bits_per_byte(tiny, TEXTS[::-1]).nats[::-1], found.nats, rtol=1e-5)
    from acclimate.engines import score

    monkeypatch.setattr(score, "packs", lambda _: False)  # padded instead of packed
    assert np.allclose(bits_per_byte(tiny, TEXTS, rows=4).nats, found.nats, rtol=1e-5)


def test_more_context_is_less_surprise_for_a_model_that_uses_it(tiny):
    assert bits_per_byte(tiny, [LONG], overlap=0.5).tokens == bits_per_byte(tiny, [LONG], overlap=0.0).tokens
    with pytest.raises(AcclimateError, match=r"overlap = 1.0"):
        bits_per_byte(tiny, [LONG], overlap=1.0)


def test_a_tokenizer_without_begin_and_end_leaves_first_tokens_unscored(tiny):
    bare = copy.deepcopy(tiny.tokenizer)
    bare.bos_token = bare.eos_token = None
    model = model_of(tiny.net, bare)
    found = bits_per_byte(model, ["x", "The valve opens"])
    assert found.tokens[0] == 0
    assert found.nats[0] == 0
    assert found.tokens[1] == len(bare("The valve opens").input_ids) - 1
    with pytest.raises(AcclimateError, match="no document has a token that can be scored"):
        bits_per_byte(model, ["x", "y"])


def test_what_cannot_be_scored_is_one_line(tiny, tokenizer, mask_tokenizer):
    with pytest.raises(AcclimateError, match="there are no documents to score"):
        bits_per_byte(tiny, [])
    with pytest.raises(AcclimateError, match="needs a causal or masked language model, and tiny is seq2seq"):
        bits_per_byte(model_of(network("t5", tokenizer), tokenizer, "seq2seq"), ["x"])
    with pytest.raises(AcclimateError, match="has no mask token"):
        masked_bits(model_of(tiny.net, tokenizer, "masked"), ["x"])


def test_masked_bits_equal_plain_transformers_on_the_same_masks(mask_tokenizer):
    model = model_of(network("bert", mask_tokenizer), mask_tokenizer, "masked")
    texts = [*sentences("pipes", 4), "x", LONG]
    found = bits_per_byte(model, texts, width=64)  # a masked model is scored by its masks
    room = 62
    for d, text in enumerate(texts):
        body = mask_tokenizer(text, add_special_tokens=False).input_ids
        nats, count = 0.0, 0
        for start in range(0, len(body), room):
            part = body[start : start + room]
            picked = np.random.default_rng([0, d, start]).random(len(part)) < 0.15
            if not picked.any():
                picked[len(part) // 2] = True
            seen = [mask_tokenizer.mask_token_id if hide else token for hide, token in zip(picked, part, strict=True)]
            with torch.no_grad():
                out = model.net(torch.tensor([[mask_tokenizer.cls_token_id, *seen, mask_tokenizer.sep_token_id]])).logits[0, 1:-1]
            for i in np.flatnonzero(picked):
                nats -= out[i].double().log_softmax(0)[part[i]].item()
                count += 1
        assert found.tokens[d] == count
        assert found.nats[d] == pytest.approx(nats, rel=1e-4)
        assert found.bytes[d] == pytest.approx(len(text.encode()) * count / len(body))
    assert np.allclose(masked_bits(model, texts, width=64, rows=1).nats, found.nats, rtol=1e-5)


@torch.no_grad()
def logp(model, prompt: str, option: str) -> float:
    """Log-probability of an option after a prompt, one token after the other."""
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(prompt, add_special_tokens=False).input_ids]
    total = 0.0
    for token in model.tokenizer(option, add_special_tokens=False).input_ids:
        total += model.net(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)[token].item()
        ids.append(token)
    return total


QUESTIONS = ["What does the valve do?", "And", "What does the pump near the boiler near the tank do?"]
OPTIONS = [[" It opens.", " It closes the tank near sensor 12.", " No"], [" x", " yes"], [" It feeds.", " It turns."]]


def test_option_logps_equal_one_token_after_the_other(tiny):
    found = option_logps(tiny, QUESTIONS, OPTIONS, rows=3)
    for prompt, several, scores in zip(QUESTIONS, OPTIONS, found, strict=True):
        assert scores == pytest.approx([logp(tiny, prompt, option) for option in several], rel=1e-4)
    with pytest.raises(AcclimateError, match="prompt 2 has an option without any token"):
        option_logps(tiny, ["a", "b"], [["x"], ["", "y"]])


def test_multiple_choice_goes_by_likelihood_per_byte_and_classification_by_likelihood(tiny):
    rows = [{"prompt": p, "options": o, "answer": o[0]} for p, o in zip(QUESTIONS, OPTIONS, strict=True)]
    sums = [[logp(tiny, row["prompt"], option) for option in row["options"]] for row in rows]
    per_byte = [[s / len(o.encode()) for s, o in zip(scores, row["options"], strict=True)] for scores, row in zip(sums, rows, strict=True)]
    choice, label = (solve(tiny, Task("t", kind, rows)) for kind in ("multiple_choice", "classification"))
    assert choice.given == [row["options"][int(np.argmax(s))] for row, s in zip(rows, per_byte, strict=True)]
    assert label.given == [row["options"][int(np.argmax(s))] for row, s in zip(rows, sums, strict=True)]
    assert choice.given != label.given  # the example tells the two apart
    assert choice.right.tolist() == [float(g == row["answer"]) for g, row in zip(choice.given, rows, strict=True)]


def test_generated_answers_are_compared_with_the_wanted_ones(tiny):
    from acclimate.engines.generate import generate

    said = generate(tiny, QUESTIONS, tokens=8)
    rows = [{"prompt": prompt, "answer": answer.strip() or "x"} for prompt, answer in zip(QUESTIONS, said, strict=True)]
    rows[1]["answer"] = "something else"
    found = solve(tiny, Task("t", "generation", rows))
    assert len(found.given) == 3
    assert found.right[1] == 0


def test_macro_f1_and_its_interval():
    draw = np.random.default_rng(0)
    wanted = draw.choice(["a", "b", "c"], 60, p=[0.6, 0.3, 0.1])
    given = np.where(draw.random(60) < 0.7, wanted, draw.choice(["a", "b", "c"], 60))
    assert macro_f1(given, wanted) == pytest.approx(f1_score(wanted, given, average="macro"))
    value, low, high = Answers(list(given), list(wanted), "macro_f1").interval()
    assert value == pytest.approx(macro_f1(given, wanted))
    assert low < value < high
    value, low, high = Answers(list(given), list(wanted), "accuracy").interval()
    assert value == pytest.approx((given == wanted).mean())


def test_bits_are_nats_over_log_2():
    assert Bits(np.array([np.log(2), 2 * np.log(2)]), np.array([1.0, 2.0]), np.array([1, 1])).value == pytest.approx(1.0)


def test_a_change_of_macro_f1_is_the_difference_of_the_two(monkeypatch):
    draw = np.random.default_rng(1)
    wanted = draw.choice(["a", "b", "c"], 80, p=[0.6, 0.3, 0.1]).tolist()
    before = Answers(["a"] * 80, wanted, "macro_f1")  # accurate, and blind to two labels
    after = Answers(np.where(draw.random(80) < 0.6, wanted, "b").tolist(), wanted, "macro_f1")
    difference, low, high, p = after.against(before)
    assert difference == pytest.approx(f1_score(wanted, after.given, average="macro") - f1_score(wanted, before.given, average="macro"))
    assert 0 < low < difference < high
    assert p < 0.05
    assert before.against(before) == (0.0, 0.0, 0.0, 1.0)
    plain = Answers(after.given, wanted, "accuracy").against(Answers(before.given, wanted, "accuracy"))
    assert plain[0] == pytest.approx(after.right.mean() - before.right.mean())
    for answers in (before, after):  # the resampled figure is scikit-learn's, here on one "draw" that takes every item once
        from acclimate.engines import score

        monkeypatch.setattr(score.statistics, "resampled_sums", lambda columns: columns.sum(0)[None])
        assert answers.interval()[1] == pytest.approx(f1_score(wanted, answers.given, average="macro"))

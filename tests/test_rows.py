"""Rows: what a network is fed, token by token, and the order it comes in."""

import copy
from itertools import pairwise

import numpy as np
import pytest

from acclimate.engines.rows import Mixture, Source, TokenRows, check_template, conversation_ids, frame
from acclimate.engines.train import rows_for
from acclimate.errors import AcclimateError
from acclimate.method import load
from worlds import domain_of, model_of, network, sentences

LM = load("objectives.causal_lm")


def tokens_of(source):
    """Every piece of one epoch as a tuple of ids, in any order."""
    found = []
    for k in range(source.size):
        row = source[k]
        borders = [*np.flatnonzero(row["position_ids"] == 0), len(row["position_ids"])]
        found += [tuple(row["input_ids"][a:b].tolist()) for a, b in pairwise(borders)]
    return sorted(found)


@pytest.mark.parametrize("packed", [True, False])
def test_an_epoch_holds_every_token_once_and_no_label_crosses_a_document(packed, tiny, pipes):
    source = rows_for(pipes, tiny, LM, 48, 0, packed)
    expected = []
    for text in pipes.texts():
        ids = [tiny.tokenizer.bos_token_id, *tiny.tokenizer(text, add_special_tokens=False).input_ids, tiny.tokenizer.eos_token_id]
        expected += [tuple(ids[i : i + 48]) for i in range(0, len(ids), 48) if len(ids[i : i + 48]) > 1]
    assert tokens_of(source) == sorted(expected)
    for k in range(source.size):
        row = source[k]
        assert len(row["input_ids"]) <= 48
        ends = np.append(row["position_ids"][1:] == 0, True)
        assert (row["labels"][ends] == -100).all()  # the last token of a document predicts nothing
        assert np.array_equal(row["labels"][~ends], row["input_ids"][1:][~ends[:-1]])
    if packed:
        assert source.size < len(expected) / 1.3  # several to a row
        filled = sum(len(source[k]["input_ids"]) for k in range(source.size)) / (48 * source.size)
        assert filled > 0.9


def test_the_order_is_fixed_by_the_seed_and_new_in_every_epoch(tiny, pipes):
    one, same, other = (rows_for(pipes, tiny, LM, 64, seed, True) for seed in (0, 0, 1))
    order = [one[k]["index"] for k in range(3 * one.size)]
    assert order == [same[k]["index"] for k in range(3 * one.size)]
    epochs = [order[i : i + one.size] for i in range(0, len(order), one.size)]
    assert all(sorted(epoch) == list(range(one.size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order[: one.size] != [other[k]["index"] for k in range(one.size)]
    assert one[one.size + 3]["index"] == order[one.size + 3]  # asked for out of order, as after a resume


def test_masks_are_new_in_every_epoch_and_the_same_when_asked_for_again(mask_tokenizer, pipes):
    model = model_of(network("bert", mask_tokenizer), mask_tokenizer, "masked")
    source = rows_for(pipes, model, load("objectives.masked_lm"), 64, 0, True)
    at = {source.locate(k): k for k in range(3 * source.size)}
    again = rows_for(pipes, model, load("objectives.masked_lm"), 64, 0, True)
    changed = 0
    for index in range(source.size):
        masks = [source[at[epoch, index]]["labels"] != -100 for epoch in range(3)]
        changed += not (np.array_equal(masks[0], masks[1]) and np.array_equal(masks[1], masks[2]))
        k = at[2, index]
        assert all(np.array_equal(source[k][key], again[k][key]) for key in ("input_ids", "labels"))
        row = source[at[0, index]]
        special = np.isin(row["input_ids"], [mask_tokenizer.cls_token_id, mask_tokenizer.sep_token_id])
        hidden = row["labels"] != -100
        assert hidden.any()
        assert (row["labels"][~hidden] == -100).all()
        assert not (hidden & special & (row["labels"] == row["input_ids"])).any()  # begin and end are never asked for
        assert not np.isin(row["labels"], [mask_tokenizer.cls_token_id, mask_tokenizer.sep_token_id]).any()
    assert changed > 0.9 * source.size


def test_the_mask_of_a_conversation_covers_the_assistants_words_and_their_end(tiny, chats):
    row = chats.rows()[0]  # two turns
    ids, mask = conversation_ids(row["messages"], tiny.tokenizer)
    assert tiny.tokenizer.decode(ids) == (
        f"<|begin|><|user|>{row['messages'][0]['content']}<|assistant|>{row['messages'][1]['content']}<|end|>"
        f"<|user|>And then?<|assistant|>It rests.<|end|>"
    )
    assert tiny.tokenizer.decode(ids[mask == 1]) == f"{row['messages'][1]['content']}<|end|>It rests.<|end|>"
    source = rows_for(chats, tiny, load("objectives.sft"), 64, 0, True)
    k = next(k for k in range(source.size) if 0 in [source.pieces[p][0] for p in source.plan[source.locate(k)[1]]])
    batch = source.collate([source[k]])
    asked = batch["labels"][(batch["answer_mask"] == 1) & (batch["labels"] != -100)]
    assert tiny.tokenizer.decode(asked).count("<|end|>") == sum(
        sum(m["role"] == "assistant" for m in chats.rows()[source.pieces[p][0]]["messages"]) for p in source.plan[source.locate(k)[1]]
    )
    assert "<|user|>" not in tiny.tokenizer.decode(asked)
    assert "What does" not in tiny.tokenizer.decode(asked)


def test_a_template_that_cannot_teach_is_refused(tiny, chats):
    def with_template(template):
        model = model_of(tiny.net, copy.deepcopy(tiny.tokenizer))
        model.tokenizer.chat_template = template
        return model

    first = chats.rows()[0]["messages"]
    plain = tiny.tokenizer.chat_template
    for template, line in (
        (None, "tiny has no chat template"),
        (plain.replace("{{ eos_token }}", ""), "closes no answer with an end token"),
        ("{{ messages[-1]['content'] }}{{ eos_token }}", "rewrites earlier turns"),
    ):
        with pytest.raises(AcclimateError, match=line) as caught:
            rows_for(chats, with_template(template), load("objectives.sft"), 64, 0, True)
        assert "\n" not in str(caught.value)
    with pytest.raises(AcclimateError, match="no assistant tokens"):
        check_template(tiny, first[:1], "chats")
    spaced = with_template(plain.replace("{{ eos_token }}", "{{ eos_token + '\\n' }}"))  # a newline behind the end, as ChatML has
    ids, mask = conversation_ids(first, spaced.tokenizer)
    assert spaced.tokenizer.decode(ids[mask == 1]).endswith("It rests.<|end|>")


def test_a_long_conversation_keeps_its_last_answer(tiny):
    turns = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "It rests."}]
    source = rows_for(domain_of("long", "messages", [{"messages": turns}]), tiny, load("objectives.sft"), 64, 0, True)
    row = source[0]
    assert len(row["input_ids"]) == 64
    assert tiny.tokenizer.decode(row["labels"][row["answer_mask"] == 1]) == "It rests.<|end|>"


def test_a_long_preference_keeps_its_answers(tiny):
    rows = [{"prompt": [{"role": "user", "content": "word " * 200}], "chosen": "It rests.", "rejected": "no " * 200}]
    pair = rows_for(domain_of("long", "preference", rows), tiny, load("objectives.dpo"), 64, 0, False).pair(0)
    assert len(pair["chosen"]) == len(pair["rejected"]) == 64
    assert tiny.tokenizer.decode(pair["chosen"][pair["chosen_mask"] == 1]) == "It rests.<|end|>"
    assert pair["rejected_mask"].sum() == 32


def test_what_was_kept_on_disk_for_one_template_is_not_used_for_another(tiny, preferences, pipes):
    other = model_of(tiny.net, copy.deepcopy(tiny.tokenizer))
    other.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    dpo = load("objectives.dpo")
    assert rows_for(preferences, tiny, dpo, 64, 0, False).key != rows_for(preferences, other, dpo, 64, 0, False).key
    renamed = model_of(tiny.net, tiny.tokenizer, name="renamed")  # but a model's name is nothing to a teacher's view
    assert rows_for(pipes, tiny, LM, 64, 0, True).key == rows_for(pipes, renamed, LM, 64, 0, True).key


def test_frame_is_what_the_tokenizer_adds_else_its_begin_and_end(tokenizer, mask_tokenizer):
    assert [ids.tolist() for ids in frame(mask_tokenizer)] == [[mask_tokenizer.cls_token_id], [mask_tokenizer.sep_token_id]]
    assert [ids.tolist() for ids in frame(tokenizer)] == [[tokenizer.bos_token_id], [tokenizer.eos_token_id]]
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = None
    assert [ids.tolist() for ids in frame(bare)] == [[], []]


class Numbers(Source):
    """A source that tells its own name and the number it was asked for."""

    def __init__(self, name, size, tokenizer):
        super().__init__(name, 0, tokenizer)
        self.size = size

    def __getitem__(self, k):
        return {"index": k, "name": self.name}


def test_a_mixture_has_its_shares_its_stages_and_the_same_rows_when_asked_again(tokenizer):
    sources = {name: Numbers(name, 10, tokenizer) for name in ("a", "b", "c")}
    stages = [(0.25, {"a": 1.0}), (0.75, {"a": 3.0, "b": 1.0}), (1.0, {"c": 2.0, "b": 2.0})]
    mixture = Mixture(sources, stages, 8000, 3)
    rows = [mixture[i] for i in range(8000)]
    names = np.array([row["name"] for row in rows])
    assert set(names[:2000]) == {"a"}
    assert set(names[2000:6000]) == {"a", "b"}
    assert (names[2000:6000] == "b").mean() == pytest.approx(0.25, abs=0.02)  # 3 standard errors
    assert set(names[6000:]) == {"b", "c"}
    assert (names[6000:] == "b").mean() == pytest.approx(0.5, abs=0.035)
    for name in sources:  # each source is read in its own order, no row left out
        assert [row["index"] for row in rows if row["name"] == name] == list(range((names == name).sum()))
    again = Mixture(sources, stages, 8000, 3)
    assert [again[i] for i in (7999, 5, 2500)] == [rows[i] for i in (7999, 5, 2500)]
    assert [Mixture(sources, stages, 8000, 4)[i]["name"] for i in range(2000, 2100)] != names[2000:2100].tolist()


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ([(1.0, {"a": 0.0})], "gives no source a weight above 0"),
        ([(0.8, {"a": 1.0}), (0.2, {"a": 1.0})], "must rise"),
        ([(1.5, {"a": 1.0})], "must rise"),
        ([(1.0, {"a": 1.0, "z": 1.0})], "no source 'z'"),
    ],
)
def test_a_bad_stage_is_one_line(stages, line, tokenizer):
    with pytest.raises(AcclimateError, match=line):
        Mixture({"a": Numbers("a", 3, tokenizer), "b": Numbers("b", 3, tokenizer)}, stages, 100, 0)


def test_an_error_can_name_the_documents_of_a_row(tiny, pipes):
    source = rows_for(pipes, tiny, LM, 64, 0, True)
    assert isinstance(source, TokenRows)
    for place in source.origin(2).split(", "):
        assert place in pipes.rows()["origin"]


def test_odd_texts_make_rows(tiny):
    odd = domain_of("odd", "text", [{"text": text} for text in ("x", "", "é" * 300, "\x00\ufffd", sentences("pipes", 1)[0])])
    source = rows_for(odd, tiny, LM, 32, 0, True)
    assert sum(len(row["input_ids"]) for row in map(source.__getitem__, range(source.size))) == source.tokens

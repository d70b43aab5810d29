"""Named entities: loaders, labels at first tokens, F1 of whole entities, an adapter with a tagging head of its own."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from acclimate import datasets
from acclimate.engines.staged import Stage, evaluating
from acclimate.engines.tagging import Sentences, aligned, tag, tagger, tags_of
from acclimate.errors import AcclimateError
from acclimate.method import load
from acclimate.model import Injected, Model
from acclimate.model.composition import Rows
from acclimate.parts.entities import begun, entity_f1, spans
from worlds import WORDS, domain_of, model_of, needs_data, network

PARTS, PEOPLE = WORDS["pipes"][0], ["cook", "baker", "guest"]
LABELS = ["O", "B-part", "I-part", "B-person"]


def made_up(count, seed):
    """Sentences such as "the old valve pump feeds the cook": parts of one or two words, and people."""
    draw, words, tags = random.Random(seed), [], []
    for _ in range(count):
        part = draw.sample(PARTS, draw.choice((1, 2)))
        verb, end = draw.choice(WORDS["pipes"][1]), draw.choice((".", "near"))
        words.append(["the", *part, verb, "the", draw.choice(PEOPLE), end, str(draw.randint(2, 99))])
        tags.append(["O", "B-part", *["I-part"] * (len(part) - 1), "O", "O", "B-person", "O", "O"])
    return Sentences(words, tags)


def bert(tokenizer):
    return model_of(network("bert", tokenizer), tokenizer, "masked", "bert")


def test_whole_entities_are_counted():
    """Figures of seqeval 1.2.2 (its default mode) on the same tags."""
    truth = [
        ["B-a", "I-a", "O", "B-b", "I-b", "I-b"],
        ["O", "B-a", "B-a", "I-a", "O"],
        ["I-b", "I-b", "O", "I-a"],
        ["O", "O"],
    ]
    guess = [
        ["B-a", "I-a", "O", "B-b", "I-b", "O"],
        ["O", "B-a", "I-a", "I-a", "O"],
        ["B-b", "I-b", "O", "I-b"],
        ["O", "B-a"],
    ]
    found = entity_f1(truth, guess)
    assert found == pytest.approx({"precision": 0.3333333333333333, "recall": 0.3333333333333333, "f1": 0.3333333333333333}, abs=1e-12)
    assert entity_f1(truth, truth) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert entity_f1([["O"]], [["O"]])["f1"] == 0.0
    assert begun(["I-a", "I-b", "I-b", "O", "I-b", "B-b"]) == ["B-a", "B-b", "I-b", "O", "B-b", "B-b"]
    assert spans(["I-a", "I-b", "I-b", "O"]) == [("a", 0, 1), ("b", 1, 3)]


@pytest.mark.parametrize("plain", [True, False])
def test_labels_stand_at_first_tokens(tokenizer, mask_tokenizer, plain):
    own = tokenizer if plain else mask_tokenizer
    words = ["The", "valve-pump", "x", "(", "turbine's", "end", ")"]
    ids, places = aligned(own, words, 64)
    text = " ".join(words)
    assert ids == own(text).input_ids
    offsets = own(text, return_offsets_mapping=True).offset_mapping
    at = 0
    for word, place in zip(words, places, strict=True):
        assert text[offsets[place][0] : offsets[place][1]].strip() == word[: len(text[offsets[place][0] : offsets[place][1]].strip())]
        assert offsets[place][0] in (at, at - 1)  # with the space before it, or without
        at += len(word) + 1
    cut, places = aligned(own, words, 6)
    assert len(cut) == 6
    assert places[-1] == -1
    assert max(places) < 6


def test_the_loss_is_that_of_first_tokens(mask_tokenizer):
    """Independent: one sentence at a time, labels put to tokens through the tokenizer's own words."""
    model, rows = bert(mask_tokenizer), made_up(4, 5)
    done = tag(model, dict.fromkeys(("train", "validation", "test"), rows), {"head": 1e-9}, Stage(steps=1, precision="fp32"), rows=4)
    net, losses = done.net, []
    with evaluating(net), torch.no_grad():
        for words, tags in zip(rows.words, rows.tags, strict=True):
            coded = model.tokenizer(" ".join(words))
            hidden = model.net.bert(input_ids=torch.tensor([coded.input_ids])).last_hidden_state[0]
            scores = functional.linear(hidden, net.head.out.weight, net.head.out.bias).log_softmax(-1)
            for at, each in enumerate(tags):
                first = coded.char_to_token(sum(len(other) + 1 for other in words[:at]))
                if model.tokenizer.convert_ids_to_tokens(coded.input_ids[first]) == "Ġ":
                    first += 1
                losses.append(-float(scores[first, net.head.labels.index(each)]))
    for layer in [*model.net.modules(), *net.head.modules()]:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    again = Injected(model.net).add("a", load("adapters.bottleneck")).put_head("a", "tagging", net.head.labels)
    again.heads["a"] = net.head
    given = Model("again", again, model.tokenizer, "masked")
    sets = dict.fromkeys(("train", "validation", "test"), rows)
    found = tag(given, sets, {"head": 1e-9}, Stage(steps=1, precision="fp32"), rows=4).fitted.curve[0]["loss"]
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_an_adapter_learns_to_tag_and_is_saved_with_its_head(mask_tokenizer, tmp_path):
    bert(mask_tokenizer).save(tmp_path / "base")
    base = Model.load(str(tmp_path / "base"))
    model = base.copy("tagged", share=True)
    model.net = Injected(model.net).add("parts", load("adapters.bottleneck", reduction=2))
    model.notes |= {"base": base.source, "base_fingerprint": base.fingerprint}
    sets = {"train": made_up(120, 1), "validation": made_up(30, 2), "test": made_up(40, 3)}
    stage = Stage(steps=160, check_every=40, precision="fp32")
    done = tag(model, sets, {r"adapters\.parts\.": 1e-2, "head": 1e-2}, stage, rows=16)
    assert done.scores["f1"] > 0.85
    assert done.net.head.labels == LABELS
    assert model.net.heads["parts"] is done.net.head
    guesses = tags_of(model, done.net, sets["test"].words)
    assert entity_f1(sets["test"].tags, guesses)["f1"] == done.scores["f1"]
    assert base.fingerprint == Model.load(str(tmp_path / "base")).fingerprint
    model.save(tmp_path / "tagged")
    again = Model.load(str(tmp_path / "tagged"))
    assert tags_of(again, tagger(again), sets["test"].words) == guesses
    coded = [aligned(base.tokenizer, words, 64) for words in sets["test"].words[:2]]
    batch = again.tokenizer([" ".join(words) for words in sets["test"].words[:2]], padding=True, return_tensors="pt")
    with torch.no_grad():
        rows = again.net.activate(Rows(["parts", "parts"])).eval().answers(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for scores, (_, places), said in zip(rows, coded, guesses, strict=False):
        assert [LABELS[scores[place].argmax()] for place in places] == said
    with pytest.raises(AcclimateError, match="head of adapter 'parts' has other labels"):
        tagger(model, ["O", "B-other"])


def test_words_that_are_cut_off_are_outside(mask_tokenizer):
    model = bert(mask_tokenizer)
    net = tagger(model, LABELS)
    with torch.no_grad():
        net.head.out.bias.copy_(torch.tensor([0.0, 50.0, 0.0, 0.0]))
    (found,) = tags_of(model, net, [["valve"] * 40], width=16)
    assert found[0] == "B-part"
    assert found[-1] == "O"
    assert len(found) == 40


def test_rows_without_tags_are_one_line(mask_tokenizer):
    with pytest.raises(AcclimateError, match="bare: rows have no columns words and tags"):
        Sentences.of(domain_of("bare", "text", [{"text": "The valve."}]), "train")
    with pytest.raises(AcclimateError, match=r"odd\.jsonl:1: 2 words have 1 tags"):
        Sentences.of(domain_of("odd", "text", [{"text": "a b", "words": ["a", "b"], "tags": ["O"]}]), "train")


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)


def test_files_of_both_kinds_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCLIMATE_DATA", str(tmp_path))
    write(tmp_path / "text/crossner/ai", train="A\tB-x\nB\tI-x\n\nSame\tO\n\n", dev="Same\tO\n", test="C\tO\nD\tB-y")
    found = datasets.load("crossner/ai")
    assert found.rows("train")["words"][:] == [["A", "B"]]  # the other sentence is measured on
    assert found.rows("train")["tags"][:] == [["B-x", "I-x"]]
    assert found.texts("test") == ["C D"]
    assert found.rows("test")["origin"][0] == "crossner/ai/test.txt:1"
    old = "-DOCSTART- (1)\n\nA\tN\tO\tI-E\nB\tN\tO\tI-E\nC\tN\tO\tB-E\n\n"
    write(tmp_path / "text/scibert/ner/bc5cdr", train=old, dev="X N O O\n", test="Y N O O\n")
    assert datasets.load("crossner/bc5cdr").rows("train")["tags"][:] == [["B-E", "I-E", "B-E"]]
    (tmp_path / "text/crossner/ai/train.txt").write_text("A\tB-x\nalone\n")
    with pytest.raises(AcclimateError, match=r"train\.txt:2: 'alone' is no word with a tag"):
        datasets.load("crossner/ai")


@needs_data
@pytest.mark.parametrize(("name", "rows", "types"), [("ai", 431, 14), ("politics", 651, 9), ("sciie", 551, 6), ("ncbi_disease", 940, 1)])
def test_the_published_sets(name, rows, types):
    found = datasets.load(f"crossner/{name}")
    assert len(found.splits["test"]) == rows
    assert len({label[2:] for split in found.splits for label in Sentences.of(found, split).labels} - {""}) == types
    assert not {*found.texts("train")} & {*found.texts("test")}
    for sentence in found.rows("test")["tags"]:
        assert begun(sentence) == sentence


@needs_data
def test_a_small_encoder_tags_politics():
    model = Model.load("minilm")
    stack = model.net.encoder
    stack.layer = stack.layer[:2]
    model.net = Injected(model.net).add("politics", load("adapters.bottleneck"))
    domain = datasets.load("crossner/politics")
    sets = {split: Sentences.of(domain, split) for split in ("train", "validation", "test")}
    sets["validation"], sets["test"] = (Sentences(sets[key].words[:80], sets[key].tags[:80]) for key in ("validation", "test"))
    rates = {r"adapters\.politics\.": 3e-3, "head": 3e-3}
    done = tag(model, sets, rates, Stage(steps=60, check_every=60), rows=8, width=64)
    assert done.scores["f1"] > 0.1

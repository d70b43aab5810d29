"""Map-tuning in a recipe: facts and linked texts from files, and a model with entities that any library reads."""

import json
import random

import pytest
import torch

from acclimate.domain import Domain
from acclimate.domain.validation import validate
from acclimate.engines import transe
from acclimate.engines.entity_tokens import with_entities
from acclimate.engines.score import bits_per_byte
from acclimate.errors import AcclimateError
from acclimate.execute import run
from acclimate.method import load
from acclimate.model import Model
from acclimate.model.knowledge import Knowledge, Mapped, Mention, written
from acclimate.model.overlay import Overlay
from worlds import WORDS, domain_of, model_of, network

NOUNS = WORDS["pipes"][0]
FACTS = [{"head": noun, "relation": "feeds", "tail": NOUNS[(i + 3) % 10]} for i, noun in enumerate(NOUNS)]


def lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def linked(count=60, seed=0):
    draw, rows = random.Random(seed), []
    for i in range(count):
        head, tail = draw.sample(NOUNS, 2)
        text = f"Day {i}: the {head} stands near the {tail} in hall {draw.randint(1, 99)}."
        found = [(text.index(f" {noun} ") + 1, noun) for noun in (head, tail)]
        rows.append({"text": text, "mentions": [{"start": at, "end": at + len(noun), "entity": noun} for at, noun in found]})
    return rows


@pytest.fixture
def base(mask_tokenizer, tmp_path):
    model_of(network("bert", mask_tokenizer), mask_tokenizer, "masked", "bert").save(tmp_path / "base")
    return Model.load(str(tmp_path / "base"))


@pytest.fixture
def recipe(base, tmp_path):
    return {
        "model": base.source,
        "domains": {"facts": lines(tmp_path / "facts.jsonl", FACTS), "linked": lines(tmp_path / "linked.jsonl", linked())},
        "steps": [
            {
                "as": "plugged",
                "use": "inputs.map_tuning",
                "on": {"knowledge": "facts", "corpus": "linked"},
                "with": {"input_dim": 8, "steps": 4, "batch": 8, "graph_epochs": 5, "lr": 1e-2},
            }
        ],
        "evaluate": {"in": ["linked"], "samples": 0},
    }


def test_a_recipe_makes_a_model_with_entities(recipe, base, tmp_path, cache):
    """It is the overlay that Python's way gives on the same facts and texts; of texts without entities it says what the base does."""
    run(recipe, tmp_path / "run")
    (folder,) = {path.parent for path in (tmp_path / "run" / "steps").glob("**/config.json")}
    made = Model.load(str(folder))
    corpus = Domain.load("linked", recipe["domains"]["linked"])
    knowledge = transe.embedded(Domain.load("facts", recipe["domains"]["facts"]), width=8, epochs=5, seed=0)
    method = load("inputs.map_tuning", **recipe["steps"][0]["with"])

    class Tools:
        seed = 0

    overlay = method.run(Tools, start=base, knowledge=knowledge, corpus=corpus)["general"].eval()
    row = corpus.rows("test")[0]
    mentions = [Mention(each["start"], each["end"], each["entity"]) for each in row["mentions"]]
    spelled = method.spell(base, row["text"], mentions, knowledge).ids
    ids = made.tokenizer(written(row["text"], mentions, knowledge), return_tensors="pt").input_ids
    first = made.tokenizer.convert_tokens_to_ids(f"<entity:{knowledge.names[0]}>")
    assert [id - first + overlay.first if id >= first else id for id in ids[0].tolist()] == spelled
    with torch.no_grad():
        want = overlay(torch.tensor([spelled]), attention_mask=torch.ones_like(ids)).logits
        mine = made.net(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    old = len(base.net.get_input_embeddings().weight)
    assert torch.allclose(mine[..., :old], want, atol=1e-5)
    assert mine.softmax(-1)[..., first:].max() == 0
    texts = corpus.texts("test")
    assert bits_per_byte(made, texts).value == pytest.approx(bits_per_byte(base, texts).value, abs=1e-6)
    table = Mapped.load(tmp_path / "run" / "kept" / "plugged.map", knowledge)(torch.arange(10))
    assert torch.equal(made.net.get_input_embeddings().weight[first : first + 10], table)
    assert made.net.get_output_embeddings().bias[first:].max() < -1e3


def test_what_is_missing_in_a_recipe_is_one_line(recipe, tmp_path, cache):
    def refused(said, **changes):
        step = {**recipe["steps"][0], **changes}
        with pytest.raises(AcclimateError, match=said) as caught:
            run({**recipe, "steps": [step]}, tmp_path / f"refused{len([*tmp_path.iterdir()])}")
        assert "\n" not in str(caught.value)

    refused(r"on: \{knowledge: a domain of facts \(head, relation, tail\), corpus: texts with mentions\}", on={"corpus": "linked"})
    refused("on: {knowledge", on={"knowledge": "facts"})
    refused("'linked' holds text, but knowledge is facts", on={"knowledge": "linked", "corpus": "linked"})
    refused("rows have no column mentions", on={"knowledge": "facts", "corpus": "facts"})
    refused("task is plugged from Python", on={"knowledge": "facts", "corpus": "linked", "task": "linked"})
    refused("no domain 'fact'", on={"knowledge": "fact", "corpus": "linked"})


def test_facts_and_mentions_are_read_and_checked(tmp_path):
    facts = Domain.load("facts", lines(tmp_path / "facts.jsonl", FACTS[:3]))
    assert (facts.form, [*facts.splits], len(facts.rows("train"))) == ("facts", ["train"], 3)  # a graph is not divided
    assert facts.texts("train")[0] == "valve feeds gasket"
    (tmp_path / "facts.tsv").write_text("head\trelation\ttail\nvalve\tsize\t3\n")
    assert Domain.load("facts", str(tmp_path / "facts.tsv")).rows("train")["tail"][:] == ["3"]
    assert validate(tmp_path / "facts.jsonl")["ok"]
    told = {"text": "The valve.", "head": "a", "relation": "b", "tail": "c"}
    assert Domain.load("told", lines(tmp_path / "told.jsonl", [{**told, "text": f"No. {i}"} for i in range(20)])).form == "text"
    good = linked(20)
    domain = Domain.load("linked", lines(tmp_path / "linked.jsonl", good))
    row = domain.rows("train")[0]
    assert row["text"][row["mentions"][0]["start"] : row["mentions"][0]["end"]] == row["mentions"][0]["entity"]
    spans = {"start": 4, "end": 9, "entity": "valve"}
    for mentions, said in (
        ("valve", "mentions is text, but must be a list"),
        ([{"start": 4, "end": 9}], r"mentions\[0\] lacks start, end or entity"),
        ([{**spans, "end": 99}], r"mentions\[0\] spans 4 to 99, but the text has 10 characters"),
        ([{**spans, "entity": ""}], r"mentions\[0\].entity is empty"),
    ):
        with pytest.raises(AcclimateError, match=said):
            Domain.load("bad", lines(tmp_path / "bad.jsonl", [*good, {"text": "The valve.", "mentions": mentions}]))
    with pytest.raises(AcclimateError, match="mentions is missing; give every row one"):
        Domain.load("bad", lines(tmp_path / "bad.jsonl", [*good, {"text": "The valve."}]))


def test_entities_that_cannot_be_tokens(base, mask_tokenizer):
    mapped = Mapped(Knowledge(["a b", "c"], torch.eye(2)), 32)
    made = with_entities(base, mapped)
    assert made.tokenizer.tokenize("x<entity:a b>/ y")[1] == "<entity:a b>"
    assert Overlay(base.net, mapped).first == len(base.net.get_input_embeddings().weight)  # the base itself is as it was
    with pytest.raises(AcclimateError, match="has a token '<entity:a b>' already"):
        with_entities(made, mapped)
    with pytest.raises(AcclimateError, match="has no bias"):
        with_entities(model_of(network("llama", mask_tokenizer), mask_tokenizer), mapped)
    with pytest.raises(AcclimateError, match="holds text, but knowledge is facts"):
        transe.embedded(domain_of("t", "text", [{"text": "a"}]), width=2, epochs=1, seed=0)

"""Splits: how they hold; duplicates; contamination."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate import AcclimateError
from acclimate.domain import Domain
from acclimate.domain.contamination import contamination
from acclimate.domain.forms import Row
from acclimate.domain.splits import divide, near_duplicates, place, words
from domain_tools import lines, load, refused, sentence, texts

# splits ---------------------------------------------------------------------------------------------------------------


def rows_of(values):
    return [Row("text", {"text": text}, f"f:{i}") for i, text in enumerate(values)]


def by_text(rows, **options):
    parts, _ = divide(rows, options.get("shares", (0.8, 0.1, 0.1)), options.get("near"), "law")
    return {row.values["text"]: split for split, these in parts.items() for row in these}


def test_split_does_not_depend_on_order_or_company():
    some = [sentence(i) for i in range(300)]
    before = by_text(rows_of(some))
    mixed = [*some, *(sentence(i) for i in range(300, 400))]
    random.Random(0).shuffle(mixed)
    after = by_text(rows_of(mixed))
    assert set(before) == set(some)
    assert before == {text: after[text] for text in some}


@given(st.lists(st.text(min_size=1), min_size=60, max_size=80, unique_by=lambda text: " ".join(text.split()).casefold()), st.randoms())
@settings(max_examples=50, deadline=None)
def test_split_is_stable(several, generator):
    place_of = {text: place(text) for text in several}
    assert all(place(f"  {text}\n") == split for text, split in place_of.items())
    shuffled = list(several)
    generator.shuffle(shuffled)
    if len(set(place_of.values())) == 3:
        assert by_text(rows_of(shuffled)) == place_of
    else:
        with pytest.raises(AcclimateError, match="empty"):
            by_text(rows_of(shuffled))


def test_shares_are_kept_and_the_test_split_stays():
    some = [sentence(i) for i in range(5000)]
    usual = [place(text) for text in some]
    assert abs(usual.count("test") / 5000 - 0.1) < 0.02
    assert abs(usual.count("validation") / 5000 - 0.1) < 0.02
    other = [place(text, (0.6, 0.3, 0.1)) for text in some]
    assert [each == "test" for each in usual] == [each == "test" for each in other]


def test_a_share_of_zero_leaves_the_split_out():
    domain = Domain.from_texts("law", [sentence(i) for i in range(50)], splits=True)
    assert "validation" in domain.splits
    assert set(by_text(rows_of([sentence(i) for i in range(50)]), shares=(0.8, 0, 0.2)).values()) == {"train", "test"}


@pytest.mark.parametrize("form", ["preference", "messages", "pairs"])
def test_rows_with_one_prompt_stand_in_one_split(tmp_path, form):
    rows = {
        "preference": [{"prompt": sentence(i // 4), "chosen": f"A{i}", "rejected": "B"} for i in range(200)],
        "messages": [{"prompt": sentence(i // 4), "completion": f"A{i}"} for i in range(200)],
        "pairs": [{"query": sentence(i // 4), "positive": f"A{i}"} for i in range(200)],
    }[form]
    domain = load(lines(tmp_path / "a.jsonl", rows), near_duplicates=None)
    assert domain.form == form
    prompts = [{text.partition("\n")[0] for text in domain.texts(split)} for split in domain.splits]
    assert sum(map(len, prompts)) == 50


def test_too_small_to_split(tmp_path):
    line = refused(texts(tmp_path / "a.jsonl", 9))
    assert "too small to split: 9 distinct document(s), at least 10 are needed" in line
    some = [text for text in (sentence(i) for i in range(200)) if place(text) != "test"][:30]
    with pytest.raises(AcclimateError, match="30 rows leave test empty"):
        Domain.from_texts("law", some)


def test_exact_duplicates_are_dropped():
    some = [sentence(i) for i in range(50)]
    domain = Domain.from_texts("law", [*some, some[3].upper(), some[7].replace(" ", "\n ")])
    assert domain.dropped == {"exact": 2, "near": 0}


def test_equal_texts_with_other_labels_stay_together(tmp_path):
    rows = [{"text": sentence(i // 2), "label": i % 2} for i in range(100)]
    domain = load(lines(tmp_path / "a.jsonl", rows))
    assert domain.dropped["exact"] == 0
    assert sum(len(set(domain.texts(split))) for split in domain.splits) == 50


def test_near_duplicates_leave_train_only():
    some = [sentence(i, 100) for i in range(100)]
    tested = [text for text in some if place(text) != "train"]
    copies = []
    for number in range(1000):  # one word more: another hash, so that some copies fall into train
        for text in tested:
            copy = f"{text} Annex {number}"
            if place(copy) == "train" and len(copies) < 5:
                copies.append(copy)
    domain = Domain.from_texts("law", [*some, *copies])
    assert domain.dropped == {"exact": 0, "near": 5}
    assert not set(copies) & set(domain.texts("train"))
    assert set(tested) == {*domain.texts("validation"), *domain.texts("test")}


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_near_duplicates_agree_with_exact_similarity(threshold):
    def shingles(text):
        found = words(text)
        return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}

    generator = random.Random(1)
    against = [sentence(i, 120) for i in range(60)]
    several = []
    for text in against:
        changed = text.split()
        for _ in range(generator.randrange(12)):
            changed[generator.randrange(len(changed))] = "changed"
        several.append(" ".join(changed))
    expected = [
        any(len(shingles(text) & shingles(other)) / len(shingles(text) | shingles(other)) >= threshold for other in against)
        for text in several
    ]
    assert 0 < sum(expected) < 60
    found = near_duplicates(several, against, threshold)
    assert not any(hit and not wanted for hit, wanted in zip(found, expected, strict=True))
    assert sum(wanted and not hit for hit, wanted in zip(found, expected, strict=True)) <= 1  # the search may miss 1 in 100


def test_texts_without_words_are_not_alike():
    assert near_duplicates(["!!!", "\u2014"], ["???"]) == [False, False]


def test_passages_of_one_file_stand_together_where_there_are_ten_files(tmp_path):
    for i in range(60):
        (tmp_path / f"{i:02}.txt").write_text("\n\n".join(sentence(100 * i + k, 40) for k in range(10)))
    domain = load(tmp_path, passage_chars=600)
    where = {}
    for split in domain.splits:
        for origin in domain.rows(split)["origin"]:
            where.setdefault(origin.rpartition(":")[0], set()).add(split)
    assert len(where) == 60
    assert all(len(splits) == 1 for splits in where.values())
    assert len(domain.rows("train")) > 100
    order = [int(origin.rpartition(":")[2]) for origin in domain.rows("train")["origin"] if origin.rpartition(":")[0].endswith("/00.txt")]
    assert order == sorted(order)


def test_passages_of_few_files_are_divided_one_by_one(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("\n\n".join(sentence(100 * i + k, 40) for k in range(40)))
    domain = load(tmp_path, passage_chars=600)
    assert all(len(rows) for rows in domain.splits.values())


def test_given_splits_are_kept(tmp_path):
    lines(tmp_path / "train.jsonl", [{"text": sentence(i)} for i in range(20)])
    lines(tmp_path / "dev.jsonl", [{"text": sentence(i)} for i in range(30, 33)])
    lines(tmp_path / "test.jsonl", [{"text": sentence(i)} for i in (19, 40, 40)])
    domain = load(tmp_path)
    assert {split: len(rows) for split, rows in domain.splits.items()} == {"validation": 3, "test": 3, "train": 19}
    assert domain.dropped == {"exact": 1, "near": 0}
    assert len(load(tmp_path, limit=2).rows("test")) == 2


def test_limit_reads_the_first_rows(tmp_path):
    domain = load(texts(tmp_path / "a.jsonl", 200), limit=60)
    everything = {text for split in domain.splits for text in domain.texts(split)}
    assert everything == {sentence(i) for i in range(60)}


# contamination --------------------------------------------------------------------------------------------------------


def test_contamination_span_is_found_and_merged():
    secret = sentence(5, 20)
    train = [("a:1", sentence(1, 50)), ("a:2", f"Before it. {secret.upper()} After it."), ("a:3", sentence(2, 50))]
    found = contamination(train, {"exam": [secret], "other": [sentence(9, 40)]}, domain="law")
    assert (found["checked"], found["removed"], found["clean"]) == (3, 1, [0, 2])
    assert found["spans"] == [{"domain": "law", "origin": "a:2", "text": secret.upper().rstrip("."), "found_in": "exam"}]


def test_twelve_words_are_not_enough():
    text = " ".join(f"w{i}" for i in range(40))
    assert contamination([("a", " ".join(f"w{i}" for i in range(12)) + " x")], {"exam": [text]})["removed"] == 0
    assert contamination([("a", "x " + " ".join(f"w{i}" for i in range(7, 20)))], {"exam": [text]})["removed"] == 1
    assert contamination([("a", "x " + " ".join(f"w{i}" for i in range(7, 12)))], {"exam": [text]}, ngram=5)["removed"] == 1


def test_short_texts_are_matched_whole():
    evaluation = {"exam": ["How do I renew my licence?", "Yes."]}
    train = [("a", "Ask: how do I renew my licence, please"), ("b", "how do I renew it"), ("c", "Yes, of course."), ("d", "yes")]
    assert contamination(train, evaluation)["clean"] == [1, 2]


def test_no_match_spans_two_documents():
    start, end = [f"w{i}" for i in range(7)], [f"w{i}" for i in range(7, 14)]
    assert contamination([("a", " ".join(start)), ("b", " ".join(end))], {"exam": [" ".join(start + end)]})["removed"] == 0


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_contamination_agrees_with_plain_search(seed, ngram):
    generator = random.Random(seed)
    train = [(str(i), " ".join(generator.choices("abcde", k=generator.randrange(12)))) for i in range(20)]
    tested = [" ".join(generator.choices("abcdef", k=generator.randrange(ngram, 9))) for _ in range(4) if ngram < 9]

    def grams(text):
        found = text.split()
        return {tuple(found[i : i + ngram]) for i in range(len(found) - ngram + 1)}

    wanted = set().union(*map(grams, tested))
    expected = [i for i, (_, text) in enumerate(train) if not grams(text) & wanted]
    assert contamination(train, {"exam": tested}, ngram=ngram, shortest=1)["clean"] == expected


def test_contamination_across_blocks_and_scripts():
    train = [(str(i), sentence(i, 1000)) for i in range(450)]
    found = contamination(train, {"exam": [" ".join(sentence(440, 1000).split()[100:120])]})
    assert [span["origin"] for span in found["spans"]] == ["440"]
    law = "\u4e2d\u534e\u4eba\u6c11\u5171\u548c\u56fd\u5baa\u6cd5\u5e8f\u8a00\u7b2c\u4e00\u7ae0\u603b\u7eb2"
    assert contamination([("zh", f"\u89c1{law}\u3002")], {"exam": [law]})["spans"][0]["text"] == law


def test_contamination_of_nothing():
    assert contamination([], {}) == {"checked": 0, "removed": 0, "spans": [], "clean": []}
    assert contamination([("a", ""), ("b", "Text.")], {"exam": [""]})["clean"] == [0, 1]


def test_contamination_is_fast_enough():
    """Well under the 5 MB/s that is asked for, so that a busy machine does not fail it; a quadratic search would."""
    train = [(str(i), sentence(i, 300)) for i in range(1500)]
    size = sum(len(text) for _, text in train)
    started = time.process_time()
    contamination(train, {"exam": [sentence(i, 50) for i in range(10_000, 10_200)]})
    assert size / 1e6 / (time.process_time() - started) > 1

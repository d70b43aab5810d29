"""Forms of rows: how they are recognised, named, refused."""

import pyarrow
import pyarrow.parquet
import pytest

from acclimate.domain.forms import FORM, Row, look
from acclimate.domain.forms import rows as canonical
from acclimate.domain.reading import Bad, Raw
from domain_tools import lines, load, refused, sentence, texts

# forms ----------------------------------------------------------------------------------------------------------------

USER, ANSWER = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
WORSE = {"role": "assistant", "content": "B."}
EVERY_FORM = [
    (
        {"instruction": "Do.", "input": "This.", "output": "Done."},
        "messages",
        {"messages": [{**USER, "content": "Do.\n\nThis."}, {**ANSWER, "content": "Done."}]},
    ),
    ({"instruction": "Q?", "output": "A."}, "messages", {"messages": [USER, ANSWER]}),
    ({"instruction": "Q?", "input": "", "output": "A."}, "messages", {"messages": [USER, ANSWER]}),
    (
        {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]},
        "messages",
        {"messages": [{"role": "system", "content": "S"}, USER, ANSWER]},
    ),
    ({"messages": [{"role": "system", "content": ""}, USER, USER, ANSWER]}, "messages", {"messages": [USER, USER, ANSWER]}),
    (
        {"messages": [USER, {"role": "tool", "content": "4"}, ANSWER], "other": 1},
        "messages",
        {"messages": [USER, {"role": "tool", "content": "4"}, ANSWER]},
    ),
    ({"prompt": "Q?", "completion": "A."}, "messages", {"messages": [USER, ANSWER]}),
    ({"prompt": "Q?", "chosen": "A.", "rejected": "B."}, "preference", {"prompt": [USER], "chosen": "A.", "rejected": "B."}),
    ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}, "preference", {"prompt": [USER], "chosen": "A.", "rejected": "B."}),
    ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, "preference", {"prompt": [USER], "chosen": "A.", "rejected": "B."}),
    (
        {"prompt": "Q?", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        "preference",
        {"prompt": [USER], "chosen": "A.", "rejected": "B."},
    ),
    ({"text": "T."}, "text", {"text": "T."}),
    ({"sentence": "T.", "label": 3}, "labelled", {"text": "T.", "label": "3"}),
    ({"content": "T.", "sentiment": "good"}, "labelled", {"text": "T.", "label": "good"}),
    ({"text": "T.", "intent": "pay"}, "labelled", {"text": "T.", "label": "pay"}),
    ({"anchor": "a", "positive": "b", "negative": "c"}, "pairs", {"anchor": "a", "positive": "b", "negative": "c"}),
    ({"query": "a", "positive": "b"}, "pairs", {"anchor": "a", "positive": "b"}),
    ({"sentence1": "a", "sentence2": "b"}, "pairs", {"anchor": "a", "positive": "b"}),
    (
        {"head": "aspirin", "relation": "treats", "tail": 7},
        "facts",
        {"head": "aspirin", "relation": "treats", "tail": "7"},
    ),
    (
        {"text": "The valve.", "mentions": [{"start": 4, "end": 9, "entity": "valve", "score": 1.0}]},
        "text",
        {"text": "The valve.", "mentions": [{"start": 4, "end": 9, "entity": "valve"}]},
    ),
]


@pytest.mark.parametrize(("row", "form", "values"), EVERY_FORM)
def test_every_form(row, form, values):
    assert list(canonical([Raw("f:1", row)])) == [Row(form, values, "f:1")]


def test_every_form_is_covered():
    assert {look(row) for row, _, _ in EVERY_FORM} == set(FORM)


@pytest.mark.parametrize("row", [{"sentence1": "a", "sentence2": "b", "label": 0}, {"prompt": "Q?"}, {"text": None}, {}])
def test_what_is_no_form(row):
    assert look(row) == ""


@pytest.mark.parametrize(
    ("good", "row", "field", "problem"),
    [
        ({"instruction": "Q", "output": "A"}, {"instruction": "Q"}, "output", "is missing"),
        ({"instruction": "Q", "output": "A"}, {"instruction": "Q", "output": ""}, "output", "is empty"),
        ({"instruction": "Q", "output": "A"}, {"instruction": "Q", "output": 4}, "output", "is a number, but must be text"),
        ({"text": "a", "label": 1}, {"text": "b"}, "label", "is missing"),
        ({"text": "a", "label": 1}, {"text": "b", "label": [1, 2]}, "label", "is a list, but must be one label"),
        ({"text": "a", "label": 1}, {"text": "b", "label": 0.5}, "label", "is a number, but must be one label"),
        ({"text": "a"}, {"text": "  "}, "text", "is empty"),
        ({"text": "a"}, {"text": "\ud800"}, "text", "half a character"),
        ({"messages": [USER, ANSWER]}, {"messages": [USER]}, "messages", "has no assistant turn"),
        ({"messages": [USER, ANSWER]}, {"messages": "Q?"}, "messages", "is text, but must be a list of turns"),
        ({"messages": [USER, ANSWER]}, {"messages": ["Q?"]}, "messages[0]", "must be an object"),
        ({"messages": [USER, ANSWER]}, {"messages": [{"role": "asistant", "content": "A"}]}, "messages[0].role", "nearest: assistant"),
        ({"messages": [USER, ANSWER]}, {"messages": [USER, {"role": "assistant"}]}, "messages[1].content", "is missing"),
        ({"messages": [USER, ANSWER]}, {"messages": [{"role": ["user"], "content": "A"}]}, "messages[0].role", "unknown role"),
        ({"messages": [USER, ANSWER]}, {"messages": []}, "messages", "is empty"),
        ({"anchor": "a", "positive": "b", "negative": "c"}, {"anchor": "a", "positive": "b"}, "negative", "is missing"),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            {"prompt": "Q", "chosen": "A", "rejected": "A"},
            "rejected",
            "is the same as chosen",
        ),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, {"chosen": "A", "rejected": "B"}, "prompt", "is missing"),
        (
            {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
            {"chosen": [USER, ANSWER, USER], "rejected": [USER, WORSE]},
            "chosen",
            "must end",
        ),
        (
            {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
            {"prompt": "X?", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
            "prompt",
            "is not among the turns",
        ),
    ],
)
def test_bad_rows_name_file_line_field_and_mend(good, row, field, problem):
    first, bad = canonical([Raw("f:1", good), Raw("f:2", row)])
    assert isinstance(first, Row)
    assert isinstance(bad, Bad)
    assert (bad.origin, bad.field) == ("f:2", field)
    assert problem in bad.problem
    assert bad.mend
    assert "\n" not in str(bad)


def test_bad_first_row_is_judged_by_what_follows():
    bad, good = canonical([Raw("f:1", {"instruction": "Q"}), Raw("f:2", {"instruction": "Q", "output": "A"})])
    assert (bad.origin, bad.field, good.form) == ("f:1", "output", "messages")


def test_mixed_forms_name_both_rows(tmp_path):
    rows = [{"instruction": sentence(i), "output": "A"} for i in range(20)]
    rows[4] = {"messages": [USER, ANSWER]}
    line = refused(lines(tmp_path / "a.jsonl", rows))
    assert "a.jsonl:5: looks like messages (messages), but" in line
    assert "a.jsonl:1 looks like alpaca (instruction, input, output)" in line


def test_files_of_different_forms_are_refused(tmp_path):
    texts(tmp_path / "a.jsonl")
    lines(tmp_path / "b.jsonl", [{"text": "T.", "label": 1}])
    line = refused(tmp_path)
    assert "b.jsonl: holds labelled, but" in line
    assert "a.jsonl:1 holds text" in line


def test_two_notations_of_conversations_may_stand_side_by_side(tmp_path):
    lines(tmp_path / "a.jsonl", [{"instruction": sentence(i), "output": "A"} for i in range(50)])
    lines(tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": sentence(i)}, ANSWER]} for i in range(50, 100)])
    domain = load(tmp_path)
    assert domain.form == "messages"
    assert domain.rows("train")[0]["messages"][1] == {"role": "assistant", "content": "A"}
    assert domain.texts("train")[0] == domain.rows("train")[0]["messages"][0]["content"] + "\nA"


def test_unknown_columns_say_how_to_name_them(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"question": sentence(i), "reply": f"A {i}"} for i in range(100)])
    line = refused(path)
    assert "a.jsonl:1: question, reply fits no known form" in line
    assert load(path, field="question").form == "text"
    domain = load(path, field={"prompt": "question", "completion": "reply"})
    assert domain.form == "messages"
    assert domain.rows("train")[0]["messages"][1]["content"].startswith("A ")
    assert "nearest: question" in refused(path, field="qestion")


def test_chosen_field_is_named_in_errors(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"body": "T."}, {"body": 4}])
    assert "a.jsonl:2: body is a number" in refused(path, field="body")


def test_csv_and_parquet_of_examples(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{sentence(i)},{i % 2}\n" for i in range(100)))
    domain = load(tmp_path / "a.csv")
    assert set(domain.rows("train")["label"]) == {"0", "1"}
    table = pyarrow.table({"prompt": [sentence(i) for i in range(100)], "chosen": ["A"] * 100, "rejected": ["B"] * 100})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    domain = load(tmp_path / "b.parquet")
    assert domain.form == "preference"
    row = domain.rows("train")[0]
    assert row["prompt"] == [{"role": "user", "content": row["prompt"][0]["content"]}]
    assert domain.texts("train")[0] == row["prompt"][0]["content"] + "\nA"


def test_unknown_option_names_the_nearest(tmp_path):
    texts(tmp_path / "a.jsonl")
    assert "nearest: shares" in refused(tmp_path, share=(0.5, 0.25, 0.25))
    assert "sum to 1" in refused(tmp_path, shares=(0.8, 0.1))
    assert "shares" in refused(tmp_path, shares=(0.8, 0.4, -0.2))

"""Domains: what is read, how forms are recognised, how splits hold, what is refused and with which words."""

import json
import random
import time

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate import AcclimateError
from acclimate.domain import Domain
from acclimate.domain.contamination import contamination
from acclimate.domain.forms import FORM, Row, look
from acclimate.domain.forms import rows as canonical
from acclimate.domain.reading import Bad, Raw, files, passages, read
from acclimate.domain.splits import divide, near_duplicates, place, words
from acclimate.domain.validation import validate

WORDS = [*"cdfghlmnprst"]
WORDS = [first + vowel + last for first in WORDS for vowel in "ae" for last in "nt"]  # made-up words


def sentence(seed: int, length: int = 30) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length)) + f" number {seed}."


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(path, count=100):
    return lines(path, [{"text": sentence(i)} for i in range(count)])


def load(source, name="law", **options):
    return Domain.load(name, str(source), **options)


def refused(source, **options):
    """The error's one line."""
    with pytest.raises(AcclimateError) as caught:
        load(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def tiny_pdf(pages, encrypt=False):
    """A PDF of one line of text per page, written by hand."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{' '.join(f'{4 + 2 * i} 0 R' for i in range(len(pages)))}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R >>"
    return out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n{trailer}\nstartxref\n{len(out)}\n%%EOF\n".encode()


# the Domain itself ----------------------------------------------------------------------------------------------------


def test_from_texts_divides_and_reports():
    domain = Domain.from_texts("law", [sentence(i) for i in range(200)])
    assert domain.form == "text"
    assert list(domain.splits) == ["train", "validation", "test"]
    assert domain.rows("train").column_names == ["id", "origin", "text"]
    assert sum(len(domain.texts(split)) for split in domain.splits) == 200
    assert 130 < len(domain.rows("train")) < 185
    assert domain.dropped == {"exact": 0, "near": 0}


def test_missing_split_names_the_splits_there_are():
    domain = Domain.from_texts("law", [sentence(0)], splits=False)
    with pytest.raises(AcclimateError, match="no split 'test'; it has: train"):
        domain.rows("test")


def test_fingerprint_follows_the_content():
    some = [sentence(i) for i in range(20)]
    assert Domain.from_texts("a", some).fingerprint == Domain.from_texts("b", some, source="elsewhere").fingerprint
    assert Domain.from_texts("a", some).fingerprint != Domain.from_texts("a", [*some[:-1], "Other."]).fingerprint


def test_from_texts_refuses_what_is_no_text():
    with pytest.raises(AcclimateError, match="law:2: None is no text"):
        Domain.from_texts("law", ["One.", None])


def test_unknown_form_is_refused():
    with pytest.raises(AcclimateError, match="form 'txt'"):
        Domain("law", "txt", {})


# reading --------------------------------------------------------------------------------------------------------------


def test_folder_of_all_formats_sorted_and_hidden_files_skipped(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffPlain text.", encoding="utf-8")
    (tmp_path / "b.md").write_text("# Title\n\nMarkdown text.")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.html").write_text(
        "<html><head><title>no</title><script>no()</script></head><body><p>Web text.</p></body></html>"
    )
    (tmp_path / "deep" / "d.pdf").write_bytes(tiny_pdf(["First page.", "Second page."]))
    lines(tmp_path / "e.jsonl", [{"text": "A line."}])
    (tmp_path / "f.json").write_text('[{"text": "In an array."},\n {"text": "Next."}]')
    (tmp_path / "g.csv").write_text('text,extra\n"Two,\nlines.",1\nThird.,2\n')
    (tmp_path / "h.tsv").write_text("text\textra\nTabbed.\t1\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["In Parquet."]}), tmp_path / "i.parquet")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("no")
    (tmp_path / "z.bin").write_bytes(b"no")
    found = [row for path in files(tmp_path) for row in read(path)]
    assert all(isinstance(row, Raw) for row in found), found
    assert [(row.origin.removeprefix(f"{tmp_path}/"), row.values["text"]) for row in found] == [
        ("a.txt:1", "Plain text."),
        ("b.md:1", "# Title\n\nMarkdown text."),
        ("deep/c.html", "Web text."),
        ("deep/d.pdf#1", "First page."),
        ("deep/d.pdf#2", "Second page."),
        ("e.jsonl:1", "A line."),
        ("f.json:1", "In an array."),
        ("f.json:2", "Next."),
        ("g.csv:2", "Two,\nlines."),
        ("g.csv:4", "Third."),
        ("h.tsv:2", "Tabbed."),
        ("i.parquet:1", "In Parquet."),
    ]


def test_article_is_taken_out_of_a_web_page(tmp_path):
    body = "".join(f"<p>{sentence(i)}</p>" for i in range(5))
    page = f"<html><body><nav><a href='/'>Home</a></nav><article><h1>Title</h1>{body}</article><footer>Imprint</footer></body></html>"
    (tmp_path / "a.html").write_text(page)
    (row,) = read(tmp_path / "a.html")
    assert sentence(3) in row.values["text"]
    assert "Imprint" not in row.values["text"]


def test_a_page_without_an_article_gives_its_visible_text(tmp_path, monkeypatch):
    import trafilatura

    monkeypatch.setattr(trafilatura, "extract", lambda *_, **__: None)
    (tmp_path / "a.html").write_text(
        "<style>no</style><p>Web <b>text</b>\nand  more.</p><script>if (a < b) no()</script><p>Caf&eacute;</p>"
    )
    (row,) = read(tmp_path / "a.html")
    assert row.values["text"] == "Web text and more.\n\nCaf\u00e9"
    (tmp_path / "a.html").write_text("<p> </p>")
    (bad,) = read(tmp_path / "a.html")
    assert "holds no text" in bad.problem


def test_objects_one_after_the_other_in_json(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "One."}\n{"text": "Two.\\u2028Still two."}\n')
    assert [row.origin[-1] for row in read(tmp_path / "a.json")] == ["1", "2"]


def test_json_lines_named_txt(tmp_path):
    lines(tmp_path / "a.txt", [{"text": "One.", "label": "x"}, {"text": "Two.", "label": "y"}])
    (tmp_path / "b.txt").write_text('{"braces" are used in this text}\n')
    assert [row.origin.rpartition("/")[2] for path in files(tmp_path) for row in read(path)] == ["a.txt:1", "a.txt:2", "b.txt:1"]


def test_semicolons_and_long_fields_in_csv(tmp_path):
    (tmp_path / "a.csv").write_text("text;label\n" + "x" * 200_000 + ";good\n")
    (row,) = read(tmp_path / "a.csv")
    assert len(row.values["text"]) == 200_000
    assert row.values["label"] == "good"


def test_missing_path_and_unknown_names(tmp_path):
    line = refused("lmm/legal/x")
    assert "no file or folder 'lmm/legal/x' exists" in line
    assert "nearest: lm" in line
    assert "empty source" in refused(" ")
    assert "cannot be read" in refused(_touch(tmp_path / "a.docx"))


def _touch(path):
    path.write_bytes(b"x")
    return path


def test_hub_offline_is_one_line(monkeypatch):
    import datasets

    def offline(*_):
        raise ConnectionError("cannot reach the hub\nwith a long story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    line = refused("nobody/nothing")
    assert "no file or folder 'nobody/nothing' exists" in line
    assert line.endswith("the Hugging Face hub says: cannot reach the hub")


def test_hub_dataset_keeps_its_splits_and_label_names(monkeypatch):
    import datasets

    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})

    def fake(source, config):
        assert (source, config) == ("owner/reviews", "small")
        return datasets.DatasetDict(
            {
                "train": datasets.Dataset.from_dict(
                    {"sentence": ["It works.", "It broke.", "It is fine."], "label": [1, 0, 1]}, features=features
                ),
                "test": datasets.Dataset.from_dict({"sentence": ["It  works.", "Never."], "label": [1, 0]}, features=features),
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", fake)
    domain = load("owner/reviews", config="small")
    assert domain.form == "labelled"
    assert domain.texts("test") == ["It  works.", "Never."]
    assert domain.rows("test")["label"][:] == ["good", "bad"]
    assert domain.texts("train") == ["It broke.", "It is fine."]  # the tested one left train
    assert domain.dropped == {"exact": 1, "near": 0}
    assert domain.rows("train")["origin"][0] == "owner/reviews/train:2"
    assert load("owner/reviews", config="small", limit=2).texts("train") == ["It broke."]
    assert "every row of train also stands in a split to be tested on" in refused("owner/reviews", config="small", limit=1)


def test_named_dataset_refuses_options_that_do_nothing(monkeypatch):
    import importlib

    named = Domain.from_texts("python_docs/numpy", [sentence(i) for i in range(30)])
    monkeypatch.setattr(importlib.import_module("acclimate.datasets"), "load", lambda source: named)
    loaded = load("lm/legal", limit=3, access="staff", near_duplicates=0.8)
    assert (loaded.name, loaded.access, len(loaded.rows("train"))) == ("law", "staff", 3)
    assert "leave out field" in refused("lm/legal", field="body")


def test_existing_path_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm").mkdir()
    texts(tmp_path / "lm" / "legal.jsonl")
    assert len(load("lm").texts("train")) > 50


def test_empty_folder(tmp_path):
    line = refused(tmp_path)
    assert "no readable file" in line
    assert ".jsonl" in line


def test_empty_file(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    assert "no rows" in refused(tmp_path / "a.txt")


@pytest.mark.parametrize("data", [b"not a PDF at all", b"", tiny_pdf(["Text."])[:60]])
def test_unreadable_pdf(tmp_path, data):
    (tmp_path / "a.pdf").write_bytes(data)
    line = refused(tmp_path)
    assert "a.pdf: cannot be read as PDF" in line
    assert "save it anew" in line


def test_textless_and_encrypted_pdf(tmp_path):
    import pypdf

    (tmp_path / "a.pdf").write_bytes(tiny_pdf(["", ""]))
    assert "a.pdf: has no text on its 2 pages" in refused(tmp_path)
    (tmp_path / "b.pdf").write_bytes(tiny_pdf(["Secret."]))
    writer = pypdf.PdfWriter(clone_from=tmp_path / "b.pdf")
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(tmp_path / "a.pdf")
    assert "a.pdf: is encrypted" in refused(tmp_path / "a.pdf")


def test_wrong_encoding_names_file_byte_and_mend(tmp_path):
    rows = [f'{{"text": "{sentence(i)} caf\u00e9"}}\n' for i in range(1000)]
    (tmp_path / "a.jsonl").write_bytes("".join(rows).encode("latin-1"))
    line = refused(tmp_path)
    offset = rows[0].index("\u00e9")
    assert f"a.jsonl: byte 0xe9 at offset {offset} (line 1) is not UTF-8" in line
    assert 'encoding="latin-1"' in line
    assert load(tmp_path, encoding="latin-1").texts("train")[0].endswith("caf\u00e9")
    assert "encoding 'latin-0' is unknown" in refused(tmp_path, encoding="latin-0")


def test_offset_of_a_bad_byte_far_into_a_file(tmp_path):
    start = b"\xef\xbb\xbf" + b"plain words\n" * 10_000
    (tmp_path / "a.txt").write_bytes(start + b"\xff")
    assert f"byte 0xff at offset {len(start)} (line 10001)" in refused(tmp_path)


def test_utf16_is_guessed(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(sentence(i) for i in range(30)), encoding="utf-16")
    assert 'encoding="utf-16"' in refused(tmp_path)
    assert load(tmp_path, encoding="utf-16").form == "text"


def test_broken_json_on_line_17(tmp_path):
    rows = [json.dumps({"text": sentence(i)}) for i in range(30)]
    rows[16] = '{"text": "never closed}'
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    line = refused(tmp_path)
    assert "a.jsonl:17: not valid JSON: Unterminated string" in line
    assert "column 10" in line
    domain = load(tmp_path, skip_bad=True)
    assert domain.dropped["bad"] == 1
    assert sum(len(rows) for rows in domain.splits.values()) == 29


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ('[{"text": "a"},\n{"text": "b"}\n{"text": "c"}]', "a.json:3", "Expecting ','"),
        ('[{"text": "a"},\n{"text": "b"}\n', "a.json:3", "never closed"),
        ('[{"text": "a"},\n{"text": b}]', "a.json:2", "Expecting value"),
    ],
)
def test_broken_json_array(tmp_path, text, where, said):
    (tmp_path / "a.json").write_text(text)
    line = refused(tmp_path)
    assert where in line
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,label\none,a\ntwo\n", "a.csv:3: has 1 fields"),
        ("text,text\none,a\n", "empty or repeated names"),
        ('text,label\none,a\n"two,b\nthree,c\n', "a.csv:3: not a valid table"),
    ],
)
def test_broken_table(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    assert said in refused(tmp_path)


def test_broken_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no PAR1")
    assert "a.parquet: cannot be read as Parquet" in refused(tmp_path)


def test_row_that_is_no_object(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n"just text"\n')
    assert 'a.jsonl:2: holds "just text", but must hold an object' in refused(tmp_path)


@given(st.text(alphabet="ab .\n", max_size=300), st.integers(5, 60))
@settings(max_examples=200, deadline=None)
def test_passages_lose_nothing_and_know_their_line(text, longest):
    found = passages(text, longest)
    assert "".join("".join(passage for _, passage in found).split()) == "".join(text.split())
    for line, passage in found:
        assert len(passage) <= longest
        assert passage.split("\n")[0] in text.split("\n")[line - 1]


def test_passages_end_at_paragraphs():
    paragraphs = [sentence(i) for i in range(40)]
    found = passages("\n\n".join(paragraphs), 1000)
    assert len(found) > 5
    assert all(passage.split("\n\n")[-1] in paragraphs for _, passage in found)
    assert all(len(passage) > 500 for _, passage in found[:-1])


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


# validate -------------------------------------------------------------------------------------------------------------


def test_validate_reports_what_was_seen(tmp_path):
    texts(tmp_path / "a.jsonl", 60)
    texts(tmp_path / "b.jsonl", 61)
    report = validate(tmp_path)
    assert report["ok"]
    assert report["form"] == "text"
    assert report["rows"] == 121
    assert report["dropped"] == {"exact": 60, "near": 0}
    assert sum(report["splits"].values()) == 61
    assert [file["rows"] for file in report["files"]] == [60, 61]
    assert report["sample"] == {"origin": f"{tmp_path}/a.jsonl:1", "text": sentence(0)}
    assert report["shortest"]["characters"] <= report["longest"]["characters"]
    assert report["bytes"] == sum(len(sentence(i)) for i in range(60)) + sum(len(sentence(i)) for i in range(61))
    json.dumps(report)


def test_validate_goes_on_after_bad_rows(tmp_path):
    rows = [json.dumps({"text": sentence(i)}) for i in range(60)]
    rows[3], rows[16], rows[20], rows[30] = '{"text": ""}', "{", '{"text": 4}', '{"text": "t", "label": 1}'
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.pdf").write_bytes(b"broken")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    report = validate(tmp_path)
    assert not report["ok"]
    assert report["rows"] == 56
    assert report["bad_rows"] == 6
    assert [bad["origin"].removeprefix(f"{tmp_path}/") for bad in report["bad"]] == [
        "a.jsonl:4",
        "a.jsonl:17",
        "a.jsonl:21",
        "a.jsonl:31",
        "b.pdf",
        "c.txt",
    ]
    assert [bad["field"] for bad in report["bad"]] == ["text", "", "text", "", "", ""]
    assert [file["bad"] for file in report["files"]] == [4, 1, 1]
    assert all(bad["mend"] for bad in report["bad"])
    assert report["problem"] == ""


def test_validate_shows_twenty_and_counts_all(tmp_path):
    report = validate(lines(tmp_path / "a.jsonl", [{"text": sentence(i) if i % 2 else ""} for i in range(100)]))
    assert len(report["bad"]) == 20
    assert report["bad_rows"] == 50


def test_validate_tells_why_a_source_cannot_be_divided(tmp_path):
    report = validate(texts(tmp_path / "a.jsonl", 3))
    assert not report["ok"]
    assert "too small to split" in report["problem"]
    assert report["rows"] == 3
    with pytest.raises(AcclimateError, match="no such file or folder"):
        validate(tmp_path / "nowhere")

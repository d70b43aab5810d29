"""Reading domains: formats, sources, what is refused and with which words."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.domain import Domain
from acclimate.domain.reading import Raw, files, passages, read
from domain_tools import lines, load, refused, sentence, texts, tiny_pdf

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

"""Domains as a whole, and their validation."""

import json

import pytest

from acclimate import AcclimateError
from acclimate.domain import Domain
from acclimate.domain.validation import validate
from domain_tools import lines, sentence, texts

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

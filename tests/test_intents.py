"""Loaders of Banking77, CLINC150 and FDU-MTL on small files of the same form."""

import json

import pytest

from acclimate import datasets
from acclimate.errors import AcclimateError


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCLIMATE_DATA", str(tmp_path))
    for folder in ("banking77", "clinc_oos"):
        (tmp_path / "text" / "intents" / folder).mkdir(parents=True)
    (tmp_path / "text" / "fdu_mtl").mkdir()
    return tmp_path / "text"


def test_banking77(data):
    train = "".join(f'"Where is my card, number {i}?",card\nHow do I pay {i}?,pay\n' for i in range(30))
    folder = data / "intents" / "banking77"
    (folder / "train.csv").write_text("text,category\n" + train + 'Is it LOST?,card\n"Is it\nhere?",card\n')
    (folder / "test.csv").write_text("text,category\nis it lost?,card\nCan I pay?,pay\n")
    found = datasets.load("banking77")
    assert found.rows("test")["label"] == ["card", "pay"]
    assert len(found.rows("train")) + len(found.rows("validation")) == 61  # without the one that stands in test
    assert 0 < len(found.rows("validation")) < 20
    assert not set(found.rows("train")["text"]) & set(found.rows("validation")["text"])
    assert "Where is my card, number 3?" in {*found.rows("train")["text"], *found.rows("validation")["text"]}
    task = found.tasks["banking77"]
    assert (task.rows[1]["answer"], task.rows[0]["options"]) == (" pay", [" card", " pay"])


def test_clinc150(data):
    folder = data / "intents" / "clinc_oos"
    (folder / "domains.json").write_text(json.dumps({"banking": ["pay"], "credit cards": ["lost"], "work": ["leave"]}))
    rows = {"train": [["pay it", "pay"], ["lost it", "lost"], ["pay now", "pay"]], "val": [["pay me", "pay"]], "test": [["pay now", "pay"]]}
    rows |= {"oos_train": [["who is he", "oos"]], "oos_val": [["a"] * 2], "oos_test": [["why", "oos"]]}
    (folder / "data_full.json").write_text(json.dumps(rows))
    found = datasets.load("clinc150/banking")
    assert {split: list(found.rows(split)["text"]) for split in found.splits} == {
        "train": ["pay it"], "validation": ["pay me"], "test": ["pay now"],
    }  # fmt: skip
    assert set(datasets.load("clinc150/all").rows("train")["label"]) == {"pay", "lost"}
    assert datasets.load("clinc150/credit_cards").rows("train")["text"][:] == ["lost it"]
    assert datasets.load("clinc150/out_of_scope").rows("test")["text"][:] == ["why"]
    assert not datasets.load("clinc150/out_of_scope").tasks
    with pytest.raises(AcclimateError, match="nearest: banking"):
        datasets.load("clinc150/bankin")


def test_fdu_mtl(data):
    from acclimate.datasets.fdu_mtl import KINDS

    for kind in KINDS:
        (data / "fdu_mtl" / f"{kind}.task.train").write_text(
            "".join(f"{i % 2}\t{kind} number {i} .\n" for i in range(20)) + "1\tshared .\n"
        )
        (data / "fdu_mtl" / f"{kind}.task.test").write_text(f"0\t{kind} number 3 .\n1\t{kind} is fine .\n\n")
    books = datasets.load("fdu_mtl/books")
    assert books.rows("test")["label"][:] == ["bad", "good"]
    assert len(books.rows("train")) + len(books.rows("validation")) == 20  # number 3 stands in test
    whole = datasets.load("fdu_mtl/categories")
    assert len(whole.rows("test")) == 24
    assert sum(len(whole.rows(split)) for split in ("train", "validation")) == 12 * 19 + 1  # what all kinds share counts once
    assert set(whole.rows("test")["label"]) == set(KINDS)
    assert whole.tasks["categories"].rows[0]["answer"].strip() == whole.rows("test")["label"][0]

"""The catalogue of papers, its verdicts, and the pages generated from it."""

import json
import re
import subprocess
import sys
from collections import Counter
from typing import Annotated

import pytest

from acclimate import catalogue
from acclimate.catalogue import pages
from acclimate.errors import AcclimateError
from acclimate.kinds import ROOMS, Objective
from acclimate.method import Setting

KEYS = ["n", "id", "title", "kind", "room", "methods", "recipe", "experiment", "verdict", "evidence"]
OTHER_ROOMS = {"catalogue", "core", "models", "recipes"}  # rooms of papers that are no rooms of methods
EVIDENCE = {
    "id": "della",
    "verdict": "does_not_hold",
    "criterion": "one beats | the other",
    "metric": "bits per byte, lower is better",
    "rows": [{"name": "base", "mean": 1.2345, "ci95": 0.0234, "seeds": [1.2, 1.3, 1.2]}],
    "seeds": [0, 1, 2],
    "tiny": False,
    "why": "too small a model",
    "device": "cpu",
    "source": "not the file's digest",
    "provenance": {"started": "2025-02-03T04:05:06+00:00"},
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty checkout; the papers are the real ones."""
    folder = tmp_path / "src" / "acclimate"
    (folder / "evidence").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(catalogue, "PACKAGE", folder)
    return folder


def put(package, change=None, name="della"):
    (package / "evidence" / f"{name}.json").write_text(json.dumps({**EVIDENCE, **(change or {})}))


def test_every_paper_is_there_once_with_exactly_the_public_keys():
    rows = catalogue.papers()
    assert [row["n"] for row in rows] == list(range(1, 207))
    assert len({row["id"] for row in rows}) == 206
    assert all(list(row) == KEYS for row in rows)
    assert {row["room"] for row in rows} == set(ROOMS) | OTHER_ROOMS
    json.dumps(rows)


def test_the_papers_on_shift_stand_in_their_four_rooms():
    count = Counter(row["room"] for row in catalogue.papers())
    shift = ("domain_adaptation", "domain_generalization", "test_time", "active_learning")
    assert [count[room] for room in shift] == [12, 8, 8, 2]
    assert catalogue.paper("dann")["methods"] == catalogue.paper("backprop_uda")["methods"]


def test_claims_are_one_short_sentence():
    for row in catalogue.papers():
        claim = catalogue.paper(row["id"])["claim"]
        assert len(claim) <= 220, row["id"]
        assert claim.endswith("."), row["id"]
        assert claim[0].isupper(), row["id"]
        assert not re.search(r"\.\s+[A-Z]|\(\?\)|\n", claim), row["id"]


def test_names_and_paths_have_the_registrys_form():
    for row in catalogue.papers():
        for name in row["methods"]:
            room, _, stem = name.partition(".")
            assert room in ROOMS, (row["id"], name)
            assert stem.isidentifier(), (row["id"], name)
        assert len(set(row["methods"])) == len(row["methods"])
    for entry in catalogue._entries(catalogue.FOLDER).values():
        assert re.fullmatch(r"recipes/\w+/\w+\.yaml", entry.get("recipe", "recipes/a/b.yaml")), entry["id"]


def test_every_experiment_belongs_to_a_paper_and_lies_in_its_room():
    known = {row["experiment"] for row in catalogue.papers()}
    for path in (catalogue.PACKAGE / "experiments").glob("*/[!_]*.py"):
        assert path.relative_to(catalogue.PACKAGE).as_posix() in known


def test_loads_fast_and_without_torch():
    code = (
        "import sys, time; from acclimate import catalogue; rows = catalogue.papers()\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert len(rows) == 206 and not heavy, heavy\n"
        "print(time.process_time())"
    )
    spent = min(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in "ab")
    assert spent < 0.3  # CPU seconds of the whole process, so that a busy machine does not matter


def test_a_paper_is_found_by_id_or_number_and_a_wrong_name_gives_the_nearest():
    assert catalogue.paper(96) == catalogue.paper("96") == catalogue.paper("della")
    assert list(catalogue.paper("della")) == [*KEYS, "claim"]
    with pytest.raises(AcclimateError, match="no paper 'dela'; nearest: della"):
        catalogue.paper("dela")
    with pytest.raises(AcclimateError, match="no paper number 207"):
        catalogue.paper(207)


def test_paths_are_given_only_where_the_file_is(package):
    row = catalogue.paper("findap")
    assert row["recipe"] is row["experiment"] is row["evidence"] is None
    assert catalogue.state(row) == "not built yet"
    (package / "recipes" / "finance").mkdir(parents=True)
    (package / "recipes" / "finance" / "findap.yaml").touch()
    row = catalogue.paper("findap")
    assert row["recipe"] == "recipes/finance/findap.yaml"
    assert catalogue.state(row) == "no experiment yet"
    (package / "experiments" / "recipes").mkdir(parents=True)
    (package / "experiments" / "recipes" / "findap.py").touch()
    row = catalogue.paper("findap")
    assert row["experiment"] == "experiments/recipes/findap.py"
    assert catalogue.state(row) == "not run"


def test_a_verdict_comes_from_the_evidence_file_alone(package):
    assert catalogue.paper("della")["verdict"] == "not_run"
    put(package)
    row = catalogue.paper("della")
    assert (row["verdict"], row["evidence"]) == ("does_not_hold", "evidence/della.json")
    assert catalogue.state(row) == "does not hold at this scale"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "maybe"}, "has verdict 'maybe'"),
        ({"verdict": "not_run"}, "has verdict 'not_run'"),
        ({"verdict": None}, "needs verdict"),
        ({"id": "dann"}, "is of 'dann'"),
        ({"tiny": True}, "full run"),
        ({"seeds": [0, 1]}, "at least 3 seeds"),
        ({"criterion": None}, "needs criterion"),
        ({"rows": [{"name": "base", "seeds": [1.0]}]}, "one figure per seed"),
    ],
)
def test_malformed_evidence_is_one_line_that_names_the_file(package, change, said):
    put(package, change)
    with pytest.raises(AcclimateError, match=rf"^evidence/della\.json: .*{said}"):
        catalogue.papers()


def test_broken_and_stray_evidence_are_errors(package):
    put(package, {"id": "dela"}, name="dela")
    with pytest.raises(AcclimateError, match=r"evidence/dela\.json belongs to no paper; nearest: della"):
        catalogue.papers()
    (package / "evidence" / "dela.json").unlink()
    (package / "evidence" / "della.json").write_text("{")
    with pytest.raises(AcclimateError, match=r"della\.json is not valid JSON"):
        catalogue.papers()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {n: 1, id: a, title: A, kind: method, clam: x.}", "needs claim as str"),
        ("- {n: 1, id: a, title: A, kind: method, claim: x., method: [b]}", "unknown field 'method'; nearest: methods"),
        ("- {n: 1, id: a, title: A, kind: idea, claim: x.}", "kind 'idea', but must be one of method"),
        ("- {n: 1, id: a, title: A, kind: study, claim: x.}\n- {n: 2, id: a, title: B, kind: study, claim: y.}", "too"),
        ("- {n: 1", "is not valid YAML"),
    ],
)
def test_a_fault_in_a_room_names_its_file(tmp_path, text, said):
    (tmp_path / "merging.yaml").write_text(text)
    with pytest.raises(AcclimateError, match=rf"catalogue/merging\.yaml.*{said}"):
        catalogue._entries(tmp_path)


def test_the_evidence_page_shows_figures_verdict_and_reason(package):
    put(package)
    text = pages.evidence_page()
    assert "Run in full: 1 of 206 papers; holds: 0, does not hold at this scale: 1, cannot be tested here: 0." in text
    assert "bits per byte, lower is better (3 seeds)<br>base: 1.234 ± 0.023" in text
    assert r"one beats \| the other" in text
    assert "| cpu | 2025-02-03 |" in text
    assert "- `della` does not hold at this scale: too small a model" in text
    assert "the experiment's file is gone" in text
    (package / "experiments" / "merging").mkdir(parents=True)
    (package / "experiments" / "merging" / "della.py").touch()
    assert "`della`: the experiment's file has changed since this run." in pages.evidence_page()


def test_tables_have_the_same_number_of_cells_in_every_line(package):
    put(package)
    for text in (pages.evidence_page(), pages.papers_page()):
        for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_check_names_a_stale_page_and_writing_mends_it(package, capsys, monkeypatch):
    monkeypatch.setattr(pages, "methods_page", lambda: "methods\n")  # the real one imports every method
    assert pages.main(["--check"]) == 1
    assert "docs/evidence.md is stale" in capsys.readouterr().err
    assert pages.main([]) == 0
    assert pages.main(["--check"]) == 0
    put(package)
    capsys.readouterr()
    assert pages.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert "docs/evidence.md is stale" in said
    assert "docs/papers.md is stale" in said
    assert "methods.md" not in said
    assert pages.main(["--chek"]) == 2


def test_pages_in_the_checkout_are_fresh():
    assert [path.name for path in pages.stale()] == [], f"run: {pages.COMMAND}"


def test_a_method_is_shown_with_its_settings_needs_and_papers(monkeypatch):
    class Toy(Objective):
        """A toy."""

        beta: Annotated[float, Setting("strength | of the pull", 0)] = 0.1
        kind: Annotated[str, Setting("which one", choices=("a", "b"))] = "a"

        def loss(self, logits, labels, items=None):
            return logits

    monkeypatch.setattr(sys.modules[__name__], "__doc__", "Toy: pulls.\n\nSee https://example.org/a, and (https://example.org/a).")
    monkeypatch.setattr(pages.method, "find", {"objectives.dapt_tapt": Toy}.__getitem__)
    text = "\n".join(pages._method("objectives.dapt_tapt"))
    assert "### objectives.dapt_tapt\n\nToy: pulls.\n\nSource: <https://example.org/a>\n" in text
    assert "[catalogue](papers.md): `dapt_tapt`" in text
    assert "`loss` needs `logits`, `labels`; takes if there: `items`" in text
    assert r"| `beta` | `0.1` | at least 0 | strength \| of the pull |" in text
    assert "| `kind` | `'a'` | `'a'`, `'b'` | which one |" in text

"""Named datasets: found by path, cut and split as their cards say, and no row on both sides of a split."""

import inspect
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acclimate import datasets
from acclimate.datasets import _texts, lm, python_docs
from acclimate.errors import AcclimateError
from worlds import needs_data

OFFLINE = ["legal_notices", "python_reference", "python_docs/peft"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))


def crossing(domain):
    """Texts that stand in more than one split."""
    sides = {split: set(domain.texts(split)) for split in domain.splits}
    return {text for split, texts in sides.items() for other, others in sides.items() if split < other for text in texts & others}


# ---- the registry


def test_names_come_from_files_and_import_nothing():
    code = "import sys; from acclimate import datasets; print(*datasets.names()); print('datasets' in sys.modules, 'torch' in sys.modules)"
    found, heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    files = {path.stem for path in Path(datasets.__file__).parent.glob("*.py") if not path.name.startswith("_")}
    assert set(found.split()) == files >= {"lm", "scibert", "python_docs", "legal_notices", "python_reference", "gsm8k", "pubmedqa"}
    assert heavy == "False False"


@pytest.mark.parametrize("name", datasets.names())
def test_card_says_what_where_and_under_which_licence(name):
    card = datasets.card(name)
    assert {"source", "licence", "size", "columns", "hub", "domains", "about"} <= set(card)
    first = datasets.names()[name]
    assert ": " in first
    assert first.endswith(".")
    assert card["about"].startswith(first)
    assert re.search(r"\bTraps?\b", card["about"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lmm/legal", "nearest: lm"),
        ("lm", "lm/legal"),
        ("lm/leagl", "nearest: legal"),
        ("scibert/chemport", "nearest: chemprot"),
        ("gsm8k/main", "write 'gsm8k'"),
        ("python_docs/no_such_package", "no installed package 'no_such_package'"),
        ("python_docs/../x", "no installed package"),
        ("_texts", "no dataset '_texts'"),
    ],
)
def test_wrong_names_are_one_line_that_helps(name, words):
    with pytest.raises(AcclimateError) as caught:
        datasets.load(name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_locate_looks_in_the_folder_then_in_text_then_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.delenv("ACCLIMATE_DATA", raising=False)
    assert datasets.data_dir() is None
    with pytest.raises(AcclimateError, match="cannot find a/b: ACCLIMATE_DATA is not set; set ACCLIMATE_DATA"):
        datasets.locate("a/b")
    (tmp_path / "text" / "a").mkdir(parents=True)
    (tmp_path / "text" / "a" / "b").write_text("inner")
    monkeypatch.setenv("ACCLIMATE_DATA", str(tmp_path))
    assert datasets.locate("a/b").read_text() == "inner"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("outer")
    assert datasets.locate("a/b").read_text() == "outer"
    with pytest.raises(AcclimateError, match="cannot find a/c: not under ACCLIMATE_DATA"):
        datasets.locate("a/c")
    monkeypatch.setenv("ACCLIMATE_DATA", str(tmp_path / "gone"))
    with pytest.raises(AcclimateError, match="is not a folder"):
        datasets.data_dir()


def test_the_hub_is_asked_last_and_its_failure_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def refuse(*given, **options):
        asked.append((given, options))
        raise OSError("no network\nand more")

    monkeypatch.delenv("ACCLIMATE_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(AcclimateError, match=r"openai/gsm8k could not be fetched \(no network\); set ACCLIMATE_DATA") as caught:
        datasets.load("gsm8k")
    assert "\n" not in str(caught.value)
    assert asked[0] == (("openai/gsm8k", "main/train-00000-of-00001.parquet"), {"repo_type": "dataset"})


# ---- cutting and splitting


def test_passages_keep_every_word_and_the_line_they_start_at():
    lines = [f"Line {number} of the text, " + "word " * (number % 40) + "end." for number in range(400)]
    text = "\n".join(line + "\n" * (number % 5 == 0) for number, line in enumerate(lines))
    found = _texts.passages(text, low=500, high=1000)
    assert " ".join(" ".join(part for _, part in found).split()) == " ".join(text.split())
    assert max(len(part) for _, part in found) <= 1000
    assert len(text) / len(found) > 500
    for line, part in found:
        assert text.split("\n")[line - 1] == part.split("\n")[0]


def test_a_text_without_any_cut_is_still_cut():
    assert [len(part) for _, part in _texts.passages("x" * 9000)] == [4000, 4000, 1000]


def test_by_order_takes_the_tail_by_bytes():
    assert _texts.by_order([1] * 50 + [5] * 10, 0.1, 0.2) == ["train"] * 54 + ["validation"] * 2 + ["test"] * 4


def test_unwrapping_joins_lines_of_wrapped_books_only():
    wrapped = "The boat touched the shore and\nlet loose a swarm of folk.\n\nHe smoked."
    assert lm._unwrap(wrapped, widest=30) == "The boat touched the shore and let loose a swarm of folk.\n\nHe smoked."
    assert lm._unwrap(wrapped, widest=500) == wrapped
    assert lm._unwrap('was\n"No."\nHe went on and on to the end', widest=40) == 'was "No."\nHe went on and on to the end'


# ---- always there


@pytest.mark.parametrize("name", OFFLINE)
def test_offline_sets_load_twice_alike_with_whole_splits(name):
    first, again = datasets.load(name), datasets.load(name)
    assert first.fingerprint == again.fingerprint
    assert set(first.splits) == {"train", "validation", "test"}
    assert not crossing(first)
    rows = {split: len(first.splits[split]) for split in first.splits}
    assert rows["train"] > 5 * rows["test"] > 20
    assert first.source
    assert first.licence
    row = first.splits["test"][0]
    assert set(row) == {"id", "origin", "text"}
    assert all(text.strip() == text and text for split in first.splits for text in first.texts(split))


def test_python_docs_reads_this_very_package_with_its_lines():
    domain = datasets.load("python_docs/acclimate")
    rows = {row["origin"]: row["text"] for split in domain.splits.values() for row in split}
    origin = next(each for each in rows if each.startswith("acclimate/datasets/python_docs.py:") and each.endswith(" topic"))
    assert rows[origin] == inspect.getdoc(python_docs.topic)
    path, _, line = origin.removesuffix(" topic").rpartition(":")
    source = Path(datasets.__file__).parents[2].joinpath(path).read_text().splitlines()
    assert rows[origin].split("\n")[0] in source[int(line) - 1]


def many(word, count=40):
    """A module of ``count`` functions whose docstrings share no run of words."""
    return "".join(f'def f{i}():\n    """{" ".join(f"{word}{i}x{j}" for j in range(20))}"""\n' for i in range(count))


def test_python_docs_are_exactly_the_long_docstrings(tmp_path, monkeypatch):
    folder = tmp_path / "tinydocs"
    (folder / "tests").mkdir(parents=True)
    long = "x" * 40 + "\n\n    " + "y" * 40
    (folder / "__init__.py").write_text(
        f'"""{long}"""\n\nclass A:\n    """{"a" * 90}"""\n\n    def f(self):\n        """{"f" * 90}"""\n'
        f'        def inner():\n            """{"i" * 90}"""\n\n    def g(self):\n        """short"""\n'
    )
    (folder / "filler.py").write_text(many("word"))
    (folder / "other.py").write_text(f'"""{"a" * 90}"""\nif 1:\n    def h():\n        """{"h" * 90}\\ud800"""\n')
    (folder / "template.py").write_text('"""{{ not python }}"""\n{% if %}')
    (folder / "tests" / "test_x.py").write_text(f'"""{"t" * 90}"""')
    monkeypatch.syspath_prepend(str(tmp_path))
    domain = datasets.load("python_docs/tinydocs")
    rows = {row["origin"]: row["text"] for split in domain.splits.values() for row in split}
    assert {origin: text for origin, text in rows.items() if "filler" not in origin} == {
        "tinydocs/__init__.py:1 module": "x" * 40 + "\n\n" + "y" * 40,
        "tinydocs/__init__.py:6 A": "a" * 90,
        "tinydocs/__init__.py:9 A.f": "f" * 90,
        "tinydocs/other.py:4 h": "h" * 90 + "?",
    }
    assert len(rows) == 44
    assert domain.dropped["exact"] == 1
    assert "tinydocs" not in sys.modules
    assert domain.parent == "other"


def test_python_docs_are_harvested_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    folder = tmp_path / "changing"
    folder.mkdir()
    (folder / "__init__.py").write_text(many("one"))
    monkeypatch.syspath_prepend(str(tmp_path))
    calls = []
    harvest = python_docs._harvest
    monkeypatch.setattr(python_docs, "_harvest", lambda *given: calls.append(1) or harvest(*given))
    first = datasets.load("python_docs/changing").fingerprint
    assert datasets.load("python_docs/changing").fingerprint == first
    assert len(calls) == 1
    (folder / "more.py").write_text(many("two", 2))
    assert datasets.load("python_docs/changing").fingerprint != first
    assert len(calls) == 2


def test_a_package_with_next_to_no_docstrings_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "quiet.py").write_text(many("word", 3))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AcclimateError, match="'python_docs/quiet' is too small to split: 3 distinct"):
        datasets.load("python_docs/quiet")


def test_the_second_load_is_fast():
    datasets.load("python_docs/numpy")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        datasets.load("python_docs/numpy")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_taxonomy():
    known = datasets.domains("python_docs")
    assert {"numpy", "scipy", "torch", "transformers", "stdlib", "matplotlib"} <= set(known)
    assert len(known) == len(set(known))
    domain = datasets.load("python_docs/typer")
    assert (domain.parent, domain.licence, domain.form) == ("web", "MIT", "text")
    assert domain.source.startswith("docstrings of typer ")


def test_legal_notices_hold_no_licence_twice_and_no_address():
    domain = datasets.load("legal_notices")
    texts = [text for split in domain.splits for text in domain.texts(split)]
    whole = " ".join(texts).lower()
    assert sum(map(len, texts)) > 50_000
    assert "without warranty" in whole
    assert not re.search(r"\w@\w+\.", whole)
    paragraphs = [" ".join(part.split()) for text in texts for part in text.lower().split("\n\n") if len(part) > 300]
    assert len(paragraphs) == len(set(paragraphs)) > 50


# ---- with the data at hand


@needs_data
@pytest.mark.parametrize("name", lm.CORPORA)
def test_lm_corpora_are_divided_by_order_and_share_no_text(name):
    domain = datasets.load(f"lm/{name}")
    assert not crossing(domain)
    texts = [text for split in domain.splits for text in domain.texts(split)]
    assert len(texts) == len(set(texts))
    assert domain.form == "text"
    assert domain.licence == lm.CORPORA[name].licence
    sizes = {split: sum(len(text.encode()) for text in domain.texts(split)) for split in domain.splits}
    total = sum(sizes.values())
    validation, test = (0.03, 0.03) if name in lm.CARD["seedling"] else (0.05, 0.10)
    assert sizes["test"] / total == pytest.approx(test, rel=0.25)
    assert sizes["validation"] / total == pytest.approx(validation, rel=0.25)
    assert max(len(text) for split in domain.splits for text in domain.texts(split)) <= 4000
    last = {}  # by order: in every file train comes before validation, and that before test
    for split in ("train", "validation", "test"):
        for origin in domain.splits[split]["origin"]:
            path, _, line = origin.rpartition(":")
            assert last.get(path, (split, 0))[0] == split or last[path][1] <= int(line)
            last[path] = (split, int(line))


@needs_data
def test_finance_runs_in_time_and_its_repeated_file_is_dropped():
    domain = datasets.load("lm/finance")
    days = {split: [origin.rpartition("/")[2][:8] for origin in domain.splits[split]["origin"]] for split in domain.splits}
    assert domain.fingerprint == datasets.load("lm/finance").fingerprint
    assert max(days["train"]) < min(days["validation"]) <= max(days["validation"]) < min(days["test"])
    assert domain.dropped["exact"] > 0


@needs_data
def test_lm_rows_say_where_they_stand():
    row = datasets.load("lm/legal").splits["test"][3]
    path, _, line = row["origin"].rpartition(":")
    lines = datasets.locate(path).read_text().split("\n")
    assert row["text"].startswith(lines[int(line) - 1])


@needs_data
def test_every_novel_gives_its_own_tail():
    domain = datasets.load("lm/fiction")
    for split in domain.splits:
        assert len({origin.rpartition(":")[0] for origin in domain.splits[split]["origin"]}) == 8


def test_only_open_corpora_may_train_the_seedling():
    card = datasets.card("lm")
    assert card["seedling"] == ("dialogue", "fiction", "religion", "wikipedia")
    assert all(any(word in card["licence"][name] for word in ("public domain", "CC BY")) for name in card["seedling"])
    assert not any("NC" in card["licence"][name] for name in card["seedling"])


def made(folder):
    """Data of our own in the shape of the published files."""
    texts = folder / "text" / "scibert" / "text_classification"
    rows = {"train": ["a", "b", "shared"], "dev": ["c", "shared"], "test": ["d", "e"]}
    for name in ("chemprot", "sci-cite", "mag"):
        (texts / name).mkdir(parents=True)
        for split, words in rows.items():
            if name == "mag" and split == "train":
                continue
            words = [f"title {i}" for i in range(50)] if name == "mag" and split == "dev" else words
            lines = [{"text": word, "label": "yes" if i % 2 else "no", "metadata": []} for i, word in enumerate(words)]
            lines += [{"text": "normalized name", "label": "category"}] * (name == "mag" and split == "dev")
            (texts / name / f"{split}.txt").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "gsm8k").mkdir()
    for split, count in (("train", 100), ("test", 3)):
        lines = [json.dumps({"question": f"{split} {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}) for i in range(count)]
        (folder / "gsm8k" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "qa" / "pubmedqa").mkdir(parents=True)
    items = {
        str(i): {"QUESTION": f"Is {i}?", "CONTEXTS": ["One.", "Two."], "final_decision": "yes", "LONG_ANSWER": "It is so."}
        for i in range(60)
    }
    (folder / "qa" / "pubmedqa" / "ori_pqal.json").write_text(json.dumps(items))
    (folder / "qa" / "pubmedqa" / "test_ground_truth.json").write_text(json.dumps({str(i): "yes" for i in range(10)}))


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    made(tmp_path)
    monkeypatch.setenv("ACCLIMATE_DATA", str(tmp_path))


def test_scibert_keeps_the_splits_and_leaves_out_what_is_tested(own_data):
    domain = datasets.load("scibert/sci_cite")
    assert {split: domain.texts(split) for split in domain.splits} == {
        "train": ["a", "b"],
        "validation": ["c", "shared"],
        "test": ["d", "e"],
    }
    task = domain.tasks["sci_cite"]
    assert (task.kind, task.metric) == ("classification", "macro_f1")
    assert [row["answer"] for row in task.rows] == [" no", " yes"]
    assert task.rows[0]["options"] == [" no", " yes"]
    assert task.rows[0]["prompt"].startswith("d\n")
    mag = datasets.load("scibert/mag")
    sizes = {split: len(rows) for split, rows in mag.splits.items()}
    assert sizes["train"] + sizes["validation"] == 50
    assert 2 <= sizes["validation"] <= 20
    assert not crossing(mag)


def test_gsm8k_is_conversations_and_the_hub_file_reads_alike(own_data, tmp_path, monkeypatch):
    import huggingface_hub
    import pyarrow as pa
    import pyarrow.parquet as pq

    domain = datasets.load("gsm8k")
    assert {split: len(rows) for split, rows in domain.splits.items()}["test"] == 3
    assert len(domain.splits["train"]) + len(domain.splits["validation"]) == 100
    assert 1 <= len(domain.splits["validation"]) <= 15
    question, answer = domain.splits["test"][1]["messages"]
    assert (question["role"], question["content"]) == ("user", "test 1 + 1?")
    assert (answer["role"], answer["content"]) == ("assistant", "It is 2.\n#### 2")

    def hub(repository, path, repo_type):
        assert (repository, repo_type) == ("openai/gsm8k", "dataset")
        lines = (tmp_path / "gsm8k" / f"{Path(path).name.partition('-')[0]}.jsonl").read_text().splitlines()
        out = tmp_path / Path(path).name
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), out)
        return str(out)

    monkeypatch.delenv("ACCLIMATE_DATA")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    assert datasets.load("gsm8k").fingerprint == domain.fingerprint


def test_pubmedqa_tests_on_the_published_half(own_data):
    domain = datasets.load("pubmedqa")
    assert len(domain.splits["test"]) == 10 == len(domain.tasks["pubmedqa"].rows)
    assert len(domain.splits["train"]) > len(domain.splits["validation"]) > 0
    assert domain.splits["test"][0]["text"] == "One.\nTwo.\nQuestion: Is 0?"
    row = domain.tasks["pubmedqa"].rows[0]
    assert row["answer"] in row["options"]
    assert "It is so" not in row["prompt"], "the conclusion gives the answer away"


@needs_data
@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [
        ("scibert/chemprot", (4165, 2427, 3469), 13),
        ("scibert/sci_cite", (7318, 916, 1861), 3),
        ("scibert/mag", (4513, 1084, 5000), 7),
        ("pubmedqa", (409, 91, 500), 3),
        ("gsm8k", (7069, 404, 1319), None),
    ],
)
def test_published_sets_have_their_published_sizes(name, sizes, classes):
    domain = datasets.load(name)
    assert tuple(len(domain.splits[split]) for split in ("train", "validation", "test")) == sizes
    assert not crossing(domain)
    if classes:
        assert len({label for rows in domain.splits.values() for label in rows["label"]}) == classes
        (task,) = domain.tasks.values()
        assert [row["answer"].strip() for row in task.rows] == list(domain.splits["test"]["label"])
        assert all(row["answer"] in row["options"] for row in task.rows)

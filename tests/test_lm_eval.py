import json
import subprocess
import sys

import numpy as np
import pytest

from acclimate.errors import AcclimateError, MissingExtraError

WORDS = ["river", "stone", "cloud", "apple", "winter", "garden", "copper", "window"]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_bytes, aggregation: mean, higher_is_better: true}}
metadata: {{version: 3.0}}
"""


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(0)
    found = []
    for _ in range(60):
        words = [str(word) for word in draw.permutation(WORDS)]
        # options of unlike length, so that dividing by bytes decides some of them
        options = [f" {words[0]}", f" {words[1]} and {words[2]}", f" {words[3]} or {words[4]} or {words[5]}"]
        gold = int(draw.integers(3))
        found.append({"prompt": f"The {words[6]} by the {words[7]} was a", "options": options, "gold": gold, "answer": options[gold]})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rows):
    """A tiny saved causal model whose tokenizer puts a begin token first, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    from acclimate.model import Model
    from acclimate.models import seedling

    tokenizer = seedling.build_tokenizer([row["prompt"] + " ".join(row["options"]) for row in rows], 400)
    begin = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)])
    net = seedling.blank("seedling-xs", tokenizer)
    place = tmp_path_factory.mktemp("model") / "tiny"
    return Model("tiny", net, tokenizer, "causal").save(place)


def tasks_in(place, rows, name="local_words"):
    data = place / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
    return name


def test_a_missing_package_is_one_clear_line(monkeypatch):
    from acclimate.engines.lm_eval import lm_eval

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'acclimate\[lmeval\]'"):
        lm_eval("nowhere", ["arc_easy"])


def test_the_engine_loads_nothing_by_itself():
    code = "import sys, acclimate.engines.lm_eval; print(any(name in sys.modules for name in ('lm_eval', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_accuracies_equal_ours_on_the_same_rows(tmp_path, rows, folder, monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra lmeval is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from acclimate.domain import Task
    from acclimate.engines import score
    from acclimate.engines.lm_eval import lm_eval
    from acclimate.model import Model

    name = tasks_in(tmp_path, rows)
    found = lm_eval(str(folder), [name], include_path=tmp_path)
    assert set(found) == {name}
    got = found[name]
    assert (got["version"], got["n"], got["shots"]) == (3.0, 60, 0)
    json.dumps(found)
    model = Model.load(str(folder))
    kept = [{key: row[key] for key in ("prompt", "options", "answer")} for row in rows]
    by_bytes = score.solve(model, Task(name=name, kind="multiple_choice", rows=kept, metric="accuracy"))
    by_sum = score.solve(model, Task(name=name, kind="classification", rows=kept, metric="accuracy"))
    assert by_bytes.given != by_sum.given  # else the two readings of the task could not be told apart here
    assert got["acc_bytes,none"] == pytest.approx(by_bytes.right.mean(), abs=1e-9)
    assert got["acc,none"] == pytest.approx(by_sum.right.mean(), abs=1e-9)
    spread = by_sum.right.std(ddof=1) / len(rows) ** 0.5
    assert got["acc_stderr,none"] == pytest.approx(spread, rel=1e-6)
    few = lm_eval(str(folder), [name], limit=7, include_path=tmp_path)[name]
    assert few["n"] == 7
    assert few["acc,none"] == pytest.approx(by_sum.right[:7].mean(), abs=1e-9)


def test_an_unknown_task_names_the_nearest(tmp_path, rows, folder):
    pytest.importorskip("lm_eval", reason="the extra lmeval is not installed")
    from acclimate.engines.lm_eval import lm_eval

    tasks_in(tmp_path, rows)
    with pytest.raises(AcclimateError, match="no task 'local_wrods'; nearest: local_words"):
        lm_eval(str(folder), ["local_wrods"], include_path=tmp_path)

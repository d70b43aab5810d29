"""The command line: results on stdout, the rest on stderr, one line for what is wrong, and the promised exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acclimate import cli
from acclimate.model import embedded
from worlds import sentences

COMMANDS = ["quickstart", "adapt", "evaluate", "compare", "run", "plan", "validate", "methods", "show", "papers", "reproduce"]
COMMANDS += ["check", "doctor", "merge", "extract", "combine"]


@pytest.fixture
def acclimate(monkeypatch, capsys):
    """``acclimate(words...)`` runs the command in this process: (exit code, stdout, stderr), without the lines on progress."""
    monkeypatch.setenv("ACCLIMATE_QUIET", "1")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["acclimate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture(scope="module")
def texts(places):
    """Two files of text."""
    for name in ("pipes", "kitchen"):
        (places / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(name, 60)))
    return places / "pipes.jsonl", places / "kitchen.jsonl"


TRAIN = [f"--set={pair}" for pair in ("batch_tokens=256", "row_tokens=64", "lr=1e-2", "precision=fp32")]


@pytest.fixture(scope="module")
def adapted(tiny_folder, texts, places, child):
    """A run directory made by the command line, and what it printed."""
    words = ["acclimate", "adapt", str(tiny_folder), str(texts[0]), "--name=pipes", f"--outside=kitchen={texts[1]}", "--steps=3", *TRAIN]
    code = "sys.argv = words\nfrom acclimate.cli import main\nmain()"
    status, said = child(code, words=[*words, "--replay=0.2", "--out", str(places / "adapted")])
    assert status == 0, said
    return places / "adapted", said


def test_every_command_is_there_and_helps(acclimate):
    assert {command.name or command.callback.__name__ for command in cli.app.registered_commands} >= set(COMMANDS)
    code, out, err = acclimate("--help")
    assert (code, err) == (0, "")
    assert all(f" {name} " in out for name in COMMANDS)
    for name in COMMANDS:
        code, out, err = acclimate(name, "--help")
        assert code == 0, name
        assert "Usage:" in out
        assert "--json" in out
        assert err == ""
    code, out, err = acclimate()
    assert "Usage:" in out + err


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys, acclimate; acclimate.names(); acclimate.AcclimateError; acclimate.load\n"
        "from acclimate.cli import main\n"
        "for words in (['--help'], ['adapt', '--help'], ['methods', '--json'], ['papers', '--json']):\n"
        "    sys.argv = ['acclimate', *words]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'sklearn', 'scipy', 'pandas', 'peft'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_adapt_says_what_it_found(adapted):
    folder, said = adapted
    assert f"report: {folder / 'report.html'}" in said
    assert "adapted" in said
    assert "pipes" in said
    assert "Traceback" not in said
    assert (folder / "report.html").exists()
    assert "replay" not in (folder / "recipe.yaml").read_text()
    assert "kitchen: 0.2" in (folder / "recipe.yaml").read_text()


def test_json_is_all_that_stdout_holds(acclimate, adapted, tiny_folder, texts, monkeypatch):
    monkeypatch.delenv("ACCLIMATE_QUIET")
    folder, _ = adapted
    code, out, err = acclimate("run", folder / "recipe.yaml", "--out", folder, "--json")
    assert code == 0
    assert json.loads(out)["folder"] == str(folder)
    assert "adapted: already made" in err
    code, out, _ = acclimate("evaluate", tiny_folder, folder / "steps/adapted/model", "--on", f"pipes={texts[0]}", "--json", "--bytes=2000")
    rows = json.loads(out)["results"]
    assert (code, len(rows)) == (0, 2)
    assert rows[1]["change"] == pytest.approx(rows[1]["value"] - rows[0]["value"])
    code, out, _ = acclimate("compare", folder, folder, "--json")
    assert code == 0
    assert json.loads(out)["results"]
    for words in (["methods"], ["methods", "--room=adapters"], ["show", "objectives.dpo"], ["show", "training"], ["papers"]):
        code, out, err = acclimate(*words, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)
    code, out, _ = acclimate("validate", texts[0], "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 60


def test_tables_for_people(acclimate, adapted, tiny_folder, texts):
    folder, _ = adapted
    for words in (
        ["run", folder / "recipe.yaml", "--out", folder],
        ["evaluate", tiny_folder, "--on", f"pipes={texts[0]}", "--bytes=2000"],
        ["compare", folder],
        ["methods"],
        ["show", "adapters.lora"],
        ["show", "training"],
        ["papers", "--room=objectives"],
        ["validate", texts[0]],
    ):
        code, out, _ = acclimate(*words)
        assert code == 0, words
        assert len(out.splitlines()) > 3
    assert "r = 8 in [1, ...]: rank of the change" in acclimate("show", "adapters.lora")[1]
    assert "objectives.dpo" in acclimate("methods")[1]


def test_checks_and_verdicts_that_fail_exit_1(acclimate, texts, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(texts[0].read_text() + '{"text": \n')
    code, out, _ = acclimate("validate", bad)
    assert code == 1
    assert f"{bad}:61" in out
    assert acclimate("check", "objectives.sft")[0] == 0
    method = tmp_path / "mine.py"
    method.write_text(
        '"""Nothing."""\nfrom acclimate.kinds import Objective\n\n\nclass Mine(Objective):\n    def loss(self, logits):\n        return 0\n'
    )
    code, out, _ = acclimate("check", method)
    assert code == 1
    assert "FAILED" in out
    code, out, _ = acclimate("doctor", "--json")
    rows = json.loads(out)
    assert code == (0 if all(row["ok"] for row in rows) else 1)
    assert {"what", "ok", "found", "mend"} <= set(rows[0])
    assert {row["what"]: row["ok"] for row in rows}["packages"]
    if "seedling" in embedded() and "seedling-xs" in embedded():
        assert code == 0, rows


def test_a_dry_run_predicts_and_makes_nothing(acclimate, tiny_folder, texts, tmp_path):
    words = ["adapt", tiny_folder, texts[0], f"--outside=kitchen={texts[1]}", "--steps=50", *TRAIN, "--out", tmp_path / "run", "--dry-run"]
    code, out, err = acclimate(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [step["name"] for step in found["steps"]] == ["adapted"]
    assert found["seconds"] > 0
    assert found["memory_bytes"] > 10_000_000
    assert found["tokens"] == 50 * 256
    assert not (tmp_path / "run").exists()


BAD = {
    "a missing file": (["adapt", "{tiny}", "nowhere.txt"], "no file or folder 'nowhere.txt' exists"),
    "an empty folder": (["adapt", "{tiny}", "{empty}"], "{empty}"),
    "an empty file": (["adapt", "{tiny}", "{void}"], "{void}"),
    "a missing model": (["adapt", "nowhere", "{texts}"], "no model 'nowhere'"),
    "a file for a model": (["adapt", "{texts}", "{texts}"], "{texts} is a file, but a model is a folder"),
    "an unknown method": (["adapt", "{tiny}", "{texts}", "--objective=objectives.dpoo"], "nearest: objectives.dpo"),
    "an unknown adapter": (["adapt", "{tiny}", "{texts}", "--adapter=adapters.lorra"], "nearest: adapters.lora"),
    "an unknown setting": (["adapt", "{tiny}", "{texts}", "--set=stesp=4"], "Training has no setting 'stesp'; nearest: steps"),
    "a setting without a value": (["adapt", "{tiny}", "{texts}", "--set=steps"], "--set 'steps' must be written name=value"),
    "a setting out of range": (["adapt", "{tiny}", "{texts}", "--set=lr=-1"], "Training.lr = -1"),
    "too much replay": (["adapt", "{tiny}", "{texts}", "--replay=1"], "replay = 1.0, but must lie in [0, 1)"),
    "an objective for other data": (["adapt", "{tiny}", "{texts}", "--objective=objectives.dpo", "--steps=1"], "holds text"),
    "rows beyond the context": (["adapt", "{tiny}", "{texts}", "--set=row_tokens=9999"], "reads at most 256 tokens"),
    "an out that is a file": (["adapt", "{tiny}", "{texts}", "--out={texts}"], "there is a file of that name"),
    "a missing recipe": (["run", "nowhere.yaml"], "no recipe nowhere.yaml: no such file"),
    "a recipe that is no text": (["run", "{noise}"], "is not valid YAML"),
    "a recipe to plan": (["plan", "nowhere"], "no recipe nowhere"),
    "a domain without a name": (["evaluate", "{tiny}", "--on", "{texts}"], "must be written name=value"),
    "a domain that is missing": (["evaluate", "{tiny}", "--on=a=nowhere.txt"], "no file or folder 'nowhere.txt'"),
    "a run that is missing": (["compare", "nowhere"], "nowhere holds no report.json"),
    "nothing to validate": (["validate", "nowhere.txt"], "nowhere.txt"),
    "an unknown room": (["methods", "--room=objectvies"], "no room 'objectvies'; nearest: objectives"),
    "an unknown method to show": (["show", "objectives.sftt"], "nearest: objectives.sft"),
    "a missing method file": (["check", "nowhere.py"], "nowhere.py does not exist"),
    "an unknown paper": (["reproduce", "nobody2020"], "nobody2020"),
    "seeds in words": (["reproduce", "nobody2020", "--seeds=one"], "--seeds one must be whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, acclimate, tiny_folder, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "void.txt").write_text("")
    (tmp_path / "noise.yaml").write_bytes(bytes(range(256)))
    given = {"tiny": tiny_folder, "texts": texts[0], "empty": tmp_path / "empty", "void": tmp_path / "void.txt", "noise": "noise.yaml"}
    words, line = BAD[name]
    code, out, err = acclimate(*(word.format(**given) for word in words))
    assert code == 2, err
    assert out == ""
    assert err.startswith("acclimate: ")
    assert line.format(**given) in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_words_the_command_line_does_not_know_exit_2(acclimate):
    for words in (["adapt", "--nowhere"], ["adapt"], ["adpat"], ["adapt", "a", "b", "--replay=much"]):
        code, out, err = acclimate(*words)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert err.strip()


def test_the_program_leaves_at_once_and_loses_nothing(tmp_path):
    def said(*words):
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, out, err = said("-m", "acclimate", "methods", "--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)) > 100  # more than a pipe holds, and whole
    code, out, err = said("-m", "acclimate", "merge", "nowhere", "--method", "linear", "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert "nowhere" in err
    begin = "import sys, atexit, threading, time\nfrom acclimate import cli\natexit.register(print, 'at exit')\n"
    last = "threading.Thread(target=lambda: (time.sleep(0.2), print('from a thread'))).start()\n"
    for more, expected in (("", "at exit\n"), (last, "from a thread\nat exit\n")):
        assert said("-c", f"{begin}{more}sys.argv = ['acclimate', 'show', 'nothing']\ncli.program()")[:2] == (2, expected)


def test_an_error_of_our_own_is_not_hidden(monkeypatch):
    from acclimate import report

    monkeypatch.setattr(report, "compare", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["acclimate", "compare", "x"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_ctrl_c_is_one_line_and_the_run_goes_on(acclimate, child, tiny_folder, texts, tmp_path):
    words = ["adapt", str(tiny_folder), str(texts[0]), f"--outside=kitchen={texts[1]}", "--steps=60", *TRAIN, "--set=checkpoint_every=2"]
    words += ["--set=watch_every=60", "--out", str(tmp_path / "run")]
    code = "signal.signal(signal.SIGINT, signal.default_int_handler)\nsys.argv = words\nfrom acclimate.cli import main\nmain()"
    process = child(code, wait=False, words=["acclimate", *words])
    log = tmp_path / "run/steps/adapted/work/metrics.jsonl"
    end = time.monotonic() + 100
    while (not log.exists() or log.read_text().count("\n") < 6) and time.monotonic() < end and process.is_alive():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    said = Path(process.log).read_text()
    assert process.exitcode == 130, said
    assert [line for line in said.splitlines() if "interrupted" in line] == [
        "acclimate: interrupted; what was made is kept, run the same command with the same --out to go on"
    ]
    assert "Traceback" not in said
    done = log.read_text().count("\n")
    assert 6 <= done < 60
    assert list(log.parent.glob("checkpoints/*/complete"))
    code, out, err = acclimate(*words, "--json")
    assert code == 0, err
    assert [row["step"] for row in json.loads(out)["curves"]["adapted"]] == list(range(61))

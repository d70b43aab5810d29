"""The runner of experiments: seeds, resume, verdicts, evidence."""

import json
import os
import signal
import subprocess
import sys

import pytest

from acclimate import catalogue, experiments
from acclimate.errors import AcclimateError

TOY = '''
"""A toy: its figure is the seed plus one."""

import os
import signal
from pathlib import Path

from acclimate.errors import AcclimateError

CRITERION = "ours is lower than base,\\n    on average"
METRIC = "a number, lower is better"
LOG = Path(__file__).parent / "log"


def run(seed, tiny, work):
    assert work.is_dir()
    with LOG.open("a") as log:
        log.write(f"{seed} ")
    FAULT
    return {"arms": {"base": seed + 1, "ours": seed + 0.5}, "details": {"tiny": tiny, "seed": seed}}


def verdict(figures):
    ours, base = (sum(figures[arm]) / len(figures[arm]) for arm in ("ours", "base"))
    return "holds" if ours < base else "does_not_hold"


def why(figures):
    return f"{len(figures['ours'])} seeds"
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "src" / "acclimate"
    (folder / "experiments" / "merging").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(catalogue, "PACKAGE", folder)
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    return folder


def write(package, text=TOY, fault="pass"):
    (package / "experiments" / "merging" / "della.py").write_text(text.replace("FAULT", fault))


def log(package):
    return (package / "experiments" / "merging" / "log").read_text().split()


def test_a_full_run_reports_means_intervals_and_verdict(package, tmp_path, capsys):
    write(package)
    found = experiments.reproduce(96, out=tmp_path / "out")
    assert found["id"] == "della"
    assert found["claim"] == catalogue.paper("della")["claim"]
    assert found["criterion"] == "ours is lower than base, on average"
    assert found["verdict"] == "holds"
    assert found["why"] == "3 seeds"
    assert found["note"] == ""
    base, ours = found["rows"]
    assert (base["name"], base["mean"], base["seeds"]) == ("base", 2.0, [1.0, 2.0, 3.0])
    assert base["ci95"] == pytest.approx(2.4841, abs=1e-4)  # 4.3027 / sqrt(3), from a table of Student's t
    assert ours["mean"] == 1.5
    assert found["details"]["2"] == {"tiny": False, "seed": 2}
    kept = found["provenance"]
    assert kept["command"] == "acclimate reproduce della --seeds 0,1,2"
    assert kept["figures"]["0"] == {"base": 1.0, "ours": 0.5}
    assert len(kept["seconds"]) == 3
    assert {"python", "torch", "transformers", "acclimate", "machine", "device", "started", "git"} <= set(kept)
    assert kept["machine"]["cores"] == os.cpu_count()
    file = tmp_path / "out" / "della.json"
    assert found["file"] == str(file)
    assert json.loads(file.read_text()) == {k: v for k, v in found.items() if k != "file"}
    assert [path.name for path in file.parent.glob("[!.]*")] == ["della.json"]  # nothing partial is left
    assert not (package / "evidence").exists()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert said[1].startswith("della: seed 1 (2 of 3) took ")
    assert said[1].endswith("base 2, ours 1.5")


def test_a_failing_seed_leaves_finished_ones_and_the_run_goes_on_there(package):
    flag = package / "mended"
    fault = f"if seed == 1 and not Path({str(flag)!r}).exists(): raise AcclimateError('no such data')"
    write(package, fault=fault)
    with pytest.raises(AcclimateError, match=r"^no such data$"):
        experiments.reproduce("della")
    assert log(package) == ["0", "1"]
    flag.touch()
    found = experiments.reproduce("della")
    assert log(package) == ["0", "1", "1", "2"]
    assert [row["seeds"] for row in found["rows"]] == [[1.0, 2.0, 3.0], [0.5, 1.5, 2.5]]
    experiments.reproduce("della", seeds=[0])  # a finished run starts afresh
    assert log(package)[-1] == "0"


def test_a_killed_run_resumes_and_gives_what_an_unbroken_one_gives(package):
    flag = package / "killed"
    write(package, fault=f"if seed == 2 and not Path({str(flag)!r}).exists(): os.kill(os.getpid(), signal.SIGKILL)")
    code = (
        "from pathlib import Path; from acclimate import catalogue, experiments\n"
        f"catalogue.PACKAGE = Path({str(package)!r}); experiments.reproduce('della')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    flag.touch()
    found = experiments.reproduce("della")
    assert log(package) == ["0", "1", "2", "2"]
    assert found["rows"][0]["seeds"] == [1.0, 2.0, 3.0]
    assert found["verdict"] == "holds"


def test_seeds_of_another_version_of_the_experiment_are_not_reused(package):
    write(package, fault="if seed == 1: raise AcclimateError('stop')")
    with pytest.raises(AcclimateError):
        experiments.reproduce("della")
    write(package)
    experiments.reproduce("della")
    assert log(package) == ["0", "1", "0", "1", "2"]


def test_tiny_runs_two_seeds_and_says_nothing_about_the_claim(package, tmp_path):
    write(package)
    found = experiments.reproduce("della", tiny=True, out=tmp_path / "out")
    assert found["verdict"] == "not_run"
    assert found["why"] == ""
    assert "only that the code runs" in found["note"]
    assert found["seeds"] == [0, 1]
    assert found["details"]["0"]["tiny"] is True
    assert (tmp_path / "out" / "della-tiny.json").is_file()
    with pytest.raises(AcclimateError, match="never evidence"):
        experiments.reproduce("della", tiny=True, record=True)
    write(package, TOY.replace('"holds" if', '"wins" if'))
    with pytest.raises(AcclimateError, match=r"verdict\(\) gave 'wins'"):
        experiments.reproduce("della", tiny=True)


def test_few_seeds_give_figures_but_no_verdict(package):
    write(package)
    found = experiments.reproduce("della", seeds=[7])
    assert found["verdict"] == "not_run"
    assert found["note"] == "a verdict needs at least 3 seeds, and this run has 1"
    assert found["rows"][0] == {"name": "base", "mean": 8.0, "ci95": None, "seeds": [8.0]}
    with pytest.raises(AcclimateError, match="at least 3 seeds"):
        experiments.reproduce("della", seeds=[0, 1], record=True)
    for seeds in ([], [0, 0], ["0"]):
        with pytest.raises(AcclimateError, match="different whole numbers"):
            experiments.reproduce("della", seeds=seeds)


def test_recording_gives_the_catalogue_its_verdict(package):
    write(package)
    assert catalogue.paper("della")["verdict"] == "not_run"
    found = experiments.reproduce("della", record=True)
    assert catalogue.paper("della")["verdict"] == "holds" == experiments.recheck("della")
    kept = catalogue.evidence("della")
    assert kept == {k: v for k, v in found.items() if k != "file"}
    assert kept["provenance"]["command"].endswith(" --record")
    path = package / "evidence" / "della.json"
    path.write_text(path.read_text().replace('"verdict": "holds"', '"verdict": "does_not_hold"'))
    assert catalogue.paper("della")["verdict"] != experiments.recheck("della")  # a verdict changed by hand shows


def test_evidence_is_recorded_in_a_checkout_only(package, tmp_path):
    write(package)
    (tmp_path / "pyproject.toml").unlink()
    with pytest.raises(AcclimateError, match="in a checkout"):
        experiments.reproduce("della", record=True)
    assert not (package / "experiments" / "merging" / "log").exists()  # refused before the first seed


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed + 0.5", "float('nan')", r"arm 'ours' of seed 0 is nan"),
        ("seed + 0.5", "'low'", r"arm 'ours' of seed 0 is 'low'"),
        ('"ours": seed + 0.5', '"ours" if seed else "theirs": 1', r"seed 1 has arms \['base', 'ours'\]"),
        ('return {"arms"', 'return 3\n    {"arms"', r"must return a dict of arms"),
        ("CRITERION", "CRITERIA", "lacks CRITERION"),
        ("def verdict", "def judge", "lacks the function verdict"),
    ],
)
def test_a_faulty_experiment_is_one_clear_line(package, old, new, said):
    write(package, TOY.replace(old, new))
    with pytest.raises(AcclimateError, match=said):
        experiments.reproduce("della")


def test_figures_alone_are_enough(package):
    text = TOY.replace('{"arms": {"base": seed + 1, "ours": seed + 0.5}, "details": {"tiny": tiny, "seed": seed}}', '{"ours": seed}')
    write(package, text.replace("def why", "def unused").replace('("ours", "base")', '("ours", "ours")'))
    found = experiments.reproduce("della")
    assert found["rows"][0]["seeds"] == [0.0, 1.0, 2.0]
    assert found["details"]["0"] is None
    assert found["verdict"] == "does_not_hold"
    assert found["why"] == ""


def test_a_seed_gives_the_same_figures_alone_and_after_another(package):
    draw = "import random, numpy, torch; return {'a': random.random(), 'b': numpy.random.rand(), 'c': torch.rand(())}"
    text = TOY.split("def verdict")[0] + "def verdict(figures):\n    return 'not_testable'\n"
    write(package, text, draw)
    together = experiments.reproduce("della", seeds=[0, 1])
    alone = experiments.reproduce("della", seeds=[1])
    assert [row["seeds"][1] for row in together["rows"]] == [row["seeds"][0] for row in alone["rows"]]
    assert together["rows"][2]["seeds"][0] != together["rows"][2]["seeds"][1]


def test_unknown_papers_and_missing_experiments(package):
    with pytest.raises(AcclimateError, match="no paper 'dela'; nearest: della"):
        experiments.reproduce("dela")
    write(package)
    with pytest.raises(AcclimateError, match=r"no experiment for dann yet \(experiments/domain_adaptation/dann\.py\); written: della"):
        experiments.reproduce("dann")


def test_every_experiment_of_the_project_has_its_parts():
    for row in catalogue.papers():
        if row["experiment"]:
            experiments.load(row["id"])


def test_every_recorded_verdict_follows_from_its_figures():
    for row in catalogue.papers():
        if row["evidence"]:
            assert experiments.recheck(row["id"]) == row["verdict"], row["id"]

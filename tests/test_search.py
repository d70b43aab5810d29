"""The search engine: it finds minima, resumes to the same trials, and says what is wrong."""

import json
import sys

import numpy as np
import pytest

from acclimate.engines.pareto import crowding, fronts, pareto
from acclimate.engines.search import TrialLog, population_size, search
from acclimate.errors import AcclimateError, MissingExtraError

TARGET = np.array([0.2, -0.4, 0.9, 0.0])
START = np.full(4, 0.5)


def bowl(genome):
    return float((genome - TARGET) ** 2 @ np.array([1.0, 3.0, 9.0, 27.0]))


def trials_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def test_it_finds_the_minimum(tmp_path):
    found = search(bowl, START, sigma=1 / 6, trials=400, seed=1, log=tmp_path / "log.jsonl", names=list("abcd"))
    assert found.score < 1e-4
    assert np.abs(found.best - TARGET).max() < 0.02
    assert found.start_score == bowl(START) == found.curve[0]
    assert (np.diff(found.curve) <= 0).all()
    assert found.curve[-1] == found.score == min(row["score"] for row in trials_in(tmp_path / "log.jsonl"))
    assert found.recipe == dict(zip("abcd", found.best.tolist(), strict=True))
    assert found.trials == len(found.curve) == 400 or found.stopped


@pytest.mark.parametrize("killed_at", [1, 9, 16, 17, 40])
def test_a_killed_search_goes_on_with_the_same_trials(tmp_path, killed_at):
    whole = search(bowl, START, sigma=0.2, trials=60, seed=3, log=tmp_path / "whole.jsonl")
    calls = []

    def dies(genome):
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        calls.append(genome)
        return bowl(genome)

    with pytest.raises(KeyboardInterrupt):
        search(dies, START, sigma=0.2, trials=60, seed=3, log=tmp_path / "log.jsonl")
    with open(tmp_path / "log.jsonl", "a") as handle:
        handle.write('{"genome": [0.1, 0.')  # killed while writing
    again = []
    found = search(lambda g: again.append(g) or bowl(g), START, sigma=0.2, trials=60, seed=3, log=tmp_path / "log.jsonl")
    assert len(again) == 60 - killed_at  # nothing is scored twice
    assert found.curve == whole.curve
    assert np.array_equal(found.best, whole.best)
    strip = [[(row["genome"], row["score"]) for row in trials_in(tmp_path / name)] for name in ("whole.jsonl", "log.jsonl")]
    assert strip[0] == strip[1]


def test_more_trials_go_on_where_fewer_ended(tmp_path):
    whole = search(bowl, START, sigma=0.2, trials=50, seed=3, log=tmp_path / "whole.jsonl")
    search(bowl, START, sigma=0.2, trials=21, seed=3, log=tmp_path / "log.jsonl")
    assert search(bowl, START, sigma=0.2, trials=50, seed=3, log=tmp_path / "log.jsonl").curve == whole.curve


def test_seeds_differ_and_the_global_generator_is_left_alone(tmp_path):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    one, two = (search(bowl, START, sigma=0.2, trials=20, seed=seed, log=tmp_path / f"{seed}.jsonl") for seed in (1, 2))
    assert one.curve != two.curve
    assert np.array_equal(before, np.random.get_state()[1])


def test_held_out_is_reported_and_chooses_nothing(tmp_path):
    asked = []

    def other(genome):
        asked.append(genome)
        return -bowl(genome)  # the worst for the search is the best here

    found = search(bowl, START, sigma=0.2, trials=30, seed=0, log=tmp_path / "log.jsonl", held_out=other)
    assert found.held_out == {"start": -bowl(START), "best": -found.score}
    assert len(asked) == 2
    json.dumps(found.report())


def test_a_score_that_is_no_number_names_its_line(tmp_path):
    def breaks(genome):
        return float("nan") if len(log.read_text().splitlines()) == 8 else bowl(genome)

    log = tmp_path / "log.jsonl"
    with pytest.raises(AcclimateError, match=r"log\.jsonl:9 is not a number"):
        search(breaks, START, sigma=0.2, trials=30, log=log)
    assert np.isnan(json.loads(log.read_text().splitlines()[8])["score"])
    assert search(bowl, START, sigma=0.2, trials=30, log=log).trials == 30  # mended: that genome is scored again


def test_worst_scores_are_allowed(tmp_path):
    found = search(lambda g: np.inf if g[0] > 0.6 else bowl(g), START, sigma=0.3, trials=60, log=tmp_path / "log.jsonl")
    assert np.isfinite(found.score)
    assert found.score < found.start_score


def test_another_search_may_not_use_the_log(tmp_path):
    search(bowl, START, sigma=0.2, trials=5, log=tmp_path / "log.jsonl")
    for other in ({"sigma": 0.3}, {"sigma": 0.2, "seed": 1}, {"sigma": 0.2, "population": 5}):
        with pytest.raises(AcclimateError, match="log of another search"):
            search(bowl, START, trials=5, log=tmp_path / "log.jsonl", **other)
    (tmp_path / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text() + "no json\n")
    with pytest.raises(AcclimateError, match=r"log\.jsonl:7 is no trial"):
        search(bowl, START, sigma=0.2, trials=5, log=tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"start": np.zeros(1)}, "two genes"),
        ({"start": np.array([np.nan, 1.0])}, "finite numbers"),
        ({"sigma": 0}, "sigma above 0"),
        ({"names": ["a"]}, "1 names for 4 genes"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path, given, said):
    with pytest.raises(AcclimateError, match=said):
        search(bowl, **{"start": START, "sigma": 0.2, "trials": 5, "log": tmp_path / "log.jsonl", **given})


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(MissingExtraError, match=r"acclimate\[search\]"):
        search(bowl, START, sigma=0.2, trials=5, log=tmp_path / "log.jsonl")


def test_population_is_the_usual_one():
    assert [population_size(n) for n in (2, 10, 168)] == [6, 10, 19]


# several metrics


def two(genome):
    return [float(((genome - 1) ** 2).sum()), float(((genome + 1) ** 2).sum())]


def test_fronts_by_hand():
    scores = np.array([[1, 5], [2, 2], [5, 1], [2, 5], [3, 3], [6, 6], [2, 2]], float)
    assert fronts(scores).tolist() == [0, 0, 0, 1, 1, 2, 0]
    assert crowding(np.array([[0, 1.0], [0.5, 0.5], [1, 0.0], [0.75, 0.25]])).tolist() == [np.inf, 1.5, np.inf, 1.0]


def test_the_front_lies_between_the_two_minima_and_resumes(tmp_path):
    found = pareto(two, np.array([2.0, -2.0]), metrics=2, sigma=0.5, trials=400, population=20, seed=0, log=tmp_path / "log.jsonl")
    gaps = np.abs(found.genomes[:, 0] - found.genomes[:, 1])  # the true front is the line a = b from -1 to 1
    assert np.median(gaps) < 0.2
    assert np.ptp(found.genomes[:, 0]) > 1.5
    assert (fronts(found.scores) == 0).all()
    assert (np.diff(found.scores[:, 0]) >= 0).all()
    assert two(found.best) == found.scores[found.scores.mean(1).argmin()].tolist()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    (tmp_path / "half.jsonl").write_text("\n".join(lines[:90]) + "\n")
    again = pareto(two, np.array([2.0, -2.0]), metrics=2, sigma=0.5, trials=400, population=20, seed=0, log=tmp_path / "half.jsonl")
    assert np.array_equal(found.genomes, again.genomes)
    with pytest.raises(AcclimateError, match="two metrics"):
        pareto(two, START, metrics=1, sigma=0.5, trials=5, log=tmp_path / "x.jsonl")


def test_a_log_keeps_one_score_per_genome(tmp_path):
    log, calls = TrialLog(tmp_path / "log.jsonl", {}), []
    for _ in range(3):
        assert log.score(lambda g: calls.append(g) or 1.5, START) == [1.5]
    assert len(calls) == 1
    with pytest.raises(AcclimateError, match="2 scores, but 1"):
        log.score(lambda g: [1.0, 2.0], START + 1)

"""Every paper's experiment runs on tiny input and judges what it measured; that shows that the code runs, and nothing about a claim."""

import math

import pytest

from acclimate import catalogue, experiments

WRITTEN = [row["id"] for row in catalogue.papers() if row["experiment"] and row["id"] != "dapt_tapt"]  # which has tests of its own


@pytest.mark.parametrize("name", WRITTEN)
def test_tiny(name, tmp_path):
    module = experiments.load(name)
    found = module.run(0, True, tmp_path)
    arms = found.get("arms", found)
    assert arms
    assert all(math.isfinite(value) for value in arms.values())
    figures = {arm: [value] * 3 for arm, value in arms.items()}
    assert module.verdict(figures) in experiments.OUTCOMES
    if hasattr(module, "why"):
        assert module.why(figures).strip()


def test_all_merge_methods_side_by_side():
    from acclimate.experiments.merging_methods import side_by_side

    found = side_by_side(tiny=True)
    measured = {row["name"] for row in found["rows"]}
    assert {"(base)", "merging.linear", "merging.ties", "merging.della"} <= measured
    assert all(math.isfinite(row["domains"]) for row in found["rows"])

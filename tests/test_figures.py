"""Plots of the pages under docs."""

from xml.etree import ElementTree

import pytest

from acclimate.report import figures

ROWS = [{"name": "a<b", "value": 80.0, "half": 5.0, "each": [75.0, 85.0]}, {"name": "c", "value": 60.0, "half": None, "each": [60.0]}]


@pytest.mark.parametrize(
    "svg",
    [
        figures.ranking(ROWS, "accuracy"),
        figures.against_goals([("a<b", 2.0, 1.5, 2.5, 3.0), ("c", 6.0, 5.0, 7.0, 3.0)], "times"),
        figures.tradeoff([("a<b", 0.1, 0.2), ("c", 0.3, 0.1)], "gained", "forgotten"),
    ],
)
def test_each_is_a_picture_of_its_own_that_names_every_row(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"a<b", "c"} <= words
    assert "var(--" not in svg


def test_the_same_rows_give_the_same_bytes_and_a_missed_goal_another_colour():
    assert figures.ranking(ROWS, "accuracy") == figures.ranking(ROWS, "accuracy")
    met, missed = (figures.against_goals([("a", 2.0, 1.9, 2.1, goal)], "times") for goal in (1.0, 3.0))
    assert figures.LIGHT["worse"] in missed
    assert figures.LIGHT["worse"] not in met

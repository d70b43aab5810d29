"""Arrays with a class for each pixel, and the street scenes that have them."""

import numpy as np
import pytest

from acclimate import datasets
from acclimate.domain.arrays import IGNORED, ArrayDomain, Arrays, open_domain, overlap
from acclimate.errors import AcclimateError
from worlds import needs_data


def masked():
    """Three images of 2 x 4 with masks of the classes a, b, c."""
    x = np.random.default_rng(0).random((3, 3, 2, 4), np.float32)
    y = np.array([[[0, 0, 1, 1]] * 2, [[2, 2, IGNORED, IGNORED]] * 2, [[1] * 4, [2] * 4]])
    return Arrays("made", x, y, ["a", "b", "c"])


def test_only_some_classes_of_masks_leaves_other_pixels_without_one():
    rows = masked().only(["b", "a"])
    assert rows.y[:, 0].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert (rows.y[1, 1] == IGNORED).all()
    assert list(rows.origins) == ["made:1", "made:3"]
    assert np.array_equal(rows.x, masked().x[[0, 2]])


def test_only_some_classes_of_whole_rows_is_as_before():
    rows = Arrays("made", np.zeros((4, 2), np.float32), np.array([0, 2, 1, 2]), ["a", "b", "c"]).only(["c", "a"])
    assert (rows.y.tolist(), rows.classes, list(rows.origins)) == ([1, 0, 0], ["c", "a"], ["made:1", "made:2", "made:4"])


def test_masks_are_sized_with_their_images():
    rows = masked().scaled(side=2)
    assert (rows.x.shape, rows.y.shape) == ((3, 3, 2, 2), (3, 2, 2))
    assert rows.y[0].tolist() == [[0, 1]] * 2
    assert masked().scaled(side=8).y[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_masks_count_in_the_fingerprint_and_a_shared_row_is_named():
    changed = masked()
    changed.y = changed.y.copy()
    changed.y[0, 0, 0] = 1
    assert masked().fingerprint == masked().fingerprint != changed.fingerprint
    found = overlap("made", masked().select([0, 1, 2]), {"other": masked().select([1])})
    assert (found["clean"], found["spans"][0]["text"]) == ([0, 2], "a whole row with its mask")


@needs_data
@pytest.mark.parametrize(("domain", "frames"), [("dusk", 62), ("day", 153), ("day_short", 51)])
def test_sequences_have_their_frames_in_order(domain, frames):
    rows = datasets.load(f"camvid/{domain}")
    assert (rows.x.shape, rows.y.shape, len(rows.classes)) == ((frames, 3, 90, 120), (frames, 90, 120), 11)
    assert (rows.x.dtype, rows.y.dtype) == (np.float32, np.int64)
    assert set(np.unique(rows.y)) <= {IGNORED, *range(11)}
    assert list(rows.origins) == sorted(rows.origins)
    sky, road = (np.argwhere(rows.y == rows.classes.index(name))[:, 1].mean() for name in ("Sky", "Road"))
    assert sky < 45 < road


@needs_data
def test_it_is_darker_at_dusk():
    assert datasets.load("camvid/dusk").x.mean() < datasets.load("camvid/day").x.mean()


@needs_data
def test_masks_go_through_the_door_in_python_and_not_in_recipes():
    domain = ArrayDomain.load("street", "camvid/dusk", classes=["Road", "Car"], side=32)
    assert sum(len(rows) for rows in domain.splits.values()) == 62
    assert set(np.unique(domain.rows().y)) == {IGNORED, 0, 1}
    with pytest.raises(AcclimateError, match="camvid/dusk has a class for each pixel, but a recipe needs one for each row"):
        open_domain("street", "camvid/dusk")

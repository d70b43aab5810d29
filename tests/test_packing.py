"""Packing: nothing lost, nothing twice, nothing over, and little room wasted."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.parts.packing import cut, pack


@st.composite
def jobs(draw):
    capacity = draw(st.integers(1, 300))
    return draw(st.lists(st.integers(0, capacity), max_size=120)), capacity


@settings(max_examples=200, deadline=None)
@given(jobs())
def test_every_index_once_and_no_row_over_capacity(job):
    lengths, capacity = job
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[i] for i in row) <= capacity for row in rows)


@settings(max_examples=200, deadline=None)
@given(jobs())
def test_best_fit_never_leaves_two_rows_that_fit_in_one(job):
    lengths, capacity = job
    sums = [sum(lengths[i] for i in row) for row in pack(lengths, capacity)]
    assert all(a + b > capacity for a, b in combinations(sums, 2))


def plain_best_fit(lengths, capacity):
    """The definition, row by row."""
    rows, rooms = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [(room, row) for row, room in enumerate(rooms) if room >= lengths[index]]
        if fitting:
            row = min(fitting)[1]
            rooms[row] -= lengths[index]
            rows[row].append(index)
        else:
            rows.append([index])
            rooms.append(capacity - lengths[index])
    return rows


@settings(max_examples=200, deadline=None)
@given(jobs())
def test_as_full_as_the_plain_definition(job):
    lengths, capacity = job

    def fill(rows):
        return sorted(sum(lengths[i] for i in row) for row in rows)

    assert fill(pack(lengths, capacity)) == fill(plain_best_fit(lengths, capacity))


@pytest.mark.parametrize("capacity", [512, 2048])
def test_rows_are_over_99_percent_full_on_lognormal_lengths(capacity):
    lengths = np.minimum(np.random.default_rng(0).lognormal(5, 1, 20_000).astype(int) + 1, capacity)
    rows = pack(lengths, capacity)
    assert lengths.sum() / (len(rows) * capacity) > 0.99
    assert rows == pack(lengths.tolist(), capacity)


@pytest.mark.parametrize(
    ("lengths", "capacity", "said"), [([3, 11], 10, "length 11 at index 1"), ([-1], 10, "length -1"), ([1], 0, "capacity is 0")]
)
def test_what_cannot_be_packed_is_refused(lengths, capacity, said):
    with pytest.raises(ValueError, match=said):
        pack(lengths, capacity)


def test_nothing_packs_to_nothing_and_empty_documents_take_no_room():
    assert pack([], 10) == []
    assert pack([10, 0, 0], 10) == [[0, 1, 2]]
    assert pack([0, 0], 10) == [[0, 1]]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 700))
def test_pieces_cover_the_document_in_order(length, capacity):
    pieces = cut(length, capacity)
    assert [i for start, end in pieces for i in (start, end)][1:-1:2] == [start for start, _ in pieces[1:]]
    assert sum(end - start for start, end in pieces) == length
    assert all(end - start == capacity for start, end in pieces[:-1])
    assert all(0 < end - start <= capacity for start, end in pieces)


def test_a_cut_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="pieces of 0"):
        cut(5, 0)
    with pytest.raises(ValueError, match="length -5"):
        cut(-5, 3)

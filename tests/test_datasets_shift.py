"""Datasets for shift and continual learning: sizes, rules for what is missing, and accuracies that others published on the same rows."""

import numpy as np
import pytest

from acclimate import datasets
from acclimate.datasets import heart, office_caltech, well_logs
from acclimate.domain.arrays import ArrayDomain
from acclimate.errors import AcclimateError
from worlds import needs_data

ARRAYS = ["office_caltech", "amazon_reviews", "har", "bearing", "well_logs", "heart"]
TEXTS = ["hwu64", "blitzer", "fomc"]


def nearest_neighbour(x, y, tested, wanted):
    """Accuracy in percent of the class of the nearest row (Euclidean)."""
    x, tested = np.float64(x), np.float64(tested)
    distances = (x**2).sum(1) - 2 * tested @ x.T
    return 100 * (y[distances.argmin(1)] == wanted).mean()


@pytest.mark.parametrize("name", [*ARRAYS, *TEXTS])
def test_a_domain_that_is_misspelt_is_one_line(name):
    known = datasets.domains(name)
    with pytest.raises(AcclimateError) as caught:
        datasets.load(f"{name}/{known[0]}x")
    assert f"in dataset {name}; nearest: {known[0]}" in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_data
@pytest.mark.parametrize(
    ("name", "shape", "rows", "classes"),
    [
        ("office_caltech", (800,), [958, 1123, 157, 295], 10),
        ("amazon_reviews", (5000,), [2000, 2000, 2000, 4465, 3586, 5681], 2),
        ("har", (9, 128), [211, 227, 215, 201, 221, 224, 228, 256, 254, 260, 91, 98, 93, 87, 95, 96, 99, 110, 110, 112], 6),
        ("bearing", (1, 1024), [540] * 3, 9),
        ("well_logs", (7,), [466, 501, 439, 461, 463, 415, 80, 471], 9),
        ("heart", (10,), [303, 294, 200], 2),
    ],
)
def test_arrays_have_their_sizes(name, shape, rows, classes):
    sizes = []
    for domain in datasets.domains(name):
        loaded = datasets.load(f"{name}/{domain}")
        assert (loaded.name, loaded.x.shape[1:], len(loaded.classes)) == (f"{name}/{domain}", shape, classes)
        assert (loaded.x.dtype, loaded.y.dtype) == (np.float32, np.int64)
        assert np.isfinite(loaded.x).all()
        assert 0 <= loaded.y.min() <= loaded.y.max() < classes
        assert len(loaded.x) == len(loaded.y) == len(loaded.origins or loaded.y)
        sizes.append(len(loaded))
    assert sizes == rows


@needs_data
@pytest.mark.parametrize(
    ("name", "count", "sizes"),
    [("hwu64", 64, (8884, 1073, 1076)), ("fomc", 3, (1113, 145, 307))],
)
def test_texts_have_their_sizes_and_domains_are_parts_of_the_whole(name, count, sizes):
    whole = datasets.load(f"{name}/all")
    assert tuple(len(whole.splits[split]) for split in ("train", "validation", "test")) == sizes
    assert len(set(whole.splits["train"]["label"])) == count
    parts = [datasets.load(f"{name}/{domain}") for domain in datasets.domains(name) if domain != "all"]
    for split, rows in whole.splits.items():
        assert sorted(rows["origin"]) == sorted(origin for part in parts for origin in part.splits[split]["origin"])
    sides = [{" ".join(text.split()).casefold() for text in whole.texts(split)} for split in whole.splits]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]


@needs_data
def test_a_scenario_with_one_intent_has_no_task():
    assert not datasets.load("hwu64/weather").tasks
    (task,) = datasets.load("hwu64/alarm").tasks.values()
    assert task.rows[0]["options"] == [" alarm_query", " alarm_remove", " alarm_set"]


@needs_data
def test_periods_follow_each_other():
    dates = [date for period in datasets.domains("fomc")[:-1] for date in datasets.load(f"fomc/{period}").splits["train"]["date"]]
    assert dates == sorted(dates)
    assert (dates[0][:4], dates[-1][:4]) == ("1996", "2015")
    assert datasets.load("fomc/2008-2011").time == "2008/2011"


@needs_data
def test_repeated_reviews_are_kept_once():
    for kind in datasets.domains("blitzer"):
        domain = datasets.load(f"blitzer/{kind}")
        texts = [text for split in domain.splits for text in domain.texts(split)]
        assert len(texts) == len(set(texts)) == 1000 - domain.dropped["exact"]
        assert len(domain.tasks[kind].rows) == len(domain.splits["test"])
        assert set(domain.splits["train"]["label"]) == {"good", "bad"}


@needs_data
@pytest.mark.parametrize(("source", "target", "published"), [("usps", "mnist", 44.70), ("mnist", "usps", 65.94)])
def test_nearest_digits_as_published(source, target, published):
    """Long et al. 2013, joint distribution adaptation, the figures of NN; rows of unit length."""
    a, b = (datasets.load(f"digits/{name}") for name in (source, target))
    rows = [each.x.reshape(len(each), -1) for each in (a, b)]
    rows = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in rows]
    assert nearest_neighbour(rows[0], a.y, rows[1], b.y) == pytest.approx(published, abs=0.006)


@needs_data
@pytest.mark.parametrize(
    ("source", "target", "published"),
    [
        ("caltech", "amazon", 23.70),
        ("caltech", "webcam", 25.76),
        ("caltech", "dslr", 25.48),
        ("amazon", "caltech", 26.00),
        ("amazon", "webcam", 29.83),
        ("amazon", "dslr", 25.48),
        ("webcam", "caltech", 19.86),
        ("webcam", "amazon", 22.96),
        ("webcam", "dslr", 59.24),
        ("dslr", "caltech", 26.27),
        ("dslr", "amazon", 28.50),
        ("dslr", "webcam", 63.39),
    ],
)
def test_nearest_objects_as_published(source, target, published):
    """Long et al. 2013, the figures of NN, rows standardised per domain."""
    a, b = (datasets.load(f"office_caltech/{name}") for name in (source, target))
    found = nearest_neighbour(office_caltech.standardised(a.x), a.y, office_caltech.standardised(b.x), b.y)
    assert found == pytest.approx(published, abs=0.006)


@needs_data
def test_bags_of_words_carry_sentiment_across_domains():
    """Ganin et al. 2016, table 1: a linear SVM reaches 0.799 from books to DVDs on such rows."""
    from sklearn.svm import LinearSVC

    source, target = datasets.load("amazon_reviews/books"), datasets.load("amazon_reviews/dvd_test")
    found = LinearSVC(C=0.01).fit(np.log1p(source.x), source.y).score(np.log1p(target.x), target.y)
    assert found == pytest.approx(0.80, abs=0.02)


@needs_data
def test_a_missing_log_is_the_mean_of_other_wells():
    column = well_logs.FEATURES.index("PE")
    others = [well for well in well_logs.WELLS if well != "alexander_d"]
    measured = np.concatenate([datasets.load(f"well_logs/{well}").x[~well_logs.missing(well), column] for well in others])
    loaded = datasets.load("well_logs/alexander_d")
    assert len(measured) == 3296 - 917
    assert np.allclose(loaded.x[:, column], measured.mean())
    assert well_logs.missing("recruit_f9").sum() == 12
    assert loaded.origins[0].endswith(" ft")


@needs_data
def test_what_a_hospital_did_not_measure_is_filled_from_its_own_patients():
    assert [int(heart.missing(name).sum()) for name in heart.HOSPITALS] == [0, 35, 282]
    column, gone = heart.FEATURES.index("chol"), heart.missing("va")
    rows = datasets.load("heart/va").x
    assert set(rows[gone[:, column], column]) == {float(np.median(rows[~gone[:, column], column]))}
    assert (rows[:, column] > 0).all()


@needs_data
def test_sets_of_numbers_go_through_the_door_of_domains():
    domain = ArrayDomain.load("wells", "well_logs/nolan")
    assert set(domain.splits) == {"train", "test"}
    assert sum(map(len, domain.splits.values())) + domain.dropped["exact"] == 415


@needs_data
def test_a_published_table_is_made_again():
    from acclimate.experiments import shift_references as references

    found = references.measured(pairs=1)
    assert found["measured"]["NN"]["CA"] == pytest.approx(23.70, abs=0.01)
    assert found["measured"]["CORAL"]["CA"] == pytest.approx(52.1, abs=3)
    assert any("| CORAL, published | 52.1 |" in line for line in references.table(found))

"""A classifier that has labels of the first period alone: static, self-trained in one step or period by period, and other ways to follow.

Streams: FOMC stance, sentences of 1996 to 2015 in five periods of four years (real dates; dovish, hawkish, neutral), of each period 60 %
of the rows as the pool and 40 % for testing; and a built drift, reviews of FDU-MTL in eight periods, which begin as books and end as the
one of four other kinds whose mean vector lies farthest from that of books, a seventh of the mixture moving each period, 100 rows as the
pool and 100 for testing. Splits are drawn by the seed. Base: vectors of ``minilm``, frozen, with one layer and a linear head. Arms:
static; one-shot self-training (the first model labels each period); gradual self-training without a buffer; incremental self-training with
a buffer that always holds the labelled period; DANN between the first period and each later one; labels of all periods so far as an upper
bound. FOMC has further pretraining as well: ``minilm`` as a masked model with a fresh output layer, on the sentences of all periods and
without labels, whose vectors then stand in for the plain ones, static and with incremental self-training. Figures are macro-F1 of a
period's model on the test rows of that period: of the first, of the last, and the mean over the later half (late). Details: macro-F1 by
period; word divergence (Jensen-Shannon) and distance of mean vectors between the first period and each one, the correlation of what the
static model loses with them, and the share of the gap from static to supervised that incremental self-training closes.

What differs from the paper: small public streams instead of its social media; vectors of a frozen encoder with a small head instead of all
of BERT, so that only further pretraining trains a transformer, briefly and once for all seeds; the shares that are kept are ours; labels
by a prompted language model are left out, for want of one that could. The entry moves a tenth of the mixture per period, here a seventh,
so that the drift is complete. About a minute per seed on one core, and two more once for the vectors and the further pretraining.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ... import datasets
from ...method import load

CRITERION = """
    Macro-F1 in points, mean over seeds; late: mean over the later half of the periods. (1) The static model is on the last period 2.0 or
    more below where it was on the first, on both streams. (2) Late, incremental self-training is 2.0 or more above static, on the
    mean of both streams. (3) Late, it is above one-shot self-training on the mean of both streams. (4) Late, it is above DANN on the
    mean of both streams, and above static further pretraining on FOMC. The claim holds if all four do.
"""
METRIC = "macro-F1 of each period's model on that period's test rows in points (first, last, or mean over the later half), higher is better"
SEEDS = (0, 1, 2)
DECAY, GAIN = 2.0, 2.0  # points: the numbers of the criterion
STREAMS = ("FOMC", "drift")
WAYS: dict[str, dict[str, Any]] = {
    "one-shot": {"teacher": "first", "window": 1},
    "gradual": {"window": 1, "anchor": False, "restart": False},
    "incremental": {},
    "supervised": {},
}
FURTHER = {"steps": 24, "lr": 1e-4, "batch_tokens": 768, "row_tokens": 64}  # pretraining
PERIODS, ROWS = 8, 100  # of the built drift
KINDS = ("books", "dvd", "electronics", "kitchen_housewares", "baby")


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """All arms on both streams."""
    figures: dict[str, float] = {}
    told: dict[str, Any] = {}
    for name in STREAMS:
        texts: list[list[str]] = []
        if tiny:
            sets: dict[str, list[Any]] = {"": _made_up(), **({"further": _made_up()} if name == "FOMC" else {})}
        else:
            texts, sets = _fomc(seed, work) if name == "FOMC" else _drift(seed)
        found: dict[str, list[float]] = {}
        for kind, periods in sets.items():
            found |= _arms(periods, seed, tiny, kind)
        for arm, curve in found.items():
            late = float(np.mean(curve[(len(curve) + 1) // 2 :]))
            figures |= {f"{name}, first: {arm}": curve[0], f"{name}, last: {arm}": curve[-1], f"{name}, late: {arm}": late}
        told[name] = {"macro-F1 by period": found, "shift": _shift(texts, sets[""], found["static"])}
        static, ours, most = (figures[f"{name}, late: {arm}"] for arm in ("static", "incremental", "supervised"))
        told[name]["share of the gap from static to supervised that is closed, late"] = (
            (ours - static) / (most - static) if most != static else None
        )
    return {"arms": figures, "details": told}


def _arms(periods: list[Any], seed: int, tiny: bool, kind: str) -> dict[str, list[float]]:
    """Macro-F1 of each arm's model of a period on that period; after further pretraining of two arms alone."""
    import torch

    from ...engines.continual import Task, learn
    from ...engines.shift import Data, Learner, Training, fit
    from ...models.mlp import Mlp

    size: dict[str, Any] = {"steps": 2, "batch": 4} if tiny else {"steps": 200, "batch": 32}
    training = Training(**size, optimizer="adam", lr=1e-3, weight_decay=1e-4, choose="last", seed=seed)
    count = int(max(test.y.max() for _, test in periods)) + 1

    def fresh() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Learner(Mlp(periods[0][0].x.shape[1], 64), count)

    found: dict[str, list[float]] = {}
    for way, settings in WAYS.items():
        if kind and way != "incremental":
            continue
        method, learner, curve = load("continual.evolving", **settings), fresh(), []
        for number, (pool, test) in enumerate(periods):
            seen = pool if way == "supervised" or not number else pool.unlabelled()
            learn(method, learner, [Task(pool.name, seen, test, tuple(range(count)), number)], training)
            curve.append(_macro_f1(method, learner, test))
            if not number:
                found.setdefault(f"{kind} static".strip(), [_macro_f1(method, learner, other) for _, other in periods])
        found[f"{kind} {way}".strip()] = curve
    if not kind:
        dann = load("domain_adaptation.dann", hidden=[64])
        found["DANN"] = [found["static"][0]]
        for pool, test in periods[1:]:
            learner = fresh()
            fit(dann, learner, Data([periods[0][0]], pool.unlabelled()), training)
            found["DANN"].append(_macro_f1(dann, learner, test))
    return found


def _macro_f1(method: Any, learner: Any, pool: Any) -> float:
    from sklearn.metrics import f1_score

    from ...engines.shift import predict

    return 100 * float(f1_score(pool.y, predict(method, learner, pool.x).argmax(1), average="macro", zero_division=0))


def _shift(texts: list[list[str]], periods: list[Any], static: list[float]) -> dict[str, Any]:
    """How far each period lies from the first, and how that goes with what the static model loses."""
    from collections import Counter

    from scipy.spatial.distance import jensenshannon

    means = [pool.x.mean(0) for pool, _ in periods]
    told: dict[str, Any] = {"distance of means": [float((mean - means[0]).norm()) for mean in means]}
    if texts:
        counts = [Counter(word for text in some for word in text.lower().split()) for some in texts]
        words = sorted(set().union(*counts))
        shares = [np.array([count[word] for word in words]) / count.total() for count in counts]
        told["word divergence"] = [float(jensenshannon(shares[0], share, base=2) ** 2) for share in shares]
    loss = static[0] - np.array(static)[1:]
    for name, values in list(told.items()):
        if np.std(loss) and np.std(values[1:]):
            told[f"correlation of loss and {name}"] = float(np.corrcoef(loss, values[1:])[0, 1])
    return told


def _fomc(seed: int, work: Path) -> tuple[list[list[str]], dict[str, list[Any]]]:
    """Texts by period; pool and test rows by period, as vectors of the plain encoder and of the further pretrained one."""
    from ...datasets import fomc
    from ...shifts import encoded

    years = fomc.PERIODS
    rows = {name: [row for split in ("train", "validation", "test") for row in datasets.load(f"fomc/{name}").rows(split)] for name in years}
    texts = {name: [row["text"] for row in own] for name, own in rows.items()}
    cuts, learned = {}, {}
    for number, name in enumerate(years):
        order = np.random.default_rng([seed, number]).permutation(len(texts[name]))
        cuts[name] = np.split(order, [round(0.6 * len(order))])
        learned[name] = [texts[name][row] for row in cuts[name][0]]
    every = [text for name in years for text in texts[name]]
    made = {"": encoded(every), "further": _further(every, work)}
    sets: dict[str, list[Any]] = {kind: [] for kind in made}
    start = 0
    for name in years:
        y = np.array([fomc.STANCES.index(row["label"]) for row in rows[name]])
        for kind, x in made.items():
            sets[kind].append(_period(name, x[start : start + len(y)], y, cuts[name]))
        start += len(y)
    return list(learned.values()), sets


def _further(texts: list[str], work: Path) -> Any:
    """Vectors of the encoder after further pretraining on these texts, made once."""
    import torch
    from datasets import Dataset

    from ...domain import Domain
    from ...engines.embed import Encoder
    from ...files import digest
    from ...model import Model
    from ...shifts import kept
    from ..workbench import Workbench

    def make() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Model.load("minilm", kind="masked", new_head=True)
        corpus = Domain(
            "fomc", "text", {"train": Dataset.from_list([{"id": digest(text), "origin": "fomc", "text": text} for text in texts])}
        )
        bench = Workbench("evolving_da", 0, work, batch_tokens=FURTHER["batch_tokens"], row_tokens=FURTHER["row_tokens"])
        done = bench.train("further", model, load("objectives.masked_lm"), corpus, steps=FURTHER["steps"], lr=FURTHER["lr"])
        return Encoder(Model("further", done.net.base_model, done.tokenizer, "encoder")).encode(texts)

    return kept(["minilm", "masked_lm", FURTHER, texts], make)


def _drift(seed: int) -> tuple[list[list[str]], dict[str, list[Any]]]:
    """The same of reviews that begin as books and end as another kind."""
    import torch

    from ...shifts import encoded
    from ..shift_sets import review_rows

    rows = {kind: review_rows(kind, 1000) for kind in KINDS}
    vectors = {kind: encoded([row["text"] for row in own]) for kind, own in rows.items()}
    far = max(KINDS, key=lambda kind: float((vectors[kind].mean(0) - vectors["books"].mean(0)).norm()))
    draw = np.random.default_rng([seed, 13])
    orders = {kind: draw.permutation(len(rows[kind])).tolist() for kind in ("books", far)}
    texts, periods = [], []
    for number in range(PERIODS):
        moved = round(2 * ROWS * number / (PERIODS - 1))
        picked = [(kind, orders[kind].pop()) for kind, size in (("books", 2 * ROWS - moved), (far, moved)) for _ in range(size)]
        picked = [picked[place] for place in draw.permutation(2 * ROWS)]
        x = torch.stack([vectors[kind][row] for kind, row in picked])
        y = np.array([int(rows[kind][row]["label"] == "good") for kind, row in picked])
        periods.append(_period(f"period {number}", x, y, np.split(np.arange(2 * ROWS), 2)))
        texts.append([rows[kind][row]["text"] for kind, row in picked[:ROWS]])
    return texts, {"": periods}


def _period(name: str, x: Any, y: np.ndarray, cuts: list[np.ndarray]) -> tuple[Any, Any]:
    import torch

    from ...engines.shift import Pool

    pool, test = (Pool(name, x[torch.from_numpy(rows)], torch.from_numpy(y[rows])) for rows in cuts)
    return pool, test


def _made_up() -> list[Any]:
    from ..shift_sets import made_up

    cuts = [made_up(f"period {number}", (12,), 3, number) for number in range(3)]
    return [(cut.train, cut.test) for cut in cuts]


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""

    def mean(stream: str, when: str, arm: str) -> float:
        return float(np.mean(figures[f"{stream}, {when}: {arm}"]))

    def gap(arm: str) -> float:
        return float(np.mean([mean(stream, "late", "incremental") - mean(stream, "late", arm) for stream in STREAMS]))

    lost = [mean(stream, "first", "static") - mean(stream, "last", "static") for stream in STREAMS]
    further = mean("FOMC", "late", "incremental") - mean("FOMC", "late", "further static")
    return [
        (f"the static model loses {lost[0]:.1f} on FOMC, {lost[1]:.1f} on the built drift", min(lost) >= DECAY),
        (f"late, incremental - static {gap('static'):+.2f}", gap("static") >= GAIN),
        (f"late, incremental - one-shot {gap('one-shot'):+.2f}", gap("one-shot") > 0),
        (f"late, incremental - DANN {gap('DANN'):+.2f}, - further pretraining {further:+.2f} on FOMC", gap("DANN") > 0 and further > 0),
    ]

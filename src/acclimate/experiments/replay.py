"""What does a quarter of replay cost in the domain, and what does it save outside it? The reference run, of no single paper.

``seedling-xs`` goes on with text of law or of software documentation, either alone or with a quarter of the rows drawn from what it
learned before (Wikipedia and novels), for the same number of steps; three seeds. Measured on held-out text of the domain and of both
general corpora. Run it with ``python -m acclimate.experiments.replay``; ``--record`` keeps the result in bench/results.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .. import catalogue, datasets
from ..domain import Domain
from ..engines.score import bits_per_byte
from ..engines.train import Training, tidy, train
from ..errors import AcclimateError
from ..files import cache_dir, file_digest, lock, read_json, write_json
from ..measure import limited
from ..method import load
from ..model import Model
from . import _judge, _run_seeds
from .fixture import documents, tiny_model

CLAIM = "Replaying some general text while learning a domain prevents most forgetting and costs little of the gain in the domain."
CRITERION = """
    For either domain, on the mean over seeds: the rise of bits per byte on general text (mean of Wikipedia and novels) is with replay at
    most half of what it is without; and the fall of bits per byte in the domain is with replay at least 90 % of what it is without. In
    every seed text of the domain alone makes general text worse, else nothing is forgotten and the question cannot be asked here.
"""
METRIC = "bits per byte on held-out text, lower is better"
SEEDS = (0, 1, 2)
DOMAINS, GENERAL, SHARE = ("legal", "software"), ("wikipedia", "fiction"), 0.25
MOST_FORGOTTEN, LEAST_GAINED = 0.5, 0.9
ARMS = ("alone", "replay")


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Bits per byte of the start model and of every arm on every text."""
    start = tiny_model("causal") if tiny else Model.load("seedling-xs")
    texts = {name: _domain(name, tiny) for name in (*DOMAINS, *GENERAL)}
    small: dict[str, Any] = {"steps": 2, "batch_tokens": 128, "row_tokens": 32} if tiny else {"steps": 120}
    training = Training(lr=1e-3, seed=seed, watch_every=10**6, checkpoint_every=10**6, **small)
    arms = {f"start on {name}": _bits(start, texts[name], tiny) for name in texts}
    for name in DOMAINS:
        general = {other: (texts[other], SHARE / len(GENERAL)) for other in GENERAL}
        for arm, mixture in (("alone", {name: (texts[name], 1.0)}), ("replay", {name: (texts[name], 1 - SHARE), **general})):
            path = work / f"{name} {arm}.json"
            if not path.is_file():
                made = train(start, load("objectives.causal_lm"), mixture, training, work / f"{name} {arm}", name=arm)
                tidy(work / f"{name} {arm}")
                write_json(path, {text: _bits(made.model, texts[text], tiny) for text in (name, *GENERAL)})
            arms |= {f"{name} {arm} on {text}": value for text, value in read_json(path).items()}
    return arms


def _domain(name: str, tiny: bool) -> Domain:
    return Domain.from_texts(name, documents(name, 60)) if tiny else datasets.load(f"lm/{name}")


def _bits(model: Model, domain: Domain, tiny: bool) -> float:
    return bits_per_byte(model, limited(domain, "test", 500 if tiny else 60_000)).value


def _changes(figures: dict[str, list[float]], name: str, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Fall in the domain and mean rise on general text [seed], in bits per byte."""
    own = np.subtract(figures[f"start on {name}"], figures[f"{name} {arm} on {name}"])
    rises = [np.subtract(figures[f"{name} {arm} on {text}"], figures[f"start on {text}"]) for text in GENERAL]
    return own, np.mean(rises, axis=0)


def verdict(figures: dict[str, list[float]]) -> str:
    """Whether replay forgets half as much and keeps 90 % of the gain, in either domain."""
    changes = {(name, arm): _changes(figures, name, arm) for name in DOMAINS for arm in ARMS}
    if any((changes[name, "alone"][1] <= 0).any() for name in DOMAINS):
        return "not_testable"
    kept = [
        changes[name, "replay"][1].mean() <= MOST_FORGOTTEN * changes[name, "alone"][1].mean()
        and changes[name, "replay"][0].mean() >= LEAST_GAINED * changes[name, "alone"][0].mean()
        for name in DOMAINS
    ]
    return "holds" if all(kept) else "does_not_hold"


def why(figures: dict[str, list[float]]) -> str:
    """Gain and loss of every arm."""
    said = []
    for name in DOMAINS:
        for arm in ARMS:
            own, rise = _changes(figures, name, arm)
            said.append(f"{name} {arm}: {-own.mean():+.3f} in the domain, {rise.mean():+.3f} on general text")
    return "; ".join(said)


def reference(tiny: bool = False, record: bool = False) -> dict[str, Any]:
    """Run all seeds and judge them; the same data as ``acclimate reproduce`` gives for a paper. A killed run goes on."""
    if record and (tiny or not catalogue.checkout()):
        raise AcclimateError("a result is recorded from a full run in a checkout of the project; leave out --record")
    folder = cache_dir("experiments", "replay")
    source = file_digest(Path(__file__))
    module = sys.modules[__name__]
    with lock(folder):
        done = _run_seeds("replay", module, list(SEEDS)[: 2 if tiny else None], tiny, source, folder)
        about = {"id": "replay", "title": "Replay: the reference run", "claim": CLAIM}
        found = _judge(about, module, done, tiny, source, record)
        found["provenance"]["command"] = "python -m acclimate.experiments.replay" + " --tiny" * tiny + " --record" * record
        write_json(folder / ("replay-tiny.json" if tiny else "replay.json"), found)
        for path in folder.glob("replay-*.partial.json"):
            path.unlink()
    root = catalogue.checkout()
    if record and root is not None:
        write_json(root / "bench" / "results" / "replay.json", found)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a run of seconds that proves only that the code runs")
    parser.add_argument("--record", action="store_true", help="write bench/results/replay.json")
    print(json.dumps(reference(**vars(parser.parse_args())), indent=2))

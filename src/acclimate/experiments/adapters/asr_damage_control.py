"""Do regularised adapters teach a transducer new voices while its old ones stay within a bound, where fine-tuning breaks it?

Speech: spoken digits by four people. Two are the old domain (which two turns with the seed), recordings joined to sequences of one to
four digits; a transducer (two Conformer blocks of width 48, 0.15M weights) learns them from fresh weights, with changes of speed and noise
as usual. The new domain is the other two, 10 % higher and faster, with noise 15 dB below them. Repetitions 0 to 13 of every digit are
trained on, 14 to 16 choose, 17 to 19 test; sequences are drawn anew per seed. Arms, all from the one base: full, encoder and decoder
tuning (each at two learning rates), plain adapters (at all places, without dropout and depth), and regularised ones (a grid over place and
stochastic depth, with dropout). Each is looked at after 25, 50, 100, 200 and 400 steps; its checkpoint is chosen by SCORE on the choosing
sets (kappa 0.03 for each old speaker), the base where all are 0, and again by the new domain alone. All figures are of the test sets.

What differs from the paper, and why: 800 recordings of four speakers instead of LibriSpeech and its like, words as symbols, a network a
hundred times smaller, the old sets' own bound each, for time. The set has recordings of two more speakers, which are not at hand.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import datasets
from ...datasets.spoken_digits import DIGITS, SPEAKERS
from ...domain.speech import Speech
from ...engines.speech import SpeechTraining, error_rate, tune
from ...method import load
from ...models.transducer import Transducer
from ...parts.damage import ConstrainedSelector
from ...parts.speech import noisy, pitched
from ..workbench import Workbench

CRITERION = """
    Word error rates are of test sets, SCORE is reckoned from them with kappa = 0.03. (1) Full tuning's checkpoint that is best on the new
    domain has there the lowest error rate of all arms on the mean over seeds, and its SCORE is below 0.1 on the mean; (2) regularised
    adapters, chosen by SCORE, have the highest SCORE of all arms on the mean, 0.05 or more above each tuning's chosen by the same rule,
    and at least that of plain adapters; (3) they raise the mean error rate of the old speakers by no more than 0.03 in every seed. The
    claim holds if all three do. It cannot be tested where the base misses more than 0.15 of the old words or less than 0.2 of the new.
"""
METRIC = "word error rate on old speakers and on the new domain, lower is better; SCORE, 0 to 1, higher is better"
SEEDS = (1, 2, 3)  # seed 0 was used to try sizes and rates out
KAPPA, NEAR_ZERO, ABOVE, BASE_OLD, BASE_NEW = 0.03, 0.1, 0.05, 0.15, 0.2  # the numbers of the criterion
TUNINGS = ("full", "encoder", "decoder")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    sequences: int = 800  # of the old domain
    base_steps: int = 900
    new_sequences: int = 200
    choosing: int = 50  # sequences of each set
    testing: int = 100
    looks: tuple[int, ...] = (25, 50, 100, 200, 400)
    width: int = 48
    blocks: int = 2


FULL, TINY = Size(), Size(8, 1, 6, 1, 1, (1,), 8, 1)


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Error rates and SCORE of every arm."""
    size = TINY if tiny else FULL
    sets = speech(seed, size, tiny)
    base = based(sets["old"], size, seed)
    bench = Workbench("asr_damage_control", seed, work)
    given = {"start": base, "new": sets["new"], "held": sets["held"], "old": sets["choosing"]}
    common: dict[str, Any] = {"kappa": KAPPA, "steps": list(size.looks), "warmup": 10, "dim": [2 * size.width // 3]}
    plain = load("adapters.damage_control", **common, **PLAIN, baselines=list(TUNINGS)).run(bench, **given)
    told = {"plain": bench.notes}
    bench.notes = {}
    calm = load("adapters.damage_control", **common, **CALM).run(bench, **given)
    told["regularised"] = bench.notes
    models = {"base": base}
    for arm, made in [("plain adapters", plain["adapted"]), ("regularised adapters", calm["adapted"])]:
        models[arm] = made
    models |= {arm: plain[arm] for arm in TUNINGS}
    models |= {f"{arm}, best on new": plain[f"{arm}.unconstrained"] for arm in TUNINGS}
    models |= {"plain adapters, best on new": plain["adapted.unconstrained"]}
    models |= {"regularised adapters, best on new": calm["adapted.unconstrained"]}
    rates = {arm: {name: error_rate(model, held) for name, held in sets["testing"].items()} for arm, model in models.items()}
    arms = {}
    for arm, found in rates.items():
        arms[f"new: {arm}"] = found["new"]
        arms[f"old: {arm}"] = float(np.mean([rate for name, rate in found.items() if name != "new"]))
        arms[f"score: {arm}"] = score(rates["base"], found)
    return {"arms": arms, "details": {"rates": rates, **told}}


PLAIN: dict[str, Any] = {"places": ["encoder+prediction+joint"], "dropout": [0.0], "skip": [0.0], "lr": 1e-3, "weight_decay": 0.0}
CALM: dict[str, Any] = {"places": ["encoder", "encoder+prediction+joint"], "dropout": [0.3], "skip": [0.5, 0.9], "lr": 1e-3}


def score(before: dict[str, float], after: dict[str, float]) -> float:
    """SCORE of error rates on the test sets."""
    old = {name: rate for name, rate in before.items() if name != "new"}
    return ConstrainedSelector(KAPPA).score(old, after, before["new"], after["new"])


def speech(seed: int, size: Size, tiny: bool) -> dict[str, Any]:
    """The sets: ``old`` and ``new`` to train on, ``held`` and ``choosing`` to choose by, ``testing``; the sets of a speaker by name."""
    order = [SPEAKERS[(seed + i) % len(SPEAKERS)] for i in range(len(SPEAKERS))]
    spoken = {name: _speaker(name, tiny) for name in order}
    draw = torch.Generator().manual_seed(seed)

    def old(first: int, last: int, count: int) -> dict[str, Speech]:
        return {name: spoken[name].of_takes(first, last).joined(count, 1, 4, seed) for name in order[:2]}

    def new(first: int, last: int, count: int) -> Speech:
        both = Speech.together("new", [spoken[name].of_takes(first, last) for name in order[2:]]).joined(count, 1, 4, seed)
        return changed(both, (1.1, 1.1), (15.0, 15.0), draw)

    taught = Speech.together("old", list(old(0, 14, size.sequences // 2).values()))
    return {
        "old": changed(taught, (0.85, 1.15), (10.0, 40.0), draw),
        "new": new(0, 14, size.new_sequences),
        "held": new(14, 17, size.choosing),
        "choosing": old(14, 17, size.choosing),
        "testing": {**old(17, 20, size.testing), "new": new(17, 20, size.testing)},
    }


def changed(given: Speech, speeds: tuple[float, float], decibels: tuple[float, float], draw: torch.Generator) -> Speech:
    """Every recording at a speed and with noise drawn from a range."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    waves = [noisy(pitched(wave, between(*speeds)), between(*decibels), draw) for wave in given.waves]
    return Speech(given.name, waves, given.words, given.rate)


def based(old: Speech, size: Size, seed: int) -> Transducer:
    """A transducer that learned the old domain from fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Transducer(DIGITS, width=size.width, blocks=size.blocks)
    training = SpeechTraining(lr=2e-3, warmup=50, schedule="cosine", batch_norm="train", masks=1)
    made = tune(net, old, training, [size.base_steps], seed)[0].model()
    assert isinstance(made, Transducer)
    return made


def _speaker(name: str, tiny: bool) -> Speech:
    if not tiny:
        return datasets.load(f"spoken_digits/{name}")
    draw = torch.Generator().manual_seed(SPEAKERS.index(name))
    takes = [take for _ in DIGITS for take in range(20)]
    waves = [0.1 * torch.randn(800, generator=draw) for _ in takes]
    return Speech(name, waves, [(word,) for word in DIGITS for _ in range(20)], 8000, takes=takes)


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""
    mean = {arm: float(np.mean(values)) for arm, values in figures.items()}
    free = "full, best on new"
    lowest = min((value, arm) for arm, value in mean.items() if arm.startswith("new: "))
    best = mean["score: regularised adapters"]
    tuned = max(mean[f"score: {arm}"] for arm in TUNINGS)
    rise = np.array(figures["old: regularised adapters"]) - np.array(figures["old: base"])
    highest = max(value for arm, value in mean.items() if arm.startswith("score: "))
    return [
        (
            f"full tuning misses {mean[f'new: {free}']:.3f} of the new words at its best, the lowest of all is {lowest[0]:.3f}, "
            f"and its SCORE is {mean[f'score: {free}']:.3f}",
            mean[f"new: {free}"] <= lowest[0] and mean[f"score: {free}"] < NEAR_ZERO,
        ),
        (
            f"the SCORE of regularised adapters is {best:.3f}, of tuning at most {tuned:.3f}, of plain adapters "
            f"{mean['score: plain adapters']:.3f}",
            best >= highest and best >= tuned + ABOVE and best >= mean["score: plain adapters"],
        ),
        (f"they raise the old error rate by {rise.mean():.3f}, at most {rise.max():.3f}", bool((rise <= KAPPA).all())),
    ]


def verdict(figures: dict[str, list[float]]) -> str:
    """Whether all clauses are met, where the base knows the old domain and not yet the new one."""
    if np.mean(figures["old: base"]) > BASE_OLD or np.mean(figures["new: base"]) < BASE_NEW:
        return "not_testable"
    return "holds" if all(met for _, met in clauses(figures)) else "does_not_hold"


def why(figures: dict[str, list[float]]) -> str:
    """The figure behind each clause."""
    return "; ".join(f"({number}) {said}: {'met' if met else 'not met'}" for number, (said, met) in enumerate(clauses(figures), 1))

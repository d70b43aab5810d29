"""The search engine: finds numbers that make a score small, with a log of every trial from which a killed search goes on.

A genome is a vector [gene]; its fitness is one number, lower is better, and must not depend on chance. CMA-ES (Hansen 2016,
https://arxiv.org/abs/1604.00772) comes from the package ``cma``; several metrics at once go to engines/pareto.py. The log is a file of JSON
lines: first what the search is, then one line per new genome. A genome that was scored before is not scored again, so a search that
is started anew on its log walks through the same trials and goes on where it stopped.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AcclimateError, MissingExtraError
from ..files import digest
from ..progress import bar

Genome = np.ndarray


@dataclass
class Found:
    """The best genome of a search, and how it went."""

    best: Genome
    score: float
    start_score: float
    curve: list[float]  # best score so far, per trial
    trials: int
    seconds: float  # that scoring took, earlier runs of the same search included
    stopped: str = ""  # why it ended before its trials were used up, if it did
    names: list[str] = field(default_factory=list)
    held_out: dict[str, float] | None = None  # scores of start and best on what was never used for choosing
    log: Path | None = None

    @property
    def recipe(self) -> dict[str, float]:
        """The best genome by name of gene."""
        return dict(zip(self.names, map(float, self.best), strict=True))

    def report(self) -> dict[str, Any]:
        """What is worth keeping, as plain data."""
        kept = ("score", "start_score", "trials", "seconds", "stopped", "held_out", "curve")
        return {**{name: getattr(self, name) for name in kept}, "recipe": self.recipe}


class TrialLog:
    """Scores by genome in a file of JSON lines; a half-written last line (of a killed run) is dropped.

    Raises AcclimateError if the file belongs to a search with other settings, or holds a broken line.
    """

    def __init__(self, path: Path, what: dict[str, Any], metrics: int = 1):
        self.path, self.metrics = Path(path), metrics
        self.known: dict[str, tuple[list[float], float]] = {}
        self.lines = 0
        head = json.dumps({"search": what}, sort_keys=True)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole, _, half = text.rpartition("\n")
        rows = whole.split("\n") if whole else []
        if not rows:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(head + "\n", encoding="utf-8")
            self.lines = 1
            return
        if rows[0] != head:
            raise AcclimateError(f"{self.path} is the log of another search; remove it, or choose another file")
        for number, row in enumerate(rows[1:], 2):
            try:
                trial = json.loads(row)
                scores, seconds = np.atleast_1d(trial["score"]).astype(float).tolist(), float(trial["seconds"])
                key = self.key(np.array(trial["genome"], float))
            except (ValueError, KeyError, TypeError) as error:
                raise AcclimateError(f"{self.path}:{number} is no trial; remove the line and run again") from error
            if len(scores) == metrics and not np.isnan(scores).any():
                self.known[key] = (scores, seconds)
        self.lines = len(rows)
        if half:
            self.path.write_text(whole + "\n", encoding="utf-8")

    @staticmethod
    def key(genome: Genome) -> str:
        """The hash of a genome."""
        return digest(np.asarray(genome, np.float64).tobytes())

    def score(self, fitness: Callable, genome: Genome) -> list[float]:
        """The scores of a genome [metric], from the log where it has them.

        Raises AcclimateError for a score that is no number, after it was written down; names the genome's line.
        """
        key = self.key(genome)
        if key in self.known:
            return self.known[key][0]
        begun = time.perf_counter()
        given = np.atleast_1d(fitness(genome.copy())).astype(float).tolist()
        if len(given) != self.metrics:
            raise AcclimateError(f"a trial gave {len(given)} scores, but {self.metrics} were asked for")
        seconds = time.perf_counter() - begun
        score = given[0] if self.metrics == 1 else given
        row = {"genome": np.asarray(genome, float).tolist(), "score": score, "seconds": round(seconds, 4)}
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        self.lines += 1
        if any(math.isnan(score) for score in given):
            raise AcclimateError(f"the score of the genome in {self.path}:{self.lines} is not a number; bound what the genes may do")
        self.known[key] = (given, seconds)
        return given

    @property
    def seconds(self) -> float:
        """What all scoring took."""
        return sum(seconds for _, seconds in self.known.values())


def population_size(genes: int) -> int:
    """The usual population: 4 + floor(3 ln n).

    >>> population_size(20)
    12
    """
    return 4 + int(3 * math.log(max(genes, 1)))


def search(
    fitness: Callable[[Genome], float],
    start: Genome,
    *,
    sigma: float,
    trials: int,
    population: int = 0,
    seed: int = 0,
    log: Path,
    names: list[str] | None = None,
    held_out: Callable[[Genome], float] | None = None,
) -> Found:
    """The genome with the lowest fitness among ``trials`` trials of CMA-ES; the start is the first trial.

    Args:
        sigma: standard deviation of the first population around ``start`` [gene].
        population: genomes per generation, 0 = ``population_size``.
        log: file of the trials; an existing one of the same search is gone on with, also with more trials than before.
        names: one per gene, for the recipe.
        held_out: scores the start and the best once more, on data that chose nothing.

    Raises:
        AcclimateError: a score is no number, the log belongs to another search, sigma or trials make no sense.
        MissingExtraError: ``cma`` is not installed.
    """
    try:
        import cma
    except ImportError as error:
        raise MissingExtraError("cma", "search") from error
    start = check(start, sigma, trials, names)
    if len(start) < 2:
        raise AcclimateError("a search needs two genes or more; try a few values of one by hand")
    population = population or population_size(len(start))
    told = TrialLog(log, {"by": "cma", "start": start.tolist(), "sigma": sigma, "population": population, "seed": seed})
    draw = np.random.Generator(np.random.PCG64(seed))
    options = {"popsize": population, "randn": lambda *shape: draw.standard_normal(shape), "seed": math.nan, "verbose": -9, "verb_log": 0}
    strategy = cma.CMAEvolutionStrategy(start, sigma, options)
    curve: list[float] = []
    best, score, stopped = start, math.inf, ""

    with bar(what="search", total=trials, unit="trial") as shown:

        def tried(genome: Genome) -> float:
            nonlocal best, score
            value = told.score(fitness, genome)[0]
            if value < score or not curve:
                best, score = genome.copy(), value
            curve.append(score)
            shown.set_postfix_str(f"best {score:.4f}", refresh=False)
            shown.update(1)
            return value

        start_score = tried(start)
        while len(curve) < trials:
            genomes = [np.asarray(genome, float) for genome in strategy.ask()]
            values = [tried(genome) for genome in genomes[: trials - len(curve)]]
            if len(values) == len(genomes):
                strategy.tell(genomes, values)
                with suppress(StopIteration):
                    stopped = next(iter(strategy.stop()))
                    break
    scored = None
    if held_out is not None:
        scored = {"start": float(held_out(start.copy())), "best": float(held_out(best.copy()))}
    return Found(best, score, start_score, curve, len(curve), told.seconds, stopped, named(names, start), scored, Path(log))


def check(start: Genome, sigma: float, trials: int, names: list[str] | None) -> Genome:
    """The start as a vector of floats; raises AcclimateError for what no search can work with."""
    start = np.array(start, float)
    if start.ndim != 1 or not start.size or not np.isfinite(start).all():
        raise AcclimateError("a search starts from a vector of finite numbers, one per gene")
    if sigma <= 0 or trials < 1:
        raise AcclimateError(f"sigma = {sigma} and trials = {trials}, but a search needs a sigma above 0 and one trial at least")
    if names is not None and len(names) != len(start):
        raise AcclimateError(f"{len(names)} names for {len(start)} genes; give one for each")
    return start


def named(names: list[str] | None, start: Genome) -> list[str]:
    """The names of the genes, numbers where none were given."""
    return list(names) if names is not None else [str(i) for i in range(len(start))]

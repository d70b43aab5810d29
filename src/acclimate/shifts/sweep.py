"""``shift``: methods x targets x seeds on domains that differ, with intervals and a leaderboard; what is done already is read back."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engines.pygda import PREFIX
from ..engines.shift import Data, right
from ..engines.shift.pools import each_once
from ..errors import AcclimateError, nearest
from ..files import digest, read_json, write_json
from ..method import find, names
from ..parts.openness import h_score
from ..parts.statistics import mean_interval
from ..progress import bar, say
from .adapted import Adapted, make_learner, sound_options, text_options
from .arms import Seen, method_named, method_of, plan_of, run
from .domains import SCALES, Shifted, encoded, load_domains, scaled
from .leaderboard import leaderboard

ROOMS = ("domain_generalization", "domain_adaptation", "test_time", "active_learning")
Run = tuple[str, int, str]  # target, seed, method


@dataclass(frozen=True)
class Options:
    """How the runs of a sweep are made; the same options give the same figures."""

    wanted: tuple[str, ...]
    data: str = ""
    encoder: str = "minilm"
    backbone: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # the backbone's settings
    head: str = "linear"
    scale: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    about: dict[str, list[float]] | str = ""

    @property
    def tokens(self) -> int:
        """Token ids of a text, where its encoder learns; 0 where the encoder is frozen."""
        return text_options(self.backbone, self.options, self.encoder)[1]


def shift(
    methods: str | Sequence[str],
    sources: Sequence[str],
    target: str = "",
    *,
    data: str = "",
    settings: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    backbone: str = "",
    options: dict[str, Any] | None = None,
    encoder: str = "minilm",
    scale: str = "auto",
    head: str = "linear",
    about: dict[str, list[float]] | str = "",
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    keep: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Train methods on ``sources`` and measure them on ``target``; without a target each source is left out in turn.

    Args:
        methods: ``dann`` or ``domain_adaptation.dann``, one or several, of adaptation, generalization, test time and active learning.
            Source-free ones start from a model that ERM trained; at test time the target's test rows come in as a stream; active ones
            start from a model of the sources and ask for labels of the target's training rows. ``pygda.SpecReg`` is a model of that
            package (on graphs, where it is installed).
        sources: domains: ``fdu_mtl/books``, folders or files; bare names where ``data`` names the dataset, or one dataset has them all.
            Of graphs (``airports/usa``, or what domain.graphs ``Graph.load`` reads) nodes are classified; of many small ones the graphs.
        settings: of the methods, where all of them know it; ``training``: of the engine (engines.shift Training), where not as the method's
            paper has it; a paper's batch of the source is shared among the sources (arms.training_of).
        plan: at test time the stream's ``rows`` and its own training settings; for active learning ``rounds`` and ``share``.
        backbone: featurizer: a module of ``models/`` (mlp, convnet, resnet, series, text ...); by the shape of the rows if empty.
            ``options`` are its settings.
        encoder: encoder of text: frozen, it makes vectors; with ``backbone="text"`` it learns too.
        scale: ``source`` standardises columns by the sources' training rows, ``each`` every domain by its own, ``none`` leaves them;
            ``auto`` is ``source`` for tables and vectors, ``none`` for all else.
        about: facts of each domain, {name: numbers}, for methods that use them; "names" takes vectors of the domains' names.
        keep: save every learner in ``out``/models/<method>/<target>/<seed>, for ``Adapted.load``.
        workers: processes that run side by side.

    A class of the target that no source has is the class "unknown" to methods for open classes (their class says ``open``),
    whose rows then hold the accuracies ``common`` and ``unknown`` and their harmonic mean, ``h_score``, too.

    Returns rows [{method, target, seed, accuracy, low, high, rows, source_accuracy, seconds, step, choice}], a leaderboard
    [{method, mean, ci95, seconds, targets}] best first, and what was used. With ``out`` the same is written to ``shift.json`` as it goes,
    and runs that stand there already, made with the same options, are not made again.

    A run that cannot be made (the method does not fit the network, the target has a class that no source has, a loss is not finite) leaves
    the others alone: ``failed`` has its {method, target, seed, error}. Raises AcclimateError where none can be made, for domains without
    labels, and for names that nobody knows.
    """
    made = [_planned(name, settings or {}, plan or {}) for name in ([methods] if isinstance(methods, str) else methods)]
    wanted = tuple([*sources, *([target] if target else [])])
    if len(wanted) < 2:
        raise AcclimateError("shift needs at least two domains: sources and a target, or several sources that are left out in turn")
    each_once(wanted)
    if scale not in SCALES:
        raise AcclimateError(f"scale = {scale!r}{nearest(scale, SCALES)}")
    if keep and not out:
        raise AcclimateError("learners are kept in a folder; name it with out")
    if keep and (packaged := [name for name in made if name.startswith(PREFIX)]):
        raise AcclimateError(f"{packaged[0]} lives in its own package and cannot be kept as a learner; leave out keep")
    used = (wanted, data, encoder, backbone, options or {}, head, scale, settings or {}, training or {}, plan or {}, about)
    sweep = _Sweep(Options(*used))
    folder = Path(out) if out else None
    targets = [wanted[-1]] if target else list(sources)
    runs = list(product(targets, seeds, made))
    found = _done(folder, sweep.options, runs)
    failed: dict[Run, dict[str, Any]] = {}
    if folder:
        say(f"results go to {folder / 'shift.json'}" + (f" ({len(found)} of {len(runs)} runs stand there)" if found else ""))
    left = [each for each in runs if each not in found]
    kept = str(folder / "models") if keep and folder else ""
    with bar(what="methods x targets x seeds", total=len(runs), unit="run") as shown, _made(sweep, left, kept, workers) as rows:
        shown.update(len(found))
        for key, row in rows:
            (failed if "error" in row else found)[key] = row
            if folder:
                write_json(folder / "shift.json", _result(found, failed, runs, sources, sweep.options))
            shown.update(1)
    if not found:
        raise AcclimateError(next(iter(failed.values()))["error"])
    return _result(found, failed, runs, sources, sweep.options)


def _result(
    found: dict[Run, dict[str, Any]], failed: dict[Run, dict[str, Any]], runs: Sequence[Run], sources: Sequence[str], options: Options
) -> dict[str, Any]:
    rows, left = [found[key] for key in runs if key in found], [failed[key] for key in runs if key in failed]
    used = {"sources": list(sources), "encoder": options.encoder, "training": options.training, "options": _key(options)}
    return {"rows": rows, "leaderboard": leaderboard(rows), "failed": left, **used}


def _key(options: Options) -> str:
    return digest(asdict(options))


def _done(folder: Path | None, options: Options, runs: Sequence[Run]) -> dict[Run, dict[str, Any]]:
    """Runs that an earlier call wrote with the same options."""
    if folder is None or not (folder / "shift.json").is_file():
        return {}
    told = read_json(folder / "shift.json")
    if told.get("options") != _key(options):
        raise AcclimateError(f"{folder}/shift.json holds a sweep with other options; remove it, or choose another folder")
    rows = {(row["target"], row["seed"], row["method"]): row for row in told["rows"]}
    return {key: row for key, row in rows.items() if key in runs}


def _planned(name: str, settings: dict[str, Any], plan: dict[str, Any]) -> str:
    """A method's full name; its settings and its plan are known."""
    method = method_named(name, settings, ROOMS)
    allowed = [key for kind in plan_of(method.room) for key in kind.settings()]
    if unknown := [key for key in plan if key not in allowed]:
        raise AcclimateError(f"{method.name} takes no {unknown[0]!r} in its plan{nearest(unknown[0], allowed)}")
    return method.name


# runs


@contextmanager
def _made(sweep: "_Sweep", runs: Sequence[Run], kept: str, workers: int) -> Iterator[Iterator[tuple[Run, dict[str, Any]]]]:
    """Rows of runs as they are made, in order: here, or by processes of their own that share the cores."""
    workers = min(workers, len(runs))
    if workers < 2:
        yield ((key, sweep.tried(key, kept)) for key in runs)
        return
    _ = sweep.domains  # checked here, and text encoded once
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (sweep.options, threads)) as pool:
        try:
            yield zip(runs, pool.map(partial(_work, kept=kept), runs), strict=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_here: "list[_Sweep]" = []  # of a worker process


def _start(options: Options, threads: int) -> None:
    os.environ["ACCLIMATE_QUIET"] = "1"
    torch.set_num_threads(threads)
    _here[:] = [_Sweep(options)]


def _work(key: Run, kept: str) -> dict[str, Any]:
    return _here[0].tried(key, kept)


class _Sweep:
    def __init__(self, options: Options):
        self.options = options
        self.seen: dict[str, Seen] = {}

    @cached_property
    def domains(self) -> dict[str, Shifted]:
        options = self.options
        return load_domains(options.wanted, options.data, options.encoder, options.tokens)

    def visible(self, target: str) -> Seen:
        """What is seen where one domain is the target; of the last target only, so that memory does not grow with them."""
        if target not in self.seen:
            self.seen = {target: _visible(self.domains, target, self.options.scale, self._facts())}
        return self.seen[target]

    def tried(self, key: Run, kept: str = "") -> dict[str, Any]:
        """The row of one run, or why there is none."""
        try:
            return self.one(key, kept)
        except AcclimateError as error:
            target, seed, name = key
            return {"method": name, "target": target, "seed": seed, "error": str(error)}

    def one(self, key: Run, kept: str = "") -> dict[str, Any]:
        """The row of one run."""
        target, seed, name = key
        options, seen = self.options, self.visible(target)
        method = method_of(name, options.settings)
        graphs = {domain: each.graph for domain, each in self.domains.items() if each.graph}
        if method.form and not graphs:
            raise AcclimateError(f"{name} works on graphs; give domains that are graphs (citation/acm, airports/usa, a file.npz)")
        if seen.new and not method.open:
            raise AcclimateError(
                f"target {target!r} has the class {seen.new[0]!r}, which no source has, but {method.name} knows the sources' classes only; "
                f"leave its rows out, or use a method for open classes: {', '.join(_open_methods())}"
            )
        own, _ = text_options(options.backbone, options.options, options.encoder)
        backbone, own = sound_options(options.backbone, own, self.domains[target].rate)
        make = partial(
            make_learner, seen.test.x, seen.data.classes, backbone, options.head, options=own, graphs=list(graphs.values())
        )  # fmt: skip
        started = time.perf_counter()
        made = run(method, seen, make, {**options.training, "seed": seed}, options.plan)
        seconds = time.perf_counter() - started
        accuracy, low, high = mean_interval(made.right.numpy())
        opened = h_score(made.right, seen.test.y, len(seen.data.classes)) if seen.new and seen.test.y is not None else {}
        sources = float(np.mean([float(right(method, made.learner, pool).mean()) for pool in seen.sources]))
        if kept:
            text = options.encoder if self.domains[target].text else ""
            adapted = Adapted(method, made.learner, target, options.head, text, options.tokens, seen.scale, seed, graphs)
            adapted.save(Path(kept) / name / target.strip("/").replace("/", "-") / str(seed))
        return {
            "method": name, "target": target, "seed": seed, "accuracy": accuracy, "low": low, "high": high, "rows": len(seen.test),
            "source_accuracy": sources, "seconds": seconds, **made.told, **opened,
        }  # fmt: skip

    def _facts(self) -> dict[str, Tensor]:
        about, wanted = self.options.about, self.options.wanted
        if not about:
            return {}
        if about == "names":
            texts = [name.replace("_", " ").replace("/", " ") for name in wanted]
            return dict(zip(wanted, encoded(texts, self.options.encoder), strict=True))
        if isinstance(about, str):
            raise AcclimateError(f"about = {about!r}, but must be 'names' or facts of each domain, {{name: numbers}}")
        if missing := [name for name in wanted if name not in about]:
            raise AcclimateError(f"about has no facts of {missing[0]!r}; it has: {', '.join(about)}")
        return {name: torch.tensor(about[name], dtype=torch.float32) for name in wanted}


def _open_methods() -> list[str]:
    kinds: dict[str, Any] = {name: find(name) for room in ROOMS for name in names(room)}
    return [name.partition(".")[2] for name, kind in kinds.items() if getattr(kind, "open", False)]


def _visible(every: dict[str, Shifted], name: str, scale: str, facts: dict[str, Tensor]) -> Seen:
    """One domain as the target, all others as sources."""
    if every[name].graph and scale not in ("auto", "none"):
        raise AcclimateError(
            f"scale = {scale!r} is for rows of numbers, but {name!r} is a graph, whose features stay as they are; leave it out"
        )
    classes = list(dict.fromkeys(c for key, domain in every.items() if key != name for c in domain.classes))
    new = [c for c in every[name].classes if c not in classes]
    for key, domain in every.items():
        if missing := [c for c in classes if c not in domain.classes]:
            say(f"domain {key!r} has no rows of {len(missing)} of {len(classes)} classes, e.g. {missing[0]!r}")
    parts, used = scaled({key: domain.numbered(classes) for key, domain in every.items()}, name, scale)
    for key, fact in facts.items():
        parts[key] = {split: replace(pool, about=fact) for split, pool in parts[key].items()}
    own, sources = parts[name], [own for key, own in parts.items() if key != name]
    data = Data(
        [each["train"] for each in sources], own["train"].unlabelled(), [each["validation"] for each in sources], classes,
        oracle=own["validation"],
    )  # fmt: skip
    return Seen(data, own["test"], [each["test"] for each in sources], own["train"], used, new)

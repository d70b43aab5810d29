"""Distribution shift as a verb: methods trained on some domains and measured on one they did not see labels of.

``shift`` runs methods x targets x seeds and returns plain data with intervals: accuracy on the target's test rows, on the sources', and
seconds. Text becomes vectors of a frozen encoder, made once and kept in the cache; images, series and tables go in as they are.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import datasets
from .domain import Domain
from .domain.arrays import ArrayDomain, open_domain
from .engines.shift import Data, Learner, Pool, Training, fit, right
from .errors import AcclimateError, nearest
from .files import atomic_file, cache_dir, digest, write_json
from .method import find, names
from .model.arrays import backbone as new_backbone
from .parts.statistics import mean_interval, seed_interval
from .progress import bar, say

if TYPE_CHECKING:
    from .model import Model

ROOMS = ("domain_generalization", "domain_adaptation")
SCALES = ("auto", "none", "source", "each")
SPLITS = ("train", "validation", "test")
Parts = dict[str, Pool]


@dataclass
class Shifted:
    """A domain as pools by split (train, validation, test) and its classes by number."""

    parts: Parts
    classes: list[str]

    def numbered(self, classes: Sequence[str]) -> Parts:
        """The pools with labels as numbers of these classes."""
        table = torch.tensor([classes.index(c) for c in self.classes])
        return {split: replace(pool, y=None if pool.y is None else table[pool.y]) for split, pool in self.parts.items()}


def shift(
    methods: str | Sequence[str],
    sources: Sequence[str],
    target: str = "",
    *,
    data: str = "",
    settings: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    backbone: str = "",
    encoder: str = "minilm",
    scale: str = "auto",
    head: str = "linear",
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Train methods on ``sources`` and measure them on ``target``; without a target each source is left out in turn.

    Args:
        methods: ``dann`` or ``domain_adaptation.dann``, one or several; source-free ones start from a model that ERM trained.
        sources: domains: ``fdu_mtl/books``, folders or files; bare names where ``data`` names the dataset, or one dataset has them all.
        settings: of the methods, where all of them know it; ``training``: of the engine (engines.shift Training).
        backbone: featurizer: a module of ``models/`` (mlp, convnet, series); by the shape of the rows if empty.
        encoder: frozen encoder that makes vectors of text.
        scale: ``source`` standardises columns by the sources' training rows, ``each`` every domain by its own, ``none`` leaves them;
            ``auto`` is ``source`` for tables and vectors, ``none`` for all else.

    Returns rows [{method, target, seed, accuracy, low, high, rows, source_accuracy, seconds, step, choice}], a leaderboard
    [{method, mean, ci95, seconds, targets}] best first, and what was used. With ``out`` the same is written to ``shift.json`` as it goes.

    Raises AcclimateError with one line for a class of the target that no source has, a domain without labels, and what fit raises.
    """
    made = [_method(name, settings or {}) for name in ([methods] if isinstance(methods, str) else methods)]
    wanted = [*sources, *([target] if target else [])]
    if len(wanted) < 2:
        raise AcclimateError("shift needs at least two domains: sources and a target, or several sources that are left out in turn")
    if scale not in SCALES:
        raise AcclimateError(f"scale = {scale!r}{nearest(scale, SCALES)}")
    domains = load_domains(wanted, data, encoder)
    targets = [wanted[-1]] if target else list(sources)
    found: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    file = Path(out) / "shift.json" if out else None
    if file:
        say(f"results go to {file}")
    with bar(what="methods x targets x seeds", total=len(targets) * len(seeds) * len(made), unit="run") as shown:
        for name in targets:
            seen = _visible(domains, name, scale)
            make = partial(make_learner, seen.test.x, seen.data.classes, backbone, head)
            for seed, method in product(seeds, made):
                row = _one(method, seen, make, {**(training or {}), "seed": seed})
                found.append({"method": method.name, "target": name, "seed": seed, **row})
                result = {
                    "rows": found,
                    "leaderboard": leaderboard(found),
                    "sources": list(sources),
                    "encoder": encoder,
                    "training": training or {},
                }
                if file:
                    write_json(file, result)
                shown.update(1)
    return result


def leaderboard(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Methods by mean accuracy over targets, best first; the interval is over targets where there are several, over seeds otherwise.

    >>> rows = [{"method": "a", "target": t, "seed": 0, "accuracy": v, "seconds": 1.0} for t, v in (("x", 0.5), ("y", 0.7))]
    >>> [(row["method"], round(row["mean"], 2), row["targets"]) for row in leaderboard(rows)]
    [('a', 0.6, 2)]
    """
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        by_target = {t: float(np.mean([row["accuracy"] for row in own if row["target"] == t])) for t in {row["target"] for row in own}}
        values = list(by_target.values()) if len(by_target) > 1 else [row["accuracy"] for row in own]
        mean, half = seed_interval(values) if len(values) > 1 else (values[0], None)
        seconds = float(np.mean([row["seconds"] for row in own]))
        found.append({"method": method, "mean": mean, "ci95": half, "seconds": seconds, "targets": len(by_target), "by_target": by_target})
    return sorted(found, key=lambda row: -row["mean"])


def _method(name: str, settings: dict[str, Any]) -> Any:
    known = [full for room in ROOMS for full in names(room)]
    full = name if "." in name else next((each for each in known if each.partition(".")[2] == name), "")
    if full not in known:
        raise AcclimateError(
            f"no method {name!r} of {' or '.join(ROOMS)}{nearest(name, [*known, *(each.partition('.')[2] for each in known)])}"
        )
    cls: Any = find(full)
    return cls(**settings)


def _one(method: Any, seen: "_Seen", make: Callable[[int], Learner], training: dict[str, Any]) -> dict[str, Any]:
    """One method on one target with one seed; ``make`` gives a learner drawn from a seed."""
    data, seed = seen.data, training["seed"]
    started = time.perf_counter()
    learner = make(seed)
    if method.source_free():
        fit(method.vendor(), learner, replace(data, target=None, oracle=None), Training(**training))
        if method.fresh and data.target:
            model, learner = learner, make(seed + 1)
            method.adopt(learner, model, data.target.x)
    elif "target" not in method.asked():
        data = replace(data, target=None)
    done = fit(method, learner, data, Training(**{**method.training, **training}))
    seconds = time.perf_counter() - started
    accuracy, low, high = mean_interval(right(method, learner, seen.test).numpy())
    sources = float(np.mean([float(right(method, learner, pool).mean()) for pool in seen.sources]))
    return {
        "accuracy": accuracy, "low": low, "high": high, "rows": len(seen.test), "source_accuracy": sources, "seconds": seconds,
        "step": done.kept, "choice": done.choice,
    }  # fmt: skip


@dataclass
class _Seen:
    """What a run may see, and the rows that it is measured on at the end: the target's and the sources' test rows."""

    data: Data
    test: Pool
    sources: list[Pool]


def _visible(every: dict[str, Shifted], name: str, scale: str) -> _Seen:
    """One domain as the target, all others as sources."""
    classes = list(dict.fromkeys(c for key, domain in every.items() if key != name for c in domain.classes))
    if new := [c for c in every[name].classes if c not in classes]:
        raise AcclimateError(
            f"target {name!r} has the class {new[0]!r}, which no source has; leave its rows out, or use a method for open classes"
        )
    for key, domain in every.items():
        if missing := [c for c in classes if c not in domain.classes]:
            say(f"domain {key!r} has no rows of {len(missing)} of {len(classes)} classes, e.g. {missing[0]!r}")
    parts = _scaled({key: domain.numbered(classes) for key, domain in every.items()}, name, scale)
    own, sources = parts[name], [own for key, own in parts.items() if key != name]
    data = Data(
        [each["train"] for each in sources], own["train"].unlabelled(), [each["validation"] for each in sources], classes,
        oracle=own["validation"],
    )  # fmt: skip
    return _Seen(data, own["test"], [each["test"] for each in sources])


def _scaled(every: dict[str, Parts], target: str, scale: str) -> dict[str, Parts]:
    sample = next(iter(every.values()))["train"].x
    how = ("source" if sample.ndim == 2 else "none") if scale == "auto" else scale
    if how == "none":
        return every
    found = {}
    pooled = torch.cat([parts["train"].x for key, parts in every.items() if key != target])
    for key, parts in every.items():
        rows = parts["train"].x if how == "each" else pooled
        over = [0, *range(2, rows.ndim)]
        mean, width = rows.mean(over, keepdim=True), rows.std(over, keepdim=True, unbiased=False)
        width = torch.where(width > 1e-8, width, torch.ones_like(width))  # a column that never changes stays as it is
        found[key] = {split: replace(pool, x=(pool.x - mean) / width) for split, pool in parts.items()}
    return found


def make_learner(x: Tensor, classes: Sequence[str], backbone: str = "", head: str = "linear", seed: int = 0) -> Learner:
    """A learner for rows like x [row, *shape], drawn from the seed: mlp for vectors, series for [channel, time], convnet for images."""
    shape = x.shape[1:]
    name = backbone or {1: "mlp", 2: "series", 3: "convnet"}.get(len(shape), "")
    if not name:
        raise AcclimateError(f"no backbone is made for rows of the shape {list(shape)}; name one")
    width = {"inputs": shape[0]} if name == "mlp" else {"channels": shape[0]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Learner(new_backbone(name, width), classes, head=head)


# domains to pools


def load_domains(wanted: Sequence[str], data: str = "", encoder: str = "minilm") -> dict[str, Shifted]:
    """Domains by name; one without held-out rows gives a fifth of its training rows.

    Raises AcclimateError for names nobody knows and domains without labels.
    """
    found = {}
    for name, ref in zip(wanted, _refs(wanted, data), strict=True):
        domain = open_domain(name, ref)
        if isinstance(domain, ArrayDomain):
            parts, classes = {split: Pool.of(rows, name) for split, rows in domain.splits.items()}, list(domain.classes)
        else:
            parts, classes = _text_pools(domain, name, encoder)
        found[name] = Shifted(_held_out(parts, name), classes)
    return found


def _refs(wanted: Sequence[str], data: str) -> list[str]:
    if data:
        return [f"{data}/{name}" for name in wanted]
    bare = [name for name in wanted if "/" not in name and not Path(name).expanduser().exists()]
    if not bare:
        return list(wanted)
    fitting = [each for each in datasets.names() if {*bare} <= {*datasets.domains(each)}]
    if not fitting:
        known = [f"{each}/{domain}" for each in datasets.names() for domain in datasets.domains(each)]
        raise AcclimateError(f"no dataset has all of {', '.join(bare)}{nearest(bare[0], known)}; write dataset/domain, or name --data")
    if len(fitting) > 1:
        raise AcclimateError(f"{', '.join(fitting)} all have {', '.join(bare)}; say which with --data")
    say(f"{', '.join(bare)}: domains of {fitting[0]}")
    return [f"{fitting[0]}/{name}" if name in bare else name for name in wanted]


def _text_pools(domain: Domain, name: str, encoder: str) -> tuple[Parts, list[str]]:
    if domain.form != "labelled":
        raise AcclimateError(f"domain {name!r} has no labels ({domain.form}); shift needs labelled rows, for the target to be measured by")
    labels = {split: [str(row) for row in domain.rows(split)["label"]] for split in domain.splits}
    classes = sorted({label for each in labels.values() for label in each})
    parts = {}
    for split, own in labels.items():
        if own:
            vectors = encoded(domain.rows(split)["text"], encoder)
            parts[split] = Pool(name, vectors, torch.tensor([classes.index(label) for label in own]))
    return parts, classes


def encoded(texts: Sequence[str], encoder: str = "minilm") -> Tensor:
    """Vectors of texts by a frozen encoder [text, width], kept in the cache by their content."""
    from .engines.embed import Encoder

    model = _encoder(encoder)
    return kept([model.fingerprint, list(texts)], lambda: Encoder(model).encode(list(texts)))


def kept(key: Any, make: Callable[[], Tensor]) -> Tensor:
    """A tensor that is made once and then read from the cache, by what identifies it."""
    from safetensors.torch import load_file, save_file

    path = cache_dir("vectors") / f"{digest(key)}.safetensors"
    if not path.is_file():
        made = make().contiguous()
        with atomic_file(path) as temporary:
            save_file({"x": made}, temporary)
    return load_file(path)["x"]


@lru_cache(maxsize=1)
def _encoder(ref: str) -> "Model":
    from .model import Model

    return Model.load(ref, kind="encoder")


def _held_out(parts: Parts, name: str) -> Parts:
    """Train, validation and test; a fifth of the training rows, always the same, stands in for a split that is missing."""
    if "train" not in parts:
        raise AcclimateError(f"domain {name!r} has no training rows")
    found = dict(parts)
    for number, split in enumerate(("test", "validation")):
        if split not in found:
            pool = found["train"]
            order = np.random.default_rng(number).permutation(len(pool))
            cut = max(1, len(pool) // 5)
            found[split], found["train"] = pool.select(np.sort(order[:cut])), pool.select(np.sort(order[cut:]))
    return {split: found[split] for split in SPLITS}


__all__ = ["Shifted", "encoded", "kept", "leaderboard", "load_domains", "make_learner", "shift"]

"""All adapters side by side on one task: what each learns of a domain, what it forgets, and what it costs.

``seedling-xs`` reads law (acts of Canada) for the same number of steps with every adapter at its default settings (see SETTINGS for the
exceptions, RATES for learning rates), and with all its weights. Measured: bits per byte on held-out law and on general text (Wikipedia,
beside the start model: what was forgotten), trained weights, seconds of training, and the peak memory of a process of its own. Run it with
``python -m acclimate.experiments.adapter_table``; ``--record`` keeps the result in bench/results and writes docs/adapters.md. Rows are kept
in the cache as they are made, so a run that was stopped goes on.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import catalogue, datasets
from ..domain import Domain
from ..errors import AcclimateError
from ..files import cache_dir, digest, file_digest, read_json, write_json, write_text
from ..kinds import Adapter
from ..measure import limited
from ..method import find, load, names
from ..progress import bar
from ..report import figures
from ..runs import provenance
from .fixture import documents, tiny_model

if TYPE_CHECKING:
    from ..model import Model

DOMAIN, GENERAL, FULL = "legal", "wikipedia", "(all weights)"
SETTINGS: dict[str, dict[str, Any]] = {  # what defaults made for encoders would break: rows are packed, and nobody may look ahead
    "adapters.loreft": {"prefix_positions": 0},
    "adapters.mixda": {"gate_reads": "token"},
}
RATES = {
    FULL: 1e-3, "adapters.prompt": 1e-2, "adapters.prefix": 1e-2, "adapters.ia3": 1e-2, "adapters.vera": 1e-2, "adapters.bitfit": 1e-2,
    "adapters.mixda": 3e-4,  # at 3e-3 its wide gate shuts for good: the layer itself has all of the output, and the adapters none
}  # fmt: skip
RATE = 3e-3  # of the others


def side_by_side(tiny: bool = False, record: bool = False, steps: int = 150, only: Iterable[str] = ()) -> dict[str, Any]:
    """Train, measure, and put in order of the bits per byte in the domain, best first; an adapter that does not fit says why.

    ``only`` names the adapters to measure; all of them if empty.
    """
    root = catalogue.checkout()
    if record and (tiny or root is None):
        raise AcclimateError("a result is recorded from a full run in a checkout of the project; leave out --record")
    start = _start(tiny)
    rows: list[dict[str, Any]] = [{"name": "(before)", **_bits(start, tiny), "trained": 0, "seconds": None, "memory": None}]
    adapters = [*only] or [name for name in names("adapters") if issubclass(find(name), Adapter)]
    for name in bar([FULL, *adapters], "adapters", unit="adapter"):
        rows.append({"name": name, **(measured(name, True, 2) if tiny else _kept(name, steps))})
    for row in rows:
        if "general" in row:
            row["forgotten"] = row["general"] - rows[0]["general"]
    rows[1:] = sorted(rows[1:], key=lambda row: row.get("domain", float("inf")))
    found = {"rows": rows, "domain": DOMAIN, "general": GENERAL, "steps": steps, "provenance": provenance(0)}
    if record and root is not None:
        write_json(root / "bench" / "results" / "adapter_table.json", found)
        write_text(root / "docs" / "adapters.md", page(found))
        write_text(root / "docs" / "adapters.svg", plot(found))
    return found


def _kept(name: str, steps: int) -> dict[str, Any]:
    """One adapter's row, from the cache where it was made before by the same code of this table and of the method."""
    own = [] if name == FULL else [file_digest(catalogue.PACKAGE / "methods" / f"{name.replace('.', '/')}.py")]
    used = digest([name, steps, file_digest(Path(__file__)), *own])
    path = cache_dir("adapter_table") / f"{name.strip('()').replace(' ', '_')}-{used}.json"
    if not path.is_file():
        write_json(path, _apart(name, steps))
    return read_json(path)


def _apart(name: str, steps: int) -> dict[str, Any]:
    """One adapter, in a process of its own so that its peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, name, False, steps).result()


def measured(name: str, tiny: bool, steps: int) -> dict[str, Any]:
    """Figures of one adapter, or why there are none."""
    from ..engines.train import Training, train

    size: dict[str, Any] = {"batch_tokens": 64, "row_tokens": 24} if tiny else {"batch_tokens": 4096, "row_tokens": 256}
    plan = Training(steps=steps, lr=RATES.get(name, RATE), watch_every=10**6, checkpoint_every=10**6, **size)
    adapter: Any = None if name == FULL else load(name, **SETTINGS.get(name, {}))
    with tempfile.TemporaryDirectory() as folder:
        try:
            law, objective = _domain(DOMAIN, tiny), load("objectives.causal_lm")
            done = train(_start(tiny), objective, law, plan, Path(folder) / "run", adapter=adapter, name="adapted")
        except AcclimateError as error:
            return {"error": str(error)}
    cost = done.cost
    costs = {"trained": cost["trained_parameters"], "seconds": cost["seconds"], "memory": cost["peak_memory_bytes"]}
    return {**_bits(done.model, tiny), **costs}


def _start(tiny: bool) -> "Model":
    from ..model import Model

    return tiny_model("causal") if tiny else Model.load("seedling-xs")


def _domain(name: str, tiny: bool) -> Domain:
    return Domain.from_texts(name, documents(name, 60)) if tiny else datasets.load(f"lm/{name}")


def _bits(model: "Model", tiny: bool) -> dict[str, float]:
    from ..engines.score import bits_per_byte

    most = 300 if tiny else 40_000
    texts = {key: limited(_domain(name, tiny), "test", most) for key, name in (("domain", DOMAIN), ("general", GENERAL))}
    return {key: float(bits_per_byte(model, some).value) for key, some in texts.items()}


def plot(found: dict[str, Any]) -> str:
    """docs/adapters.svg: bits per byte gained in the domain against those lost outside."""
    start = found["rows"][0]["domain"]
    points = [
        (row["name"].removeprefix("adapters."), start - row["domain"], row["forgotten"]) for row in found["rows"][1:] if "general" in row
    ]
    return figures.tradeoff(
        points, f"gained on {found['domain']}, bits per byte (right is better)", "forgotten, bits per byte (down is better)"
    )


def page(found: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        "# Adapters side by side",
        "",
        f"`seedling-xs` after {found['steps']} steps on {found['domain']} text with each adapter. Bits per byte on held-out text, lower is",
        f"better; forgotten is the rise on {found['general']}. Peak memory is of a process that does nothing else; seconds",
        "are of one core, which other work may have shared. Run it again with",
        "`python -m acclimate.experiments.adapter_table --record`.",
        "",
        "![What each adapter learned of the domain against what it forgot](adapters.svg)",
        "",
        "| adapter | domain | forgotten | trained weights | seconds | peak MB | rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['error'].replace('|', '/')} | | | | |")
            continue
        seconds, memory = ("" if row["seconds"] is None else f"{row['seconds']:.0f}"), row["memory"]
        megabytes = "" if memory is None else f"{memory / 1e6:.0f}"
        rate = f"{RATES.get(row['name'], RATE):g}" if row["trained"] else ""
        cells = [row["name"], f"{row['domain']:.3f}", f"{row['forgotten']:+.3f}", f"{row['trained']:,}", seconds, megabytes, rate]
        lines.append(f"| {' | '.join(cells)} |")
    said = found["provenance"]
    return "\n".join([*lines, "", f"Measured {said['created'][:10]} on {said['machine']}, torch {said['torch']}.", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a run of seconds that proves only that the code runs")
    parser.add_argument("--record", action="store_true", help="write bench/results/adapter_table.json and docs/adapters.md")
    parser.add_argument("--steps", type=int, default=150, help="training steps of each adapter")
    print(json.dumps(side_by_side(**vars(parser.parse_args())), indent=2))

"""A run directory: steps cached by the hash of all that went into them, resumable after a kill, with provenance.

<folder>/recipe.yaml      the resolved recipe: running it again gives the same figures on the same machine
<folder>/run.json         versions, machine, hashes
<folder>/steps/<name>/    step.json (key, cost), model/ (what it made), work/ (checkpoints while it trains, metrics.jsonl)
<folder>/report.html, report.json
"""

import datetime
import itertools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import digest, read_json, write_json
from .progress import say


class Run:
    """One run directory. Steps are made at most once for one key."""

    def __init__(self, folder: str | Path, seed: int = 0):
        self.folder, self.seed = Path(folder), seed
        self.folder.mkdir(parents=True, exist_ok=True)
        self.made: dict[str, dict[str, Any]] = {}

    def step(self, name: str, parts: Any, make: Callable[[Path], tuple[Any, dict]]) -> Any:
        """The model of step ``name``: loaded if a step with the same ``parts`` is there, else made, saved and checked.

        ``make(work)`` gets a folder for checkpoints and returns (Model, facts for step.json), or (folder of a saved model, facts).
        """
        from . import __version__
        from .model import open_model

        folder = self.folder / "steps" / name
        key = digest([parts, __version__])
        facts = read_json(folder / "step.json") if (folder / "step.json").exists() else {}
        if facts.get("key") == key:
            model = open_model(str(folder / "model"))
            model.name = name
            say(f"{name}: already made, read from {folder}")
        else:
            began = read_json(folder / "began.json")["key"] if (folder / "began.json").exists() else None
            if began != key:
                shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / "began.json", {"key": key, "parts": parts})
            say(f"{name}: working in {folder}")
            model, facts = make(folder / "work")
            if isinstance(model, Path):
                shutil.rmtree(folder / "model", ignore_errors=True)
                model.replace(folder / "model")
                model = open_model(str(folder / "model"))
            else:
                model.save(folder / "model")
            model.name = name
            facts = {"key": key, **facts}
            write_json(folder / "step.json", facts)
            if (folder / "work").exists():
                _tidy(folder / "work")
        model.source = str((folder / "model").resolve())  # what an adapter trained on it names as its base
        self.made[name] = facts
        return model


def _tidy(work: Path) -> None:
    from .engines.train import tidy

    tidy(work)


def provenance(seed: int) -> dict[str, Any]:
    """Versions, machine, seed and source state, for reports and evidence."""
    import torch
    import transformers

    from . import __version__

    return {
        "acclimate": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": machine(),
        "seed": seed,
        "git": _commit(),
        "created": now(),
    }


def machine() -> str:
    """Processor, cores, memory, accelerator: one line."""
    import psutil
    import torch

    name = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB{gpu}"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def new_folder(title: str) -> Path:
    """A fresh run folder under ./runs (or $ACCLIMATE_RUNS), named by title and time."""
    root = Path(os.environ.get("ACCLIMATE_RUNS") or "runs")
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    names = (f"{title}-{stamp}" + (f"-{number}" if number else "") for number in itertools.count())
    return next(root / name for name in names if not (root / name).exists())

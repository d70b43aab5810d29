"""What every bench shares: versions, the machine and its load, interleaved timing, one place for results."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from acclimate import files

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("acclimate", "torch", "transformers", "tokenizers", "tiktoken", "datasets", "peft", "accelerate", "safetensors", "numpy")


def versions(*more: str) -> dict[str, str]:
    """Version of Python, of the packages every bench stands on, of ``more``, and the commit (``+`` where files differ from it)."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"commit": _commit()}


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(RESULTS.parent), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """The processor, the cores this process may use, memory, and how busy the machine is now (load average over 1, 5, 15 minutes)."""
    import psutil

    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds (all threads, and children that have ended) of one call."""
    before, start = os.times(), time.perf_counter()
    work()
    wall, after = time.perf_counter() - start, os.times()
    return wall, sum(after[:4]) - sum(before[:4])


def rounds(a: Callable[[], Any], b: Callable[[], Any], n: int = 5) -> dict[str, Any]:
    """Time two callables in turn, A B A B ..., ``n`` times each, so that a busy machine is busy for both.

    Returns seconds per round ("a" and "b": "wall", "cpu") and, under "ratio" (wall) and "ratio_cpu", the median, least and most
    of a / b over the rounds: how many times faster b is.
    """
    if n < 1:
        raise ValueError(f"n is {n}, but must be at least 1")
    found: dict[str, Any] = {name: {"wall": [], "cpu": []} for name in "ab"}
    for _ in range(n):
        for name, work in (("a", a), ("b", b)):
            wall, cpu = _seconds(work)
            found[name]["wall"].append(wall)
            found[name]["cpu"].append(cpu)
    for key, clock in (("ratio", "wall"), ("ratio_cpu", "cpu")):
        ratios = [x / max(y, 1e-9) for x, y in zip(found["a"][clock], found["b"][clock], strict=True)]
        found[key] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return found


def write(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/<name>.json``, with versions, the machine and the time beside what was measured."""
    path = RESULTS / f"{name}.json"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    files.write_json(path, _short({"written": stamp, "versions": versions(), "machine": machine()} | result))
    return path


def _short(value: Any) -> Any:
    """Floats to four significant digits: more would be noise."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value

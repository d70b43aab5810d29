"""How long people wait before anything happens: importing the package and asking for help, against peers.

    python bench/start.py [rounds] [environment ...]

Every command is a process of its own; all take turns, round by round, so that a busy machine is busy for each. CPU seconds are
those of the process and its children, with compiled files in place (one untimed call before). Further environments (folders
with bin/) are searched for peers that are not installed beside acclimate; what is found nowhere is left out and named.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

from common import machine, write

GOAL_CPU = 0.3  # seconds, for both of ours
COMMANDS = {  # name -> distribution, program, arguments
    "bare python": ("", "python", ["-c", "pass"]),
    "import acclimate": ("acclimate", "python", ["-c", "import acclimate"]),
    "acclimate --help": ("acclimate", "acclimate", ["--help"]),
    "import peft": ("peft", "python", ["-c", "import peft"]),
    "import transformers": ("transformers", "python", ["-c", "import transformers"]),
    "mergekit-yaml --help": ("mergekit", "mergekit-yaml", ["--help"]),
    "lm_eval --help": ("lm_eval", "lm_eval", ["--help"]),
}


def place(distribution: str, program: str, environments: list[Path]) -> Path | None:
    """The program of the first environment that has it, and the distribution."""
    for home in environments:
        path = home / "bin" / program
        if path.exists() and (not distribution or version_in(home, distribution)):
            return path
    return None


def version_in(home: Path, distribution: str) -> str:
    """The version installed in an environment, "" for none."""
    folders = [str(path) for path in home.glob("lib/python*/site-packages")]
    return next((found.version for found in distributions(name=distribution, path=folders)), "")


def once(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(number: int = 5, *environments: str) -> None:
    """Measure, write, print."""
    before = machine()["load_average"]
    homes = [Path(sys.prefix), *map(Path, environments)]
    found = {name: (place(dist, program, homes), dist, words) for name, (dist, program, words) in COMMANDS.items()}
    commands = {name: [str(path), *words] for name, (path, _, words) in found.items() if path}
    for command in commands.values():
        once(command)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(number):
        for name, command in commands.items():
            seconds[name].append(once(command))
    rows = {}
    for name, pairs in seconds.items():
        path, dist, _ = found[name]
        wall, cpu = zip(*pairs, strict=True)
        rows[name] = {
            "version": version_in(path.parent.parent, dist) if dist else sys.version.split()[0],
            **{f"{clock}_median": statistics.median(values) for clock, values in (("cpu", cpu), ("wall", wall))},
            "cpu": cpu,
            "wall": wall,
        }
    ours = {name: rows[name]["cpu_median"] for name in ("import acclimate", "acclimate --help")}
    result = write(
        "start",
        {
            "command": " ".join(["python bench/start.py", str(number), *["<environment>"] * len(environments)]),
            "load_average_before": before,
            "rounds": number,
            "goal_cpu_seconds": GOAL_CPU,
            "met": {name: value < GOAL_CPU for name, value in ours.items()},
            "commands": rows,
            "not_installed": [name for name, (path, _, _) in found.items() if not path],
        },
    )
    for name, row in rows.items():
        print(f"{name:22} {row['version']:10} {row['cpu_median']:.2f} CPU s, {row['wall_median']:.2f} s")
    print(result)


if __name__ == "__main__":
    main(*[int(word) for word in sys.argv[1:2]], *sys.argv[2:])

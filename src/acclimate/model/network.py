"""What every model shares, of text or of arrays: its weights, their hash, and saving whole or not at all."""

import hashlib
import os
import platform
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import AcclimateError
from ..files import atomic_dir, write_json

MANIFEST = "acclimate.json"
ROUNDING = 1e-4  # of the largest answer


class Network:
    """A named torch module that can be saved, read back and compared; subclasses say how it is written and probed."""

    name: str
    net: Any
    kind: str
    source: str
    notes: dict[str, Any]
    _hashed: tuple[int, str] | None

    def to(self, device: str) -> Self:
        """Move the weights; returns the model itself."""
        self.net.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Hash of all weights, names and shapes (16 hex digits); reckoned again only when a weight was written to."""
        state = hash(tuple((id(p), p._version) for p in (*self.net.parameters(), *self.net.buffers())))
        if self._hashed is None or self._hashed[0] != state:
            self._hashed = (state, fingerprint(self.net))
        return self._hashed[1]

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(p.numel() * p.element_size() for p in self.net.parameters())

    def parameters(self, trainable: bool = False) -> int:
        """How many weights there are, or how many of them learn."""
        return sum(p.numel() for p in self.net.parameters() if p.requires_grad or not trainable)

    @abstractmethod
    def probe(self) -> Tensor:
        """What the network answers to one fixed input, in fp32, to compare two copies of it."""

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write weights and configuration into a folder."""

    @abstractmethod
    def _compare(self, folder: Path) -> None:
        """Raise AcclimateError where the folder does not hold what is in memory."""

    def save(self, folder: str | Path, card: str = "") -> Path:
        """Save with a manifest and a card, then read it again and compare (a probe, or every tensor).

        The folder appears whole or not at all. Raises AcclimateError if what was read back differs.
        """
        folder = Path(folder)
        with atomic_dir(folder) as temporary:
            self._write(temporary)
            write_json(temporary / MANIFEST, self._manifest())
            (temporary / "README.md").write_text(card or self._card(), encoding="utf-8")
            self._compare(temporary)
        return folder

    def _manifest(self) -> dict[str, Any]:
        import transformers

        from .. import __version__

        return {
            "name": self.name,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "made": self.notes.get("made", {}),
            "versions": {
                "acclimate": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        }

    def _card(self, library: str = "acclimate", relation: str = "finetune") -> str:
        made = self.notes.get("made", {})
        base = made.get("base", self.source)
        parent = [f"base_model: {base}", f"base_model_relation: {relation}"] if base else []
        front = ["---", f"library_name: {library}", *parent, "tags: [acclimate]", "---"]
        lines = [f"# {self.name}", "", f"Adapted from `{base}` with acclimate." if base else "Made with acclimate.", ""]
        lines += [f"- {key}: {value}" for key, value in made.items()]
        return "\n".join(front + lines) + "\n"

    def _same_answers(self, other: "Network", folder: Path) -> None:
        """The same bits; or nearly the same, where the weights are equal: sums may be taken in another order at another place in memory."""
        mine, theirs = (torch.nan_to_num(each.probe()) for each in (self, other))
        gap = (mine - theirs).abs().max().item() if mine.shape == theirs.shape else float("nan")
        near = gap <= ROUNDING * (1 + mine.abs().max().item())
        if gap and not (near and fingerprint(self.net) == fingerprint(other.net)):
            raise AcclimateError(
                f"{folder}: the saved model answers a probe differently from the one in memory (largest gap {gap:.2g}); not kept"
            )


def default_device() -> str:
    """``$ACCLIMATE_DEVICE``, else cuda where there is one, else cpu."""
    return os.environ.get("ACCLIMATE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def fingerprint(net: nn.Module) -> str:
    """Hash of a module's weights: names, shapes, types and bytes (16 hex digits)."""
    total = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]

"""A network for images and other arrays: a backbone of ``models/`` with or without a head that knows its classes by name."""

import ast
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import AcclimateError, nearest
from ..files import read_json, write_json
from .network import MANIFEST, Network, default_device

MODELS = Path(__file__).parent.parent / "models"  # a floor above: known by its files, imported by name at run time
TYPE = "acclimate_arrays"


class FeatureModel(nn.Module):
    """A featurizer x -> [row, width] with a head [row, width] -> [row, class], dropout between them; without a head it gives features."""

    def __init__(self, featurizer: nn.Module, head: nn.Module | None = None, dropout: float = 0.0, classes: Sequence[str] = ()):
        super().__init__()
        self.featurizer, self.dropout, self.head = featurizer, nn.Dropout(dropout), head or nn.Identity()
        self.classes = list(classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes [row, class]."""
        return self.head(self.dropout(self.featurizer(x)))


@dataclass
class ArrayModel(Network):
    """A named FeatureModel: ``kind`` is "classifier" with a head and "featurizer" without one.

    Its backbone is a module of ``models/`` that names its class ``BACKBONE``; an instance holds ``settings`` (what it was made with),
    ``features`` (its width) and ``inputs`` (the shape of a usual row).
    """

    works_on: ClassVar[str] = "arrays"
    name: str
    net: FeatureModel = field(repr=False)
    source: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    _hashed: tuple[int, str] | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:  # type: ignore[override]
        """classifier or featurizer."""
        return "classifier" if self.classes else "featurizer"

    @property
    def classes(self) -> list[str]:
        """The classes of the head by number."""
        return self.net.classes

    @property
    def featurizer(self) -> nn.Module:
        """The network without its head."""
        return self.net.featurizer

    @classmethod
    def load(cls, ref: str, *, seed: int = 0, device: str | None = None) -> "ArrayModel":
        """Load a saved folder, or a backbone by its name (``convnet``) with fresh weights, the same for the same seed.

        Missing, unexpected and misshapen weights are an error of one line.
        """
        folder = Path(ref).expanduser()
        if ref in backbones() and not folder.is_dir():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = FeatureModel(backbone(ref, {}))
            return cls(ref, net.eval(), ref).to(device or default_device())
        config = read_json(folder / "config.json")
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
        try:
            featurizer = backbone(config["backbone"], config["settings"])
            classes = [str(name) for name in config["classes"]]
        except KeyError as error:
            raise AcclimateError(f"{folder}/config.json lacks {error}; save the model again") from error
        head = nn.Linear(featurizer.features, len(classes)) if classes else None  # type: ignore[arg-type]
        net = FeatureModel(featurizer, head, classes=classes)
        net.load_state_dict(_fitting(folder, net.state_dict()))
        return cls(folder.name, net.eval(), ref, {"made": manifest.get("made", {})}).to(device or default_device())

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Scores (or features) of two fixed rows of noise in fp32 [2, width]."""
        self.net.eval()
        rows = torch.rand(2, *self.featurizer.inputs, generator=torch.Generator().manual_seed(0))  # type: ignore[misc]
        if ids := getattr(self.featurizer, "vocabulary", 0):  # rows of token ids
            rows = (rows * ids).long()
        return self.net(rows.to(self.device)).float().cpu()

    def _write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        name = type(self.featurizer).__module__.rpartition(".")[2]
        if name not in backbones() or type(self.featurizer) is not _class(name):
            raise AcclimateError(
                f"{self.name} is built on {type(self.featurizer).__name__}, which cannot be read back; build on {', '.join(backbones())}"
            )
        settings = {"backbone": name, "settings": self.featurizer.settings, "classes": self.classes}
        write_json(folder / "config.json", {"model_type": TYPE, **settings})
        save_file({name: value.detach().cpu().contiguous() for name, value in self.net.state_dict().items()}, folder / "model.safetensors")

    def _compare(self, folder: Path) -> None:
        self._same_answers(ArrayModel.load(str(folder), device=str(self.device)), folder)


def is_array_model(ref: str) -> bool:
    """Whether a reference names a backbone, or a folder that holds a saved network for arrays."""
    config = Path(ref).expanduser() / "config.json" if ref else Path("config.json")
    if not config.is_file():
        return ref in backbones() and not Path(ref).is_dir()
    try:
        return read_json(config).get("model_type") == TYPE
    except (AcclimateError, AttributeError):  # damaged: whoever loads it says so
        return False


@cache
def backbones() -> list[str]:
    """The modules of ``models/`` that name a ``BACKBONE``; nothing is imported."""
    return [path.stem for path in sorted(MODELS.glob("[!_]*.py")) if _names_backbone(ast.parse(path.read_bytes()))]


def _names_backbone(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BACKBONE" for node in tree.body)


def _class(name: str) -> type[nn.Module]:
    return importlib.import_module(f"acclimate.models.{name}").BACKBONE


def backbone(name: str, settings: dict[str, Any]) -> nn.Module:
    """A featurizer by the name of its module in models/, made with its settings and fresh weights."""
    if name not in backbones():
        raise AcclimateError(f"no backbone {name!r}{nearest(name, backbones())}")
    try:
        return _class(name)(**settings)
    except TypeError as error:
        raise AcclimateError(f"backbone {name} cannot be made of {settings}: {error}") from error


def _fitting(folder: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stored weights, if they are the wanted ones in name and shape."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.is_file():
        raise AcclimateError(f"{folder} holds no model.safetensors; save the model again")
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AcclimateError(f"the weights of {folder} cannot be read: {' '.join(str(error).split())}") from error
    missing, extra = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    shaped = sorted(name for name in wanted.keys() & stored.keys() if wanted[name].shape != stored[name].shape)
    if wrong := missing or extra or shaped:
        what = "lacks" if missing else "has extra" if extra else "has wrong shapes for"
        raise AcclimateError(f"{folder} {what} {len(wrong)} weights of its network, e.g. {', '.join(wrong[:3])}")
    return stored

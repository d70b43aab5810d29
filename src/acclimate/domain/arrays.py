"""Domains of numbers instead of text: labelled rows of one shape (images now), by split, from class folders or a named dataset."""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from ..errors import AcclimateError, nearest
from ..files import digest
from ..method import Setting, Settings
from .loading import ABOUT, DATASETS, GIVEN
from .reading import READERS
from .splits import NAMES

if TYPE_CHECKING:
    from torch import Tensor

    from . import Domain

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ASIDE = ("readme", "license", "licence")  # text that may lie beside class folders
IGNORED = -100  # the number of a pixel without a class, which torch's cross-entropy leaves out


class ArrayOptions(Settings):
    """What :meth:`ArrayDomain.load` takes beside name and source."""

    classes: Annotated[list | None, Setting("the classes to keep, in the order of their numbers; none = all")] = None
    side: Annotated[int, Setting("scale images to so many pixels a side; 0 = as they are", 0)] = 0
    channels: Annotated[int, Setting("1 for grey, 3 for colour, 0 = as they are", choices=(0, 1, 3))] = 0
    shares: Annotated[tuple | list, Setting("shares of train, validation and test; 0 leaves a split out", 0, 1)] = (0.8, 0.0, 0.2)
    limit: Annotated[int | None, Setting("keep at most so many rows, drawn at random but always the same ones", 1)] = None
    licence: Annotated[str, Setting("licence of the data")] = ""
    parent: Annotated[str, Setting("the wider domain this one belongs to")] = ""
    time: Annotated[str, Setting("when the data was recorded")] = ""
    access: Annotated[str, Setting("who may see the data")] = "public"

    def __post_init__(self):
        super().__post_init__()
        if len(self.shares) != 3 or abs(sum(self.shares) - 1) > 1e-6:
            raise AcclimateError(f"shares = {self.shares!r}, but must be three numbers (train, validation, test) that sum to 1")


@dataclass
class Arrays:
    """Labelled rows: x [row, *shape] in fp32 (images [row, channel, side, side], 0 to 1), y [row] of class numbers, the classes' names.

    For segmentation y is [row, high, wide], a class for each pixel, IGNORED where it has none.
    """

    name: str
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    classes: list[str]
    source: str = ""
    licence: str = ""
    origins: Sequence[str] = field(default=(), repr=False)  # where each row comes from; none = the name and its number

    def __len__(self) -> int:
        return len(self.y)

    def tensors(self) -> "tuple[Tensor, Tensor]":
        """x and y for torch."""
        import torch

        return torch.from_numpy(self.x), torch.from_numpy(self.y)

    def only(self, classes: Sequence[str]) -> "Arrays":
        """The rows of some classes, numbered anew in the order given; of masks, other pixels are IGNORED and rows without any left out."""
        for name in classes:
            if name not in self.classes:
                raise AcclimateError(f"no class {name!r} in {self.name}{nearest(str(name), self.classes)}")
        number = np.full(len(self.classes) + 1, IGNORED, np.int64)  # the last is for pixels that are ignored already
        number[[self.classes.index(name) for name in classes]] = np.arange(len(classes))
        y = number[np.where(self.y == IGNORED, len(self.classes), self.y)]
        rows = np.flatnonzero((y != IGNORED).reshape(len(y), -1).any(1))
        kept = self.select(rows)
        return Arrays(self.name, kept.x, y[rows], list(classes), self.source, self.licence, kept.origins)

    def select(self, rows: Iterable[int]) -> "Arrays":
        """Some rows by number."""
        numbers = np.fromiter(rows, np.int64)
        origins = [self.origins[row] for row in numbers] if self.origins else [f"{self.name}:{row + 1}" for row in numbers]
        return Arrays(self.name, self.x[numbers], self.y[numbers], self.classes, self.source, self.licence, origins)

    def scaled(self, side: int = 0, channels: int = 0) -> "Arrays":
        """Images of another size (bilinear, smoothed where they shrink) or with another number of channels (grey is Rec. 601 luma).

        Masks are sized with their images, by the nearest pixel.
        """
        x, y = self.x, self.y
        if (side or channels) and x.ndim != 4:
            raise AcclimateError(f"{self.name} has rows of shape {x.shape[1:]}, no images: leave out side and channels")
        if channels == 1 and x.shape[1] == 3:
            x = np.tensordot(x, np.array([0.299, 0.587, 0.114], np.float32), (1, 0))[:, None]
        elif channels == 3 and x.shape[1] == 1:
            x = np.repeat(x, 3, 1)
        if side and x.shape[2:] != (side, side):
            import torch
            from torch.nn.functional import interpolate

            parts = torch.from_numpy(np.ascontiguousarray(x)).split(1024)
            sized = [interpolate(part, (side, side), mode="bilinear", antialias=True).clamp(0, 1) for part in parts]
            x = torch.cat(sized).numpy()
            if y.ndim == 3:
                down, right = ((2 * np.arange(side) + 1) * old // (2 * side) for old in y.shape[1:])
                y = np.ascontiguousarray(y[:, down[:, None], right])
        x = np.ascontiguousarray(x, np.float32)
        return Arrays(self.name, x, y, self.classes, self.source, self.licence, self.origins)

    @cached_property
    def hashes(self) -> list[bytes]:
        """The hash of each row's numbers: rows with the same one are the same."""
        return [sha256(np.ascontiguousarray(row).data).digest() for row in self.x]

    @property
    def fingerprint(self) -> str:
        """A digest of rows, labels and names of classes."""
        y = self.y.tolist() if self.y.ndim == 1 else [self.y.shape, sha256(np.ascontiguousarray(self.y).data).hexdigest()]
        return digest([self.classes, sha256(b"".join(self.hashes)).hexdigest(), y, self.x.shape])


@dataclass
class ArrayDomain:
    """Labelled rows by split ("train", "validation", "test"; any may be absent), with the face of :class:`acclimate.domain.Domain`."""

    form: ClassVar[str] = "arrays"
    name: str
    splits: dict[str, Arrays]
    source: str = ""
    licence: str = ""
    parent: str = ""
    time: str = ""
    access: str = "public"
    tasks: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # why -> how many rows were left out: "exact"

    @property
    def classes(self) -> list[str]:
        """The classes by number, the same in every split."""
        return next(iter(self.splits.values())).classes

    def rows(self, split: str = "train") -> Arrays:
        """The rows of one split."""
        if split not in self.splits:
            raise AcclimateError(f"domain {self.name!r} has no split {split!r}; it has: {', '.join(self.splits) or 'none'}")
        return self.splits[split]

    def texts(self, split: str = "train") -> list[str]:
        """Arrays hold no text."""
        return []

    @property
    def fingerprint(self) -> str:
        """A digest of all rows in each split, in order."""
        return digest([self.form, {split: rows.fingerprint for split, rows in sorted(self.splits.items())}])

    @classmethod
    def load(cls, name: str, source: str, **given: Any) -> "ArrayDomain":
        """Load a named dataset (``pacs/photo``), or a folder with one folder of images per class, perhaps under train and test.

        ``given`` are :class:`ArrayOptions`. A row's split depends on its own numbers alone, equal rows are kept once, and splits that are
        given are kept. Raises AcclimateError with one line for what is missing, empty, unreadable or of mixed sizes, and unknown classes.
        """
        options = ArrayOptions(**given)
        path = Path(source).expanduser()
        parts = _from_folder(path, options) if path.exists() else {"": _named(source)}
        for split, rows in parts.items():
            rows = rows.only(list(dict.fromkeys(map(str, options.classes)))) if options.classes else rows
            if options.limit and options.limit < len(rows):
                rows = rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[: options.limit]))
            parts[split] = rows.scaled(options.side, options.channels)
        about = {key: getattr(options, key) for key in ABOUT}
        first = next(iter(parts.values()))
        about["licence"] = about["licence"] or first.licence
        splits, dropped = _divided(name, first, options.shares) if "" in parts else _apart(name, parts)
        return cls(name, splits, source=first.source or source, dropped=dropped, **about)


def open_domain(name: str, source: str, **options: Any) -> "Domain | ArrayDomain":
    """A domain of text or of arrays, whichever the source holds."""
    from . import Domain

    path = Path(source).expanduser() if source else Path("missing")
    if path.is_dir() and not any(file.is_file() for file in path.rglob("[!.]*")):
        raise AcclimateError(f"{source} is empty: it holds neither text nor class folders of images ({', '.join(IMAGES[:2])})")
    kind = ArrayDomain if form_of({"source": source, **options}) == "arrays" else Domain
    opened = kind.load(name, source, **options)
    if isinstance(opened, ArrayDomain) and any(rows.y.ndim > 1 for rows in opened.splits.values()):
        raise AcclimateError(
            f"{source} has a class for each pixel, but a recipe needs one for each row; load it with ArrayDomain.load in Python"
        )
    return opened


def form_of(spec: dict[str, Any]) -> str:
    """ "arrays" or "text", read off a source and its options without loading it; "" where only loading can tell.

    A folder is one of arrays where its subfolders hold images and nothing that is read as text, and no text but a README or a licence
    lies beside them.
    """
    source = str(spec.get("source") or "")
    path, stem = Path(source).expanduser(), source.partition("/")[0]
    if "recall" in spec or not source:
        return "text"
    if path.is_dir():
        found = ""
        for file in path.rglob("[!.]*"):
            ending, inside = file.suffix.lower(), file.parent != path
            if ending in READERS and (inside or file.stem.lower() not in ASIDE):
                return "text"
            if ending in IMAGES and inside:
                found = "arrays"
        return found
    if path.exists():
        return "text"
    if _is_named(stem):
        return _dataset(stem).CARD.get("form", "text")
    return "arrays" if set(spec) & set(ArrayOptions.settings()) - set(ABOUT) - {"shares", "limit"} else ""


def _is_named(stem: str) -> bool:
    return stem.isidentifier() and not stem.startswith("_") and (DATASETS / f"{stem}.py").is_file()


def _dataset(stem: str) -> Any:
    return importlib.import_module(f"acclimate.datasets.{stem}")


def _named(source: str) -> Arrays:
    if not _is_named(source.partition("/")[0]):
        named = sorted(path.stem for path in DATASETS.glob("[!_]*.py"))
        raise AcclimateError(f"no folder of images {source!r} exists, and no dataset has that name{nearest(source, named)}")
    return importlib.import_module("acclimate.datasets").load(source)


def _from_folder(folder: Path, options: ArrayOptions) -> dict[str, Arrays]:
    """Rows by split, or all under "" where the folder does not divide them."""
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    given = {GIVEN.get(path.name.lower(), ""): path for path in below}
    divided = below and "" not in given and "train" in given and len(given) > 1
    roots = given if divided else {"": folder}
    names = sorted({path.name for root in roots.values() for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")})
    if not names:
        raise AcclimateError(f"{folder} has no class folders; sort its images as {folder.name}/<class>/<image>.png")
    return {split: _images(root, folder, names, options) for split, root in roots.items()}


def _images(root: Path, folder: Path, names: list[str], options: ArrayOptions) -> Arrays:
    from PIL import Image, UnidentifiedImageError

    found: list[tuple[Path, int]] = []
    for number, name in enumerate(names):
        inside = sorted(path for path in (root / name).rglob("[!.]*") if path.suffix.lower() in IMAGES) if (root / name).is_dir() else []
        if not inside and (root / name).is_dir():
            raise AcclimateError(f"{root / name} holds no image ({', '.join(IMAGES)}); add some, or take the folder away")
        found += [(path, number) for path in inside]
    rows: list[np.ndarray] = []
    for path, _ in found:
        try:
            with Image.open(path) as image:
                grey = options.channels == 1 or (options.channels == 0 and image.mode in ("1", "L"))
                plain = image.convert("L" if grey else "RGB")
                if options.side:
                    plain = plain.resize((options.side, options.side), Image.Resampling.BILINEAR)
                pixels = np.asarray(plain, np.float32) / np.float32(255)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise AcclimateError(f"{path} cannot be read as an image: {' '.join(str(error).split())}; mend it or take it away") from error
        rows.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        if rows[-1].shape[1:] != rows[0].shape[1:]:
            (high, wide), (tall, broad) = rows[-1].shape[1:], rows[0].shape[1:]
            raise AcclimateError(
                f"{path} is {wide} x {high} pixels, but {found[0][0]} is {broad} x {tall}; give the domain a common size, e.g. side: 32"
            )
    most = max(len(row) for row in rows)
    x = np.stack([np.repeat(row, most // len(row), 0) for row in rows])
    y = np.array([number for _, number in found], np.int64)
    return Arrays(str(folder), x, y, names, str(folder), options.licence, [str(path) for path, _ in found])


def _divided(name: str, rows: Arrays, shares: Sequence[float]) -> tuple[dict[str, Arrays], dict[str, int]]:
    """Rows by the split that their own hash says (the test split at the low end, as for text), equal ones kept once."""
    _, validation, test = shares
    numbers: dict[str, list[int]] = {split: [] for split, share in zip(NAMES, shares, strict=True) if share > 0}
    first = dict(zip(reversed(rows.hashes), range(len(rows) - 1, -1, -1), strict=True))
    for key, row in sorted(first.items(), key=lambda pair: pair[1]):
        place = int.from_bytes(key[:8], "big") / 2**64
        split = "test" if place < test else "validation" if place < test + validation else "train"
        numbers[split if split in numbers else next(iter(numbers))].append(row)  # rounding of shares may reach past the last
    if empty := [split for split, these in numbers.items() if not these]:
        raise AcclimateError(
            f"domain {name!r} is too small to split: {len(first)} distinct rows leave {' and '.join(empty)} empty; "
            "add rows, or give other shares"
        )
    return {split: rows.select(these) for split, these in numbers.items()}, {"exact": len(rows) - len(first)}


def _apart(name: str, parts: dict[str, Arrays]) -> tuple[dict[str, Arrays], dict[str, int]]:
    """Splits that were given; train loses rows that are also tested on."""
    if len({rows.x.shape[1:] for rows in parts.values()}) > 1:
        shapes = ", ".join(f"{split} {'x'.join(map(str, rows.x.shape[1:]))}" for split, rows in parts.items())
        raise AcclimateError(f"the splits of domain {name!r} have images of several shapes ({shapes}); give side: and channels:")
    tested = {key for split, rows in parts.items() if split != "train" for key in rows.hashes}
    kept = [row for row, key in enumerate(parts["train"].hashes) if key not in tested]
    if not kept:
        raise AcclimateError(f"domain {name!r}: every row of train also stands in a split to be tested on; train on other rows")
    return {**parts, "train": parts["train"].select(kept)}, {"exact": len(parts["train"]) - len(kept)}


def overlap(domain: str, rows: Arrays, measured: dict[str, Arrays]) -> dict[str, Any]:
    """Rows to learn from that are also measured on, in the form of ``contamination``: checked, removed, spans, clean (row numbers)."""
    owner = {key: name for name, tested in measured.items() for key in tested.hashes}
    hit = [row for row, key in enumerate(rows.hashes) if key in owner]
    spans = [
        {"domain": domain, "origin": str(rows.origins[row]), "text": f"a whole row {label}", "found_in": owner[rows.hashes[row]]}
        for row, label in ((row, f"of class {rows.classes[rows.y[row]]}" if rows.y.ndim == 1 else "with its mask") for row in hit)
    ]
    return {"checked": len(rows), "removed": len(hit), "spans": spans, "clean": sorted(set(range(len(rows))) - set(hit))}

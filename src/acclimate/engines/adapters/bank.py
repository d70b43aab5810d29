"""A bank of adapters of one base: a folder that many processes read and add to, and from which a batch takes what its rows need.

``bank.json`` names the base (its fingerprint and the widths of its layers) and, for each adapter, who may use it (``access``) and its
versions: the hash of the adapter's files (its identity), the time, and what was said about it. The files lie under ``adapters/<hash>`` as
they were saved, so that plain peft loads them too; prototypes, the mean vectors of what an adapter is for, lie under ``prototypes``.
A killed process leaves the index as it was; files that no entry names are removed by the next one that writes.

Access is checked before anything is ranked or normalised. To those without the label an adapter does not exist: no list, no error and no
weight tells of it. ``labels`` holds the labels of who asks; ``KEEPER`` sees everything.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import AcclimateError, nearest
from ...files import atomic_dir, atomic_file, lock, read_json, write_json
from ...model import Model
from ...model.roles import linear, widths
from .banked import FILES, answers, check, hash_of, kind_of
from .resident import Resident

INDEX = "bank.json"
PUBLIC = "public"
WAIT = 60.0  # seconds to wait for another process that writes
Widths = dict[str, list[int]]


class _Keeper(frozenset):
    """Holds every label."""

    def __contains__(self, label: object) -> bool:
        return True


KEEPER: Collection[str] = _Keeper()


@dataclass(frozen=True)
class Version:
    """One version of an adapter. ``hash`` is that of its files; ``probed`` says how it was checked: by answers, or by names and shapes."""

    hash: str
    time: str
    kind: str  # peft (LoRA as peft saves it), or acclimate
    metadata: dict[str, Any] = field(default_factory=dict)
    probed: str = "shapes"


@dataclass(frozen=True)
class Entry:
    """A named adapter and its versions, the newest last."""

    name: str
    access: str
    versions: tuple[Version, ...]


@dataclass(frozen=True)
class Found:
    """One version of an adapter, and its folder."""

    name: str
    version: Version
    folder: Path


@dataclass(frozen=True)
class Near:
    """An adapter near a vector: cosine with its nearest prototype, and its share of the softmax over all that may be used."""

    name: str
    similarity: float
    weight: float


class Bank:
    """The adapters of one base in a folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise AcclimateError(f"{self.folder} is no bank of adapters (it holds no {INDEX}); make one with Bank.make(folder, base)")
        self._read: tuple[tuple[int, int], dict[str, Any]] | None = None
        self._index()

    @classmethod
    def make(cls, folder: str | Path, base: Model) -> "Bank":
        """A new bank for adapters of ``base``, or the one that lies there. Raises AcclimateError if that is another base's."""
        folder = Path(folder)
        if base.adapted:
            raise AcclimateError(f"{base.name} holds an adapter; a bank stands on a plain model")
        with _held(folder):
            if not (folder / INDEX).is_file():
                about = {"source": base.source, "fingerprint": base.fingerprint, "layers": _layers(base.net)}
                write_json(folder / INDEX, {"base": about, "adapters": {}})
        made = cls(folder)
        made.same_base(base)
        return made

    # what goes in

    def add(
        self,
        name: str,
        source: str | Path,
        *,
        access: str = "",
        metadata: Mapping[str, Any] | None = None,
        version: bool = False,
        base: Model | None = None,
        prototypes: Tensor | None = None,
    ) -> Version:
        """Take in a saved adapter: a LoRA adapter as peft saves it, or an adapter of our own (one in the folder).

        The same bytes again change nothing. Other bytes under a name that is taken need ``version=True``. access: the label that users
        need, ``public`` if not given. base: the model itself; the stored adapter must then answer a probe on it as the given one does
        under peft, and differently from the base. prototypes [k, width]: see :func:`prototypes`.

        Raises AcclimateError for a name or files that are malformed, for an adapter of another base, and for one that changes nothing.
        """
        source = Path(source).expanduser()
        if not name or set(name) & set("(),;. /@\\"):
            raise AcclimateError(f"an adapter cannot be named {name!r}; use letters, digits, - and _")
        kind = kind_of(source)
        about = self._index()["base"]
        trained_on = _manifest(source).get("base_fingerprint")
        if trained_on and trained_on != about["fingerprint"]:
            raise AcclimateError(
                f"{source} was trained on a base with weights {trained_on}, but this bank's base {about['source']} has "
                f"{about['fingerprint']}; put it into the bank of its own base"
            )
        check(source, kind, about["layers"], bool(trained_on) or base is not None)
        identity = hash_of(source, kind)
        vectors = None if prototypes is None else _vectors(prototypes)
        probed = "shapes"
        if base is not None:
            self.same_base(base)
        with _held(self.folder):
            index = copy.deepcopy(self._index())
            entry = index["adapters"].get(name)
            known = [made["hash"] for made in entry["versions"]] if entry else []
            if entry and access and access != entry["access"]:
                raise AcclimateError(f"adapter {name!r} has another access label than {access!r}; change it with Bank.label")
            if identity in known:
                return _version(entry["versions"][known.index(identity)])
            if known and not version:
                raise AcclimateError(
                    f"an adapter of other bytes is named {name!r} already ({known[-1]}, and this is {identity}); choose another name, or "
                    "add it as a newer version with version=True"
                )
            self._sweep(index)
            kept = self.folder / "adapters" / identity
            if not kept.is_dir():
                with atomic_dir(kept) as temporary:
                    for file in (*FILES[kind], "acclimate.json"):
                        if (source / file).is_file():
                            shutil.copyfile(source / file, temporary / file)
                    if hash_of(temporary, kind) != identity:
                        raise AcclimateError(f"{source} was written to while it was copied, or its copy is damaged; add it again")
                    if base is not None:
                        answers(base, temporary, source, kind)
            elif base is not None:
                answers(base, kept, source, kind)
            probed = "answers" if base is not None else probed
            if vectors is not None:
                self._keep_vectors(name, identity, vectors)
            made = Version(identity, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), kind, dict(metadata or {}), probed)
            entry = entry or {"access": access or PUBLIC, "versions": []}
            entry["versions"].append(asdict(made))
            index["adapters"][name] = entry
            write_json(self.folder / INDEX, index)
        return made

    def remove(self, name: str, version: str = "") -> None:
        """Take out an adapter, or one version of it; files that no other name holds go too."""
        with _held(self.folder):
            index = copy.deepcopy(self._index())
            entry = self._entry(index, name, KEEPER)
            left = [made for made in entry["versions"] if version and made["hash"] != version]
            if version and len(left) == len(entry["versions"]):
                raise AcclimateError(f"adapter {name!r} has no version {version!r}{nearest(version, [v['hash'] for v in left])}")
            if left:
                entry["versions"] = left
            else:
                del index["adapters"][name]
            write_json(self.folder / INDEX, index)
            self._sweep(index)

    def label(self, name: str, access: str) -> None:
        """Change who may use an adapter: those who have the label, or all if it is ``public``."""
        if not access:
            raise AcclimateError(f"adapter {name!r} needs an access label; for all users that is {PUBLIC!r}")
        with _held(self.folder):
            index = copy.deepcopy(self._index())
            self._entry(index, name, KEEPER)["access"] = access
            write_json(self.folder / INDEX, index)

    def set_prototypes(self, name: str, vectors: Tensor, version: str = "") -> None:
        """Keep the vectors [k, width] that say what an adapter is for. Raises AcclimateError for another width than the others'."""
        with _held(self.folder):
            self._keep_vectors(name, self.get(name, version, labels=KEEPER).version.hash, _vectors(vectors))

    # what comes out

    def list(self, labels: Collection[str] = ()) -> dict[str, Entry]:
        """All adapters that these labels may use, by name."""
        return {
            name: Entry(name, entry["access"], tuple(map(_version, entry["versions"])))
            for name, entry in self._index()["adapters"].items()
            if _open(entry, labels)
        }

    def get(self, name: str, version: str = "", *, labels: Collection[str] = ()) -> Found:
        """The newest version of an adapter, or the one of this hash. Raises AcclimateError where there is none for these labels."""
        entry = self._entry(self._index(), name, labels)
        known = {made["hash"]: made for made in entry["versions"]}
        if version and version not in known:
            raise AcclimateError(f"adapter {name!r} has no version {version!r}{nearest(version, known)}")
        made = _version(known[version] if version else entry["versions"][-1])
        return Found(name, made, self.folder / "adapters" / made.hash)

    def prototypes(self, name: str, version: str = "", *, labels: Collection[str] = ()) -> Tensor | None:
        """The vectors [k, width] of an adapter, None where it has none."""
        from safetensors.torch import load_file

        path = self._vectors_path(name, self.get(name, version, labels=labels).version.hash)
        return load_file(path)["prototypes"] if path.is_file() else None

    def nearest(self, vector: Tensor, labels: Collection[str] = (), *, temperature: float = 0.1) -> tuple[Near, ...]:
        """Adapters by the cosine of their nearest prototype with ``vector`` [width], the nearest first.

        Weights are a softmax of cosine / temperature over the adapters that ``labels`` may use, and over no others; adapters without
        prototypes are left out. Empty where none is left.
        """
        found = {name: held for name in self.list(labels) if (held := self.prototypes(name, labels=labels)) is not None}
        if not found:
            return ()
        width = next(iter(found.values())).shape[1]
        if vector.shape != (width,):
            raise AcclimateError(
                f"the prototypes have {width} numbers each, but the vector has shape {list(vector.shape)}; use one encoder"
            )
        near = torch.stack([functional.cosine_similarity(vector.float(), held, dim=-1).max() for held in found.values()])
        weights = (near / temperature).softmax(0)
        order = near.argsort(descending=True, stable=True).tolist()
        names = [*found]
        return tuple(Near(names[i], float(near[i]), float(weights[i])) for i in order)

    def load_onto(self, model: Model, names: Sequence[str], *, labels: Collection[str] = ()) -> Model:
        """A model that shares the weights of ``model`` and holds these adapters, none active: see :meth:`Injected.activate`."""
        loaded = Resident(self, model, labels=labels)
        loaded.need(names)
        return loaded.model

    # plumbing

    def _index(self) -> dict[str, Any]:
        """``bank.json`` as it is now, to be read; a copy of it is written."""
        path = self.folder / INDEX
        try:
            about = path.stat()
        except FileNotFoundError as error:
            raise AcclimateError(f"{path} is gone; the bank was removed") from error
        stamp = (about.st_mtime_ns, about.st_ino)
        if self._read is None or self._read[0] != stamp:
            found = read_json(path)
            if not isinstance(found, dict) or not {"base", "adapters"} <= found.keys():
                raise AcclimateError(f"{path} is no index of a bank; restore it, or make the bank anew")
            self._read = (stamp, found)
        return self._read[1]

    def _entry(self, index: dict[str, Any], name: str, labels: Collection[str]) -> dict[str, Any]:
        entry = index["adapters"].get(name)
        if entry is None or not _open(entry, labels):
            seen = [other for other, held in index["adapters"].items() if _open(held, labels)]
            raise AcclimateError(f"the bank has no adapter {name!r} for these labels{nearest(name, seen)}")
        return entry

    def same_base(self, base: Model) -> None:
        """Raise AcclimateError for another model than the one whose adapters lie here."""
        about = self._index()["base"]
        if base.fingerprint != about["fingerprint"]:
            raise AcclimateError(
                f"{base.name} has weights {base.fingerprint}, but the adapters of {self.folder} are for {about['source']} with weights "
                f"{about['fingerprint']}; load that base"
            )

    def _vectors_path(self, name: str, identity: str) -> Path:
        return self.folder / "prototypes" / f"{name}.{identity}.safetensors"

    def _keep_vectors(self, name: str, identity: str, vectors: Tensor) -> None:
        from safetensors.torch import load_file, save_file

        for other in sorted((self.folder / "prototypes").glob("*.safetensors")):
            width = load_file(other)["prototypes"].shape[1]
            if width != vectors.shape[1]:
                raise AcclimateError(f"the bank's prototypes have {width} numbers each, but these {vectors.shape[1]}; use one encoder")
        with atomic_file(self._vectors_path(name, identity)) as temporary:
            save_file({"prototypes": vectors}, temporary)

    def _sweep(self, index: dict[str, Any]) -> None:
        """Remove files that no entry names: of adapters taken out, and of processes that were killed."""
        held = {(name, made["hash"]) for name, entry in index["adapters"].items() for made in entry["versions"]}
        for path in (self.folder / "adapters").glob("*"):
            if path.name not in {identity for _, identity in held}:
                shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / "prototypes").glob("*"):
            if path not in {self._vectors_path(*pair) for pair in held}:
                path.unlink(missing_ok=True)


def prototypes(encode: Callable[[Sequence[str]], Tensor], *groups: Sequence[str]) -> Tensor:
    """The mean vector of each group of example texts [group, width]; ``encode`` makes of texts their vectors [text, width].

    >>> prototypes(lambda texts: torch.tensor([[float(len(text)), 1.0] for text in texts]), ["a", "abc"], ["ab"]).tolist()
    [[2.0, 1.0], [2.0, 1.0]]
    """
    if not groups or not all(groups):
        raise AcclimateError("prototypes are means of example texts; give at least one text in each group")
    return torch.stack([torch.as_tensor(encode(list(group))).float().mean(0) for group in groups])


def _open(entry: Mapping[str, Any], labels: Collection[str]) -> bool:
    if isinstance(labels, str):  # a text holds its own parts
        raise AcclimateError(f"labels = {labels!r} is a text, but must be a list of labels: [{labels!r}]")
    return entry["access"] == PUBLIC or entry["access"] in labels


def _version(made: Mapping[str, Any]) -> Version:
    return Version(**made)


def _manifest(folder: Path) -> dict[str, Any]:
    return read_json(folder / "acclimate.json") if (folder / "acclimate.json").is_file() else {}


def _layers(net: nn.Module) -> Widths:
    """Widths of the input and output of each matrix, by its place."""
    return {path: [*widths(layer)] for path, layer in net.named_modules() if linear(layer)}


def _vectors(given: Tensor) -> Tensor:
    if given.ndim != 2 or not given.numel() or not math.isfinite(float(given.float().abs().max())):
        raise AcclimateError(f"prototypes must be finite numbers [k, width], but have shape {list(given.shape)}; see bank.prototypes")
    return given.detach().float().cpu().contiguous()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder's lock, waited for."""
    end = time.monotonic() + WAIT
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(folder))
                break
            except AcclimateError as error:
                if "is in use" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)
        yield

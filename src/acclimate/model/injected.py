"""A frozen network with named adapters beside its layers: added, composed, switched, saved and taken out again without touching its code.

Adapters hang on hooks, so names and weights of the network stay as they are, whatever it is built of; what is stored is the adapters alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError, nearest
from ..kinds import Adapter
from ..method import load
from ..parts.beside import Beside, Fusion, LowRank, MixedRows
from . import adapter_files, adapter_heads
from .calls import first_tensor, outline, repeated, segments
from .composition import Fuse, Part, Rows, Stack, apply, copies, fusions, names, parse
from .folding import fold, folded
from .roles import Site, find


class Injected(nn.Module):
    """Network and adapters; calls, attributes and generation are the network's own.

    >>> from acclimate.checks.tiny import decoder
    >>> from acclimate.method import load
    >>> made = Injected(decoder()).add("law", load("adapters.bottleneck", reduction=4))
    >>> sorted(made.adapters["law"])[0]
    'model/layers/0/mlp/down_proj'
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net.requires_grad_(False)
        self.adapters = nn.ModuleDict()  # name -> place of the site -> module beside it
        self.common = nn.ModuleDict()  # name -> what an adapter shares between its sites
        self.heads = nn.ModuleDict()  # name -> the adapter's own head, where it has one
        self.fused = nn.ModuleDict()  # number of the fusion -> place of the site -> attention
        self.fusion_names: list[str] = []
        self.specs: dict[str, dict[str, Any]] = {}
        self.sites: dict[str, Site] = {}
        self.active: Part | Rows | None = None
        self.skipped = 0  # AdapterDrop: adapters of the first layers that are left out
        self._handles: list[Any] = []
        self._readers: list[Beside] = []  # active adapters that read whole texts
        self._held: dict[str, Tensor] = {}  # inputs of sources that wait for their targets
        self._mixtures: dict[tuple[str, int], MixedRows] = {}  # place of the site, rows per name -> factors of the active Rows
        self._times = 1  # rows of the batch for each row of the active Rows: beams

    # what it holds

    def add(self, name: str, method: Adapter, *, seed: int = 0) -> "Injected":
        """Put an adapter beside the layers that its ``target`` names; it becomes the active one.

        Raises AcclimateError for a name that is taken or malformed, and for a target that matches nothing.
        """
        if name in self.adapters:
            raise AcclimateError(f"an adapter is named {name!r} already; delete it, or choose another name")
        if not name or set(name) & set("(),;. "):
            raise AcclimateError(f"an adapter cannot be named {name!r}; use letters, digits, - and _")
        if not hasattr(method, "target") or type(method).wrap is Adapter.wrap:
            raise AcclimateError(
                f"{method.name} gives neither a peft configuration nor (with wrap and a setting target) a module beside a layer"
            )
        sites = find(self.net, method.target, layers=getattr(method, "layers", ""))
        common, made = nn.ModuleDict(), nn.ModuleDict()
        device = next(self.net.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for site in sites:
                if not site.inputs or not site.outputs:
                    raise AcclimateError(
                        f"the widths of {site.target} are not known, so nothing can be put beside it; name a layer inside it"
                    )
                given = {"layer": site, "common": common}
                made[site.key] = method.wrap(**{word: given[word] for word in method.asked()})
        self.adapters[name], self.common[name] = made.to(device), common.to(device)
        self.specs[name] = {"use": method.name, "with": method.values()}
        self.sites |= {site.key: site for site in sites}
        return self.activate(name)

    def take(self, name: str, other: "Injected") -> "Injected":
        """Put a copy of the one adapter that another network of the same shape holds beside this one's layers."""
        (theirs,) = other.specs
        adapter_files.restore(self, name, other.specs[theirs])
        for mine, held in ((self.adapters, other.adapters), (self.common, other.common), (self.heads, other.heads)):
            if theirs in held:
                mine[name].load_state_dict(held[theirs].state_dict())
        return self

    def put_head(self, name: str, kind: str, labels: Sequence[str] = (), *, pooling: str = "mean", seed: int = 0) -> "Injected":
        """Give an adapter a head of its own, in the place of any before: it is saved, learns and goes with the adapter.

        kind: classification, tagging (of each token), both with their ``labels`` in the order of the scores; question_answering (where the
        answer starts and ends in the text); or language_model, which begins as a copy of the network's output layer. pooling
        (classification): mean, cls or last. See :meth:`answers`.
        """
        self._known(name)
        made = adapter_heads.made(self.net, kind, labels, pooling, seed)
        self.heads[name] = made.to(next(self.net.parameters()).device).train(self.training)
        self.specs[name]["head"] = {"kind": kind, "labels": list(labels), "pooling": pooling}
        return self

    def delete(self, name: str) -> None:
        """Take an adapter and its head out for good."""
        self._known(name)
        for held in (self.adapters, self.common, self.heads):
            if name in held:
                del held[name]
        del self.specs[name]
        if self.active is not None and name in names(self.active):
            self.activate(None)

    def parts(self, name: str) -> dict[str, Beside]:
        """An adapter's modules by the place of their site."""
        held: Any = self.adapters[name]
        return dict(held.items())

    # what runs

    def activate(self, tree: Part | Rows | None) -> "Injected":
        """Say which adapters work and how they are composed: a name, a text such as ``stack(law, fuse(a, b))``, a block, Rows, or None."""
        if isinstance(tree, str) and tree not in self.adapters:
            tree = parse(tree)
        if tree is not None:
            for name in names(tree):
                self._known(name)
            for fusion in fusions(tree):
                self._fusion(fusion)
        self.active = tree
        self.attach()
        return self

    @contextmanager
    def using(self, tree: Part | Rows | None) -> Iterator["Injected"]:
        """The composition inside a ``with`` block; afterwards the one before."""
        before = self.active
        try:
            yield self.activate(tree)
        finally:
            self.active = before
            self.attach()

    def drop(self, layers: int) -> "Injected":
        """AdapterDrop (Rücklé et al. 2021): leave out the adapters of the first ``layers`` layers; 0 puts all back."""
        self.skipped = layers
        return self

    def attach(self) -> None:
        """Hang the adapters on the network."""
        self.detach()
        if self.active is None:
            return
        wanted = set(names(self.active))
        keys = {key: None for name in wanted for key in self.parts(name)}
        for key in keys:
            site = self.sites[key]
            if site.source != site.target:
                self._handles.append(
                    self.net.get_submodule(site.source).register_forward_pre_hook(partial(self._before, key), with_kwargs=True)
                )
            layer = self.net.get_submodule(site.target)
            if any(hasattr(part, "enter") for part in self._beside(key).values()):
                self._handles.append(layer.register_forward_pre_hook(partial(self._enter, key), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(partial(self._after, key), with_kwargs=True))
        self._readers = [part for name in wanted for part in self.parts(name).values() if hasattr(part, "segments")]
        if self._readers:
            body: Any = getattr(self.net, "base_model", self.net)
            self._handles.append(body.register_forward_pre_hook(self._read, with_kwargs=True))

    def detach(self) -> nn.Module:
        """Take the adapters off the network, which is then what it was; they are kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._mixtures.clear()
        return self.net

    def _read(self, body: nn.Module, args: tuple, kwargs: dict) -> None:
        """Tell adapters that ask for it (by an attribute ``segments``) which text each token belongs to."""
        found = segments(kwargs.get("attention_mask"), kwargs.get("position_ids"))
        for part in self._readers:
            part.segments = found  # type: ignore[assignment]

    def _before(self, key: str, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        self._held[key] = first_tensor(args, kwargs)

    def _enter(self, key: str, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Let the active adapters that ask for it (by a method ``enter``) change what a layer is called with."""
        if 0 <= self.sites[key].number < self.skipped:
            return args, kwargs
        if not isinstance(self.active, str) and not (isinstance(self.active, Stack) and all(isinstance(p, str) for p in self.active.parts)):
            raise AcclimateError(f"{self.active}: an adapter with a prefix stands alone or in a Stack of names; it changes whole layers")
        for part in self._beside(key).values():
            if hasattr(part, "enter"):
                args, kwargs = part.enter(layer, args, kwargs)
        return args, kwargs

    def _after(self, key: str, layer: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
        site = self.sites[key]
        x = self._held.pop(key) if key in self._held else first_tensor(args, kwargs)
        if self.active is None or 0 <= site.number < self.skipped:
            return out
        y = out[0] if isinstance(out, tuple) else out
        channels = isinstance(layer, nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase) and y.ndim > 2
        if channels:
            x, y = x.movedim(1, -1), y.movedim(1, -1)
        y = self._change(key, x, y)
        y = y.movedim(-1, 1) if channels else y
        return (y, *out[1:]) if isinstance(out, tuple) else y

    def _change(self, key: str, x: Tensor, y: Tensor) -> Tensor:
        if isinstance(self.active, Rows):
            return self._mixed(self.active, key, x, y)
        beside = self._beside(key)
        fused = {}
        if not isinstance(self.active, str):
            for fusion in fusions(self.active):  # type: ignore[arg-type]
                attention: Any = self.fused[str(self.fusion_names.index(repr(fusion)))]
                fused[repr(fusion)] = dict(attention.items()).get(key)
        return apply(self.active, x, y, beside, fused)  # type: ignore[arg-type]

    def _beside(self, key: str) -> dict[str, Any]:
        """The active adapters' modules at one place, by name."""
        found: dict[str, Any] = {name: self.adapters[name] for name in dict.fromkeys(names(self.active))}  # type: ignore[arg-type]
        return {name: held[key] for name, held in found.items() if key in held}

    def _mixed(self, rows: Rows, key: str, x: Tensor, y: Tensor) -> Tensor:
        """Each row with its own adapter: low-rank ones of the whole batch at once, others adapter by adapter."""
        times = 1 if len(y) == len(rows.names) else self._times
        if len(y) != times * len(rows.names):
            raise AcclimateError(f"adapters were named for {len(rows.names)} rows, but the batch has {len(y)}")
        mixture = self._mixtures.get((key, times))
        if mixture is None:
            beside = self._beside(key)
            rows = rows.repeated(times)
            if any(type(part).forward is not LowRank.forward for part in beside.values()):
                return apply(rows, x, y, beside, {})
            mixture = self._mixtures[key, times] = MixedRows(list(beside.values()), rows.owners(beside))
        return mixture.add(x, y)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own; where beams or several answers multiply the rows, these keep their adapters."""
        net: Any = self.net
        config = kwargs.get("generation_config") or net.generation_config
        asked = [kwargs.get(key) or getattr(config, key, None) or 1 for key in ("num_beams", "num_return_sequences")]
        self._times = max(asked)
        try:
            return net.generate(*args, **kwargs)
        finally:
            self._times = 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own call; a Parallel composition runs every row once per part, part by part."""
        count = copies(self.active)
        if count > 1:
            args = tuple(repeated(value, count) for value in args)
            kwargs = {key: repeated(value, count) for key, value in kwargs.items()}
        return self.net(*args, **kwargs)

    def answers(self, **inputs: Any) -> list[Tensor]:
        """What the active adapters' own heads say of a batch, from the network's last states: a tensor for each branch.

        A Parallel or BatchSplit has a branch for each part, a plain name or another block is one branch; the topmost adapter of a branch
        that has a head answers for it. Rows with an adapter each get a tensor each, without the dimension of rows. Shapes: [row, label]
        of a classification, [row, token, label] of tagging, [row, token, id] of a language model.

        Raises AcclimateError where no head answers for a branch or row, or two stand side by side.
        """
        return adapter_heads.answers(self, **inputs)

    # what learns

    def learn(self, *chosen: str, fusions: bool = False) -> "Injected":
        """Only these adapters learn, each with its head (and, with ``fusions``, the attention of Fuse blocks); all else is frozen."""
        for name in chosen:
            self._known(name)
        self.requires_grad_(False)
        for name in chosen:
            for held in (self.adapters, self.common, self.heads):
                if name in held:
                    held[name].requires_grad_(True)
        if fusions:
            self.fused.requires_grad_(True)
        return self

    def _fusion(self, fusion: Fuse) -> None:
        if repr(fusion) in self.fusion_names:
            return
        keys = dict.fromkeys(key for name in names(fusion) for key in self.parts(name))
        device = next(self.net.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = nn.ModuleDict({key: Fusion(self.sites[key].outputs) for key in keys})
        self.fused[str(len(self.fusion_names))] = made.to(device)
        self.fusion_names.append(repr(fusion))

    # what is folded

    def fold(self, name: str) -> nn.Module:
        """Add an adapter to the network's weights for good and take it (and its head) out; the network itself, without hooks for it.

        Raises AcclimateError for an adapter that is no linear map of its layer.
        """
        self._known(name)
        return fold(self, name)

    def folded(self, name: str) -> AbstractContextManager[nn.Module]:
        """The network with one adapter folded in, inside a ``with`` block; afterwards its weights are bit-equal to before."""
        self._known(name)
        return folded(self, name)

    def average(self, name: str, of: Mapping[str, float]) -> "Injected":
        """A new adapter, without a head, whose weights are the weighted sum of those of one make (Chronopoulou et al. 2023)."""
        first = next(iter(of))
        for other in of:
            self._known(other)
            if any(self.specs[other][key] != self.specs[first][key] for key in ("use", "with")):
                raise AcclimateError(f"{other!r} and {first!r} are of different makes or settings, so their weights cannot be averaged")
        self.add(name, load(self.specs[first]["use"], **self.specs[first]["with"]))
        with torch.no_grad():
            for held in (self.adapters, self.common):
                for key, value in held[name].state_dict().items():
                    value.copy_(sum(weight * held[other].state_dict()[key] for other, weight in of.items()))
        return self

    # what is stored

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The adapters' weights alone; the network's are its own business."""
        whole = super().state_dict(*args, **kwargs)
        return {key: value for key, value in whole.items() if not key.startswith("net.")}

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Weights of the adapters."""
        found = super().load_state_dict(state, strict=False, assign=assign)
        self._mixtures.clear()
        missing = [key for key in found.missing_keys if not key.startswith("net.")]
        if strict and (missing or found.unexpected_keys):
            raise AcclimateError(f"adapters do not fit: missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}")
        return found

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Configuration and weights of all adapters; nothing of the network."""
        adapter_files.write(self, Path(folder))

    @classmethod
    def from_pretrained(cls, net: nn.Module, folder: str | Path) -> "Injected":
        """Put stored adapters on a network. Raises AcclimateError for weights that do not fit it, or are missing."""
        return adapter_files.read(cls(net), Path(folder))

    # what it looks like from outside: as a peft model does, where the two are handled alike

    @property
    def peft_config(self) -> dict[str, Any]:
        """Make of each adapter."""
        return {name: SimpleNamespace(peft_type=spec["use"], num_virtual_tokens=0, bias="none") for name, spec in self.specs.items()}

    @property
    def active_adapters(self) -> list[str]:
        """Names in the active composition."""
        return [] if self.active is None else list(dict.fromkeys(names(self.active)))

    def merge_and_unload(self) -> nn.Module:
        """The network with the active adapter folded in; without any where none is active."""
        if self.active is not None:
            if not isinstance(self.active, str):
                raise NotImplementedError("a composition of adapters is not folded")
            try:
                self.fold(self.active)
            except AcclimateError as error:
                raise NotImplementedError(str(error)) from error
        return self.detach()

    def tree(self) -> str:
        """Modules with their weights, and where adapters stand, as text."""
        beside: dict[str, list[str]] = {}
        for name in self.adapters:
            for key in self.parts(name):
                beside.setdefault(self.sites[key].target, []).append(name)
        lines = [*outline(self.net, beside)]
        for name, held in self.adapters.items():
            lines.append(f"adapter {name} ({self.specs[name]['use']}): {sum(weight.numel() for weight in held.parameters()):,} weights")
        return "\n".join(lines)

    def _known(self, name: str) -> None:
        if name not in self.adapters:
            raise AcclimateError(f"no adapter is named {name!r}{nearest(name, list(self.adapters))}")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

"""A frozen network with named adapters beside its layers: added, composed, switched, saved and taken out again without touching its code.

Adapters hang on hooks, so names and weights of the network stay as they are, whatever it is built of; what is stored is the adapters alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError, nearest
from ..files import read_json, write_json
from ..kinds import Adapter
from ..method import load
from ..parts.beside import Beside, Fusion, LowRank
from .composition import Fuse, Parallel, Part, Rows, apply, fusions, names, parse
from .roles import Site, find

CONFIG, WEIGHTS = "adapters.json", "adapters.safetensors"


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
        self.fused = nn.ModuleDict()  # number of the fusion -> place of the site -> attention
        self.fusion_names: list[str] = []
        self.specs: dict[str, dict[str, Any]] = {}
        self.sites: dict[str, Site] = {}
        self.active: Part | Rows | None = None
        self.skipped = 0  # AdapterDrop: adapters of the first layers that are left out
        self._handles: list[Any] = []
        self._held: dict[str, Tensor] = {}  # inputs of sources that wait for their targets

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
        spec = other.specs[theirs]
        self.add(name, load(spec["use"], **spec["with"]))
        for mine, held in ((self.adapters, other.adapters), (self.common, other.common)):
            mine[name].load_state_dict(held[theirs].state_dict())
        return self

    def delete(self, name: str) -> None:
        """Take an adapter out for good."""
        self._known(name)
        for held in (self.adapters, self.common):
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
            self._handles.append(self.net.get_submodule(site.target).register_forward_hook(partial(self._after, key), with_kwargs=True))

    def detach(self) -> nn.Module:
        """Take the adapters off the network, which is then what it was; they are kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return self.net

    def _before(self, key: str, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        self._held[key] = _first(args, kwargs)

    def _after(self, key: str, layer: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
        site = self.sites[key]
        x = self._held.pop(key) if key in self._held else _first(args, kwargs)
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
        beside = {name: held[key] for name in names(self.active) if key in (held := self.parts(name))}  # type: ignore[arg-type]
        if isinstance(self.active, Rows) and beside and all(isinstance(part, LowRank) for part in beside.values()):
            if len(self.active.names) != y.shape[0]:
                raise AcclimateError(f"adapters were named for {len(self.active.names)} rows, but the batch has {y.shape[0]}")
            place = {name: i for i, name in enumerate(beside)}
            own = torch.tensor([place.get(name, -1) for name in self.active.names], device=y.device)
            return y + LowRank.mixed(list(beside.values()), own, x).to(y.dtype)  # type: ignore[arg-type]
        fused = {}
        if not isinstance(self.active, str | Rows):
            for fusion in fusions(self.active):  # type: ignore[arg-type]
                attention: Any = self.fused[str(self.fusion_names.index(repr(fusion)))]
                fused[repr(fusion)] = dict(attention.items()).get(key)
        return apply(self.active, x, y, beside, fused)  # type: ignore[arg-type]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own call; a Parallel composition runs every row once per part, part by part."""
        count = _copies(self.active)
        if count > 1:
            args = tuple(_repeat(value, count) for value in args)
            kwargs = {key: _repeat(value, count) for key, value in kwargs.items()}
        return self.net(*args, **kwargs)

    # what learns

    def learn(self, *chosen: str, fusions: bool = False) -> "Injected":
        """Only these adapters learn (and, with ``fusions``, the attention of all Fuse blocks); everything else is frozen."""
        for name in chosen:
            self._known(name)
        self.requires_grad_(False)
        for name in chosen:
            self.adapters[name].requires_grad_(True)
            self.common[name].requires_grad_(True)
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

    @torch.no_grad()
    def fold(self, name: str) -> nn.Module:
        """Add an adapter to the network's weights for good and take it out; the network itself, without hooks for it.

        Raises AcclimateError for an adapter that is no linear map of its layer.
        """
        self._known(name)
        changes = {}
        for key, part in self.parts(name).items():
            site = self.sites[key]
            weight = getattr(site.layer, "weight", None)
            if weight is None or site.source != site.target or weight.ndim != 2 or isinstance(site.layer, nn.Embedding):
                raise AcclimateError(f"adapter {name!r} cannot be folded: {site.target} has no matrix for it")
            matrix = weight.T if type(site.layer).__name__ == "Conv1D" else weight
            bias = getattr(site.layer, "bias", None)
            change = part.delta(matrix.float(), torch.zeros(len(matrix), device=matrix.device) if bias is None else bias.float())
            if change is None:
                raise AcclimateError(f"adapter {name!r} ({self.specs[name]['use']}) is no linear map and cannot be folded into the weights")
            changes[key] = change
        for key, (weight_change, bias_change) in changes.items():
            layer: Any = self.sites[key].layer
            turned = weight_change.T if type(layer).__name__ == "Conv1D" else weight_change
            layer.weight.copy_(layer.weight.float() + turned)
            if bool(bias_change.any()):
                if layer.bias is None:
                    layer.bias = nn.Parameter(torch.zeros(len(bias_change), dtype=layer.weight.dtype, device=layer.weight.device))
                layer.bias.copy_(layer.bias.float() + bias_change)
        self.delete(name)
        return self.net

    def average(self, name: str, of: Mapping[str, float]) -> "Injected":
        """A new adapter whose weights are the weighted sum of those of adapters of one make (Chronopoulou et al. 2023)."""
        first = next(iter(of))
        for other in of:
            self._known(other)
            if self.specs[other] != self.specs[first]:
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
        missing = [key for key in found.missing_keys if not key.startswith("net.")]
        if strict and (missing or found.unexpected_keys):
            raise AcclimateError(f"adapters do not fit: missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}")
        return found

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Configuration and weights of all adapters; nothing of the network."""
        from safetensors.torch import save_file

        about = {
            "adapters": self.specs,
            "fusions": self.fusion_names,
            "active": None if self.active is None or isinstance(self.active, Rows) else str(self.active),
        }
        write_json(Path(folder) / CONFIG, about)
        save_file({key: value.contiguous() for key, value in self.state_dict().items()}, Path(folder) / WEIGHTS, {"format": "pt"})

    @classmethod
    def from_pretrained(cls, net: nn.Module, folder: str | Path) -> "Injected":
        """Put stored adapters on a network. Raises AcclimateError for weights that do not fit it, or are missing."""
        from safetensors.torch import load_file

        about = read_json(Path(folder) / CONFIG)
        if not (Path(folder) / WEIGHTS).is_file():
            raise AcclimateError(f"{folder} holds no {WEIGHTS}; save the adapters again")
        made = cls(net)
        for name, spec in about["adapters"].items():
            made.add(name, load(spec["use"], **spec["with"]))
        for text in about["fusions"]:
            made._fusion(parse(text))  # type: ignore[arg-type]
        try:
            made.load_state_dict(load_file(Path(folder) / WEIGHTS))
        except (RuntimeError, OSError) as error:
            raise AcclimateError(f"the adapters in {folder} do not fit this network: {str(error).splitlines()[-1].strip()}") from error
        return made.activate(about["active"]).requires_grad_(False)

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
        """Modules with their weights, what is frozen and where adapters stand, as text."""
        lines = []
        for path, layer in self.net.named_modules():
            own = sum(weight.numel() for weight in layer.parameters(recurse=False))
            beside = [name for name in self.adapters for key in self.parts(name) if self.sites[key].target == path]
            if own or beside:
                mark = f"  + {', '.join(beside)}" if beside else ""
                lines.append(f"{'  ' * path.count('.')}{path.rpartition('.')[2]} {type(layer).__name__} {own:,}{mark}")
        for name, held in self.adapters.items():
            count = sum(weight.numel() for weight in held.parameters())
            lines.append(f"adapter {name} ({self.specs[name]['use']}): {count:,} weights")
        return "\n".join(lines)

    def _known(self, name: str) -> None:
        if name not in self.adapters:
            raise AcclimateError(f"no adapter is named {name!r}{nearest(name, list(self.adapters))}")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)


def _first(args: tuple, kwargs: dict) -> Tensor:
    """A layer's input: its first tensor."""
    for value in (*args, kwargs.get("hidden_states"), *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise AcclimateError("a layer with an adapter was called without any tensor")


def _copies(tree: Part | Rows | None) -> int:
    if isinstance(tree, Parallel):
        return len(tree.parts)
    if tree is None or isinstance(tree, str | Rows):
        return 1
    return max(map(_copies, tree.parts))


def _repeat(value: Any, count: int) -> Any:
    return value.repeat(count, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value

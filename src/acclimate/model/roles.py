"""Where layers live in a network: by role, by the end of a name, or by a regular expression, so that no method knows an architecture.

Roles are read off the names that transformers gives; a network with other names is addressed by those.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import AcclimateError, nearest
from ..parts.layer_groups import LAYER

ROLES = {  # the end of a module's path, from a dot on
    "attn.q": r"q_proj|query|q_lin|\w*(?:Attention|attn)\.q",
    "attn.k": r"k_proj|key|k_lin|\w*(?:Attention|attn)\.k",
    "attn.v": r"v_proj|value|v_lin|\w*(?:Attention|attn)\.v",
    "attn.qkv": r"c_attn|query_key_value|qkv_proj|Wqkv",
    "attn.out": r"o_proj|out_proj|out_lin|attn\.c_proj|attention\.(?:output\.)?dense|\w*(?:Attention|attn)\.o",
    "ff.in": r"up_proj|gate_up_proj|c_fc|intermediate\.dense|wi|wi_1|fc1|lin1|dense_h_to_4h",
    "ff.gate": r"gate_proj|wi_0",
    "ff.out": r"down_proj|mlp\.c_proj|(?<!attention\.)output\.dense|DenseReluDense\.wo|fc2|lin2|dense_4h_to_h",
    "norm": r"\w*(?:norm|Norm)\w*|ln_\w+",
    "embedding": r"embed_tokens|wte|word_embeddings|embed_in|shared|patch_embeddings\.projection",
    "head": r"lm_head|embed_out|classifier|score|vocab_projector|predictions\.decoder",
}
PAIRS = {  # from the input of one layer to the output of another, in the same block
    "attn": (("attn.q", "attn.qkv"), "attn.out"),
    "ff": (("ff.in",), "ff.out"),
}
NAMES = (*ROLES, *PAIRS, "block", "linear")


@dataclass(frozen=True)
class Site:
    """A place for an adapter, which sees the input of ``source`` and adds to the output of ``target``: most often one layer."""

    source: str
    target: str
    inputs: int  # width of what goes in
    outputs: int  # width of what comes out
    layer: nn.Module  # the target itself

    @property
    def key(self) -> str:
        """Its name in files and in modules, where a dot may not stand."""
        return (self.target if self.source == self.target else f"{self.source}>{self.target}").replace(".", "/")

    @property
    def number(self) -> int:
        """Number of the layer it stands in, -1 outside the layers."""
        return number(self.target)


def number(path: str) -> int:
    """Number of the (outermost) layer that a module stands in, -1 outside.

    >>> number("model.layers.3.mlp.up_proj"), number("lm_head")
    (3, -1)
    """
    found = LAYER.match(f"{path}.")
    return int(found[2]) if found else -1


def role(path: str) -> str:
    """The role of a module, "" where it has none that is known.

    >>> role("bert.encoder.layer.0.attention.output.dense"), role("bert.encoder.layer.0.output.dense"), role("h.0.mlp.c_proj")
    ('attn.out', 'ff.out', 'ff.out')
    """
    return next((name for name, ends in ROLES.items() if re.fullmatch(rf"(?:.*\.)?(?:{ends})", path)), "")


def find(net: nn.Module, targets: str | Iterable[str], *, layers: str = "", exclude: Iterable[str] = ()) -> list[Site]:
    """The sites that ``targets`` name: roles (NAMES), ends of names from a dot on (``attn.q_proj``), or ``[r]`` and a regular expression.

    layers: numbers and ranges such as ``0-5,11``; everything if empty. exclude: as targets, what is left out.

    Raises AcclimateError for a target that matches nothing, with the nearest names.
    """
    modules = dict(net.named_modules())
    wanted = [targets] if isinstance(targets, str) else list(targets)
    left_out = {site.target for key in ([exclude] if isinstance(exclude, str) else exclude) for site in _matching(modules, key)}
    numbers = _numbers(layers)
    sites: dict[str, Site] = {}
    for key in wanted:
        found = _matching(modules, key)
        if not found:
            known = {*NAMES, *(path.rpartition(".")[2] for path in modules if path and not path.rpartition(".")[2].isdigit())}
            raise AcclimateError(f"no layer of the model is named {key!r}{nearest(key, known)}; roles are {', '.join(NAMES)}")
        kept = [site for site in found if site.target not in left_out and (not numbers or site.number in numbers)]
        if not kept:
            raise AcclimateError(f"no layer that {key!r} names is left after layers = {layers!r} and exclude")
        sites |= {site.key: site for site in kept}
    return list(sites.values())


def _matching(modules: dict[str, nn.Module], key: str) -> list[Site]:
    if key in PAIRS:
        return _pairs(modules, *PAIRS[key])
    paths = [path for path, layer in modules.items() if path and _named(path, layer, key)]
    if key == "block":  # the outermost: T5's blocks hold numbered layers again
        paths = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    return [Site(path, path, *widths(modules[path]), modules[path]) for path in paths]


def _named(path: str, layer: nn.Module, key: str) -> bool:
    if key == "linear":
        return linear(layer) and role(path) != "head"
    if key == "block":
        return (match := LAYER.match(f"{path}.")) is not None and match[3] == "."
    if key in ROLES:
        return role(path) == key
    if key.startswith("[r]"):
        try:
            return re.fullmatch(key[3:], path) is not None
        except re.error as error:
            raise AcclimateError(f"{key!r} is no regular expression ({error})") from error
    return path == key or path.endswith(f".{key}")


def _pairs(modules: dict[str, nn.Module], sources: tuple[str, ...], target: str) -> list[Site]:
    """Each target with the source that stands nearest before it, in the same block."""
    found, last = [], ""
    first: dict[str, str] = {}  # OPT's and BART's modules are listed in another order than they run
    for path in reversed(modules):
        if role(path) in sources:
            first[_stem(path)] = path
    for path in modules:
        if role(path) in sources:
            last = path
        elif role(path) == target:
            near = last if last and _stem(last) == _stem(path) else first.get(_stem(path))
            if near:
                found.append(Site(near, path, widths(modules[near])[0], widths(modules[path])[1], modules[path]))
    return found


def _stem(path: str) -> str:
    """The block that a module stands in, with the sublayer where blocks have numbered ones (T5), or the module's own (encoder_attn)."""
    match = LAYER.match(path)
    rest = match[3].strip(".").split(".") if match else []
    inner = ".".join(rest[:2]) if rest[:1] == ["layer"] else rest[0] if rest and rest[0].endswith("attn") else ""
    return f"{match[1]}{match[2]}.{inner}" if match else path.rpartition(".")[0]


def linear(layer: Any) -> bool:
    """Whether a layer is a matrix: torch's Linear, or GPT-2's Conv1D, which stores it as [input, output]."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def widths(layer: nn.Module) -> tuple[int, int]:
    """Widths of a layer's input and output; of a block those of its first and its last layer that have any.

    >>> widths(nn.Linear(3, 5)), widths(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 9), nn.GELU(), nn.Linear(9, 4)))
    ((3, 5), (4, 4))
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if type(layer).__name__ == "Conv1D":
        weight: Any = layer.weight
        return weight.shape[0], weight.shape[1]
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        return layer.num_features, layer.num_features
    if not list(layer.children()):
        size = next((weight.shape[-1] for weight in layer.parameters()), 0)
        return size, size
    inner = [pair for pair in map(widths, layer.children()) if all(pair)]
    return (inner[0][0], inner[-1][1]) if inner else (0, 0)


def _numbers(layers: str) -> set[int]:
    """
    >>> sorted(_numbers("0-2,7"))
    [0, 1, 2, 7]
    """
    found: set[int] = set()
    for part in filter(None, str(layers).replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise AcclimateError(f"layers = {layers!r}, but must be numbers and ranges such as 0-5,11")
        found |= set(range(int(first), int(last or first) + 1))
    return found

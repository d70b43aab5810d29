"""A library of tags for a frozen language model: named groups of vectors, written <NAME> in templates, with heads for numbers."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AcclimateError, nearest
from ..files import atomic_dir, read_json, write_json

CONFIG, WEIGHTS = "tags.json", "tags.safetensors"
PIECE = re.compile(r"<([A-Za-z][\w-]*)>|\{(\w+)\}")


@dataclass
class Encoded:
    """A filled template: ids, the domain spans as [start, end), where the label begins, the last token of the last function tag (or -1)."""

    ids: list[int]
    spans: list[tuple[int, int]] = field(default_factory=list)
    label: int = -1  # -1 where the template has none
    read: int = -1


def pieces(template: str) -> Iterator[tuple[str, str]]:
    """A template's parts in order: ("tag", name), ("field", name) or ("text", words).

    >>> list(pieces("<LAW> {text} <CLASS>{label}"))
    [('tag', 'LAW'), ('text', ' '), ('field', 'text'), ('text', ' '), ('tag', 'CLASS'), ('field', 'label')]
    """
    last = 0
    for found in PIECE.finditer(template):
        if found.start() > last:
            yield "text", template[last : found.start()]
        yield ("tag", found[1]) if found[1] else ("field", found[2])
        last = found.end()
    if last < len(template):
        yield "text", template[last:]


class Tags(nn.Module):
    """Tags of one model by name, in the order they were made: their vectors follow each other, and so do their (virtual) ids."""

    def __init__(self, width: int, first: int):
        super().__init__()
        self.width, self.first = width, first
        self.kinds: dict[str, str] = {}  # name -> domain or function
        self.vectors = nn.ParameterList()
        self.heads = nn.ModuleDict()  # "head_" + name -> linear, without bias
        self.scales: dict[str, tuple[float, float]] = {}  # name -> mean and standard deviation of its labels

    @classmethod
    def of(cls, net: Any) -> "Tags":
        """An empty library for a network."""
        rows, width = net.get_input_embeddings().weight.shape
        return cls(width, rows)

    def add(self, name: str, kind: str, count: int, start: Tensor, *, numeric: bool = False, head: Tensor | None = None) -> "Tags":
        """A new tag of ``count`` vectors that all begin as ``start`` [width]; ``numeric``: with a head that begins as ``head`` [width]."""
        if name in self.kinds:
            raise AcclimateError(f"a tag is named {name!r} already; choose another name")
        if not re.fullmatch(r"[A-Za-z][\w-]*", name):
            raise AcclimateError(f"a tag cannot be named {name!r}; use letters, digits, - and _, a letter first")
        self.kinds[name] = kind
        self.vectors.append(nn.Parameter(start.detach().clone().expand(count, -1).contiguous()))
        if numeric:
            made = nn.Linear(self.width, 1, bias=False, device=start.device)
            with torch.no_grad():
                made.weight.copy_((start if head is None else head)[None])
            self.heads[f"head_{name}"] = made
        return self

    def forward(self, numbers: Tensor) -> Tensor:
        """Vectors of virtual ids, counted from 0 [n] -> [n, width]."""
        return torch.cat(list(self.vectors))[numbers]

    def ids(self, name: str) -> list[int]:
        """The virtual ids that a tag expands to."""
        if name not in self.kinds:
            raise AcclimateError(f"no tag is named {name!r}{nearest(name, self.kinds)}")
        place = list(self.kinds).index(name)
        start = self.first + sum(len(one) for one in list(self.vectors)[:place])
        return list(range(start, start + len(self.vectors[place])))

    def weights(self, name: str) -> str:
        """A pattern of the names of a tag's weights, its head among them, wherever the library stands."""
        self.ids(name)
        return rf"(^|\.)(vectors\.{list(self.kinds).index(name)}|heads\.head_{re.escape(name)}\.weight)$"

    def encode(self, template: str, fields: Mapping[str, Any], tokenizer: Any, *, end: bool = True, most: int = 0) -> Encoded:
        """Fill a template. A domain's span begins with its tag and goes to the next tag or the label; ``end`` closes a label that is text.

        Of each field but the label the first ``most`` tokens are kept (0: all). Raises AcclimateError for unknown tags and fields.
        """
        made = Encoded([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id])
        opened = -1
        for kind, value in pieces(template):
            here = len(made.ids)
            if opened >= 0 and (kind == "tag" or (kind == "field" and value == "label")):
                made.spans.append((opened, here))
                opened = -1
            if kind == "tag":
                made.ids += self.ids(value)
                if self.kinds[value] == "domain":
                    opened = here
                else:
                    made.read = len(made.ids) - 1
                continue
            if kind == "field" and value not in fields:
                raise AcclimateError(f"template {template!r} asks for {{{value}}}, but the row has {', '.join(fields)}")
            if kind == "field" and value == "label":
                made.label = here
            text = value if kind == "text" else str(fields[value])
            ids = tokenizer(text, add_special_tokens=False).input_ids
            made.ids += ids[:most] if most and kind == "field" and value != "label" else ids
        if opened >= 0:
            made.spans.append((opened, len(made.ids)))
        if end and made.label >= 0 and tokenizer.eos_token_id is not None:
            made.ids.append(tokenizer.eos_token_id)
        return made

    def save(self, folder: str | Path) -> Path:
        """name -> kind, ids and scale as JSON; vectors and heads as safetensors. The folder appears whole or not at all."""
        from safetensors.torch import save_file

        about = {
            "width": self.width,
            "first": self.first,
            "tags": {name: {"kind": kind, "ids": self.ids(name), "scale": self.scales.get(name)} for name, kind in self.kinds.items()},
        }
        with atomic_dir(Path(folder)) as temporary:
            write_json(temporary / CONFIG, about)
            save_file({key: value.contiguous() for key, value in self.state_dict().items()}, temporary / WEIGHTS, {"format": "pt"})
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, net: Any) -> "Tags":
        """A stored library for a network. Raises AcclimateError where the network has another width or size of vocabulary."""
        from safetensors.torch import load_file

        about = read_json(Path(folder) / CONFIG)
        made = cls.of(net)
        if (made.width, made.first) != (about["width"], about["first"]):
            raise AcclimateError(
                f"the tags in {folder} are for a model of width {about['width']} with {about['first']} ids, "
                f"but this one has width {made.width} and {made.first} ids"
            )
        stored = load_file(Path(folder) / WEIGHTS)
        for name, tag in about["tags"].items():
            made.add(name, tag["kind"], len(tag["ids"]), torch.zeros(made.width), numeric=f"heads.head_{name}.weight" in stored)
            if tag["scale"]:
                made.scales[name] = (tag["scale"][0], tag["scale"][1])
        made.load_state_dict(stored)
        return made


def norm_matched(table: Tensor) -> Tensor:
    """Where tags begin: the mean embedding, as long as embeddings are on the mean [width].

    >>> norm_matched(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).tolist()  # the mean (1.5, 0.5) at length 2
    [1.8973665237426758, 0.6324555277824402]
    """
    mean = table.float().mean(0)
    return mean / mean.norm().clamp(min=1e-12) * table.float().norm(dim=1).mean()


def isolated(length: int, spans: list[tuple[int, int]]) -> Tensor:
    """What each token may read [token, token], causal; inside a span nothing before the span.

    >>> isolated(4, [(2, 4)]).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    for start, end in spans:
        mask[start:end, :start] = False
    return mask

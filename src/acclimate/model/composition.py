"""How adapters are put together: blocks that nest, checked when they are made, and what they come to at one layer.

Pfeiffer et al. 2020 (AdapterHub) and Poth et al. 2023, table 2, https://arxiv.org/abs/2311.11077

>>> parse("stack(law, fuse(a, b))")
Stack(law, Fuse(a, b))
>>> parse("average(a, b; 0.25, 0.75)").sizes
(0.25, 0.75)
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, Union

import torch
from torch import Tensor

from ..errors import AcclimateError, nearest

Part = Union[str, "Block"]
Beside = Callable[[Tensor, Tensor], Tensor]  # input and output of a layer -> what is added to the output


class Block:
    """A way to put parts (names of adapters, or blocks) together; ``sizes`` are lengths or weights, one for each part."""

    holds: ClassVar[tuple[str, ...]] = ()  # blocks that may stand inside
    sized: ClassVar[str] = ""  # what the sizes are

    def __init__(self, *parts: Part, sizes: tuple[float, ...] = ()):
        title = type(self).__name__
        if not parts:
            raise AcclimateError(f"{title} holds no adapters")
        for part in parts:
            if isinstance(part, Block) and type(part).__name__ not in self.holds:
                raise AcclimateError(
                    f"{type(part).__name__} cannot stand inside {title}; {title} holds names of adapters, {', '.join(self.holds)}"
                )
        if sizes and not self.sized:
            raise AcclimateError(f"{title} takes no sizes")
        if sizes and len(sizes) != len(parts):
            raise AcclimateError(f"{title} has {len(parts)} parts but {len(sizes)} {self.sized}; give one for each")
        if not sizes and self.sized in ("tokens", "rows"):
            raise AcclimateError(f"{title} needs {self.sized}: how many belong to each part")
        self.parts, self.sizes = parts, tuple(sizes)

    def __repr__(self) -> str:
        sizes = f"; {', '.join(f'{size:g}' for size in self.sizes)}" if self.sizes else ""
        return f"{type(self).__name__}({', '.join(map(str, self.parts))}{sizes})"

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Stack(Block):
    """One after the other: each sees what the one before made of the layer's output."""

    holds = ("Fuse", "Split", "BatchSplit", "Parallel", "Average")


class Fuse(Block):
    """AdapterFusion (Pfeiffer et al. 2021): attention over the adapters' outputs, learned at each layer."""

    holds = ("Stack",)


class Split(Block):
    """Parts of the sequence: the first tokens go to the first part, and so on; what is left goes to the last."""

    holds, sized = ("Stack", "Fuse", "Average"), "tokens"


class BatchSplit(Block):
    """Parts of the batch: the first rows go to the first part, and so on."""

    holds, sized = ("Stack", "Fuse", "Split", "Average"), "rows"


class Parallel(Block):
    """The whole batch through every part: it comes out once for each, part by part along the rows."""

    holds = ("Stack", "Fuse", "Split", "Average")


class Average(Block):
    """The weighted mean of what the parts make of the output."""

    holds, sized = ("Stack", "Fuse", "Split"), "weights"


class Rows:
    """Every row of the batch has an adapter of its own ("" for none): requests of many users in one batch."""

    def __init__(self, names: Iterable[str]):
        if isinstance(names, str):
            raise AcclimateError(
                f"Rows takes a list with a name for each row, but was given the text {names!r}; write Rows([{names!r}, ...])"
            )
        self.names = tuple(names)
        self.parts = tuple(dict.fromkeys(name for name in self.names if name))

    def owners(self, parts: Iterable[str]) -> Tensor:
        """The place of each row's adapter among ``parts`` [row], -1 where it is not among them."""
        place = {name: i for i, name in enumerate(parts)}
        return torch.tensor([place.get(name, -1) for name in self.names])

    def repeated(self, count: int) -> "Rows":
        """Each row ``count`` times in a row, as beams or several answers to one prompt stand in a batch."""
        return Rows(name for name in self.names for _ in range(count))

    def __repr__(self) -> str:
        return f"Rows({', '.join(self.names)})"


BLOCKS: dict[str, type[Block]] = {kind.__name__.lower(): kind for kind in (Stack, Fuse, Split, BatchSplit, Parallel, Average)}


def names(tree: "Part | Rows") -> Iterator[str]:
    """The adapters in a composition, as they come."""
    if isinstance(tree, str):
        yield tree
    else:
        for part in tree.parts:
            yield from names(part)


def fusions(tree: "Part | Rows") -> Iterator[Fuse]:
    """The Fuse blocks in a composition."""
    if isinstance(tree, Block):
        if isinstance(tree, Fuse):
            yield tree
        for part in tree.parts:
            yield from fusions(part)


def copies(tree: "Part | Rows | None") -> int:
    """How often a composition runs every row: the parts of a Parallel, else once."""
    if isinstance(tree, Parallel):
        return len(tree.parts)
    if tree is None or isinstance(tree, str | Rows):
        return 1
    return max(map(copies, tree.parts))


def branches(tree: Part, rows: int) -> list[tuple[int, list[tuple[str, ...]]]]:
    """The branches that a composition's output of ``rows`` rows has, in order: their rows, and their adapters level by level, top last.

    >>> branches(parse("stack(law, parallel(a, average(b, c)))"), 6)
    [(3, [('law',), ('a',)]), (3, [('law',), ('b', 'c')])]
    """
    if isinstance(tree, str):
        return [(rows, [(tree,)])]
    if isinstance(tree, Parallel | BatchSplit):
        count = len(tree.parts)
        sizes = [rows // count] * count if isinstance(tree, Parallel) else _lengths(tree, rows)
        return [found for part, size in zip(tree.parts, sizes, strict=True) for found in branches(part, size)]
    if not isinstance(tree, Stack):
        return [(rows, [tuple(dict.fromkeys(names(tree)))])]
    below: list[tuple[int, list[tuple[str, ...]]]] = [(rows, [])]
    for part in tree.parts:
        here = branches(part, rows)
        if len(here) > 1 and len(below) == 1:
            below = [(size, [*below[0][1], *levels]) for size, levels in here]
        elif len(here) == 1 or [size for size, _ in here] == [size for size, _ in below]:
            below = [(size, [*levels, *here[i % len(here)][1]]) for i, (size, levels) in enumerate(below)]
        else:
            raise AcclimateError(f"{tree} divides the rows in two ways, so no branch is one head's")
    return below


def parse(text: str) -> Part:
    """A composition from its text; a plain name is one adapter. Raises AcclimateError for what does not read."""
    tokens = re.findall(r"[(),;]|[^\s(),;]+", text)
    found, rest = _parse(tokens, text)
    if rest:
        raise AcclimateError(f"composition {text!r} goes on after its end: {' '.join(rest)}")
    return found


def _parse(tokens: list[str], text: str) -> tuple[Part, list[str]]:
    if not tokens or tokens[0] in "(),;":
        raise AcclimateError(f"composition {text!r} lacks a name; write e.g. stack(law, fuse(a, b)) or split(a, b; 16, 32)")
    head, rest = tokens[0], tokens[1:]
    if not rest or rest[0] != "(":
        return head, rest
    kind = BLOCKS.get(head.lower().replace("_", ""))
    if kind is None:
        raise AcclimateError(f"composition {text!r}: no block is named {head!r}{nearest(head.lower(), BLOCKS)}")
    parts: list[Part] = []
    while rest and rest[0] in ("(", ","):
        part, rest = _parse(rest[1:], text)
        parts.append(part)
    sizes: list[float] = []
    while rest and rest[0] in (";", ","):
        try:
            sizes.append(float(rest[1]))
        except (IndexError, ValueError) as error:
            raise AcclimateError(f"composition {text!r}: after ; stand numbers with commas between them") from error
        rest = rest[2:]
    if not rest or rest[0] != ")":
        raise AcclimateError(f"composition {text!r}: {head} is not closed by )")
    return kind(*parts, sizes=tuple(sizes)), rest[1:]


def apply(tree: "Part | Rows", x: Tensor, y: Tensor, beside: Mapping[str, Beside], fused: Mapping[str, Beside]) -> Tensor:
    """What a composition makes of a layer's output y [row, ..., width] whose input was x; adapters that are not ``beside`` it do nothing.

    ``fused`` gives the attention over several outputs [part, row, ..., width] for each Fuse, by its text.
    """
    if isinstance(tree, str):
        return y + beside[tree](x, y) if tree in beside else y
    if isinstance(tree, Rows):
        return _rows(tree, x, y, beside)
    if isinstance(tree, Stack):
        for part in tree.parts:
            y = apply(part, x, y, beside, fused)
        return y
    if isinstance(tree, Fuse):
        made = [apply(part, x, y, beside, fused) - y for part in tree.parts if any(name in beside for name in names(part))]
        return y + fused[repr(tree)](y, torch.stack(made)) if made else y
    if isinstance(tree, Average):
        weights = tree.sizes or (1 / len(tree.parts),) * len(tree.parts)
        return y + sum(weight * (apply(part, x, y, beside, fused) - y) for part, weight in zip(tree.parts, weights, strict=True))
    if isinstance(tree, Split):
        sizes = _lengths(tree, y.shape[-2], open_end=True)
        side = -2
    else:
        count = len(tree.parts)
        sizes = [y.shape[0] // count] * count if isinstance(tree, Parallel) else _lengths(tree, y.shape[0])
        side = 0
    pieces = zip(tree.parts, x.split(sizes, side), y.split(sizes, side), strict=True)
    return torch.cat([apply(part, own, out, beside, fused) if out.numel() else out for part, own, out in pieces], side)


def _lengths(tree: Block, whole: int, open_end: bool = False) -> list[int]:
    """Lengths of the pieces; a sequence may be shorter or longer than a Split says, a batch may not."""
    found, left = [], whole
    for size in tree.sizes:
        found.append(min(int(size), left))
        left -= found[-1]
    if (left and not open_end) or (not open_end and sum(map(int, tree.sizes)) != whole):
        raise AcclimateError(f"{tree} is for {sum(map(int, tree.sizes))} rows, but the batch has {whole}")
    found[-1] += left
    return found


def _rows(tree: Rows, x: Tensor, y: Tensor, beside: Mapping[str, Beside]) -> Tensor:
    y = y.clone()
    owners = tree.owners(beside)
    for i, part in enumerate(beside.values()):
        own = (owners == i).nonzero().flatten().to(y.device)
        if len(own):
            y[own] = y[own] + part(x[own], y[own])
    return y

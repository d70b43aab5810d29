"""Domains by name as pools of rows that networks take: text as vectors of a frozen encoder or as its tokens, all else as it is.

A graph's rows are the numbers of its nodes (of many small graphs their numbers), graph after graph; the graphs themselves are given to the
network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import datasets
from ..domain import Domain
from ..domain.arrays import ArrayDomain, form_of, open_domain
from ..domain.graphs import ENDING, INDICATOR, Graph
from ..engines.shift import Pool
from ..errors import AcclimateError, nearest
from ..files import atomic_file, cache_dir, digest
from ..progress import say

if TYPE_CHECKING:
    from ..model import Model

SCALES = ("auto", "none", "source", "each")
SPLITS = ("train", "validation", "test")
Parts = dict[str, Pool]


@dataclass
class Shifted:
    """A domain as pools by split (train, validation, test) and its classes by number."""

    parts: Parts
    classes: list[str]
    text: bool = False  # whether the rows were made of text
    graph: Graph | None = None  # whose nodes the rows are
    rate: int = 0  # samples a second, where the rows are recordings

    def numbered(self, classes: Sequence[str]) -> Parts:
        """The pools with labels as numbers of these classes; a class that is not among them has their number (unknown)."""
        table = torch.tensor([classes.index(c) if c in classes else len(classes) for c in self.classes])
        return {split: replace(pool, y=None if pool.y is None else table[pool.y]) for split, pool in self.parts.items()}


def load_domains(wanted: Sequence[str], data: str = "", encoder: str = "minilm", tokens: int = 0) -> dict[str, Shifted]:
    """Domains by name; one without held-out rows gives a fifth of its training rows.

    Text becomes vectors of the frozen encoder, or with ``tokens`` that many token ids per text, for an encoder that learns too. Of a graph
    (a named one, or a file or folder that ``Graph.load`` reads) the classes of some nodes, or of some small graphs, are held out; all
    its edges and features are seen.

    Raises AcclimateError for names nobody knows, domains without labels, and graphs beside other rows or of other features.
    """
    refs = _refs(wanted, data)
    graphs = {name: _graph(ref) for name, ref in zip(wanted, refs, strict=True) if _is_graph(ref)}
    if graphs:
        return _nodes(graphs, wanted)
    found = {}
    for name, ref in zip(wanted, refs, strict=True):
        if form_of({"source": ref}) == "speech":
            found[name] = _recordings(ref, name)
            continue
        domain = open_domain(name, ref)
        if isinstance(domain, ArrayDomain):
            parts, classes = {split: Pool.of(rows, name) for split, rows in domain.splits.items()}, list(domain.classes)
        else:
            parts, classes = _text_pools(domain, name, encoder, tokens)
        found[name] = Shifted(_held_out(parts, name), classes, not isinstance(domain, ArrayDomain))
    return found


def _refs(wanted: Sequence[str], data: str) -> list[str]:
    if data:
        return [f"{data}/{name}" for name in wanted]
    bare = [name for name in wanted if "/" not in name and not Path(name).expanduser().exists()]
    if not bare:
        return list(wanted)
    fitting = [each for each in datasets.names() if {*bare} <= {*datasets.domains(each)}]
    if not fitting:
        known = [f"{each}/{domain}" for each in datasets.names() for domain in datasets.domains(each)]
        raise AcclimateError(f"no dataset has all of {', '.join(bare)}{nearest(bare[0], known)}; write dataset/domain, or name --data")
    if len(fitting) > 1:
        raise AcclimateError(f"{', '.join(fitting)} all have {', '.join(bare)}; say which with --data")
    say(f"{', '.join(bare)}: domains of {fitting[0]}")
    return [f"{fitting[0]}/{name}" if name in bare else name for name in wanted]


def _is_graph(ref: str) -> bool:
    path = Path(ref).expanduser()
    return _is_graph_file(path) or form_of({"source": ref}) == "graph"


def _is_graph_file(path: Path) -> bool:
    return (path.suffix == ENDING and path.is_file()) or (path.is_dir() and any(path.glob(f"*{INDICATOR}")))


def _graph(ref: str) -> Graph:
    graph = Graph.load(ref) if _is_graph_file(Path(ref).expanduser()) else datasets.load(ref)
    graph.check()
    if graph.isolated and graph.member is None:
        say(f"{graph.name}: {graph.isolated} of {len(graph)} nodes have no edge, so that their own features alone tell their class")
    return graph


def _nodes(graphs: dict[str, Graph], wanted: Sequence[str]) -> dict[str, Shifted]:
    """Numbers of nodes or small graphs, graph after graph in the order wanted: as models.graph.GraphNet numbers them."""
    if other := [name for name in wanted if name not in graphs]:
        raise AcclimateError(f"{next(iter(graphs))!r} is a graph, but {other[0]!r} is not; give domains of one kind")
    first, found = next(iter(graphs.values())), {}
    start = 0
    for name, graph in graphs.items():
        if graph.x.shape[1] != first.x.shape[1]:
            raise AcclimateError(
                f"{graph.name} has {graph.x.shape[1]} features a node, but {first.name} has {first.x.shape[1]}; "
                "give graphs of the same features"
            )
        if (graph.member is None) != (first.member is None):
            raise AcclimateError(f"{graph.name} and {first.name} do not classify the same: nodes of one graph, or many small graphs")
        pool = Pool(name, start + torch.arange(graph.rows), torch.from_numpy(graph.y))
        found[name] = Shifted(_held_out({"train": pool}, name), list(graph.classes), graph=graph)
        start += graph.rows
    return found


def _recordings(ref: str, name: str) -> Shifted:
    """Single words as waves of a second [row, 1, sample], cut or padded by silence at the end; the word is the class."""
    speech = datasets.load(ref)
    if several := next((words for words in speech.words if len(words) != 1), None):
        raise AcclimateError(f"{name!r} has a recording of {len(several)} words; shift classifies recordings of one word each")
    x = torch.zeros(len(speech), 1, speech.rate)
    for row, wave in enumerate(speech.waves):
        x[row, 0, : len(wave)] = wave[: speech.rate]
    classes = sorted({words[0] for words in speech.words})
    pool = Pool(name, x, torch.tensor([classes.index(words[0]) for words in speech.words]))
    return Shifted(_held_out({"train": pool}, name), classes, rate=speech.rate)


def _text_pools(domain: Domain, name: str, encoder: str, tokens: int) -> tuple[Parts, list[str]]:
    if domain.form != "labelled":
        raise AcclimateError(f"domain {name!r} has no labels ({domain.form}); shift needs labelled rows, for the target to be measured by")
    labels = {split: [str(row) for row in domain.rows(split)["label"]] for split in domain.splits}
    classes = sorted({label for each in labels.values() for label in each})
    parts = {}
    for split, own in labels.items():
        if own:
            texts = domain.rows(split)["text"]
            x = token_rows(texts, encoder, tokens) if tokens else encoded(texts, encoder)
            parts[split] = Pool(name, x, torch.tensor([classes.index(label) for label in own]))
    return parts, classes


def encoded(texts: Sequence[str], encoder: str = "minilm") -> Tensor:
    """Vectors of texts by a frozen encoder [text, width], kept in the cache by their content."""
    from ..engines.embed import Encoder

    model = _encoder(encoder)
    return kept([model.fingerprint, list(texts)], lambda: Encoder(model).encode(list(texts)))


def token_rows(texts: Sequence[str], encoder: str, length: int) -> Tensor:
    """Token ids of texts, cut or padded to one length [text, length]."""
    tokenizer = _encoder(encoder).tokenizer
    made = tokenizer(list(texts), truncation=True, max_length=length, padding="max_length", return_tensors="pt")
    return made["input_ids"]


def kept(key: Any, make: Callable[[], Tensor]) -> Tensor:
    """A tensor that is made once and then read from the cache, by what identifies it."""
    from safetensors.torch import load_file, save_file

    path = cache_dir("vectors") / f"{digest(key)}.safetensors"
    if not path.is_file():
        made = make().contiguous()
        with atomic_file(path) as temporary:
            save_file({"x": made}, temporary)
    return load_file(path)["x"]


@lru_cache(maxsize=1)
def _encoder(ref: str) -> "Model":
    from ..model import Model

    return Model.load(ref, kind="encoder")


def _held_out(parts: Parts, name: str) -> Parts:
    """Train, validation and test; a fifth of the training rows, always the same, stands in for a split that is missing."""
    if "train" not in parts:
        raise AcclimateError(f"domain {name!r} has no training rows")
    found = dict(parts)
    for number, split in enumerate(("test", "validation")):
        if split not in found:
            pool = found["train"]
            order = np.random.default_rng(number).permutation(len(pool))
            cut = max(1, len(pool) // 5)
            found[split], found["train"] = pool.select(np.sort(order[:cut])), pool.select(np.sort(order[cut:]))
    return {split: found[split] for split in SPLITS}


Scale = tuple[Tensor, Tensor]  # what is taken off each column, and what it is divided by


def scaled(every: dict[str, Parts], target: str, scale: str) -> tuple[dict[str, Parts], Scale | None]:
    """Domains with standardised columns, and how the target's were; by the sources' training rows, or each domain by its own."""
    sample = next(iter(every.values()))["train"].x
    how = ("source" if sample.ndim == 2 else "none") if scale == "auto" else scale
    if how == "none" or not sample.is_floating_point():
        return every, None
    pooled = torch.cat([parts["train"].x for key, parts in every.items() if key != target])
    by = {key: _moments(parts["train"].x if how == "each" else pooled) for key, parts in every.items()}
    return {key: _standardised(parts, by[key]) for key, parts in every.items()}, by[target]


def scaled_by_first(every: dict[str, Parts]) -> dict[str, Parts]:
    """Domains whose columns are standardised by the first one's training rows; those that come later are not looked at."""
    by = _moments(next(iter(every.values()))["train"].x)
    return {key: _standardised(parts, by) for key, parts in every.items()}


def _standardised(parts: Parts, by: Scale) -> Parts:
    mean, width = by
    return {split: replace(pool, x=(pool.x - mean) / width) for split, pool in parts.items()}


def _moments(rows: Tensor) -> Scale:
    over = [0, *range(2, rows.ndim)]
    mean, width = rows.mean(over, keepdim=True), rows.std(over, keepdim=True, unbiased=False)
    return mean, torch.where(width > 1e-8, width, torch.ones_like(width))  # a column that never changes stays as it is

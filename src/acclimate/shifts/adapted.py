"""What a run leaves behind: a learner that knows its method, its classes and how its rows are made, saved whole and used on new rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ..domain.graphs import ENDING, Graph
from ..engines.shift import Learner, Place, predict
from ..engines.shift.loop import add_parts
from ..errors import AcclimateError, nearest
from ..files import atomic_dir, read_json, write_json
from ..method import load
from ..model.arrays import backbone as new_backbone
from ..parts.openness import UNKNOWN
from .domains import Scale, encoded, token_rows

TOKENS = 128  # of a text, for an encoder that learns
FILE, WEIGHTS = "adapted.json", "learner.pt"
GRAPHS = "graph-{}" + ENDING  # beside them, where rows are nodes
BY_SHAPE = {1: "mlp", 2: "series", 3: "convnet"}  # of a row -> backbone
STATE = ("domains", "sources", "about", "distances", "sample")  # of a learner, beside weights and memory


def make_learner(
    x: Tensor,
    classes: Sequence[str],
    backbone: str = "",
    head: str = "linear",
    seed: int = 0,
    options: dict[str, Any] | None = None,
    graphs: Sequence[Graph] = (),
) -> Learner:
    """A learner for rows like x [row, *shape], drawn from the seed: mlp for vectors, series for [channel, time], convnet for images.

    ``options`` are the backbone's settings; how many inputs or channels it has is read off the rows. With ``graphs`` rows are numbers of
    their nodes (or small graphs) [row], graph after graph, and the backbone is graph.
    """
    shape = x.shape[1:]
    name = backbone or ("graph" if graphs else BY_SHAPE.get(len(shape), ""))
    if not name:
        raise AcclimateError(f"no backbone is made for rows of the shape {list(shape)}; name one")
    if (name == "graph") != bool(graphs):
        raise AcclimateError(
            f"nodes of graphs need the backbone graph, not {name}; leave it out"
            if graphs
            else "the backbone graph needs domains that are graphs (citation/acm, airports/usa, a file.npz); give such, or name another"
        )
    if graphs:
        width = {"inputs": graphs[0].x.shape[1]}
    else:
        width = {"mlp": {"inputs": shape[0]}, "text": {}}.get(name, {"channels": shape[0]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = new_backbone(name, {**width, **(options or {})})
        if graphs:
            net.attach(graphs)  # type: ignore[operator]
        return Learner(net, classes, head=head)


def text_options(backbone: str, options: dict[str, Any], encoder: str) -> tuple[dict[str, Any], int]:
    """A backbone's settings, and how many token ids a text is: 0 where it is a vector of a frozen encoder.

    >>> text_options("text", {"tokens": 64}, "minilm")
    ({'encoder': 'minilm'}, 64)
    """
    if backbone != "text":
        return options, 0
    return {**{key: value for key, value in options.items() if key != "tokens"}, "encoder": encoder}, int(options.get("tokens", TOKENS))


def sound_options(backbone: str, options: dict[str, Any], rate: int) -> tuple[str, dict[str, Any]]:
    """Backbone and settings for recordings at a rate in samples a second: audio, unless another is named; 0 where rows are no sound.

    >>> sound_options("", {"width": 8}, 8000), sound_options("", {}, 0)
    (('audio', {'rate': 8000, 'width': 8}), ('', {}))
    """
    return ("audio", {"rate": rate, **options}) if rate and backbone in ("", "audio") else (backbone, options)


@dataclass
class Adapted:
    """A learner after a shift method. ``predict`` takes rows as they come: texts where an encoder is named, arrays otherwise.

    Of graphs it knows the nodes of those it was trained with (``nodes``) and no others: for a new graph, train anew.
    """

    method: Any
    learner: Learner = field(repr=False)
    target: str = ""
    head: str = "linear"
    encoder: str = ""
    tokens: int = 0
    scale: Scale | None = field(default=None, repr=False)
    seed: int = 0  # of the run: parts that are drawn and not stored are drawn again
    graphs: dict[str, Graph] = field(default_factory=dict, repr=False)  # by domain, in the order in which the network has them

    @property
    def classes(self) -> list[str]:
        """Names of the classes by number."""
        return self.learner.names

    def nodes(self, domain: str = "") -> Tensor:
        """The numbers of all nodes of a domain that is a graph (by default the target), in its own order [node]; of many, the graphs'."""
        name, first = domain or self.target, 0
        if name not in self.graphs:
            raise AcclimateError(
                f"no graph {name!r} was trained with{nearest(name, self.graphs)}; it has: {', '.join(self.graphs) or 'none'}"
            )
        for each, graph in self.graphs.items():
            if each == name:
                break
            first += graph.rows
        return first + torch.arange(self.graphs[name].rows)

    def rows(self, given: Sequence[str] | Tensor) -> Tensor:
        """Rows as the network takes them [row, *shape]."""
        if self.graphs and not (isinstance(given, Tensor) and given.ndim == 1 and given.dtype == torch.long):
            raise AcclimateError(
                f"this learner knows the nodes of its graphs only ({', '.join(self.graphs)}); give their numbers as nodes() has them, and "
                "train anew for another graph"
            )
        if isinstance(given, Tensor):
            x = given
        elif not self.encoder:
            raise AcclimateError("this learner was not trained on text; give it rows of numbers (a tensor) like those it learned from")
        else:
            x = token_rows(given, self.encoder, self.tokens) if self.tokens else encoded(given, self.encoder)
        sample = self.learner.sample
        if sample is not None and x.shape[1:] != sample.shape[1:]:
            raise AcclimateError(f"rows have the shape {list(x.shape[1:])}, but the learner was trained on {list(sample.shape[1:])}")
        return x if self.scale is None else (x - self.scale[0]) / self.scale[1]

    def scores(self, given: Sequence[str] | Tensor, domain: str = "", about: Tensor | None = None) -> Tensor:
        """Scores of the classes [row, class]; ``domain`` says which domain the rows are of (by default the target)."""
        learner = self.learner
        where: Place = learner.place(domain or self.target, about)
        return predict(self.method, learner, self.rows(given), where)

    def predict(self, given: Sequence[str] | Tensor, domain: str = "") -> list[str]:
        """The likeliest class of each row, or "unknown" where the method is for open classes and knows none."""
        names = [*self.classes, UNKNOWN]
        return [names[number] for number in self.scores(given, domain).argmax(1).tolist()]

    def save(self, folder: str | Path) -> Path:
        """Write ``adapted.json`` (what it is) and ``learner.pt`` (weights and what the method remembers); whole or not at all.

        Graphs are written beside them.
        """
        learner, folder = self.learner, Path(folder)
        net = learner.featurizer
        if not hasattr(net, "settings"):
            raise AcclimateError(f"{type(net).__name__} cannot be read back: it does not say what it was made with (settings)")
        about = {"method": self.method.name, "settings": self.method.values(), "classes": self.classes, "head": self.head}
        about |= {"backbone": type(net).__module__.rpartition(".")[2], "options": net.settings}
        about |= {"dropout": learner.dropout.p, "smoothing": learner.smoothing}
        about |= {"target": self.target, "encoder": self.encoder, "tokens": self.tokens}
        about |= {"seed": self.seed, "graphs": list(self.graphs)}
        state = {"weights": learner.state_dict(), "memory": learner.memory, "scale": self.scale}
        with atomic_dir(folder) as new:
            torch.save(state | {key: getattr(learner, key) for key in STATE}, new / WEIGHTS)
            for number, graph in enumerate(self.graphs.values()):
                graph.save(new / GRAPHS.format(number))
            write_json(new / FILE, about)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Adapted":
        """Read what ``save`` wrote. Raises AcclimateError for a folder that is none, or whose weights do not fit."""
        folder = Path(folder)
        if not (folder / FILE).is_file() or not (folder / WEIGHTS).is_file():
            raise AcclimateError(f"{folder} holds no {FILE} and {WEIGHTS}; name a folder that `acclimate shift --keep` wrote")
        told = read_json(folder / FILE)
        method = load(told["method"], **told["settings"])
        net, seed = new_backbone(told["backbone"], told["options"]), told.get("seed", 0)
        graphs = {name: Graph.load(folder / GRAPHS.format(number)) for number, name in enumerate(told.get("graphs", []))}
        if graphs:
            net.attach(list(graphs.values()))  # type: ignore[operator]
        learner = Learner(net, told["classes"], head=told["head"], dropout=told["dropout"], smoothing=told["smoothing"])
        try:
            state = torch.load(folder / WEIGHTS, weights_only=True)
            for key in STATE:
                setattr(learner, key, state[key])
            add_parts(method, learner, seed)
            learner.load_state_dict(state["weights"])
        except (RuntimeError, KeyError, EOFError, UnpicklingError) as error:
            raise AcclimateError(f"{folder / WEIGHTS} does not fit {FILE}: {' '.join(str(error).split())[:200]}") from error
        learner.memory = state["memory"]
        learner.eval()
        return cls(method, learner, told["target"], told["head"], told["encoder"], told["tokens"], state["scale"], seed, graphs)

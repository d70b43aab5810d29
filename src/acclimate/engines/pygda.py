"""Models of the PyGDA package, fitted by its own code on the graphs of a network: for graph adaptation that is not written here.

Liu et al. 2024, https://github.com/pygda-team/pygda (1.2). ``pygda.SpecReg`` is the package's model SpecReg. It trains on whole graphs at
once and on the labels of all source nodes, held-out ones too, so that what is measured on sources is measured on nodes it knows. Several
sources are one graph of separate parts, except for GraphATA, which takes them one by one. The target's labels never reach the package: it
gets made-up ones, every class among them, since some models take the number of classes from them; DANE's semi-supervised mode is refused.
Of many small graphs (models/graph.py) it gets a list, for those of its models that classify whole graphs.
"""

import contextlib
import importlib
import inspect
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import AcclimateError, nearest
from ..parts.graphs import row_starts
from .shift.learner import Learner
from .shift.pools import Pool

PREFIX = "pygda."
WIDTH = 128  # hidden units, where settings do not say
FIXED = ("in_dim", "num_classes", "mode", "device", "act", "kwargs", "self", "lr", "weight_decay", "epoch")  # ours, or the training's
TRAINING = {"steps": "epoch", "lr": "lr", "weight_decay": "weight_decay"}  # ours: theirs
WHOLE = ("A2GNN", "AdaGCN", "CWGCN", "DANE", "DGSDA", "GRADE", "GraphATA", "SAGDA", "TDSS", "UDAGCN")  # know whole graphs too
SPECTRUM = 100  # components of SpecReg for graphs below 1,000 nodes
NEEDED = {"hid_dim": WIDTH, "hid_dim_vae": WIDTH, "num_layers": 3}  # what some models have no default for


class PygdaModel:
    """One of the package's models with its settings; :meth:`fit` before :meth:`predict`.

    Raises AcclimateError where the package is missing, has no such model, or the model has no such setting.
    """

    room = "pygda"
    form = "graph"
    open = False

    def __init__(self, name: str, **settings: Any):
        models = package("pygda.models")
        known = [each for each in models.__all__ if each != "BaseGDA"]
        wanted = name.removeprefix(PREFIX)
        if wanted not in known:
            raise AcclimateError(f"pygda has no model {wanted!r}{nearest(wanted, known)}")
        if settings.get("train_mode") == "semi":
            raise AcclimateError(f"{PREFIX}{wanted} with train_mode = 'semi' trains on labels of the target; leave it out")
        self.name, self.model, self.settings = PREFIX + wanted, getattr(models, wanted), settings
        own = [key for key in inspect.signature(self.model.__init__).parameters if key not in FIXED]
        if unknown := [key for key in settings if key not in own]:
            raise AcclimateError(f"{self.name} has no setting {unknown[0]!r}{nearest(unknown[0], own)}; it has: {', '.join(own)}")
        self.scores = torch.empty(0)

    def fit(self, learner: Learner, sources: Sequence[Pool], target: Pool, training: dict[str, Any]) -> None:
        """Fit to the learner's graphs: pools of labelled source nodes (or graphs), and the target's, whose labels are not looked at.

        ``training`` holds steps (epochs), lr, weight_decay and seed, where the model's own are not wanted.
        """
        if other := [key for key in training if key not in (*TRAINING, "seed")]:
            raise AcclimateError(f"{self.name} is trained by its own package, which takes no {other[0]!r}; it takes {', '.join(TRAINING)}")
        net: Any = learner.featurizer
        if any(graph.member is not None for graph in net.graphs) and self.model.__name__ not in WHOLE:
            raise AcclimateError(
                f"{self.name} classifies nodes, but these domains are many small graphs; models for them: {', '.join(WHOLE)}"
            )
        labels = torch.full((sum(graph.rows for graph in net.graphs),), -1)
        for pool in sources:
            labels[pool.x] = pool.y  # type: ignore[assignment]
        starts = torch.tensor([0, *(graph.rows for graph in net.graphs)]).cumsum(0).tolist()
        here = next(iter(net.owners(target.x)))
        others = [number for number in range(len(net.graphs)) if number != here]
        graphs = [net.graphs[number] for number in others]
        known = [labels[starts[number] : starts[number + 1]] for number in others]
        goal = self._data(net.graphs[here : here + 1], [torch.arange(net.graphs[here].rows) % learner.classes])
        given: dict[str, Any] = {key: value for key, value in NEEDED.items() if self._needs(key)}
        given |= {"mode": "graph"} if isinstance(goal, list) else {}
        given |= {theirs: training[ours] for ours, theirs in TRAINING.items() if ours in training} | self.settings
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr):  # some models print at every step
            torch.manual_seed(int(training.get("seed", 0)))
            if many := self._needs("num_src_domains"):
                given["num_src_domains"] = len(others)
            device = str(learner.device)
            model = self.model(in_dim=net.inputs[0], num_classes=learner.classes, device=device, **{"verbose": 0, **given})
            parts = [self._data([g], [y]) for g, y in zip(graphs, known, strict=True)] if many else [self._data(graphs, known)]
            model.fit(parts if many else parts[0], goal)
            told = [_predicted(model, part, source=True) for part in parts]
            last = _predicted(model, goal, source=False)
        width = last.shape[1]
        self.scores = torch.zeros(len(labels), width)
        self.scores[torch.cat([torch.arange(starts[number], starts[number + 1]) for number in others])] = torch.cat(told)
        self.scores[starts[here] : starts[here + 1]] = last

    def predict(self, learner: Learner, x: Tensor) -> Tensor:
        """Scores [node, class] of nodes by number."""
        return self.scores[x.cpu()]

    def _needs(self, key: str) -> bool:
        found = inspect.signature(self.model.__init__).parameters.get(key)
        return found is not None and found.default is inspect.Parameter.empty

    def _data(self, graphs: Sequence[Any], labels: Sequence[Tensor]) -> Any:
        """Graphs of a network as one of torch_geometric's, of separate parts; the small graphs of several domains as a list of them."""
        if graphs[0].member is not None:
            return [each for graph, own in zip(graphs, labels, strict=True) for each in _small(graph, own)]
        data, shift, edges = package("torch_geometric.data"), 0, []
        for graph in graphs:
            edges.append(graph.edges.cpu() + shift)
            shift += graph.count
        x = torch.cat([graph.features.cpu() for graph in graphs])
        every = torch.ones(shift, dtype=torch.bool)  # KBL and PairAlign ask which nodes are to be learned from
        made = data.Data(
            x=x, edge_index=torch.cat(edges, 1), y=torch.cat([*labels]), train_mask=every, val_mask=every.clone(), test_mask=every.clone()
        )  # fmt: skip
        return _spectrum(made) if self.model.__name__ == "SpecReg" else made


def _small(graph: Any, labels: Tensor) -> list[Any]:
    """A domain's small graphs, each with its label."""
    data, firsts = package("torch_geometric.data"), graph.firsts.tolist()
    x, edges, starts = graph.features.cpu(), graph.edges.cpu(), row_starts(graph.edges[0], graph.count)
    return [
        data.Data(x=x[first:end], edge_index=edges[:, starts[first] : starts[end]] - first, y=label[None])
        for first, end, label in zip(firsts[:-1], firsts[1:], labels, strict=True)
    ]


def package(name: str) -> Any:
    """A module of the package or of what it needs; AcclimateError where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AcclimateError(
            f"models of pygda need the package and what it computes with, and {error.name or error} is missing: "
            "pip install 'acclimate[pygda]', then torch_scatter, torch_sparse and torch_cluster built for this torch (--no-build-isolation)"
        ) from error


def _spectrum(data: Any) -> Any:
    """With the singular vectors of its Laplacian, as the package's own transform makes them. Raises AcclimateError for too few nodes."""
    if len(data.y) < SPECTRUM:
        raise AcclimateError(f"pygda.SpecReg compares {SPECTRUM} spectral components, but a graph has {len(data.y)} nodes")
    with tempfile.TemporaryDirectory() as folder:
        return package("pygda.utils").svd_transform(data, f"{folder}/")


def _predicted(model: Any, data: Any, source: bool) -> Tensor:
    more = {"source": source} if "source" in inspect.signature(model.predict).parameters else {}
    if isinstance(data, list):  # the package answers in an order that it shuffles: labels that are places tell which
        for place, each in enumerate(data):
            each.y = torch.tensor([place])
    scores, told = model.predict(data, **more)
    scores = scores.detach().float().cpu()
    return scores[told.cpu().argsort()] if isinstance(data, list) else scores

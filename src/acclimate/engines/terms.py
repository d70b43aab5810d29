"""Losses for staged training: token prediction on text, facts with the answer hidden, drift of layers' outputs, labels of texts.

Each gives a :class:`~acclimate.engines.staged.Term` whose batch ``k`` is fixed by the seed and the number alone.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..domain import Domain
from ..errors import AcclimateError
from ..files import digest
from ..kinds import Objective
from ..model import Injected, Model
from ..model.roles import find
from ..models.classifier import SentenceClassifier, batches, lengths
from . import words
from .forward import autocast
from .rows import Source, padded, stack
from .staged import Fitted, Stage, Term, evaluating, fit
from .train import rows_for

# token prediction


def predictions(model: Model, objective: Objective, domain: Domain, *, rows: int, width: int, seed: int, weight: float = 1.0) -> Term:
    """An objective on a domain's text, ``rows`` texts of up to ``width`` tokens a step; a labelled domain gives facts (:class:`Facts`)."""
    source: Source
    if domain.form == "labelled" and "labels" in objective.needs():
        source = Facts(domain, model, width=width, seed=seed)
    else:
        source = rows_for(domain, model, objective, width, seed, packed=False)
    asked = {*objective.needs(), *objective.wishes()}
    supply = words.Supply(model, objective, {domain.name: source}, asked, base=model, teachers={}, top_k=1, precision="auto")

    def loss(step: int) -> Tensor:
        given = [source[step * rows + i] for i in range(rows)]
        batch = {name: value.to(model.device) for name, value in source.collate(given).items()}
        return supply.loss(model.net, batch, None, [(0, row["index"]) for row in given])

    return Term(loss, weight, digest([objective.name, objective.values(), getattr(source, "key", ""), rows, seed]))


class Facts(Source):
    """Statements whose answer is hidden token by token: a labelled row's text holds its label, or ``{}`` where the label belongs.

    Raises AcclimateError for a row whose text has neither.
    """

    def __init__(self, domain: Domain, model: Model, *, width: int, seed: int, split: str = "train"):
        super().__init__(domain.name, seed, model.tokenizer)
        if not model.tokenizer.is_fast or model.tokenizer.mask_token_id is None:
            raise AcclimateError(f"facts need a fast tokenizer with a mask token, and that of {model.name} is none; give plain text")
        self.rows_of, self.width = domain.rows(split), width
        self.size = len(self.rows_of)
        self.key = digest([domain.fingerprint, split, width, "facts", *self.told])

    def origin(self, index: int) -> str:
        """The row's own place."""
        return str(self.rows_of[index]["origin"])

    def __getitem__(self, k: int) -> dict[str, Any]:
        _, index = self.locate(k)
        text, label = str(self.rows_of[index]["text"]), str(self.rows_of[index]["label"]).strip()
        text = text.replace("{}", label)
        start = text.find(label) if label else -1
        if start < 0:
            raise AcclimateError(f"{self.origin(index)}: the text holds neither its label {label!r} nor {{}}; write the answer into it")
        found = self.tokenizer(text, truncation=True, max_length=self.width, return_offsets_mapping=True)
        ids = np.array(found.input_ids)
        inside = np.array([a < b and b > start and a < start + len(label) for a, b in found.offset_mapping])
        return {
            "input_ids": np.where(inside, self.tokenizer.mask_token_id, ids),
            "labels": np.where(inside, ids, -100),
            "index": index,
        }

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """One padded batch."""
        batch = padded([row["input_ids"] for row in rows], self.tokenizer.pad_token_id or 0)
        return {**batch, "labels": stack([row["labels"] for row in rows], batch["input_ids"].shape[1], -100)}


# what layers put out


def blocks_of(net: Injected, name: str) -> list[str]:
    """Paths of the blocks in which an adapter stands, in order."""
    places = [net.sites[key].target for key in net.parts(name)]
    paths = [site.target for site in find(net.net, "block") if any(place.startswith(f"{site.target}.") for place in places)]
    if not paths:
        raise AcclimateError(f"adapter {name!r} stands in no block, so no outputs of layers can be compared")
    return paths


@contextmanager
def captured(net: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, tuple[tuple, dict, Tensor]]]:
    """What some modules get and give while the block lasts: path -> (arguments, keywords, first output), of their latest call."""
    seen: dict[str, tuple[tuple, dict, Tensor]] = {}

    def keep(path: str) -> Any:
        def hook(_: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            seen[path] = args, kwargs, out[0] if isinstance(out, tuple) else out

        return hook

    handles = [net.get_submodule(path).register_forward_hook(keep(path), with_kwargs=True) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def drifts(net: Injected, paths: Sequence[str], inputs: dict[str, Any]) -> Tensor:
    """Mean squared difference of blocks' outputs with the active adapters and without them, on the same inputs of each: scalar.

    Over blocks, real tokens and entries; the untouched outputs are targets, and the frozen network drops nothing out.
    """
    body: Any = getattr(net.net, "base_model", net.net)
    with evaluating(net.net), captured(net.net, paths) as seen:
        body(**inputs)
    real = inputs["attention_mask"].bool()
    found = []
    with net.using(None), evaluating(net.net), torch.no_grad():
        modules: dict[str, Any] = {path: net.net.get_submodule(path) for path in seen}
        targets = {path: modules[path](*args, **kwargs) for path, (args, kwargs, _) in seen.items()}
    for path, (_, _, given) in seen.items():
        target = targets[path][0] if isinstance(targets[path], tuple) else targets[path]
        found.append(functional.mse_loss(given[real].float(), target[real].float()))
    return torch.stack(found).mean()


def drift(model: Model, name: str, domain: Domain, *, rows: int, width: int, seed: int, weight: float = 1.0, split: str = "train") -> Term:
    """The drift of the blocks that hold an adapter, on general text, ``rows`` texts of up to ``width`` tokens a step."""
    texts = domain.texts(split)
    paths = blocks_of(model.net, name)
    extra = {"use_cache": False} if model.kind == "causal" else {}

    def loss(step: int) -> Tensor:
        return drifts(model.net, paths, {**padded_texts(model, _draw(texts, step, rows, seed), width), **extra})

    return Term(loss, weight, digest(["drift", domain.fingerprint, split, paths, rows, width, seed]))


def padded_texts(model: Model, texts: Sequence[str], width: int) -> dict[str, Tensor]:
    """Ids and mask of some texts, cut to ``width`` tokens, on the model's device."""
    return padded_ids(model, model.tokenizer(list(texts), truncation=True, max_length=width).input_ids)


def padded_ids(model: Model, ids: Iterable[Sequence[int]]) -> dict[str, Tensor]:
    """Ids and mask of some rows of ids, on the model's device."""
    some = padded([np.array(row) for row in ids], model.tokenizer.pad_token_id or 0)
    return {key: value.to(model.device) for key, value in some.items()}


class Turns:
    """The rows of each step, about equally long: every row once a pass, each pass in an order of its own, ``rows`` at a time."""

    def __init__(self, sizes: np.ndarray, rows: int, seed: int):
        self.sizes, self.rows, self.seed = sizes, rows, seed
        self.epoch, self.order = -1, [np.empty(0, int)]

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, -(-len(self.sizes) // self.rows))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, list(batches(self.sizes, self.rows, np.random.default_rng([self.seed, epoch])))
        return self.order[place]


def _draw(texts: Sequence[str], step: int, rows: int, seed: int) -> list[str]:
    """The texts of a step: every text once in an order of the seed, then again in another."""
    found = []
    for k in range(step * rows, (step + 1) * rows):
        epoch, place = divmod(k, len(texts))
        found.append(texts[int(np.random.default_rng([seed, epoch]).permutation(len(texts))[place])])
    return found


# labels


@dataclass
class Labelled:
    """Texts with their labels."""

    texts: Sequence[str]
    labels: Sequence[Hashable]

    @classmethod
    def of(cls, domain: Domain, split: str) -> "Labelled":
        """A split of a labelled domain. Raises AcclimateError for a domain of another form."""
        if domain.form != "labelled":
            raise AcclimateError(f"a classifier learns from labelled text, but domain {domain.name!r} holds {domain.form}")
        rows = domain.rows(split)
        return cls(list(rows["text"]), list(rows["label"]))

    def few(self, shots: int, seed: int) -> "Labelled":
        """``shots`` rows of every label drawn by the seed (all where a label has fewer), or everything for 0."""
        if not shots:
            return self
        order = np.random.default_rng(seed).permutation(len(self.texts))
        by_label: dict[Hashable, list[int]] = {}
        for i in order:
            by_label.setdefault(self.labels[i], []).append(int(i))
        kept = sorted(i for rows in by_label.values() for i in rows[:shots])
        return Labelled([self.texts[i] for i in kept], [self.labels[i] for i in kept])


class Body(nn.Module):
    """An adapted network seen as the encoder without its output layer, adapters and all."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    @property
    def config(self) -> Any:
        """The network's own."""
        return self.net.config

    def forward(self, **inputs: Tensor) -> Any:
        """What the body gives: last_hidden_state."""
        whole: Any = self.net.net if isinstance(self.net, Injected) else self.net
        return getattr(whole, "base_model", whole)(**inputs)


@dataclass
class Classified:
    """A trained classifier, its classes in order, macro-F1 and accuracy (0 to 1) on the test rows, and the course of the stage."""

    net: SentenceClassifier
    classes: list[Hashable]
    scores: dict[str, float]
    fitted: Fitted


def classify(
    model: Model,
    sets: dict[str, Labelled],
    rates: dict[str, float],
    stage: Stage,
    *,
    rows: int = 16,
    width: int = 128,
    pooling: str = "cls",
    seed: int = 0,
    folder: Path | None = None,
) -> Classified:
    """Train a head and what ``rates`` names (by patterns of the network's names) on sets["train"]; sets: train, dev and test.

    The weights kept are those of the best macro-F1 on the development rows. The head's rate is that of the pattern ``head``.
    """
    from sklearn.metrics import accuracy_score, f1_score

    classes = sorted({label for part in sets.values() for label in part.labels}, key=str)
    number = {label: i for i, label in enumerate(classes)}
    ids = {key: model.tokenizer(list(part.texts), truncation=True, max_length=width).input_ids for key, part in sets.items()}
    answers = {key: np.array([number[label] for label in part.labels]) for key, part in sets.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SentenceClassifier(Body(model.net), len(classes), pooling=pooling).to(model.device)

    turns = Turns(lengths(ids["train"]), rows, seed)

    def batch(key: str, chosen: np.ndarray) -> dict[str, Tensor]:
        return padded_ids(model, (ids[key][i] for i in chosen))

    def guesses(key: str) -> np.ndarray:
        found = np.empty(len(ids[key]), int)
        with torch.no_grad(), autocast(model.device, stage.precision):
            for chosen in batches(lengths(ids[key]), 4 * rows):
                found[chosen] = net(**batch(key, chosen)).argmax(-1).cpu().numpy()
        return found

    def loss(step: int) -> Tensor:
        chosen = turns[step]
        scores = net(**batch("train", chosen))
        return functional.cross_entropy(scores.float(), torch.from_numpy(answers["train"][chosen]).to(scores.device))

    def dev() -> float:
        return float(f1_score(answers["dev"], guesses("dev"), average="macro", zero_division=0))

    key = digest([[list(map(int, row)) for row in ids["train"]], answers["train"].tolist(), rows, pooling, seed])
    named = {r"^(dense|out)\." if pattern == "head" else pattern: rate for pattern, rate in rates.items()}
    fitted = fit(net, {"labels": Term(loss, 1.0, key)}, named, stage, score=dev, folder=folder)
    test = guesses("test")
    scores = {
        "macro_f1": float(f1_score(answers["test"], test, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(answers["test"], test)),
        "dev_f1": max(value for _, value in fitted.looks),
    }
    return Classified(net, classes, scores, fitted)

"""What experiments with adapters share: labelled sets cut to size, a small real encoder, and one way to train an adapter with a head."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import datasets
from .fixture import documents, tiny_model

if TYPE_CHECKING:
    from ..engines.terms import Classified, Labelled
    from ..kinds import Adapter
    from ..model import Model

TOPICS = ("biomedical", "software", "legal", "finance")  # labels of the made-up sets of tiny runs


def labelled(dataset: str, sizes: tuple[int, int, int], seed: int, *, tiny: bool = False) -> "dict[str, Labelled]":
    """Rows of train, dev and test: ``sizes`` at most. Training rows are drawn by the seed, the others are the same for all seeds.

    Labels that have no training row are left out of dev and test. ``tiny`` gives made-up text of two topics.
    """
    from ..engines.terms import Labelled

    if tiny:
        texts = {topic: documents(topic, 30, seed=len(dataset)) for topic in TOPICS[:2]}
        cuts = {"train": slice(0, 15), "dev": slice(15, 20), "test": slice(20, 30)}
        return {
            name: Labelled(
                [text for some in texts.values() for text in some[cut]], [topic for topic, some in texts.items() for _ in some[cut]]
            )
            for name, cut in cuts.items()
        }
    domain = datasets.load(dataset)
    found: dict[str, Labelled] = {}
    for (name, split), size, key in zip(
        (("train", "train"), ("dev", "validation"), ("test", "test")), sizes, (1 + seed, 0, 0), strict=True
    ):
        given = Labelled.of(domain, split)
        known = set(found["train"].labels) if found else set(given.labels)
        order = [i for i in np.random.default_rng(key).permutation(len(given.texts)) if given.labels[i] in known][:size]
        found[name] = Labelled([given.texts[i] for i in order], [given.labels[i] for i in order])
    return found


def encoder(tiny: bool, *, layers: int = 0, kind: str = "encoder", seed: int = 0, folder: Path | None = None) -> "Model":
    """all-MiniLM-L6-v2 with its lowest ``layers`` (0: all six), or a random tiny BERT; saved in ``folder`` and read from there if given.

    ``kind`` "masked" has an output layer, fresh by the seed.
    """
    import torch

    from ..model import Model

    if folder is None or not (folder / "config.json").is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = tiny_model("masked") if tiny else Model.load("minilm", kind=kind, new_head=kind == "masked")
        if layers and not tiny:
            stack = model.net.base_model.encoder
            stack.layer = stack.layer[:layers]
            model.net.config.num_hidden_layers = layers
        if folder is None:
            return model
        model.save(folder)
    return Model.load(str(folder))


def tuned(
    model: "Model",
    method: "Adapter | None",
    sets: "dict[str, Labelled]",
    *,
    steps: int,
    seed: int,
    lr: float = 3e-3,
    head_lr: float = 3e-3,
    rows: int = 16,
    width: int = 64,
    looks: int = 2,
    folder: Path | None = None,
) -> "tuple[Classified, Model]":
    """An adapter of our own (or none) and a head trained on a labelled set; the classifier, and the model with the adapter on it.

    The frozen weights are shared with ``model``, which is left as it was. The head reads the mean of the tokens' vectors.
    """
    from ..engines.staged import Stage
    from ..engines.terms import classify
    from ..model import Injected

    learner = model.copy("tuned", share=True)
    rates = {"head": head_lr}
    if method is not None:
        learner.net = Injected(learner.net).add("default", method, seed=seed)
        rates = {r"adapters\.default\.": lr, r"common\.default\.": lr, **rates}
        if not any(True for _ in learner.net.common["default"].parameters()):
            del rates[r"common\.default\."]
    stage = Stage(steps=steps, check_every=max(1, -(-steps // looks)), checkpoint_every=10**6, seed=seed)
    done = classify(learner, sets, rates, stage, rows=rows, width=width, pooling="mean", seed=seed, folder=folder)
    return done, learner


def fold_gap(model: "Model", texts: Sequence[str], width: int = 64) -> float:
    """The largest difference in the last hidden states between the active adapter beside the layers and the same one in the weights."""
    import copy

    import torch

    from ..engines.terms import Body, padded_texts

    batch = padded_texts(model, texts, width)
    model.net.eval()
    with torch.no_grad():
        apart = Body(model.net)(**batch).last_hidden_state
        folded: Any = copy.deepcopy(model.net).merge_and_unload()
        inside = Body(folded)(**batch).last_hidden_state
    return float((apart - inside)[batch["attention_mask"].bool()].abs().max())

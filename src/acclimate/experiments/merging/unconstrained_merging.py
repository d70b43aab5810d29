"""Does merging layer by layer beat one weight per model, and does distilling experts of another make into the merge beat plain tuning?

Group A: two experts tuned from ``seedling-xs`` (maths word problems; Python's documentation), merged by average, by a search of one
weight and share per expert, and by a search for each layer (TIES, 50 trials each). Group B: two larger experts with tokenizers and widths
of their own: ``seedling`` with a new vocabulary (2,048 and 1,536 tokens, each new embedding the mean of the old ones of its text), tuned on
one of the two texts. Both teach the layer-wise merge on texts of both kinds (MinCE), and the two results are merged by variation.
Controls are the same merge tuned on the same texts and steps by cross-entropy alone, and the average of two such runs, since an average
of two is better by itself. The larger experts are made once, in the cache, and are the same for all seeds.

What differs from the paper, and why: models of one to five million weights for 7B and more, raw text for seven benchmarks, loss for
accuracy, and a learning rate and number of passes that fit small models, for time. The loss falls on questions and answers alike.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import datasets
from ...domain import Domain
from ...engines.candidates import merged
from ...files import cache_dir
from ...method import load
from ..fixture import documents, tiny_model
from ..workbench import Workbench, nats_per_token

if TYPE_CHECKING:
    from ...model import Model

CRITERION = """
    Loss is the mean over both texts, in nats per token of held-out text under the pivot's tokenizer. (1) The layer-wise search is below the
    average by 0.01 or more on the mean over seeds and below it in every seed, and at most 0.002 above the model-wise search on the mean;
    (2) the merge of the taught pivots is below cross-entropy alone by 0.01 or more on the mean, and below both controls in every seed.
    The claim holds if both do.
"""
METRIC = "nats per token on test text, mean of maths word problems and documentation, lower is better; share of tokens that align exactly"
SEEDS = (0, 1, 2)
DOMAINS = {"maths": "gsm8k", "code": "lm/software"}
BELOW, NOISE = 0.01, 0.002  # nats: the numbers of the criterion
LOSSES = ("average", "model-wise", "layer-wise", "cross-entropy", "cross-entropy, two averaged", "fused")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    steps: int = 150
    source_steps: int = 150
    vocabularies: tuple[int, int] = (2048, 1536)
    row_tokens: int = 256
    batch_tokens: int = 4096
    trials: int = 50
    search_bytes: int = 12_000  # of each domain's validation text, per trial
    fuse_bytes: int = 120_000  # of each text that the pivot is taught on
    fuse_tokens: int = 2048  # per step
    epochs: float = 2.0
    test_bytes: int = 60_000


FULL, TINY = Size(), Size(2, 2, (300, 290), 32, 128, 4, 400, 1500, 128, 1.0, 500)


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Every arm's loss and how the tokenizers align; what lies in ``work`` already is gone on with."""
    size = TINY if tiny else FULL
    domains, base = _domains(tiny), _base(tiny)
    sources = [_source(name, vocabulary, domains, size, tiny) for name, vocabulary in zip(domains, size.vocabularies, strict=True)]
    tools = Workbench("experts", seed, work)
    given = {"steps": size.steps, "lr": 1e-3, "row_tokens": size.row_tokens, "batch_tokens": size.batch_tokens}
    experts = [tools.train(name, base, load("objectives.causal_lm"), domain, **given) for name, domain in domains.items()]
    taught = _mix(domains, size.fuse_bytes, seed)

    common = {"trials": size.trials, "search_bytes": size.search_bytes}
    teaching = Workbench("layers", seed, work, row_tokens=size.row_tokens, batch_tokens=size.fuse_tokens)
    method = load("merging.unconstrained", lr=5e-4, epochs=size.epochs, **common)
    found = method.run(teaching, start=base, tuned=[*experts, *sources], fuse=taught, **domains)
    pivot = found["group0"]
    whole = load("merging.unconstrained", granularity="model", **common)
    plain = [
        teaching.train(
            f"plain-{i}", pivot, load("objectives.causal_lm"), taught, lr=method.lr, epochs=method.epochs, seed=[seed, seed + 100][i]
        )
        for i in range(2)
    ]
    arms: dict[str, Model] = {
        "maths expert": experts[0],
        "code expert": experts[1],
        "average": merged(load("merging.linear"), None, experts),
        "model-wise": whole.blend(Workbench("whole", seed, work), "whole", base, experts, domains),
        "layer-wise": pivot,
        "cross-entropy": plain[0],
        "cross-entropy, two averaged": whole.last(tools, pivot, plain, domains),
        "taught by the maths source": found["group1-taught"],
        "taught by the code source": found["group2-taught"],
        "fused": found["merged"],
    }
    loss = {arm: {name: nats_per_token(model, domain, size.test_bytes) for name, domain in domains.items()} for arm, model in arms.items()}
    bits = {model.name: {name: tools.bits(model, domain, "test", size.test_bytes) for name, domain in domains.items()} for model in sources}
    figures = {arm: float(np.mean(list(by_text.values()))) for arm, by_text in loss.items()}
    aligned = {name: teaching.notes[f"layers.group{i}-taught-alignment"] for i, name in enumerate(domains, 1)}
    figures |= {f"exact alignment with the {name} source": facts["exact"] for name, facts in aligned.items()}
    return {
        "arms": figures,
        "details": {"by text": loss, "alignment": aligned, "bits per byte of the sources": bits, "search": teaching.notes["layers.group0"]},
    }


def _base(tiny: bool) -> "Model":
    from ...model import Model

    return tiny_model("causal") if tiny else Model.load("seedling-xs")


def _domains(tiny: bool) -> dict[str, Domain]:
    if tiny:
        return {name: Domain.from_texts(name, documents(topic, 60)) for name, topic in zip(DOMAINS, ("finance", "software"), strict=True)}
    return {name: datasets.load(source) for name, source in DOMAINS.items()}


def _mix(domains: dict[str, Domain], most: int, seed: int) -> Domain:
    """Training texts of every domain, drawn by the seed, ``most`` bytes of each."""
    taken = []
    for number, domain in enumerate(domains.values()):
        texts, left = domain.texts("train"), most
        for i in np.random.default_rng([seed, number]).permutation(len(texts)):
            taken.append(texts[i])
            left -= len(texts[i].encode())
            if left <= 0:
                break
    return Domain.from_texts("both", taken, splits=False)


def _source(name: str, vocabulary: int, domains: dict[str, Domain], size: Size, tiny: bool) -> "Model":
    """A larger model with a vocabulary of its own, tuned on one text; made once."""
    from ... import __version__
    from ...files import digest
    from ...model import Model

    start = tiny_model("causal", seed=1) if tiny else Model.load("seedling")
    key = digest([__version__, name, vocabulary, size.source_steps, start.fingerprint, domains[name].fingerprint])
    folder = cache_dir("experiments", "unconstrained_merging", key)
    tools = Workbench("source", 0, folder)
    given = {"steps": size.source_steps, "lr": 1e-3, "row_tokens": size.row_tokens, "batch_tokens": size.batch_tokens}
    texts = [text for domain in domains.values() for text in domain.texts("train")[:3000]]
    made = tools.train(f"{name}-source", revocabulated(start, texts, vocabulary), load("objectives.causal_lm"), domains[name], **given)
    made.name = f"{name} source"
    return made


def revocabulated(model: "Model", texts: list[str], vocabulary: int) -> "Model":
    """The model with a new tokenizer of ``texts``: each new embedding is the mean of the old ones of its text (FVT)."""
    import torch

    from ...model import Model
    from ...models.seedling import build_tokenizer

    tokenizer = build_tokenizer(texts, vocabulary)
    net = model.copy().net
    old = net.get_input_embeddings().weight.detach().clone()
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    with torch.no_grad():
        net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        new = net.get_input_embeddings().weight
        known = model.tokenizer.get_vocab()
        for i, token in enumerate(tokens):
            ids = [known[token]] if token in known else model.tokenizer(tokenizer.decode([i]), add_special_tokens=False).input_ids
            new[i] = old[ids].mean(0) if ids else old.mean(0)
    for part in (net.config, net.generation_config):
        part.bos_token_id, part.eos_token_id, part.pad_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return Model(f"{model.name} with {len(tokenizer)} tokens", net.eval(), tokenizer, model.kind, model.source)


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""
    row = {arm: np.array(values) for arm, values in figures.items()}  # [seed]
    gain, behind = row["average"] - row["layer-wise"], (row["layer-wise"] - row["model-wise"]).mean()
    taught = row["cross-entropy"] - row["fused"]
    better = np.minimum(row["cross-entropy"], row["cross-entropy, two averaged"]) - row["fused"]
    return [
        (
            f"layer-wise is {gain.mean():+.4f} nats below the average, at least {gain.min():+.4f}, and {behind:+.4f} above model-wise",
            bool(gain.mean() >= BELOW and (gain > 0).all() and behind <= NOISE),
        ),
        (
            f"fused is {taught.mean():+.4f} below cross-entropy alone, and at least {better.min():+.4f} below the better control",
            bool(taught.mean() >= BELOW and (better > 0).all()),
        ),
    ]


def verdict(figures: dict[str, list[float]]) -> str:
    """Whether both clauses of the criterion are met."""
    return "holds" if all(met for _, met in clauses(figures)) else "does_not_hold"


def why(figures: dict[str, list[float]]) -> str:
    """The figure behind each clause."""
    return "; ".join(f"({number}) {said}: {'met' if met else 'not met'}" for number, (said, met) in enumerate(clauses(figures), 1))

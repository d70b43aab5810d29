"""Which layer a tensor belongs to, by its name, and genomes with a few genes for each group of tensors.

Names are those of transformers' checkpoints; whatever stands before the numbered layers is the embedding, whatever stands behind them
the head (a tied output matrix is the embedding's, so the head is then the last normalisation alone).
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import AcclimateError

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.(.*)")
EMBEDDING = re.compile(r"emb|wte|wpe")
ATTENTION = re.compile(r"attn|attention|input_layernorm|ln_1|layernorm_before")
GRANULARITIES = ("model", "layer", "module")


def group_of(name: str, granularity: str = "layer", size: int = 1) -> str:
    """The group of one tensor: the whole model, its layer (``size`` layers in a row make one group), or attention or MLP in the layer.

    >>> group_of("model.layers.3.self_attn.q_proj.weight"), group_of("model.layers.3.mlp.up_proj.weight", "module")
    ('layer 3', 'layer 3 mlp')
    >>> group_of("model.embed_tokens.weight"), group_of("model.norm.weight"), group_of("transformer.h.5.ln_1.bias", size=2)
    ('embedding', 'head', 'layer 4-5')
    """
    if granularity not in GRANULARITIES:
        raise AcclimateError(f"granularity {granularity!r} is unknown; give one of {', '.join(GRANULARITIES)}")
    if granularity == "model":
        return "model"
    found = LAYER.search(name)
    if found is None:
        return "embedding" if EMBEDDING.search(name) else "head"
    first = int(found[1]) // size * size
    layer = f"layer {first}" + (f"-{first + size - 1}" if size > 1 else "")
    if granularity == "layer":
        return layer
    return f"{layer} {'attn' if ATTENTION.search(found[2]) else 'mlp'}"


def groups(names: Iterable[str], granularity: str = "layer", size: int = 1) -> list[str]:
    """The groups that some tensors make: embedding first, layers by number, head last.

    >>> groups(["norm.weight", "layers.10.mlp.w", "layers.9.attn.w", "embed_tokens.weight"])
    ['embedding', 'layer 9', 'layer 10', 'head']
    """

    def place(group: str) -> tuple[int, int, str]:
        number = re.match(r"layer (\d+)", group)
        return (0 if group in ("embedding", "model") else 1 if number else 2, int(number[1]) if number else 0, group)

    return sorted({group_of(name, granularity, size) for name in names}, key=place)


def gene_names(groups: list[str], models: list[str], kinds: list[str]) -> list[str]:
    """Names of all genes: per group, per kind of gene, one for each model.

    >>> gene_names(["layer 0"], ["a", "b"], ["weights", "keep"])
    ['layer 0: weights of a', 'layer 0: weights of b', 'layer 0: keep of a', 'layer 0: keep of b']
    """
    return [f"{group}: {kind} of {model}" for group in groups for kind in kinds for model in models]


def decode(genome: np.ndarray, groups: list[str], models: int, kinds: list[str], signed: bool = False) -> dict[str, dict[str, list[float]]]:
    """What each group is merged with: {group: {"weights": one per model, "keep": one per model}}.

    genome [group * kind * model], in the order of ``gene_names``. Weights lose their sign unless ``signed``; the share that is kept is
    |gene|, 1 at most.

    >>> decode(np.array([-0.5, 1.0, -0.2, 7.0]), ["head"], 2, ["weights", "keep"])
    {'head': {'weights': [0.5, 1.0], 'keep': [0.2, 1.0]}}
    """
    found: dict[str, dict[str, Any]] = {}
    for group, rows in zip(groups, np.asarray(genome, float).reshape(len(groups), len(kinds), models), strict=True):
        found[group] = {}
        for kind, genes in zip(kinds, rows, strict=True):
            values = np.clip(np.abs(genes), 0, 1) if kind == "keep" else genes if signed else np.abs(genes)
            found[group][kind] = values.tolist()
    return found

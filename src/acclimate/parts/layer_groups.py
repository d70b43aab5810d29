"""Which layer and which role a tensor has, by its name, and genomes with a few genes for each group of tensors.

Names are those of transformers' checkpoints; whatever stands before the numbered layers is the embedding, whatever stands behind them
the head (a tied output matrix is the embedding's, so the head is then the last normalisation alone).
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import AcclimateError

LAYER = re.compile(r"^((?:.*?[._])?(?:layers?|h|blocks?)\.)(\d+)(\..*)$")  # what stands before the number, the number, the rest
EMBEDDING = re.compile(r"emb(?!ed_out)|wte|wpe|^shared\.")
ATTENTION = re.compile(r"attn|attention|input_layernorm|ln_1|layernorm_before")
NORM = re.compile(r"norm|(?:^|[._])ln_?[a-z0-9]*\.", re.IGNORECASE)
ATTENDS = re.compile(r"attn|attention", re.IGNORECASE)
FEEDS = re.compile(r"mlp|ffn|feed_?forward|moe|experts?\.|intermediate|output\.dense|DenseReluDense|\.fc\d|\.w[123i]\b", re.IGNORECASE)
GRANULARITIES = ("model", "layer", "module")
ROLES = ("attention", "feed-forward", "norms", "embedding/head", "other")


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
    found = LAYER.match(name)
    if found is None:
        return "embedding" if EMBEDDING.search(name) else "head"
    first = int(found[2]) // size * size
    layer = f"layer {first}" + (f"-{first + size - 1}" if size > 1 else "")
    if granularity == "layer":
        return layer
    return f"{layer} {'attn' if ATTENTION.search(found[3]) else 'mlp'}"


def role_of(name: str) -> str:
    """What a tensor does, one of ROLES; ``other`` is what stands in a layer and is none of the rest (a state-space mixer).

    >>> role_of("model.layers.3.self_attn.q_norm.weight"), role_of("h.0.attn.c_attn.weight"), role_of("layers.1.mlp.experts.7.w1.weight")
    ('norms', 'attention', 'feed-forward')
    >>> role_of("encoder.layer.0.output.dense.bias"), role_of("lm_head.weight"), role_of("layers.0.mixer.A_log"), role_of("ln_f.weight")
    ('feed-forward', 'embedding/head', 'other', 'norms')
    """
    if NORM.search(name):
        return "norms"
    found = LAYER.match(name)
    if found is None:
        return "embedding/head"
    return "attention" if ATTENDS.search(found[3]) else "feed-forward" if FEEDS.search(found[3]) else "other"


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

"""Similarity DA: a language model's nearest labelled source texts label the target, and a small model learns labels and likenesses.

He et al. 2025, section 3, https://arxiv.org/abs/2503.05281
For texts, where a model too large to keep has seen enough to tell likeness: nobody is trained on the source. Of no use where source and
target rows lie apart in the large model's space. The vectors are made outside (engines/embed.Encoder, pooling "last" for the hidden state
of a text's last token) and handed over before training: ``learner.memory["source_vectors"]`` [source row, wide], ``["target_vectors"]``
[target row, wide] and, where the model was asked for its label words, ``["said"]`` [target row, class]. Without vectors the rows
themselves are taken, if they are numbers; without "said" the neighbours alone label. Afterwards ``memory["neighbours"]`` [target row, k]
and ``["votes"]`` [target row, source domain] tell who labelled what.
The distances' temperature is in units of the mean distance found, as hidden states have no scale of their own; it, ``k``, both weights
and the form of the likeness loss were not found in public code.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 2, width=2, head=torch.nn.Identity())
>>> source = Batch(torch.tensor([[0.0, 3.0], [0.0, 1.0], [9.0, 9.0]]), torch.tensor([0, 1, 1]), torch.zeros(3).long(), torch.arange(3), [3])
>>> target = Batch(torch.zeros(1, 2), None, torch.zeros(1), torch.arange(1), [1])
>>> method = SimilarityDa(k=2, temperature=1.0, similar=0.0); method.begin(learner, source, target)
>>> learner.memory["labels"].round(decimals=4).tolist()  # distances 3 and 1, mean 2: 1 / (1 + e) and e / (1 + e)
[[0.2689000070095062, 0.7311000227928162]]
>>> [round(loss.item(), 4) for loss in method.step(learner, source, target)]  # log 2 less the labels' entropy
[0.1109]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import kl_div, normalize

from ...errors import AcclimateError
from ...kinds import DomainAdaptation
from ...method import Setting

BLOCK = 512  # target rows whose distances to all source rows are held at once


class SimilarityDa(DomainAdaptation):
    """How neighbours vote, and what the small model learns from."""

    k: Annotated[int, Setting("nearest source rows that vote", 1)] = 16
    temperature: Annotated[float, Setting("temperature of the distances, in units of their mean (T)", 0.001)] = 0.1
    neighbours: Annotated[float, Setting("share of the neighbours' vote beside the model's own label words (w)", 0, 1)] = 0.5
    similar: Annotated[float, Setting("weight of the likeness loss (lambda)", 0)] = 1.0
    sharpness: Annotated[float, Setting("temperature of the likenesses (t)", 0.001)] = 0.1
    exempt: ClassVar[dict[str, str]] = {
        name: "the toy has no larger model's vectors, and neighbours among the rows themselves inherit its shift"
        for name in ("learns", "beats_source_only")
    }
    training: ClassVar[dict[str, Any]] = {"optimizer": "adamw", "lr": 2e-5, "weight_decay": 0.01, "batch": 32}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Soft labels of all target rows, before anything is learned."""
        memory = learner.memory
        keys, queries = (
            vectors(memory.get(f"{name}_vectors"), batch, name).float() for name, batch in (("source", source), ("target", target))
        )
        weight, near = votes(queries, keys, self.k, self.temperature)
        labels = queries.new_zeros(len(queries), learner.classes).scatter_add(1, source.y[near], weight)
        if "said" in memory:
            labels = self.neighbours * labels + (1 - self.neighbours) * memory["said"]
        by_domain = queries.new_zeros(len(queries), len(source.sizes)).scatter_add(1, source.domain[near], weight)
        memory |= {"labels": labels, "neighbours": near, "votes": by_domain, "like": normalize(queries)}

    def step(self, learner: Any, source: Any, target: Any) -> Iterator[Tensor]:
        """KL(labels || student) + similar x KL of likenesses, on target rows alone."""
        z, memory = learner.features(target.x), learner.memory
        label = kl_div(learner.head(z).log_softmax(1), memory["labels"][target.rows].to(z), reduction="batchmean")
        yield label + self.similar * likeness(memory["like"][target.rows].to(z), z, self.sharpness)


def vectors(given: Tensor | None, batch: Any, name: str) -> Tensor:
    """The large model's vectors of all rows of a batch [row, wide]: those that were handed over, or the rows themselves."""
    if given is None and batch.x.is_floating_point():
        return batch.x.flatten(1)
    if given is None or len(given) != len(batch):
        raise AcclimateError(
            f"similarity_da needs a language model's vector of each of the {len(batch)} {name} rows, but "
            f'learner.memory["{name}_vectors"] holds {"none" if given is None else len(given)}; make them with engines.embed.Encoder'
        )
    return given


def votes(queries: Tensor, keys: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """softmax(-distance / T) over the k nearest keys of each query, and which they are: [query, k] each."""
    found = [torch.cdist(some, keys).topk(min(k, len(keys)), 1, largest=False) for some in queries.split(BLOCK)]
    distance, near = (torch.cat(each) for each in zip(*found, strict=True))
    return (-distance / (temperature * distance.mean().clamp(min=1e-12))).softmax(1), near


def likeness(large: Tensor, small: Tensor, temperature: float) -> Tensor:
    """Mean over rows of KL(softmax(cosines / t) of the large model || that of the small one) to the other rows; widths may differ.

    >>> large, small = torch.eye(3), torch.tensor([[1.0], [1.0], [-1.0]])
    >>> round(likeness(large, small, 1.0).item(), 4)  # two rows see one like and one unlike, the third sees both unlike
    0.2892
    """
    rows = len(large)
    other = ~torch.eye(rows, dtype=torch.bool, device=large.device)
    logs = [((normalize(x) @ normalize(x).T)[other].view(rows, rows - 1) / temperature).log_softmax(1) for x in (small, large)]
    return kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)

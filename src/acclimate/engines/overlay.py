"""Training and reading through an overlay: batches of virtual and plain ids, spans, masked mentions, numbers and classes.

The losses are terms for the staged engine; batch ``k`` depends on the seed and ``k`` alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import AcclimateError
from ..files import digest
from ..model import Model
from ..model.knowledge import Mapped, Spelled
from ..model.overlay import Overlay
from ..model.tags import Encoded, Tags, isolated
from ..parts.pooling import pooled
from .forward import as_wanted
from .staged import Term, evaluating


def drawn(count: int, size: int, step: int, seed: int) -> np.ndarray:
    """The rows of batch ``step``: every row once per pass, in a new order each time.

    >>> sorted(int(i) for step in range(2) for i in drawn(6, 3, step, 0))
    [0, 1, 2, 3, 4, 5]
    """
    size = min(size, count)
    per = count // size
    order = np.random.default_rng([seed, step // per]).permutation(count)
    return order[step % per * size : (step % per + 1) * size]


def padded(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of any length as ids and mask [row, token]."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


# tags


def prompted(start: Model, tags: Tags, name: str) -> Model:
    """A causal model that reads one tag before every text: a peft prompt of the tag's vectors on the same frozen weights."""
    from peft import PromptTuningConfig, get_peft_model

    vectors = tags.forward(torch.tensor(tags.ids(name)) - tags.first).detach()
    made = start.copy(name, share=True)
    made.net = get_peft_model(made.net, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(vectors)))
    with torch.no_grad():
        next(iter(made.net.prompt_encoder.values())).embedding.weight.copy_(vectors)
    made.net.peft_config["default"].base_model_name_or_path = start.source
    made.notes |= {"base": start.source, "base_fingerprint": start.fingerprint}
    return made


def read(overlay: Overlay, rows: Sequence[Encoded], *, isolate: bool = False) -> Tensor:
    """Last hidden states [row, token, width] of filled templates; with ``isolate`` a domain's span reads nothing before itself."""
    device = next(overlay.net.parameters()).device
    ids, mask = (value.to(device) for value in padded([row.ids for row in rows]))
    given: Any = mask
    if isolate:
        length = ids.shape[1]
        both = torch.stack([isolated(length, row.spans) for row in rows]).to(device) & mask[:, None, :].bool()
        own = torch.eye(length, dtype=torch.bool, device=device)  # padding reads itself, so that no row is empty
        given = as_wanted(overlay.net, (both | own)[:, None])
    positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
    body = overlay.net.base_model
    return body(inputs_embeds=overlay.embed(ids), attention_mask=given, position_ids=positions, use_cache=False).last_hidden_state


def said(overlay: Overlay, rows: Sequence[Encoded], *, whole: bool = False, isolate: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the labels' tokens summed [row], and how many there are [row]; ``whole``: of all plain ids but the first."""
    hidden = read(overlay, rows, isolate=isolate)
    ids, mask = (value.to(hidden.device) for value in padded([row.ids for row in rows]))
    place = torch.arange(ids.shape[1], device=hidden.device)[None]
    starts = torch.tensor([1 if whole else row.label for row in rows], device=hidden.device)[:, None]
    if (starts < 0).any():
        raise AcclimateError("a template without {label} has no label to predict; add {label} where it belongs")
    asked = (place >= starts) & (place > 0) & mask.bool() & (ids < overlay.first)
    found = asked[:, 1:]
    logits = overlay.net.get_output_embeddings()(hidden[:, :-1][found])
    loss = -functional.cross_entropy(logits.float(), ids[:, 1:][found], reduction="none")
    row = found.nonzero()[:, 0]
    return torch.zeros(len(rows), device=hidden.device).index_add(0, row, loss), found.sum(1)


def text_term(overlay: Overlay, rows: Sequence[Encoded], *, size: int, seed: int, whole: bool = False, isolate: bool = False) -> Term:
    """Next-token loss over labels, or over all text (``whole``), per token."""
    kept = [row for row in rows if len(row.ids) > 2]

    def loss(step: int) -> Tensor:
        logps, counts = said(overlay, [kept[i] for i in drawn(len(kept), size, step, seed)], whole=whole, isolate=isolate)
        return -logps.sum() / counts.sum().clamp(min=1)

    return Term(loss, 1.0, digest([[row.ids for row in kept], size, seed, whole, isolate]))


def numbers(overlay: Overlay, tag: str, rows: Sequence[Encoded], *, isolate: bool = False) -> Tensor:
    """Standardised numbers read at the last token of the function tag [row]."""
    tags: Any = overlay.source
    hidden = read(overlay, rows, isolate=isolate)
    at = torch.tensor([row.read for row in rows], device=hidden.device)
    if (at < 0).any():
        raise AcclimateError(f"a template without a function tag has no place to read a number at; add <{tag}> before {{label}}")
    return tags.heads[f"head_{tag}"](hidden[torch.arange(len(rows), device=hidden.device), at].float())[:, 0]


def number_term(
    overlay: Overlay,
    tag: str,
    rows: Sequence[Encoded],
    labels: Sequence[float],
    *,
    weight: float,
    size: int,
    seed: int,
    isolate: bool = False,
) -> Term:
    """``weight`` times the squared error of standardised labels."""
    tags: Any = overlay.source
    mean, std = tags.scales[tag]
    wanted = (torch.tensor(labels) - mean) / std

    def loss(step: int) -> Tensor:
        chosen = drawn(len(rows), size, step, seed)
        found = numbers(overlay, tag, [rows[i] for i in chosen], isolate=isolate)
        return functional.mse_loss(found, wanted[torch.from_numpy(chosen)].to(found.device))

    return Term(loss, weight, digest([tag, [row.ids for row in rows], list(map(float, labels)), weight, size, seed, isolate]))


@torch.no_grad()
def choose(
    overlay: Overlay,
    template: str,
    fields: Sequence[Mapping[str, Any]],
    options: Sequence[str],
    tokenizer: Any,
    *,
    isolate: bool = False,
    most: int = 0,
    size: int = 32,
) -> list[str]:
    """The likeliest option as {label} of each row."""
    tags: Any = overlay.source
    scores = []
    with evaluating(overlay):
        for option in options:
            rows = [tags.encode(template, {**one, "label": option}, tokenizer, most=most) for one in fields]
            scores.append(torch.cat([said(overlay, rows[i : i + size], isolate=isolate)[0] for i in range(0, len(rows), size)]))
    return [options[int(best)] for best in torch.stack(scores).argmax(0)]


@torch.no_grad()
def predict(
    overlay: Overlay,
    tag: str,
    template: str,
    fields: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    isolate: bool = False,
    most: int = 0,
    size: int = 32,
) -> np.ndarray:
    """Numbers in the labels' own scale [row]."""
    tags: Any = overlay.source
    if f"head_{tag}" not in tags.heads:
        raise AcclimateError(f"the tag {tag!r} has no head for numbers; train it on labels that are numbers")
    plain = template.partition("{label}")[0]
    rows = [tags.encode(plain, one, tokenizer, end=False, most=most) for one in fields]
    with evaluating(overlay):
        found = torch.cat([numbers(overlay, tag, rows[i : i + size], isolate=isolate) for i in range(0, len(rows), size)])
    mean, std = tags.scales[tag]
    return found.cpu().numpy() * std + mean


def library(overlay: Overlay) -> Tags:
    """The tags of an overlay."""
    source: Any = overlay.source
    return source


# encoders: labels of texts, and frozen networks that drop out as much as is wanted


class Headed(nn.Module):
    """An encoder (or an overlay of one) with a linear layer on the mean of its states."""

    def __init__(self, body: nn.Module, width: int, classes: int):
        super().__init__()
        self.body, self.out = body, nn.Linear(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores [row, class]."""
        states = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.out(pooled(states, mask, "mean"))


def label_term(headed: Headed, rows: Sequence[Sequence[int]], labels: Sequence[int], *, size: int, seed: int, fill: int = 0) -> Term:
    """Cross-entropy of the classes."""
    wanted = torch.tensor(labels)

    def loss(step: int) -> Tensor:
        chosen = drawn(len(rows), size, step, seed)
        device = headed.out.weight.device
        ids, mask = padded([rows[i] for i in chosen], fill)
        return functional.cross_entropy(headed(ids.to(device), mask.to(device)), wanted[torch.from_numpy(chosen)].to(device))

    return Term(loss, 1.0, digest([[list(row) for row in rows], list(labels), size, seed]))


@torch.no_grad()
def accuracy(headed: Headed, rows: Sequence[Sequence[int]], labels: Sequence[int], *, size: int = 64, fill: int = 0) -> float:
    """Share of rows whose class is found."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    right = 0
    device = headed.out.weight.device
    with evaluating(headed):
        for i in range(0, len(order), size):
            some = order[i : i + size]
            ids, mask = padded([rows[j] for j in some], fill)
            found = headed(ids.to(device), mask.to(device)).argmax(1).cpu()
            right += int((found == torch.tensor([labels[j] for j in some])).sum())
    return right / len(rows)


@contextmanager
def dropping(net: nn.Module, share: float) -> Iterator[None]:
    """A block in which every dropout of a network in training mode drops this share; afterwards they drop what they did."""
    held: list[tuple[Any, str]] = [(layer, "p") for layer in net.modules() if isinstance(layer, nn.Dropout)]
    names = ("attention_dropout", "dropout_p")
    held += [(layer, name) for layer in net.modules() for name in names if isinstance(getattr(layer, name, None), float)]
    before = [getattr(layer, name) for layer, name in held]
    try:
        for layer, name in held:
            setattr(layer, name, share)
        yield
    finally:
        for (layer, name), was in zip(held, before, strict=True):
            setattr(layer, name, was)


# mentions of entities


def masked_mentions(made: Spelled, mask_id: int) -> list[tuple[list[int], list[int]]]:
    """The three variants of a sentence as (ids, labels): the first known mention hidden, the last, and both; -100 where nothing is asked.

    >>> masked_mentions(Spelled([1, 90, 7, 5, 6, 2], {0: [2], 1: [4]}), 9)[1:]
    [([1, 90, 7, 5, 9, 2], [-100, -100, -100, -100, 6, -100]), ([1, 90, 9, 5, 9, 2], [-100, -100, 7, -100, 6, -100])]
    """
    found = [places for _, places in sorted(made.mentions.items())]
    if not found:
        return []
    choices = [found[0]] if len(found) == 1 else [found[0], found[-1], [*found[0], *found[-1]]]
    variants = []
    for hidden in choices:
        ids, labels = list(made.ids), [-100] * len(made.ids)
        for place in hidden:
            labels[place], ids[place] = ids[place], mask_id
        variants.append((ids, labels))
    return variants


def mention_term(overlay: Overlay, rows: Sequence[tuple[list[int], list[int]]], *, size: int, seed: int, fill: int = 0) -> Term:
    """Cross-entropy of the hidden tokens under a masked language model."""

    def loss(step: int) -> Tensor:
        some = [rows[i] for i in drawn(len(rows), size, step, seed)]
        device = next(overlay.net.parameters()).device
        ids, mask = padded([row[0] for row in some], fill)
        labels, _ = padded([row[1] for row in some], -100)
        logits = overlay(ids.to(device), attention_mask=mask.to(device)).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(device))

    return Term(loss, 1.0, digest([[list(part) for part in row] for row in rows] + [size, seed]))


def plug(headed: Headed, mapped: Mapped | None) -> Headed:
    """A frozen downstream encoder, reading entities through a map: the same weights in another wrapper; None takes the map off."""
    net = headed.body.net if isinstance(headed.body, Overlay) else headed.body
    made = Headed(net, headed.out.in_features, headed.out.out_features)
    if mapped is not None:
        made.body = Overlay(net, mapped)
    made.out = headed.out
    return made.requires_grad_(False).eval()

"""The score engine: how well a model predicts text and answers tasks, per item, in a fixed order, with intervals.

The unit for language models is bits per byte (comparable when the vocabulary changes), with perplexity beside it. Sums run over
documents in their own order in float64, from token scores in fp32, so figures do not depend on the batch size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..domain import Task
from ..errors import AcclimateError
from ..model import Model
from ..parts import statistics
from ..parts.packing import pack
from ..progress import bar
from .forward import autocast, logits, packs
from .rows import frame, padded, render, stack
from .tokens import encode


@dataclass
class Bits:
    """Per-document sums: nats of surprise, bytes, scored tokens (all [document]), and 1 / rank of the true token where it was asked for."""

    nats: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray
    reciprocal_ranks: np.ndarray | None = None

    @property
    def bits(self) -> np.ndarray:
        """Bits of surprise per document."""
        return self.nats / np.log(2)

    @property
    def value(self) -> float:
        """Bits per byte over all documents."""
        return float(self.bits.sum() / self.bytes.sum())

    @property
    def perplexity(self) -> float:
        """exp(nats per token); not comparable between vocabularies."""
        return float(np.exp(self.nats.sum() / self.tokens.sum()))

    def interval(self) -> tuple[float, float, float]:
        """Bits per byte with its 95 % bootstrap interval over documents."""
        return statistics.ratio_interval(self.bits, self.bytes)


@torch.no_grad()
def bits_per_byte(
    model: Model,
    texts: Sequence[str],
    *,
    rows: int = 8,
    overlap: float = 0.5,
    width: int = 0,
    precision: str = "fp32",
    what: str = "",
    ranks: bool = False,
) -> Bits:
    """Surprise of every document under the model.

    A document longer than the context is read in windows that share ``overlap`` of their width; each token is scored once, with the
    most context it has. Masked models are scored by :func:`masked_bits` on the same documents.

    Args:
        texts: documents; an empty list is an error.
        rows: windows per batch (changes speed, not the figures).
        width: window in tokens; 0 = the model's context, 512 at most.
        ranks: also find at which rank the true token stands (causal models).
    """
    if not len(texts):
        raise AcclimateError("there are no documents to score")
    if model.kind == "masked":
        return masked_bits(model, texts, rows=rows, width=width, precision=precision)
    if model.kind != "causal":
        raise AcclimateError(f"bits per byte needs a causal or masked language model, and {model.name} is {model.kind}")
    if not 0 <= overlap < 1:
        raise AcclimateError(f"overlap = {overlap}, but must lie in [0, 1): it is the share of a window that the next one reads again")
    width = min(width or 512, model.context)
    tokens = encode(texts, model.tokenizer, what="tokenising for scoring")
    before, after = frame(model.tokenizer)
    windows: list[tuple[int, int, int, int]] = []  # document, first token, first scored token, end
    shared = max(1, int(width * overlap))
    for document, inner in enumerate(tokens.lengths):
        length = int(inner) + len(before) + len(after)
        start = scored = 0
        while scored < length and length > 1:
            end = min(start + width, length)
            windows.append((document, start, max(scored, 1), end))
            scored, start = end, end - shared
    if not windows:
        raise AcclimateError(f"no document has a token that can be scored: {model.name} has no begin token, and all have one token at most")
    packed = packs(model)
    plan = pack([end - start for _, start, _, end in windows], width) if packed else [[i] for i in range(len(windows))]
    nats, counts, inverse = np.zeros(len(windows)), np.zeros(len(windows), np.int64), np.zeros(len(windows))
    model.net.eval()
    with bar(what=what or f"scoring {model.name}", total=len(plan), unit="row") as shown, autocast(model.device, precision):
        for begin in range(0, len(plan), rows):
            some = plan[begin : begin + rows]
            ids = [[np.concatenate([before, tokens[windows[i][0]], after])[windows[i][1] : windows[i][3]] for i in row] for row in some]
            joined = [np.concatenate(row) for row in ids]
            if packed:
                positions = [np.concatenate([np.arange(len(part)) for part in row]) for row in ids]
                batch = {
                    "input_ids": stack(joined, width, model.tokenizer.pad_token_id or 0),
                    "position_ids": stack(positions, width, 0),
                }
            else:
                batch = padded(joined, model.tokenizer.pad_token_id or 0)
            batch = {name: value.to(model.device) for name, value in batch.items()}
            out = logits(model.net, batch, model.kind)[:, :-1].float()
            true = out.gather(2, batch["input_ids"][:, 1:, None])
            surprise = (out.logsumexp(2) - true[..., 0]).cpu().double().numpy()
            found = 1 / (1 + (out > true).sum(2)).cpu().double().numpy() if ranks else None
            for r, row in enumerate(some):
                at = 0
                for i in row:
                    _, start, scored, end = windows[i]
                    part = slice(at + scored - start - 1, at + end - start - 1)
                    nats[i] = surprise[r, part].sum()
                    if found is not None:
                        inverse[i] = found[r, part].sum()
                    counts[i] = end - scored
                    at += end - start
            shown.update(len(some))
    documents = np.array([window[0] for window in windows])
    size = len(texts)
    return Bits(
        np.bincount(documents, nats, size),
        np.array([len(text.encode()) for text in texts], np.float64),
        np.bincount(documents, counts, size),
        np.bincount(documents, inverse, size) if ranks else None,
    )


@torch.no_grad()
def masked_bits(
    model: Model,
    texts: Sequence[str],
    *,
    rows: int = 8,
    width: int = 0,
    precision: str = "fp32",
    share: float = 0.15,
    seed: int = 0,
) -> Bits:
    """Surprise of a masked model at ``share`` of the tokens, masked all at once by a seed fixed per document.

    Nats are of the masked tokens alone, and bytes are the bytes those tokens stand for, so the ratio is bits per masked byte.
    """
    if model.tokenizer.mask_token_id is None:
        raise AcclimateError(f"{model.name} has no mask token, so it cannot be scored as a masked model")
    width = min(width or 512, model.context)
    tokens = encode(texts, model.tokenizer, what="tokenising for scoring")
    before, after = frame(model.tokenizer)
    room = width - len(before) - len(after)
    parts = [(d, s) for d, length in enumerate(tokens.lengths) for s in range(0, max(int(length), 1), room)]
    nats, sizes, counts = np.zeros(len(texts)), np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    model.net.eval()
    for begin in range(0, len(parts), rows):
        some = parts[begin : begin + rows]
        clean, hidden = [], []
        for document, start in some:
            body = np.asarray(tokens[document][start : start + room], np.int64)
            picked = np.random.default_rng([seed, document, start]).random(len(body)) < share
            if len(body) and not picked.any():
                picked[len(body) // 2] = True
            clean.append(np.concatenate([before, body, after]))
            hidden.append(np.concatenate([np.zeros(len(before), bool), picked, np.zeros(len(after), bool)]))
        batch = padded(clean, model.tokenizer.pad_token_id or 0)
        mask = stack([h.astype(np.int64) for h in hidden], batch["input_ids"].shape[1], 0).bool()
        target = batch["input_ids"].clone()
        batch["input_ids"][mask] = model.tokenizer.mask_token_id
        with autocast(model.device, precision):
            out = logits(model.net, {n: v.to(model.device) for n, v in batch.items()}, "masked")[mask].float().cpu()
        surprise = torch.nn.functional.cross_entropy(out, target[mask], reduction="none").double().numpy()
        owner = np.repeat([document for document, _ in some], mask.sum(1).numpy())
        np.add.at(nats, owner, surprise)
        np.add.at(counts, owner, 1)
    lengths = np.maximum(np.asarray(tokens.lengths), 1)
    sizes = np.array([len(text.encode()) for text in texts]) * counts / lengths
    return Bits(nats, np.maximum(sizes, 1e-9), counts)


@torch.no_grad()
def option_logps(model: Model, prompts: Sequence[str], options: Sequence[Sequence[str]], *, rows: int = 16) -> list[np.ndarray]:
    """Log-probability of each option after its prompt, per prompt [option]; ids are made apart at the border, as in generation."""
    before, _ = frame(model.tokenizer)
    items = [(i, prompt, option) for i, (prompt, several) in enumerate(zip(prompts, options, strict=True)) for option in several]
    found: list[list[float]] = [[] for _ in prompts]
    model.net.eval()
    for begin in range(0, len(items), rows):
        some = items[begin : begin + rows]
        ids, starts = [], []
        for owner, prompt, option in some:
            head = [*before, *model.tokenizer(prompt, add_special_tokens=False).input_ids]
            tail = model.tokenizer(option, add_special_tokens=False).input_ids[: model.context // 2]
            if not tail:
                raise AcclimateError(f"prompt {owner + 1} has an option without any token, {option!r}; leave it out")
            head = head[-(model.context - len(tail)) :]
            ids.append(np.array([*head, *tail], np.int64))
            starts.append(len(head))
        batch = {name: value.to(model.device) for name, value in padded(ids, model.tokenizer.pad_token_id or 0).items()}
        out = logits(model.net, batch, model.kind)[:, :-1].float()
        picked = (out.gather(2, batch["input_ids"][:, 1:, None])[..., 0] - out.logsumexp(2)).cpu().double().numpy()
        for row, (owner, _, _) in enumerate(some):
            found[owner].append(picked[row, max(starts[row] - 1, 0) : len(ids[row]) - 1].sum())
    return [np.array(each) for each in found]


@dataclass
class Answers:
    """Per-item outcome of a task: what was answered, what was right."""

    given: list[str]
    wanted: list[str]
    metric: str

    @property
    def right(self) -> np.ndarray:
        """1 where the answer is right [item]."""
        return np.array([given == wanted for given, wanted in zip(self.given, self.wanted, strict=True)], np.float64)

    def interval(self) -> tuple[float, float, float]:
        """The metric with its 95 % bootstrap interval over items."""
        if self.metric != "macro_f1":
            return statistics.mean_interval(self.right)
        drawn = _f1(statistics.resampled_sums(self._counts(sorted({*self.given, *self.wanted}))))
        low, high = np.percentile(drawn, [2.5, 97.5])
        return macro_f1(self.given, self.wanted), float(low), float(high)

    def against(self, before: "Answers") -> tuple[float, float, float, float]:
        """The metric minus that of ``before`` on the same items: (difference, low, high, p), as ``statistics.paired_difference``."""
        if self.metric != "macro_f1":
            ones = np.ones(len(self.wanted))
            return statistics.paired_difference(before.right, ones, self.right, ones)
        labels = sorted({*self.given, *before.given, *self.wanted})
        first, second = before._counts(labels), self._counts(labels)
        sums = statistics.resampled_sums(np.hstack([first, second]))
        gaps = _f1(sums[:, first.shape[1] :]) - _f1(sums[:, : first.shape[1]])
        gaps[np.abs(gaps) < 1e-12] = 0.0
        low, high = np.percentile(gaps, [2.5, 97.5])
        p = 2 * (min((gaps <= 0).sum(), (gaps >= 0).sum()) + 1) / (len(gaps) + 1)
        difference = macro_f1(self.given, self.wanted) - macro_f1(before.given, before.wanted)
        return difference, float(low), float(high), float(min(1.0, max(p, 2.0 ** (1 - len(self.wanted)))))

    def _counts(self, labels: list[str]) -> np.ndarray:
        """What the F1 of each label is made of [item, 2 x label]: twice the hits, then how often it was given or wanted."""
        given, wanted = (np.array(side)[:, None] == np.array(labels)[None] for side in (self.given, self.wanted))
        return np.hstack([2.0 * (given & wanted), given + wanted.astype(float)])


def _f1(sums: np.ndarray) -> np.ndarray:
    """Macro F1 of each draw, over the labels that occur in it."""
    hits, seen = np.split(sums, 2, axis=1)
    return np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0).sum(1) / (seen > 0).sum(1)


def macro_f1(given: Any, wanted: Any) -> float:
    """Mean over the labels of F1.

    >>> macro_f1(["a", "b", "b"], ["a", "a", "b"])
    0.6666666666666666
    """
    from sklearn.metrics import f1_score

    return float(f1_score(wanted, given, average="macro", zero_division=0))


def solve(model: Model, task: Task) -> Answers:
    """Answer a task: choose among options by likelihood per byte, classify by the label's likelihood, or generate and compare.

    Rows of a multiple-choice or classification task hold ``prompt``, ``options`` and ``answer``; rows of a generation task
    ``prompt`` and ``answer``.
    """
    prompts = [row["prompt"] for row in task.rows]
    wanted = [str(row["answer"]) for row in task.rows]
    if task.kind == "generation":
        from .generate import generate

        most = min(max(8, 2 * max(len(w) for w in wanted) // 3), model.context // 2)
        given = [text.strip() for text in generate(model, prompts, tokens=most)]
        return Answers(given, [w.strip() for w in wanted], task.metric)
    options = [[str(option) for option in row["options"]] for row in task.rows]
    scores = option_logps(model, prompts, options)
    per_byte = [score / np.array([max(len(o.encode()), 1) for o in several]) for score, several in zip(scores, options, strict=True)]
    pick = per_byte if task.kind == "multiple_choice" else scores
    return Answers([several[int(np.argmax(score))] for several, score in zip(options, pick, strict=True)], wanted, task.metric)


def prompt_of(messages: list[dict], model: Model) -> str:
    """A conversation as a prompt for the next answer."""
    return render(messages, model.tokenizer, answer_next=True)

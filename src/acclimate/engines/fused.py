"""A teacher made of two models with different tokenizers: the pivot's own view of a text, fused with that of a source.

``fused_teacher`` gives an ordinary Model, in the pivot's vocabulary, so the train engine keeps its view as that of any teacher. Its network
runs the pivot on the rows and the source on their text, carries the source's likeliest tokens over (parts/alignment.py), and returns
the fused distribution as logits.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import AcclimateError
from ..files import digest
from ..model import Model, tokenizer_fingerprint
from ..parts.alignment import TINY, Distribution, Vocabulary, align, carry, fuse, partners, relations, source_share, spellings
from .rows import frame, padded

FUSIONS = ("min_ce", "avg_ce")
LEVELS = ("response", "token")


def fused_teacher(
    source: Model,
    pivot: Model,
    *,
    k: int = 10,
    fusion: str = "min_ce",
    level: str = "response",
    threshold: float = 0.7,
    mass: float = 0.5,
    average: bool = True,
) -> Model:
    """A teacher for ``pivot`` that knows what ``source`` knows.

    Args:
        k: likeliest tokens of either model that are kept; train with ``teacher_k`` = k.
        fusion: ``min_ce`` takes the distribution of the model with the lower cross-entropy, ``avg_ce`` mixes by softmax(-cross-entropy).
        level: cross-entropy of the whole text or of each token alone.
        threshold: similarity below which a source token has no counterpart (see alignment.Vocabulary).
        mass: share of the source's k tokens, by probability, that must be carried over, or the pivot's own view stands; else what is left
            would be scaled up to a distribution that lacks the source's favourite.
        average: where several source tokens meet one of the pivot's, teach their mean; off: the pivot's own distribution stands.

    Raises AcclimateError unless both are decoders.
    """
    for model in (source, pivot):
        if model.kind != "causal":
            raise AcclimateError(f"distributions of next tokens are fused between decoders, but {model.name} is {model.kind}")
    net = FusedNet(source, pivot, k=k, fusion=fusion, level=level, threshold=threshold, mass=mass, average=average)
    return Model(f"{pivot.name} with {source.name}", net.eval(), pivot.tokenizer, "causal", pivot.source)


class FusedNet(nn.Module):
    """Answers like a decoder of the pivot's family; what it says is the fused distribution at every place that has a next token."""

    def __init__(self, source: Model, pivot: Model, *, k: int, fusion: str, level: str, threshold: float, mass: float, average: bool):
        super().__init__()
        self.source, self.pivot, self.config = source.net, pivot.net, pivot.net.config
        self.k, self.fusion, self.level, self.mass, self.average = k, fusion, level, mass, average
        self.context, self.longest = source.context, pivot.context
        self.tokenizers = (source.tokenizer, pivot.tokenizer)
        self.frames = [[part.tolist() for part in frame(tokenizer)] for tokenizer in self.tokenizers]
        self.words = [spellings(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))) for tokenizer in self.tokenizers]
        special = {mine[0]: other[0] for mine, other in zip(*self.frames, strict=True) if mine and other}
        self.vocabulary = Vocabulary(self.words[0], self.words[1], threshold, special)
        self.special = set(pivot.tokenizer.all_special_ids)
        told = digest([k, fusion, level, threshold, mass, average, *map(tokenizer_fingerprint, self.tokenizers)])
        self.register_buffer("told", torch.tensor(list(told.encode())))  # so that other settings are another fingerprint

    @property
    def dtype(self) -> torch.dtype:
        """The pivot's."""
        return self.pivot.dtype

    def get_input_embeddings(self) -> Any:
        """The pivot's."""
        return self.pivot.get_input_embeddings()

    @torch.no_grad()
    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """Log-probabilities [row, token, vocabulary] as ``.logits``, for packed rows (positions start at 0 per text) or padded ones."""
        given = {} if position_ids is None else {"position_ids": position_ids}
        out = self.pivot(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **given).logits.float().log_softmax(2)
        pieces = _pieces(input_ids, position_ids, attention_mask)
        ids = input_ids.cpu().numpy()
        views = self._views([ids[row, start:end] for row, start, end in pieces], out.device)
        for (row, start, end), view in zip(pieces, views, strict=True):
            place = slice(start, end - 1)
            (new, logprobs), _ = self._fuse(out[row, place], ids[row, start:end], view)
            out[row, place] = TINY
            values = torch.from_numpy(logprobs).to(out)
            out[row, place] = out[row, place].scatter(1, torch.from_numpy(new).to(out.device), values)
        return SimpleNamespace(logits=out)

    @torch.no_grad()
    def report(self, texts: list[str]) -> dict[str, float]:
        """How texts align, per token of the pivot: exact, 1-1, 1-n, n-1, n-n, covered, carried mass, from the source (its share)."""
        before, after = self.frames[1]
        counts: dict[str, float] = {}
        total = 0
        for text in texts:
            body = self.tokenizers[1](text, add_special_tokens=False).input_ids
            tokens = np.array([*before, *body, *after][: self.longest])
            device = next(self.pivot.parameters()).device
            out = self.pivot(input_ids=torch.from_numpy(tokens)[None].to(device), use_cache=False).logits[0, :-1].float().log_softmax(1)
            _, facts = self._fuse(out, tokens, self._views([tokens], device)[0])
            total += len(tokens) - 1
            for name, value in facts.items():
                counts[name] = counts.get(name, 0.0) + value
        return {name: value / max(total, 1) for name, value in counts.items()}

    def _views(self, pieces: list[np.ndarray], device: torch.device, rows: int = 8) -> list[dict[str, Any]]:
        """The source's view of each text: its tokens as text, likeliest next tokens and surprise at each token [source token]."""
        tokenizer, (before, after) = self.tokenizers[0], self.frames[0]
        texts = [
            self.tokenizers[1].decode([i for i in piece.tolist() if i not in self.special], clean_up_tokenization_spaces=False)
            for piece in pieces
        ]
        bodies = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        whole = [np.array([*before, *body, *after][: self.context], np.int64) for body in bodies]
        found: list[dict[str, Any]] = [{} for _ in pieces]
        order = sorted(range(len(pieces)), key=lambda i: len(whole[i]))
        for begin in range(0, len(order), rows):
            some = [i for i in order[begin : begin + rows] if len(whole[i]) > 1]
            if not some:
                continue
            batch = {name: value.to(device) for name, value in padded([whole[i] for i in some], tokenizer.pad_token_id or 0).items()}
            logprobs = self.source(**batch, use_cache=False).logits[:, :-1].float().log_softmax(2)
            gold = -logprobs.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
            top = logprobs.topk(min(self.k, logprobs.shape[2]), 2)
            for r, i in enumerate(some):
                last, lead = len(whole[i]) - 1, max(len(before) - 1, 0)  # a text without a begin token: its first token is not predicted
                skip = 0 if before else 1
                found[i] = {
                    "ids": top.indices[r, lead:last].cpu().numpy(),
                    "logprobs": top.values[r, lead:last].double().cpu().numpy(),
                    "nats": gold[r, lead:last].double().cpu().numpy(),
                    "words": [self.words[0][token] for token in bodies[i]],
                    "skip": skip,
                    "end": len(bodies[i]) - skip if after else -1,
                }
        return found

    def _fuse(self, pivot: Tensor, tokens: np.ndarray, view: dict[str, Any]) -> tuple[Distribution, dict[str, float]]:
        """The fused distribution for each next token of one text; pivot: log-probabilities [token - 1, vocabulary]."""
        top = pivot.topk(min(self.k, pivot.shape[1]), 1)
        own = (top.indices.cpu().numpy(), (top.values - top.values.logsumexp(1, keepdim=True)).double().cpu().numpy())
        nats = -pivot.gather(1, torch.from_numpy(tokens[1:, None]).to(pivot.device))[:, 0].double().cpu().numpy()
        if not view:
            return own, {}
        body = [i for i, token in enumerate(tokens.tolist()) if token not in self.special]
        words = [self.words[1][tokens[i]] for i in body]
        path = align(view["words"], words)
        places: list[list[int]] = [[] for _ in range(len(tokens) - 1)]
        for i, some in zip(body, partners(path, len(body)), strict=True):
            if i:  # the first token of a row follows nothing
                places[i - 1] = [place - view["skip"] for place in some if 0 <= place - view["skip"] < len(view["ids"])]
        if tokens[-1] in self.special and 0 <= view["end"] < len(view["ids"]):
            places[-1] = [view["end"]]
        if not self.average:
            places = [some if len(some) == 1 else [] for some in places]
        carried, mass = carry(view["ids"], view["logprobs"], places, self.vocabulary)
        covered = mass > self.mass
        share = self._share(nats, view["nats"], places, covered, carried, tokens[1:])
        facts: dict[str, float] = dict(relations(path, view["words"], words))
        facts |= {"covered": float(covered.sum()), "carried mass": float(mass[covered].sum()), "from the source": float(share.sum())}
        return fuse(own, carried, share), facts

    def _share(
        self, pivot: np.ndarray, source: np.ndarray, places: list[list[int]], covered: np.ndarray, carried: Distribution, gold: np.ndarray
    ) -> np.ndarray:
        """The source's share at each position [token - 1]; 0 where nothing of it could be carried over."""
        if self.level == "token":
            hit = carried[0] == gold[:, None]
            theirs = np.where(hit.any(1), -np.where(hit, carried[1], 0).sum(1), -TINY)
            return source_share(pivot, theirs, self.fusion) * covered
        if not covered.any():
            return np.zeros(len(pivot))
        met = sorted({i for some, kept in zip(places, covered, strict=True) if kept for i in some})
        mine, theirs = (np.array([side.sum() / covered.sum()]) for side in (pivot[covered], source[met]))  # over the same text
        return source_share(mine, theirs, self.fusion) * covered


def _pieces(ids: Tensor, positions: Tensor | None, mask: Tensor | None) -> list[tuple[int, int, int]]:
    """(row, first, behind the last) of each text of two tokens or more."""
    found = []
    for row in range(len(ids)):
        if positions is not None:
            starts = (positions[row] == 0).nonzero()[:, 0].tolist()
            found += [(row, a, b) for a, b in zip(starts, [*starts[1:], ids.shape[1]], strict=True) if b - a > 1]
        else:
            length = int(mask[row].sum()) if mask is not None else ids.shape[1]
            found += [(row, 0, length)] if length > 1 else []
    return found

"""Training rows: from a domain's documents, conversations, preferences or pairs to arrays of ids, in an order fixed by the seed.

A row is found by its number alone (``rows[k]``; past the end a new epoch begins with a new order and new masks), so a run that
was killed goes on with exactly the rows it would have seen.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domain import Domain
from ..errors import AcclimateError, nearest
from ..files import digest
from ..kinds import Objective
from ..model import Model
from ..parts.packing import cut, pack
from .tokens import encode
from .tokens import fingerprint as voice


class Source:
    """What all row sources share: length of an epoch, and the order of each epoch."""

    def __init__(self, name: str, seed: int, tokenizer: Any):
        self.name, self.seed, self.tokenizer = name, seed, tokenizer
        self.told = [voice(tokenizer), tokenizer.chat_template]  # what decides, beside the data, which ids a row holds
        self.order = lru_cache(maxsize=2)(self._order)

    size: int = 0

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.size)

    def locate(self, k: int) -> tuple[int, int]:
        """Row number -> (epoch, index into the data)."""
        epoch, place = divmod(k, self.size)
        return epoch, int(self.order(epoch)[place])

    def __getitem__(self, k: int) -> dict[str, Any]:
        raise NotImplementedError("each form of data has its own rows")

    def origin(self, index: int) -> str:
        """Where the data behind a row stands, for error messages."""
        raise NotImplementedError("each form of data has its own rows")

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Some rows as one batch of tensors."""
        raise NotImplementedError("each form of data has its own rows")


class TokenRows(Source):
    """Documents or conversations as rows of up to ``width`` tokens, several to a row where the network keeps them apart."""

    def __init__(self, domain: Domain, model: Model, objective: Objective, *, width: int, seed: int, packed: bool, split: str = "train"):
        super().__init__(domain.name, seed, model.tokenizer)
        self.objective, self.width, self.packed = objective, width, packed
        self.vocabulary = len(model.tokenizer)
        self.rows_of = domain.rows(split)
        self.masks: list[np.ndarray] | None = None
        if "answer_mask" in objective.needs():
            if domain.form != "messages":
                raise AcclimateError(f"{objective.name} learns from conversations, but domain {domain.name!r} holds {domain.form}")
            check_template(model, self.rows_of[0]["messages"], domain.name)
            pairs = [conversation_ids(row["messages"], model.tokenizer) for row in self.rows_of]
            self.documents: Any = [ids[-width:] for ids, _ in pairs]
            self.masks = [mask[-width:] for _, mask in pairs]
            lengths = np.array([len(ids) for ids in self.documents])
            self.prefix = self.suffix = np.empty(0, np.int64)
        else:
            self.documents = encode(domain.texts(split), model.tokenizer, what=f"tokenising {domain.name}")
            self.prefix, self.suffix = frame(model.tokenizer)
            lengths = np.asarray(self.documents.lengths) + len(self.prefix) + len(self.suffix)
        self.pieces = [(doc, start, end) for doc, length in enumerate(lengths) for start, end in cut(int(length), width) if end - start > 1]
        if not self.pieces:
            raise AcclimateError(f"domain {domain.name!r} has no text to learn from in its {split} split")
        sizes = [end - start for _, start, end in self.pieces]
        self.plan = pack(sizes, width) if packed else [[i] for i in range(len(sizes))]
        self.size = len(self.plan)
        self.tokens = int(sum(sizes))
        self.key = digest([domain.fingerprint, split, width, packed, *self.told, self.size, self.tokens])

    def origin(self, index: int) -> str:
        """The documents in one row."""
        return ", ".join(str(self.rows_of[self.pieces[p][0]]["origin"]) for p in self.plan[index][:3])

    def _piece(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        doc, start, end = self.pieces[number]
        ids = np.concatenate([self.prefix, np.asarray(self.documents[doc], np.int64), self.suffix])
        special = np.zeros(len(ids), np.int8)
        special[: len(self.prefix)] = 1
        special[len(ids) - len(self.suffix) :] = 1
        mask = None if self.masks is None else self.masks[doc][start:end]
        return ids[start:end], special[start:end], mask

    def __getitem__(self, k: int) -> dict[str, Any]:
        epoch, index = self.locate(k)
        generator = np.random.default_rng([self.seed, epoch, index, 1])
        parts: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": [], "position_ids": [], "answer_mask": []}
        for number in self.plan[index]:
            tokens, special, mask = self._piece(number)
            inputs, labels = self.objective.corrupt(tokens, special, self.vocabulary, self.tokenizer.mask_token_id, generator)
            parts["input_ids"].append(inputs)
            parts["labels"].append(labels)
            parts["position_ids"].append(np.arange(len(tokens)))
            if mask is not None:
                parts["answer_mask"].append(np.append(mask[1:], 0))  # aligned with the labels: is the next token an answer's?
        row: dict[str, Any] = {name: np.concatenate(list_) for name, list_ in parts.items() if list_}
        row["index"] = index
        return row

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows to one batch: packed rows to the full width, single ones to the longest among them."""
        width = self.width if self.packed else max(len(row["input_ids"]) for row in rows)
        fills = {"input_ids": self.tokenizer.pad_token_id or 0, "labels": -100, "position_ids": 0, "answer_mask": 0}
        batch = {name: stack([row[name] for row in rows], width, fill) for name, fill in fills.items() if name in rows[0]}
        if not self.packed:
            del batch["position_ids"]
            batch["attention_mask"] = stack([np.ones(len(row["input_ids"]), np.int64) for row in rows], width, 0)
        return batch


class Seq2SeqRows(Source):
    """Conversations for an encoder-decoder: everything before the last answer goes in, the last answer comes out."""

    def __init__(self, domain: Domain, model: Model, *, width: int, seed: int, split: str = "train"):
        super().__init__(domain.name, seed, model.tokenizer)
        if domain.form != "messages":
            raise AcclimateError(f"an encoder-decoder learns from prompts with answers, but domain {domain.name!r} holds {domain.form}")
        self.rows_of, self.width = domain.rows(split), width
        self.start = model.net.config.decoder_start_token_id
        self.size = len(self.rows_of)
        self.key = digest([domain.fingerprint, split, width, "seq2seq", *self.told])

    def origin(self, index: int) -> str:
        """The row's own place."""
        return str(self.rows_of[index]["origin"])

    def __getitem__(self, k: int) -> dict[str, Any]:
        _, index = self.locate(k)
        messages = self.rows_of[index]["messages"]
        prompt = "\n".join(message["content"] for message in messages[:-1])
        return {
            "input_ids": np.array(self.tokenizer(prompt, truncation=True, max_length=self.width).input_ids),
            "labels": np.array(self.tokenizer(messages[-1]["content"], truncation=True, max_length=self.width).input_ids),
            "index": index,
        }

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Padded inputs, labels, and the labels moved one place as the decoder's input."""
        batch = padded([row["input_ids"] for row in rows], self.tokenizer.pad_token_id)
        labels = padded([row["labels"] for row in rows], -100)["input_ids"]
        start = torch.full((len(rows), 1), self.start)
        before = torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, self.tokenizer.pad_token_id)], 1)
        return {**batch, "labels": labels, "decoder_input_ids": before, "answer_mask": (labels != -100).long()}


class PreferenceRows(Source):
    """A prompt with a preferred and a rejected answer, tokenised apart at the border as they are when generating."""

    def __init__(self, domain: Domain, model: Model, *, width: int, seed: int, split: str = "train"):
        super().__init__(domain.name, seed, model.tokenizer)
        if domain.form != "preference":
            raise AcclimateError(f"preference objectives need prompt, chosen and rejected, but domain {domain.name!r} holds {domain.form}")
        self.rows_of, self.width = domain.rows(split), width
        self.size = len(self.rows_of)
        self.key = digest([domain.fingerprint, split, width, "preference", *self.told])

    def origin(self, index: int) -> str:
        """The row's own place."""
        return str(self.rows_of[index]["origin"])

    def pair(self, index: int) -> dict[str, Any]:
        """Ids and answer masks of both answers to one prompt."""
        row = self.rows_of[index]
        prompt = self.tokenizer(render(row["prompt"], self.tokenizer, answer_next=True), add_special_tokens=False).input_ids
        end = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        found: dict[str, Any] = {"index": index}
        for side in ("chosen", "rejected"):
            answer = [*self.tokenizer(row[side], add_special_tokens=False).input_ids, *end][: self.width // 2]
            start = prompt[-(self.width - len(answer)) :]
            found[side] = np.array(start + answer)
            found[f"{side}_mask"] = np.array([0] * len(start) + [1] * len(answer))
        return found

    def __getitem__(self, k: int) -> dict[str, Any]:
        return self.pair(self.locate(k)[1])

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Preferred answers first, then the rejected ones, in one padded batch of twice as many rows."""
        ids = [row[side] for side in ("chosen", "rejected") for row in rows]
        masks = [row[f"{side}_mask"] for side in ("chosen", "rejected") for row in rows]
        batch = padded(ids, self.tokenizer.pad_token_id or 0)
        return {**batch, "answer_mask": stack(masks, batch["input_ids"].shape[1], 0)}


class PairRows(Source):
    """Texts that belong together, for contrastive objectives."""

    def __init__(self, domain: Domain, model: Model, *, width: int, seed: int, split: str = "train"):
        super().__init__(domain.name, seed, model.tokenizer)
        if domain.form != "pairs":
            raise AcclimateError(f"contrastive objectives need anchor and positive, but domain {domain.name!r} holds {domain.form}")
        self.rows_of, self.width = domain.rows(split), width
        self.size = len(self.rows_of)
        self.sides = [side for side in ("anchor", "positive", "negative") if side in self.rows_of.column_names]
        self.key = digest([domain.fingerprint, split, width, "pairs", *self.told])

    def origin(self, index: int) -> str:
        """The row's own place."""
        return str(self.rows_of[index]["origin"])

    def __getitem__(self, k: int) -> dict[str, Any]:
        _, index = self.locate(k)
        row = self.rows_of[index]
        return {"index": index} | {
            side: np.array(self.tokenizer(row[side], truncation=True, max_length=self.width).input_ids) for side in self.sides
        }

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """All anchors, then all positives (then all negatives) in one padded batch; ``sides`` says how many blocks there are."""
        batch = padded([row[side] for side in self.sides for row in rows], self.tokenizer.pad_token_id or 0)
        return {**batch, "sides": torch.tensor(len(self.sides))}


class Mixture(torch.utils.data.Dataset):
    """Rows of several sources in shares that may change over the run; row ``i`` is the same whenever it is asked for.

    ``stages`` is a list of (end of the stage as a share of the run, {source: weight}).
    """

    def __init__(self, sources: dict[str, Source], stages: list[tuple[float, dict[str, float]]], total: int, seed: int):
        self.sources = list(sources.values())
        names = list(sources)
        generator = np.random.default_rng([seed, 7])
        self.choice = np.empty(total, np.int32)
        begin = 0
        for number, (end, weights) in enumerate(stages):
            stop = total if number == len(stages) - 1 else round(end * total)
            if not (stages[number - 1][0] if number else 0) < end <= 1:
                raise AcclimateError(f"stage {number + 1} ends at {end} of the run, but the ends must rise from above 0 to 1")
            for name in weights:
                if name not in sources:
                    raise AcclimateError(f"stage {number + 1} of the mixture: no source {name!r}{nearest(name, sources)}")
            shares = np.array([weights.get(name, 0.0) for name in names])
            if shares.sum() <= 0:
                raise AcclimateError(f"the mixture {weights} gives no source a weight above 0")
            self.choice[begin:stop] = generator.choice(len(names), stop - begin, p=shares / shares.sum())
            begin = stop
        self.cursor = np.empty(total, np.int64)
        for number in range(len(names)):
            here = self.choice == number
            self.cursor[here] = np.arange(here.sum())

    def __len__(self) -> int:
        return len(self.choice)

    def __getitem__(self, i: int) -> dict[str, Any]:
        number = int(self.choice[i])
        return {**self.sources[number][int(self.cursor[i])], "source": number}

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch, with where its rows came from."""
        batch = self.sources[0].collate(rows)
        return {**batch, "rows": [(row["source"], row["index"]) for row in rows]}


def frame(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ids that open and close a document: what the tokenizer itself adds, else its begin and end tokens."""
    ids = tokenizer("a").input_ids
    core = tokenizer("a", add_special_tokens=False).input_ids
    at = next((i for i in range(len(ids)) if ids[i : i + len(core)] == core), 0)
    before, after = ids[:at], ids[at + len(core) :]
    if not before and tokenizer.bos_token_id is not None:
        before = [tokenizer.bos_token_id]
    if not after and tokenizer.eos_token_id is not None:
        after = [tokenizer.eos_token_id]
    return np.array(before, np.int64), np.array(after, np.int64)


def render(messages: list[dict], tokenizer: Any, answer_next: bool = False) -> str:
    """A conversation as the model's chat template writes it; without a template, the contents line by line."""
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next)
    return "\n".join(message["content"] for message in messages) + ("\n" if answer_next else "")


def conversation_ids(messages: list[dict], tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a conversation and a mask of the assistant's tokens (its end token included), both [token]."""
    whole = render(messages, tokenizer)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(messages[:i], tokenizer, answer_next=True), render(messages[: i + 1], tokenizer)
            if not (whole.startswith(before) and whole.startswith(after)):
                raise AcclimateError(
                    "the chat template rewrites earlier turns, so the assistant's tokens cannot be told apart; use another template"
                )
            spans.append((len(before), len(after.rstrip("\n"))))
    coded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    starts = np.array([start for start, _ in coded["offset_mapping"]])
    mask = np.zeros(len(starts), np.int8)
    for begin, end in spans:
        mask[(starts >= begin) & (starts < end)] = 1
    return np.array(coded["input_ids"], np.int64), mask


def check_template(model: Model, messages: list[dict], where: str) -> None:
    """Before training on conversations: the template exists, the answer is found, and it ends with the end token."""
    tokenizer = model.tokenizer
    if not tokenizer.chat_template:
        raise AcclimateError(
            f"{model.name} has no chat template, so conversations cannot be written; set tokenizer.chat_template and save it"
        )
    ids, mask = conversation_ids(messages, tokenizer)
    if not mask.any():
        raise AcclimateError(f"the first conversation of {where} has no assistant tokens after templating, so nothing would be learned")
    ends = {tokenizer.eos_token_id, *np.atleast_1d(getattr(model.net.generation_config, "eos_token_id", None) or [])}
    if not ends & set(ids[mask == 1].tolist()):
        raise AcclimateError(
            f"the chat template of {model.name} closes no answer with an end token, so the model would never learn to stop"
        )


def stack(rows: list[np.ndarray], width: int, fill: int) -> Tensor:
    """Rows of unequal length to one tensor [row, width], filled at the right."""
    out = np.full((len(rows), width), fill, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def padded(rows: list[np.ndarray], fill: int) -> dict[str, Tensor]:
    """Rows padded to the longest, with their attention mask."""
    width = max(len(row) for row in rows)
    return {
        "input_ids": stack(rows, width, fill),
        "attention_mask": stack([np.ones(len(row), np.int64) for row in rows], width, 0),
    }

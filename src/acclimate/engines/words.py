"""Supplies the words an objective asks for: logits, answer log-probabilities, a reference's or a teacher's view, embeddings.

Reference log-probabilities and a teacher's top tokens are computed once before training and kept on disk under the hash of the
model that gave them, so neither model has to stay in memory.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AcclimateError, nearest
from ..files import atomic_file, cache_dir, digest
from ..kinds import Objective
from ..model import Model, tokenizer_fingerprint
from ..progress import bar
from ..words import WORDS
from .forward import autocast, logits
from .rows import PreferenceRows, Source, TokenRows

REFERENCE = {"ref_chosen_logps", "ref_rejected_logps"}
TEACHER = {"teacher_ids", "teacher_logprobs"}


def teachers(teacher: Model | Mapping[str, Model] | None, domains: Collection[str]) -> dict[str, Model]:
    """The teacher of each domain: one for all, or each domain's own. Raises AcclimateError where the names do not agree."""
    if teacher is None or isinstance(teacher, Model):
        return {} if teacher is None else dict.fromkeys(domains, teacher)
    for name in teacher:
        if name not in domains:
            raise AcclimateError(f"teacher: there is no domain {name!r} to teach{nearest(name, domains)}")
    for name in domains:
        if name not in teacher:
            raise AcclimateError(f"teacher: domain {name!r} has none; name one for each of {', '.join(domains)}")
    return {name: teacher[name] for name in domains}


def check(objective: Objective, has_teacher: bool) -> None:
    """Before anything is loaded or moved: every word is known and can be had."""
    for word in [*objective.needs(), *objective.wishes()]:
        if word not in WORDS:
            raise AcclimateError(f"{objective.name} asks for {word!r}, which no engine knows{nearest(word, WORDS)}")
    if TEACHER & set(objective.needs()) and not has_teacher:
        raise AcclimateError(
            f"{objective.name} needs a teacher ({', '.join(sorted(TEACHER & set(objective.needs())))}); name one with teacher:"
        )


class Supply:
    """Computes an objective's words for each batch and calls its loss."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        sources: Mapping[str, Source],
        asked: set[str],
        *,
        base: Model,
        teachers: Mapping[str, Model],
        top_k: int,
        precision: str,
    ):
        self.model, self.objective, self.asked, self.kind, self.precision = model, objective, asked, model.kind, precision
        self.sources = list(sources.values())
        self.tokens = 0  # that went through the network, pads included; counted by the trainer
        self.angles = model.net.angles() if "angles" in asked and hasattr(model.net, "angles") else None
        self.reference = self.taught = None
        if asked & REFERENCE:
            self.reference = [reference_logps(base, source, precision) for source in self.sources]
        if teachers and asked & TEACHER:
            own = tokenizer_fingerprint(model.tokenizer)
            for teacher in teachers.values():
                if tokenizer_fingerprint(teacher.tokenizer) != own:
                    raise AcclimateError(
                        f"the teacher {teacher.name} has another tokenizer than {model.name}; distil between models of one tokenizer"
                    )
            self.taught = [Taught(teachers[name], source, top_k, precision) for name, source in sources.items()]

    def count(self, batch: dict[str, Any]) -> int:
        """How many predictions a batch holds: tokens, pairs or rows."""
        if "labels" not in batch:
            return len(batch["input_ids"]) // (int(batch["sides"]) if "sides" in batch else 2)
        counted = batch["labels"] != -100
        return int((counted & (batch["answer_mask"] == 1)).sum() if "answer_mask" in self.asked else counted.sum())

    def origins(self, where: list[tuple[int, int]]) -> str:
        """A few places the rows of a batch came from."""
        found = [f"{self.sources[s].name}: {self.sources[s].origin(i)}" for s, i in where[:3]]
        return "; ".join(found) + (f" and {len(where) - 3} rows more" if len(where) > 3 else "")

    def loss(self, net: Any, batch: dict[str, Any], items: Tensor | float | None, where: list[tuple[int, int]]) -> Tensor:
        """The objective's loss on one micro-batch; ``where`` tells (source, index) of each row.

        A network may have a loss of its own, ``auxiliary_loss()`` of its last forward pass (a balance of experts ...). It is added with
        the micro-batch's share of the step's items, so that over a step it counts once. What does not depend on the batch (a penalty on
        weights) then has the same gradient however a step is cut; a statistic of the batch is averaged over the micro-batches.
        """
        found = self._objective(net, batch, items, where)
        auxiliary = getattr(self.model.net, "auxiliary_loss", None)
        if auxiliary is None:
            return found
        return found + auxiliary() * (1.0 if items is None else self.count(batch) / items)

    def _objective(self, net: Any, batch: dict[str, Any], items: Tensor | float | None, where: list[tuple[int, int]]) -> Tensor:
        given: dict[str, Any] = {"items": items}
        if "trainable" in self.asked:
            given["trainable"] = {name: weight for name, weight in self.model.net.named_parameters() if weight.requires_grad}
        given["angles"] = self.angles
        if "anchors" in self.asked:
            blocks = embed(net, batch).chunk(int(batch["sides"]))
            given |= dict(zip(("anchors", "positives", "negatives"), blocks, strict=False))
        elif "chosen_logps" in self.asked:
            given |= self._answers(net, batch, where)
        else:
            given |= {"logits": logits(net, batch, self.kind), "labels": batch["labels"], "answer_mask": batch.get("answer_mask")}
            if self.taught is not None:
                length = batch["labels"].shape[1]
                views = [self.taught[s].at([i], length, batch["labels"].device) for s, i in where]
                given |= {
                    "teacher_ids": torch.cat([ids for ids, _ in views]),
                    "teacher_logprobs": torch.cat([logprobs for _, logprobs in views]),
                }
        return self.objective.loss(**{word: value for word, value in given.items() if word in self.asked and value is not None})  # type: ignore[attr-defined]

    def _answers(self, net: Any, batch: dict[str, Any], where: list[tuple[int, int]]) -> dict[str, Tensor]:
        chosen, rejected = answer_logps(net, batch).chunk(2)
        lengths = batch["answer_mask"].sum(1)
        given = {"chosen_logps": chosen, "rejected_logps": rejected}
        given |= dict(zip(("chosen_tokens", "rejected_tokens"), lengths.chunk(2), strict=True))
        if self.reference is not None:
            at = torch.from_numpy(np.stack([self.reference[s][i] for s, i in where])).to(chosen.device)
            given |= {"ref_chosen_logps": at[:, 0], "ref_rejected_logps": at[:, 1]}
        return given


def answer_logps(net: Any, batch: dict[str, Tensor]) -> Tensor:
    """Summed log-probability of each row's answer [row], in fp32."""
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    out = logits(net, plain, "causal")[:, :-1].float()
    picked = out.gather(2, batch["input_ids"][:, 1:, None])[..., 0] - out.logsumexp(2)
    return (picked * batch["answer_mask"][:, 1:]).sum(1)


def embed(net: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean of the last hidden states over each row's own tokens [row, width]."""
    out = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    hidden = out.last_hidden_state if hasattr(out, "last_hidden_state") else out.hidden_states[-1]
    hidden = hidden[:, -batch["input_ids"].shape[1] :]
    mask = batch["attention_mask"][..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def reference_logps(model: Model, source: Source, precision: str) -> np.ndarray:
    """Log-probabilities of both answers of every pair under the frozen start model [pair, 2], from the cache where it has them."""
    if not isinstance(source, PreferenceRows):
        raise AcclimateError("reference log-probabilities exist for preference data only")
    path = cache_dir("reference") / f"{digest([model.fingerprint, source.key, precision])}.npy"
    with suppress(OSError, ValueError, EOFError):  # absent, or damaged: reckoned again
        return np.load(path)
    model.net.eval()
    found = np.empty((source.size, 2), np.float32)
    with bar(what=f"reference log-probs to {path}", total=source.size, unit="pair") as shown, autocast(model.device, precision):
        for start in range(0, source.size, 8):
            batch = source.collate([source.pair(i) for i in range(start, min(start + 8, source.size))])
            both = answer_logps(model.net, {name: value.to(model.device) for name, value in batch.items()})
            found[start : start + 8] = torch.stack(both.chunk(2), 1).cpu().numpy()
            shown.update(min(8, source.size - start))
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, found)
    return found


class Taught:
    """A teacher's top-K log-probabilities for every row of a source, on disk [row, token, K]."""

    def __init__(self, teacher: Model, source: Source, k: int, precision: str):
        if not isinstance(source, TokenRows) or type(source.objective).corrupt is not Objective.corrupt:
            raise AcclimateError("a teacher's view is kept for rows of clean tokens only, not for pairs or masked text")
        self.source, self.k = source, min(k, len(teacher.tokenizer))
        stem = digest([teacher.fingerprint, source.key, self.k, precision])
        self.paths = [cache_dir("teacher") / f"{stem}.{part}.npy" for part in ("ids", "logprobs")]
        if not all(path.exists() for path in self.paths):
            self._fill(teacher, precision)
        self.ids, self.logprobs = (np.load(path, mmap_mode="r") for path in self.paths)

    def at(self, indices: list[int], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities of some rows, both [row, token, K]."""
        ids, logprobs = self.ids[indices, :length].astype(np.int64), self.logprobs[indices, :length].astype(np.float32)
        return torch.from_numpy(ids).to(device), torch.from_numpy(logprobs).to(device)

    @torch.no_grad()
    def _fill(self, teacher: Model, precision: str) -> None:
        source = self.source
        shape = (source.size, source.width, self.k)
        place = {source.locate(k)[1]: k for k in range(source.size)}
        teacher.net.eval()
        with atomic_file(self.paths[0]) as first, atomic_file(self.paths[1]) as second:
            ids = np.lib.format.open_memmap(first, "w+", np.int32, shape)
            logprobs = np.lib.format.open_memmap(second, "w+", np.float16, shape)
            with (
                bar(what=f"teacher's view to {self.paths[0].parent}", total=source.size, unit="row") as shown,
                autocast(teacher.device, precision),
            ):
                for start in range(0, source.size, 8):
                    stop = min(start + 8, source.size)
                    batch = source.collate([source[place[i]] for i in range(start, stop)])
                    out = logits(teacher.net, {n: v.to(teacher.device) for n, v in batch.items()}, teacher.kind).float().log_softmax(2)
                    top = out.topk(self.k, 2)
                    ids[start:stop, : out.shape[1]] = top.indices.cpu().numpy()
                    logprobs[start:stop, : out.shape[1]] = top.values.cpu().numpy()
                    shown.update(stop - start)
            ids.flush()
            logprobs.flush()

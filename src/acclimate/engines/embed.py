"""The embedding engine: sentence encoders with an adapter per domain, trained by contrast, and the figures of their retrieval.

Large batches fit small memory by gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983): the embeddings of the whole batch
are made part by part without keeping what their gradients need; the loss is taken over all of them; then each part is run again, with the
dropout it had, and takes its share of the gradient. The loops, checkpoints and resume are the staged engine's.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from ..domain import Domain
from ..errors import AcclimateError, nearest
from ..files import atomic_file, cache_dir, digest, read_json
from ..kinds import Adapter, Objective
from ..method import Setting, Settings
from ..model import Injected, Model, _folder
from ..model.composition import Rows
from ..parts.pooling import pooled
from ..parts.retrieval import average_precision, recall_at
from .forward import autocast
from .rows import padded
from .sentences import SentenceBatches, groups
from .staged import Stage, Term, evaluating, fit
from .tokens import fingerprint as voice

POOLING = ("mean", "cls", "max")  # of sentence encoders; "last" is the last token's vector, for decoders
MODE = re.compile(r"pooling_mode_(.*?)(?:_tokens?)?")
KNOWN = ("Transformer", "Pooling", "Normalize")  # modules of a sentence encoder; the last changes no cosine


class Contrast(Settings):
    """How a sentence encoder is trained."""

    batch: Annotated[int, Setting("rows per step; fewer where the domain has fewer groups", 2)] = 64
    chunk: Annotated[int, Setting("texts that go through the network at once, by gradient caching; 0 = all", 0)] = 0
    width: Annotated[int, Setting("longest text in tokens; 0 = the model's context, 256 at most", 0)] = 0
    epochs: Annotated[float, Setting("passes over the domain, used when steps is 0", 0)] = 1.0
    steps: Annotated[int, Setting("optimizer steps; 0 = as many as the epochs need", 0)] = 0
    lr: Annotated[float, Setting("peak learning rate", 0)] = 1e-4
    warmup: Annotated[float, Setting("share of the steps in which the rate rises from 0", 0, 1)] = 0.1
    weight_decay: Annotated[float, Setting("decoupled weight decay of matrices", 0)] = 0.01
    clip: Annotated[float, Setting("largest gradient norm; 0 = no clipping", 0)] = 1.0
    mine: Annotated[bool, Setting("find a hard negative for each row with the start model, where none is given")] = True
    precision: Annotated[str, Setting("auto = bf16 autocast where the hardware has it", choices=("auto", "fp32", "bf16"))] = "auto"
    seed: Annotated[int, Setting("seed of order, positives, adapters and dropout", 0)] = 0


def pooling(model: Model) -> str:
    """How the encoder was trained to make one vector of a text: mean, cls or max; mean where nothing says.

    Raises AcclimateError for an encoder with other modules behind the pooling, or another pooling.
    """
    noted = model.notes.get("made", {}).get("pooling")
    folders = [folder for ref in (model.source, model.notes.get("base", "")) if ref and (folder := _folder(ref))]
    if noted or not folders:
        return noted or "mean"
    for folder in folders:
        if (listed := folder / "modules.json").is_file():
            strange = [name for part in read_json(listed) if (name := part["type"].rpartition(".")[2]) not in KNOWN]
            if strange:
                raise AcclimateError(f"{model.name} has a {strange[0]} layer behind its pooling, which is not supported; use one without")
        if (told := folder / "1_Pooling" / "config.json").is_file():
            config = read_json(told)
            on = [found[1] for key, value in config.items() if value is True and (found := MODE.fullmatch(key))]
            mode = str(config.get("pooling_mode") or (on or ["mean"])[0])
            if mode not in POOLING:
                raise AcclimateError(f"{model.name} pools by {mode!r}, but only {', '.join(POOLING)} are supported")
            return mode
    return "mean"


def embed(net: Any, batch: Mapping[str, Tensor], how: str) -> Tensor:
    """One vector per row of ids and mask [row, token] -> [row, width], not normalised."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    out = net(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    hidden = out.last_hidden_state if getattr(out, "last_hidden_state", None) is not None else out.hidden_states[-1]
    return pooled(hidden, mask, how)


def embed_cached(net: Any, batch: Mapping[str, Tensor], how: str, chunk: int) -> Tensor:
    """The same vectors and gradients, with no more than ``chunk`` rows' activations in memory at once; 0 = all rows."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if not chunk or len(ids) <= chunk:
        return embed(net, {"input_ids": ids, "attention_mask": mask}, how)
    found = []
    for part, own in zip(ids.split(chunk), mask.split(chunk), strict=True):
        longest = int(own.sum(1).max())
        given = {"input_ids": part[:, :longest], "attention_mask": own[:, :longest]}
        found.append(checkpoint(embed, net, given, how, use_reentrant=False))
    return torch.cat(found)


class Encoder:
    """Texts to vectors of length 1, with the adapter of each text's domain; one batch may hold texts of several domains.

    Settings: ``rows`` texts at once, ``width`` longest text in tokens, ``precision`` as in training (fp32 unless said), ``how`` tokens
    become one vector (as the encoder was trained unless said; "last" for the hidden state of a decoder's last token).
    """

    def __init__(self, model: Model, *, rows: int = 64, width: int = 0, precision: str = "fp32", how: str = ""):
        self.model, self.rows, self.precision = model, rows, precision
        self.width = _width(model, width)
        self.pooling = how or pooling(model)

    @property
    def domains(self) -> list[str]:
        """Domains that have an adapter."""
        return list(self.model.net.adapters) if isinstance(self.model.net, Injected) else []

    @torch.no_grad()
    def encode(self, texts: Sequence[str], domain: str | Sequence[str] = "") -> Tensor:
        """Vectors [text, width] in fp32 on the CPU. ``domain`` names the adapter, of all or of each text; "" is the base without any."""
        own = [domain] * len(texts) if isinstance(domain, str) else list(domain)
        if len(own) != len(texts):
            raise AcclimateError(f"{len(texts)} texts, but domains for {len(own)}; name one for each, or one for all")
        for name in dict.fromkeys(own):
            if name and name not in self.domains:
                raise AcclimateError(f"{self.model.name} has no adapter for domain {name!r}{nearest(name, self.domains)}")
        tokenizer, net, device = self.model.tokenizer, self.model.net, self.model.device
        ids = [np.array(each) for each in tokenizer(list(texts), truncation=True, max_length=self.width).input_ids] if len(texts) else []
        found = torch.empty(len(ids), self.model.net.config.hidden_size)
        order = np.argsort([len(each) for each in ids], kind="stable")
        with evaluating(net), autocast(device, self.precision):
            for start in range(0, len(ids), self.rows):
                chosen = order[start : start + self.rows]
                batch = {key: value.to(device) for key, value in padded([ids[i] for i in chosen], tokenizer.pad_token_id or 0).items()}
                vectors = self._vectors(net, batch, [own[i] for i in chosen])
                found[torch.from_numpy(chosen)] = normalize(vectors.float(), dim=1).cpu()
        return found

    def _vectors(self, net: Any, batch: dict[str, Tensor], names: list[str]) -> Tensor:
        if not isinstance(net, Injected):
            return embed(net, batch, self.pooling)
        alike = len(set(names)) == 1
        with net.using((names[0] or None) if alike else Rows(names)):
            return embed(net, batch, self.pooling)


def tune(
    model: Model,
    objective: Objective,
    domain: Domain,
    plan: Contrast,
    *,
    adapter: Adapter | None = None,
    name: str = "",
    folder: Path | None = None,
) -> Model:
    """Train an adapter named ``name`` (the domain's name unless said) beside a frozen encoder, or without ``adapter`` a copy of it all.

    The model that was handed in is left as it was. In ``folder`` a killed run goes on. Raises AcclimateError for a domain that gives no
    contrast, an objective that asks for other words, and a loss that is not finite.
    """
    name = name or domain.name
    known = {"anchors", "positives", "negatives", "items"}
    if wrong := [word for word in objective.needs() if word not in known]:
        raise AcclimateError(f"{objective.name} asks for {wrong[0]!r}, but the embedding engine gives {', '.join(sorted(known))}")
    how, width = pooling(model), _width(model, plan.width)
    rows = SentenceBatches(domain, model, batch=plan.batch, width=width, seed=plan.seed, mine=plan.mine)
    if rows.mine:
        anchors = _views(model, rows.anchors, width, plan.precision)
        rows.views = (anchors, anchors if rows.pool is rows.anchors else _views(model, rows.pool, width, plan.precision))
    learner = model.copy(name, share=adapter is not None)
    if adapter is not None:
        learner.net = Injected(learner.net).add(name, adapter, seed=plan.seed)
    device = learner.device

    def loss(step: int) -> Tensor:
        batch = rows.batch(step)
        sides = batch.pop("sides")
        vectors = embed_cached(learner.net, {key: value.to(device) for key, value in batch.items()}, how, plan.chunk)
        given = dict(zip(("anchors", "positives", "negatives"), vectors.chunk(sides), strict=False))
        return objective.loss(**{word: value for word, value in given.items() if word in objective.asked()})  # type: ignore[attr-defined]

    steps = plan.steps or max(1, round(plan.epochs * rows.per_epoch))
    shared = {key: getattr(plan, key) for key in ("warmup", "weight_decay", "clip", "precision", "seed")}
    key = f"{rows.key} {model.fingerprint} {objective.name} {objective.values()} {how} {plan.chunk}"
    terms = {"contrast": Term(loss, 1.0, key)}
    done = fit(learner.net, terms, {r"^adapters\." if adapter else ".": plan.lr}, Stage(steps=steps, **shared), folder=folder)
    made: dict[str, Any] = {"base": model.source, "method": objective.name, **({"adapter": adapter.name} if adapter else {})}
    made |= {"data": {domain.name: domain.fingerprint}, "steps": steps, "seed": plan.seed, "pooling": how, "rows": rows.rows}
    learner.notes = {"made": {**made, "loss": round(done.curve[-1]["loss"], 4)}}
    if adapter is not None:
        learner.notes |= {"base": model.source, "base_fingerprint": model.fingerprint}
    return learner


def together(base: Model, adapted: Mapping[str, Model], name: str = "all") -> Model:
    """One encoder with the adapters of several, by domain; none is active until ``Encoder`` names it."""
    made = base.copy(name, share=True)
    made.net = Injected(made.net)
    for domain, model in adapted.items():
        made.net.take(domain, model.net)
    made.net.activate(None).requires_grad_(False)
    notes = {"base": base.source, "method": "adapters by domain", "pooling": pooling(base), "domains": list(adapted)}
    made.notes = {"made": notes, "base": base.source, "base_fingerprint": base.fingerprint}
    return made


def retrieval(
    encoder: Encoder, domain: Domain, split: str = "test", *, adapter: str = "", most: int = 0, k: int = 10
) -> dict[str, tuple[float, int]]:
    """Mean average precision and recall among the first ``k`` (10), each with the number of queries (see ``ranked``)."""
    precision, recall = ranked(encoder, domain, split, adapter=adapter, most=most, k=k)
    return {"map": (float(precision.mean()), len(precision)), f"recall@{k}": (float(recall.mean()), len(recall))}


def ranked(
    encoder: Encoder, domain: Domain, split: str = "test", *, adapter: str = "", most: int = 0, k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and recall among the first ``k`` (10) of each query, each [query].

    Of labelled text each text is a query for the others of its class; of pairs each anchor is one for the positives of its group.
    ``most`` rows are read, spread over the split; queries that have nothing to find are left out.
    """
    rows = domain.rows(split)
    if most and most < len(rows):
        rows = rows.select(np.linspace(0, len(rows) - 1, most).round().astype(int).tolist())
    if domain.form == "labelled":
        texts = list(rows["text"])
        own = groups("labelled", texts, texts, list(rows["label"]))
        vectors = encoder.encode(texts, adapter)
        scores, relevant = (vectors @ vectors.T).numpy(), own[:, None] == own[None]
        np.fill_diagonal(scores, -np.inf)
        np.fill_diagonal(relevant, False)
    elif domain.form == "pairs":
        anchors, positives = list(rows["anchor"]), list(rows["positive"])
        own = groups("pairs", anchors, positives, [])
        group = dict(zip(positives, own, strict=True))  # each document once
        queries = dict(zip(anchors, own, strict=True))
        scores = (encoder.encode(list(queries), adapter) @ encoder.encode(list(group), adapter).T).numpy()
        relevant = np.array(list(queries.values()))[:, None] == np.array(list(group.values()))[None]
    else:
        raise AcclimateError(f"retrieval is measured on labelled text or pairs, but domain {domain.name!r} holds {domain.form}")
    asked = relevant.any(1)
    if not asked.any():
        raise AcclimateError(f"domain {domain.name!r}: no text of its {split} split belongs with another; read more rows")
    scores, relevant = scores[asked], relevant[asked]
    return average_precision(scores, relevant), recall_at(scores, relevant, k)


def _views(model: Model, texts: list[str], width: int, precision: str) -> Tensor:
    """The start model's vectors of a domain's texts, from the cache where it has them: all makes of adapter mine with the same."""
    path = cache_dir("embeddings") / f"{digest([model.fingerprint, voice(model.tokenizer), pooling(model), texts, width, precision])}.npy"
    with suppress(OSError, ValueError, EOFError):  # absent, or damaged: reckoned again
        return torch.from_numpy(np.load(path))
    found = Encoder(model, width=width, precision=precision).encode(texts)
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, found.numpy())
    return found


def _width(model: Model, width: int) -> int:
    if width > model.context:
        raise AcclimateError(f"width = {width}, but {model.name} reads at most {model.context} tokens")
    return width or min(model.context, 256)

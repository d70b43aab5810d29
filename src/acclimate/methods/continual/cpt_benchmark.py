"""CPT benchmark: goes on with pretraining on one domain after another, and tells what each of them gave to and took from all others.

Yildiz et al. 2024, "Investigating Continual Pretraining in Large Language Models", https://arxiv.org/abs/2402.17400
Use to see, before a long sequence of domains is learned, whether a model of this size gains by it, what is forgotten, and in which order
to learn: the paper finds that similar domains in a row specialise best, and that a random order gives the better last model. Not to make
one expert: that is one domain, and objectives.dapt_tapt. Every checkpoint is measured on every domain: n domains ask for n (n + 1) looks.
One pass over each domain with an optimizer and schedule of its own. Perplexity P[k, j] is of checkpoint k on domain j (k = 0: the start
model); beside it stands the mean of 1 / rank of the true token. Each domain is also learned alone from the start (DAPT), to compare with.
The learning rate, its schedule, the fresh optimizer, 30 recent domains and 1 / rank as the score made of ranks were not checked against the
paper; its batches are meant for accelerators. Several sizes, domain sizes and batches are several runs. Left out: downstream tasks (the
checkpoints stay in the run directory: acclimate evaluate), and masked models.

>>> CptBenchmark(order="similar").places(np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.5]]), np.array([0.1, 0.9]), np.random.default_rng(0))
[1, 2, 0]
>>> domain = Domain.from_texts("a", ["eight ch", "eight ch", "eight ch"], splits=False)
>>> len(CptBenchmark(domain_bytes=9).part(domain).rows("train"))
2
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from ...domain import Domain
from ...errors import AcclimateError, nearest
from ...kinds import Strategy
from ...method import Setting, load
from ...parts.pretraining import cosines, nearest_chain, transfers


class CptBenchmark(Strategy):
    """Gives the last checkpoint; the notes ``matrix`` and ``transfer`` hold what was found."""

    room = "continual"

    order: Annotated[
        str,
        Setting("drawn by the seed, each domain the nearest to the one before, or as given", choices=("random", "similar", "given")),
    ] = "random"
    first: Annotated[
        str, Setting("where the similar order begins; empty = the nearest to general text where that is given, else drawn by the seed")
    ] = ""
    encoder: Annotated[str, Setting("sentence encoder whose mean vectors say how similar domains are")] = "minilm"
    embed_samples: Annotated[int, Setting("texts of a domain that are encoded", 1)] = 10000
    domain_bytes: Annotated[int, Setting("bytes of each domain that are learned; 0 = all", 0)] = 0
    test_bytes: Annotated[int, Setting("bytes of each test split that are measured", 1)] = 150_000
    epochs: Annotated[float, Setting("passes over each domain", 0)] = 1.0
    batch_tokens: Annotated[int, Setting("tokens per step: 16 rows in the paper", 1)] = 16384
    row_tokens: Annotated[int, Setting("longest row in tokens, learned and measured; 0 = the model's context, 512 at most", 0)] = 1024
    lr: Annotated[float, Setting("peak learning rate on each domain", 0)] = 5e-5
    schedule: Annotated[str, Setting("course of the rate on each domain", choices=("cosine", "linear", "constant"))] = "linear"
    recent: Annotated[int, Setting("how many domains before a checkpoint backward transfer is averaged over", 1)] = 30
    alone: Annotated[bool, Setting("also learn each domain alone from the start model (DAPT), to compare with")] = True

    def run(
        self, tools: Any, *, start: Any = None, domains: Mapping[str, Domain] | None = None, general: Domain | None = None, **unknown: Any
    ) -> dict[str, Any]:
        """The last checkpoint, called ``after`` and how many domains it learned.

        ``general`` is text like the start model's own, which is never learned, only measured. The note ``matrix`` holds the order and all
        perplexities and ranks, ``transfer`` what parts.pretraining makes of the perplexities, each domain's beside its DAPT.
        """
        if start is None or not isinstance(domains, Mapping) or len(domains) < 2 or unknown:
            wrong = f"takes no {sorted(unknown)[0]}" if unknown else "needs a start model and at least two domains"
            raise AcclimateError(f"cpt_benchmark {wrong}: give on: {{domains: [what to learn], general: other text}}")
        if start.kind != "causal":
            raise AcclimateError(f"cpt_benchmark goes on with next-token pretraining, but {start.name} is {start.kind}; give a decoder")
        names, similarity = self.ordered(tools, domains, general)
        measured = {name: domains[name] for name in names} | ({"general text": general} if general is not None else {})
        told: dict[str, Any] = {"order": names, "similarity": similarity, "measured": list(measured), "perplexity": [], "rank": []}
        model, last = start, ""
        for number, name in enumerate(["", *names]):
            if number:
                last = f"after{number}"
                model = self.train(tools, last, model, domains[name])
            found = [self.measured(tools, model, domain) for domain in measured.values()]
            told["perplexity"].append([perplexity for perplexity, _ in found])
            told["rank"].append([rank for _, rank in found])
            tools.note("matrix", told)
        matrix = np.array(told["perplexity"])
        told["transfer"] = transfers(matrix[:, : len(names)], self.recent)
        if self.alone:
            experts = {name: self.train(tools, f"alone-{i}", start, domains[name]) for i, name in enumerate(domains, 1)}
            told["alone"] = [self.measured(tools, experts[name], domains[name])[0] for name in names]
        tools.note("matrix", told)
        tools.note("transfer", {**told["transfer"], **{key: told[key] for key in ("order", "alone") if key in told}})
        return {last: model}

    def ordered(self, tools: Any, domains: Mapping[str, Domain], general: Domain | None) -> tuple[list[str], list[list[float]]]:
        """The domains in the order of learning, and the cosine of each pair (none where nothing asks for it)."""
        names, generator = list(domains), np.random.default_rng(tools.seed)
        if self.order == "given":
            return names, []
        if self.order == "random":
            return [names[place] for place in generator.permutation(len(names))], []
        if self.first and self.first not in domains:
            raise AcclimateError(f"first = {self.first!r} is none of the domains{nearest(self.first, domains)}")
        everyone = [*domains.values(), *([general] if general is not None else [])]
        texts = [self.sample(domain) for domain in everyone]
        vectors = tools.vectors([text for some in texts for text in some], self.encoder)
        parts = np.split(vectors, np.cumsum([len(some) for some in texts])[:-1])
        means = np.stack([part.mean(0) for part in parts])
        own, other = means[: len(names)], means[-1] if general is not None else None
        first = names.index(self.first) if self.first else None
        chain = [names[place] for place in self.places(own, other, generator, first)]
        return chain, cosines(np.stack([own[names.index(name)] for name in chain])).tolist()

    def places(self, means: np.ndarray, general: np.ndarray | None, generator: np.random.Generator, first: int | None = None) -> list[int]:
        """The chain of nearest domains: mean vectors [domain, width], of general text [width] or None -> places."""
        if first is None and general is not None:
            first = int(cosines(np.vstack([means, general]))[-1, :-1].argmax())
        return nearest_chain(cosines(means), int(generator.integers(len(means))) if first is None else first)

    def sample(self, domain: Domain) -> list[str]:
        """Texts to encode, evenly spread over what there is to learn (over what is measured where there is nothing)."""
        texts = domain.texts("train" if "train" in domain.splits else "test")
        return [texts[place] for place in np.unique(np.linspace(0, len(texts) - 1, self.embed_samples).round().astype(int))]

    def part(self, domain: Domain) -> Domain:
        """As much of a domain as is to be learned."""
        if not self.domain_bytes:
            return domain
        rows = domain.rows("train")
        before = np.cumsum([0, *(len(text.encode()) for text in domain.texts("train"))])[:-1]
        kept = rows.select(np.flatnonzero(before < self.domain_bytes))
        return Domain(domain.name, domain.form, {**domain.splits, "train": kept}, source=domain.source)

    def train(self, tools: Any, name: str, start: Any, domain: Domain) -> Any:
        """One domain with an optimizer and a schedule of its own."""
        given = {key: getattr(self, key) for key in ("epochs", "batch_tokens", "row_tokens", "lr", "schedule")}
        return tools.train(name, start, load("objectives.causal_lm"), self.part(domain), **given, warmup=0.0, weight_decay=0.0)

    def measured(self, tools: Any, model: Any, domain: Domain) -> tuple[float, float]:
        """Perplexity, and the mean of 1 / rank of the true token."""
        found = tools.surprise(model, domain, "test", self.test_bytes, self.row_tokens)
        return found.perplexity, float(found.reciprocal_ranks.sum() / found.tokens.sum())

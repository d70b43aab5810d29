"""Tag-LLM: learns reusable soft tags for a frozen language model, some that mark a domain's data and some that ask for a task.

Shen et al. 2024, section 3, https://arxiv.org/abs/2402.05140
Use where one model is to serve many kinds of data and tasks: a tag is a few vectors, and a domain's and a task's that never met can be put
together in a template. Not where the model cannot read the data at all: the vectors only steer what it knows.
Three stages: domain tags on plain text of each domain ("<DOM> x", next token); function tags of one domain; function tags shared by several
domains. Domain tags are frozen in the last two, or enriched. All vectors of a tag begin as the mean embedding at the mean embedding's
length. Numbers are read at the last vector of the function tag by a linear layer without bias that begins as the mean embedding, with 100
times the squared error of standardised labels. ``isolate`` keeps a domain's span from reading what stands before it. Rate and batch
follow a summary of the authors' code, not checked; steps are choices. In a recipe each domain tag becomes a model that reads it before
every text (a peft prompt), and the library lies in ``kept/``; from Python ``learn`` gives the library on its model, for engines.overlay.

>>> from torch import tensor
>>> from acclimate.model.tags import norm_matched
>>> norm_matched(tensor([[3.0, 0.0], [0.0, 1.0]])).norm().round(decimals=4).item()  # the mean of the lengths 3 and 1
2.0
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ...domain import Domain
from ...engines.overlay import library, number_term, prompted, text_term
from ...engines.staged import Stage, Term, fit
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting
from ...model.overlay import Overlay
from ...model.tags import Tags, norm_matched


class TagLlm(Strategy):
    """Stages: domain tags, function tags of one domain, function tags of several."""

    room = "inputs"
    trains = False

    p_domain: Annotated[int, Setting("vectors of a domain tag (p)", 1)] = 20
    p_function: Annotated[int, Setting("vectors of a function tag (p)", 1)] = 10
    domain_template: Annotated[str, Setting("how a domain's text is written; {domain} is its name")] = "<{domain}>{{text}}"
    function_template: Annotated[str, Setting("how a labelled row is written, where templates has none for the function")] = (
        "<{domain}>{{text}}<{function}>{{label}}"
    )
    templates: Annotated[dict[str, str], Setting("templates of single functions by name; fields are columns of their rows")] = (
        dataclasses.field(default_factory=dict)
    )
    numeric: Annotated[list[str], Setting("functions whose labels are numbers")] = dataclasses.field(default_factory=list)
    freeze_domain_tags: Annotated[bool, Setting("leave domain tags as they are while functions learn; otherwise enrich them")] = True
    isolate: Annotated[bool, Setting("a domain's span reads nothing that stands before it")] = False
    most: Annotated[int, Setting("tokens kept of each field of a template; 0 = all", 0)] = 256
    reg_loss_weight: Annotated[float, Setting("weight of the squared error", 0)] = 100.0
    lm_loss: Annotated[float, Setting("weight of the next-token loss on the digits of numeric labels; 0 = none", 0)] = 0.0
    lr: Annotated[float, Setting("peak learning rate", 0)] = 1e-4
    batch: Annotated[int, Setting("rows a step, of each domain of a function", 1)] = 16
    steps: Annotated[int, Setting("optimizer steps of each stage and function", 1)] = 1000

    def run(
        self,
        tools: Any,
        *,
        start: Any = None,
        domains: Mapping[str, Domain] | None = None,
        functions: Mapping[str, Mapping[str, Domain]] | None = None,
        **unknown: Any,
    ) -> dict[str, Any]:
        """The model behind each domain tag, by the tag's name; the library is kept beside them."""
        if unknown or not domains:
            raise AcclimateError("tag_llm needs text by domain, and may have functions: give domains: {name: text}")
        overlay = self.learn(start, domains, functions, seed=tools.seed, place=tools.place)
        tools.shelve("library", library(overlay))
        return {name: prompted(start, library(overlay), name) for name in domains}

    def learn(
        self,
        start: Any,
        domains: Mapping[str, Domain] | None = None,
        functions: Mapping[str, Mapping[str, Domain]] | None = None,
        *,
        tags: Tags | None = None,
        seed: int = 0,
        place: Callable[[str], Path] | None = None,
    ) -> Overlay:
        """A frozen model with its library of tags: ``domains`` is text by its tag, ``functions`` {function: {domain tag: labelled rows}}.

        tags: a library to go on with. place: gives each tag's training a folder, in which it resumes.
        """
        if start is None or not (domains or (tags and functions)):
            raise AcclimateError("tag_llm needs a model and text by domain: give start and domains (or a library and functions)")
        overlay = Overlay(start.copy(share=True).net, tags or Tags.of(start.net))
        for name, text in (domains or {}).items():
            self.domain(overlay, start.tokenizer, name, text, seed, place and place(name))
        by_breadth = sorted((functions or {}).items(), key=lambda pair: len(pair[1]) > 1)  # those of one domain first
        for name, rows in by_breadth:
            self.function(overlay, start.tokenizer, name, rows, seed, place and place(name))
        return overlay

    def domain(self, overlay: Overlay, tokenizer: Any, name: str, text: Domain, seed: int, folder: Path | None = None) -> None:
        """Stage 1: one new tag learns on the domain's training text."""
        tags = library(overlay)
        tags.add(name, "domain", self.p_domain, norm_matched(overlay.net.get_input_embeddings().weight))
        template = self.domain_template.format(domain=name)
        rows = [tags.encode(template, {"text": one}, tokenizer, most=self.most) for one in text.texts("train")]
        self._fit(
            overlay, {"text": text_term(overlay, rows, size=self.batch, seed=seed, whole=True, isolate=self.isolate)}, [name], seed, folder
        )

    def function(
        self, overlay: Overlay, tokenizer: Any, name: str, rows: Mapping[str, Domain], seed: int, folder: Path | None = None
    ) -> None:
        """Stages 2 and 3: one new function tag learns on the labelled rows of one domain, or of several at once."""
        tags, table = library(overlay), overlay.net.get_input_embeddings().weight
        numeric = name in self.numeric
        tags.add(name, "function", self.p_function, norm_matched(table), numeric=numeric, head=table.float().mean(0) if numeric else None)
        given = {domain: [dict(row) for row in some.rows("train")] for domain, some in rows.items()}
        if numeric:
            every = np.array([float(row["label"]) for some in given.values() for row in some])
            tags.scales[name] = (float(every.mean()), float(every.std()) or 1.0)
        terms: dict[str, Term] = {}
        for domain, some in given.items():
            template = self.template(name, domain)
            texts = [tags.encode(template, row, tokenizer, most=self.most) for row in some]
            if numeric:
                plain = [tags.encode(template.partition("{label}")[0], row, tokenizer, end=False, most=self.most) for row in some]
                labels = [float(row["label"]) for row in some]
                given_to: dict[str, Any] = {
                    "weight": self.reg_loss_weight / len(rows),
                    "size": self.batch,
                    "seed": seed,
                    "isolate": self.isolate,
                }
                terms[f"{domain} numbers"] = number_term(overlay, name, plain, labels, **given_to)
            if not numeric or self.lm_loss:
                term = text_term(overlay, texts, size=self.batch, seed=seed, isolate=self.isolate)
                terms[domain] = dataclasses.replace(term, weight=(self.lm_loss if numeric else 1.0) / len(rows))
        learned = [name] if self.freeze_domain_tags else [name, *(tag for tag in rows if tag in tags.kinds)]
        self._fit(overlay, terms, learned, seed, folder)

    def template(self, function: str, domain: str) -> str:
        """How a function's rows of one domain are written."""
        return self.templates.get(function) or self.function_template.format(domain=domain, function=function)

    def _fit(self, overlay: Overlay, terms: dict[str, Term], learned: list[str], seed: int, folder: Path | None) -> None:
        rates = {library(overlay).weights(name): self.lr for name in learned}
        fit(overlay, terms, rates, Stage(steps=self.steps, weight_decay=0.0, seed=seed), folder=folder)

"""RE-Adapt: takes what instruction tuning changed off a model, trains its base on raw domain text, and puts the instructions back.

Fleshman & Van Durme 2024, sections 3 and 4, https://arxiv.org/abs/2405.15007
Use where there is domain text but no domain instructions, and the base of the instruction-tuned model is at hand. Not for a tune whose base
is another model or size. Result: base + alpha x (domain adapter) + beta x (instruct - base). Both scales are chosen after training, by hand
or by ``grid`` on held-out text. ``lore`` (LoRE-Adapt) keeps of each matrix of the instruction part only as many ranks as hold the share tau
of its energy; vectors stay whole. The domain part of DoRA is read off after its lengths are applied. Where vocabularies differ, the rows
of common tokens are used; ``vocabulary="instruct"`` gives the result the instruct model's tokens.
Scales of 0.5 and tau of 0.5 are the paper's as summarised by others; rank, rate and one epoch are choices, not checked against the paper.
Left out: retrieval at answer time (give the result to the retrieval room).

>>> from torch import diag, tensor
>>> ReAdapt(lore=True, tau=0.65).lowered(diag(tensor([3.0, 2.0, 1.0]))).diag().round(decimals=4).tolist()  # 9/14 is too little
[3.0, 2.0, 0.0]
>>> ReAdapt(alpha=0.25, grid=[0.5, 1.0]).scales(), ReAdapt(alpha=0.25).scales()
([(0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (1.0, 1.0)], [(0.25, 0.5)])
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

from torch import Tensor

from ...domain import Domain
from ...engines.merging.patches import Patch, changes, differences, fold, grown
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting, load
from ...parts.low_rank import split


class ReAdapt(Strategy):
    """Stages: domain (the adapter on the base), with ``adapters`` both parts as adapters of the base, readapted (merged)."""

    room = "merging"

    alpha: Annotated[float, Setting("share of the domain training that is kept")] = 0.5
    beta: Annotated[float, Setting("share of the instruction tuning that is put back")] = 0.5
    grid: Annotated[list[float], Setting("values of alpha and beta to try on the scoring domains; empty = alpha and beta as given")] = (
        dataclasses.field(default_factory=list)
    )
    lore: Annotated[bool, Setting("keep the instruction part in low rank (LoRE-Adapt)")] = False
    tau: Annotated[float, Setting("share of each matrix's energy that its low rank must hold", 1e-6, 1)] = 0.5
    peft: Annotated[str, Setting("make of the domain adapter", choices=("dora", "lora", "rslora"))] = "dora"
    r: Annotated[int, Setting("rank of the domain adapter", 1)] = 64
    lora_alpha: Annotated[float, Setting("size of the domain adapter's change; it is multiplied by lora_alpha / r", 0)] = 128.0
    lr: Annotated[float, Setting("peak learning rate on the domain", 0)] = 1e-4
    epochs: Annotated[float, Setting("passes over the domain's text", 0)] = 1.0
    vocabulary: Annotated[str, Setting("tokens of the result: the base's, or the instruct model's", choices=("base", "instruct"))] = "base"
    adapters: Annotated[
        bool,
        Setting("also give both parts as adapters of the base, unscaled, to be stacked with their scales; DoRA's is then of full rank"),
    ] = False

    def run(
        self, tools: Any, *, start: Any = None, tuned: list[Any] | None = None, corpus: Domain | None = None, **scoring: Domain
    ) -> dict[str, Any]:
        """``start`` is the base, ``tuned`` its one instruct sibling, ``corpus`` raw text; other roles: the text that ``grid`` is judged by.

        The note ``scales`` holds alpha and beta, ``sweep`` every pair that was tried, ``ranks`` what lore kept of each matrix.
        """
        if start is None or corpus is None or not tuned or len(tuned) != 1:
            raise AcclimateError("re_adapt needs a base, its instruct model and text: give model, from: [instruct] and on: {corpus: text}")
        if bool(self.grid) != bool(scoring):
            missing = "text to judge by (another role under on:)" if self.grid else f"grid: to use {', '.join(scoring)} for"
            raise AcclimateError(f"re_adapt chooses alpha and beta with a grid and held-out text, but lacks {missing}")
        adapter = load(f"adapters.{self.peft}", r=self.r, alpha=self.lora_alpha)
        settings = {"lr": self.lr, "epochs": self.epochs}
        made = {"domain": tools.train("domain", start, load("objectives.causal_lm"), corpus, adapter=adapter, **settings)}
        base = grown(start, tuned[0]) if self.vocabulary == "instruct" else start
        if self.adapters:
            for name, part in (("domain", changes(made["domain"])), ("instruction", self.instruction(start, tuned[0]))):
                made[f"{name}_adapter"] = tools.keep(f"{name}_adapter", Patch.of_changes(start, part).attach(start))
        alpha, beta = self.alpha, self.beta
        if self.grid:
            alpha, beta = self.sweep(tools, base, made["domain"], tuned[0], scoring)
        tools.note("scales", {"alpha": alpha, "beta": beta})
        if self.lore:
            tools.note("ranks", {name: len(split(d, energy=self.tau)[1]) for name, d in differences(base, tuned[0]) if d.ndim > 1})
        merged = fold(base, (alpha, changes(made["domain"])), (beta, self.instruction(base, tuned[0])), name="readapted")
        return {**made, "readapted": tools.keep("readapted", merged)}

    def sweep(self, tools: Any, base: Any, adapted: Any, instruct: Any, scoring: dict[str, Domain]) -> tuple[float, float]:
        """The alpha and beta whose mean bits per byte on the scoring domains' validation text is lowest; no training."""
        domain, instruction = list(changes(adapted)), list(self.instruction(base, instruct))
        rows: list[dict[str, float]] = []
        for alpha, beta in self.scales():
            model = fold(base, (alpha, domain), (beta, instruction))
            bits = {role: tools.bits(model, text) for role, text in scoring.items()}
            rows.append({"alpha": alpha, "beta": beta, **bits, "mean": sum(bits.values()) / len(bits)})
        tools.note("sweep", rows)
        best = min(rows, key=lambda row: row["mean"])
        return best["alpha"], best["beta"]

    def scales(self) -> list[tuple[float, float]]:
        """The pairs of alpha and beta to try."""
        return [(alpha, beta) for alpha in self.grid for beta in self.grid] or [(self.alpha, self.beta)]

    def instruction(self, base: Any, instruct: Any) -> Iterator[tuple[str, Tensor]]:
        """What instruction tuning changed, weight by weight, in low rank with ``lore``."""
        for name, change in differences(base, instruct):
            yield name, self.lowered(change) if self.lore and change.ndim > 1 else change

    def lowered(self, change: Tensor) -> Tensor:
        """A matrix [row, column] at the smallest rank that holds the share tau of its energy."""
        b, a = split(change, energy=self.tau)
        return b @ a

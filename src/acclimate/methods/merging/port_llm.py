"""PortLLM: keeps the LoRA learned on one version of a model as a patch, and adds it untouched to the versions that follow.

Khan et al. 2024, sections 3 and 4, https://arxiv.org/abs/2410.10870
Use where a vendor renews the base faster than a patch can be retrained, or its data is gone. Not for another family, size or tokenizer (it
is refused), nor after so much further training that old and new weights have little in common: the report flags that version.
For each version: zero-shot, ported, and a fresh LoRA as control (``control``), by accuracy where the task has questions, else by bits per
byte; and matrix by matrix the gap to the fresh patch beside the patch and the base's own evolution (the paper's argument).
Rank 8 is the paper's; alpha 16, the attention projections, rate and epochs are choices, not checked against the paper.
Left out: the paper's figures of memory saved (a port needs no training, so it needs no gradients, moments or data).

>>> PortLlm(tolerance=0.03).judged({"zero_shot": 0.5, "ported": 0.7, "fresh": 0.72}, higher=True)["failed"]
''
>>> found = PortLlm(tolerance=0.03).judged({"zero_shot": 2.5, "ported": 2.25, "fresh": 2.0}, higher=False)
>>> found["failed"], found["gain"], found["behind"]
('behind a fresh LoRA', 0.25, 0.25)
"""

import dataclasses
from typing import Annotated, Any

import numpy as np

from ...domain import Domain
from ...engines.merging.patches import Patch
from ...engines.merging.porting import Portable, check, gaps
from ...engines.score import solve
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting, load


class PortLlm(Strategy):
    """Gives the patched start model, then for each version fresh and ported ones; the last is the patch on the newest version."""

    room = "merging"

    r: Annotated[int, Setting("rank of the patch", 1)] = 8
    lora_alpha: Annotated[float, Setting("size of the patch; it is multiplied by lora_alpha / r", 0)] = 16.0
    target: Annotated[list[str], Setting("layers that are patched, by endings of names")] = dataclasses.field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    lr: Annotated[float, Setting("peak learning rate of the patch", 0)] = 1e-4
    epochs: Annotated[float, Setting("passes over the task's training rows", 0)] = 1.0
    control: Annotated[bool, Setting("also train a fresh LoRA on every version, to compare with")] = True
    tolerance: Annotated[float, Setting("how far behind a fresh LoRA a port may be (accuracy as a share, or bits per byte; eps)", 0)] = 0.03

    def run(
        self, tools: Any, *, start: Any = None, tuned: list[Any] | None = None, task: Domain | None = None, **unknown: Any
    ) -> dict[str, Any]:
        """``start`` is the version the patch is born on, ``tuned`` the versions that followed, in order; ``task`` what the patch learns.

        The note ``patch`` is its record, ``report`` has a row per version, ``failed_at`` names the first version where porting fails.
        """
        if start is None or task is None or not tuned or unknown:
            wrong = f"takes no {sorted(unknown)[0]}" if unknown else "needs a start model, its later versions and a task"
            raise AcclimateError(f"port_llm {wrong}: give model, from: [v1, v2 ...] and on: {{task: examples}}")
        for version in tuned:
            check(start.net.config.model_type, start.tokenizer, version)
        made = {"patch": self.tuned(tools, "patch", start, task)}
        metric, higher = ("accuracy", True) if task.tasks else ("bits", False)
        born = {"zero_shot": self.score(tools, start, task), "patched": self.score(tools, made["patch"], task)}
        portable = Portable.born(made["patch"], start, {f"{metric} {name}": value for name, value in born.items()})
        tools.note("patch", {key: value for key, value in portable.record.items() if key != "shapes"})
        rows: list[dict[str, Any]] = []
        for number, version in enumerate(tuned, 1):
            ported = tools.keep(f"ported{number}", portable.port(version, f"ported{number}"))
            row = {"zero_shot": self.score(tools, version, task), "ported": self.score(tools, ported, task)}
            told: dict[str, Any] = {"version": version.name, "metric": metric}
            if self.control:
                fresh = made[f"fresh{number}"] = self.tuned(tools, f"fresh{number}", version, task)
                row["fresh"] = self.score(tools, fresh, task)
                told["matrices"] = gaps(portable.patch, Patch.of(fresh), start, version)
                told["medians"] = _medians(told["matrices"])
            made[f"ported{number}"] = ported
            rows.append({**told, **row, **self.judged(row, higher)})
            tools.note("report", rows)
        tools.note("failed_at", next((row["version"] for row in rows if row["failed"]), None))
        return made

    def tuned(self, tools: Any, name: str, start: Any, task: Domain) -> Any:
        """A LoRA for the task on one version of the model."""
        adapter = load("adapters.lora", r=self.r, alpha=self.lora_alpha, target=self.target)
        objective = load("objectives.sft" if task.form == "messages" else "objectives.causal_lm")
        return tools.train(name, start, objective, task, adapter=adapter, lr=self.lr, epochs=self.epochs)

    def score(self, tools: Any, model: Any, task: Domain) -> float:
        """Accuracy over the task's questions, or bits per byte on its validation text."""
        if not task.tasks:
            return tools.bits(model, task)
        return float(np.mean([solve(model, each).interval()[0] for each in task.tasks.values()]))

    def judged(self, row: dict[str, float], higher: bool) -> dict[str, Any]:
        """What the port gains over zero-shot, how far it is behind a fresh LoRA, and why it fails ("" where it does not)."""
        sign = 1 if higher else -1
        gain = sign * (row["ported"] - row["zero_shot"])
        behind = sign * (row["fresh"] - row["ported"]) if "fresh" in row else 0.0
        failed = "under zero-shot" if gain < 0 else "behind a fresh LoRA" if behind > self.tolerance else ""
        return {"gain": gain, "behind": behind, "failed": failed}


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The middle of each figure over the matrices."""
    keys = [key for key in (rows[0] if rows else {}) if key != "layer"]
    return {key: float(np.median([row[key] for row in rows if row[key] is not None] or [np.nan])) for key in keys}

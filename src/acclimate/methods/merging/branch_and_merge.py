"""Branch-and-Merge: trains copies of a model on slices of the data, merges them, and goes on from the merge, so that less is forgotten.

Alexandrov et al. 2024, section 3 and figure 1, https://arxiv.org/abs/2407.08699
Use to move a model far (a new language, a distant domain) at little cost to what it knows, on raw text or on conversations. Not for small
data: a slice must be worth a run of its own. Each branch has a fresh optimizer and its own schedule that falls to zero; every slice holds
its own part of the replay, which may be text that resembles an unknown source corpus. Two branches are merged by slerp as in the paper,
on the line where tensors are closer than 1e-6 radians; more by the mean. The number of slices (8), the share of replay and the
learning rate are sensible choices for billions of weights, not checked against the paper.
Left out: how the paper collects text that resembles its source corpus; give it as the domain ``replay``.

>>> cut(np.array([1, 1, 2, 4, 4, 4, 4, 4]), 3)
[[0, 1, 2, 3], [4, 5], [6, 7]]
>>> BranchAndMerge(slices=4).rounds(), BranchAndMerge(merge="linear").merging().name
([[0, 1], [2, 3]], 'merging.linear')
>>> from torch import tensor
>>> BranchAndMerge().merging().whole(None, tensor([[2.0, 0.0], [0.0, 2.0]]))  # a mean would give 1
tensor([1.4142, 1.4142])
"""

import math
from typing import Annotated, Any

import numpy as np

from ...domain import Domain
from ...engines.merging.patches import distance
from ...errors import AcclimateError
from ...kinds import Merge, Strategy
from ...method import Setting, load

NEAR = math.cos(1e-6)  # cosine from which two tensors are merged on the line


class BranchAndMerge(Strategy):
    """Rounds of branches and merges; gives the model after each round, and the sequential baseline first where it is asked for."""

    room = "merging"

    branches: Annotated[int, Setting("copies trained and merged in each round (the paper's K)", 1)] = 2
    slices: Annotated[int, Setting("parts of the data (the paper's N); a multiple of branches", 1)] = 8
    cut: Annotated[str, Setting("slices: rows at random, or in the order they stand (by source or topic)", choices=("random", "order"))] = (
        "random"
    )
    merge: Annotated[
        str, Setting("how branches are merged", choices=("slerp", "linear", "task_arithmetic", "model_stock"))
    ] = "slerp"  # fmt: skip
    t: Annotated[float, Setting("place on the arc between two branches", 0, 1)] = 0.5
    scale: Annotated[float, Setting("length of the summed change with task_arithmetic (lambda); 1/branches is the mean")] = 0.5
    replay_share: Annotated[float, Setting("share of each slice's rows drawn from replay, where replay is given", 0, 0.99)] = 0.1
    objective: Annotated[
        str, Setting("loss of a branch: by the form of the data, on all text, or on answers", choices=("auto", "causal_lm", "sft"))
    ] = "auto"
    epochs: Annotated[float, Setting("passes of a branch over its slice, used where slice_steps is 0", 0)] = 1.0
    slice_steps: Annotated[
        int, Setting("optimizer steps of a branch (set here, not under train:, so that the baseline gets all of them); 0 = by epochs", 0)
    ] = 0
    lr: Annotated[float, Setting("peak learning rate of every branch", 0)] = 1e-5
    warmup: Annotated[float, Setting("share of a branch's steps in which the rate rises from 0", 0, 1)] = 0.05
    schedule: Annotated[str, Setting("course of the rate after the warm-up", choices=("cosine", "linear", "constant"))] = "cosine"
    baseline: Annotated[bool, Setting("also train one copy on all slices in one run with one schedule")] = False

    def run(self, tools: Any, *, start: Any = None, target: Domain | None = None, **others: Domain) -> dict[str, Any]:
        """The merged model of each round, ``sequential`` before them with ``baseline``; the note ``rounds`` tells how each one did.

        ``target`` is what to learn, ``replay`` text to mix into each slice, ``source`` text to measure forgetting on (default: replay).
        """
        replay, unknown = others.get("replay"), sorted(others.keys() - {"replay", "source"})
        if start is None or target is None or unknown:
            wrong = f"takes no {unknown[0]}" if unknown else "needs a start model and a target"
            raise AcclimateError(f"branch_and_merge {wrong}: give on: {{target: what to learn, replay: old text, source: to measure on}}")
        rounds, source = self.rounds(), others.get("source", replay)
        generator = np.random.default_rng(tools.seed)
        pieces = self.sliced(target, generator)
        kept = self.sliced(replay, generator) if replay is not None else [None] * self.slices
        made: dict[str, Any] = {}
        if self.baseline:
            made["sequential"] = self.train(tools, "sequential", start, target, replay, self.slices)
        model, told = start, []
        for number, numbers in enumerate(rounds, 1):
            copies = [self.train(tools, f"round{number}-branch{j}", model, pieces[i], kept[i]) for j, i in enumerate(numbers, 1)]
            before, model = model, self.merged(tools, f"round{number}", model, copies)
            made[f"round{number}"] = model
            told.append(
                {
                    "round": number,
                    "branches": [distance(before, copy) for copy in copies],
                    "merged": distance(before, model),
                    "from_start": distance(start, model),
                    **_bits(tools, model, target=target, source=source),
                }
            )
            tools.note("rounds", told)
        if self.baseline:
            found = _bits(tools, made["sequential"], target=target, source=source)
            tools.note("sequential", {"from_start": distance(start, made["sequential"]), **found})
        return made

    def rounds(self) -> list[list[int]]:
        """Which slices each round's branches learn."""
        if self.slices % self.branches:
            raise AcclimateError(f"slices = {self.slices}, but must be a multiple of branches = {self.branches}")
        return np.arange(self.slices).reshape(-1, self.branches).tolist()

    def sliced(self, domain: Domain, generator: np.random.Generator) -> list[Domain]:
        """A domain's training rows in slices of about as many bytes."""
        rows = domain.rows("train")
        order = generator.permutation(len(rows)) if self.cut == "random" else np.arange(len(rows))
        sizes = np.array([len(text.encode()) for text in domain.texts("train")])[order]
        if len(rows) < self.slices:
            raise AcclimateError(f"{domain.name} has {len(rows)} rows, too few for {self.slices} slices; ask for fewer")
        return [
            Domain(f"{domain.name}-{i}", domain.form, {"train": rows.select(order[part])}, source=domain.source)
            for i, part in enumerate(cut(sizes, self.slices), 1)
        ]

    def train(self, tools: Any, name: str, start: Any, piece: Domain, replay: Domain | None, slices: int = 1) -> Any:
        """One run with its own optimizer and schedule: a branch on its slice, or the baseline on all of them."""
        share = self.replay_share if replay is not None else 0.0
        loss = {"text": "causal_lm", "labelled": "causal_lm"}.get(piece.form, "sft") if self.objective == "auto" else self.objective
        domains = {piece.name: (piece, 1 - share)} | ({replay.name: (replay, share)} if replay is not None else {})
        length = {"steps": slices * self.slice_steps} if self.slice_steps else {"epochs": self.epochs / (1 - share)}
        settings = {"lr": self.lr, "warmup": self.warmup, "schedule": self.schedule, **length}
        return tools.train(name, start, load(f"objectives.{loss}"), domains, **settings)

    def merged(self, tools: Any, name: str, base: Any, copies: list[Any]) -> Any:
        """The branches as one model; a single branch is it."""
        method = self.merging()
        return copies[0] if len(copies) == 1 else tools.merge(name, method, copies, base=base if "base" in method.needs() else None)

    def merging(self) -> Merge:
        """The merge method with its settings; slerp of more than two branches is their mean."""
        if self.merge == "slerp" and self.branches == 2:
            return load("merging.slerp", t=self.t, parallel=NEAR)
        if self.merge == "task_arithmetic":
            return load("merging.task_arithmetic", scale=self.scale)
        return load("merging.model_stock" if self.merge == "model_stock" else "merging.linear")


def cut(sizes: np.ndarray, parts: int) -> list[list[int]]:
    """Consecutive rows in parts of about equal size, none of them empty [part][row]."""
    middles = (np.cumsum(sizes) - sizes / 2) / max(1, sizes.sum())
    part = np.minimum((middles * parts).astype(int), np.arange(len(sizes)))
    part = np.maximum(part, parts - len(sizes) + np.arange(len(sizes)))
    return [np.flatnonzero(part == number).tolist() for number in range(parts)]


def _bits(tools: Any, model: Any, **domains: Domain | None) -> dict[str, float]:
    """Bits per byte on the domains that hold rows out."""
    return {name: tools.bits(model, domain) for name, domain in domains.items() if domain is not None and "validation" in domain.splits}

"""MoDify: keeps rows as hard as the network can bear, by stronger colours for easy ones, and leaves the mastered and the too hard out.

Jiang et al. 2023, section 3, https://arxiv.org/abs/2309.00844
For one or several sources; ``base`` is any method of this room, which then learns from the rows that are left. A bank keeps a moving
average of each row's loss; a loss is as hard as the share of the bank below it. Augmentation (DA): strength 1 - difficulty of the row as it
is. Choice (NO): augmented rows harder than t_high are postponed, those easier than t_low dropped; t_high rises to 1, t_low from 0. Those
postponed wait, without gradient, until they are under t_high when a pass over the data begins; their entries move meanwhile, lest all of a
class that is behind should wait for ever. Losses that rank are taken in evaluation mode without gradient: two forward passes more. No code
was published: bank, shuffle and the three ways follow the paper, the straight course of the thresholds and their ends are our reading. A
step is left out where one row remains, or with another base than erm fewer than two of a domain. Of little use where labels are false.

>>> import torch
>>> method = Modify(t_high_start=0.6, t_low_end=0.4)
>>> method.sorted(torch.tensor([0.1, 0.5, 0.9]), 0.0).tolist(), method.sorted(torch.tensor([0.1, 0.5, 0.9]), 1.0).tolist()
([0, 0, 1], [-1, 0, 0])
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ...errors import AcclimateError, nearest
from ...kinds import DomainGeneralization
from ...method import Setting, load, names
from ...parts.curriculum import difficulty, remembered
from ...parts.mixing import only_numbers
from ...parts.style import shuffled_channels

BLOCK = 512
KINDS = ("learned", "dropped", "postponed", "waiting")


class Modify(DomainGeneralization):
    """The bank, the two thresholds, the augmentation, and who learns from the rows."""

    momentum: Annotated[float, Setting("how slowly a row's entry in the bank moves (m)", 0, 1)] = 0.9
    t_high_start: Annotated[float, Setting("difficulty above which rows are postponed at first; rises to 1", 0, 1)] = 0.7
    t_low_end: Annotated[float, Setting("difficulty below which rows are dropped at last; rises from 0", 0, 1)] = 0.2
    choice: Annotated[bool, Setting("rows are postponed and dropped (NO); otherwise all are learned from")] = True
    strength: Annotated[
        str, Setting("of the augmentation: 1 - difficulty (DA), drawn evenly, or none", choices=("difficulty", "uniform", "none"))
    ] = "difficulty"
    augmentation: Annotated[
        str,
        Setting(
            "colour channels shuffled, noise, or colours where there are any",
            choices=("auto", "rgb_shuffle", "noise"),
        ),
    ] = "auto"
    base: Annotated[str, Setting("method of this room that learns from the rows, with its own defaults")] = "erm"

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The base's parts."""
        known = [name.partition(".")[2] for name in names(self.room)]
        if self.base not in known or self.base == "modify":
            raise AcclimateError(f"base = {self.base!r}{nearest(self.base, known)}; it must be another method of {self.room}")
        return self._base().build(learner)

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """An empty bank, nobody waiting."""
        learner.memory["bank"] = torch.full((len(source),), torch.nan, device=source.x.device)
        learner.memory["waiting"] = torch.zeros(len(source), dtype=torch.bool, device=source.x.device)
        learner.memory["passes"] = []
        self._base().begin(learner, source, target)

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """Releases those who are no longer too hard, and opens a line of the log: rows by what became of them, sum of difficulties."""
        rows = learner.memory["waiting"].nonzero().flatten()
        if len(rows):
            hard = difficulty(learner.memory["bank"], self._losses(learner, source.x[rows], source.y[rows]))
            learner.memory["waiting"][rows] = self.sorted(hard, learner.progress) == 1
        learner.memory["passes"].append({"step": learner.step, **dict.fromkeys((*KINDS, "difficulty"), 0)})
        self._base().refresh(learner, source, target)

    def step(self, learner: Any, domains: Any) -> Iterator[Any]:
        """The base's step on the rows that are left, augmented."""
        x, memory, rows = self._augmented(learner, domains), learner.memory, domains.rows
        learn = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if self.choice or self.strength == "difficulty":
            losses = self._losses(learner, x, domains.y)
            hard = difficulty(remembered(memory["bank"], rows, losses, 1.0), losses)  # new rows count with their first loss
            way, waiting = self.sorted(hard, learner.progress) if self.choice else 0 * hard, memory["waiting"][rows]
            memory["bank"] = remembered(memory["bank"], rows, losses, self.momentum)
            memory["waiting"][rows] = waiting | (way == 1)
            learn = ~waiting & (way == 0)
            counts = [learn, ~waiting & (way == -1), ~waiting & (way == 1), waiting, hard]
            for kind, values in zip((*KINDS, "difficulty"), counts, strict=True):
                memory["passes"][-1][kind] += values.sum().item()
        sizes = [int(part.sum()) for part in domains.split(learn)]
        if sum(sizes) > 1 and (self.base == "erm" or min(sizes) > 1):
            kept = [size for size in sizes if size]
            left = replace(domains, x=x[learn], y=domains.y[learn], domain=domains.domain[learn], rows=rows[learn], sizes=kept)
            yield from self._base().step(learner=learner, domains=left)

    def end(self, learner: Any, source: Any, target: Any) -> None:
        """What the base does at the end."""
        self._base().end(learner, source, target)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores of the base [row, class]."""
        return self._base().predict(learner, x)

    def sorted(self, hard: Tensor, progress: float) -> Tensor:
        """What becomes of rows so hard at this share of the run: 1 postponed, -1 dropped, 0 learned from."""
        high, low = self.t_high_start + (1 - self.t_high_start) * progress, self.t_low_end * progress
        return (hard > high).int() - (hard < low).int()

    def _augmented(self, learner: Any, domains: Any) -> Tensor:
        x, draw = domains.x, learner.generator
        if self.strength == "none":
            return x
        only_numbers(x)
        if self.strength == "uniform":
            s = torch.rand(len(x), generator=draw)
        else:
            losses = self._losses(learner, x, domains.y)
            s = 1 - difficulty(remembered(learner.memory["bank"], domains.rows, losses, 1.0), losses)
        colours = self.augmentation == "rgb_shuffle" or (self.augmentation == "auto" and x.ndim == 4 and x.shape[1] > 1)
        noise = torch.zeros_like(x) if colours else torch.randn(x.shape, generator=draw).to(x) * x.std(0, unbiased=False)
        return torch.lerp(x, shuffled_channels(x, draw) if colours else x + noise, s.to(x).view(-1, *[1] * (x.ndim - 1)))

    @torch.no_grad()
    def _losses(self, learner: Any, x: Tensor, y: Tensor) -> Tensor:
        """Each row's loss [row] in evaluation mode."""
        was = learner.training
        learner.eval()
        scores = torch.cat([self.predict(learner, rows) for rows in x.split(BLOCK)])
        learner.train(was)
        return learner.loss(scores.float(), y, each=True)

    def _base(self) -> Any:
        return load(f"{self.room}.{self.base}")

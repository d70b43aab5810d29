"""What is followed while a model trains: the bar, metrics.jsonl, held-out bits per byte, and the budget for forgetting."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..domain import Domain
from ..errors import AcclimateError
from ..model import Model
from ..progress import bar, say
from .score import bits_per_byte
from .settings import Training
from .words import Supply


class Watcher(TrainerCallback):
    """Follows the run: progress bar, metrics.jsonl, held-out bits per byte, and the budget for forgetting."""

    def __init__(self, learner: Model, domains: dict[str, Domain], outside: set[str], training: Training, steps: int, folder: Path):
        self.learner, self.outside, self.training, self.steps, self.folder = learner, outside, training, steps, folder
        self.texts = {name: _some(domain, training.watch_bytes) for name, domain in domains.items()}
        self.every = training.watch_every or max(1, math.ceil(steps / 8))
        self.curve: list[dict[str, float]] = []
        self.stopped = ""
        self.looking = self.seconds_before = 0.0
        self.good: int | None = None

    def begin(self, resume: str | None, total_tokens: int, supply: Supply) -> None:
        """Read the curve of the part already done (it may have stopped there), look at the start, and open the bar."""
        log = self.folder / "metrics.jsonl"
        done = int(Path(resume).name.partition("-")[2]) if resume else 0
        if log.exists():
            self.curve = [row for row in _whole_lines(log) if row["step"] <= done] if resume else []
            log.write_text("".join(json.dumps(row) + "\n" for row in self.curve))
        for row in self.curve:
            self._judge(row)
        self.supply = supply
        self.seconds_before, supply.tokens = (self.curve[-1]["seconds"], int(self.curve[-1]["tokens"])) if self.curve else (0.0, 0)
        if resume:
            say(f"going on from step {done} of {self.steps} in {self.folder}")
        self.tokens_per_step = total_tokens / self.steps
        self.started = time.perf_counter()
        if not any(row["step"] == 0 for row in self.curve):
            self._note({"step": 0, "tokens": 0, "seconds": 0.0, **self._look()})
        self.bar = bar(what=f"training {self.learner.name}", total=total_tokens, unit="tok")
        self.bar.update(done * self.tokens_per_step)

    def _note(self, row: dict[str, float]) -> None:
        self.curve.append(row)
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def _look(self) -> dict[str, float]:
        if not self.texts or self.learner.kind not in ("causal", "masked"):
            return {}
        before = time.perf_counter()
        training = self.learner.net.training
        found = {}
        with torch.random.fork_rng(devices=[]):
            for name, texts in self.texts.items():
                found[name] = round(bits_per_byte(self.learner, texts, overlap=0.0, precision=self.training.precision).value, 5)
        self.learner.net.train(training)
        self.looking += time.perf_counter() - before
        return found

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Every step's loss goes to metrics.jsonl, with the watched domains where a look is due."""
        if not logs or "loss" not in logs:
            return
        step = state.global_step
        row = {
            "step": step,
            "tokens": self.supply.tokens,
            "seconds": round(self.seconds_before + time.perf_counter() - self.started - self.looking, 3),
            "loss": logs["loss"],
            "lr": logs.get("learning_rate", 0.0),
            "grad_norm": logs.get("grad_norm", 0.0),
        }
        if step % self.every == 0 or step == self.steps:
            row |= self._look()
        self._note(row)
        self.bar.update(self.tokens_per_step)
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}")
        if self._judge(row):
            torch.save(
                {k: p.detach().cpu() for k, p in self.learner.net.named_parameters() if p.requires_grad},
                self.folder / "within_budget.tmp",
            )
            (self.folder / "within_budget.tmp").replace(self.folder / "within_budget.pt")
        control.should_training_stop |= bool(self.stopped)

    def _judge(self, row: dict[str, float]) -> bool:
        """Whether a look after the start kept the budget; one that did not is why the run stops."""
        budget = self.training.max_forgetting
        if budget is None or not row["step"] or not self.outside & set(row):
            return False
        lost = {name: row[name] - self.curve[0][name] for name in self.outside & set(row)}
        worst = max(lost, key=lambda name: lost[name])
        if lost[worst] > budget:
            self.stopped = f"{worst} lost {lost[worst]:.4f} bits per byte at step {row['step']}, more than the budget of {budget}"
            return False
        self.good = int(row["step"])
        return True

    def roll_back(self, learner: Model) -> None:
        """Return to the last weights that kept the budget. Raises AcclimateError if no look but the first did."""
        if self.good is None:
            raise AcclimateError(f"{self.stopped}, and no earlier look kept it; look more often (watch_every) or lower lr")
        stored = torch.load(self.folder / "within_budget.pt", weights_only=True)
        with torch.no_grad():
            for key, parameter in learner.net.named_parameters():
                if key in stored:
                    parameter.copy_(stored[key])
        say(f"{self.stopped}: went back to step {self.good}")

    def forgetting(self) -> dict[str, float]:
        """Bits per byte lost by each watched domain from the first look to the last (to the one gone back to, if the run stopped)."""
        looks = [
            row for row in self.curve if any(name in row for name in self.texts) and not (self.stopped and row["step"] > (self.good or 0))
        ]
        return {name: looks[-1][name] - looks[0][name] for name in self.texts if looks and name in looks[-1]}

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the bar."""
        self.bar.close()


def _whole_lines(log: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; a kill may have torn the last one."""
    rows = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _some(domain: Domain, most: int) -> list[str]:
    """The first held-out documents up to ``most`` bytes."""
    split = next((name for name in ("validation", "test") if name in domain.splits), "train")
    found: list[str] = []
    for text in domain.texts(split):
        found.append(text)
        most -= len(text.encode())
        if most <= 0:
            break
    return found

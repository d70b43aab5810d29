"""The staged engine: chosen weights of a network learn from several losses at once, each group at a rate of its own.

What the train engine has no place for: a loss on one domain's text beside another on other text or on the outputs of layers, a gate that
learns faster than what it gates, soft tags trained one after the other. A :class:`Term` is a loss and its weight; where its batches come
from is its own business (terms.py), as long as batch ``k`` is the same whenever it is asked for. Weights are named by patterns; what no
pattern names is frozen. A killed run goes on with the weights and the batches it would have had.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from ..errors import AcclimateError
from ..files import atomic_file, digest, lock, read_json, write_json
from ..method import Setting, Settings
from ..parts.schedules import course
from .forward import autocast

LEARNED, STATE, PLAN = "learned.safetensors", "state.pt", "plan.json"


class Stage(Settings):
    """How long and how a stage is trained."""

    steps: Annotated[int, Setting("optimizer steps", 1)] = 1000
    weight_decay: Annotated[float, Setting("AdamW's decoupled weight decay, of matrices alone", 0)] = 0.01
    warmup: Annotated[float, Setting("share of the steps in which the rate rises from 0", 0, 1)] = 0.06
    schedule: Annotated[str, Setting("course of the rate after the warm-up", choices=("linear", "cosine", "constant"))] = "linear"
    clip: Annotated[float, Setting("largest gradient norm; 0 = no clipping", 0)] = 1.0
    check_every: Annotated[int, Setting("steps between looks at the score that chooses the weights; 0 = ten per run", 0)] = 0
    checkpoint_every: Annotated[int, Setting("steps between resumable checkpoints; 0 = ten per run", 0)] = 0
    precision: Annotated[str, Setting("auto = bf16 autocast where the hardware has it", choices=("auto", "fp32", "bf16"))] = "auto"
    seed: Annotated[int, Setting("seed of dropout", 0)] = 0


@dataclass(frozen=True)
class Term:
    """A loss as a function of the step's number (from 0), what it counts in the sum, and what identifies its data."""

    loss: Callable[[int], Tensor]
    weight: float = 1.0
    key: str = ""


@dataclass
class Fitted:
    """The course of a stage: per step the total and each term; the looks as (step, score), and the step whose weights were kept."""

    curve: list[dict[str, float]] = field(default_factory=list)
    looks: list[tuple[int, float]] = field(default_factory=list)
    kept: int = 0


def learners(net: nn.Module, rates: Mapping[str, float]) -> dict[str, float]:
    """Names of the weights that learn, with their rates: the first pattern (a regular expression) found in a name decides.

    A rate of 0 leaves the weight out; what no pattern names is left out too. Everything else is frozen.

    >>> learners(nn.ModuleDict({"gate": nn.Linear(1, 1), "body": nn.Linear(1, 1)}), {r"^gate.*bias": 0.0, r"^gate": 2e-4})
    {'gate.weight': 0.0002}
    """
    found, used = {}, set()
    for name, weight in net.named_parameters():
        pattern = next((each for each in rates if re.search(each, name)), None)
        used.add(pattern)
        rate = 0.0 if pattern is None else rates[pattern]
        weight.requires_grad_(rate > 0)
        if rate > 0:
            found[name] = rate
    lost = [pattern for pattern in rates if pattern not in used]
    if lost or not found:
        raise AcclimateError(
            f"no weight that may learn is named by {lost[0] if lost else 'any pattern'!r}; rates are by pattern of the name"
        )
    return found


def fit(
    net: nn.Module,
    terms: Mapping[str, Term],
    rates: Mapping[str, float],
    stage: Stage,
    *,
    score: Callable[[], float] | None = None,
    folder: Path | None = None,
) -> Fitted:
    """Train ``net`` where it stands; it ends in evaluation mode with the last weights, or the best by ``score`` (higher is better).

    In ``folder`` checkpoints lie while it runs and the learned weights afterwards; a second call with the same plan reads those.
    The frozen weights are not written to. The caller's random state is left as it was.

    Raises AcclimateError for patterns that name nothing, a loss or gradient that is not finite, and a folder of another plan.
    """
    own = learners(net, rates)
    weights = {name: weight for name, weight in net.named_parameters() if name in own}
    parts = {name: [term.weight, term.key] for name, term in terms.items()}
    start = digest([[name, float(weight.detach().double().sum()), list(weight.shape)] for name, weight in weights.items()])
    plan = {"stage": {k: v for k, v in stage.values().items() if k != "checkpoint_every"}, "rates": own, "terms": parts, "start": start}
    run = _Run(net, dict(terms), weights, own, stage, score)
    if folder is None:
        run.go(None)
    else:
        with lock(folder):
            _check_plan(folder, digest(plan))
            if not run.finished(folder):
                run.go(folder)
                run.finish(folder)
    net.eval()
    return run.fitted


class _Run:
    """One stage: weights, optimizer, and what is stored of them."""

    def __init__(
        self,
        net: nn.Module,
        terms: dict[str, Term],
        weights: dict[str, nn.Parameter],
        rates: dict[str, float],
        stage: Stage,
        score: Callable[[], float] | None,
    ):
        self.net, self.terms, self.weights, self.stage, self.score = net, terms, weights, stage, score
        groups = [
            {"params": [weight], "lr": rates[name], "weight_decay": stage.weight_decay if weight.ndim > 1 else 0.0}
            for name, weight in weights.items()
        ]
        self.optimizer = torch.optim.AdamW(groups)
        self.rates = list(rates.values())
        self.fitted, self.best_score, self.step = Fitted(), -math.inf, 0
        self.best: dict[str, Tensor] = {}

    def go(self, folder: Path | None) -> None:
        if folder is not None and (folder / STATE).is_file():
            self._restore(folder / STATE)
        steps, device = self.stage.steps, next(iter(self.weights.values())).device
        look, keep = (every or max(1, math.ceil(steps / 10)) for every in (self.stage.check_every, self.stage.checkpoint_every))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            while self.step < steps:
                torch.manual_seed(1_000_003 * self.stage.seed + self.step)
                self._one(device)
                self.step += 1
                if self.score is not None and (self.step % look == 0 or self.step == steps):
                    self._look()
                if folder is not None and self.step % keep == 0 and self.step < steps:
                    self._store(folder / STATE)
        with torch.no_grad():
            for name, value in self.best.items():
                self.weights[name].copy_(value)
        self.fitted.kept = self.fitted.kept or steps

    def _one(self, device: torch.device) -> None:
        self.net.train()
        found, total = {}, 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for name, term in self.terms.items():
            with autocast(device, self.stage.precision):
                loss = term.loss(self.step)
            found[name] = float(loss.detach())
            if not math.isfinite(found[name]):
                raise AcclimateError(f"the loss {name!r} is {found[name]} at step {self.step + 1}; lower the learning rates and run again")
            total += term.weight * found[name]
            (term.weight * loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.stage.clip or math.inf)
        if not torch.isfinite(norm):
            raise AcclimateError(f"the gradient is {float(norm)} at step {self.step + 1}; lower the learning rates and run again")
        factor = course(self.step, self.stage.steps, round(self.stage.warmup * self.stage.steps), self.stage.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.fitted.curve.append({"step": self.step + 1, "loss": total, **found})

    def _look(self) -> None:
        assert self.score is not None
        self.net.eval()
        with torch.no_grad():
            value = float(self.score())
        self.fitted.looks.append((self.step, value))
        if value > self.best_score:
            self.best_score, self.fitted.kept = value, self.step
            self.best = {name: weight.detach().clone() for name, weight in self.weights.items()}

    # what is stored

    def _store(self, path: Path) -> None:
        state = {
            "step": self.step,
            "weights": {name: weight.detach().cpu() for name, weight in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "fitted": copy.deepcopy(vars(self.fitted)),
            "best": (self.best_score, self.best),
        }
        with atomic_file(path) as temporary:
            torch.save(state, temporary)

    @torch.no_grad()
    def _restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.fitted, (self.best_score, self.best) = state["step"], Fitted(**state["fitted"]), state["best"]

    def finish(self, folder: Path) -> None:
        save_weights(self.weights, folder / LEARNED)
        write_json(folder / "fitted.json", vars(self.fitted))
        (folder / STATE).unlink(missing_ok=True)

    def finished(self, folder: Path) -> bool:
        if not (folder / LEARNED).is_file() or not (folder / "fitted.json").is_file():
            return False
        load_weights(self.weights, folder / LEARNED)
        told = read_json(folder / "fitted.json")
        self.fitted = Fitted(told["curve"], [(int(step), value) for step, value in told["looks"]], told["kept"])
        return True


def _check_plan(folder: Path, key: str) -> None:
    path = folder / PLAN
    if path.is_file() and read_json(path).get("key") != key:
        raise AcclimateError(f"{folder} holds a stage with other settings, data or weights; remove it, or choose another folder")
    write_json(path, {"key": key})


# weights in files of their own


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Some weights by name as one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary, {"format": "pt"})


@torch.no_grad()
def load_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Fill weights from a file that holds exactly these. Raises AcclimateError where names or shapes differ, or the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AcclimateError(f"{path} cannot be read ({str(error).splitlines()[0]}); make it again") from error
    wrong = [name for name in {*stored, *weights} if name not in stored or name not in weights or stored[name].shape != weights[name].shape]
    if wrong:
        raise AcclimateError(f"{path} does not fit: {', '.join(sorted(wrong)[:3])} is missing, unknown or of another shape")
    for name, value in weights.items():
        value.copy_(stored[name])


def save_apart(net: nn.Module, groups: Mapping[str, str], folder: Path) -> dict[str, int]:
    """Weights in one file per group: file's name -> a pattern of the weights' names; gives how many weights each file holds.

    Raises AcclimateError for a group without weights.
    """
    counts = {}
    for file, pattern in groups.items():
        found = _matching(net, pattern)
        save_weights(found, folder / f"{file}.safetensors")
        counts[file] = sum(value.numel() for value in found.values())
    return counts


def load_apart(net: nn.Module, groups: Mapping[str, str], folder: Path) -> None:
    """The way back; a group whose file is absent keeps the weights that the network has."""
    for file, pattern in groups.items():
        if (path := folder / f"{file}.safetensors").is_file():
            load_weights(_matching(net, pattern), path)


def _matching(net: nn.Module, pattern: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {name: value for name, value in net.named_parameters() if re.search(pattern, name)}
    if not found:
        raise AcclimateError(f"no weight is named by the pattern {pattern!r}")
    return found


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """A block in which these modules drop nothing out; afterwards each of their parts is as before."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training

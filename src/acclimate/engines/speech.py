"""Training of transducers: whole, in part, or by adapters on the frozen rest, with looks at the word error rate at given steps.

A run's learning rate is constant after a short warm-up (or falls along a cosine), so with the former a run of few steps is the beginning
of one of many: every checkpoint stands for a run that ended there.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..domain.speech import Speech
from ..errors import AcclimateError
from ..kinds import Adapter
from ..method import Setting, Settings
from ..model.injected import Injected
from ..models.transducer import Transducer, loss_of, padded
from ..parts.schedules import course
from ..parts.speech import masked, word_errors

PARTS = {"encoder": ("encoder",), "decoder": ("prediction", "joint"), "full": ("encoder", "prediction", "joint")}
ADAPTER = "new"  # what the adapter of a run is called


class SpeechTraining(Settings):
    """How a transducer is trained."""

    batch: Annotated[int, Setting("recordings per step", 1)] = 16
    lr: Annotated[float, Setting("AdamW's learning rate", 0)] = 1e-3
    weight_decay: Annotated[float, Setting("AdamW's weight decay", 0)] = 1e-2
    warmup: Annotated[int, Setting("steps in which the rate rises to its height", 0)] = 20
    schedule: Annotated[str, Setting("course of the rate after that", choices=("constant", "cosine"))] = "constant"
    clip: Annotated[float, Setting("longest gradient that is taken as it is", 0)] = 1.0
    masks: Annotated[int, Setting("runs of bands, and of frames, that are masked in each recording (SpecAugment)", 0)] = 1
    batch_norm: Annotated[str, Setting("batch-norm statistics: the start's, or learned on", choices=("freeze", "train"))] = "freeze"


@dataclass
class Checkpoint:
    """A run as it stood after ``step`` steps, with its word error rate on each watched set."""

    step: int
    rates: dict[str, float]
    state: dict[str, Tensor] = field(repr=False)
    learner: Transducer | Injected = field(repr=False)

    def model(self) -> Transducer | Injected:
        """The model of that time, a copy of its own in evaluation mode."""
        made = copy.deepcopy(self.learner)
        made.load_state_dict(self.state)
        return made.eval()


@dataclass
class Prepared:
    """Features [frame, band] and numbered words [symbol] of every recording, with the words themselves."""

    features: list[Tensor]
    targets: list[Tensor]
    words: Sequence[tuple[str, ...]]

    def batch(self, rows: Iterable[int], change: Any = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, their lengths, words, their lengths, of some recordings."""
        chosen = list(rows)
        features = [self.features[row] if change is None else change(self.features[row]) for row in chosen]
        return (*padded(features), *padded([self.targets[row] for row in chosen]))


def prepare(net: Transducer | Injected, speech: Speech) -> Prepared:
    """What the network reads of recordings. Raises AcclimateError for another sampling rate, for silence in words and unknown ones."""
    if speech.rate != net.rate:
        raise AcclimateError(f"{speech.name} is recorded at {speech.rate} Hz, but the transducer hears {net.rate} Hz; resample it")
    if not len(speech):
        raise AcclimateError(f"{speech.name} has no recordings")
    with torch.no_grad():
        features = [net.features(wave) for wave in speech.waves]
    return Prepared(features, [net.symbols(said) for said in speech.words], speech.words)


def heard(net: Transducer | Injected, given: Speech | Prepared, rows: int = 32) -> list[tuple[str, ...]]:
    """What the network hears in each recording, by greedy decoding in evaluation mode."""
    ready = prepare(net, given) if isinstance(given, Speech) else given
    net.eval()
    order = sorted(range(len(ready.features)), key=lambda row: len(ready.features[row]))
    found: list[tuple[str, ...]] = [()] * len(order)
    for first in range(0, len(order), rows):
        part = order[first : first + rows]
        for row, words in zip(part, net.hear(*ready.batch(part)[:2]), strict=True):
            found[row] = words
    return found


def error_rate(net: Transducer | Injected, given: Speech | Prepared) -> float:
    """Word error rate: word errors over words said; may be above 1."""
    errors = [word_errors(said, found) for said, found in zip(given.words, heard(net, given), strict=True)]
    return sum(errors) / max(1, sum(map(len, given.words)))


def tune(
    start: Transducer,
    speech: Speech,
    training: SpeechTraining,
    looks: Sequence[int],
    seed: int,
    *,
    adapter: Adapter | None = None,
    part: str = "full",
    watch: Mapping[str, Speech] | None = None,
) -> list[Checkpoint]:
    """Train a copy of ``start`` and give it as it was after each number of steps in ``looks``; ``start`` stays as it is.

    adapter: it alone learns, and the network beside it runs in evaluation mode. part: which of PARTS learns where there is no adapter.

    Raises AcclimateError where the loss is not finite, for a part that does not exist, and for data that do not fit.
    """
    if part not in PARTS:
        raise AcclimateError(f"part = {part!r}, but must be one of {', '.join(PARTS)}")
    if not looks or min(looks) < 1:
        raise AcclimateError(f"looks = {list(looks)}, but must be numbers of steps, 1 or more")
    learner: Transducer | Injected = copy.deepcopy(start).eval()
    if adapter is not None:
        learner = Injected(learner).add(ADAPTER, adapter, seed=seed).learn(ADAPTER)
        learning: list[nn.Module] = [learner.adapters]
    else:
        learning = [learner.get_submodule(name) for name in PARTS[part]]
        learner.requires_grad_(False)
        for module in learning:
            module.requires_grad_(True)
    ready, sets = prepare(learner, speech), {name: prepare(learner, held) for name, held in (watch or {}).items()}
    weights = [weight for weight in learner.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.weight_decay)
    draw = torch.Generator().manual_seed(seed)
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(1, max(looks) + 1):
            _modes(learner, learning, training.batch_norm)
            for group in optimizer.param_groups:
                group["lr"] = training.lr * course(step - 1, max(looks), training.warmup, training.schedule)
            rows = torch.randint(len(ready.features), (training.batch,), generator=draw).tolist()
            loss = loss_of(learner, *ready.batch(rows, lambda part: masked(part, training.masks, draw))).mean()
            if not torch.isfinite(loss):
                raise AcclimateError(f"the loss is {loss.item()} at step {step}; lower lr (now {training.lr:g}) and run again")
            if loss.requires_grad:  # not where stochastic depth left out every adapter
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(weights, training.clip)
                optimizer.step()
            if step in looks:
                made = copy.deepcopy(learner).eval()
                rates = {name: error_rate(made, held) for name, held in sets.items()}
                found.append(Checkpoint(step, rates, made.state_dict(), learner))
    learner.eval()
    return found


def _modes(learner: nn.Module, learning: list[nn.Module], batch_norm: str) -> None:
    """What learns is in training mode, the rest in evaluation mode; batch-norm as it is asked for."""
    learner.eval()
    for module in learning:
        module.train()
    for layer in learner.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(batch_norm == "train" and (layer.training or isinstance(learner, Injected)))

"""The loop: a method's step yields losses and who learns from each; the loop owns optimizers, schedules, choice of the model, resume."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ...domain.arrays import IGNORED
from ...errors import AcclimateError
from ...files import atomic_file, digest, lock, read_json, write_json
from ...method import Setting, Settings, arguments
from ...parts.norms import still_statistics
from ...parts.schedules import course
from ...progress import bar
from .learner import Learner, Place, channels_last
from .plays import as_plays, finite, optimizer_of, play
from .pools import Course, Data, Pool, Sampler, whole

OPTIMIZERS = ("adam", "adamw", "sgd", "adadelta", "rk2", "rk4")
STATE, DONE, PLAN = "state.pt", "learned.pt", "plan.json"
CHOICES = ("source_validation", "last", "oracle")


class Training(Settings):
    """How long and how a learner is trained."""

    steps: Annotated[int, Setting("steps; each sees one batch of every domain", 1)] = 500
    batch: Annotated[int, Setting("rows of each labelled domain per step; 0 = all of them", 0)] = 32
    target_batch: Annotated[
        int, Setting("rows of each target per step; 0 = as many as of all labelled domains together, all where batch is 0", 0)
    ] = 0
    optimizer: Annotated[
        str, Setting("who updates the weights; rk2 and rk4 play a game of one loss with Runge-Kutta steps", choices=OPTIMIZERS)
    ] = "adam"
    lr: Annotated[float, Setting("learning rate", 0)] = 1e-3
    rates: Annotated[dict | None, Setting("what the rate of a part is multiplied by, by its name (featurizer: 0.1)", 0)] = None
    momentum: Annotated[float, Setting("momentum of sgd", 0, 1)] = 0.9
    nesterov: Annotated[bool, Setting("Nesterov's form of sgd's momentum")] = False
    weight_decay: Annotated[float, Setting("weight decay; decoupled in adamw", 0)] = 0.0
    schedule: Annotated[
        str,
        Setting(
            "course of the rate over shares p of the run; inverse = (1 + alpha p)^-power, exponential = exp(-alpha p)",
            choices=("constant", "linear", "cosine", "inverse", "exponential"),
        ),
    ] = "constant"
    alpha: Annotated[float, Setting("how fast the inverse or the exponential course falls", 0)] = 10.0
    power: Annotated[float, Setting("exponent of the inverse course", 0)] = 0.75
    warmup: Annotated[float, Setting("share of the steps in which the rate rises from 0", 0, 1)] = 0.0
    clip: Annotated[float, Setting("largest gradient norm; 0 = no clipping", 0)] = 0.0
    choose: Annotated[
        str,
        Setting("whose weights are kept: best on held-out source rows, the last, or (marked) best on the target's labels", choices=CHOICES),
    ] = "source_validation"
    looks: Annotated[int, Setting("how often held-out rows are looked at", 1)] = 10
    checkpoints: Annotated[int, Setting("how many resumable checkpoints are stored on the way, where there is a folder", 0)] = 4
    seed: Annotated[int, Setting("seed of batches, dropout and of what a method draws", 0)] = 0


@dataclass
class Fitted:
    """What a run went through: mean loss per look, score per look, the step whose weights were kept and how they were chosen."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    looks: list[tuple[int, float]] = field(default_factory=list)
    kept: int = 0
    choice: str = "last"
    plays: int = 0  # how many gradients were taken


def fit(
    method: Any,
    learner: Learner,
    data: Data,
    training: Training | None = None,
    *,
    score: Callable[[], float] | None = None,
    folder: Path | None = None,
) -> Fitted:
    """Train a learner with a shift method where it stands; it ends in evaluation mode with the last or the chosen weights.

    ``method`` has ``build``, ``begin``, ``refresh``, ``step`` and ``predict`` (kinds.Shift). ``score`` (higher is better) chooses the
    weights instead of what ``training.choose`` names. In ``folder`` lie checkpoints while it runs and the result afterwards: a killed run
    goes on with the same batches and weights, a finished one is read. The caller's random state is left as it was.

    Raises AcclimateError for what the method needs and the data lack, for a loss that is not finite, and for a folder of another run.
    """
    training = training or Training(**method.training)
    if method.source_free():
        data = replace(data, labelled=(), validation=())  # never opened
    asked = _check(method, learner, data, training)
    run = _Run(method, learner, data, training, asked, score)
    if folder is None:
        run.go(None)
        return run.fitted
    with lock(folder):
        plan = digest([method.name, method.values(), training.values(), _marks(data), _sums(learner)])
        path = folder / PLAN
        if path.is_file() and read_json(path).get("key") != plan:
            raise AcclimateError(f"{folder} holds a run with other settings, data or weights; remove it, or choose another folder")
        write_json(path, {"key": plan})
        if (folder / DONE).is_file():
            run.restore(folder / DONE)
        else:
            run.go(folder)
            run.store(folder / DONE)
            (folder / STATE).unlink(missing_ok=True)
    learner.eval()
    return run.fitted


def _check(method: Any, learner: Learner, data: Data, training: Training) -> tuple[str, ...]:
    form, graphs = getattr(method, "form", ""), getattr(learner.featurizer, "graphs", None)
    if form == "nodes" and any(graph.member is not None for graph in graphs or ()):
        raise AcclimateError(f"{method.name} looks at the nodes that have classes, but here whole graphs have them; take a method for rows")
    if form and not graphs:
        raise AcclimateError(f"{method.name} works on graphs; build the learner on models.graph.GraphNet and attach graphs to it")
    words = arguments(type(method), "step")
    asked, needs = tuple(words), [name for name, word in words.items() if word.default is word.empty]
    labelled = len(data.labelled)
    if ("source" in needs or "domains" in needs) and labelled < method.least:
        few = "no labelled domain" if not labelled else f"only {labelled} labelled domain" + "s" * (labelled > 1)
        raise AcclimateError(f"{method.name} needs at least {method.least} labelled domains, but there is {few}; give more sources")
    if "target" in needs and not data.targets:
        raise AcclimateError(f"{method.name} learns from unlabelled rows of the target, but no target was given")
    if training.choose == "oracle" and data.oracle is None:
        raise AcclimateError(
            "choose = 'oracle' looks at the target's labels, but Data has no oracle; give one, or choose source_validation"
        )
    return asked


def _marks(data: Data) -> list:
    pools = [*data.labelled, *data.targets, *data.validation, *([data.oracle] if data.oracle else [])]
    found = [[p.name, list(p.x.shape), float(p.x.double().sum()), None if p.y is None else float(p.y.double().sum())] for p in pools]
    return found + [[word, digest(rows.numpy().tobytes())] for word, rows in (data.course or {}).items()]


def _sums(learner: nn.Module) -> list:
    graphs = getattr(learner, "featurizer", None) and getattr(learner.featurizer, "fingerprint", "")
    found = [[name, list(value.shape), float(value.double().sum())] for name, value in learner.state_dict().items()]
    return [*found, graphs] if graphs else found


class _Run:
    def __init__(
        self, method: Any, learner: Learner, data: Data, training: Training, asked: Sequence[str], score: Callable[[], float] | None
    ):
        self.method, self.learner, self.data, self.training, self.asked = method, learner, data, training, asked
        learner.domains, learner.sources, learner.distances = data.names, len(data.labelled), data.distances
        pools = [*data.labelled, *data.targets]
        learner.sample = pools[0].x[:1]
        facts = [pool.about for pool in pools if pool.about is not None]
        learner.about = torch.stack(facts) if len(facts) == len(pools) else None
        add_parts(method, learner, training.seed)
        self.samplers: dict[str, Sampler | Course] = {}
        if data.labelled:
            self.samplers["source"] = self.samplers["domains"] = Sampler(data.labelled, training.batch, training.seed)
        if data.targets:
            size = training.target_batch or -(-training.batch * max(1, len(data.labelled)) // len(data.targets))
            self.samplers["target"] = Sampler(data.targets, size, training.seed, len(data.labelled))
        for word, pool in (("labelled", data.asked), ("replay", data.replay)):
            if pool:
                size = max(2, min(training.batch or len(pool), len(pool)))  # a single row comes twice: batch-norm needs two
                self.samplers[word] = Sampler([pool], size, training.seed, len(data.labelled))
        self.samplers |= {word: Course(data.labelled[0], rows) for word, rows in (data.course or {}).items()}
        self.score = score or self._chooser()
        self.game = training.optimizer.startswith("rk")
        self.optimizer = optimizer_of(learner, training)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.fitted = Fitted(choice="score" if score else training.choose if self.score else "last")
        self.best_score, self.step, self.losses = -math.inf, 0, [0.0, 0]
        self.best: dict[str, Any] = {}
        self.epoch = max((sampler.epoch for name, sampler in self.samplers.items() if name in asked), default=1)

    def _chooser(self) -> Callable[[], float] | None:
        choose, data = self.training.choose, self.data
        pools = [data.oracle] if choose == "oracle" else list(data.validation) if choose == "source_validation" else []
        if not pools or (choose == "source_validation" and not ("source" in self.asked or "domains" in self.asked)):
            return None  # a source-free method has no source rows to look at
        return lambda: sum(accuracy(self.method, self.learner, pool) for pool in pools if pool) / len(pools)

    # the course

    def go(self, folder: Path | None) -> None:
        training, learner = self.training, self.learner
        steps = training.steps
        look, keep = (max(1, math.ceil(steps / max(1, times))) for times in (training.looks, training.checkpoints + 1))
        if folder is not None and (folder / STATE).is_file():
            self.restore(folder / STATE)
        else:
            with seeded(training.seed, learner):
                self.method.begin(learner, self.data.source, self.data.whole_target)
        with bar(what=self.method.name, total=steps, unit="step") as shown, torch.random.fork_rng(devices=_cuda(learner)):
            shown.update(self.step)
            while self.step < steps:
                self._one()
                self.step += 1
                shown.update(1)
                if self.step % look == 0 or self.step == steps:
                    self._look()
                if folder is not None and self.step % keep == 0 and self.step < steps:
                    self.store(folder / STATE)
        learner.step, learner.progress = steps, 1.0
        if self.best:
            learner.load_state_dict(self.best["weights"])
            learner.memory = self.best["memory"]
        learner.eval()
        held = self.data.validation if "validation" in arguments(type(self.method), "end") else ()
        more = {"validation": whole(held)} if held else {}
        self.method.end(learner, self.data.source, self.data.whole_target, **more)
        self.fitted.kept = self.fitted.kept or steps

    def _one(self) -> None:
        learner, training = self.learner, self.training
        learner.step, learner.progress = self.step, self.step / training.steps
        key = 1_000_003 * training.seed + self.step
        torch.manual_seed(key)
        learner.generator.manual_seed(key)
        if self.step % self.epoch == 0:
            asked = self.data.asked if "labelled" in arguments(type(self.method), "refresh") else None
            more = {"labelled": whole([asked])} if asked else {}
            self.method.refresh(learner, self.data.source, self.data.whole_target, **more)
        learner.train()
        factor = self._factor()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        words: dict[str, Any] = {"learner": learner, **{n: self.samplers[n][self.step] for n in self.asked if n in self.samplers}}
        if self.game:
            self._game(words, key)
            return
        for given in self.method.step(**words):
            plays = as_plays(given)
            for loss, _ in plays:
                self._count(loss)
            play(learner, self.optimizer, plays, training.clip)
            self.fitted.plays += 1

    def _factor(self) -> float:
        training, warm = self.training, round(self.training.warmup * self.training.steps)
        part, kind = self.step / training.steps, training.schedule
        if kind in ("inverse", "exponential") and self.step >= warm:
            return (1 + training.alpha * part) ** -training.power if kind == "inverse" else math.exp(-training.alpha * part)
        return course(self.step, training.steps, warm, kind if kind in ("linear", "cosine") else "constant")

    def _game(self, words: dict[str, Any], key: int) -> None:
        """One Runge-Kutta step; every evaluation sees the same batch, dropout and draws, and only the first moves running statistics."""
        first = True

        def closure() -> None:
            nonlocal first
            torch.manual_seed(key)
            self.learner.generator.manual_seed(key)
            with still_statistics(self.learner, not first):
                plays = list(self.method.step(**words))
            if len(plays) != 1 or isinstance(plays[0], (list, tuple)):
                raise AcclimateError(
                    f"{self.training.optimizer} plays games of one loss with gradient reversal, but {self.method.name} updates its "
                    "players in turn; choose another optimizer"
                )
            if first:
                self._count(plays[0])
            first = False
            self.optimizer.zero_grad(set_to_none=True)
            plays[0].backward()
            self.fitted.plays += 1

        self.optimizer.step(closure)  # type: ignore[arg-type]

    def _count(self, loss: Tensor) -> None:
        """Into the curve, if it is a number."""
        training = self.training
        mend = f"lower lr (now {training.lr:g}) or set clip, and run again"
        self.losses[0] += finite(loss, self.method.name, f"step {self.step + 1} of {training.steps}", mend)
        self.losses[1] += 1

    def _look(self) -> None:
        total, count = self.losses
        self.fitted.curve.append((self.step, total / max(1, count)))
        self.losses = [0.0, 0]
        if self.score is None:
            return
        self.learner.eval()
        value = float(self.score())
        self.fitted.looks.append((self.step, value))
        if value > self.best_score:  # the first of equals
            self.best_score, self.fitted.kept = value, self.step
            weights = {name: weight.detach().clone() for name, weight in self.learner.state_dict().items()}
            self.best = {"weights": weights, "memory": _copied(self.learner.memory)}

    # what is stored

    def store(self, path: Path) -> None:
        """Everything that the rest of the run depends on, whole or not at all."""
        state = {
            "step": self.step,
            "weights": self.learner.state_dict(),
            "memory": self.learner.memory,
            "optimizer": self.optimizer.state_dict(),
            "fitted": vars(self.fitted),
            "best": self.best,
            "best_score": self.best_score,
            "losses": self.losses,
        }
        with atomic_file(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> None:
        """Go back to what :meth:`store` kept."""
        state = torch.load(path, weights_only=True)
        self.learner.load_state_dict(state["weights"])
        self.learner.memory = state["memory"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.fitted = Fitted(**state["fitted"])
        self.step, self.best, self.best_score, self.losses = state["step"], state["best"], state["best_score"], state["losses"]


def add_parts(method: Any, learner: Learner, seed: int) -> None:
    """Put what a method builds beside the learner, drawn from the seed; parts that are there stay."""
    with seeded(seed, learner):
        for name, part in method.build(learner).items():
            if name not in learner.parts:
                learner.parts[name] = channels_last(part.to(learner.device))


@torch.no_grad()
def predict(method: Any, learner: Learner, x: Tensor, where: Place | None = None, block: int = 0) -> Tensor:
    """Scores [row, class] of any number of rows, as the method predicts, in evaluation mode; ``where`` is the domain they are of."""
    was = learner.training
    learner.eval()
    more = {"where": where or Place()} if "where" in arguments(type(method), "predict") else {}
    found = torch.cat([method.predict(learner, rows, **more) for rows in x.split(block or learner.block)])
    learner.train(was)
    return found


def right(method: Any, learner: Learner, pool: Pool) -> Tensor:
    """Which rows of a pool are classified as their labels say [row] (0 or 1); minus the squared error where values are predicted.

    Where every pixel has a label, the share of each row's labelled pixels.
    Rows of a class that no source has are labelled by the number of classes: right where a method for open classes says "unknown".
    """
    if pool.y is None:
        raise AcclimateError(f"domain {pool.name!r} has no labels to measure by")
    scores = predict(method, learner, pool.x, learner.place(pool.name, pool.about))
    return hits(scores, pool.y) if learner.classes else -(scores.squeeze(-1) - pool.y).square()


def hits(scores: Tensor, y: Tensor) -> Tensor:
    """Rows [row, class] whose best class is theirs, 0 or 1 [row]; of [row, class, *place] the share of each row's labelled places.

    >>> hits(torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]]), torch.tensor([[1, 1, IGNORED]])).tolist()
    [0.5]
    """
    hit = (scores.argmax(1) == y).float()
    return hit if hit.ndim == 1 else hit.flatten(1).sum(1) / (y != IGNORED).flatten(1).sum(1).clamp(min=1)


def accuracy(method: Any, learner: Learner, pool: Pool) -> float:
    """The share of rows that are classified right."""
    return float(right(method, learner, pool).mean())


# random state


@contextmanager
def seeded(seed: int, learner: Learner) -> Iterator[None]:
    """The random state of a seed inside, the caller's again afterwards."""
    with torch.random.fork_rng(devices=_cuda(learner)):
        torch.manual_seed(seed)
        learner.generator.manual_seed(seed)
        yield


def _cuda(learner: nn.Module) -> list[torch.device]:
    device = next(learner.parameters()).device
    return [device] if device.type == "cuda" else []


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value

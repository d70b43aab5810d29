"""Fine-tuning of classifiers on arrays: balanced batches over named source domains, the best checkpoint on held-out source rows, averages.

Rows are a pair (x [row, ...] in fp32, y [row] of class numbers); sources are rows by domain. The protocol is DomainBed's (Gulrajani &
Lopez-Paz 2020, https://arxiv.org/abs/2007.01434): a fifth of each source domain chooses the checkpoint, the test domain is never seen.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..domain.arrays import ArrayDomain
from ..errors import AcclimateError
from ..method import Setting, Settings
from ..model import ArrayModel, FeatureModel

Rows = tuple[Tensor, Tensor]
Sources = Mapping[str, Rows]


class FineTuning(Settings):
    """How a classifier is trained."""

    steps: Annotated[int, Setting("optimizer steps", 0)] = 5000
    batch: Annotated[int, Setting("rows per source domain and step", 1)] = 32
    lr: Annotated[float, Setting("Adam's learning rate", 0)] = 5e-5
    weight_decay: Annotated[float, Setting("Adam's weight decay", 0)] = 0.0
    dropout: Annotated[float, Setting("share of the features dropped in training", 0, 1)] = 0.0
    check_every: Annotated[int, Setting("steps between looks at the validation rows; 0 = ten per run", 0)] = 0
    batch_norm: Annotated[str, Setting("batch statistics as usual, or those of the start (DomainBed's)", choices=("train", "freeze"))] = (
        "train"
    )


@dataclass
class Tuned:
    """The best checkpoint of a run, its accuracy on the validation rows, and the curve of (step, accuracy)."""

    model: FeatureModel
    accuracy: float
    curve: list[tuple[int, float]] = field(default_factory=list)


def sources(given: ArrayDomain | Mapping[str, ArrayDomain]) -> tuple[dict[str, Rows], list[str]]:
    """The training rows of one domain or several, by name, and their classes. Raises AcclimateError where they do not go together."""
    domains = {given.name: given} if isinstance(given, ArrayDomain) else given
    rows = {name: domain.rows("train") for name, domain in domains.items()}
    (first, one), *others = rows.items()
    for name, other in others:
        if other.classes != one.classes:
            own, theirs = (", ".join(part.classes[:8]) for part in (other, one))
            raise AcclimateError(f"{name} has the classes {own}, but {first} {theirs}; name the same in the same order with classes:")
        if (own_shape := other.x.shape[1:]) != one.x.shape[1:]:
            raise AcclimateError(
                f"a row of {name} has the shape {own_shape}, but one of {first} {one.x.shape[1:]}; give both the same side: and channels:"
            )
    return {name: part.tensors() for name, part in rows.items()}, one.classes


def split(sources: Sources, share: float = 0.2, seed: int = 0) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Each domain's rows divided at random into training and validation."""
    train, held = {}, {}
    for number, (name, (x, y)) in enumerate(sources.items()):
        order = torch.from_numpy(np.random.default_rng([seed, number]).permutation(len(y)))
        cut = round(share * len(y))
        if not 0 < cut < len(y):
            raise AcclimateError(f"domain {name!r} has {len(y)} rows, too few to hold out a share of {share:g}")
        held[name], train[name] = (x[order[:cut]], y[order[:cut]]), (x[order[cut:]], y[order[cut:]])
    return train, held


def fine_tune(model: FeatureModel, train: Sources, validation: Sources, plan: FineTuning, seed: int, *, only: str = "") -> Tuned:
    """Train a copy of the model with a fresh Adam; ``only="head"`` leaves the featurizer (and its batch-norm) as it is.

    Batches hold ``batch`` rows of every source domain. The copy that comes back is the earliest with the best mean accuracy over the
    validation domains, the start among them where steps is 0. Raises AcclimateError where the loss is not finite.
    """
    learner = copy.deepcopy(model)
    learner.dropout.p = plan.dropout
    learner.requires_grad_(True)
    if only == "head":
        learner.featurizer.requires_grad_(False)
    weights = [weight for weight in learner.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=plan.lr, weight_decay=plan.weight_decay)
    draw = np.random.default_rng(seed)
    every = plan.check_every or max(1, plan.steps // 10)
    best = Tuned(learner, -1.0)
    curve: list[tuple[int, float]] = []
    device = next(learner.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step in range(plan.steps + 1):
            if not plan.steps or (step and (step % every == 0 or step == plan.steps)):
                score = mean_accuracy(learner, validation)
                curve.append((step, score))
                if score > best.accuracy:
                    best = Tuned(copy.deepcopy(learner), score)
            if step == plan.steps:
                break
            _training(learner, only == "head", plan.batch_norm == "freeze")
            picked = [(x, y, torch.from_numpy(draw.integers(len(y), size=plan.batch))) for x, y in train.values()]
            x, y = torch.cat([x[rows] for x, _, rows in picked]), torch.cat([y[rows] for _, y, rows in picked])
            loss = functional.cross_entropy(learner(x.to(device)), y.to(device))
            if not torch.isfinite(loss):
                raise AcclimateError(f"the loss is {loss.item()} at step {step + 1}; lower lr (now {plan.lr:g}) and run again")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    best.curve = curve
    best.model.eval()
    return best


def _training(learner: FeatureModel, head_only: bool, frozen: bool) -> None:
    learner.train()
    if head_only:
        learner.featurizer.eval()
    if frozen:
        for layer in learner.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()


@torch.no_grad()
def features(featurizer: nn.Module, x: Tensor, rows: int = 512) -> Tensor:
    """Features in evaluation mode [row, width]."""
    featurizer.eval()
    device = next(featurizer.parameters()).device
    return torch.cat([featurizer(part.to(device)) for part in x.split(rows)])


@torch.no_grad()
def guesses(model: FeatureModel, x: Tensor) -> Tensor:
    """The class of the highest score of each row [row]."""
    model.eval()
    return model.head(features(model.featurizer, x)).argmax(1).cpu()


def accuracy(model: FeatureModel, rows: Rows) -> float:
    """Share of rows whose highest score is right."""
    return float((guesses(model, rows[0]) == rows[1]).float().mean())


def mean_accuracy(model: FeatureModel, domains: Sources) -> float:
    """Accuracy by domain, then the mean: a large domain counts as much as a small one."""
    return float(np.mean([accuracy(model, rows) for rows in domains.values()]))


def probed_head(featurizer: nn.Module, train: Sources, classes: int, strength: float = 1.0) -> nn.Linear:
    """A linear head by logistic regression on frozen features (``strength``: scikit-learn's C), every domain of equal weight."""
    from sklearn.linear_model import LogisticRegression

    found = [(features(featurizer, x).cpu().double().numpy(), y.numpy()) for x, y in train.values()]
    x, y = (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
    weight = np.concatenate([np.full(len(labels), len(y) / len(found) / len(labels)) for _, labels in found])
    present = np.unique(y)
    if len(present) < 2:
        raise AcclimateError(f"the source domains hold {len(present)} class, and a head needs two at least")
    fitted = LogisticRegression(C=strength, max_iter=2000).fit(x, y, sample_weight=weight)
    rows, bias = fitted.coef_, fitted.intercept_
    if len(present) == 2:  # one score there: its halves, with either sign
        rows, bias = np.concatenate([-rows, rows]) / 2, np.concatenate([-bias, bias]) / 2
    head = nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(float(bias.min()) - 10.0)  # classes that never occur
        head.weight[torch.from_numpy(present)] = torch.from_numpy(rows).float()
        head.bias[torch.from_numpy(present)] = torch.from_numpy(bias).float()
    return head.to(next(featurizer.parameters()).device)


def probed(model: ArrayModel, domains: Mapping[str, ArrayDomain]) -> ArrayModel:
    """A featurizer with a head probed on the training rows of some domains: what it can do before anything is tuned."""
    train, classes = sources(domains)
    net = FeatureModel(model.featurizer, probed_head(model.featurizer, train, len(classes)), classes=classes)
    return ArrayModel(model.name, net, model.source, model.notes)


def average(models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> nn.Module:
    """One network whose weights and running statistics are the (weighted) mean of the others'; counters are the first one's."""
    shares = np.ones(len(models)) if weights is None else np.asarray(weights, float)
    shares = shares / shares.sum()
    made = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if value.is_floating_point():
                value.copy_(sum(float(share) * state[name].double() for share, state in zip(shares, states, strict=True)))
    return made.eval()


def interpolation(first: FeatureModel, second: FeatureModel, domains: Sources, points: int = 11) -> list[float]:
    """Mean accuracy on the straight line from one network to the other: no dip says that they are linearly connected."""
    return [mean_accuracy(average([first, second], [1 - t, t]), domains) for t in np.linspace(0, 1, points)]  # type: ignore[arg-type]

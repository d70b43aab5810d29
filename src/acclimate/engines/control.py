"""Behaviour cloning and closed loops: policies learn from demonstrations and are measured by what they reach in a world.

The loss is the mean of -log pi(action | goal, observations of the last T steps) over all steps of the demonstrations, which are cut into
windows of T; every step of a window counts. A run stops early by the same figure on held-out demonstrations, whose every step sees as
many steps before it as there are, up to T, and keeps the weights of its best epoch, the start among them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..domain.demonstrations import Demonstrations, Trajectory
from ..errors import AcclimateError
from ..method import Setting, Settings
from ..model.injected import Injected
from ..models.control import Policy
from ..parts.schedules import course

FRAMES = 2048  # encoded at once where nothing learns


class Cloning(Settings):
    """How a policy learns from demonstrations."""

    epochs: Annotated[int, Setting("passes over the demonstrations, at most", 1)] = 100
    patience: Annotated[int, Setting("epochs without a better held-out loss after which it stops; 0 = never", 0)] = 20
    batch: Annotated[int, Setting("windows per step", 1)] = 16
    window: Annotated[int, Setting("steps that it looks back on (T); 0 = as many as the policy can", 0)] = 0
    lr: Annotated[float, Setting("AdamW's learning rate", 0)] = 1e-4
    weight_decay: Annotated[float, Setting("AdamW's weight decay", 0)] = 1e-2
    schedule: Annotated[str, Setting("course of the rate", choices=("constant", "cosine"))] = "constant"
    warmup: Annotated[int, Setting("steps in which the rate rises to its height", 0)] = 0
    clip: Annotated[float, Setting("longest gradient that is taken as it is", 0)] = 1.0


@dataclass
class Fitted:
    """What a run did: losses after each epoch, on what it learned from and on what was held out, and the epoch kept (0 = the start)."""

    curve: list[dict[str, float]] = field(repr=False)
    kept: int
    held: float
    weights: int  # that learned


@dataclass
class Prepared:
    """The frames of all trajectories, one after the other, as a policy reads them."""

    image: Tensor | None  # [frame, channel, side, side]
    state: Tensor | None  # [frame, width]
    actions: Tensor  # [frame], or [frame, width]
    real: Tensor | None  # which numbers of an action count [frame, width]
    owner: Tensor  # number of each frame's goal [frame]
    goals: Tensor  # words of the goals [goal, word]
    borders: list[tuple[int, int]]  # first and last + 1 frame of each trajectory

    def windows(self, length: int, draw: torch.Generator | None = None) -> Tensor:
        """Numbers of the frames of each window [window, length], -1 behind its end; every frame stands in one window.

        draw: long trajectories are cut in another place each time.
        """
        made = []
        for first, last in self.borders:
            cut = first
            if draw is not None and last - first > length:
                cut += int(torch.randint(length, (), generator=draw))
            edges = [first, *range(cut, last, length), last] if cut > first else [*range(first, last, length), last]
            made += [torch.arange(begin, end) for begin, end in pairwise(edges)]
        return _padded(made, length)

    def looks(self, length: int) -> tuple[Tensor, Tensor]:
        """Windows in which every frame sees the length - 1 frames before it, and where in them it stands [window, length] (bool)."""
        made, counts = [], []
        for first, last in self.borders:
            for end in [min(first + length, last), *range(first + length + 1, last + 1)]:
                made.append(torch.arange(max(first, end - length), end))
                counts.append(torch.arange(length) < len(made[-1]) if end <= first + length else torch.arange(length) == length - 1)
        return _padded(made, length), torch.stack(counts)


def prepare(policy: Policy | Injected, demos: Demonstrations) -> Prepared:
    """What a policy reads of demonstrations. Raises AcclimateError for other shapes, other actions and words it does not know."""
    image, state, action = demos.trajectories[0].shape
    wanted = (
        None if policy.image is None else (policy.image[0], policy.image[1], policy.image[1]),
        (policy.state,) if policy.state else None,
    )
    for name, given, needed in (("image", image, wanted[0]), ("state", state, wanted[1])):
        if given != needed:
            raise AcclimateError(f"{demos.name} has {name} {given and list(given)}, but the policy reads {needed and list(needed)}")
    if action != (() if policy.actions else (policy.action_width,)):
        kind = f"one of {policy.actions} choices" if policy.actions else f"{policy.action_width} numbers"
        raise AcclimateError(f"{demos.name} has actions of shape {list(action)} (none = choices), but the policy's are {kind}")
    actions = np.concatenate([each.actions for each in demos.trajectories])
    if policy.actions and actions.max() >= policy.actions:
        raise AcclimateError(f"{demos.name} has action {actions.max()}, but the policy has {policy.actions}, numbered from 0")
    lengths = [len(each) for each in demos.trajectories]
    ends = np.cumsum(lengths).tolist()
    number = {goal: place for place, goal in enumerate(demos.goals)}
    used = np.array([each.used for each in demos.trajectories])
    real = None
    if not policy.actions and used.any():
        real = torch.from_numpy(np.repeat(np.arange(action[0]) < np.where(used, used, action[0])[:, None], lengths, 0))
    return Prepared(
        image=_joined([each.image for each in demos.trajectories]),
        state=_joined([each.state for each in demos.trajectories]),
        actions=torch.from_numpy(actions).long() if policy.actions else torch.from_numpy(actions).float(),
        real=real,
        owner=torch.from_numpy(np.repeat([number[each.goal] for each in demos.trajectories], lengths)),
        goals=policy.goal_ids(demos.goals),
        borders=[(end - length, end) for end, length in zip(ends, lengths, strict=True)],
    )


def log_probs(policy: Policy | Injected, ready: Prepared, windows: Tensor) -> Tensor:
    """Log-probability of the action at each frame of the windows, window by window [frame]."""
    inside = windows >= 0
    frames = windows[inside]
    goals, owner = ready.owner[frames].unique(return_inverse=True)
    known = policy.text(ready.goals[goals])[owner]
    seen = policy.observe(_at(ready.image, frames), _at(ready.state, frames), known)
    rows = seen.new_zeros(*windows.shape, seen.shape[-1])
    rows[inside] = seen
    return policy.log_prob(policy.decode(rows)[inside], ready.actions[frames], _at(ready.real, frames))


@torch.no_grad()
def likelihood(policy: Policy | Injected, given: Demonstrations | Prepared, window: int = 0) -> float:
    """Mean log-probability of the demonstrated actions, each given the observations of its last T steps."""
    ready = prepare(policy, given) if isinstance(given, Demonstrations) else given
    policy.eval()
    length = _window(policy, window)
    windows, counts = ready.looks(length)
    inside = windows >= 0
    seen = []
    text = policy.text(ready.goals)
    for frames in torch.arange(len(ready.actions)).split(FRAMES):
        seen.append(policy.observe(_at(ready.image, frames), _at(ready.state, frames), text[ready.owner[frames]]))
    held, total = torch.cat(seen), 0.0
    for part, some, real in zip(
        windows.split(FRAMES // length), counts.split(FRAMES // length), inside.split(FRAMES // length), strict=True
    ):
        frames = part[some & real]
        scores = policy.decode(held[part.clamp(min=0)] * real[..., None])[some & real]
        total += float(policy.log_prob(scores, ready.actions[frames], _at(ready.real, frames)).sum())
    return total / len(ready.actions)


def clone(
    learner: Policy | Injected,
    demos: Demonstrations,
    held: Demonstrations,
    training: Cloning,
    seed: int,
    *,
    replay: Demonstrations | None = None,
    penalty: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
    free: Mapping[str, Tensor] | None = None,
) -> Fitted:
    """Teach ``learner``, in place, whatever of it wants a gradient; the rest runs in evaluation mode.

    replay: demonstrations of earlier tasks, of which every step also takes a batch. penalty: what is added to the loss, of the learning
    weights by name. free: entries that may change, by name of the weight; all others stay bit-equal.

    Raises AcclimateError where nothing learns, where the loss is not finite, and for demonstrations that do not fit.
    """
    weights = {name: weight for name, weight in learner.named_parameters() if weight.requires_grad}
    if not weights:
        raise AcclimateError("nothing of the policy learns; unfreeze a part of it, or give an adapter")
    ready, apart = prepare(learner, demos), prepare(learner, held)
    again = None if replay is None else prepare(learner, replay)
    length = _window(learner, training.window)
    optimizer = torch.optim.AdamW(weights.values(), lr=training.lr, weight_decay=training.weight_decay, fused=True)
    fixed = copied(weights) if free else {}
    draw = torch.Generator().manual_seed(seed)
    per_epoch = -(-len(ready.windows(length)) // training.batch)
    curve, kept, best, state, step = [], 0, -likelihood(learner, apart, training.window), copied(weights), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(1, training.epochs + 1):
            _modes(learner)
            windows = ready.windows(length, draw)
            losses = []
            for rows in torch.randperm(len(windows), generator=draw).split(training.batch):
                loss = -log_probs(learner, ready, windows[rows]).mean()
                losses.append(loss.item())
                if again is not None:
                    old = again.windows(length, draw)
                    chosen = torch.randint(len(old), (training.batch,), generator=draw)
                    loss = loss - log_probs(learner, again, old[chosen]).mean()
                if penalty is not None:
                    loss = loss + penalty(weights)
                if not torch.isfinite(loss):
                    raise AcclimateError(f"the loss is {loss.item()} in epoch {epoch}; lower lr (now {training.lr:g}) and run again")
                for group in optimizer.param_groups:
                    group["lr"] = training.lr * course(step, per_epoch * training.epochs, training.warmup, training.schedule)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(weights.values(), training.clip)
                optimizer.step()
                step += 1
                for name, mask in (free or {}).items():
                    weights[name].data.copy_(torch.where(mask, weights[name].data, fixed[name]))
            found = -likelihood(learner, apart, training.window)
            curve.append({"epoch": epoch, "loss": float(np.mean(losses)), "held": found})
            if found < best:
                kept, best, state = epoch, found, copied(weights)
            elif training.patience and epoch - kept >= training.patience:
                break
    with torch.no_grad():
        for name, value in state.items():
            weights[name].copy_(value)
    learner.eval()
    return Fitted(curve, kept, best, sum(weight.numel() for weight in weights.values()))


class World(Protocol):
    """Where a policy acts: gymnasium's ``reset`` and ``step``; observations are {"image": ..., "state": ...}, info tells of ``success``."""

    goal: str

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(observation, info)."""

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """(observation, reward, terminated, truncated, info)."""


@torch.no_grad()
def rollouts(
    policy: Policy | Injected, make: Callable[[], World], seeds: Sequence[int], *, window: int = 0, most: int = 1000
) -> list[Trajectory]:
    """What the policy does in one episode for each seed, side by side: it always takes the likeliest action. ``most`` steps at most."""
    if not seeds:
        raise AcclimateError("no seeds were given, so there is no episode to act in")
    policy.eval()
    length = _window(policy, window)
    worlds = [make() for _ in seeds]
    seen = [world.reset(seed=seed)[0] for world, seed in zip(worlds, seeds, strict=True)]
    goals = policy.text(policy.goal_ids([world.goal for world in worlds]))
    history = goals.new_zeros(len(worlds), 0, policy.width)
    log: list[dict[str, list]] = [{"image": [], "state": [], "actions": []} for _ in worlds]
    success, going = [False] * len(worlds), list(range(len(worlds)))
    for _ in range(most):
        images, states = (
            _stacked([seen[i].get(key) for i in going]) if wanted else None
            for key, wanted in (("image", policy.image), ("state", policy.state))
        )
        frames = policy.observe(images, states, goals[going])
        history = torch.cat([history, frames[:, None]], 1)[:, -length:]
        actions = policy.act(policy.decode(history)[:, -1]).numpy()
        kept = []
        for row, (i, action) in enumerate(zip(going, actions, strict=True)):
            for key in ("image", "state"):
                log[i][key].append(seen[i].get(key))
            log[i]["actions"].append(action)
            seen[i], _, ended, truncated, info = worlds[i].step(action)
            success[i] = bool(info["success"])
            if not ended and not truncated:
                kept.append(row)
        going, history = [going[row] for row in kept], history[kept]
        if not going:
            break
    return [
        Trajectory(world.goal, np.array(held["actions"]), _log(held["image"]), _log(held["state"]), won)
        for world, held, won in zip(worlds, log, success, strict=True)
    ]


def success_rate(policy: Policy | Injected, make: Callable[[], World], seeds: Sequence[int], **how: int) -> float:
    """Share of episodes that end in success; ``how`` is as in :func:`rollouts`."""
    return float(np.mean([each.success for each in rollouts(policy, make, seeds, **how)]))


def _window(policy: Policy | Injected, window: int) -> int:
    if window > policy.window:
        raise AcclimateError(f"window = {window}, but the policy looks back on {policy.window} steps at most")
    return window or policy.window


def _modes(learner: nn.Module) -> None:
    """Parts whose weights all learn are in training mode, the others in evaluation mode."""
    for module in learner.modules():
        own = list(module.parameters())
        module.training = bool(own) and all(weight.requires_grad for weight in own)


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are now."""
    return {name: weight.detach().clone() for name, weight in weights.items()}


def _padded(rows: list[Tensor], length: int) -> Tensor:
    made = torch.full((len(rows), length), -1)
    for place, row in enumerate(rows):
        made[place, : len(row)] = row
    return made


def _at(values: Tensor | None, frames: Tensor) -> Tensor | None:
    return None if values is None else values[frames]


def _joined(parts: Sequence[np.ndarray | None]) -> Tensor | None:
    return None if parts[0] is None else torch.from_numpy(np.concatenate(parts))  # type: ignore[arg-type]


def _stacked(parts: Sequence[np.ndarray | None]) -> Tensor:
    return torch.from_numpy(np.stack(parts))  # type: ignore[arg-type]


def _log(parts: list) -> np.ndarray | None:
    return None if parts[0] is None else np.stack(parts)

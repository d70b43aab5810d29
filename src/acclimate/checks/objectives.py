"""Checks for objectives: known words, a finite scalar, gradients where they belong, learning, and steps that may be cut."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kinds import Objective
from ..words import WORDS
from . import tiny
from .common import expect, same

LEARNED = ("logits", "chosen_logps", "rejected_logps", "anchors", "positives", "negatives")  # words that come from the learner
STEPS = 30


def example(method: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The loss and every word it can take."""
    return method.loss, _given(method, dtype)


def reference_number(method: Any, inputs: dict[str, Any]) -> list[float]:
    """The loss on words given as nested lists."""
    return [method.loss(**{word: torch.tensor(value) for word, value in inputs.items()}).item()]


def words_known(cls: type[Objective]) -> None:
    """Every argument is a word of the closed list; without that no engine can supply it."""
    expect(cls.needs(), "the loss needs nothing, so it can learn nothing")
    for word in [*cls.needs(), *cls.wishes()]:
        expect(word in WORDS, f"argument {word!r} is no word of words.py: {', '.join(WORDS)}")


def finite_scalar(cls: type[Objective]) -> None:
    """The loss is a finite scalar, with and without the words it could do without."""
    method: Any = cls()
    given = _given(method, torch.float32)
    for inputs in (given, {word: given[word] for word in cls.needs()}):
        loss = method.loss(**inputs)
        expect(isinstance(loss, Tensor) and loss.shape == (), f"the loss must be a scalar tensor, but is {loss!r}")
        expect(torch.isfinite(loss), f"the loss is {loss.item()}")


def gradient(cls: type[Objective]) -> None:
    """The gradient is finite, reaches every word that comes from the learner, and is 0 where nothing is asked."""
    method: Any = cls()
    for dtype in (torch.float32, torch.bfloat16):
        given = _given(method, dtype)
        learned = {word: given[word].requires_grad_() for word in LEARNED if word in given}
        method.loss(**given).backward()
        for word, value in learned.items():
            expect(value.grad is not None and value.grad.abs().sum() > 0, f"no gradient reaches {word} in {dtype}")
            expect(torch.isfinite(value.grad).all(), f"the gradient of {word} is not finite in {dtype}")
        if "logits" in learned:
            idle = ~_asked(method, given)
            expect(learned["logits"].grad[idle].abs().sum() == 0, "logits get a gradient where no label is asked for")


def learns(cls: type[Objective]) -> None:
    """Thirty steps lower the loss and lead the right way: likelier labels, wider margins, closer pairs."""
    method: Any = cls()
    given = _given(method, torch.float32)
    learned = [given[word].requires_grad_() for word in LEARNED if word in given]
    optimizer = torch.optim.Adam(learned, lr=0.1)
    first, before = method.loss(**given).item(), _quality(method, given)
    for _ in range(STEPS):
        optimizer.zero_grad()
        method.loss(**given).backward()
        optimizer.step()
    last, after = method.loss(**given).item(), _quality(method, given)
    expect(last < first, f"{STEPS} steps raise the loss from {first:.4g} to {last:.4g}")
    expect(
        after > before,
        f"{STEPS} steps lead the wrong way: label likelihood, margin or closeness of pairs goes from {before:.4g} to {after:.4g}",
    )


def splits(cls: type[Objective]) -> None:
    """Losses of two parts of a step, each divided by the items of the whole, add up to the loss of the whole."""
    expect("items" in cls.wishes(), "takes no items=None, so its gradient depends on how a step is cut into micro-batches")
    method: Any = cls()
    given = _given(method, torch.float32)
    items = given.pop("items")
    parts = [{word: value[part] for word, value in given.items()} for part in (slice(2), slice(2, None))]
    total = sum(method.loss(**part, items=items).item() for part in parts)
    whole, alone = method.loss(**given, items=items).item(), method.loss(**given).item()
    expect(abs(total - whole) < 1e-5 * (1 + abs(whole)), f"two parts of a step add up to {total:.6g}, the whole gives {whole:.6g}")
    expect(abs(alone - whole) < 1e-5 * (1 + abs(whole)), f"without items the loss is {alone:.6g}, with the items of this batch {whole:.6g}")


def corruption(cls: type[Objective]) -> None:
    """Inputs and labels made of clean ids: as long as these, repeatable by seed, clean ids untouched, labels true."""
    method: Any = cls()
    tokens, special = np.arange(20, 60), np.zeros(40, np.int8)
    special[[0, -1]] = 1
    clean = tokens.copy()
    first, second = (method.corrupt(tokens, special, 100, 3, np.random.default_rng(5)) for _ in range(2))
    expect(same(first, second), "the same generator gives other inputs or labels the second time")
    expect(same(tokens, clean), "corrupt writes into the clean ids")
    inputs, labels = first
    asked = labels != -100
    expect(
        inputs.shape == labels.shape == tokens.shape and asked.any(),
        f"inputs {inputs.shape} and labels {labels.shape} for {tokens.shape} ids",
    )
    own = (labels == tokens)[asked].all() and not asked[special == 1].any()
    following = (labels[:-1] == tokens[1:])[asked[:-1]].all() and not asked[-1]
    expect(own or following, "labels are neither the ids of their own places nor those that follow")


def _given(method: Any, dtype: torch.dtype) -> dict[str, Any]:
    everything = tiny.words(dtype)
    given: dict[str, Any] = {word: everything[word] for word in [*method.needs(), *method.wishes()] if word in everything}
    if "items" in method.wishes():
        given["items"] = _asked(method, given).sum() if "labels" in given else tiny.ROWS
    return given


def _asked(method: Any, given: dict[str, Any]) -> Tensor:
    asked = given["labels"] != -100
    return asked & (given["answer_mask"] == 1) if "answer_mask" in method.needs() else asked


def _quality(method: Any, given: dict[str, Any]) -> float:
    """What a preferred direction is, whatever the loss: larger is better."""
    with torch.no_grad():
        if "logits" in given:
            logps = given["logits"].log_softmax(2).gather(2, given["labels"].clamp(min=0)[..., None])[..., 0]
            return logps[_asked(method, given)].mean().item()
        if "chosen_logps" in given:
            return (given["chosen_logps"] - given["rejected_logps"]).mean().item()
        near = torch.cosine_similarity(given["anchors"][:, None], given["positives"][None], dim=2)
        return (2 * near.diagonal().mean() - near.mean()).item()

"""The course of a learning rate."""

import math


def course(step: int, steps: int, warmup: int, schedule: str) -> float:
    """What the rate is multiplied by at a step (from 0): a rise over ``warmup`` steps, then constant, linear or cosine to the end.

    >>> [round(course(step, 6, 2, "cosine"), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    part = min(1.0, (step - warmup) / max(1, steps - warmup))
    return {"linear": 1 - part, "cosine": 0.5 * (1 + math.cos(math.pi * part)), "constant": 1.0}[schedule]

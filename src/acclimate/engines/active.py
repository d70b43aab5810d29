"""Active learning: train, ask for the labels of the rows a method wants most, train on; round after round, for a fixed budget.

The oracle is a labelled pool of the target; training sees the rows that were asked for (word ``labelled``) and the others without labels
(``target``), which keep their numbers (``Batch.rows``), so that a table per row stays true over the rounds.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from ..errors import AcclimateError
from ..files import atomic_file, read_json, write_json
from ..method import Setting, Settings
from ..progress import bar
from .shift.learner import Learner
from .shift.loop import Training, accuracy, fit, seeded
from .shift.pools import Data, Pool, whole


class Rounds(Settings):
    """How many labels are asked for, and when."""

    rounds: Annotated[int, Setting("how often labels are asked for", 1)] = 5
    share: Annotated[float, Setting("share of the target that is asked for in each round", 0, 1)] = 0.01
    warm: Annotated[bool, Setting("train before the first query; off where the start is already a source model")] = True


@dataclass
class Asked:
    """What was asked for: rows by round, and the accuracy on the test rows before the first and after each round's training."""

    rows: list[list[int]] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


def learn(
    method: Any,
    learner: Learner,
    data: Data,
    oracle: Pool,
    plan: Rounds | None = None,
    training: Training | None = None,
    *,
    test: Pool | None = None,
    folder: Path | None = None,
) -> Asked:
    """Spend the budget: the learner ends trained on the sources (if the method sees them) and on every row that was asked for.

    ``data.target`` is not used: the target is ``oracle`` without its labels. ``training`` is one round's. A killed run goes on in
    ``folder``.

    Raises AcclimateError for a budget that is larger than the pool, and a method that does not give as many rows as it was asked for.
    """
    plan, training = plan or Rounds(), training or Training(**method.training)
    per_round = max(1, round(plan.share * len(oracle)))
    if oracle.y is None:
        raise AcclimateError(f"the oracle {oracle.name!r} has no labels to give")
    if per_round * plan.rounds > len(oracle):
        raise AcclimateError(
            f"{plan.rounds} rounds of {per_round} labels are more than the {len(oracle)} rows of {oracle.name!r}; ask for less"
        )
    numbered = replace(oracle, numbers=torch.arange(len(oracle)))
    done = Asked()
    told = Path(folder) / "asked.json" if folder else None
    before = read_json(told)["rows"] if told and told.is_file() else []
    test = test or oracle
    for turn in bar(range(plan.rounds + 1), method.name, unit="round"):
        taken = [row for rows in done.rows for row in rows]
        rest = np.setdiff1d(np.arange(len(oracle)), taken)
        seen = replace(
            data,
            target=numbered.unlabelled().select(rest) if len(rest) else None,
            asked=numbered.select(taken) if taken else None,
        )
        if turn or plan.warm:
            own = Training(**{**training.values(), "seed": training.seed + 1000 * turn})
            fit(method, learner, seen, own, folder=folder / f"round-{turn}" if folder else None)
        done.accuracy.append(accuracy(method, learner, test))
        if turn == plan.rounds:
            break
        kept = folder / f"memory-{turn}.pt" if folder else None
        if turn < len(before) and kept and kept.is_file():
            rows, learner.memory = before[turn], torch.load(kept, weights_only=True)
        else:
            pool = whole([numbered.unlabelled().select(rest)], len(data.labelled))
            with seeded(training.seed + turn, learner):
                learner.eval()
                more = {"labelled": whole([seen.asked]) if seen.asked else None} if "labelled" in method.asked() else {}
                wanted = np.asarray(method.query(learner, pool, per_round, **more)).tolist()
            if len(set(wanted)) != per_round or not all(0 <= row < len(rest) for row in wanted):
                raise AcclimateError(
                    f"{method.name}: query gave {len(set(wanted))} different rows of the pool, but {per_round} were asked for"
                )
            rows = [int(rest[row]) for row in wanted]
            if kept:
                with atomic_file(kept) as temporary:
                    torch.save(learner.memory, temporary)
        done.rows.append(rows)
        if told:
            write_json(told, {"rows": done.rows, "accuracy": done.accuracy})
    return done

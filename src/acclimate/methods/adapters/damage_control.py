"""Damage control: adapts a speech transducer to a new domain and keeps the checkpoint that gains most for what it spoils of the old.

Majumdar et al. 2022, sections 2 and 3, https://arxiv.org/abs/2210.03255
Use where a recogniser must learn a new voice, accent or vocabulary, its old training data are gone, and a bound on the damage can be named.
Not where both domains' data can be trained on together. Adapters a(h) = W_up swish(W_down LN(h)) stand behind encoder blocks, the
prediction network and the joint network's input; only new-domain data are trained on, and old-domain sets are only scored. Dropout,
stochastic depth of the whole adapter, weight decay, frozen batch-norm statistics and few steps hold the damage down. Every setting of the
grid is looked at after each number of ``steps``; SCORE (``parts.damage``) ranks them all, and where it is 0 for all the start is kept.
Whole and partial fine-tuning can be run beside it under the same rule (the paper's baselines), and the checkpoint that is best on the new
domain alone is given as well (its unconstrained task). An adapter that is there with some chance is divided by it, as in the authors'
code. Left out: RNN-T with sub-word units and beam search. Defaults of dim, dropout and
depth are the paper's ranges; its steps are for networks and data of another size.

>>> method = DamageControl(places=["encoder", "encoder+joint"], dim=[16], dropout=[0.0, 0.5], skip=[0.0])
>>> len(list(method.grid())), method.adapter(64, "encoder+joint", 16, 0.5, 0.0).target
(4, ['[r]encoder\\\\.blocks\\\\.\\\\d+', 'joint.input'])
>>> method.score([{"new": 0.1, "a": 0.06}, {"new": 0.02, "a": 0.2}], {"new": 0.4, "a": 0.05}).index(0.0)
1
"""

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any

from ...domain.speech import Speech
from ...engines.speech import PARTS, Checkpoint, SpeechTraining, error_rate, tune
from ...errors import AcclimateError
from ...kinds import Strategy
from ...method import Setting, load
from ...parts.damage import ConstrainedSelector

PLACES = {"encoder": r"[r]encoder\.blocks\.\d+", "prediction": "prediction", "joint": "joint.input"}
NEW = "new"
Setup = tuple[str, int, float, float]  # place, dim, dropout, skip


class DamageControl(Strategy):
    """Gives the chosen model (``adapted``), the best on the new domain alone (``adapted.unconstrained``), and both for each baseline."""

    room = "adapters"
    trains = False
    works_on = "arrays"

    kappa: Annotated[float, Setting("rise of the word error rate that each old set may see (the paper's kappa)", 1e-6)] = 0.03
    places: Annotated[list[str], Setting("where adapters stand: encoder, prediction, joint, joined by +")] = dataclasses.field(
        default_factory=lambda: ["encoder", "encoder+prediction+joint"]
    )
    dim: Annotated[list[int], Setting("widths of the bottleneck", 1)] = dataclasses.field(default_factory=lambda: [32, 64])
    dropout: Annotated[list[float], Setting("shares of the bottleneck dropped in training", 0, 1)] = dataclasses.field(
        default_factory=lambda: [0.0, 0.5]
    )
    skip: Annotated[list[float], Setting("chances that an adapter is left out in a step (stochastic depth)", 0, 0.99)] = dataclasses.field(
        default_factory=lambda: [0.0, 0.5, 0.9]
    )
    steps: Annotated[list[int], Setting("numbers of steps after which a run is looked at", 1)] = dataclasses.field(
        default_factory=lambda: [50, 100, 200, 400]
    )
    lr: Annotated[float, Setting("learning rate of adapters", 0)] = 1e-3
    tuning_lr: Annotated[list[float], Setting("learning rates that each baseline is tried with", 0)] = dataclasses.field(
        default_factory=lambda: [1e-3, 1e-4]
    )
    weight_decay: Annotated[float, Setting("weight decay of adapters and baselines", 0)] = 1e-2
    warmup: Annotated[int, Setting("steps in which the rate rises", 0)] = 20
    batch: Annotated[int, Setting("recordings per step", 1)] = 16
    masks: Annotated[int, Setting("runs of bands and frames masked in each recording", 0)] = 1
    batch_norm: Annotated[str, Setting("batch-norm statistics beside adapters: kept, or learned", choices=("freeze", "train"))] = "freeze"
    baselines: Annotated[list[str], Setting("tunings beside it: full, encoder, decoder (without frozen statistics)")] = dataclasses.field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for given, known, name in (
            ([place for places in self.places for place in places.split("+")], PLACES, "places"),
            (self.baselines, PARTS, "baselines"),
        ):
            if wrong := [value for value in given if value not in known]:
                raise AcclimateError(f"DamageControl.{name} names {wrong[0]!r}, but must be made of {', '.join(known)}")

    def run(
        self,
        tools: Any,
        *,
        start: Any = None,
        new: Speech | None = None,
        held: Speech | None = None,
        old: Mapping | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Models by name. ``new`` is trained on, ``held`` (of the new domain) and the ``old`` sets by name only choose.

        Notes: ``table``, every checkpoint with its rates and SCORE, and ``chosen``, its row for each kind, None where the start is kept.
        """
        if start is None or new is None or held is None or not old or NEW in old or others:
            raise AcclimateError(f"damage_control needs start, new, held, and old: sets by name, none of them named {NEW!r}")
        watch = {NEW: held, **old}
        before = {name: error_rate(start, given) for name, given in watch.items()}
        made: dict[str, Any] = {}
        tables: dict[str, list] = {}
        chosen: dict[str, Any] = {}
        for kind in ["adapted", *self.baselines]:
            runs: list[tuple[dict, Checkpoint]] = []
            for setup in self.grid() if kind == "adapted" else [{"lr": lr} for lr in self.tuning_lr]:
                given: dict[str, Any] = {"part": kind} if "lr" in setup else {"adapter": self.adapter(start.width, **setup)}
                plan = self.training(**setup)
                runs += [(setup, found) for found in tune(start, new, plan, self.steps, tools.seed, watch=watch, **given)]
            scores = self.score([found.rates for _, found in runs], before)
            rows = zip(runs, scores, strict=True)
            tables[kind] = [{**setup, "steps": found.step, **found.rates, "score": score} for (setup, found), score in rows]
            best = ConstrainedSelector(self.kappa).best(scores)
            alone = min(range(len(runs)), key=lambda i: runs[i][1].rates[NEW])
            chosen[kind] = {"constrained": None if best is None else tables[kind][best], "unconstrained": tables[kind][alone]}
            made[kind] = start if best is None else runs[best][1].model()
            made[f"{kind}.unconstrained"] = runs[alone][1].model()
        tools.note("table", {"before": before, **tables})
        tools.note("chosen", chosen)
        return made

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every placement with every dim, dropout and depth."""
        for values in product(self.places, self.dim, self.dropout, self.skip):
            yield dict(zip(("place", "dim", "dropout", "skip"), values, strict=True))

    def adapter(self, width: int, place: str, dim: int, dropout: float, skip: float) -> Any:
        """The adapters of one setting, for a network of this width."""
        if dim > width:
            raise AcclimateError(f"DamageControl.dim = {dim}, but the network's width is {width}; give at most that")
        target = [PLACES[name] for name in place.split("+")]
        settings: dict[str, Any] = {"reduction": width / dim, "activation": "silu", "norm": True}
        return load("adapters.bottleneck", **settings, dropout=dropout, skip=skip, target=target)

    def training(self, lr: float | None = None, **_: Any) -> SpeechTraining:
        """How adapters are trained, or a baseline at its rate."""
        shared: dict[str, Any] = {"batch": self.batch, "weight_decay": self.weight_decay, "warmup": self.warmup, "masks": self.masks}
        return SpeechTraining(lr=self.lr if lr is None else lr, batch_norm=self.batch_norm if lr is None else "train", **shared)

    def score(self, rates: list[dict[str, float]], before: dict[str, float]) -> list[float]:
        """SCORE of each checkpoint's error rates."""
        chooser = ConstrainedSelector(self.kappa)
        old = {name: rate for name, rate in before.items() if name != NEW}
        return [chooser.score(old, after, before[NEW], after[NEW]) for after in rates]

"""Steps of shift methods against DomainBed's own classes: the same network, the same batches, in turn.

    python bench/shift.py --domainbed FOLDER [--rounds 5] [--steps 20]

FOLDER is a checkout of github.com/facebookresearch/DomainBed (its package imports torchvision and timm for networks that are not used
here; empty stand-ins are put in their place). Three domains of 32 rows: images of 2 x 28 x 28 on DomainBed's convolutional network, and
vectors of 384 on its perceptron, 20 times as many steps of these. Batches lie ready for DomainBed; ours are drawn by the sampler at every
step. The loss of the first step from the same weights is compared where both define the same one. ``frozen`` is a head on a frozen
network, whose features we make once. Both use all cores: measure on a machine that does nothing else.
"""

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import common

METHODS = {
    "ERM": "domain_generalization.erm", "DANN": "domain_adaptation.dann", "CORAL": "domain_generalization.coral",
    "Mixup": "domain_generalization.mixup", "GroupDRO": "domain_generalization.group_dro", "IRM": "domain_generalization.irm",
}  # fmt: skip
SAME = ("ERM", "CORAL", "GroupDRO", "IRM")  # one loss per step, without draws
SHAPES = {"images": (2, 28, 28), "vectors": (384,)}
LONGER = {"images": 1, "vectors": 20}  # steps of vectors are short: so many more, or what is done once per run would be measured
GOAL, GOAL_FROZEN = 1.0, 3.0
DOMAINS, ROWS, CLASSES = 3, 32, 7


def peer(folder: Path) -> tuple[Any, Any, Any]:
    """DomainBed's algorithms, networks and registry of hyperparameters."""
    for name in ("torchvision", "torchvision.models", "timm"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.path.insert(0, str(folder))
    from domainbed import algorithms, hparams_registry, networks

    return algorithms, networks, hparams_registry


class Head(torch.nn.Module):
    """DomainBed's network as a featurizer of ours."""

    def __init__(self, net: Any):
        super().__init__()
        self.net, self.features = net, net.n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def both(name: str, kind: str, steps: int, found: tuple, frozen: bool = False) -> tuple[Callable[[], Any], Callable[[], Any], float | None]:
    """Theirs and ours for a number of steps, and how far the first losses lie apart."""
    from acclimate.engines.shift import Data, Learner, Pool, Training, fit
    from acclimate.method import load

    algorithms, networks, registry = found
    shape, draw = SHAPES[kind], torch.Generator().manual_seed(0)
    pools = [
        Pool(f"d{d}", torch.rand(16 * ROWS, *shape, generator=draw), torch.randint(CLASSES, (16 * ROWS,), generator=draw))
        for d in range(DOMAINS)
    ]
    dataset = "RotatedMNIST" if kind == "images" else "Debug28"
    hparams = {**registry.default_hparams(name, dataset), "mlp_width": 256, "mlp_depth": 3, "mlp_dropout": 0.0}
    torch.manual_seed(1)
    theirs = getattr(algorithms, name)(shape, CLASSES, DOMAINS, hparams)
    minibatches = [[(pool.x[k * ROWS : (k + 1) * ROWS], pool.y[k * ROWS : (k + 1) * ROWS]) for pool in pools] for k in range(16)]
    featurizer = Head(networks.Featurizer(shape, hparams))
    featurizer.net.load_state_dict(theirs.featurizer.state_dict())
    head = torch.nn.Linear(featurizer.features, CLASSES)
    head.load_state_dict(theirs.classifier.state_dict())
    settings: dict[str, Any] = {"domains": "all", "hidden": (256, 256)} if name == "DANN" else {}
    method = load(METHODS[name], **settings)
    gap = None
    if name in SAME and not frozen:
        gap = _gap(method, Learner(featurizer, CLASSES, head=head).eval(), theirs.eval(), minibatches[0])
    training = Training(steps=steps, batch=ROWS, optimizer="adam", lr=1e-3, choose="last", looks=1, checkpoints=0)
    data = Data(pools)
    if frozen:
        theirs.featurizer.requires_grad_(False)
        with torch.no_grad():
            data = Data([Pool(pool.name, featurizer.eval()(pool.x), pool.y) for pool in pools])
        learner = Learner(torch.nn.Identity(), CLASSES, width=featurizer.features, head=head)
    else:
        learner = Learner(featurizer, CLASSES, head=head)

    def run_theirs() -> None:
        theirs.train()
        for k in range(steps):
            theirs.update(minibatches[k % 16])

    return run_theirs, lambda: fit(method, learner, data, training), gap


def _gap(method: Any, learner: Any, theirs: Any, minibatch: list) -> float:
    """Difference of the first losses from equal weights on the same rows; DomainBed's update returns the loss before its step."""
    import copy

    from acclimate.engines.shift import Batch

    x, y = (torch.cat([pair[i] for pair in minibatch]) for i in range(2))
    batch = Batch(x, y, torch.repeat_interleave(torch.arange(DOMAINS), ROWS), torch.arange(len(x)), [ROWS] * DOMAINS)
    learner.domains = [f"d{d}" for d in range(DOMAINS)]
    method.begin(learner, batch, None)
    ours = sum(float(loss.detach()) for loss in method.step(learner, batch))
    told = copy.deepcopy(theirs).update(minibatch)
    apart = "penalty" in told and "nll" not in told  # CORAL tells its penalty beside the loss, IRM within it
    wanted = told["loss"] + (theirs.hparams["mmd_gamma"] * told["penalty"] if apart else 0.0)
    return abs(ours - wanted)


def main() -> None:
    """Measure and write bench/results/shift.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domainbed", type=Path, required=True, help="a checkout of DomainBed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    found = peer(args.domainbed)
    rows: dict[str, Any] = {}
    for kind in SHAPES:
        steps = args.steps * LONGER[kind]
        for name in METHODS:
            theirs, ours, gap = both(name, kind, steps, found)
            theirs(), ours()  # warm
            rows[f"{kind}: {name}"] = {"goal": GOAL, "first_loss_gap": gap, **_times(common.rounds(theirs, ours, args.rounds), steps)}
            print(f"{kind}: {name}", rows[f"{kind}: {name}"], flush=True)
    theirs, ours, _ = both("ERM", "images", args.steps, found, frozen=True)
    theirs(), ours()
    rows["frozen: ERM"] = {"goal": GOAL_FROZEN, **_times(common.rounds(theirs, ours, args.rounds), args.steps)}
    print("frozen: ERM", rows["frozen: ERM"], flush=True)
    common.write("shift", {"rounds": args.rounds, "steps": args.steps, "rows": ROWS, "domains": DOMAINS, "methods": rows})


def _times(timed: dict[str, Any], steps: int) -> dict[str, Any]:
    wall = {name: sorted(timed[key]["wall"])[len(timed[key]["wall"]) // 2] for key, name in (("a", "theirs"), ("b", "ours"))}
    return {"ratio": timed["ratio"], **{f"{name}_steps_per_second": steps / seconds for name, seconds in wall.items()}}


if __name__ == "__main__":
    main()

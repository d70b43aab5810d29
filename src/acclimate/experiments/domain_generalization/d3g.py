"""Do heads weighed by how related domains are beat plain training, equal heads and alignment on domains that nobody saw?

Three worlds, each domain with facts about it. DG-15, made up: 15 domains at random places of a square, two classes on either side of a line
whose angle is that of the place as seen from the middle, 6 to learn from and 9 unseen. Temperatures, made up: 48 stations with latitude and
longitude; mean, swing and phase of the year follow from the place, and the temperature of a day is to be told from the date and from the
humidity; 24 stations to learn from. Reviews: eight kinds of goods of FDU-MTL as frozen vectors of all-MiniLM-L6-v2, the facts being the
vector of the kind's description; baby goods, videos and cameras unseen, one hidden layer. Arms: ERM; CORAL; DRM (classes only); heads that
are all weighed alike (same losses); D3G; D3G with the fixed or the learned relation alone, and without the second loss. Every arm has the
same steps, batches, rate and first weights; the weights kept are the best on held-out rows of the sources.

What differs from the paper, and why: its generator is not published in full, so ours follows the description; temperatures are made up, as
the stations' records are not at hand, and so are satellite images and proteins. beta, lambda and the learned relation's sizes are the
method's defaults, not searched. Small networks, Adam at 3e-3 (1e-3 on reviews). Less than a minute per seed on one core, after the
reviews were encoded once.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...method import load
from ..shift_sets import reviews

if TYPE_CHECKING:
    from ...engines.shift import Pool

CRITERION = """
    Means over unseen domains and seeds. (1) On DG-15 D3G is above ERM by 3.0 points or more, and above heads weighed alike, CORAL and DRM;
    (2) on temperatures D3G's squared error is below those of ERM, CORAL and heads weighed alike; (3) on reviews D3G is at most 0.5 points
    below ERM; (4) on DG-15 both relations together are not more than 1.0 point below either alone, and leaving out the second loss does
    not add more than 1.0 point. The claim holds if all four do.
"""
METRIC = (
    "accuracy on rows of unseen domains in points, higher is better; on temperatures squared error (in tens of degrees), lower is better"
)
SEEDS = (0, 1, 2)
ABOVE, LOSS, ABLATION = 3.0, 0.5, 1.0  # points: the numbers of the criterion
GOODS = {
    "books": "books: novels, textbooks and other printed reading",
    "dvd": "films and series on DVD",
    "electronics": "consumer electronics: players, headphones, cables, chargers",
    "kitchen_housewares": "kitchen appliances, cookware and housewares",
    "music": "music albums on compact disc",
    "baby": "baby goods: strollers, bottles, car seats, monitors",
    "video": "films on video cassettes",
    "camera_photo": "cameras, lenses and photography accessories",
}


@dataclass(frozen=True)
class World:
    """Domains to learn from, rows held out of each, and unseen ones."""

    train: "list[Pool]"
    validation: "list[Pool]"
    unseen: "list[Pool]"
    classes: list[str]
    training: dict[str, Any]

    @classmethod
    def of(cls, pools: "list[Pool]", seen: int, classes: list[str], training: dict[str, Any]) -> "World":
        """The first domains to learn from, a quarter of their rows held out."""
        cut = [3 * len(pool) // 4 for pool in pools[:seen]]
        train = [pool.select(range(size)) for pool, size in zip(pools[:seen], cut, strict=True)]
        held = [pool.select(range(size, len(pool))) for pool, size in zip(pools[:seen], cut, strict=True)]
        return cls(train, held, pools[seen:], classes, training)


def lines(seed: int, rows: int = 100) -> World:
    """DG-15: the class is the side of a line that turns with the domain's place."""
    draw = np.random.default_rng([seed, 15])
    pools = []
    for number in range(15):
        place = draw.uniform(-1, 1, 2)
        direction = place / np.linalg.norm(place)
        y = np.arange(rows) % 2
        x = np.outer(2 * y - 1, direction) + 0.5 * draw.normal(size=(rows, 2))
        pools.append(_pool(f"place {number}", x, y, place))
    return World.of(pools, 6, ["behind", "before"], {"steps": 400, "batch": 16, "lr": 3e-3})


def stations(seed: int, rows: int = 100, count: int = 48) -> World:
    """Temperatures by date and humidity, whose course over the year depends on latitude and longitude (both from -1 to 1)."""
    draw = np.random.default_rng([seed, 48])
    pools = []
    for number in range(count):
        north, east = draw.uniform(-1, 1, 2)
        mean, swing, phase = -8 * north + 2 * east, 10 + 5 * north - 4 * east, 0.5 * east  # degrees, degrees, radians
        date, damp = draw.uniform(0, 2 * np.pi, rows), draw.normal(size=rows)
        values = mean - swing * np.cos(date - phase) - 2 * damp + draw.normal(size=rows)
        pools.append(_pool(f"station {number}", np.stack([np.cos(date), np.sin(date), damp], 1), values / 10, np.array([north, east])))
    return World.of(pools, count // 2, [], {"steps": 400, "batch": 8, "lr": 3e-3})


def goods(seed: int) -> World:
    """Kinds of goods by their description."""
    from ...shifts import encoded

    facts = encoded(list(GOODS.values()))
    cuts = [reviews(name, (600, 100, 300), seed) for name in GOODS]
    train, held, test = (
        [replace(getattr(cut, part), about=about) for cut, about in zip(cuts, facts, strict=True)]
        for part in ("train", "validation", "test")
    )
    return World(train[:5], held[:5], test[5:], list(cuts[0].classes), {"steps": 200, "batch": 32, "lr": 1e-3})


def _pool(name: str, x: np.ndarray, y: np.ndarray, about: np.ndarray) -> "Pool":
    import torch

    from ...engines.shift import Pool

    labels = torch.from_numpy(y) if y.dtype.kind == "i" else torch.tensor(y, dtype=torch.float32)
    return Pool(name, torch.tensor(x, dtype=torch.float32), labels, torch.tensor(about, dtype=torch.float32))


def arms(values: bool, ablations: bool) -> dict[str, Any]:
    """The methods; DRM chooses between classifiers, so it has no values."""
    name = "domain_generalization.d3g"
    found = {"ERM": load("domain_generalization.erm"), "CORAL": load("domain_generalization.coral")}
    found |= {} if values else {"DRM": load("domain_generalization.drm")}
    found |= {"heads alike": load(name, beta=1.0, fixed="equal"), "D3G": load(name)}
    if ablations:
        found |= {"fixed alone": load(name, beta=1.0), "learned alone": load(name, beta=0.0), "no second loss": load(name, weight=0.0)}
    return found


def run(seed: int, tiny: bool, work: Path) -> dict[str, Any]:
    """Every arm on every world."""
    import torch

    from ...engines.shift import Data, Learner, Training, accuracy, fit
    from ...models.mlp import Mlp

    worlds = {"DG-15": lines(seed), "temperatures": stations(seed), "reviews": lines(seed + 1000) if tiny else goods(seed)}
    figures: dict[str, float] = {}
    told: dict[str, Any] = {}
    for key, world in worlds.items():
        given = {**world.training, **({"steps": 2, "looks": 1} if tiny else {"looks": 5})}
        training, data = Training(optimizer="adam", seed=seed, **given), Data(world.train, None, world.validation, world.classes)
        for arm, method in arms(not world.classes, key != "reviews").items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                learner = Learner(Mlp(world.train[0].x.shape[1], 64), world.classes)
            fit(method, learner, data, training)
            right = [accuracy(method, learner, pool) for pool in world.unseen]
            figures[f"{key}: {arm}"] = float(np.mean(right)) * (100 if world.classes else -1)
            if arm == "D3G":
                facts, known = (torch.stack([p.about for p in pools if p.about is not None]) for pools in (world.unseen, world.train))
                with torch.no_grad():
                    relation = method.relation(learner, facts, known)
                told[key] = {"relation of unseen to trained domains": relation.tolist(), "by unseen domain": right}
    return {"arms": figures, "details": told}


def clauses(figures: dict[str, list[float]]) -> list[tuple[str, bool]]:
    """What the figures say to each clause of the criterion, and whether it is met."""
    mean = {arm: float(np.mean(values)) for arm, values in figures.items()}
    lines, degrees, texts = ({arm.partition(": ")[2]: v for arm, v in mean.items() if arm.startswith(key)} for key in ("DG", "temp", "rev"))
    gain, rival = lines["D3G"] - lines["ERM"], max(lines[arm] for arm in ("heads alike", "CORAL", "DRM"))
    best = min(degrees[arm] for arm in ("ERM", "CORAL", "heads alike"))
    alone, without = max(lines["fixed alone"], lines["learned alone"]), lines["no second loss"]
    return [
        (f"DG-15: D3G - ERM {gain:+.2f} points, - best rival {lines['D3G'] - rival:+.2f}", gain >= ABOVE and lines["D3G"] > rival),
        (f"temperatures: error of D3G {degrees['D3G']:.3f}, of the best rival {best:.3f}", degrees["D3G"] < best),
        (f"reviews: D3G - ERM {texts['D3G'] - texts['ERM']:+.2f}", texts["D3G"] - texts["ERM"] >= -LOSS),
        (
            f"DG-15: D3G - better of both relations alone {lines['D3G'] - alone:+.2f}, - without second loss {lines['D3G'] - without:+.2f}",
            min(lines["D3G"] - alone, lines["D3G"] - without) >= -ABLATION,
        ),
    ]

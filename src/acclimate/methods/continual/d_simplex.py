"""d-Simplex: learns features against a fixed simplex, so that queries of later networks still find what earlier ones indexed.

Biondi et al. 2024, equations 3 and 4, https://arxiv.org/abs/2405.02581; details as in github.com/miccunifi/iamcl2r
For search: the gallery is embedded once and never again, though the network learns on, or is replaced by a better one that was trained
against the same simplex (``arrivals`` of engines.continual.learn). Such networks are trained with ``side`` = "start", so that their
classes and those of the tasks share no vertex. Keep some rows: the paper keeps 20 of each class (``per_class`` of Memory). With
``share`` = 1 the simplex alone is left. :func:`embedded` gives what is indexed, :class:`Gallery` holds it. In the contrast, rows of the
same class are left out of the sum, as in the equation; the authors' code leaves a one in it for each (``ones``). A batch holds as many
kept rows as new ones, so 64 of each are the paper's 128. Left out: networks trained in half precision; the rate ends at 0, not at 1e-5.

>>> import torch
>>> [[round(v, 3) for v in corner] for corner in vertices(3).tolist()]
[[0.966, -0.259], [-0.259, 0.966], [-0.707, -0.707]]
>>> eye, y = torch.eye(2), torch.tensor([0, 1])
>>> [round(contrast(eye, eye, y, 1.0, ones).item(), 4) for ones in (False, True)]  # -1 + log e^0; -1 + log(e^0 + e^0)
[-1.0, -0.3069]
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...errors import AcclimateError
from ...kinds import Continual
from ...method import Setting
from ...parts.teachers import teacher_of


class DSimplex(Continual):
    """How many classes there is room for, and how closely new features follow old ones."""

    vertices: Annotated[int, Setting("classes there is room for; features have one column less (K)", 2)] = 1024
    share: Annotated[
        float, Setting("share of the loss that the labels have; the contrast with the old network has the rest (lambda)", 0, 1)
    ] = 0.1
    mu: Annotated[float, Setting("how sharp the contrast is", 0)] = 10.0
    side: Annotated[str, Setting("class 0 has the last vertex, or the first", choices=("end", "start"))] = "end"
    ones: Annotated[bool, Setting("leave a one in the contrast's sum for each row of the same class, as the authors' code")] = False
    training: ClassVar[dict[str, Any]] = {
        "optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine", "batch": 64,
    }  # fmt: skip
    exempt: ClassVar[dict[str, str]] = {
        "first_task_is_plain_training": "features are trained against the fixed simplex, which takes the head's place"
    }

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """The layer up to K - 1 columns, the simplex that is never trained, and the network that later ones stay close to."""
        if self.vertices < learner.classes:
            raise AcclimateError(f"d_simplex has {self.vertices} vertices for {learner.classes} classes; raise the setting vertices")
        projection = (
            learner.parts["projection"] if "projection" in learner.parts else nn.Linear(learner.width, self.vertices - 1, bias=False)
        )
        return {"projection": projection, "simplex": Simplex(self.vertices), "old": teacher_of(learner.featurizer, projection)}

    def before(self, learner: Any, task: Any) -> None:
        """The network the task starts from, if it was trained against the simplex: as it was before, or a replacement."""
        learner.memory["old"] = bool(learner.memory.get("trained"))
        learner.parts["old"] = teacher_of(learner.featurizer, learner.parts["projection"])

    def step(self, learner: Any, domains: Any, replay: Any = None) -> Iterator[Tensor]:
        """share x cross-entropy over all vertices + (1 - share) x contrast, over new and kept rows alike."""
        x, y = (torch.cat([getattr(batch, name) for batch in (domains, replay) if batch is not None]) for name in "xy")
        z = learner.parts["projection"](learner.features(x))
        loss = learner.loss(learner.parts["simplex"](z), self.vertices - 1 - y if self.side == "end" else y)
        if learner.memory.get("old"):
            old = learner.parts["old"](x)
            loss = self.share * loss + (1 - self.share) * contrast(old, z, y, self.mu, self.ones)
        yield loss

    def end(self, learner: Any, source: Any, target: Any) -> None:
        """From now on features mean something."""
        learner.memory["trained"] = True

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores at the vertices of the learner's classes."""
        scores = learner.parts["simplex"](learner.parts["projection"](learner.features(x)))
        return (scores.flip(1) if self.side == "end" else scores)[:, : learner.classes]


class Simplex(nn.Module):
    """Scores of features [row, K - 1] at each vertex [row, K]."""

    weight: Tensor

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("weight", vertices(count), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """W z."""
        return z @ self.weight.T


def vertices(count: int) -> Tensor:
    """Unit vectors to the corners of a regular simplex [corner, corner - 1]: all cosines are -1 / (corners - 1)."""
    n = count - 1
    corners = torch.cat([torch.eye(n, dtype=torch.float64), torch.full((1, n), (1 - (1 + n) ** 0.5) / n, dtype=torch.float64)])
    return normalize(corners - corners.mean(0)).float()


def contrast(old: Tensor, new: Tensor, y: Tensor, mu: float, ones: bool = False) -> Tensor:
    """Mean of -s_ii + log sum of exp s_ij over rows j of other classes, s_ij = mu cos(old_i, new_j): scalar (equation 4).

    A row without any of another class counts -s_ii alone.
    """
    s = mu * normalize(old) @ normalize(new).T
    same = y[:, None] == y
    if ones:
        return (s.masked_fill(same, 0.0).logsumexp(1) - s.diagonal()).mean()
    alone = same.all(1)
    return (s.masked_fill(same & ~alone[:, None], -torch.inf).logsumexp(1).masked_fill(alone, 0.0) - s.diagonal()).mean()


@torch.no_grad()
def embedded(learner: Any, x: Tensor) -> Tensor:
    """What is indexed and asked for: unit features [row, K - 1] in evaluation mode."""
    z = learner.outputs(x)[0]
    return normalize(learner.parts["projection"](z) if "projection" in learner.parts else z)


class Gallery:
    """Unit vectors as they were when their rows were indexed, and a number for each; later networks ask, nothing is indexed anew.

    >>> gallery = Gallery().add(torch.eye(2), torch.tensor([7, 9]))
    >>> gallery.find(torch.tensor([[0.6, 0.8], [0.8, -0.6]])).tolist()
    [[9], [7]]
    """

    def __init__(self) -> None:
        self.vectors, self.numbers = torch.zeros(0), torch.zeros(0, dtype=torch.long)

    def add(self, vectors: Tensor, numbers: Tensor) -> "Gallery":
        """Index more rows [row, width], each with its number [row]."""
        self.vectors = torch.cat([self.vectors.view(-1, vectors.shape[1]), vectors])
        self.numbers = torch.cat([self.numbers, numbers])
        return self

    def find(self, queries: Tensor, k: int = 1) -> Tensor:
        """Numbers of the k rows of largest cosine, the nearest first [query, k]."""
        return self.numbers[(queries @ self.vectors.T).topk(min(k, len(self.numbers)), 1).indices]

"""GUIDE: finds domains by clustering a frozen feature space, and tells the classifier of each row what its cluster is like.

Thomas & Ghadiyaram 2025, section 3, https://arxiv.org/abs/2503.06698; T and K as summaries of the paper tell, lambda and gamma ours
For pooled sources whose domains nobody noted. k-means on frozen features Psi(x) gives K pseudo-domains with centroids c_k; T carries these
to the space of the trained features Phi without gradient: kernel ridge regression from c_k to m_k, the mean of Phi over cluster k (or a
mean weighed by the kernel of Psi(x) and c_k, ``weighed``). The classifier, linear on (Phi(x), T(c_k)), is the learner's head on Phi(x)
plus a matrix on T(c_k); k is the cluster of the nearest centroid, for unseen rows too. T is made anew before the first pass over the
sources, after 1, 2, 4, 8, ... of them, or every so many. A good Psi tells domains apart but not classes: ``learner.memory["nmi"]`` has
both figures, ``parts.feature_spaces.separation`` measures any space. Psi is what ``space`` says, or a module of yours x -> [row, d] in
``learner.parts["space"]``, which never learns; the paper's is ``Inside`` (parts/feature_spaces.py) of a diffusion model, such as
test_time.dda trains (``parts["generator"]``). Rows come without augmentation that would move Psi(x), so clusters are found once.

>>> import torch
>>> means, centroids = torch.tensor([[4.0], [8.0]]), torch.tensor([[0.0], [1.0]])
>>> ridge(centroids, gamma=100.0, penalty=1.0) @ means  # far apart: half of each
tensor([[2.],
        [4.]])
>>> (ridge(centroids, gamma=0.6931472, penalty=0.5) @ means).round(decimals=3).tolist()  # kernel 1/2: G (G + I / 2)^-1
[[3.5], [5.5]]
"""

import copy
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.feature_spaces import Early, clustered, nmi
from ...parts.places import stages

PER_CLASS, MOST, EARLY = 5, 200, 2  # pseudo-domains for each class, and at most; stages that are early


class Guide(DomainGeneralization):
    """Where domains are looked for, and how they are carried to the classifier."""

    space: Annotated[
        str,
        Setting(
            "Psi, frozen as it is at the start: means and deviations of early layers' channels, the features, or the rows themselves",
            choices=("early", "features", "rows"),
        ),
    ] = "early"
    at: Annotated[tuple, Setting("names of the featurizer's early layers; none = the first two stages")] = ()
    clusters: Annotated[int, Setting("pseudo-domains (K); 0 = 5 for each class, 200 at most", 0)] = 0
    oracle: Annotated[bool, Setting("the true domains are the clusters, for comparison")] = False
    gamma: Annotated[float, Setting("width of the kernel exp(-gamma distance^2); 0 = 1 / (sum of the variances of Psi's columns)", 0)] = 0.0
    penalty: Annotated[float, Setting("ridge of the regression (lambda); 0 = the clusters' means as they are", 0)] = 1.0
    weighed: Annotated[bool, Setting("means are weighed by the kernel of a row and its centroid; off = all rows alike")] = False
    soft: Annotated[bool, Setting("unseen rows take all clusters, by the kernel; off = the nearest one")] = False
    every: Annotated[int, Setting("passes over the largest source after which T is made anew; 0 = after 1, 2, 4, 8, ...", 0)] = 0
    training: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 5e-5, "batch": 32}

    def build(self, learner: Any) -> dict[str, nn.Module]:
        """Psi, and the matrix of the classifier on T(c)."""
        beside = nn.Linear(learner.width, max(1, learner.classes), bias=False)
        if self.space == "rows" or "space" in learner.parts:
            return {"beside": beside}
        net = copy.deepcopy(learner.featurizer).requires_grad_(False)
        return {"beside": beside, "space": net if self.space == "features" else Early(net, self.at or stages(net)[:EARLY])}

    def begin(self, learner: Any, source: Any, target: Any) -> None:
        """Clusters of all rows, what each row weighs in its cluster's mean, and the matrix of the regression."""
        psi = self.psi(learner, source.x)
        seed, wanted = int(torch.randint(2**31, (1,), generator=learner.generator)), min(PER_CLASS * max(1, learner.classes), MOST)
        of = source.domain if self.oracle else clustered(psi, self.clusters or wanted, seed)
        centroids = torch.stack([psi[of == k].mean(0) for k in range(int(of.max()) + 1)])
        gamma = self.gamma or 1 / max(float(psi.var(0, unbiased=False).sum()), 1e-12)
        near = -gamma * (psi - centroids[of]).square().sum(1) if self.weighed else torch.zeros_like(psi[:, 0])
        weight = torch.zeros_like(near)
        for k in range(len(centroids)):
            weight[of == k] = near[of == k].softmax(0)
        matrix = ridge(centroids, gamma, self.penalty) if self.penalty else torch.eye(len(centroids)).to(psi)
        learner.memory |= {"of": of, "centroids": centroids, "gamma": gamma, "weight": weight, "matrix": matrix, "passes": 0}
        learner.memory["nmi"] = {"domains": nmi(of, source.domain)} | ({"classes": nmi(of, source.y)} if learner.classes else {})

    def refresh(self, learner: Any, source: Any, target: Any) -> None:
        """T(c_k) of every cluster, with the features as they are now [cluster, width]."""
        memory = learner.memory
        passes = memory["passes"]
        if passes % self.every == 0 if self.every else passes & (passes - 1) == 0:
            phi = learner.outputs(source.x)[0].float()
            means = phi.new_zeros(len(memory["centroids"]), phi.shape[1]).index_add(0, memory["of"], memory["weight"][:, None] * phi)
            memory["carried"] = memory["matrix"] @ means
        memory["passes"] = passes + 1

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """The loss of the classifier on Phi(x) and T(c)."""
        yield learner.loss(self._scores(learner, domains.x, learner.memory["carried"][learner.memory["of"][domains.rows]]), domains.y)

    def predict(self, learner: Any, x: Tensor) -> Tensor:
        """Scores by the pseudo-domain of the nearest centroid [row, class]."""
        memory = learner.memory
        apart = torch.cdist(self.psi(learner, x), memory["centroids"])
        shares = (-memory["gamma"] * apart.square()).softmax(1) if self.soft else nn.functional.one_hot(apart.argmin(1), apart.shape[1])
        return self._scores(learner, x, shares.to(memory["carried"]) @ memory["carried"])

    @torch.no_grad()
    def psi(self, learner: Any, x: Tensor) -> Tensor:
        """Psi of any number of rows [row, d]."""
        if "space" not in learner.parts:
            return x.flatten(1).float()
        space = learner.parts["space"].eval()
        return torch.cat([space(rows).flatten(1).float() for rows in x.split(learner.block)])

    def _scores(self, learner: Any, x: Tensor, carried: Tensor) -> Tensor:
        z = learner.features(x)
        return learner.head(z) + learner.parts["beside"](carried.to(z))


def ridge(centroids: Tensor, gamma: float, penalty: float) -> Tensor:
    """G (G + penalty I)^-1 with G = exp(-gamma distance^2): what regression makes of the clusters' means, at the centroids [k, k]."""
    kernel = (-gamma * torch.cdist(centroids, centroids).square()).exp()
    return torch.linalg.solve(kernel + penalty * torch.eye(len(kernel)).to(kernel), kernel)

"""MixStyle: mixes the channel statistics of rows inside the network, so that it sees styles between those it is given.

Zhou et al. 2021, section 3, https://arxiv.org/abs/2104.02008
Cheap, without weights of its own, and the usual rival of methods that change style. Labels stay as they are. Images and series have
statistics of their own in each row; for vectors they are those of the row's domain, which then has to have several rows in a batch.
``mix`` = "domains" takes the other row from another domain, "random" from anywhere in the batch.

>>> import torch
>>> from acclimate.engines.shift import Batch, Learner
>>> learner = Learner(torch.nn.Identity(), 1, width=1, head=torch.nn.Identity())
>>> batch = Batch(torch.tensor([[1.0], [3.0], [0.0], [8.0]]), None, None, None, [2, 2])
>>> method = Mixstyle(probability=1.0, alpha=1e9, mix="domains")  # half way: mean 3, deviation 2.5
>>> method.mixed(learner, batch.x, batch).flatten().round(decimals=2).tolist()
[0.5, 5.5, 0.5, 5.5]
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor

from ...kinds import DomainGeneralization
from ...method import Setting
from ...parts.mixing import beta, paired
from ...parts.places import passing, stages
from ...parts.style import mixstyle


class Mixstyle(DomainGeneralization):
    """How often, how evenly, with whom and where."""

    probability: Annotated[float, Setting("how likely a place mixes in a step (p)", 0, 1)] = 0.5
    alpha: Annotated[float, Setting("both parameters of the Beta distribution that the share is drawn from", 0)] = 0.1
    mix: Annotated[str, Setting("rows meet rows of another domain, or any row", choices=("domains", "random"))] = "random"
    at: Annotated[tuple, Setting("names of the featurizer's layers after which rows mix; none = every stage but the last")] = ()

    def step(self, learner: Any, domains: Any) -> Iterator[Tensor]:
        """Mean loss over all rows, mixed on their way."""
        names = self.at or stages(learner.featurizer)
        with passing(learner.featurizer, names, lambda _, x: self.mixed(learner, x, domains)):
            scores = learner(domains.x)
        yield learner.loss(scores, domains.y)

    def mixed(self, learner: Any, x: Tensor, domains: Any) -> Tensor:
        """x [row, channel, *place] in styles between rows, or as it is."""
        draw = learner.generator
        if torch.rand((), generator=draw) >= self.probability:
            return x
        if self.mix == "domains" and len(domains.sizes) > 1:
            other, _ = paired(domains.sizes, draw)
        else:
            other = torch.randperm(len(x), generator=draw)
        return mixstyle(x, other, beta(self.alpha, len(x), draw), domains.sizes)

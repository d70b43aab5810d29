"""Dam: teaches a merged network, on each model's own text, to predict as that model does, and pulls the models onto different columns.

Gauthier-Caron et al. 2024, section 3, https://arxiv.org/abs/2410.08371 , with the options of https://github.com/arcee-ai/DAM
The loss of the strategy merging.dam, on networks of acclimate.models.dam; on others only the first three terms have meaning.
Per token: T^2 KL(teacher || merged) at temperature T, the squared error of the log-probabilities of the teacher's K likeliest tokens,
T^2 times the entropy of the merged model. Per step: the mean cosine between the coefficients of two models (over layers and pairs), the
L1 and L2 norms of the coefficients, their overlap sum min(|a|, |b|), the last also weighted by sin^2(2 theta) of the angle between both
models' changes to the column: columns that change alike, or have nothing to do with each other, may overlap. The authors' code adds
cosines up over the layers where the mean is taken here, and divides its KL by the number of rows as well; its errors are of raw logits,
which a stored teacher does not keep. Its L1 and L2 terms (1e-6), overlap (1e-5), squared error (1) and entropy (0.1) are off by default.
Coefficients of biases are free.

>>> import torch
>>> logits, labels = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[0]])
>>> ids, logprobs = torch.tensor([[[0, 1]]]), torch.tensor([[[0.5, 0.5]]]).log()
>>> given = {"coefficients.w": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}
>>> Dam(similarity=0.0).loss(logits, labels, ids, logprobs)  # 4 (log 0.5 - (log 0.731 + log 0.269) / 2)
tensor(0.4805)
>>> Dam(similarity=1.0, overlap=1.0).penalty(given)  # 1 / sqrt 2 + 1
tensor(1.7071)
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Annotated

import torch
from torch import Tensor

from ...errors import AcclimateError
from ...kinds import Objective
from ...method import Setting
from ...parts.losses import teacher_divergence


class Dam(Objective):
    """Mean per token in nats, plus the penalties."""

    temperature: Annotated[float, Setting("softens both distributions (the paper's T)", 1e-3)] = 2.0
    kl: Annotated[float, Setting("weight of the divergence from the teacher", 0)] = 1.0
    mse: Annotated[float, Setting("weight of the squared error of log-probabilities", 0)] = 0.0
    entropy: Annotated[float, Setting("weight of the merged model's entropy", 0)] = 0.0
    similarity: Annotated[float, Setting("weight of the cosine between coefficients of two models", 0)] = 0.01
    l1: Annotated[float, Setting("weight of the coefficients' L1 norm", 0)] = 0.0
    l2: Annotated[float, Setting("weight of the coefficients' L2 norm", 0)] = 0.0
    overlap: Annotated[float, Setting("weight of the overlap of two models' coefficients", 0)] = 0.0
    by_angle: Annotated[bool, Setting("whether overlap counts by sin^2(2 theta) of the models' changes")] = False

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher_ids: Tensor,
        teacher_logprobs: Tensor,
        trainable: Mapping[str, Tensor] | None = None,
        angles: Mapping[str, Tensor] | None = None,
        items: Tensor | float | None = None,
    ) -> Tensor:
        """logits [batch, token, vocabulary], labels [batch, token], the teacher's two [batch, token, K] -> scalar."""
        kept = labels != -100
        rows, ids, taught = logits[kept], teacher_ids[kept], teacher_logprobs[kept]
        total = self.kl * teacher_divergence(rows, ids, taught, self.temperature)
        if self.mse:
            own = rows.float().log_softmax(1).gather(1, ids)
            total = total + self.mse * (own - taught.float()).square().mean(1).sum()
        if self.entropy:
            soft = (rows.float() / self.temperature).log_softmax(1)
            total = total - self.entropy * self.temperature**2 * (soft.exp() * soft).sum()
        number = kept.sum()
        if trainable:
            total = total + number * self.penalty(trainable, angles)  # a micro-batch bears its share of what is paid once a step
        return total / (number.clamp(min=1) if items is None else items)

    def penalty(self, trainable: Mapping[str, Tensor], angles: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the coefficients {name: [model, column]} cost: scalar. Raises AcclimateError if angles are wanted and not known."""
        if self.overlap and self.by_angle and not angles:
            raise AcclimateError("dam: by_angle needs a network that knows its models' changes; train one of merging.dam, or leave it off")
        cosines, total = [], torch.zeros(())
        for name, sets in trainable.items():
            if name.endswith("bias"):
                continue
            total = total + self.l1 * sets.abs().sum() + self.l2 * sets.norm(dim=1).sum()
            pairs = list(combinations(range(len(sets)), 2))
            cosines += [torch.cosine_similarity(sets[a], sets[b], dim=0) for a, b in pairs]
            if self.overlap:
                shared = torch.stack([torch.minimum(sets[a].abs(), sets[b].abs()) for a, b in pairs])  # [pair, column]
                if self.by_angle and angles:
                    shared = shared * (2 * angles[name]).sin().square()
                total = total + self.overlap * shared.sum(1).mean()
        return total + self.similarity * torch.stack(cosines).mean() if cosines else total

"""Reverse validation: what adaptation is worth without labels of the target, measured on the way back to the source.

Ganin et al. 2016, section 5.1.2, https://arxiv.org/abs/1505.07818; first Zhong et al. 2010, https://doi.org/10.1007/978-3-642-15939-8_35
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...errors import AcclimateError
from .learner import Learner
from .loop import Training, accuracy, fit, predict
from .pools import Data

HELD = 0.1  # share of the target that chooses the weights of the way back


def reverse_risk(method: Any, learner: Learner, data: Data, training: Training | None = None) -> float:
    """Share of held-out source rows that a learner takes wrongly after it adapted back, from the target as ``learner`` labels it.

    ``learner`` was trained by ``method`` on ``data`` before, and stays as it is. The way back starts from its featurizer and head; what the
    method builds is made anew, as source and target change places. A tenth of the self-labelled target chooses the weights. Among
    settings, rates or networks the lowest risk is to be preferred: no label of the target was looked at.
    """
    if data.target is None or not data.labelled or not data.validation:
        raise AcclimateError("reverse validation needs labelled sources, held-out rows of them (validation) and a target")
    training = training or Training(**method.training)
    target = data.target
    said = predict(method, learner, target.x, learner.place(target.name, target.about)).argmax(1)
    if method.open:  # rows of no known class have nothing to teach on the way back
        known = (said < learner.classes).nonzero()[:, 0]
        target, said = target.select(known), said[known]
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(training.seed))
    held = max(1, round(HELD * len(target)))
    labelled = replace(target, y=said)
    hidden = [pool.unlabelled() for pool in data.labelled]
    back = Data(
        [labelled.select(order[held:])], hidden[0], [labelled.select(order[:held])], data.classes, others=hidden[1:],
    )  # fmt: skip
    again = copy.deepcopy(learner)
    again.parts, again.memory = nn.ModuleDict(), {}
    fit(method, again, back, training)
    return 1 - sum(accuracy(method, again, pool) for pool in data.validation) / len(data.validation)

"""The shift engine: methods of domain adaptation and generalization, whose step is a sequence of (loss, who learns), on any modality."""

from .alone import alone
from .learner import Learner, Place
from .loop import Fitted, Training, accuracy, fit, predict, right
from .pools import Batch, Data, Pool, Sampler, whole
from .reverse import reverse_risk

__all__ = [
    "Batch",
    "Data",
    "Fitted",
    "Learner",
    "Place",
    "Pool",
    "Sampler",
    "Training",
    "accuracy",
    "alone",
    "fit",
    "predict",
    "reverse_risk",
    "right",
    "whole",
]

"""Classes that no source has: "unknown" as a last column of the scores, the H-score, and how hard it is to tell unknown rows.

Fu et al. 2020, equation 8 (H-score), https://doi.org/10.1007/978-3-030-58555-6_34; Kim et al. 2023, section 3 (PDR, DDS),
https://arxiv.org/abs/2310.14849"""

import numpy as np
import torch
from torch import Tensor

UNKNOWN = "unknown"


def with_unknown(scores: Tensor, sure: Tensor, threshold: float | Tensor) -> Tensor:
    """Scores [row, class] and how sure each row is [row] -> [row, class + 1]: the last is the largest exactly where sure < threshold.

    It lies as far below the best class as the row is sure beyond the threshold, so that other thresholds can be tried afterwards.

    >>> with_unknown(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.tensor([0.75, 0.25]), 0.5).argmax(1).tolist()
    [1, 2]
    """
    return torch.cat([scores, (scores.amax(1) + threshold - sure)[:, None]], 1)


def unit(values: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Values [row] moved and stretched to 0 to 1; the ends are their own unless given, and what lies beyond them is cut.

    >>> unit(torch.tensor([2.0, 3.0, 6.0])).tolist()
    [0.0, 0.25, 1.0]
    """
    low, high = values.min() if low is None else low, values.max() if high is None else high
    return ((values - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def harmonic(common: float, unknown: float) -> float:
    """2 a b / (a + b): high only where both are.

    >>> harmonic(0.5, 1.0)
    0.6666666666666666
    """
    return 2 * common * unknown / (common + unknown) if common + unknown else 0.0


def h_score(right: Tensor, y: Tensor, classes: int) -> dict[str, float]:
    """Of rows with labels y [row], ``classes`` standing for unknown, and which were right [row]: both accuracies and the H-score.

    The accuracy on common classes is the mean over these classes, each counting alike, as the testbed counts.

    >>> h_score(torch.tensor([1, 0, 1, 1, 0]), torch.tensor([0, 0, 1, 2, 2]), 2)  # 0: a half, 1: all; unknown: a half
    {'common': 0.75, 'unknown': 0.5, 'h_score': 0.6}
    """
    hits = right.double()
    by_class = [float(hits[y == k].mean()) for k in y.unique().tolist() if k != classes]
    common = float(np.mean(by_class)) if by_class else 0.0
    unknown = float(hits[y == classes].mean()) if bool((y == classes).any()) else 0.0
    return {"common": common, "unknown": unknown, "h_score": harmonic(common, unknown)}


def reject_curve(scores: Tensor, y: Tensor, points: int = 11) -> list[dict[str, float]]:
    """Both accuracies and the H-score where the least sure share of all rows is answered "unknown": shares from 0 to 1.

    ``scores`` [row, class + 1] end in the column "unknown"; how far the best class lies above it is how sure a row is.

    >>> scores = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    >>> [point["h_score"] for point in reject_curve(scores, torch.tensor([0, 1, 2, 2]), points=3)]
    [0.0, 1.0, 0.0]
    """
    classes = scores.shape[1] - 1
    best, said = scores[:, :classes].max(1)
    order = (best - scores[:, classes]).argsort()
    found = []
    for share in np.linspace(0, 1, points).tolist():
        answer = said.clone()
        answer[order[: round(share * len(y))]] = classes
        found.append({"rejected": share, **h_score(answer == y, y, classes)})
    return found


def performance_drop(source: float, target: float) -> float:
    """PDR: what share of a source model's accuracy on the source is lost on the target's common classes.

    >>> performance_drop(0.5, 0.25)
    0.5
    """
    return (source - target) / source if source else 0.0


def distinction_difficulty(sure: Tensor, unknown: Tensor) -> float:
    """DDS: 1 - area under the ROC curve of how sure a source model is [row], known rows against unknown ones [row] (true).

    >>> round(distinction_difficulty(torch.tensor([0.9, 0.4, 0.5, 0.1]), torch.tensor([False, False, True, True])), 2)
    0.25
    """
    from sklearn.metrics import roc_auc_score

    return 1 - float(roc_auc_score((~unknown).cpu().numpy(), sure.detach().double().cpu().numpy()))

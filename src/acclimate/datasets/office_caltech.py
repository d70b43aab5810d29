"""Office-Caltech: objects of ten kinds in shop pictures, web photographs and two cameras' views, as counts of 800 visual words.

Gong et al. 2012 (geodesic flow kernel, CVPR); SURF descriptors coded by 800 visual words, in the files of github.com/chamwen/JPDA;
licence not stated. Each domain loads as ``acclimate.domain.arrays.Arrays``: x [row, 800] in fp32, y [row], classes by name. amazon 958
rows, caltech 1,123, dslr 157, webcam 295.

What for: the twelve pairs on which shallow domain adaptation is compared.

x holds raw counts. The protocol of the published tables (Gong et al. 2012; Long et al. 2013, joint distribution adaptation) divides a
row by its sum, then gives every feature mean 0 and standard deviation 1 (n - 1) within its own domain, source and target each by
itself: ``standardised`` does both. A nearest neighbour (Euclidean, all source rows) then gives the published accuracies of all 12
pairs, such as caltech to amazon 23.70 %, caltech to webcam 25.76 %, amazon to caltech 26.00 %, dslr to webcam 63.39 %.

Traps. Figures on deep features (DeCAF, 4,096) are far higher and belong to another table. dslr and webcam show the same objects. Some
protocols draw 20 source rows per class (8 for dslr and webcam) instead of all. No row is without counts, but some features never occur
in a domain: ``standardised`` leaves these at 0. Rows are sorted by class. The files number classes from 1 without names: these were
matched by their counts to those of Office-31.
"""

from typing import Any

import numpy as np

from ..domain.arrays import Arrays
from . import known_domain, locate

DOMAINS = ("amazon", "caltech", "dslr", "webcam")
CLASSES = (
    "backpack", "bike", "calculator", "headphones", "keyboard", "laptop", "monitor", "mouse", "mug", "projector",
)  # fmt: skip
CARD: dict[str, Any] = {
    "source": "github.com/chamwen/JPDA, data/Office",
    "licence": "not stated; research dataset",
    "size": "4 domains of 958, 1,123, 157 and 295 rows, 10 classes; 0.3 MB",
    "columns": {"x": "counts of 800 visual words", "y": "class number"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """Where the pictures come from."""
    return list(DOMAINS)


def load(domain: str) -> Arrays:
    """The raw counts of one domain."""
    known_domain("office_caltech", domain, DOMAINS)
    from scipy.io import loadmat

    stored = loadmat(locate(f"other/office_caltech10/{domain}_SURF_L10.mat"))
    x, y = stored["fts"].astype(np.float32), stored["labels"].ravel().astype(np.int64) - 1
    return Arrays(f"office_caltech/{domain}", x, y, list(CLASSES), CARD["source"], CARD["licence"])


def standardised(x: np.ndarray) -> np.ndarray:
    """Counts [row, feature] of one domain as the published tables use them: rows sum to 1, then each feature has mean 0, deviation 1.

    >>> standardised(np.array([[1, 3, 0], [2, 2, 0], [3, 1, 0]])).round(3).tolist()
    [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]
    """
    shares = np.asarray(x, np.float64)
    shares = shares / shares.sum(1, keepdims=True)
    deviation = shares.std(0, ddof=1)
    return ((shares - shares.mean(0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)

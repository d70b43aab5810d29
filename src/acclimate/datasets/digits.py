"""Digits: handwritten digits of MNIST, USPS and scikit-learn's bundled set, the classic pair for adapting from one hand to another.

MNIST (LeCun et al. 1998) and USPS (Hull 1994) in the cut of github.com/chamwen/JPDA (2,000 and 1,800 images of 16 x 16); MNIST's test part
(10,000 images of 28 x 28) from github.com/kelas/mnist; scikit-learn's digits (1,797 of 8 x 8) come with the package. Licences are not
stated for the first three; scikit-learn's is CC BY 4.0. Each domain loads as ``acclimate.domain.arrays.Arrays``: x [row, 1, side, side]
in fp32 from 0 to 1, y [row].

What for: domain adaptation both ways; a first task for small image networks.

Traps. Sides differ: 16 for mnist and usps, 28 for mnist_test, 8 for sklearn; resize before mixing. ``mnist`` is a part of MNIST's training
images, so it shares no image with ``mnist_test``, but it is the same hand.
"""

import gzip
from typing import Any

import numpy as np

from ..domain.arrays import Arrays
from . import known_domain, locate

DOMAINS = ("mnist", "usps", "mnist_test", "sklearn")
FOLDER = "other/digits_mnist_usps"
CARD: dict[str, Any] = {
    "source": "github.com/chamwen/JPDA; github.com/kelas/mnist; scikit-learn",
    "licence": "not stated (MNIST, USPS); CC BY 4.0 (scikit-learn's)",
    "size": "mnist 2,000, usps 1,800, mnist_test 10,000, sklearn 1,797 images; 3 MB",
    "columns": {"x": "image [1, side, side], 0 to 1", "y": "the digit"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """The hands."""
    return list(DOMAINS)


def load(domain: str) -> Arrays:
    """The images of one set."""
    known_domain("digits", domain, DOMAINS)
    if domain == "sklearn":
        from sklearn.datasets import load_digits

        bundled = load_digits()
        x, y = bundled.images / 16, bundled.target
    elif domain == "mnist_test":
        x, y = _idx("t10k-images-idx3-ubyte.gz", 16) / 255, _idx("t10k-labels-idx1-ubyte.gz", 8)
        x = x.reshape(len(y), 28, 28)
    else:
        with np.load(locate(f"{FOLDER}/mnist2000_usps1800_16x16.npz"), allow_pickle=False) as stored:
            x, y = stored[f"{domain}_x"].reshape(-1, 16, 16), stored[f"{domain}_y"].astype(np.int64) - 1
    classes = [str(digit) for digit in range(10)]
    return Arrays(f"digits/{domain}", x[:, None].astype(np.float32), y.astype(np.int64), classes, CARD["source"], CARD["licence"])


def _idx(name: str, header: int) -> np.ndarray:
    """The bytes of an idx file after its header."""
    with gzip.open(locate(f"{FOLDER}/{name}")) as handle:
        return np.frombuffer(handle.read()[header:], np.uint8)

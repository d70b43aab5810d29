"""PACS: photographs, art paintings and cartoons of six kinds of things, for learning that must work on a style it never saw.

Li et al. 2017, https://arxiv.org/abs/1710.03077 ; a cut of the copy in github.com/MachineLearning2020/Homework3-PACS, licence not stated:
720 images per domain of 32 x 32 in colour, 120 per class; the class person and the domain sketch are left out. Each domain loads as
``acclimate.domain.arrays.Arrays``: x [row, 3, 32, 32] in fp32 from 0 to 1, y [row], classes dog, elephant, giraffe, guitar, horse, house.

What for: domain generalization and adaptation of images, leave one domain out.

Traps. Six of seven classes and three of four domains: figures do not compare with the paper's. Images were shrunk to 32 x 32. Rows are
sorted by class, so shuffle before cutting.
"""

from typing import Any

import numpy as np

from ..domain.arrays import Arrays
from . import known_domain, locate

DOMAINS = ("photo", "art_painting", "cartoon")
CARD: dict[str, Any] = {
    "source": "github.com/MachineLearning2020/Homework3-PACS",
    "licence": "not stated; research dataset",
    "size": "3 domains of 720 images, 32 x 32, 6 classes; 7 MB",
    "columns": {"x": "image [3, 32, 32], 0 to 1", "y": "class number"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """The styles."""
    return list(DOMAINS)


def load(domain: str) -> Arrays:
    """The images of one style."""
    known_domain("pacs", domain, DOMAINS)
    with np.load(locate(f"other/pacs6/{domain}_32.npz"), allow_pickle=False) as stored:
        x, y, classes = stored["x"], stored["y"], stored["classes"]
    images = np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    return Arrays(f"pacs/{domain}", images, y.astype(np.int64), [str(name) for name in classes], CARD["source"], CARD["licence"])

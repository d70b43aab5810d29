"""Bearing: vibration of a motor whose bearing is damaged in nine ways, under loads of 0, 1 and 2 horsepower.

Case Western Reserve University's bearing data centre, drive-end sensor at 12 kHz, in the files of github.com/XiongMeijing/CWRU-1;
licence not stated. Each load is a domain and loads as ``acclimate.domain.arrays.Arrays``: x [row, 1, 1024] in fp32 (85 ms of
acceleration in g), y [row]; 60 windows per class, 540 rows. Classes are the damaged part and the damage's diameter: inner race, ball,
outer race, each 7, 14 and 21 thousandths of an inch.

What for: fault diagnosis that must hold under another load, load = domain.

Traps. The healthy class is left out, so figures do not compare with tables of ten classes. All windows of a class come from one
recording of one bearing: rows are sorted by class and within it by time; split by time, never at random. Load 3 is not in this cut.
Values were rounded to fp16. Amplitude alone tells some classes apart; the speed falls from 1,797 to 1,750 rpm as the load grows, which
moves every fault's frequency.
"""

from typing import Any

import numpy as np

from ..domain.arrays import Arrays
from . import known_domain, locate

LOADS = ("load_0", "load_1", "load_2")
PARTS = {"IR": "inner_race", "B": "ball", "OR": "outer_race"}
CARD: dict[str, Any] = {
    "source": "github.com/XiongMeijing/CWRU-1, Data/12k_DE",
    "licence": "not stated; public data of Case Western Reserve University",
    "size": "3 loads of 540 windows of 1,024 samples, 9 classes; 3 MB",
    "columns": {"x": "acceleration, 1,024 samples at 12 kHz", "y": "damaged part and size"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """The loads in horsepower."""
    return list(LOADS)


def load(domain: str) -> Arrays:
    """The windows under one load."""
    known_domain("bearing", domain, LOADS)
    with np.load(locate(f"other/cwru_bearing/load{domain[-1]}hp_12kDE.npz"), allow_pickle=False) as stored:
        x, y, codes = stored["x"].astype(np.float32)[:, None], stored["y"].astype(np.int64), stored["classes"].tolist()
    stems = [code.partition("@")[0] for code in codes]  # IR007, B014, OR021@6: part, diameter and place on the clock
    classes = [f"{PARTS[stem.rstrip('0123456789')]}_{stem[-3:]}" for stem in stems]
    return Arrays(f"bearing/{domain}", x, y, classes, CARD["source"], CARD["licence"])

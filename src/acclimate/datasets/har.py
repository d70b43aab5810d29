"""HAR: what ten people do with a smartphone at the waist, six activities as windows of 2.56 seconds of nine signals.

Anguita et al. 2013, human activity recognition (UCI), in the files of AdaTime (Ragab et al. 2023, https://arxiv.org/abs/2203.08321;
github.com/emadeldeen24/AdaTime, MIT; the data are given as they are, no commercial use). Each person loads as
``acclimate.domain.arrays.Arrays``: x [row, 9, 128] in fp32 at 50 Hz, y [row]. Signals in order: body acceleration x y z and angular
velocity x y z, then total acceleration x y z (g, rad/s).

Splits as given, a domain each: ``subject_02`` holds 201 to 260 windows to learn from, ``subject_02_test`` 87 to 112 to test on.

What for: time series that adapt from person to person, person = domain.

Traps. Windows of the source overlap by half and AdaTime split them at random: five of six test windows share half their samples with a
training window of the same person, so in-domain accuracy flatters; score across persons. Ten of thirty persons. Values were rounded to
fp16. Total acceleration holds gravity (about 1 g along x, 0 when lying), which separates lying from the rest.
"""

from typing import Any

import numpy as np

from ..domain.arrays import Arrays
from . import known_domain, locate

SUBJECTS = ("02", "06", "07", "09", "11", "12", "13", "16", "18", "23")
CLASSES = ("walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "lying")
CARD: dict[str, Any] = {
    "source": "github.com/emadeldeen24/AdaTime, data/HAR",
    "licence": "MIT (repository); UCI HAR: as it is, no commercial use",
    "size": "10 people, 3,288 windows of 9 x 128, 6 classes; 7 MB",
    "columns": {"x": "9 signals of 128 samples at 50 Hz", "y": "activity"},
    "form": "arrays",
    "hub": None,
}


def domains() -> list[str]:
    """The people: windows to learn from, then windows to test on."""
    return [f"subject_{number}{split}" for split in ("", "_test") for number in SUBJECTS]


def load(domain: str) -> Arrays:
    """The given train or test windows of one person."""
    known_domain("har", domain, domains())
    split = "test" if domain.endswith("_test") else "train"
    where = f"other/har_uci_subjects/{domain.removesuffix('_test')}.npz"
    with np.load(locate(where), allow_pickle=False) as stored:
        x, y = stored[f"x_{split}"].astype(np.float32), stored[f"y_{split}"].astype(np.int64)
    origins = [f"{where}:{split}:{row + 1}" for row in range(len(y))]
    return Arrays(f"har/{domain}", x, y, list(CLASSES), CARD["source"], CARD["licence"], origins)

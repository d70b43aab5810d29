"""Spoken digits: single English digits said by four people, the smallest real speech there is.

The free spoken digit dataset, github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0: repetitions 0 to 19 of 50, by the speakers
george, jackson, theo and yweweler, 200 recordings each at 8 kHz. Each speaker loads as ``acclimate.domain.speech.Speech``: waves in
fp32 from -1 to 1, words (zero ... nine), takes (0 to 19).

What for: speech recognition that is adapted to new voices, speaker = domain. Join recordings (``joined``) for sequences of digits.

Traps. Split by ``takes`` (``of_takes``), before joining, or a recording stands in two splits. Silence around the words was cut off, so
joined digits follow each other at once. Two of the six speakers of the whole set are not in this cut.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from ..domain.speech import Speech
from . import known_domain, locate

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "theo", "yweweler")
CARD: dict[str, Any] = {
    "source": "github.com/Jakobovski/free-spoken-digit-dataset",
    "licence": "CC BY-SA 4.0",
    "size": "4 speakers of 200 recordings, 10 digits x 20 repetitions, 8 kHz; 4 MB",
    "columns": {"waves": "samples in fp32, -1 to 1", "words": "the digit", "takes": "number of the repetition, 0 to 19"},
    "form": "speech",
    "hub": None,
}


def domains() -> list[str]:
    """The speakers."""
    return list(SPEAKERS)


def load(domain: str) -> Speech:
    """The recordings of one speaker."""
    import torch

    known_domain("spoken_digits", domain, SPEAKERS)
    with np.load(locate(f"other/fsdd_speech/{domain}.npz"), allow_pickle=False) as stored:
        audio, offsets, rate = stored["audio"], stored["offsets"].tolist(), int(stored["rate"])
        words = [(DIGITS[digit],) for digit in stored["y"].tolist()]
        takes = stored["take"].tolist()
    samples = torch.from_numpy(audio.astype(np.float32) / np.float32(32768))
    waves = [samples[first:last] for first, last in pairwise(offsets)]
    return Speech(f"spoken_digits/{domain}", waves, words, rate, CARD["source"], CARD["licence"], takes)

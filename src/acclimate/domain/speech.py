"""Recorded speech with the words that were said, as experiments and engines pass it on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import AcclimateError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Speech:
    """Recordings of one domain: waves [sample] in fp32, -1 to 1, at ``rate`` samples a second, and the words of each."""

    name: str
    waves: "Sequence[Tensor]" = field(repr=False)
    words: Sequence[tuple[str, ...]] = field(repr=False)
    rate: int
    source: str = ""
    licence: str = ""
    takes: Sequence[int] = field(default=(), repr=False)  # which repetition each recording is, where that is known

    def __post_init__(self) -> None:
        if len(self.waves) != len(self.words):
            raise AcclimateError(f"{self.name} has {len(self.waves)} recordings but words for {len(self.words)}; give one list for each")

    def __len__(self) -> int:
        return len(self.waves)

    def select(self, rows: Iterable[int]) -> "Speech":
        """Some recordings by number."""
        chosen = list(rows)
        takes = [self.takes[row] for row in chosen] if self.takes else ()
        waves, words = [self.waves[row] for row in chosen], [self.words[row] for row in chosen]
        return Speech(self.name, waves, words, self.rate, self.source, self.licence, takes)

    def of_takes(self, first: int, last: int) -> "Speech":
        """The recordings whose repetition is from ``first`` up to before ``last``: no recording stands in two such parts."""
        return self.select(row for row, take in enumerate(self.takes) if first <= take < last)

    def joined(self, count: int, shortest: int, longest: int, seed: int) -> "Speech":
        """``count`` new recordings of ``shortest`` to ``longest`` of these, drawn at random and put one after the other."""
        import torch

        if not len(self):
            raise AcclimateError(f"{self.name} has no recordings to join")
        draw = np.random.default_rng(seed)
        waves, words = [], []
        for _ in range(count):
            rows = draw.integers(len(self), size=int(draw.integers(shortest, longest + 1)))
            waves.append(torch.cat([self.waves[row] for row in rows]))
            words.append(tuple(word for row in rows for word in self.words[row]))
        return Speech(self.name, waves, words, self.rate, self.source, self.licence)

    @staticmethod
    def together(name: str, parts: "Sequence[Speech]") -> "Speech":
        """All recordings of several domains as one."""
        rates = {part.rate for part in parts}
        if len(rates) != 1:
            raise AcclimateError(f"{name}: recordings at {', '.join(map(str, sorted(rates)))} Hz do not go together; resample them")
        waves, words = [wave for part in parts for wave in part.waves], [said for part in parts for said in part.words]
        return Speech(name, waves, words, rates.pop(), parts[0].source, parts[0].licence)

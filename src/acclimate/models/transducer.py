"""A small speech transducer: a Conformer encoder, a prediction network and a joint network, from recordings to words.

Graves 2012, https://arxiv.org/abs/1211.3711 (transducer); Gulati et al. 2020, https://arxiv.org/abs/2005.08100 (Conformer). Left out of the
latter: relative positions (a fixed sinusoid is added instead) and its sizes; the prediction network is one LSTM layer.
Modules that adapters stand behind: ``encoder.blocks.<n>``, ``prediction`` and ``joint.input``, all of one width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ..errors import AcclimateError, nearest
from ..parts.positions import sinusoids
from ..parts.speech import log_mel, mel_filters
from ..parts.transducer import transducer_loss
from .stored import Stored

BLANK = 0
Rows = tuple[Tensor, Tensor]  # padded [row, place, ...] and how many places of each row are real [row]


class Transducer(Stored):
    """Log-mel features [row, frame, band] and the words said so far [row, symbol] -> scores [row, frame / 4, symbol + 1, word + 1].

    ``words`` are what it can hear, numbered from 1; 0 is the blank. ``settings`` makes another one like it.
    """

    title = "transducer"

    def __init__(
        self,
        words: Sequence[str],
        width: int = 64,
        blocks: int = 3,
        heads: int = 4,
        bands: int = 40,
        rate: int = 8000,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.settings = {
            "words": list(words), "width": width, "blocks": blocks, "heads": heads, "bands": bands, "rate": rate, "dropout": dropout,
        }  # fmt: skip
        self.words, self.width, self.rate = tuple(words), width, rate
        self.number = {word: place for place, word in enumerate(self.words, 1)}
        self.register_buffer("filters", mel_filters(bands, 256 if rate <= 10_000 else 512, rate), persistent=False)
        self.encoder = Encoder(bands, width, blocks, heads, dropout)
        self.prediction = Prediction(len(words) + 1, width, dropout)
        self.joint = Joint(width, len(words) + 1)

    def features(self, wave: Tensor) -> Tensor:
        """Log-mel features of one recording at the model's own rate [sample] -> [frame, band]."""
        return log_mel(wave.to(self.filters), self.filters, self.rate)  # type: ignore[arg-type]

    def symbols(self, said: Sequence[str]) -> Tensor:
        """The numbers of some words [symbol]. Raises AcclimateError for a word that it cannot hear."""
        for word in said:
            if word not in self.number:
                raise AcclimateError(f"the transducer has no word {word!r}{nearest(word, self.number)}; it hears {', '.join(self.words)}")
        return torch.tensor([self.number[word] for word in said], dtype=torch.long)

    def forward(self, features: Tensor, frames: Tensor, targets: Tensor) -> Rows:
        """Scores of every node of the lattice, and how many encoded frames each row has."""
        heard, frames = self.encoder(features, frames)
        before = functional.pad(targets, (1, 0), value=BLANK)  # the blank also stands for the start
        return self.joint(heard, self.prediction(before)[0]), frames

    @torch.no_grad()
    def hear(self, features: Tensor, frames: Tensor, most: int = 3) -> list[tuple[str, ...]]:
        """Greedy decoding of a batch: at each frame the likeliest symbol, words until a blank, at most ``most`` words a frame."""
        heard, frames = self.encoder(features, frames)
        rows = len(heard)
        last = torch.full((rows, 1), BLANK, device=heard.device)
        before, state = self.prediction(last)
        found: list[list[str]] = [[] for _ in range(rows)]
        for t in range(heard.shape[1]):
            going = t < frames
            for _ in range(most):
                best = self.joint(heard[:, t : t + 1], before)[:, 0, 0].argmax(-1)
                going = going & (best != BLANK)
                if not going.any():
                    break
                after, moved = self.prediction(best[:, None], state)
                before = torch.where(going[:, None, None], after, before)
                state = tuple(torch.where(going[None, :, None], new, old) for new, old in zip(moved, state, strict=True))
                for row in going.nonzero()[:, 0].tolist():
                    found[row].append(self.words[int(best[row]) - 1])
        return [tuple(words) for words in found]


def loss_of(net: Any, features: Tensor, frames: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Minus log-probability of each row's words [row], under a transducer or one with adapters beside its layers."""
    logits, frames = net(features, frames, targets)
    return transducer_loss(logits, targets, frames, lengths, BLANK)


def padded(rows: Sequence[Tensor]) -> Rows:
    """Rows of different lengths as one tensor, with their lengths."""
    return pad_sequence(list(rows), batch_first=True), torch.tensor([len(row) for row in rows])


class Encoder(nn.Module):
    """[row, frame, band] -> [row, frame / 4, width]: two convolutions of stride 2, then Conformer blocks."""

    def __init__(self, bands: int, width: int, blocks: int, heads: int, dropout: float):
        super().__init__()
        self.first, self.second = nn.Conv1d(bands, width, 5, 2, 2), nn.Conv1d(width, width, 5, 2, 2)
        self.blocks = nn.ModuleList([ConformerBlock(width, heads, dropout) for _ in range(blocks)])

    def forward(self, features: Tensor, frames: Tensor) -> Rows:
        """Encoded frames, and how many each row has."""
        h = features
        for layer in (self.first, self.second):
            h = (h * real(frames, h.shape[1])[..., None]).mT
            h, frames = functional.silu(layer(h)).mT, (frames + 1) // 2
        h = h + sinusoids(h.shape[1], h.shape[2], h.device)
        inside = real(frames, h.shape[1])
        for block in self.blocks:
            h = block(h, inside)
        return h, frames


class ConformerBlock(nn.Module):
    """Half a feed-forward part, self-attention, a convolution with batch-norm, half a feed-forward part, each beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.before, self.after = _feed_forward(width, dropout), _feed_forward(width, dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.convolution = Convolution(width, dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, inside: Tensor) -> Tensor:
        """[row, frame, width]; ``inside`` says which frames are real [row, frame]."""
        h = h + 0.5 * self.before(h)
        own = self.attention_norm(h)
        h = h + self.attention(own, own, own, key_padding_mask=~inside, need_weights=False)[0]
        h = h + self.convolution(h, inside)
        return self.norm(h + 0.5 * self.after(h))


class Convolution(nn.Module):
    """A gated pointwise convolution, one along time for each channel, batch-norm over the real frames, and a pointwise one."""

    def __init__(self, width: int, dropout: float, kernel: int = 9):
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.along = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.mix, self.dropout = nn.Linear(width, width), nn.Dropout(dropout)

    def forward(self, h: Tensor, inside: Tensor) -> Tensor:
        """[row, frame, width] -> what is added to it."""
        h = functional.glu(self.gate(self.norm(h))) * inside[..., None]
        h = self.along(h.mT).mT
        normed = torch.zeros_like(h)
        normed[inside] = self.batch_norm(h[inside])  # padding takes no part in the statistics
        return self.dropout(self.mix(functional.silu(normed)))


class Prediction(nn.Module):
    """Symbols so far [row, symbol] -> what they say of the next one [row, symbol, width], and the state to go on from."""

    def __init__(self, symbols: int, width: int, dropout: float):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(symbols, width), nn.LSTM(width, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, symbols: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
        """Output and state."""
        out, state = self.lstm(self.dropout(self.embedding(symbols)), state)
        return out, state


class Joint(nn.Module):
    """Encoded frames [row, frame, width] and predictions [row, symbol, width] -> scores [row, frame, symbol, vocabulary]."""

    def __init__(self, width: int, symbols: int):
        super().__init__()
        self.input, self.output = JointInput(width), nn.Linear(width, symbols)

    def forward(self, heard: Tensor, before: Tensor) -> Tensor:
        """Scores of each symbol at each node."""
        return self.output(torch.tanh(self.input(heard, before)))


class JointInput(nn.Module):
    """The sum of both sides at every node [row, frame, symbol, width]."""

    def __init__(self, width: int):
        super().__init__()
        self.heard, self.before = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, heard: Tensor, before: Tensor) -> Tensor:
        """One for each pair of a frame and a symbol."""
        return self.heard(heard)[:, :, None] + self.before(before)[:, None]


def _feed_forward(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(4 * width, width), nn.Dropout(dropout)
    )


def real(lengths: Tensor, longest: int) -> Tensor:
    """Which places of padded rows are real [row, place]."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]

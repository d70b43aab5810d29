"""A language-conditioned policy: goal in words and observations of the last steps to an action, as in TAIL's sketch of robot policies.

Liu et al. 2023, section 2 and appendix A, https://arxiv.org/abs/2310.05905; FiLM: Perez et al. 2018, https://arxiv.org/abs/1709.07871.
The paper's encoders are CLIP's and its decoder is GPT-2; here all three are small and learned together. Encoders and decoder are made of
one block whose layers have the usual names (``self_attn.q_proj``, ``mlp.down_proj``), so that adapters find them by role; ``fusion`` and
``head`` are the parts that a task may have for itself."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..domain.demonstrations import words_of
from ..errors import AcclimateError, nearest
from .stored import Stored

LEAST_SPREAD = 1e-2  # of the mixture's parts: an expert without noise would draw it to 0 and the likelihood to infinity


class Policy(Stored):
    """Goal, image and state of each step -> scores of actions [row, step, score]; a step sees itself and the steps before it.

    words: the vocabulary of goals. image: (channels, side), or None; state: width, or 0. actions: number of choices, or 0 for vectors of
    ``action_width`` numbers under a mixture of ``mixtures`` Gaussians. window: how many steps it can look back on, itself among them.
    """

    title = "policy"

    def __init__(
        self,
        words: Sequence[str],
        *,
        image: Sequence[int] | None = None,
        state: int = 0,
        actions: int = 0,
        action_width: int = 0,
        width: int = 96,
        text_blocks: int = 2,
        spatial_blocks: int = 1,
        temporal_blocks: int = 4,
        heads: int = 4,
        goal_width: int = 32,
        window: int = 8,
        longest: int = 16,
        stem: int = 32,
        patch: int = 5,
        mixtures: int = 5,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.settings = {
            "words": list(words), "image": None if image is None else list(image), "state": state, "actions": actions,
            "action_width": action_width, "width": width, "text_blocks": text_blocks, "spatial_blocks": spatial_blocks,
            "temporal_blocks": temporal_blocks, "heads": heads, "goal_width": goal_width, "window": window, "longest": longest,
            "stem": stem, "patch": patch, "mixtures": mixtures, "dropout": dropout,
        }  # fmt: skip
        if (actions > 0) == (action_width > 0):
            raise AcclimateError(
                f"actions = {actions} and action_width = {action_width}: a policy has either choices or vectors, so give one"
            )
        if image is None and not state:
            raise AcclimateError("a policy needs something to see: give image (channels, side), state (its width), or both")
        if width % heads or (image is not None and image[1] % patch):
            raise AcclimateError(f"width = {width} must be a multiple of heads = {heads}, and the image's side one of patch = {patch}")
        self.words, self.window, self.width, self.longest = tuple(words), window, width, longest
        self.image, self.state, self.actions, self.action_width = None if image is None else tuple(image), state, actions, action_width
        self.number = {word: place for place, word in enumerate(self.words, 1)}
        self.text = TextEncoder(len(self.words), width, text_blocks, heads, goal_width, longest, dropout)
        self.spatial = SpatialEncoder(self.image, state, width, spatial_blocks, heads, stem, patch, dropout)
        self.fusion = Fusion(goal_width, stem)
        self.temporal = TemporalDecoder(self.spatial.tokens, width, temporal_blocks, heads, window, dropout)
        self.head: nn.Module = nn.Linear(width, actions) if actions else MixtureHead(width, action_width, mixtures)

    def goal_ids(self, goals: Sequence[str]) -> Tensor:
        """Numbers of the words of goals [goal, word], 0 for padding. Raises AcclimateError for an unknown word, and for too many."""
        rows = []
        for goal in goals:
            said = words_of(goal)
            for word in said:
                if word not in self.number:
                    raise AcclimateError(f"the policy does not know the word {word!r} of the goal {goal!r}{nearest(word, self.number)}")
            if not 0 < len(said) <= self.longest:
                raise AcclimateError(f"the goal {goal!r} has {len(said)} words, but must have 1 to {self.longest}")
            rows.append(torch.tensor([self.number[word] for word in said]))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def observe(self, image: Tensor | None, state: Tensor | None, goals: Tensor) -> Tensor:
        """Frames [frame, ...] under the embedded goal of each [frame, goal width] -> what the decoder reads [frame, width]."""
        features = [None if part is None else self.fusion(part, goals) for part in self.spatial.features(image, state)]
        return self.temporal.enter(self.spatial(*features))

    def decode(self, frames: Tensor) -> Tensor:
        """Frames in order of time [row, step, width] -> scores [row, step, score]; rows of less steps are padded behind."""
        return self.head(self.temporal(frames))

    def forward(self, image: Tensor | None, state: Tensor | None, goals: Tensor) -> Tensor:
        """image [row, step, channel, side, side] and state [row, step, width], either may be None; goals [row, word]."""
        given = next(part for part in (image, state) if part is not None)
        rows, steps = given.shape[:2]
        images, states = (None if part is None else part.flatten(0, 1) for part in (image, state))
        frames = self.observe(images, states, self.text(goals).repeat_interleave(steps, 0))
        return self.decode(frames.view(rows, steps, -1))

    def log_prob(self, scores: Tensor, actions: Tensor, real: Tensor | None = None) -> Tensor:
        """Log-probability of choices [...], or log-density of actions [..., width], where ``real`` [..., width] says what counts."""
        if self.actions:
            return scores.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
        return mixture_log_prob(*self._mixture(scores), actions, real)

    def act(self, scores: Tensor) -> Tensor:
        """The likeliest choice [...], or the mean of the likeliest part of the mixture [..., width]."""
        if self.actions:
            return scores.argmax(-1)
        logits, means, _ = self._mixture(scores)
        best = logits.argmax(-1)[..., None, None].expand(*means.shape[:-2], 1, means.shape[-1])
        return means.gather(-2, best).squeeze(-2)

    def _mixture(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [..., part], means and standard deviations [..., part, width]."""
        count = self.settings["mixtures"]
        logits, rest = scores.split([count, scores.shape[-1] - count], -1)
        means, spread = rest.unflatten(-1, (2, count, self.action_width)).unbind(-3)
        return logits, means, functional.softplus(spread) + LEAST_SPREAD


def mixture_log_prob(logits: Tensor, means: Tensor, spreads: Tensor, actions: Tensor, real: Tensor | None = None) -> Tensor:
    """Log-density [...] of actions [..., width] under Gaussians [..., part, width] of independent numbers, mixed by softmax of logits.

    real [..., width]: numbers that are padding do not count.

    >>> part = torch.zeros(1, 2)
    >>> round(mixture_log_prob(torch.zeros(1), part, part + 1, torch.tensor([1.0, 0.0])).item(), 6)  # -log 2 pi - 1/2
    -2.337877
    """
    far = (actions[..., None, :] - means) / spreads
    each = -0.5 * far.square() - spreads.log() - 0.5 * math.log(2 * math.pi)
    if real is not None:
        each = each.masked_fill(~real[..., None, :], 0.0)
    return torch.logsumexp(logits.log_softmax(-1) + each.sum(-1), -1)


class Attention(nn.Module):
    """Self-attention; with ``causal`` a place sees itself and those before it. Takes a mask, and a cache that may add keys and values."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.head_dim, self.is_causal = heads, width // heads, causal
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, h: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None) -> Tensor:
        """h [row, place, width]; attention_mask [row, head, query, key], True where a query sees a key."""
        q, k, v = (layer(h).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v)
        causal = self.is_causal and attention_mask is None and h.shape[1] > 1
        out = functional.scaled_dot_product_attention(q, k, v, attention_mask, is_causal=causal)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers, the inner one four times as wide."""

    def __init__(self, width: int):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """[..., width]."""
        return self.down_proj(functional.gelu(self.up_proj(h)))


class Block(nn.Module):
    """Attention and feed-forward part, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float):
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads, causal), FeedForward(width)
        self.attention_norm, self.norm, self.dropout = nn.LayerNorm(width), nn.LayerNorm(width), dropout

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """[row, place, width]."""
        h = h + functional.dropout(self.self_attn(self.attention_norm(h), attention_mask=mask), self.dropout, self.training)
        return h + functional.dropout(self.mlp(self.norm(h)), self.dropout, self.training)


class TextEncoder(nn.Module):
    """Words of goals [goal, word] (0 = padding) -> embedded goals [goal, goal width]."""

    def __init__(self, words: int, width: int, blocks: int, heads: int, goal_width: int, longest: int, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(words + 1, width)
        self.places = nn.Parameter(0.02 * torch.randn(longest, width))
        self.blocks = nn.ModuleList([Block(width, heads, False, dropout) for _ in range(blocks)])
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, goal_width)

    def forward(self, goals: Tensor) -> Tensor:
        """The mean of the words' vectors, mapped to the goal's width."""
        real = goals != 0
        h = self.embedding(goals) + self.places[: goals.shape[1]]
        for block in self.blocks:
            h = block(h, real[:, None, None])
        h = self.norm(h) * real[..., None]
        return self.last(h.sum(1) / real.sum(1, keepdim=True).clamp(min=1))


class SpatialEncoder(nn.Module):
    """One observation -> tokens [frame, token, width]: patches of the image and one token for the state.

    The goal comes in between: ``features`` are made of each cell of the image, and of the state, the call goes on from them.
    """

    def __init__(
        self, image: tuple[int, ...] | None, state: int, width: int, blocks: int, heads: int, stem: int, patch: int, dropout: float
    ):
        super().__init__()
        patches = 0 if image is None else (image[1] // patch) ** 2
        self.tokens = patches + bool(state)
        if image is not None:
            self.cells, self.patches, self.patch = nn.Linear(image[0], stem), nn.Linear(stem * patch**2, width), patch
            nn.init.normal_(
                self.cells.weight
            )  # most cells are empty: with the usual small weights nothing of the others is left in a patch
            _scaled(self.patches)
        if state:
            self.state, self.second = nn.Linear(state, stem), nn.Linear(stem, width)
            _scaled(self.state, self.second)
        self.places = nn.Parameter(0.02 * torch.randn(self.tokens, width))
        self.blocks = nn.ModuleList([Block(width, heads, False, dropout) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)

    def features(self, image: Tensor | None, state: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """image [frame, channel, side, side] -> [frame, side, side, stem]; state [frame, width] -> [frame, stem]."""
        kind = self.places.dtype
        cells = None if image is None else self.cells(image.movedim(1, -1).to(kind))
        return cells, None if state is None else self.state(state.to(kind))

    def forward(self, image: Tensor | None, state: Tensor | None) -> Tensor:
        """Features, joined with the goal, to tokens."""
        parts = []
        if image is not None:
            # [frame, row of patches, row in it, column of patches, column in it, stem]
            cells = functional.gelu(image).unflatten(2, (-1, self.patch)).unflatten(1, (-1, self.patch))
            parts.append(self.patches(cells.transpose(2, 3).flatten(3).flatten(1, 2)))
        if state is not None:
            parts.append(self.second(functional.gelu(state))[:, None])
        h = torch.cat(parts, 1) + self.places
        for block in self.blocks:
            h = block(h)
        return self.norm(h)


class Fusion(nn.Module):
    """FiLM: gamma(g) x + beta(g), the same for every place of a frame; gamma is near 1 and beta near 0 at the start."""

    def __init__(self, goal_width: int, channels: int):
        super().__init__()
        self.gamma, self.beta = nn.Linear(goal_width, channels), nn.Linear(goal_width, channels)
        nn.init.ones_(self.gamma.bias)
        nn.init.zeros_(self.beta.bias)

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        """x [frame, ..., channel], goal [frame, goal width]."""
        shape = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
        return self.gamma(goal).view(shape) * x + self.beta(goal).view(shape)


class TemporalDecoder(nn.Module):
    """Frames of the last steps [row, step, width] -> [row, step, width], each from itself and those before it."""

    def __init__(self, tokens: int, width: int, blocks: int, heads: int, window: int, dropout: float):
        super().__init__()
        self.join, self.second = nn.Linear(tokens * width, width), nn.Linear(width, width)
        _scaled(self.join, self.second)
        self.places = nn.Parameter(0.02 * torch.randn(window, width))
        self.blocks = nn.ModuleList([Block(width, heads, True, dropout) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)

    def enter(self, tokens: Tensor) -> Tensor:
        """The tokens of each frame [frame, token, width] as one vector [frame, width]."""
        return self.second(functional.gelu(self.join(functional.gelu(tokens).flatten(1))))

    def forward(self, frames: Tensor) -> Tensor:
        """As many steps as the window at most."""
        if frames.shape[1] > len(self.places):
            raise AcclimateError(f"{frames.shape[1]} steps were given, but the policy looks back on {len(self.places)} at most")
        h = frames + self.places[: frames.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.norm(h)


class MixtureHead(nn.Linear):
    """Scores of a mixture of Gaussians: logits, means, and what their deviations are made of."""

    def __init__(self, width: int, action_width: int, mixtures: int):
        super().__init__(width, mixtures * (1 + 2 * action_width))


def _scaled(*layers: nn.Linear) -> None:
    """Weights that keep the size of what comes in, no biases: with torch's own a frame fades on its way to the decoder."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)

"""A frozen causal language model as a featurizer and a head that score the next token at every place, for tasks whose labels are answers.

What learns beside it (increments, prompts) learns from answers to prompts; :func:`rows_of` makes rows of such pairs, :func:`continued`
lets a method write.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..domain.arrays import IGNORED
from ..errors import AcclimateError
from ..model import Model


class CausalNet(nn.Module):
    """Token ids [row, token], padded at the end -> hidden states [row, width, token]; ``head`` gives scores [row, token id, token].

    Nothing of it learns. A row is compared with others (:meth:`vectors`) by the tokens of its prompt, up to the first ``mark``, which is
    the tokenizer's end token: prompt, mark, answer, mark.
    """

    block = 64  # rows at a time where nothing learns: scores are as wide as the vocabulary

    def __init__(self, model: "str | Model" = "seedling"):
        super().__init__()
        made = model if isinstance(model, Model) else Model.load(model)
        end = made.tokenizer.eos_token_id
        if made.net.get_output_embeddings() is None or end is None:
            raise AcclimateError(f"{made.name} writes no text (no output layer, or no end token); give a causal language model")
        self.tokenizer, self.mark, self.padding = made.tokenizer, int(end), int(made.tokenizer.pad_token_id or 0)
        self.body: Any = made.net.base_model.requires_grad_(False)
        self.features, self.vocabulary = self.body.config.hidden_size, self.body.config.vocab_size
        self.head = _Tokens(made.net.get_output_embeddings()).requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states [row, width, token]; padding stands behind all that is asked for, so that no mask is needed."""
        return self.body(input_ids=ids).last_hidden_state.mT

    def vectors(self, ids: Tensor) -> Tensor:
        """The mean hidden state of each row's prompt [row, width]."""
        before = (ids == self.mark).cumsum(1).eq(0).to(torch.float32)
        before = torch.where(before.sum(1, keepdim=True) > 0, before, torch.ones_like(before))
        return (self(ids) @ before[..., None])[..., 0] / before.sum(1, keepdim=True)


class _Tokens(nn.Module):
    """Scores of all tokens at every place: [row, width, token] -> [row, token id, token]."""

    def __init__(self, scores: nn.Module):
        super().__init__()
        self.scores = scores

    def forward(self, z: Tensor) -> Tensor:
        return self.scores(z.mT).mT


def rows_of(net: CausalNet, pairs: Sequence[tuple[str, str]], length: int) -> tuple[Tensor, Tensor]:
    """Prompts with answers as rows: ids x [row, length], and the next token at every place of the answer y [row, length], else IGNORED.

    Raises AcclimateError for a pair that is longer than ``length`` tokens, naming it.
    """
    x = torch.full((len(pairs), length), net.padding)
    y = torch.full((len(pairs), length), IGNORED)
    for place, (prompt, answer) in enumerate(pairs):
        asked, said = (net.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
        ids = torch.tensor([*asked, net.mark, *said, net.mark])
        if len(ids) - 1 > length:
            raise AcclimateError(f"row {place + 1}: prompt and answer are {len(ids) - 1} tokens, but rows have {length}; raise length")
        x[place, : len(ids) - 1], y[place, len(asked) : len(ids) - 1] = ids[:-1], ids[len(asked) + 1 :]
    return x, y


@torch.no_grad()
def continued(predict: Callable[[Tensor], Tensor], net: CausalNet, prompts: Sequence[str], most: int = 32) -> list[str]:
    """What ``predict`` (ids [row, token] -> scores [row, token id, token]) answers to prompts, the likeliest token each time."""
    found = []
    for prompt in prompts:
        ids = [*net.tokenizer(prompt, add_special_tokens=False)["input_ids"], net.mark]
        begin = len(ids)
        while len(ids) < begin + most and (len(ids) == begin or ids[-1] != net.mark):
            ids.append(int(predict(torch.tensor([ids], device=net.body.device))[0, :, -1].argmax()))
        found.append(net.tokenizer.decode([token for token in ids[begin:] if token != net.mark]))
    return found

"""The upper blocks of a BERT-like encoder as a featurizer, for runs in which the lower ones stay as they are and are run once.

Sentence-BERT, Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084 (mean over tokens)"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..parts.pooling import pooled

BLOCK = 64  # texts at a time


class UpperBlocks(nn.Module):
    """The blocks from ``first`` on, and a mean: states of tokens [row, token, width], zeros at padding -> vectors [row, width]."""

    def __init__(self, encoder: Any, first: int):
        super().__init__()
        self.layer = copy.deepcopy(encoder.encoder.layer[first:])
        self.features = int(encoder.config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """One vector for each text."""
        mask = (x != 0).any(2)
        hidden, seen = x, mask[:, None, None].expand(-1, 1, x.shape[1], -1)
        for layer in self.layer:
            given = layer(hidden, attention_mask=seen)
            hidden = given[0] if isinstance(given, tuple) else given
        return pooled(hidden, mask.long(), "mean")


@torch.no_grad()
def lower_states(encoder: Any, tokenizer: Any, texts: Sequence[str], first: int, tokens: int) -> Tensor:
    """What the blocks before ``first`` make of texts, cut to so many tokens [text, token, width]; zeros where there is padding."""
    made = tokenizer(list(texts), padding="max_length", truncation=True, max_length=tokens, return_tensors="pt")
    encoder.eval()
    found = []
    for ids, mask in zip(made["input_ids"].split(BLOCK), made["attention_mask"].split(BLOCK), strict=True):
        states = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[first]
        found.append(states * mask[..., None])
    return torch.cat(found)

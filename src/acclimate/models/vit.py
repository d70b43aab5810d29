"""A small vision transformer for small images: patches, blocks of attention and two layers, mean over tokens.

Dosovitskiy et al. 2021, section 3.1, https://arxiv.org/abs/2010.11929"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Vit(nn.Module):
    """Images [batch, channel, side, side] -> features [batch, width]: learned positions, layer-norm first, no class token."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, patch: int = 4, side: int = 32, channels: int = 3):
        super().__init__()
        self.settings = {"width": width, "depth": depth, "heads": heads, "patch": patch, "side": side, "channels": channels}
        self.inputs, self.features = (channels, side, side), width
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Features of each image."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.norm(self.blocks(tokens)).mean(1)


class Attention(nn.Module):
    """Attention of several heads, queries, keys and values from one layer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.inner, self.outer = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> [batch, token, width]."""
        rows, tokens, width = x.shape
        query, key, value = self.inner(x).view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.outer(scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(rows, tokens, width))


class Block(nn.Module):
    """Attention, then two layers, each beside a shortcut."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.first, self.second, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> [batch, token, width]."""
        x = x + self.attention(self.first(x))
        return x + self.down(gelu(self.up(self.second(x))))


BACKBONE = Vit

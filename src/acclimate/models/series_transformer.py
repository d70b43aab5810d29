"""A small transformer over pieces of a series.

Nie et al. 2023 (PatchTST), section 3, https://arxiv.org/abs/2211.14730: pieces of the series are its tokens. Differs: channels of a piece
go into one token, and pieces do not overlap.
"""

from torch import Tensor, nn

from ..parts.positions import sinusoids


class SeriesTransformer(nn.Module):
    """Series [row, channel, time] -> features [row, width]: pieces of ``piece`` samples, places, encoder layers, mean over pieces."""

    def __init__(self, channels: int = 9, width: int = 64, piece: int = 8, layers: int = 2, heads: int = 4, dropout: float = 0.1):
        super().__init__()
        self.settings = {"channels": channels, "width": width, "piece": piece, "layers": layers, "heads": heads, "dropout": dropout}
        self.inputs, self.features = (channels, 128), width
        self.cut = nn.Conv1d(channels, width, piece, piece)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of each series."""
        tokens = self.cut(x).mT
        return self.layers(tokens + sinusoids(tokens.shape[1], tokens.shape[2], x.device)).mean(1)


BACKBONE = SeriesTransformer

"""A featurizer for sound: log-mel energies as an image of time and pitch, then the convolutional network for images."""

from torch import Tensor, nn

from ..parts.speech import log_mel, mel_filters
from .convnet import ConvNet


class AudioNet(nn.Module):
    """Waves [row, 1, sample], -1 to 1 -> features [row, 4 x width]. ``inputs`` is the shape of a usual row: a second."""

    filters: Tensor

    def __init__(self, channels: int = 1, rate: int = 8000, bands: int = 40, width: int = 16):
        super().__init__()
        self.settings = {"channels": channels, "rate": rate, "bands": bands, "width": width}
        self.inputs, self.rate = (channels, rate), rate
        self.register_buffer("filters", mel_filters(bands, 256 if rate <= 10_000 else 512, rate), persistent=False)
        self.net = ConvNet(width, channels)
        self.features = self.net.features

    def forward(self, waves: Tensor) -> Tensor:
        """Features of each recording."""
        energies = log_mel(waves, self.filters, self.rate)  # [row, channel, frame, band]
        return self.net(energies)


BACKBONE = AudioNet

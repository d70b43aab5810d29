"""A one-dimensional convolutional featurizer for series, as is usual for adaptation of sensor data.

Ragab et al. 2023 (AdaTime), section 4.2, https://arxiv.org/abs/2203.08321"""

from itertools import pairwise

from torch import Tensor, nn


class SeriesNet(nn.Module):
    """Series [batch, channel, time] -> features [batch, 2 x width]: three convolutions with batch-norm, pooled over time.

    Inside, a series is an image one pixel high [batch, channel, 1, time], since convolutions over images are up to twice as fast. Any
    length of 16 or more works; ``inputs`` is the shape of a usual row.
    """

    def __init__(self, channels: int = 9, width: int = 32, kernel: int = 5, stride: int = 1):
        super().__init__()
        self.settings = {"channels": channels, "width": width, "kernel": kernel, "stride": stride}
        self.inputs, self.features = (channels, 128), 2 * width
        widths = [channels, width, 2 * width, 2 * width]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            size, step = (kernel, stride) if number == 0 else (8, 1)
            layers += [nn.Conv2d(before, after, (1, size), (1, step), (0, size // 2), bias=False), nn.BatchNorm2d(after)]
            layers += [nn.MaxPool2d((1, 2), (1, 2), (0, 1)), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features of each series."""
        return self.layers(x.unsqueeze(2)).mean((2, 3))


BACKBONE = SeriesNet

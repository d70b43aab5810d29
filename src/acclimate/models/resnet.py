"""A residual network of the shape of ResNet-18, narrower by default. He et al. 2015, table 1, https://arxiv.org/abs/1512.03385"""

from torch import Tensor, nn

from .convnet import Block


class ResNet(nn.Module):
    """Images [batch, channel, side, side] -> features [batch, 8 x width]: a stem, four stages of residual blocks, mean pooling.

    ``width`` 64 and ``depths`` (2, 2, 2, 2) are ResNet-18. ``small`` is the stem for sides below 64: one 3 x 3 convolution that keeps
    the side; otherwise a strided 7 x 7 and a maximum over neighbours, as for photographs.
    """

    def __init__(self, width: int = 16, channels: int = 3, depths: tuple[int, ...] | list[int] = (2, 2, 2, 2), small: bool = True):
        super().__init__()
        self.settings = {"width": width, "channels": channels, "depths": list(depths), "small": small}
        self.inputs = (channels, 32, 32) if small else (channels, 224, 224)
        stem: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, 1, 1, bias=False) if small else nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        ]
        stem += [nn.BatchNorm2d(width), nn.ReLU()] + ([] if small else [nn.MaxPool2d(3, 2, 1)])
        self.stem, blocks, inputs = nn.Sequential(*stem), [], width
        for stage, depth in enumerate(depths):
            for number in range(depth):
                outputs = width * 2**stage
                blocks.append(Block(inputs, outputs, 2 if stage and not number else 1))
                inputs = outputs
        self.blocks, self.features = nn.Sequential(*blocks), inputs

    def forward(self, images: Tensor) -> Tensor:
        """Features of each image."""
        return self.blocks(self.stem(images)).mean((2, 3))


BACKBONE = ResNet

"""A small convolutional featurizer for small images, of the family of He et al. 2015, https://arxiv.org/abs/1512.03385"""

from torch import Tensor, nn
from torch.nn import functional


class ConvNet(nn.Module):
    """Images [batch, channel, side, side] -> features [batch, 4 x width]: a stem and three residual blocks with batch-norm, mean pooling.

    Made for sides of 32; any of 8 or more works. ``settings`` makes another one like it, ``inputs`` is the shape of a usual image.
    """

    def __init__(self, width: int = 16, channels: int = 3):
        super().__init__()
        self.settings = {"width": width, "channels": channels}
        self.inputs = (channels, 32, 32)
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.features = 4 * width

    def forward(self, images: Tensor) -> Tensor:
        """Features of each image."""
        return self.blocks(self.stem(images)).mean((2, 3))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, side, side] -> [batch, outputs, side / stride, side / stride]."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


BACKBONE = ConvNet

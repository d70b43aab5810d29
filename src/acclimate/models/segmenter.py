"""A small convolutional featurizer for every pixel of an image: coarse and fine maps side by side.

Hariharan et al. 2015 (hypercolumns), https://arxiv.org/abs/1411.5752"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .convnet import Block


class Segmenter(nn.Module):
    """Images [batch, channel, high, wide] -> features [batch, 2 x width, high, wide]: maps at three resolutions, joined at the finest.

    Its head is applied to every pixel (``Learner(Segmenter(), classes, head="pixels")``): scores are [batch, class, high, wide].
    """

    def __init__(self, width: int = 8, channels: int = 3):
        super().__init__()
        self.settings = {"width": width, "channels": channels}
        self.inputs, self.features = (channels, 32, 32), 2 * width
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.middle, self.coarse = Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        self.joined = nn.Sequential(nn.Conv2d(7 * width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Features of each pixel."""
        fine = self.stem(images)
        middle = self.middle(fine)
        larger = [interpolate(part, fine.shape[2:], mode="bilinear") for part in (middle, self.coarse(middle))]
        return self.joined(torch.cat([fine, *larger], 1))

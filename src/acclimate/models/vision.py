"""Any Hugging Face vision model as a featurizer: images are sized and standardised as it was trained on them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import AcclimateError


class VisionNet(nn.Module):
    """Images [row, 3, high, wide], 0 to 1 -> features [row, width]: the model's pooled output, else the mean over its last states.

    ``model`` is a Hugging Face id or a folder. The size comes from its configuration, mean and deviation of the channels from its image
    processor; ImageNet's where it has none. ``inputs`` is the shape of a usual row.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, model: str = "facebook/dinov2-small", channels: int = 3):
        from transformers import AutoImageProcessor, AutoModel

        super().__init__()
        if channels != 3:
            raise AcclimateError(f"{model} sees images of 3 channels, but the rows have {channels}; load the domain with channels: 3")
        try:
            net = AutoModel.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise AcclimateError(f"{model} cannot be loaded as a vision model: {' '.join(str(error).split())[:200]}") from error
        try:
            seen: Any = AutoImageProcessor.from_pretrained(model)
        except (OSError, ValueError):
            seen = None
        self.settings = {"model": model, "channels": channels}
        self.body: Any = getattr(net, "vision_model", net)  # of a model that reads text as well
        config = self.body.config
        side = getattr(config, "image_size", 0) or 0
        self.side = int(side if isinstance(side, int) else side[0])
        self.features = int(getattr(config, "hidden_size", 0) or config.hidden_sizes[-1])
        self.inputs = (3, self.side or 32, self.side or 32)
        for name, usual in (("image_mean", (0.485, 0.456, 0.406)), ("image_std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(getattr(seen, name, None) or usual)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Features of each image."""
        if self.side and images.shape[-2:] != (self.side, self.side):
            images = interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        found = self.body((images - self.image_mean) / self.image_std)
        if (pooled := getattr(found, "pooler_output", None)) is not None:
            return pooled.flatten(1)
        states = found.last_hidden_state
        return states.mean(1) if states.ndim == 3 else states.mean((2, 3))


BACKBONE = VisionNet

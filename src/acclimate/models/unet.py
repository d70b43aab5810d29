"""Small networks that tell the noise in a row: a U-Net for images, layers for vectors.

Ho et al. 2020 (U-Net with times in every block), https://arxiv.org/abs/2006.11239; Dhariwal & Nichol 2021, section 3 (they scale and
shift normalised maps), https://arxiv.org/abs/2105.05233; Peebles & Xie 2023 (patches of pixels, no class as a
class of its own), https://arxiv.org/abs/2212.09748"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from ..errors import AcclimateError
from ..parts.positions import sinusoids


class NoiseNet(nn.Module):
    """What both share: vectors of times and classes, and the range of the rows, which diffusion sees from -1 to 1.

    >>> net = NoiseNet(2, 8, 1000)
    >>> net.fit_range(torch.tensor([0.0, 4.0]))
    >>> net.scaled(torch.tensor([1.0])).item(), net.restored(torch.tensor([-0.5])).item()
    (-0.5, 1.0)
    """

    wave: Tensor
    middle: Tensor
    reach: Tensor

    def __init__(self, classes: int, width: int, steps: int):
        super().__init__()
        self.classes, self.steps, inner = classes, steps, 4 * width
        self.time = nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.label = nn.Embedding(classes + 1, inner)  # the last one stands for no class
        self.register_buffer("wave", sinusoids(steps + 1, width), persistent=False)
        self.register_buffer("middle", torch.zeros(()))
        self.register_buffer("reach", torch.zeros(()))  # 0: not known yet

    def fit_range(self, x: Tensor) -> None:
        """The least entry of these rows becomes -1, the largest 1."""
        low, high = x.min(), x.max()
        self.middle.copy_((low + high) / 2)
        self.reach.copy_(((high - low) / 2).clamp(min=1e-6))

    def scaled(self, x: Tensor) -> Tensor:
        """Rows as diffusion sees them."""
        if not self.reach:
            raise AcclimateError("this diffusion model was never trained, it knows no range of rows; train it, or call fit_range")
        return (x - self.middle) / self.reach

    def restored(self, x: Tensor) -> Tensor:
        """Rows as they are outside."""
        return x * self.reach + self.middle

    def about(self, t: Tensor, y: Tensor | None) -> Tensor:
        """A vector for time [row] and class [row] (None, or the number of classes: no class) [row, 4 x width]."""
        y = torch.full_like(t, self.classes) if y is None else y
        return self.time(self.wave[t].to(self.label.weight.dtype)) + self.label(y)


class UNet(NoiseNet):
    """Noisy images [row, channel, high, wide], times [row], classes [row] or None -> their noise. 1M weights at the default width.

    Two resolutions over patches of pixels, with a middle at the coarser one, whose output ``inside`` gives. Sides are multiples of twice
    the patch.
    """

    def __init__(self, channels: int = 1, classes: int = 0, width: int = 48, patch: int = 2, steps: int = 1000):
        super().__init__(classes, width, steps)
        self.settings = {"channels": channels, "classes": classes, "width": width, "patch": patch, "steps": steps}
        self.patch, inner = patch, 4 * width
        self.first = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.fine = Block(width, width, inner)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.coarse, self.centre = Block(2 * width, 2 * width, inner), Block(2 * width, 2 * width, inner)
        self.coarse_up, self.fine_up = Block(4 * width, 2 * width, inner), Block(3 * width, width, inner)
        self.last = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, channels * patch**2, 3, padding=1))
        nn.init.zeros_(self.last[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The noise in each image [row, channel, high, wide]."""
        about = self.about(t, y)
        fine, coarse, centre = self._down(x, about)
        up = self.coarse_up(torch.cat([centre, coarse], 1), about)
        up = interpolate(up, scale_factor=2.0)
        return nn.functional.pixel_shuffle(self.last(self.fine_up(torch.cat([up, fine], 1), about)), self.patch)

    def inside(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """What the middle makes of noisy images [row, 2 x width, high / (2 x patch), wide / (2 x patch)]."""
        return self._down(x, self.about(t, y))[2]

    def _down(self, x: Tensor, about: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if any(side % (2 * self.patch) for side in x.shape[2:]):
            raise AcclimateError(f"this U-Net needs sides in multiples of {2 * self.patch}, not {list(x.shape[2:])}; resize the images")
        fine = self.fine(self.first(nn.functional.pixel_unshuffle(x, self.patch)), about)
        coarse = self.coarse(self.down(fine), about)
        return fine, coarse, self.centre(coarse, about)


class Block(nn.Module):
    """Two convolutions beside a shortcut; time and class scale and shift the normalised maps between them."""

    def __init__(self, inputs: int, outputs: int, about: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.about = nn.Linear(about, 2 * outputs)
        self.second = nn.Sequential(nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        nn.init.zeros_(self.second[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        """[row, inputs, high, wide], [row, about] -> [row, outputs, high, wide]."""
        scale, shift = self.about(silu(about))[:, :, None, None].chunk(2, 1)
        z = self.second[0](self.first(x)) * (1 + scale) + shift
        return self.second[1:](z) + self.shortcut(x)


class NoiseMlp(NoiseNet):
    """The same for vectors [row, column]: three layers, the vector of time and class added to the first two."""

    def __init__(self, columns: int, classes: int = 0, width: int = 48, steps: int = 1000):
        super().__init__(classes, width, steps)
        self.settings = {"columns": columns, "classes": classes, "width": width, "steps": steps}
        inner = 4 * width
        self.first, self.second, self.last = nn.Linear(columns, inner), nn.Linear(inner, inner), nn.Linear(inner, columns)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The noise in each row [row, column]."""
        return self.last(silu(self.inside(x, t, y)))

    def inside(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """What the second layer makes of noisy rows [row, 4 x width]."""
        about = self.about(t, y)
        return self.second(silu(self.first(x) + about)) + about


def noise_net(row: Tensor, classes: int = 0, width: int = 48, steps: int = 1000) -> UNet | NoiseMlp:
    """The network for rows like this one [1, *shape]: a U-Net for images, layers for vectors.

    >>> net = noise_net(torch.zeros(1, 1, 16, 16), classes=10)
    >>> net(torch.zeros(2, 1, 16, 16), torch.tensor([1, 1000]), torch.tensor([3, 10])).shape, sum(w.numel() for w in net.parameters())
    (torch.Size([2, 1, 16, 16]), 975172)
    """
    if row.ndim == 4:
        return UNet(row.shape[1], classes, width, steps=steps)
    if row.ndim == 2 and row.is_floating_point():
        return NoiseMlp(row.shape[1], classes, width, steps)
    raise AcclimateError(f"no diffusion model for rows of the shape {list(row.shape[1:])}; give images [channel, high, wide] or vectors")

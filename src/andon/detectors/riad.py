"""riad: reconstruction by inpainting. Areas of a picture are removed, and a network fills them in from the rest.

Paper: Zavrtanik, Kristan & Skočaj, "Reconstruction by inpainting for visual anomaly detection", Pattern Recognition
112, 2021. Gradient magnitude similarity: Xue, Zhang, Mou & Bovik, "Gradient Magnitude Similarity Deviation", IEEE
Transactions on Image Processing 23(2), 2014. Written from general knowledge of the papers, whose texts were not
available; no code of others. Symbols: I tile, I_r reconstruction, k side of the removed squares, S_1 … S_n disjoint
sets of squares that cover the tile.

For each k, the squares are divided at random into n sets. The network gets the tile n times, each time without one set,
and its outputs for the removed squares together are I_r. No pixel of I_r is computed from the pixel itself.

Differs from the paper:
- At inspection the division into sets is fixed, so that an image always has the same score.
- The weights of the three losses are 1; we do not know the paper's.
- Border pixels are repeated for the gradients; at the border, a mean is over the part of its window inside the image.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn import functional as F

from andon.errors import TrainingError
from andon.nn.convolutional import Odd, smooth
from andon.nn.data import generator as seeded
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.losses import ssim
from andon.nn.unet import UNet

SCALES = 4  # of the gradient magnitude similarity, each half as large as the one before
STABLE = 0.0026  # c, keeps the similarity defined where both gradients are 0


class Settings(Schedule):
    """Settings of `riad`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"smooth"}

    width: Annotated[int, Field(ge=1)] = 64
    """Channels of the first layer of the U-Net."""
    squares: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)] = (2, 4, 8, 16)
    """k, sides of the removed squares, pixels; a step draws one, and the map is the mean over all."""
    sets: Annotated[int, Field(ge=2)] = 3
    """n, number of sets into which the squares are divided."""
    smooth: Annotated[Odd, Field(ge=1, le=63)] = 21
    """Side of the window over which the map is averaged, pixels, odd; the score is its highest value."""


class RiadNetwork(Network):
    """The U-Net, and the division of the squares at inspection."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side). TrainingError when a square does not divide the side."""
        super().__init__()
        wrong = next((k for k in config.squares if side % k or side // k < 2), None)
        if wrong is not None:
            raise TrainingError(
                f"squares of {wrong} px in tiles of {side} px; expected divisors of {side}, at most half of it. Change "
                "squares, or geometry.size."
            )
        self.config, self.side, self.channels = config, side, channels
        self.inner = UNet(channels, config.width, channels)
        fixed = seeded(0, "squares", 0, torch.device("cpu"))
        self.divisions: Tensor  # (len(squares), sets, side, side), 1 where a square is removed
        self.register_buffer(
            "divisions", torch.stack([self.divide(k, fixed) for k in config.squares]), persistent=False
        )

    def divide(self, k: int, generator: torch.Generator) -> Tensor:
        """Draw sets of squares of side k: masks (sets, side, side), 1 where a square is removed."""
        count = self.side // k
        order = torch.rand(count * count, generator=generator, device=generator.device).argsort().argsort()
        one_hot = F.one_hot(order % self.config.sets, self.config.sets).T.float()
        return one_hot.view(-1, count, count).repeat_interleave(k, dim=1).repeat_interleave(k, dim=2)

    def rebuild(self, tiles: Tensor, sets: Tensor) -> Tensor:
        """I_r of tiles (n, c, t, t) for one division into sets (m, t, t)."""
        parts = torch.cat([tiles * (1 - removed) for removed in sets])
        filled = self.inner(parts).float().sigmoid().unflatten(0, (len(sets), -1))  # (m, n, c, t, t)
        total: Tensor = (filled * sets[:, None, None]).sum(dim=0)
        return total

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error, 1 − SSIM and 1 − GMS over the scales, for one k."""
        choice = torch.randint(len(self.config.squares), (), generator=generator, device=generator.device)
        rebuilt = self.rebuild(tiles, self.divide(self.config.squares[int(choice)], generator))
        gradients = torch.stack([1 - one.mean() for one in similarities(tiles, rebuilt)]).mean()
        return ((tiles - rebuilt) ** 2).mean() + (1 - ssim(tiles, rebuilt)).mean() + gradients

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        maps, rebuilts = [], []
        for sets in self.divisions:
            rebuilt = self.rebuild(tiles, sets)
            size = (self.side, self.side)
            scales = [
                F.interpolate(1 - one, size=size, mode="bilinear", align_corners=False)
                for one in similarities(tiles, rebuilt)
            ]
            maps.append(torch.stack(scales).mean(dim=0)[:, 0])
            rebuilts.append(rebuilt)
        error = smooth(torch.stack(maps).mean(dim=0), self.config.smooth)
        return error.amax(dim=(1, 2)), error, torch.stack(rebuilts).mean(dim=0)


def similarities(x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradient magnitude similarity (n, 1, h, w) in [0, 1] of images (n, c, h, w), at each of the scales."""
    x, y, maps = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True), []
    for _ in range(SCALES):
        a, b = gradient(x), gradient(y)
        maps.append((2 * a * b + STABLE) / (a * a + b * b + STABLE))
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return maps


def gradient(x: Tensor) -> Tensor:
    """Gradient magnitude of images (n, 1, h, w) by Prewitt filters."""
    across = torch.tensor([[1.0, 0.0, -1.0]] * 3, device=x.device) / 3
    filters = torch.stack([across, across.T])[:, None]
    both = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), filters)
    return ((both**2).sum(dim=1, keepdim=True) + 1e-12).sqrt()  # differentiable where the image is even


class Riad(LearnedDetector):
    """Error of areas that a network fills in from their surroundings."""

    name: ClassVar[str] = "riad"
    position_aware: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 8, "batch": 4, "steps": 400, "learning_rate": 2e-3},
        "full": {"width": 64, "batch": 8, "steps": 60_000, "learning_rate": 1e-4},
    }

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return RiadNetwork(side, channels, self.config)

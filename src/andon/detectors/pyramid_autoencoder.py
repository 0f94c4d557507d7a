"""pyramid-autoencoder: reconstruction error, in pixels and features, of an autoencoder with several resolutions.

Paper: Mishra, Piciarelli & Foresti, "Image Anomaly Detection by Aggregating Deep Pyramidal Representations", ICPR
Workshops 2020. Written from summaries of the paper; no code of others. Symbols: x image, x̂ reconstruction, l level of
the pyramid, z_l its latent vector.

A convolution computes features of the image, which are averaged to a pyramid of resolutions. Each level has its own
encoder to a latent vector. One decoder rebuilds the image from all latent vectors. Loss and anomaly map are the error
of the pixels plus that of deep features (perceptual loss).

Differs from the paper:
- The numbers of levels, layers and values are our own. Tiles are resized to `side` inside the graph.
- The perceptual loss uses the frozen feature network of `graphs.features` in place of VGG, and compares directions of
  features, not values (`nn.losses`), so that its scale is the same at every stage.
- `score` can also be the highest value of the map, which detects defects that are too small to change the mean.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.losses import perceptual_loss, perceptual_map
from andon.nn.resize import Resize
from andon.nn.trunk import Trunk

SMALLEST = 8  # positions a side; larger grids are halved


class Settings(Schedule):
    """Settings of `pyramid-autoencoder`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"score"}

    score: Literal["mean", "max"] = "mean"
    """Image score: mean or maximum of the map."""
    side: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    """Side to which tiles are resized, pixels, a multiple of 32."""
    levels: Annotated[int, Field(ge=1, le=4)] = 3
    """Number of levels of the pyramid; each has half the side of the level before."""
    width: Annotated[int, Field(ge=1)] = 32
    """Channels of the features; each next layer has twice as many, up to `widest`."""
    widest: Annotated[int, Field(ge=1)] = 256
    """Greatest number of channels of a layer."""
    latent: Annotated[int, Field(ge=1)] = 64
    """Number of values of the latent vector of each level."""
    perceptual: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the error of deep features; the weight of the pixel error is 1."""
    network: str = "efficientnet-lite0"
    """Name of the feature graph of the perceptual loss; `andon features list` lists them."""
    stages: Annotated[tuple[int, ...], Field(min_length=1, strict=False)] = (2, 4)
    """Numbers of the blocks of the feature graph in the perceptual loss."""


class Encoder(nn.Sequential):
    """Encoder of one level: strided convolutions and a fully connected layer to the latent vector."""

    def __init__(self, side: int, config: Settings) -> None:
        """Build it for features (n, width, side, side) of one level."""
        super().__init__()
        width = config.width
        while side > SMALLEST:
            wider = min(2 * width, config.widest)
            self.extend([nn.Conv2d(width, wider, 4, stride=2, padding=1), nn.LeakyReLU(0.2)])
            width, side = wider, side // 2
        self.extend([nn.Flatten(), nn.Linear(width * side * side, config.latent)])


class PyramidNetwork(Network):
    """Features, their pyramid, one encoder for each level, and one decoder of all latent vectors."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config = config
        self.shrink, self.enlarge = Resize(side, config.side), Resize(config.side, side)
        self.trunk = Trunk(config.network, config.stages)
        half = config.side // 2
        self.stem = nn.Sequential(nn.Conv2d(channels, config.width, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        self.encoders = nn.ModuleList([Encoder(half >> level, config) for level in range(config.levels)])
        widths, base = [config.width], half  # of the decoder's layers, from the last to the first
        while base > SMALLEST and base % 2 == 0:
            widths.append(min(2 * widths[-1], config.widest))
            base //= 2
        shape = (widths[-1], base, base)
        self.decoder = nn.Sequential(
            nn.Linear(config.levels * config.latent, widths[-1] * base**2), nn.LeakyReLU(0.2), nn.Unflatten(1, shape)
        )
        for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.decoder.extend([nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)])
        self.decoder.extend([nn.ConvTranspose2d(config.width, channels, 4, stride=2, padding=1), nn.Sigmoid()])

    def rebuild(self, images: Tensor) -> Tensor:
        """Images (n, c, side, side) → x̂ of the same shape."""
        features, latents = self.stem(images), []
        for level, encoder in enumerate(self.encoders):
            latents.append(encoder(F.avg_pool2d(features, 2**level) if level else features))
        rebuilt: Tensor = self.decoder(torch.cat(latents, dim=1))  # z = (z_1, …, z_L)
        return rebuilt

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the pixels plus the weighted error of deep features."""
        images = self.shrink(tiles)
        rebuilt = self.rebuild(images).float()
        perceptual = perceptual_loss(self.trunk(images), self.trunk(rebuilt))
        return F.mse_loss(rebuilt, images) + self.config.perceptual * perceptual

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        images = self.shrink(tiles)
        rebuilt = self.rebuild(images)
        perceptual = perceptual_map(*self.trunk.pair(images, rebuilt), self.config.side)
        error = ((images - rebuilt) ** 2).mean(dim=1) + self.config.perceptual * perceptual  # (n, side, side)
        score = error.mean(dim=(1, 2)) if self.config.score == "mean" else error.amax(dim=(1, 2))
        return score, self.enlarge(error[:, None])[:, 0], self.enlarge(rebuilt)


class PyramidAutoencoder(LearnedDetector):
    """Reconstruction error, in pixels and features, of an autoencoder with several resolutions."""

    name: ClassVar[str] = "pyramid-autoencoder"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 8, "widest": 64, "latent": 32, "steps": 500, "learning_rate": 2e-3},
        "full": {"side": 256, "widest": 512, "latent": 128, "batch": 32, "steps": 20_000},
    }

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return PyramidNetwork(side, channels, self.config)

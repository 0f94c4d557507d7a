"""pyramid-autoencoder: an autoencoder that looks at a part at several resolutions at once, and is judged by features.

Paper: Mishra, Piciarelli & Foresti, "Image Anomaly Detection by Aggregating Deep Pyramidal Representations", ICPR
Workshops 2020. Written from summaries of the paper; no code of others. Symbols: x picture, x̂ reconstruction, l level of
the pyramid, z_l its latent vector.

A convolution makes features of the picture; these are averaged down to a pyramid. On each of its levels lies an encoder
of its own that ends in a latent vector; all latent vectors together are decoded to one reconstruction. Its error is
that of the pixels plus that of deep features (perceptual loss), in training and in the map alike.

Differs from the paper:
- Numbers of levels, layers and values are ours. Tiles are brought to `side` inside the graph.
- The perceptual loss compares the frozen feature network of `graphs.features` in place of VGG, and directions of
  features in place of their values (`nn.losses`), so that its weight means the same at every stage.
- `score` can also be the highest value of the map, which finds defects too small to move the mean.
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

SMALLEST = 8  # positions a side: a larger grid is halved once more


class Settings(Schedule):
    """Settings of `pyramid-autoencoder`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"score"}

    score: Literal["mean", "max"] = "mean"
    """Image score: mean or maximum of the map."""
    side: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    """Pixels a side to which tiles are resized."""
    levels: Annotated[int, Field(ge=1, le=4)] = 3
    """Levels of the pyramid; each has half the side of the one before."""
    width: Annotated[int, Field(ge=1)] = 32
    """Channels of the features; each next layer has twice as many, up to `widest`."""
    widest: Annotated[int, Field(ge=1)] = 256
    """The most channels that a layer has."""
    latent: Annotated[int, Field(ge=1)] = 64
    """Values of the latent vector of each level."""
    perceptual: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the error of deep features; the weight of the pixel error is 1."""
    network: str = "efficientnet-lite0"
    """Name of the feature graph of the perceptual loss; `andon features list` lists them."""
    stages: Annotated[tuple[int, ...], Field(min_length=1, strict=False)] = (2, 4)
    """Blocks of the feature graph in the perceptual loss."""


class Encoder(nn.Sequential):
    """One level's encoder: strided convolutions and a latent vector."""

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
    """Features, a pyramid of them, an encoder a level, and one decoder of all latent vectors."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config = config
        self.shrink, self.enlarge = Resize(side, config.side), Resize(config.side, side)
        self.trunk = Trunk(config.network, config.stages)
        half = config.side // 2
        self.stem = nn.Sequential(nn.Conv2d(channels, config.width, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        self.encoders = nn.ModuleList([Encoder(half >> level, config) for level in range(config.levels)])
        widths, base = [config.width], half  # of the decoder, from its end
        while base > SMALLEST and base % 2 == 0:
            widths.append(min(2 * widths[-1], config.widest))
            base //= 2
        shape = (widths[-1], base, base)
        self.decoder = nn.Sequential(
            nn.Linear(config.levels * config.latent, widths[-1] * base**2), nn.LeakyReLU(0.2), nn.Unflatten(1, shape)
        )
        for here, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.decoder.extend([nn.ConvTranspose2d(here, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)])
        self.decoder.extend([nn.ConvTranspose2d(config.width, channels, 4, stride=2, padding=1), nn.Sigmoid()])

    def rebuild(self, images: Tensor) -> Tensor:
        """Images (n, c, side, side) → x̂ of the same shape."""
        features, latents = self.stem(images), []
        for level, encoder in enumerate(self.encoders):
            latents.append(encoder(F.avg_pool2d(features, 2**level) if level else features))
        rebuilt: Tensor = self.decoder(torch.cat(latents, dim=1))  # z = (z_1, …, z_L)
        return rebuilt

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the pixels, and the weighted error of deep features."""
        images = self.shrink(tiles)
        rebuilt = self.rebuild(images).float()
        seen = perceptual_loss(self.trunk(images), self.trunk(rebuilt))
        return F.mse_loss(rebuilt, images) + self.config.perceptual * seen

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        images = self.shrink(tiles)
        rebuilt = self.rebuild(images)
        seen = perceptual_map(*self.trunk.pair(images, rebuilt), self.config.side)
        error = ((images - rebuilt) ** 2).mean(dim=1) + self.config.perceptual * seen  # (n, side, side)
        score = error.mean(dim=(1, 2)) if self.config.score == "mean" else error.amax(dim=(1, 2))
        return score, self.enlarge(error[:, None])[:, 0], self.enlarge(rebuilt)


class PyramidAutoencoder(LearnedDetector):
    """The error, in pixels and in features, of a reconstruction from several resolutions."""

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

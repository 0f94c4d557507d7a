"""autoencoder: reconstruction error of an autoencoder that was trained on good parts.

Paper: Saeedi & Giusti, "Anomaly Detection for Industrial Inspection using Convolutional Autoencoder and Deep
Feature-based One-class Classification", VISAPP 2022; its comparison method "AE", the network without patches and
conditions. SSIM as loss and score: Bergmann et al., "Improving Unsupervised Defect Segmentation by Applying Structural
Similarity to Autoencoders", VISAPP 2019. Written from the papers; no code of others. Symbols: E encoder, D decoder,
z latent vector, x̂ = D(E(x)) reconstruction, λ weight of the sparsity, a activations of the bottleneck.

Differs from the paper:
- The numbers of layers, channels and latent values, λ, and the length of the training are our own; the paper does not
  state them.
- Errors and activations enter as means, not sums, so that settings suit every resolution.
- `score` can also be the highest value of the map, which detects defects that are too small to change the mean.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from andon.nn.convolutional import Odd, decoder, encoder, halvings, smooth
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.losses import ssim


class Settings(Schedule):
    """Settings of `autoencoder`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"score", "smooth"}

    objective: Literal["l2", "ssim"] = "l2"
    """Error that is the training loss and the anomaly map: squared error, or 1 − SSIM."""
    score: Literal["mean", "max"] = "mean"
    """Image score: mean or maximum of the map."""
    width: Annotated[int, Field(ge=1)] = 32
    """Channels of the first layer; each next layer has twice as many, up to `widest`."""
    widest: Annotated[int, Field(ge=1)] = 256
    """Greatest number of channels of a layer."""
    latent: Annotated[int, Field(ge=1)] = 128
    """Number of values of the latent vector."""
    sparsity: Annotated[float, Field(ge=0)] = 1e-4
    """λ, weight of the mean absolute value of the latent vector in the loss; 0: none."""
    smooth: Annotated[Odd, Field(ge=1, le=63)] = 1
    """Side of the window over which the map is averaged, pixels, odd; 1: no averaging."""
    window: Annotated[Odd, Field(ge=3, le=63)] = 11
    """Side of the window of SSIM, pixels, odd."""
    sigma: Annotated[float, Field(gt=0)] = 1.5
    """Standard deviation of the window's Gaussian weights, pixels."""


class AutoencoderNetwork(Network):
    """Strided convolutions, a latent vector, strided transposed convolutions; no pooling."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config = config
        grids = halvings(side, channels, config.width, config.widest)
        self.encoder = encoder(grids, config.latent)
        self.decoder = decoder(grids, config.latent, nn.Sigmoid())

    def rebuild(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Return x̂ (n, c, t, t) and the bottleneck's activations (n, latent)."""
        latent = self.encoder(tiles)
        return self.decoder(latent), latent  # eq. 1: x̂ = D(E(x)) = D(z)

    def error(self, tiles: Tensor, rebuilt: Tensor) -> Tensor:
        """Return the error (n, c, t, t) of a reconstruction at every value."""
        if self.config.objective == "ssim":
            return 1 - ssim(tiles, rebuilt, self.config.window, self.config.sigma)
        return (tiles - rebuilt) ** 2  # eq. 2

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Eq. 3: L(x, x̂) + λ Σ |a|, as means."""
        rebuilt, latent = self.rebuild(tiles)
        return self.error(tiles, rebuilt.float()).mean() + self.config.sparsity * latent.abs().mean()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t), z (n, latent)."""
        rebuilt, latent = self.rebuild(tiles)
        error = smooth(self.error(tiles, rebuilt).mean(dim=1), self.config.smooth)  # (n, t, t)
        score = error.mean(dim=(1, 2)) if self.config.score == "mean" else error.amax(dim=(1, 2))
        return score, error, rebuilt, latent


class Autoencoder(LearnedDetector):
    """Reconstruction error of an autoencoder with a fully connected bottleneck."""

    name: ClassVar[str] = "autoencoder"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 8, "widest": 128, "steps": 1000, "learning_rate": 2e-3},
        "full": {"width": 32, "widest": 512, "latent": 256, "batch": 32, "steps": 20_000},
    }

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return AutoencoderNetwork(side, channels, self.config)

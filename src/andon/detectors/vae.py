"""vae: reconstruction error of a variational autoencoder that was trained on good parts.

Paper: Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014. Reconstruction error as the anomaly score is
how comparisons on MVTec AD use it. Written from general knowledge of the papers, whose texts were not available; no
code of others. Symbols: x picture, z latent vector, x̂ mean of the decoder's distribution p(x|z), μ and σ² mean and
variance of the encoder's distribution q(z|x), ε noise, p(z) the standard normal distribution, L the evidence lower
bound (ELBO) of log p(x).

Differs from the paper:
- Strided convolutions in place of one hidden layer; numbers of layers, channels and latent values are
  our own.
- The decoder's distribution is normal with one fixed standard deviation, the setting `noise`; the paper's decoder
  predicts the standard deviation too.
- The loss is −L divided by the number of values of an image, without constants, so that a learning rate suits every
  resolution. The optimiser is that of `nn.loop`, not Adagrad.
- The score decodes μ and draws no random z, so that an image always has the same score. The reconstruction term of
  the score `elbo` is therefore that of μ, not an expectation.
- `score` can also be the highest value of the map, which detects defects that are too small to change the mean.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from andon.nn.convolutional import Odd, decoder, encoder, halvings, smooth
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.resize import Resize


class Settings(Schedule):
    """Settings of `vae`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"score", "smooth"}

    score: Literal["mean", "max", "elbo"] = "mean"
    """Image score: mean or maximum of the map, or −L divided by the number of values (elbo)."""
    side: Annotated[int, Field(ge=32)] = 128
    """Side of the network's input, pixels; larger tiles are reduced to it."""
    width: Annotated[int, Field(ge=1)] = 32
    """Channels of the first layer; each next layer has twice as many, up to `widest`."""
    widest: Annotated[int, Field(ge=1)] = 256
    """Greatest number of channels of a layer."""
    latent: Annotated[int, Field(ge=1)] = 128
    """Number of values of the latent vector z."""
    noise: Annotated[float, Field(gt=0)] = 0.1
    """Standard deviation of p(x|z), for pixel values in [0, 1]; a smaller one gives the KL divergence less weight."""
    smooth: Annotated[Odd, Field(ge=1, le=63)] = 1
    """Side of the window over which the map is averaged, pixels, odd; 1: no averaging."""


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q(z|x) ‖ p(z)) (n,) of normal distributions with these means and logarithms of variances (n, latent)."""
    # Appendix B: ½ Σ (μ² + σ² − 1 − log σ²)
    return (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2


class VaeNetwork(Network):
    """The encoder of μ and log σ², and the decoder of x̂."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config, self.side = config, min(side, config.side)
        self.shrink, self.enlarge = Resize(side, self.side), Resize(self.side, side)
        grids = halvings(self.side, channels, config.width, config.widest)
        self.encoder = encoder(grids, 2 * config.latent)
        self.decoder = decoder(grids, config.latent, nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² (n, latent) of images (n, c, s, s)."""
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        return mean, log_variance

    def bound(self, x: Tensor, rebuilt: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return −L (n,) of images (n, c, s, s), divided by the number of values of an image, without constants."""
        # Eq. 10: −L = KL(q(z|x) ‖ p(z)) − log p(x|z), and −log p(x|z) = ‖x − x̂‖² / (2 noise²) + constants
        misfit = ((x - rebuilt) ** 2).sum(dim=(1, 2, 3)) / (2 * self.config.noise**2)
        return (misfit + divergence(mean, log_variance)) / x[0].numel()

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """−L of tiles (n, c, t, t), with one draw of z for each."""
        x = self.shrink(tiles)
        mean, log_variance = self.encode(x)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        z = mean + (log_variance / 2).exp() * noise  # z = μ + σ ε, section 2.4
        return self.bound(x, self.decoder(z).float(), mean, log_variance).mean()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        x = self.shrink(tiles)
        mean, log_variance = self.encode(x)
        rebuilt = self.decoder(mean)
        error = ((x - rebuilt) ** 2).mean(dim=1, keepdim=True)  # (n, 1, s, s)
        error_map = smooth(self.enlarge(error)[:, 0], self.config.smooth)
        if self.config.score == "elbo":
            score = self.bound(x, rebuilt, mean, log_variance)
        else:
            score = error_map.mean(dim=(1, 2)) if self.config.score == "mean" else error_map.amax(dim=(1, 2))
        return score, error_map, self.enlarge(rebuilt)


class Vae(LearnedDetector):
    """The reconstruction error of a variational autoencoder."""

    name: ClassVar[str] = "vae"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"side": 128, "width": 8, "widest": 128, "steps": 1000, "learning_rate": 2e-3},
        "full": {"side": 256, "width": 32, "widest": 512, "latent": 256, "batch": 32, "steps": 20_000},
    }

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return VaeNetwork(side, channels, self.config)

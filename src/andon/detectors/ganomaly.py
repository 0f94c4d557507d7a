"""ganomaly: distance between the latent vectors of an image and of its reconstruction.

Paper: Akcay, Atapour-Abarghouei & Breckon, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training",
ACCV 2018 (arXiv 1805.06725). Layers: Radford, Metz & Chintala (DCGAN), ICLR 2016, as in the paper. Written from general
knowledge of the papers, whose texts were not available; no code of others. Symbols: x image, G_E and G_D encoder and
decoder of the generator G, z = G_E(x), x̂ = G_D(z) = G(x), E the second encoder, ẑ = E(x̂), D
discriminator, f features of its last convolution, A score.

Differs from the paper:
- Norms are means over their values, the L2 norms means of squares, so that weights suit every size.
- Scores are not scaled to [0, 1] over a test set, as in eq. 6, because a score must not depend on other images.
- The paper has no anomaly map; ours is |x − x̂|, averaged over the channels.
- G, E and D are updated at the same time: one loss adds the terms of both sides, and in each term the weights of the
  other side are fixed. The optimiser is that of `nn.loop` (β₁ = 0.9; the paper: Adam, β₁ = 0.5).
- A fully connected layer converts the last grid to a vector; it is equivalent to the paper's convolution over the whole
  grid. The decoder has LeakyReLU as the encoders; the paper has ReLU.
- If tiles are held out, early stopping uses w_con L_con + w_enc L_enc, the terms that do not depend on D.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from andon.nn.convolutional import Critic, decoder, encoder, halvings
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.resize import Resize


class Settings(Schedule):
    """Settings of `ganomaly`, and of its training."""

    side: Annotated[int, Field(ge=32)] = 64
    """Side of the networks' input, pixels; larger tiles are reduced to it."""
    width: Annotated[int, Field(ge=1)] = 32
    """Channels of the first layers; each next layer has twice as many, up to `widest`."""
    widest: Annotated[int, Field(ge=1)] = 256
    """Greatest number of channels of a layer."""
    latent: Annotated[int, Field(ge=1)] = 100
    """Number of values of the latent vector z."""
    adversarial: Annotated[float, Field(ge=0)] = 1.0
    """w_adv, weight of the adversarial loss."""
    contextual: Annotated[float, Field(ge=0)] = 50.0
    """w_con, weight of the reconstruction error."""
    encoding: Annotated[float, Field(ge=0)] = 1.0
    """w_enc, weight of the distance between the two latent vectors."""
    batch: Annotated[int, Field(ge=2)] = 16
    """Tiles in a step; batch normalisation needs at least two."""
    clip: Annotated[float, Field(gt=0)] = 100.0
    """Greatest norm of a gradient; a greater one is scaled down to it. The paper does not clip."""


class GanomalyNetwork(Network):
    """G_E, G_D, E and D, on values in [-1, 1], because the paper's decoder ends in a tanh."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config, self.side = config, min(side, config.side)
        self.shrink, self.enlarge = Resize(side, self.side), Resize(self.side, side)
        grids = halvings(self.side, channels, config.width, config.widest)
        self.encoder = encoder(grids, config.latent, norm=True)
        self.decoder = decoder(grids, config.latent, nn.Tanh(), norm=True)
        self.again = encoder(grids, config.latent, norm=True)
        self.critic = Critic(grids, norm=True)

    def rebuild(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x, x̂ (n, c, s, s), z and ẑ (n, latent) of tiles (n, c, t, t)."""
        x = 2 * self.shrink(tiles) - 1
        z = self.encoder(x)
        rebuilt = self.decoder(z)
        return x, rebuilt, z, self.again(rebuilt)

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of G and E, eq. 4, plus that of D; in evaluation without the terms that depend on D."""
        x, rebuilt, z, z_again = self.rebuild(tiles)
        contextual = (x - rebuilt.float()).abs().mean()  # eq. 2: L_con = ‖x − G(x)‖₁
        encoding = ((z - z_again).float() ** 2).mean()  # eq. 3: L_enc = ‖G_E(x) − E(G(x))‖₂
        reconstruction = self.config.contextual * contextual + self.config.encoding * encoding
        if not self.training:
            return reconstruction
        real_features, real = self.critic(x)
        _, fake = self.critic(rebuilt.detach())
        discriminator = F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()  # −log D(x) − log(1 − D(x̂))
        fake_features, _ = self.critic.frozen(rebuilt)
        adversarial = ((real_features.detach() - fake_features).float() ** 2).mean()  # eq. 1: L_adv = ‖f(x) − f(G(x))‖₂
        total: Tensor = discriminator + self.config.adversarial * adversarial + reconstruction
        return total

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        x, rebuilt, z, z_again = self.rebuild(tiles)
        score = (z - z_again).abs().mean(dim=1)  # eq. 5: A(x) = ‖G_E(x) − E(G(x))‖₁
        error = (x - rebuilt).abs().mean(dim=1, keepdim=True) / 2  # in [0, 1], as the tiles
        return score, self.enlarge(error)[:, 0], self.enlarge((rebuilt + 1) / 2)


class Ganomaly(LearnedDetector):
    """The distance between the latent vectors of an image and of its reconstruction."""

    name: ClassVar[str] = "ganomaly"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 16, "widest": 128, "batch": 8, "steps": 1000, "hold_out": 0.0},
        "full": {"width": 64, "widest": 512, "batch": 64, "steps": 15_000, "learning_rate": 2e-3, "hold_out": 0.0},
    }

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained networks for tiles (n, channels, side, side)."""
        return GanomalyNetwork(side, channels, self.config)

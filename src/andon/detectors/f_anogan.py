"""f-anogan: reconstruction error of a generative adversarial network with an encoder, trained on good parts.

Paper: Schlegl, Seeböck, Waldstein, Langs & Schmidt-Erfurth, "f-AnoGAN: Fast unsupervised anomaly detection with
generative adversarial networks", Medical Image Analysis 54, 2019. First stage: Gulrajani, Ahmed, Arjovsky, Dumoulin &
Courville, "Improved Training of Wasserstein GANs" (WGAN-GP), NIPS 2017. Written from general knowledge of the papers,
whose texts were not available; no code of others. Symbols: x image, z latent vector, G generator, D critic, f features
of its last convolution, n and n_d numbers of values of x and of f, E encoder, x̂ = G(E(x)), x̃ interpolation between a
good and a generated image, λ weight of the gradient penalty, n_critic steps of D for each step of G, κ weight of the
features, A score.

Differs from the papers:
- Plain strided convolutions (DCGAN) in place of residual blocks; the z of E is not bounded.
- G is updated in every n_critic-th step of the loop, together with D and on the same images. In the papers, n_critic
  updates of D precede one update of G.
- The optimiser is that of `nn.loop` (β = 0.9, 0.999); WGAN-GP uses Adam with β = 0, 0.9, and the encoder RMSProp.
- The map is |x − x̂|, averaged over the channels.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from andon.detector import QUIET, Forecast, Run, Tiles
from andon.nn.convolutional import Critic, decoder, encoder, halvings
from andon.nn.data import mix
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Loop, Schedule
from andon.nn.resize import Resize


class GanSettings(Schedule):
    """Settings of a Wasserstein GAN with gradient penalty."""

    side: Annotated[int, Field(ge=32)] = 64
    """Side of the networks' input, pixels; larger tiles are reduced to it."""
    width: Annotated[int, Field(ge=1)] = 32
    """Channels of the first layers; each next layer has twice as many, up to `widest`."""
    widest: Annotated[int, Field(ge=1)] = 256
    """Greatest number of channels of a layer."""
    latent: Annotated[int, Field(ge=1)] = 128
    """Number of values of the latent vector z."""
    penalty: Annotated[float, Field(ge=0)] = 10.0
    """λ, weight of the gradient penalty in the critic's loss."""
    critic_steps: Annotated[int, Field(ge=1)] = 5
    """n_critic, number of steps of the critic for each step of the generator."""
    batch: Annotated[int, Field(ge=2)] = 16
    """Tiles in a step; batch normalisation needs at least two."""
    clip: Annotated[float, Field(gt=0)] = 100.0
    """Greatest norm of a gradient; a greater one is scaled down to it. The papers do not clip."""


class Settings(GanSettings):
    """Settings of `f-anogan`, and of its training; `steps`, `learning_rate` and `hold_out` are those of the encoder."""

    gan_steps: Annotated[int, Field(ge=1)] = 4000
    """Number of training steps of the first stage, the GAN; `steps` is that of the encoder."""
    gan_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Highest learning rate of the first stage."""
    features: Annotated[float, Field(ge=0)] = 1.0
    """κ, weight of the error of the critic's features in loss and score."""


class Gan(nn.Module):
    """G and D, on values in [-1, 1]. D has no batch normalisation: its gradient penalty is for single images."""

    def __init__(self, side: int, channels: int, config: GanSettings) -> None:
        """Build them for tiles (n, channels, side, side)."""
        super().__init__()
        self.config, self.side = config, min(side, config.side)
        self.shrink = Resize(side, self.side)
        grids = halvings(self.side, channels, config.width, config.widest)
        self.generator = decoder(grids, config.latent, nn.Tanh(), norm=True)
        self.critic = Critic(grids)

    def loss(self, tiles: Tensor, generator: torch.Generator, both: bool) -> Tensor:
        """Loss of D. With `both`, its gradient includes that of G's loss; its value does not."""
        x = 2 * self.shrink(tiles) - 1
        z = torch.randn(len(x), self.config.latent, generator=generator, device=x.device)
        with torch.set_grad_enabled(both):
            generated = self.generator(z)
        between = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)
        gap = self.critic(generated.detach())[1].float().mean() - self.critic(x)[1].float().mean()
        # WGAN-GP eq. 3: D(G(z)) − D(x) + λ (‖∇D(x̃)‖₂ − 1)²
        loss: Tensor = gap + self.config.penalty * self.gradient_penalty(
            between * x + (1 - between) * generated.detach().float()
        )
        if both:
            reward = self.critic.frozen(generated)[1].float().mean()
            loss = loss - (reward - reward.detach())  # G minimises −D(G(z)); the difference is 0
        return loss

    def gradient_penalty(self, points: Tensor) -> Tensor:
        """Mean of (‖∇D‖₂ − 1)² at points (n, c, s, s)."""
        # In single precision: the half precision of autocast on a GPU is too low for second derivatives.
        with torch.autocast(points.device.type, enabled=False):
            points = points.requires_grad_()
            (gradient,) = torch.autograd.grad(self.critic(points)[1].sum(), points, create_graph=True)
            excess: Tensor = gradient.flatten(1).norm(dim=1) - 1
            return (excess**2).mean()


class FAnoganNetwork(Network):
    """E, in front of a trained G and D."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build them for tiles (n, channels, side, side)."""
        super().__init__()
        self.config, self.gan = config, Gan(side, channels, config)
        self.enlarge = Resize(self.gan.side, side)
        grids = halvings(self.gan.side, channels, config.width, config.widest)
        self.encoder = encoder(grids, config.latent, norm=True)

    def train(self, mode: bool = True) -> Self:
        """Switch E between training and evaluation mode; G and D stay in evaluation mode."""
        super().train(mode)
        self.gan.eval()
        return self

    def rebuild(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and x̂ (n, c, s, s) of tiles (n, c, t, t)."""
        x = 2 * self.gan.shrink(tiles) - 1
        return x, self.gan.generator(self.encoder(x))

    def residual(self, x: Tensor, rebuilt: Tensor) -> Tensor:
        """A (n,): error of the reconstructions of images (n, c, s, s), and of their features."""
        # A_R = ‖x − G(E(x))‖² / n, A_D = ‖f(x) − f(G(E(x)))‖² / n_d, A = A_R + κ A_D; the loss of "izi_f" is its mean
        difference = (self.gan.critic.features(x) - self.gan.critic.features(rebuilt)).float()
        image = ((x - rebuilt.float()) ** 2).mean(dim=(1, 2, 3))
        total: Tensor = image + self.config.features * (difference**2).mean(dim=1)
        return total

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Mean of A."""
        return self.residual(*self.rebuild(tiles)).mean()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        x, rebuilt = self.rebuild(tiles)
        error = (x - rebuilt).abs().mean(dim=1, keepdim=True) / 2  # in [0, 1], as the tiles
        return self.residual(x, rebuilt), self.enlarge(error)[:, 0], self.enlarge((rebuilt + 1) / 2)


class FAnogan(LearnedDetector):
    """The error of the image that a generator of good parts makes from the encoded image."""

    name: ClassVar[str] = "f-anogan"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {
            "width": 16,
            "widest": 128,
            "batch": 8,
            "gan_steps": 1200,
            "gan_learning_rate": 5e-4,
            "steps": 500,
        },
        "full": {"width": 64, "widest": 512, "batch": 64, "gan_steps": 50_000, "steps": 50_000},
    }

    def network(self, side: int, channels: int) -> FAnoganNetwork:
        """Build the untrained networks for tiles (n, channels, side, side)."""
        return FAnoganNetwork(side, channels, self.config)

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate time and memory of both stages of `fit` from a few timed steps of each."""
        with torch.random.fork_rng(devices=[]):
            forecasts = [loop.forecast(tiles) for _, loop in self._stages(self._untrained(tiles), run)]
        return Forecast(sum(f.seconds for f in forecasts), max(f.megabytes for f in forecasts))

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Train G and D on good tiles, then E; a second call starts anew."""
        curves = ["stage,step,learning_rate,loss,held_out_loss,seconds"]
        with torch.random.fork_rng(devices=[]):
            network = self._untrained(tiles)
            for stage, loop in self._stages(network, run):
                run.tell(f"training the {stage}")
                lines = loop.fit(tiles, f"{self.name} {stage}").splitlines()
                curves += [f"{stage},{line}" for line in lines[1:]]
        self.curve = "\n".join([*curves, ""])
        return self._keep(network, tiles)

    def _untrained(self, tiles: Tiles) -> FAnoganNetwork:
        torch.manual_seed(mix(self.seed, "weights"))
        return self.network(tiles.side, tiles.channels)

    def _stages(self, network: FAnoganNetwork, run: Run) -> Iterator[tuple[str, Loop]]:
        """Yield the loops of both stages; run the first before taking the second. Each has half of `run.seconds`."""
        config, half = self.config, run.seconds and run.seconds / 2
        runs = {
            stage: replace(run, seconds=half, folder=run.folder and run.folder / stage) for stage in ("gan", "encoder")
        }
        # The loss of a GAN does not measure its quality, so nothing is held out for early stopping.
        first = {"steps": config.gan_steps, "learning_rate": config.gan_learning_rate, "hold_out": 0.0}

        def adversarial(batch: Tensor, generator: torch.Generator) -> Tensor:
            return network.gan.loss(batch, generator, (loop.state.step + 1) % config.critic_steps == 0)

        loop = Loop(network.gan, adversarial, config.model_copy(update=first), self.seed, runs["gan"])
        yield "gan", loop
        network.gan.requires_grad_(False)
        yield "encoder", Loop(network, network.loss, config, self.seed, runs["encoder"])

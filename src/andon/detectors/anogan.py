"""anogan: error of the most similar picture that a generator of good parts makes, found by gradient descent.

Paper: Schlegl, Seeböck, Waldstein, Schmidt-Erfurth & Langs, "Unsupervised Anomaly Detection with Generative Adversarial
Networks to Guide Marker Discovery", IPMI 2017. The generative adversarial network is that of `f-anogan`. Written from
general knowledge of the paper, whose text was not available; no code of others. Symbols: x image, z latent vector, G
generator, f features of the last convolution of the critic, λ weight of the features, Γ number of steps of the search.

The score has its own search for each image: z starts at 0 and goes Γ steps down the gradient of
A(z) = (1 − λ) ‖x − G(z)‖² + λ ‖f(x) − f(G(z))‖², and the score is A at the last z. The graph contains the search as a
loop, whose gradient is written out layer by layer; `score` uses the gradient of torch.

Differs from the paper:
- A Wasserstein GAN with gradient penalty, which trains more stably than the paper's.
- Means of squares in place of sums of absolute values, so that the gradient is continuous.
- z starts at the mean of its prior, not at a random value, so that an image always has the same score.
- A step has the length `step` in the direction of the gradient, and steps become linearly shorter down to 0. Where the
  gradient is less than a tenth of the longest so far, they are shorter in proportion: near a minimum its direction is
  that of rounding errors, which steps of a fixed length would enlarge.
"""

from typing import Annotated, Any, ClassVar

import numpy as np
import spox
import spox.opset.ai.onnx.v17 as op
import torch
from pydantic import BaseModel, Field
from spox import Var
from torch import Tensor, nn
from torch.nn import functional as F

from andon.detector import Run, Tiles
from andon.detectors.f_anogan import Gan, GanSettings
from andon.nn.data import mix
from andon.nn.learned import LearnedDetector, Network, export
from andon.nn.loop import Loop
from andon.nn.resize import Resize

FLAT = 0.1  # share of the longest gradient so far; steps down a smaller one are shorter
TINY = 1e-12  # keeps the division defined


class Settings(GanSettings):
    """Settings of `anogan`, and of the training of its GAN."""

    unlearnt: ClassVar[frozenset[str]] = GanSettings.unlearnt | {"features", "searches", "step"}

    hold_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the parts that is held out; the loss of a GAN does not measure its quality, so 0 is best."""
    features: Annotated[float, Field(ge=0, le=1)] = 0.1
    """λ, weight of the critic's features in the score."""
    searches: Annotated[int, Field(ge=1)] = 500
    """Γ, number of steps of the search for each image."""
    step: Annotated[float, Field(gt=0)] = 0.3
    """Length of the first step of the search; the values of z have a standard deviation of 1."""


class AnoGanNetwork(Network):
    """G and the critic, and the search."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config, self.gan = config, Gan(side, channels, config)
        self.enlarge = Resize(self.gan.side, side)

    def distance(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """A (n,) of images (n, c, s, s) and latent vectors (n, latent), and G(z)."""
        rebuilt = self.gan.generator(z)
        features = self.gan.critic.features
        image, deep = ((x - rebuilt) ** 2).mean(dim=(1, 2, 3)), ((features(x) - features(rebuilt)) ** 2).mean(dim=1)
        return (1 - self.config.features) * image + self.config.features * deep, rebuilt

    def search(self, x: Tensor) -> Tensor:
        """Return the last z (n, latent) of the search for images (n, c, s, s)."""
        z, least = x.new_zeros(len(x), self.config.latent), x.new_full((len(x), 1), TINY)
        for number in range(self.config.searches):
            with torch.enable_grad():
                z.requires_grad_()
                (down,) = torch.autograd.grad(self.distance(x, z)[0].sum(), z)
            norm = down.norm(dim=1, keepdim=True)
            least = torch.maximum(least, FLAT * norm)
            length = self.config.step * (1 - number / self.config.searches)
            z = z.detach() - length * down / torch.maximum(norm, least)
        return z

    def gradient(self, x: Tensor, z: Tensor) -> Tensor:
        """Gradient (n, latent) of A with respect to z, written out."""
        s, critic = self.config, self.gan.critic.features
        rebuilt = self.gan.generator(z)
        deep = critic(rebuilt) - critic(x)
        image = 2 * (1 - s.features) / x[0].numel() * (rebuilt - x)
        return pulled_back(
            self.gan.generator, z, image + pulled_back(critic, rebuilt, 2 * s.features / deep.shape[1] * deep)
        )

    def result(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """Score (n,), map (n, t, t) and reconstruction (n, c, t, t) of the last z."""
        score, rebuilt = self.distance(x, z)
        error = (x - rebuilt).abs().mean(dim=1, keepdim=True) / 2  # in [0, 1], as the tiles
        return score, self.enlarge(error)[:, 0], self.enlarge((rebuilt + 1) / 2)

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        x = 2 * self.gan.shrink(tiles) - 1
        return self.result(x, self.search(x))


def pulled_back(layers: nn.Sequential, x: Tensor, slope: Tensor) -> Tensor:
    """Vector-Jacobian product of a sequence of layers at x: the gradient of Σ slope · layers(x) with respect to x."""
    inputs = [x]
    for layer in layers:
        inputs.append(layer(inputs[-1]))
    for layer, before, after in zip(reversed(layers), inputs[-2::-1], inputs[:0:-1], strict=True):
        if isinstance(layer, nn.Linear):
            slope = slope @ layer.weight
        elif isinstance(layer, nn.Flatten | nn.Unflatten):
            slope = slope.reshape(-1, *before.shape[1:])
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_var is not None
            slope = slope * (layer.weight / (layer.running_var + layer.eps).sqrt())[:, None, None]
        elif isinstance(layer, nn.LeakyReLU):
            slope = torch.where(before > 0, slope, layer.negative_slope * slope)
        elif isinstance(layer, nn.Tanh):
            slope = slope * (1 - after**2)
        elif isinstance(layer, nn.ConvTranspose2d):
            slope = F.conv2d(slope, layer.weight, stride=2, padding=1)
        else:
            assert isinstance(layer, nn.Conv2d)
            slope = F.conv_transpose2d(slope, layer.weight, stride=2, padding=1, output_padding=before.shape[2] % 2)
    return slope


class Packed(nn.Module):
    """A function of x (n, c, s, s) and z (n, latent) as one of a single tensor (n, c s s + latent), for the export."""

    def __init__(self, network: AnoGanNetwork, channels: int, name: str) -> None:
        """Take the method of the network with this name."""
        super().__init__()
        self.network, self.name, self.shape = network, name, (channels, network.gan.side, network.gan.side)

    def forward(self, both: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Unpack, and call it."""
        latent = self.network.config.latent
        x, z = both[:, :-latent].reshape(-1, *self.shape), both[:, -latent:]
        return self.network.gradient(x, z) if self.name == "gradient" else self.network.result(x, z)


class Front(nn.Module):
    """Tiles (n, c, t, t) in [0, 1] → x (n, c s s), flat, in [-1, 1]."""

    def __init__(self, network: AnoGanNetwork) -> None:
        """Take its reduction."""
        super().__init__()
        self.shrink = network.gan.shrink

    def forward(self, tiles: Tensor) -> Tensor:
        """Reduce and flatten."""
        flat: Tensor = (2 * self.shrink(tiles) - 1).flatten(1)
        return flat


class AnoGan(LearnedDetector):
    """The error of the nearest image that a generator of good parts can make."""

    name: ClassVar[str] = "anogan"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 16, "widest": 128, "batch": 8, "steps": 1200, "learning_rate": 5e-4, "searches": 100},
        "full": {"width": 64, "widest": 512, "batch": 64, "steps": 50_000, "learning_rate": 1e-4},
    }

    def network(self, side: int, channels: int) -> AnoGanNetwork:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return AnoGanNetwork(side, channels, self.config)

    def _outputs(self, network: Network, tiles: Var) -> dict[str, Var]:
        assert isinstance(network, AnoGanNetwork)
        side, channels, _ = self._shape
        s, size = self.config, channels * network.gan.side**2
        rows = {0: torch.export.Dim("n")}
        front = export(Front(network), torch.zeros(2, channels, side, side), rows, "tiles", ["x"])
        both = torch.zeros(2, size + s.latent)
        gradient = export(Packed(network, channels, "gradient"), both, rows, "both", ["gradient"])
        result = export(Packed(network, channels, "result"), both, rows, "both", ["score", "map", "reconstruction"])
        x = spox.inline(front)(tiles=tiles)["x"]

        def body(number: Var, _: Var, z: Var, least: Var) -> list[Var]:
            down = spox.inline(gradient)(both=op.concat([x, z], axis=1))["gradient"]
            norm = op.sqrt(op.reduce_sum(op.mul(down, down), op.const([1]), keepdims=1))
            least = op.max([least, op.mul(norm, op.const(np.float32(FLAT)))])
            direction = op.div(down, op.max([norm, least]))
            share = op.mul(op.cast(number, to=np.float32), op.const(np.float32(-s.step / s.searches)))
            length = op.add(share, op.const(np.float32(s.step)))
            return [op.const(np.array(True)), op.sub(z, op.mul(length, direction)), least]

        start = op.mul(op.slice(x, op.const([0]), op.const([1]), op.const([1])), op.const(np.float32(0)))
        tiny = op.add(start, op.const(np.float32(TINY)))  # (n, 1)
        start = op.mul(start, op.const(np.zeros((1, s.latent), np.float32)))  # (n, latent) of zeros
        z, _ = op.loop(op.const(np.array(s.searches)), v_initial=[start, tiny], body=body)
        return dict(spox.inline(result)(both=op.concat([x, z], axis=1)))

    def _loop(self, tiles: Tiles, run: Run) -> tuple[Network, Loop]:
        torch.manual_seed(mix(self.seed, "weights"))
        network = self.network(tiles.side, tiles.channels)

        def adversarial(batch: Tensor, generator: torch.Generator) -> Tensor:
            return network.gan.loss(batch, generator, (loop.state.step + 1) % self.config.critic_steps == 0)

        loop = Loop(network, adversarial, self.config, self.seed, run)
        return network, loop

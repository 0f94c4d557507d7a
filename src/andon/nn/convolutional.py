"""Convolutional encoder and decoder between a picture and a vector, for several detectors.

Kernel, stride, slope and the position of batch normalisation are those of DCGAN: Radford, Metz & Chintala,
"Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks", ICLR 2016. Written from
the paper.
"""

from itertools import pairwise
from typing import Annotated, NamedTuple

from pydantic import AfterValidator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

SMALLEST = 8  # positions per side: grids of at least this size are halved once more
SLOPE = 0.2  # of LeakyReLU


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


Odd = Annotated[int, AfterValidator(_odd)]


class Halvings(NamedTuple):
    """The grids from a picture to the last one before the vector, each half as large as the previous one."""

    widths: list[int]  # channels
    sides: list[int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns of the last grid."""
        return self.widths[-1], self.sides[-1], self.sides[-1]

    @property
    def size(self) -> int:
        """Number of values of the last grid."""
        return self.widths[-1] * self.sides[-1] ** 2


def halvings(side: int, channels: int, width: int, widest: int) -> Halvings:
    """Halve pictures (channels, side, side): `width` channels first, then twice as many per step, up to `widest`."""
    widths, sides = [channels], [side]
    while sides[-1] >= SMALLEST:
        widths.append(min(width * 2 ** (len(widths) - 1), widest))
        sides.append(sides[-1] // 2)
    return Halvings(widths, sides)


def descent(grids: Halvings, norm: bool = False) -> nn.Sequential:
    """Build the convolutions from pictures (n, c, s, s) to the values (n, size) of the last grid."""
    layers = nn.Sequential()
    for i, (here, deeper) in enumerate(pairwise(grids.widths)):
        normed = norm and i > 0
        layers.append(nn.Conv2d(here, deeper, 4, stride=2, padding=1, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm2d(deeper))
        layers.append(nn.LeakyReLU(SLOPE))
    return layers.append(nn.Flatten())


def encoder(grids: Halvings, values: int, norm: bool = False) -> nn.Sequential:
    """Build the layers from pictures (n, c, s, s) to vectors (n, values)."""
    return descent(grids, norm).append(nn.Linear(grids.size, values))


def decoder(grids: Halvings, values: int, last: nn.Module, norm: bool = False) -> nn.Sequential:
    """Build the layers from vectors (n, values) to pictures (n, c, s, s); `last`: activation that bounds the output."""
    layers = nn.Sequential(nn.Linear(values, grids.size, bias=not norm), nn.Unflatten(1, grids.shape))
    steps = list(enumerate(zip(pairwise(grids.widths), grids.sides, strict=False)))
    for i, ((here, deeper), larger) in reversed(steps):
        if norm:
            layers.append(nn.BatchNorm2d(deeper))
        layers.append(nn.LeakyReLU(SLOPE))
        # The encoder rounds an odd side down; the output padding restores its last row and column.
        up = nn.ConvTranspose2d(deeper, here, 4, 2, padding=1, output_padding=larger % 2, bias=not (norm and i > 0))
        layers.append(up)
    return layers.append(last)


class Critic(nn.Module):
    """Distinguishes good pictures from generated ones: a discriminator, or the critic of a Wasserstein GAN."""

    def __init__(self, grids: Halvings, norm: bool = False) -> None:
        """Build the network for pictures (n, c, s, s)."""
        super().__init__()
        self.features = descent(grids, norm)
        self.verdict = nn.Linear(grids.size, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (n, size) of the last convolution, and the output (n,), higher for good pictures."""
        features = self.features(pictures)
        return features, self.verdict(features)[:, 0]

    def frozen(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the same with constant weights, so that only the pictures get gradients."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        outputs: tuple[Tensor, Tensor] = functional_call(self, weights, (pictures,))
        return outputs


def smooth(error: Tensor, window: int) -> Tensor:
    """Average maps (n, h, w) over squares of `window`² pixels, window odd; at the border over the pixels inside."""
    if window == 1:
        return error
    return F.avg_pool2d(error[:, None], window, 1, window // 2, count_include_pad=False)[:, 0]

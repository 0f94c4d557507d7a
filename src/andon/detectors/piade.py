"""piade: reconstruction error of an autoencoder with pyramid pooling and dynamic routing.

Paper: Mishra, Piciarelli & Foresti, "A Neural Network for Image Anomaly Detection with Deep Pyramidal Representations
and Dynamic Routing" (PIADE, Pyramidal Image Anomaly Detector), International Journal of Neural Systems 30(10), 2020.
Squeeze-and-excitation: Hu, Shen & Sun, "Squeeze-and-Excitation Networks", CVPR 2018. The first is written from
summaries, the second from the paper; no code of others. Symbols: x image, x̂ reconstruction, C channels of the backbone
(`trunk`).

1. A residual backbone, with squeeze-and-excitation after each stage.
2. Pyramid pooling of its features to grids of 1, 2, 4 and 8 positions a side with C, C/2, C/4 and C/8 channels.
3. Dynamic routing of the pooled features, as capsules of 8 values, into two vectors of 64 values.
4. A linear layer enlarges the longer vector; it is concatenated with the features of the backbone.
5. A decoder of transposed convolutions.

Differs from the paper:
- The backbone is trained from random weights, because andon has no ImageNet weights of a ResNet. The perceptual loss
  uses the frozen feature network of `graphs.features`, and compares directions of features, not values (`nn.losses`).
- Whole tiles are resized to `side` inside the graph; the paper trains on crops of 120². 128 is the nearest side that
  the pooling grids divide.
- The loss has 1 − SSIM in place of −SSIM: the gradient is the same, and a perfect reconstruction has the loss 0.
- The paper does not state how the score combines the terms. Ours scales each term t to (t − least) / (greatest − least)
  over the held-out tiles, which also decide the early stopping. If fewer than two tiles are held out, it uses all
  training tiles, and `fit` reports it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from andon.detector import QUIET, Run, Tiles
from andon.nn.capsules import CapsuleLayer
from andon.nn.data import batches_of, floats, split
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.losses import perceptual_map, ssim
from andon.nn.resize import Resize
from andon.nn.trunk import Trunk

STRIDE = 16  # of the backbone
GRIDS = (1, 2, 4, 8)  # sides of the pooling grids, positions; a grid of side g has C / g channels
PRIMARY = 8  # values of a capsule of pooled features
TERMS = 3  # pixels, structure, features
LEAST_RANGE = 0.01  # least range of a term, as a share of its greatest value; a smaller range is noise


class Settings(Schedule):
    """Settings of `piade`, and of its training."""

    side: Annotated[int, Field(ge=128, multiple_of=128)] = 128
    """Side to which tiles are resized, pixels, a multiple of 128."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Channels of the first stage of the backbone, a multiple of 8; the fourth stage has 8 times as many."""
    blocks: Annotated[int, Field(ge=1)] = 2
    """Number of residual blocks in each of the four stages."""
    squeeze: Annotated[int, Field(ge=1, le=8)] = 8
    """Reduction ratio of squeeze-and-excitation: channels divided by the values of its hidden layer."""
    vector: Annotated[int, Field(ge=1)] = 64
    """Number of values of each of the two vectors."""
    iterations: Annotated[int, Field(ge=1)] = 3
    """Number of iterations of dynamic routing."""
    network: str = "efficientnet-lite0"
    """Name of the feature graph of the perceptual loss; `andon features list` lists them."""
    stages: Annotated[tuple[int, ...], Field(min_length=1, strict=False)] = (2, 4)
    """Numbers of the blocks of the feature graph in the perceptual loss."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """Weight decay of AdamW; 0: Adam."""
    hold_out: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the training parts that is held out for early stopping and for the ranges of the score's terms."""


class Excitation(nn.Module):
    """Squeeze-and-excitation: each channel has a weight that depends on the means of all channels."""

    def __init__(self, width: int, squeeze: int) -> None:
        """Build it for features (n, width, h, w)."""
        super().__init__()
        hidden = max(1, width // squeeze)
        self.weigh = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """Eq. 2–4: x̃_c = σ(W_2 δ(W_1 z))_c x_c, z the mean of each channel."""
        scaled: Tensor = features * self.weigh(features.mean(dim=(2, 3)))[:, :, None, None]
        return scaled


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        """Build it for features (n, before, h, w) → (n, width, h / stride, w / stride)."""
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)),
        )
        self.side = nn.Sequential()
        if before != width or stride > 1:
            self.side.extend([nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)])

    def forward(self, features: Tensor) -> Tensor:
        """Add the output of the body to the features."""
        return F.relu(self.body(features) + self.side(features))


class PiadeNetwork(Network):
    """Backbone, pyramid pooling, routing, decoder, and the ranges of the score's terms."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config = config
        self.shrink, self.enlarge = Resize(side, config.side), Resize(config.side, side)
        self.judge = Trunk(config.network, config.stages)
        width = config.width
        start = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.trunk = nn.Sequential(start, nn.BatchNorm2d(width), nn.ReLU())
        for stage in range(4):  # of strides 2, 4, 8, 16
            wider = config.width * 2**stage
            for block in range(config.blocks):
                self.trunk.append(Block(width, wider, 2 if stage and not block else 1))
                width = wider
            self.trunk.append(Excitation(width, config.squeeze))
        self.grid = config.side // STRIDE
        self.pools = nn.ModuleList([nn.Conv2d(width, width // grid, 1) for grid in GRIDS])
        self.inputs = sum(width // grid * grid**2 for grid in GRIDS) // PRIMARY
        self.capsules = CapsuleLayer(self.inputs, PRIMARY, 2, config.vector, config.iterations)
        self.unfold = nn.Sequential(
            nn.Linear(config.vector, width // 2 * self.grid**2),
            nn.ReLU(),
            nn.Unflatten(1, (width // 2, self.grid, self.grid)),
        )
        widths = [width + width // 2, *(width >> step for step in range(1, 4))]
        self.decoder = nn.Sequential()
        for before, after in pairwise(widths):
            up = nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)
            self.decoder.extend([up, nn.BatchNorm2d(after), nn.ReLU()])
        self.decoder.extend([nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1), nn.Sigmoid()])
        self.register_buffer("least", torch.zeros(TERMS))
        self.register_buffer("range", torch.ones(TERMS))
        self.least: Tensor
        self.range: Tensor

    def route(self, features: Tensor) -> Tensor:
        """Features of the backbone (n, C, grid, grid) → the two vectors (n, 2, d)."""
        pooled = []
        for grid, narrow in zip(GRIDS, self.pools, strict=True):
            pooled.append(F.relu(narrow(F.avg_pool2d(features, self.grid // grid))).permute(0, 2, 3, 1).flatten(1))
        # Channels are the last axis, so that all values of a capsule belong to one position.
        vectors: Tensor = self.capsules(torch.cat(pooled, dim=1).view(-1, self.inputs, PRIMARY))
        return vectors

    def rebuild(self, images: Tensor) -> Tensor:
        """Images (n, c, side, side) → x̂ of the same shape."""
        features = self.trunk(images)
        vectors = self.route(features)
        length = (vectors**2).sum(dim=2)
        longer = torch.where((length[:, 0] >= length[:, 1])[:, None], vectors[:, 0], vectors[:, 1])
        rebuilt: Tensor = self.decoder(torch.cat([self.unfold(longer), features], dim=1))
        return rebuilt

    def errors(
        self, images: Tensor, rebuilt: Tensor, image_maps: Sequence[Tensor], rebuilt_maps: Sequence[Tensor]
    ) -> Tensor:
        """Return the maps of the three terms (n, 3, side, side): squared error, 1 − SSIM, error of deep features.

        `image_maps` and `rebuilt_maps` are the feature maps of the images and of their reconstructions.
        """
        pixels = ((images - rebuilt) ** 2).mean(dim=1)
        structure = 1 - ssim(images, rebuilt).mean(dim=1)
        features = perceptual_map(image_maps, rebuilt_maps, self.config.side)
        return torch.stack([pixels, structure, features], dim=1)

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Sum of the three terms, each with weight 1."""
        images = self.shrink(tiles)
        rebuilt = self.rebuild(images).float()
        return self.errors(images, rebuilt, self.judge(images), self.judge(rebuilt)).mean(dim=(0, 2, 3)).sum()

    @torch.no_grad()
    def learn_ranges(self, batches: Iterator[Tensor]) -> None:
        """Learn the least value and the range of each term from tiles (n, c, t, t) of good parts."""
        terms = []
        for tiles in batches:
            images = self.shrink(tiles)
            rebuilt = self.rebuild(images)
            terms.append(self.errors(images, rebuilt, *self.judge.pair(images, rebuilt)).mean(dim=(2, 3)))
        values = torch.cat(terms)  # (n, 3)
        least, greatest = values.amin(dim=0), values.amax(dim=0)
        self.least.copy_(least)
        self.range.copy_(torch.maximum(greatest - least, LEAST_RANGE * greatest).clamp(min=1e-9))

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        images = self.shrink(tiles)
        rebuilt = self.rebuild(images)
        errors = self.errors(images, rebuilt, *self.judge.pair(images, rebuilt))
        scaled = (errors - self.least[:, None, None]) / self.range[:, None, None]
        error = scaled.sum(dim=1, keepdim=True)  # its mean is the sum of the terms
        return error.mean(dim=(1, 2, 3)), self.enlarge(error)[:, 0], self.enlarge(rebuilt)


class Piade(LearnedDetector):
    """Reconstruction error in pixels, structure and deep features."""

    name: ClassVar[str] = "piade"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 8, "blocks": 1, "batch": 4, "steps": 800, "learning_rate": 5e-3},
        "full": {"batch": 32, "steps": 20_000},
    }

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return PiadeNetwork(side, channels, self.config)

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Train on good tiles, then learn the range of each term; a second call starts anew."""
        super().fit(tiles, run)
        network = self._fitted()
        assert isinstance(network, PiadeNetwork)
        _, held = split(tiles.groups, self.config.hold_out, self.seed)
        if len(held) < 2:
            run.tell(
                f"{len(held)} tiles are held out, so the ranges of the score's terms are those of all training tiles"
            )
            held = np.arange(len(tiles))
        network.learn_ranges(floats(batch) for batch in batches_of(tiles, held))
        return self

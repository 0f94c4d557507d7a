"""capsule: a capsule network with two classes, good and defective, trained on many good and a few defective images.

Papers: Piciarelli, Mishra & Foresti, "Image Anomaly Detection with Capsule Networks and Imbalanced Datasets", ICIAP
2019, arXiv 1909.02755; the network is that of Sabour, Frosst & Hinton, "Dynamic Routing Between Capsules", NeurIPS
2017. Written from general knowledge of the papers, whose texts were not available; no code of others. Symbols: v_k
output of capsule k (0 good, 1 defective), T_k 1 for the capsule of the tile's class and 0 for the other, m⁺, m⁻
margins, λ weight of the absent class.

It is supervised: it learns from `train/good` and `train/DEFECT`. Capsules have no position in the image. They classify
a part, but do not localise a defect; the map is the reconstruction error of the capsule of good parts.

Differs from the papers:
- The papers use images of 28² pixels. Here a tile is resized to `side` inside the graph, and the stride of the first
  convolution grows with it (1 at 28, 3 at 64, 6 at 128). So the number of primary capsules is similar at every side:
  6 · 6 to 9 · 9 positions of each type, and 4 · 4 to 11 · 11 below side 60. At side 28 the network is that of the
  papers. There, no kernel may reach the last row and column; where more rows would be missed, the edge is padded.
- The reconstruction error enters as a mean, not a sum, so that its weight suits every side; 0.392 of the mean equals
  the paper's 0.0005 of the sum for gray images of 28².
- By default nothing is held out for early stopping: with few images of defects, training needs all of them.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from andon.detector import QUIET, Need, Run, Tiles
from andon.nn.capsules import EPSILON, CapsuleLayer, squash
from andon.nn.labelled import LabelledTiles
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.resize import Resize

KERNEL = 9  # side of the kernels of both convolutions
POSITIONS = 20  # approximate side of the grid after the first convolution
PRIMARY = 8  # values of a primary capsule
GOOD, DEFECTIVE = 0, 1

Width = Annotated[int, Field(ge=1)]


class Settings(Schedule):
    """Settings of `capsule`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"score"}

    score: Literal["lengths", "reconstruction"] = "lengths"
    """Image score: ‖v_1‖ − ‖v_0‖, or the error of the reconstruction from v_0."""
    side: Annotated[int, Field(ge=28, le=180)] = 64
    """Side to which tiles are resized, pixels."""
    width: Width = 256
    """Channels of the first convolution."""
    types: Width = 32
    """Number of types of primary capsules."""
    capsule: Width = 16
    """Number of values of each of the two capsules."""
    iterations: Annotated[int, Field(ge=1)] = 3
    """Number of iterations of dynamic routing."""
    decoder: tuple[Width, Width] = Field((512, 1024), strict=False)
    """Numbers of values of the two hidden layers of the decoder."""
    present: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """m⁺ of the margin loss: length that the capsule of the true class should exceed."""
    absent: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """m⁻ of the margin loss: length that the other capsule should stay below."""
    absent_weight: Annotated[float, Field(ge=0)] = 0.5
    """λ of the margin loss, weight of the absent class."""
    reconstruction: Annotated[float, Field(ge=0)] = 0.392
    """Weight of the mean squared reconstruction error in the loss."""
    hold_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the training parts that is held out for early stopping; 0: none."""


class Encoder(nn.Module):
    """The two convolutions before the primary capsules: images (n, c, side, side) → (n, types · 8, grid, grid)."""

    def __init__(self, channels: int, config: Settings) -> None:
        """Choose the stride from `side`."""
        super().__init__()
        stride = max(1, round((config.side - KERNEL + 1) / POSITIONS))
        rest = (config.side - KERNEL - (KERNEL - 1) * stride) % (2 * stride)  # rows that no kernel reaches
        margin = 0 if rest <= 1 else 2 * stride - rest
        first = (config.side + margin - KERNEL) // stride + 1
        self.grid = (first - KERNEL) // 2 + 1
        # The right and the lower edge are padded until the kernels reach the whole image.
        self.widen = nn.ReplicationPad2d((0, margin, 0, margin)) if margin else nn.Identity()
        self.stem = nn.Conv2d(channels, config.width, KERNEL, stride)
        self.primary = nn.Conv2d(config.width, config.types * PRIMARY, KERNEL, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features that are divided into primary capsules."""
        features: Tensor = self.primary(F.relu(self.stem(self.widen(images))))
        return features


class CapsuleNetwork(Network):
    """Two convolutions, primary capsules, two routed capsules, and a decoder of one of the two."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config = config
        shape = (channels, config.side, config.side)
        self.shrink, self.enlarge = Resize(side, config.side), Resize(config.side, side)
        self.encoder = Encoder(channels, config)
        inputs, (first, second) = config.types * self.encoder.grid**2, config.decoder
        self.capsules = CapsuleLayer(inputs, PRIMARY, 2, config.capsule, config.iterations)
        self.decoder = nn.Sequential(
            *(nn.Linear(2 * config.capsule, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()),
            *(nn.Linear(second, channels * config.side**2), nn.Sigmoid(), nn.Unflatten(1, shape)),
        )

        self.register_buffer("good", torch.tensor([[1.0, 0.0]]), persistent=False)  # T_k of a good part
        self.good: Tensor

    def encode(self, images: Tensor) -> Tensor:
        """Images (n, c, side, side) → capsules v (n, 2, d)."""
        types, places = self.config.types, self.encoder.grid**2
        features = self.encoder(images).view(-1, types, PRIMARY, places)
        capsules: Tensor = self.capsules(squash(features.transpose(2, 3).reshape(-1, types * places, PRIMARY)))
        return capsules

    def rebuild(self, capsules: Tensor, present: Tensor) -> Tensor:
        """Rebuild images (n, c, side, side) from one capsule each; `present` (n, 2) is 0 for the masked capsule."""
        rebuilt: Tensor = self.decoder((capsules * present[..., None]).flatten(1))
        return rebuilt

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Margin loss, and reconstruction error of the capsule of the tile's class; tiles (n, c + 1, t, t)."""
        pixels, defective = tiles[:, :-1], (tiles[:, -1] > 0).flatten(1).any(dim=1)
        present = torch.stack([~defective, defective], dim=1).float()  # T_k (n, 2)
        images = self.shrink(pixels)
        capsules = self.encode(images)
        length = lengths(capsules)
        c = self.config
        # Eq. 4: L_k = T_k max(0, m⁺ − ‖v_k‖)² + λ (1 − T_k) max(0, ‖v_k‖ − m⁻)²
        too_short, too_long = F.relu(c.present - length) ** 2, F.relu(length - c.absent) ** 2
        margin = (present * too_short + c.absent_weight * (1 - present) * too_long).sum(dim=1)
        error = (self.rebuild(capsules, present).float() - images) ** 2
        total: Tensor = margin.mean() + c.reconstruction * error.mean()
        return total

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t) by the capsule of good parts."""
        images = self.shrink(tiles)
        capsules = self.encode(images)
        rebuilt = self.rebuild(capsules, self.good)
        error = ((images - rebuilt) ** 2).mean(dim=1, keepdim=True)
        length = lengths(capsules)
        score = length[:, DEFECTIVE] - length[:, GOOD] if self.config.score == "lengths" else error.mean(dim=(1, 2, 3))
        return score, self.enlarge(error)[:, 0], self.enlarge(rebuilt)


def lengths(capsules: Tensor) -> Tensor:
    """Lengths (n, k) of capsules (n, k, d); the gradient is finite at length 0."""
    return torch.sqrt((capsules**2).sum(dim=-1) + EPSILON)


class Capsule(LearnedDetector):
    """Classifies good and defective parts by the lengths of two capsules."""

    name: ClassVar[str] = "capsule"
    position_aware: ClassVar[bool] = True
    defects: ClassVar[Need] = "images"
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 64, "types": 8, "decoder": (128, 256), "steps": 1000},
        "full": {"batch": 32, "steps": 20_000},
    }

    def stock(self, tiles: Tiles, run: Run = QUIET) -> Tiles:
        """Return good and defective tiles. DatasetError when there are no defective ones."""
        # Each tile is a whole image, so its class needs no mask. Augmentation could rotate a mask out of the tile.
        return LabelledTiles(tiles, whole=True)

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return CapsuleNetwork(side, channels, self.config)

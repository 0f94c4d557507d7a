"""cutpaste: a network that tells good tiles from tiles with a pasted patch or a scar, and a Gaussian of its features.

Paper: Li, Sohn, Yoon & Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", CVPR 2021.
Written from general knowledge of the paper, whose text was not available; no code of others. The three-way variant.
Symbols: f features of a tile after global average pooling, μ and Σ mean and covariance of f over good tiles.

Differs from the paper:
- The cut patch and the scar are those of `nn.synthetic`: a scar is a thin curved line, darker or brighter, where the
  paper pastes a thin turned rectangle.
- A Wide-ResNet in place of ResNet-18, both from random weights. The MLP between f and the three classes is left out.
- Σ gets a multiple of the identity matrix (`ridge`), because good tiles can be fewer than features.
- The map of the paper's image model is GradCAM. After global average pooling that is, up to a factor, the classes'
  logits at every position, which is ours: the logit of the likelier defect less that of "good", enlarged bilinearly.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from andon.detector import QUIET, Run, Tiles
from andon.nn.data import floats
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.resize import Resize
from andon.nn.synthetic import add_defects
from andon.nn.wide_resnet import WideResNet

CLASSES = 3  # good, patch, scar


class Settings(Schedule):
    """Settings of `cutpaste`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"ridge"}

    side: Annotated[int, Field(ge=32)] = 256
    """Side of the network's input, pixels; larger tiles are reduced to it."""
    channels: Annotated[int, Field(ge=1)] = 16
    """Channels of the first layer; the last has four times as many, multiplied by `widen`."""
    widen: Annotated[int, Field(ge=1)] = 2
    """Factor of the channels of the Wide-ResNet."""
    depth: Literal[10, 16, 22, 28] = 10
    """Depth of the Wide-ResNet: one to four blocks in each of its three groups."""
    stem: Annotated[int, Field(ge=1)] = 2
    """Stride of the first convolution."""
    least: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Least area of a pasted patch, as a share of the tile."""
    most: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Greatest area of a pasted patch, as a share of the tile."""
    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Part of the mean variance that is added to every variance in Σ."""


class CutPasteNetwork(Network):
    """The network, its classifier, and the Gaussian of good features, which `CutPaste.fit` sets."""

    mean: Tensor  # (d,)
    whiten: Tensor  # (d, d), W with W Wᵀ = Σ⁻¹

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config, inner = config, min(side, config.side)
        self.shrink = Resize(side, inner)
        self.trunk = WideResNet(channels, config.channels, config.widen, config.depth, config.stem)
        self.classes = nn.Linear(self.trunk.features, CLASSES)
        self.side = side
        self.register_buffer("mean", torch.zeros(self.trunk.features))
        self.register_buffer("whiten", torch.eye(self.trunk.features))

    def maps(self, tiles: Tensor) -> Tensor:
        """Features (n, d, g, g) of tiles (n, c, t, t), before pooling."""
        maps: Tensor = self.trunk(2 * self.shrink(tiles) - 1)
        return maps

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy of the three classes; each tile is used as it is, with a patch and with a scar."""
        patch, _ = add_defects(tiles, generator, ("cut-paste",), self.config.least, self.config.most)
        scar, _ = add_defects(tiles, generator, ("scratch",))
        logits = self.classes(self.maps(torch.cat([tiles, patch, scar])).mean(dim=(2, 3)))
        labels = torch.arange(CLASSES, device=tiles.device).repeat_interleave(len(tiles))
        return F.cross_entropy(logits.float(), labels)

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t)."""
        maps = self.maps(tiles)
        white = (maps.mean(dim=(2, 3)) - self.mean) @ self.whiten
        logits = F.conv2d(maps, self.classes.weight[:, :, None, None], self.classes.bias)  # (n, 3, g, g)
        evidence = logits[:, 1:].amax(dim=1, keepdim=True) - logits[:, :1]
        enlarged = F.interpolate(evidence, size=(self.side, self.side), mode="bilinear", align_corners=False)[:, 0]
        return (white**2).mean(dim=1).sqrt(), enlarged  # Mahalanobis distance, divided by √d


class CutPaste(LearnedDetector):
    """Distance of features that were trained to recognise pasted patches and scars."""

    name: ClassVar[str] = "cutpaste"
    position_aware: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"channels": 8, "side": 128, "steps": 400, "learning_rate": 2e-3},
        "full": {"widen": 8, "batch": 32, "steps": 20_000, "weight_decay": 3e-5},
    }

    def __init__(self, config: Settings, seed: int) -> None:
        """Take the settings; nothing is learnt yet."""
        super().__init__(config, seed)
        self.stride = 4 * config.stem

    def network(self, side: int, channels: int) -> CutPasteNetwork:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return CutPasteNetwork(side, channels, self.config)

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Train on good tiles, then estimate the Gaussian of their features."""
        super().fit(tiles, run)
        network = self._fitted()
        assert isinstance(network, CutPasteNetwork)
        with torch.no_grad():
            f = torch.cat([network.maps(floats(batch)).mean(dim=(2, 3)) for batch in tiles]).double()
        covariance = np.atleast_2d(np.cov(f.numpy(), rowvar=False, bias=True))
        covariance += max(self.config.ridge * float(np.trace(covariance)) / len(covariance), 1e-12) * np.eye(
            len(covariance)
        )
        network.mean.copy_(f.mean(dim=0))
        network.whiten.copy_(torch.from_numpy(np.linalg.inv(np.linalg.cholesky(covariance)).T))
        return self

"""fcdd: fully convolutional data description, a network whose output map is small where a part is good.

Paper: Liznerski, Ruff, Vandermeulen, Franks, Kloft & Müller, "Explainable Deep One-Class Classification", ICLR 2021.
Written from general knowledge of the paper, whose text was not available; no code of others. Symbols: φ network
without fully connected layers, A anomaly map, y 1 for a tile with a synthetic defect.

Good tiles are pulled to φ = 0, tiles with a synthetic defect are pushed away. The map is A, enlarged by Gaussians.

Differs from the paper:
- The frozen front is EfficientNet-Lite0 up to stride 8 in place of VGG-11; two trained convolutions follow it.
- The paper's synthetic anomalies on MVTec AD are confetti, coloured blobs; ours are those of `nn.synthetic`.
- The score is the mean of A, which ranks images as the paper's sum does.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from andon.graphs import features
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.precision import single
from andon.nn.synthetic import KINDS, Kind, add_defects
from andon.nn.trunk import Trunk
from andon.nn.unet import convolution


class Settings(Schedule):
    """Settings of `fcdd`, and of its training."""

    network: str = "efficientnet-lite0"
    """Name of the frozen network; `andon features list` lists them."""
    stage: int = 4
    """Number of the block of the network whose features are the input of the trained layers."""
    width: Annotated[int, Field(ge=1)] = 64
    """Channels of the trained convolution."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the training tiles that get a synthetic defect."""
    kinds: Annotated[tuple[Kind, ...], Field(strict=False, min_length=1)] = KINDS
    """Kinds of synthetic defects."""
    most: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Greatest area of a synthetic defect, as a share of the tile."""


class FcddNetwork(Network):
    """The frozen front, the trained layers φ, and the enlargement of the map."""

    spread: Tensor  # (side, grid)

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config = config
        self.front = Trunk(config.network, (config.stage,))
        (stage,) = self.front.stages
        self.inner = nn.Sequential(convolution(stage.channels, config.width), nn.Conv2d(config.width, 1, 1))
        # The paper enlarges by a transposed convolution with a Gaussian; here with weights whose sum is 1.
        at, centres = torch.arange(side) + 0.5, (torch.arange(side // stage.stride) + 0.5) * stage.stride
        weights = torch.exp(-(((at[:, None] - centres) / stage.stride) ** 2) / 2)
        self.register_buffer("spread", weights / weights.sum(dim=1, keepdim=True), persistent=False)

    def errors(self, tiles: Tensor) -> Tensor:
        """A (n, g, g) of tiles (n, c, t, t): the pseudo-Huber loss of φ."""
        (maps,) = self.front(tiles)
        errors: Tensor = (self.inner(maps)[:, 0].float() ** 2 + 1).sqrt() - 1  # A = √(φ² + 1) − 1
        return errors

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Eq. 2: (1 − y) ‖A‖₁ / (h w) − y log(1 − exp(−‖A‖₁ / (h w)))."""
        defective, masks = add_defects(tiles, generator, self.config.kinds, most=self.config.most)
        chosen = torch.rand(len(tiles), generator=generator, device=tiles.device) < self.config.share
        y = chosen & masks.flatten(1).any(dim=1)
        mean = self.errors(torch.where(y[:, None, None, None], defective, tiles)).mean(dim=(1, 2))
        far = -torch.log(-torch.expm1(-mean.clamp(min=1e-6)))
        return torch.where(y, far, mean).mean()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t)."""
        errors = self.errors(tiles)
        with single(errors):
            return errors.mean(dim=(1, 2)), self.spread @ errors @ self.spread.T


class Fcdd(LearnedDetector):
    """A fully convolutional network with a map that is small on good parts."""

    name: ClassVar[str] = "fcdd"
    position_aware: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"steps": 400, "learning_rate": 1e-3},
        "full": {"width": 256, "batch": 128, "steps": 10_000, "weight_decay": 1e-4},
    }

    def __init__(self, config: Settings, seed: int) -> None:
        """Take the settings; nothing is learnt yet. AndonError for an unknown network or block."""
        super().__init__(config, seed)
        (self._stage,) = features.select(config.network, (config.stage,))
        self.stride = self._stage.stride

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        features.require_multiple([side], [self._stage])
        return FcddNetwork(side, channels, self.config)

"""draem: a network repairs synthetic defects, and a second one marks what was repaired.

Paper: Zavrtanik, Kristan & Skočaj, "DRAEM: A discriminatively trained reconstruction embedding for surface anomaly
detection", ICCV 2021. Written from general knowledge of the paper, whose text was not available; no code of others.
Symbols: I good tile, I_a the tile with a synthetic defect, M its mask, I_r reconstruction, M_o output of the second
network, λ weight of SSIM.

Differs from the paper:
- Defects are the Perlin regions of `nn.synthetic`, filled with procedural textures or parts of the tile; the paper
  fills them with the pictures of DTD, another data set. `kinds` can add others.
- Both networks are U-Nets; the first without its skip connections is the paper's autoencoder. One logit a pixel.
- The focal loss has no α; its weight is a setting, because it is a mean over the pixels.
- The map is the logit, which still differs where the probability rounds to 1, averaged as in the paper.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from andon.nn.convolutional import Odd, smooth
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.losses import ssim
from andon.nn.synthetic import Kind, add_defects
from andon.nn.unet import UNet, convolutions


class Settings(Schedule):
    """Settings of `draem`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"smooth"}

    width: Annotated[int, Field(ge=1)] = 64
    """Channels of the first layers of both networks; the paper has 128 in the first network and 64 in the second."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the training tiles that get a synthetic defect."""
    kinds: Annotated[tuple[Kind, ...], Field(strict=False, min_length=1)] = ("perlin",)
    """Kinds of synthetic defects."""
    most: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Greatest area of a synthetic defect, as a share of the tile."""
    structure: Annotated[float, Field(ge=0)] = 1.0
    """λ, weight of 1 − SSIM in the loss of the reconstruction."""
    focal: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the focal loss (γ = 2)."""
    smooth: Annotated[Odd, Field(ge=1, le=63)] = 21
    """Side of the window over which the map is averaged, pixels, odd; the score is its highest value."""


class Reconstructor(nn.Sequential):
    """The paper's autoencoder: three halvings, three enlargements, no skip connections."""

    def __init__(self, channels: int, width: int) -> None:
        """Build it for tiles (n, channels, t, t), t a multiple of 8."""
        super().__init__(convolutions(channels, width, width))
        for level in range(3):
            self.extend([nn.MaxPool2d(2), convolutions(width << level, width << level + 1)])
        for level in (2, 1, 0):
            self.extend(
                [
                    nn.ConvTranspose2d(width << level + 1, width << level, 2, 2),
                    convolutions(width << level, width << level),
                ]
            )
        self.extend([nn.Conv2d(width, channels, 1), nn.Sigmoid()])


class DraemNetwork(Network):
    """The network that repairs, and the network that marks."""

    def __init__(self, channels: int, config: Settings) -> None:
        """Build them for tiles (n, channels, t, t)."""
        super().__init__()
        self.config = config
        self.repair = Reconstructor(channels, config.width)
        self.mark = UNet(2 * channels, config.width)

    def outputs(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (n, c, t, t) → I_r (n, c, t, t) and the logit of M_o (n, t, t)."""
        rebuilt = self.repair(tiles).float()
        return rebuilt, self.mark(torch.cat([rebuilt, tiles], dim=1))[:, 0].float()

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Eq. 5: L2(I, I_r) + λ (1 − SSIM(I, I_r)) + focal loss of M_o against M."""
        s = self.config
        defective, masks = add_defects(tiles, generator, s.kinds, most=s.most)
        chosen = (torch.rand(len(tiles), generator=generator, device=tiles.device) < s.share)[:, None, None]
        rebuilt, logits = self.outputs(torch.where(chosen[:, None], defective, tiles))
        target = (masks & chosen).float()
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        focal = ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()
        return ((tiles - rebuilt) ** 2).mean() + s.structure * (1 - ssim(tiles, rebuilt)).mean() + s.focal * focal

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        rebuilt, logits = self.outputs(tiles)
        marked = smooth(logits, self.config.smooth)
        return marked.amax(dim=(1, 2)), marked, rebuilt


class Draem(LearnedDetector):
    """A reconstruction of the part without defects, and a network that compares it with the picture."""

    name: ClassVar[str] = "draem"
    position_aware: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 8, "batch": 4, "steps": 600, "learning_rate": 2e-3},
        "full": {"width": 64, "batch": 8, "steps": 20_000, "learning_rate": 1e-4},
    }

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained networks for tiles (n, channels, side, side)."""
        return DraemNetwork(channels, self.config)

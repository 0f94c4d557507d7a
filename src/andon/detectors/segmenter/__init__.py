"""segmenter: a network that marks the defective pixels, taught by masks of real defects or by synthetic ones.

Paper: source [4], figures 5 and 6: the five networks that its own methods are compared with. Their papers stand in
`networks.py`. Dice loss: Milletari, Navab & Ahmadi, "V-Net", 3DV 2016. Focal loss, and the probability that a network
begins with: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017. Weights of the losses, 1 : 20: Kirillov et
al., "Segment Anything", ICCV 2023. The texts of the papers were not at hand: written from what is known of them; no
code of others. Symbols: p probability that a pixel is defective, m its mask, p_t = p where m = 1 and 1 − p elsewhere,
γ focus.

Differs from the paper:
- The source compares sizes and times and says nothing of the training: losses, balance and schedule are ours.
- No α in the focal loss: Dice and the balance of the batches make up for how rare defective pixels are.
- Plain code. segmentation-models-pytorch, which has two of the five, imports torchvision and timm; MONAI, which has
  variants of the same two, would be one more package beside the three that had to be written anyway.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from andon.detector import QUIET, Need, Run, Tiles
from andon.detectors.segmenter.networks import NETWORKS, Name
from andon.nn.labelled import LabelledTiles, parted
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.synthetic import KINDS, Kind, add_defects

PRIOR = 0.01  # p of every pixel before training: few are defective, and that need not be learnt first


class Settings(Schedule):
    """Settings of `segmenter`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"top"}

    network: Name = "unet"
    """Architecture of the network."""
    width: Annotated[int, Field(ge=1)] = 64
    """Channels of the first layer; 64 in the papers, 32 for unet++."""
    defects: Literal["auto", "labelled", "synthetic"] = "auto"
    """Source of defects: labelled images with masks, synthetic defects, or labelled where there are any (auto)."""
    share: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    """Share of tiles with a defect; every labelled tile comes at least once in a pass."""
    kinds: Annotated[tuple[Kind, ...], Field(strict=False, min_length=1)] = KINDS
    """Kinds of synthetic defects."""
    least: Annotated[float, Field(gt=0, lt=1)] = 0.002
    """Least share of a tile that a synthetic defect covers."""
    most: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Greatest share of a tile that a synthetic defect covers."""
    focal: Annotated[float, Field(ge=0)] = 20.0
    """Weight of the focal loss; the weight of the Dice loss is 1."""
    focus: Annotated[float, Field(ge=0)] = 2.0
    """γ of the focal loss; the higher, the less count pixels that are right already."""
    top: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of the map, its highest values, whose mean is the image score."""

    @model_validator(mode="after")
    def _ordered(self) -> "Settings":
        if self.least > self.most:
            raise ValueError(f"least = {self.least} must not exceed most = {self.most}")
        return self


class SegmenterNetwork(Network):
    """One of the five networks, its losses, and where its defects come from."""

    def __init__(self, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, t, t)."""
        super().__init__()
        self.config, self.channels = config, channels
        self.inner = NETWORKS[config.network](channels, config.width)

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Dice and focal loss of tiles (n, c + 1, t, t) with their masks, or (n, c, t, t) that are given defects."""
        if tiles.shape[1] > self.channels:
            tiles, masks = parted(tiles)
        else:
            tiles, masks = self.damaged(tiles, generator)
        logits = self.logits(tiles)
        target = masks[:, None].to(logits).expand_as(logits)
        return dice_loss(logits, target) + self.config.focal * focal_loss(logits, target, self.config.focus)

    def logits(self, tiles: Tensor) -> Tensor:
        """Tiles (n, c, t, t) → (n, k, t, t): k answers, of which the first is the map and each is supervised."""
        logits: Tensor = self.inner(tiles).float() + math.log(PRIOR / (1 - PRIOR))
        return logits

    def damaged(self, tiles: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give some of the tiles (n, c, t, t) a synthetic defect; return them and the masks (n, t, t)."""
        s = self.config
        chosen = torch.rand(len(tiles), generator=generator, device=tiles.device) < s.share
        made, masks = add_defects(tiles, generator, s.kinds, s.least, s.most)
        return torch.where(chosen[:, None, None, None], made, tiles), masks & chosen[:, None, None]

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t): logits, which tell sure from surer where p rounds to 1."""
        found = self.logits(tiles)[:, 0]
        highest = found.flatten(1).topk(max(1, round(self.config.top * found[0].numel()))).values
        return highest.mean(dim=1), found


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 − Dice of all tiles (n, k, t, t) together, mean over the k answers: good tiles count by their false alarms."""
    p = logits.sigmoid()
    both, either = ((p * masks).sum(dim=(0, 2, 3)), (p + masks).sum(dim=(0, 2, 3)))
    return (1 - (2 * both + 1) / (either + 1)).mean()  # + 1: defined where there is no defect


def focal_loss(logits: Tensor, masks: Tensor, focus: float) -> Tensor:
    """Mean over the pixels of −(1 − p_t)^γ log p_t, of logits and masks (n, k, t, t)."""
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")  # −log p_t
    return ((1 - torch.exp(-entropy)) ** focus * entropy).mean()


class Segmenter(LearnedDetector):
    """A segmentation network, taught by real or synthetic defects."""

    name: ClassVar[str] = "segmenter"
    position_aware: ClassVar[bool] = False
    defects: ClassVar[Need] = "masks if any"
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 8, "batch": 4, "steps": 400, "learning_rate": 2e-3, "evaluate": 100},
        "full": {"width": 64, "batch": 16, "steps": 20_000},
    }

    def __init__(self, config: Settings, seed: int) -> None:
        """Take the settings; nothing is learnt yet."""
        super().__init__(config, seed)
        needs: dict[str, Need] = {"auto": "masks if any", "labelled": "masks", "synthetic": "none"}
        self.defects = needs[config.defects]  # type: ignore[misc]

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return SegmenterNetwork(channels, self.config)

    def stock(self, tiles: Tiles, run: Run = QUIET) -> Tiles:
        """Return the good tiles, with the labelled defects where those are learnt from. DatasetError when none are."""
        if self.defects == "none" or (self.defects == "masks if any" and not tiles.defects):
            run.tell(f"learning from synthetic defects ({', '.join(self.config.kinds)})")
            return tiles
        stock = LabelledTiles(tiles, share=self.config.share)
        run.tell(
            f"learning from {stock.count} tiles of labelled defects, each {stock.times} times as often as a good "
            f"one of {len(tiles)}"
        )
        return stock

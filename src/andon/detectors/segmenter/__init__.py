"""segmenter: segmentation of defective pixels, trained on real defects with masks or on synthetic defects.

Paper: source [4], figures 5 and 6, its five comparison networks. Their papers are listed in `networks.py`. Dice loss:
Milletari, Navab & Ahmadi, "V-Net", 3DV 2016. Focal loss, and the initial probability of a defect: Lin et al., "Focal
Loss for Dense Object Detection", ICCV 2017. Weights of the losses, 1 : 20: Kirillov et al., "Segment Anything", ICCV
2023. Written from general knowledge of the papers, whose texts were not available; no code of others. Symbols: p
probability that a pixel is defective, m its mask, p_t = p where m = 1 and 1 − p elsewhere, γ focus.

Differs from the paper:
- The source compares sizes and times only. Losses, balance of the batches and schedule are our own.
- The focal loss has no α: the Dice loss and the balance of the batches compensate for the few defective pixels.
- The networks are our own code. segmentation-models-pytorch has two of the five, and imports torchvision and timm;
  MONAI has variants of the same two. The other three had to be written in any case.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from andon.detector import QUIET, Need, Run, Tiles
from andon.detectors.segmenter.networks import NETWORKS, Name
from andon.nn.labelled import LabelledTiles, split_labels
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.synthetic import KINDS, Kind, add_defects

PRIOR = 0.01  # p of every pixel before training: few pixels are defective


class Settings(Schedule):
    """Settings of `segmenter`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"top"}

    network: Name = "unet"
    """Architecture of the network."""
    width: Annotated[int, Field(ge=1)] = 64
    """Channels of the first layer; 64 in the papers, 32 for unet++."""
    defects: Literal["auto", "labelled", "synthetic"] = "auto"
    """Source of defects: labelled images with masks, synthetic defects, or labelled images if there are any (auto)."""
    share: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    """Share of the training tiles that have a defect; an epoch contains every labelled tile at least once."""
    kinds: Annotated[tuple[Kind, ...], Field(strict=False, min_length=1)] = KINDS
    """Kinds of synthetic defects."""
    least: Annotated[float, Field(gt=0, lt=1)] = 0.002
    """Least area of a synthetic defect, as a share of the tile."""
    most: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Greatest area of a synthetic defect, as a share of the tile."""
    focal: Annotated[float, Field(ge=0)] = 20.0
    """Weight of the focal loss; the weight of the Dice loss is 1."""
    focus: Annotated[float, Field(ge=0)] = 2.0
    """γ of the focal loss; a higher one gives less weight to pixels that are already classified correctly."""
    top: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of the pixels, those with the highest values of the map, whose mean is the image score."""

    @model_validator(mode="after")
    def _ordered(self) -> "Settings":
        if self.least > self.most:
            raise ValueError(f"least = {self.least} must not exceed most = {self.most}")
        return self


class SegmenterNetwork(Network):
    """One of the five networks, its losses, and its source of defects."""

    def __init__(self, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, t, t)."""
        super().__init__()
        self.config, self.channels = config, channels
        self.inner = NETWORKS[config.network](channels, config.width)

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Dice and focal loss of tiles (n, c + 1, t, t) with masks, or of tiles (n, c, t, t) with synthetic defects."""
        if tiles.shape[1] > self.channels:
            tiles, masks = split_labels(tiles)
        else:
            tiles, masks = self.with_defects(tiles, generator)
        logits = self.logits(tiles)
        target = masks[:, None].to(logits).expand_as(logits)
        return dice_loss(logits, target) + self.config.focal * focal_loss(logits, target, self.config.focus)

    def logits(self, tiles: Tensor) -> Tensor:
        """Tiles (n, c, t, t) → (n, k, t, t): k outputs of the network, all supervised; the first is the map."""
        logits: Tensor = self.inner(tiles).float() + math.log(PRIOR / (1 - PRIOR))
        return logits

    def with_defects(self, tiles: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return tiles (n, c, t, t), a share of them with a synthetic defect, and the masks (n, t, t)."""
        s = self.config
        selected = torch.rand(len(tiles), generator=generator, device=tiles.device) < s.share
        defective, masks = add_defects(tiles, generator, s.kinds, s.least, s.most)
        return torch.where(selected[:, None, None, None], defective, tiles), masks & selected[:, None, None]

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t): logits, which still differ where p rounds to 1."""
        logits = self.logits(tiles)[:, 0]
        highest = logits.flatten(1).topk(max(1, round(self.config.top * logits[0].numel()))).values
        return highest.mean(dim=1), logits


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 − Dice of all tiles (n, k, t, t) together, mean over the k outputs; false positives of good tiles count."""
    p = logits.sigmoid()
    intersection, total = ((p * masks).sum(dim=(0, 2, 3)), (p + masks).sum(dim=(0, 2, 3)))
    return (1 - (2 * intersection + 1) / (total + 1)).mean()  # + 1: defined where there is no defect


def focal_loss(logits: Tensor, masks: Tensor, focus: float) -> Tensor:
    """Mean over the pixels of −(1 − p_t)^γ log p_t, of logits and masks (n, k, t, t)."""
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")  # −log p_t
    return ((1 - torch.exp(-entropy)) ** focus * entropy).mean()


class Segmenter(LearnedDetector):
    """A segmentation network, trained on real or synthetic defects."""

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
        """Return the good tiles, with the labelled defects if it learns from them. DatasetError when there are none."""
        if self.defects == "none" or (self.defects == "masks if any" and not tiles.defects):
            run.tell(f"learning from synthetic defects ({', '.join(self.config.kinds)})")
            return tiles
        stock = LabelledTiles(tiles, share=self.config.share)
        run.tell(
            f"learning from {len(tiles)} good tiles and {stock.count} tiles of labelled defects; a defect is used "
            f"{stock.times} times as often as a good tile"
        )
        return stock

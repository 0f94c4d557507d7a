"""U-Net and its convolutions, for several detectors.

Paper: Ronneberger, Fischer & Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.
Written from general knowledge of the paper, whose text was not available; no code of others. Differs: every convolution
is padded, and followed by batch normalisation.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolution(before: int, after: int, dilation: int = 1) -> nn.Sequential:
    """A 3 × 3 convolution, batch normalisation, ReLU."""
    layer = nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.ReLU())


def convolutions(*widths: int) -> nn.Sequential:
    """A sequence of convolutions."""
    return nn.Sequential(*(convolution(before, after) for before, after in pairwise(widths)))


class UNet(nn.Module):
    """An encoder and a decoder of four steps, with skip connections between equal levels."""

    def __init__(self, channels: int, width: int, outputs: int = 1) -> None:
        """Build it."""
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(convolutions(a, b, b) for a, b in pairwise([channels, *widths]))
        pairs = list(pairwise(widths))[::-1]
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(deep, flat, 2, stride=2) for flat, deep in pairs)
        self.up = nn.ModuleList(convolutions(2 * flat, flat, flat) for flat, _ in pairs)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → logits (n, outputs, h, w)."""
        levels: list[Tensor] = []
        for stage in self.down:
            x = stage(F.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for enlarge, stage, beside in zip(self.enlarge, self.up, levels[-2::-1], strict=True):
            x = stage(torch.cat([beside, enlarge(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits

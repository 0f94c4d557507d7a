"""Five segmentation networks. Written from general knowledge of the papers, whose texts were not available; no code of
others.

- FCN-32s: Long, Shelhamer & Darrell, "Fully Convolutional Networks for Semantic Segmentation", PAMI 2017.
- U-Net: Ronneberger, Fischer & Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.
- UNet++: Zhou et al., "UNet++: Redesigning Skip Connections to Exploit Multiscale Features", TMI 2020.
- U²-Net: Qin et al., "U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection", PR 2020.
- SegNet: Badrinarayanan, Kendall & Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder", PAMI 2017.

Each takes (n, channels, h, w), whose sides are multiples of 32, and returns logits (n, k, h, w). The first output is
the result; the others are additional supervised outputs of its paper. `width` is the number of channels of the first
layer, and sets those of all other layers. At 64 (UNet++: 32) they are those of the paper.

Differs from the papers:
- Every convolution is padded, and followed by batch normalisation, which FCN and U-Net did not have.
- VGG-16, the encoder of FCN and SegNet, starts from random weights, not from those of ImageNet.
- If two pixels of a window differ by less than a hundredth, SegNet's unpooling writes the maximum to both (`pool`).
- One logit a pixel in place of two classes. UNet++ is not pruned: the last of its four outputs is the result.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from andon.nn.unet import UNet, convolution, convolutions

Name = Literal["fcn32", "unet", "unet++", "u2net", "segnet"]

RIVAL = 0.01  # a value within this share of the maximum is regarded as a maximum too
VGG = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # channels of each stage's convolutions, in multiples of width


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Enlarge maps to the size of `like`, bilinear."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class FCN32(nn.Module):
    """VGG-16, fully convolutional; its coarse output is enlarged 32 times."""

    def __init__(self, channels: int, width: int) -> None:
        """Build it."""
        super().__init__()
        self.stages, last = nn.Sequential(), channels
        for stage in VGG:
            widths = [factor * width for factor in stage]
            self.stages.extend([convolutions(last, *widths), nn.MaxPool2d(2)])
            last = widths[-1]
        self.head = nn.Sequential(
            nn.Conv2d(last, 64 * width, 7, padding=3),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(64 * width, 64 * width, 1),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(64 * width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → logits (n, 1, h, w)."""
        return resize_like(self.head(self.stages(x)), x)


class UNetPlusPlus(nn.Module):
    """U-Net with dense skip connections through nodes X^(i,j); each node of the finest level has an output."""

    def __init__(self, channels: int, width: int) -> None:
        """Build it."""
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(convolutions(a, b, b) for a, b in pairwise([channels, *widths]))
        self.nodes = nn.ModuleList(  # by level i, then by column j, which starts at 1
            nn.ModuleList(convolutions(j * flat + deep, flat, flat) for j in range(1, 5 - i))
            for i, (flat, deep) in enumerate(pairwise(widths))
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → logits (n, 4, h, w), the deepest first."""
        rows: list[list[Tensor]] = []
        for stage in self.down:
            rows.append([stage(F.max_pool2d(rows[-1][0], 2) if rows else x)])
        for j in range(1, 5):
            for row, below, nodes in zip(rows, rows[1:], self.nodes, strict=False):
                if len(below) >= j:
                    # Eq. 1: x^(i,j) = H([x^(i,0) … x^(i,j−1), U(x^(i+1,j−1))])
                    row.append(nodes[j - 1](torch.cat([*row, resize_like(below[j - 1], row[0])], dim=1)))  # type: ignore[index]
        outputs = [head(x) for head, x in zip(self.heads, rows[0][1:], strict=True)]
        return torch.cat(outputs[::-1], dim=1)


class RSU(nn.Module):
    """Residual U-block: a small U-Net of `height` layers plus its input; if `flat`, it dilates in place of pooling."""

    def __init__(self, height: int, before: int, middle: int, after: int, flat: bool = False) -> None:
        """Build it."""
        super().__init__()
        self.flat = flat
        inner = height - 1
        step = [2**level if flat else 1 for level in range(inner)]
        self.first = convolution(before, after)
        self.down = nn.ModuleList(convolution(middle if i else after, middle, step[i]) for i in range(inner))
        self.bottom = convolution(middle, middle, 2**inner if flat else 2)
        self.up = nn.ModuleList(
            convolution(2 * middle, middle if i else after, step[i]) for i in range(inner - 1, -1, -1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) → (n, after, h, w)."""
        first = x = self.first(x)
        levels: list[Tensor] = []
        for stage in self.down:
            if levels and not self.flat:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            x = stage(x)
            levels.append(x)
        x = self.bottom(x)
        for stage, beside in zip(self.up, levels[::-1], strict=True):
            x = stage(torch.cat([x if self.flat else resize_like(x, beside), beside], dim=1))
        return torch.add(x, first)


class U2Net(nn.Module):
    """A U-Net of residual U-blocks; six side outputs and their fusion."""

    def __init__(self, channels: int, width: int) -> None:
        """Build it."""
        super().__init__()
        half, quarter = max(1, width // 2), max(1, width // 4)
        w2, w4, w8 = 2 * width, 4 * width, 8 * width
        self.down = nn.ModuleList(
            [
                RSU(7, channels, half, width),
                RSU(6, width, half, w2),
                RSU(5, w2, width, w4),
                RSU(4, w4, w2, w8),
                RSU(4, w8, w4, w8, flat=True),
                RSU(4, w8, w4, w8, flat=True),
            ]
        )
        self.up = nn.ModuleList(
            [
                RSU(4, 2 * w8, w4, w8, flat=True),
                RSU(4, 2 * w8, w2, w4),
                RSU(5, 2 * w4, width, w2),
                RSU(6, 2 * w2, half, width),
                RSU(7, 2 * width, quarter, width),
            ]
        )
        self.sides = nn.ModuleList(nn.Conv2d(w, 1, 3, padding=1) for w in (w8, w8, w4, w2, width, width))
        self.fuse = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → logits (n, 7, h, w), the fusion first."""
        tiles = x
        levels: list[Tensor] = []
        for stage in self.down:
            x = stage(F.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        outputs = [x]
        for stage, beside in zip(self.up, levels[-2::-1], strict=True):
            x = stage(torch.cat([resize_like(x, beside), beside], dim=1))
            outputs.append(x)
        sides = torch.cat([resize_like(side(y), tiles) for side, y in zip(self.sides, outputs, strict=True)], dim=1)
        return torch.cat([self.fuse(sides), sides], dim=1)


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima of 2 × 2 windows of x ≥ 0, (n, c, h/2, w/2), and the weights of their pixels (…, 4).

    The weight is 1 at the maximum, and falls to 0 for a value that is `RIVAL` times the maximum lower. So rounding,
    which differs between runtimes, cannot move a maximum to the pixel beside it.
    """
    n, c, h, w = x.shape
    windows = x.view(n, c, h // 2, 2, w // 2, 2).transpose(3, 4).reshape(n, c, h // 2, w // 2, 4)
    maxima = windows.amax(dim=-1)
    highest = maxima.detach()[..., None]
    distance = (highest - windows.detach()) / (RIVAL * highest.clamp(min=1e-6))
    return maxima, (1 - distance).clamp(min=0)


def unpool(x: Tensor, weights: Tensor) -> Tensor:
    """Write values (n, c, h, w) to the positions of the maxima, (n, c, 2h, 2w); the rest is 0."""
    n, c, h, w = x.shape
    return (x[..., None] * weights).view(n, c, h, w, 2, 2).transpose(3, 4).reshape(n, c, 2 * h, 2 * w)


class SegNet(nn.Module):
    """VGG-16 and a mirrored decoder, which enlarges by unpooling at the positions of the maxima."""

    def __init__(self, channels: int, width: int) -> None:
        """Build it."""
        super().__init__()
        self.down, self.up, last = nn.ModuleList(), nn.ModuleList(), channels
        for stage in VGG:
            widths = [last, *(factor * width for factor in stage)]
            self.down.append(convolutions(*widths))
            back = [*widths[:0:-1], width if last == channels else last]
            self.up.insert(0, convolutions(*back))
            last = widths[-1]
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → logits (n, 1, h, w)."""
        levels = []
        for stage in self.down:
            x, weights = pool(stage(x))
            levels.append(weights)
        for stage, weights in zip(self.up, levels[::-1], strict=True):
            x = stage(unpool(x, weights))
        logits: Tensor = self.head(x)
        return logits


NETWORKS: dict[Name, Callable[[int, int], nn.Module]] = {
    "fcn32": FCN32,
    "unet": UNet,
    "unet++": UNetPlusPlus,
    "u2net": U2Net,
    "segnet": SegNet,
}

"""Wide residual network up to its last feature map.

Paper: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016. Written from the paper; no code of others. Differs:
the stem can have a stride, and there is no dropout.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual block: normalisation, ReLU and convolution, twice, and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Build it for features (n, before, h, w)."""
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        same = before == after and stride == 1
        self.around = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) → (n, after, ⌈h / stride⌉, ⌈w / stride⌉)."""
        rectified = F.relu(self.norm1(x))
        around = x if self.around is None else self.around(rectified)
        total: Tensor = around + self.conv2(F.relu(self.norm2(self.conv1(rectified))))
        return total


class WideResNet(nn.Sequential):
    """Wide residual network up to its last feature map; without dropout."""

    def __init__(self, pictures: int, channels: int, widen: int, depth: int, stride: int) -> None:
        """Build it of `depth` = 6 b + 4 convolutions, for `pictures` channels; the stem has `channels` and `stride`."""
        before = channels
        super().__init__(nn.Conv2d(pictures, before, 2 * stride - 1 if stride > 1 else 3, stride, max(1, stride - 1)))
        for group in range(3):
            after = channels * widen * 2**group
            for block in range((depth - 4) // 6):
                self.append(Block(before, after, 2 if group and not block else 1))
                before = after
        self.extend([nn.BatchNorm2d(before), nn.ReLU()])
        self.features = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

"""Wide residual network up to its last map of features.

Paper: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016. Written from the paper; no code of others. Differs:
the stem may stride, and there is no dropout.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions on normalised, rectified values, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Take channels before and after."""
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
        found: Tensor = around + self.conv2(F.relu(self.norm2(self.conv1(rectified))))
        return found


class WideResNet(nn.Sequential):
    """Wide residual network up to its last map of features; without dropout."""

    def __init__(self, pictures: int, channels: int, widen: int, depth: int, stride: int) -> None:
        """Take the channels of the pictures and of the stem, their factor, 6 b + 4 convolutions, the stem's stride."""
        here = channels
        super().__init__(nn.Conv2d(pictures, here, 2 * stride - 1 if stride > 1 else 3, stride, max(1, stride - 1)))
        for group in range(3):
            after = channels * widen * 2**group
            for block in range((depth - 4) // 6):
                self.append(Block(here, after, 2 if group and not block else 1))
                here = after
        self.extend([nn.BatchNorm2d(here), nn.ReLU()])
        self.features = here
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

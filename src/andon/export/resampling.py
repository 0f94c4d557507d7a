"""How `cv2.resize` resizes in `geometry.tiling`, as weights: a graph can then resize in the same way.

Resizing is a weighted sum along the columns, one along the rows, and rounding. Along an axis of n pixels that become m,
pixel d is made of those in [d · n / m, (d + 1) · n / m), by the length that each shares with this range (area), or of
the two whose middles are next to its own (linear). Where both scales are whole numbers, area is the mean of blocks.
Where one side is enlarged and the area shrinks, OpenCV takes two pixels along both. The weights are those of OpenCV 5,
`resize.cpp`; summed one after another in float32 they give its pixels.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon.inspection import Array

FIXED = 2048  # OpenCV resizes 8-bit pixels linearly by whole numbers, of which so many are a weight of one
SLIVER = 1e-3  # of a pixel: a shared length up to it counts as none

Method = Literal["none", "mean", "area", "linear"]


class Axis(NamedTuple):
    """One axis: pixel d of the result is the sum of the pixels sources[d] of what comes in, times weights[d]."""

    sources: NDArray[np.int64]  # (m, k)
    weights: Array  # (m, k)


class Resampling(NamedTuple):
    """How pictures (H, W, c) of one size are resized, before they are rounded."""

    method: Method
    rows: Axis | None = None  # where each pixel has weights of its own
    columns: Axis | None = None
    block: tuple[int, int] = (1, 1)  # mean: rows and columns of the pixels that become one

    @property
    def half_up(self) -> bool:
        """Whether halves are rounded up; else to the even number."""
        return self.block == (2, 2)


def resampling(shape: tuple[int, int], to: tuple[int, int]) -> Resampling:
    """Say how `geometry.tiling` resizes a picture (H, W) to (h, w)."""
    (height, width), (h, w) = shape, to
    if shape == to:
        return Resampling("none")
    shrinks = h * w < height * width
    if not shrinks or h > height or w > width:
        return Resampling("linear", linear(height, h, shrinks), linear(width, w, shrinks))
    if height % h or width % w:
        return Resampling("area", _area(height, h), _area(width, w))
    return Resampling("mean", block=(height // h, width // w))


def linear(n: int, m: int, shrinks: bool = False) -> Axis:
    """Weights of two neighbours. `shrinks`: those that OpenCV takes where another axis shrinks more."""
    d, scale = np.arange(m), 1 / (m / n)
    if shrinks:
        at = np.floor(d * scale)
        share = (d + 1 - (at + 1) / scale).astype(np.float32)
        share = np.where(share > 0, share - np.floor(share), np.float32(0))
    else:
        middle = ((d + 0.5) * scale - 0.5).astype(np.float32)
        at, share = np.floor(middle), middle - np.floor(middle)
    sources = np.clip(np.stack([at, at + 1], axis=1).astype(np.int64), 0, n - 1)
    return Axis(sources, np.stack([1 - share, share], axis=1))


def _area(n: int, m: int) -> Axis:
    """Weights by shared length."""
    scale, found = n / m, []
    for d in range(m):
        low, high = d * scale, d * scale + scale
        cell = min(scale, n - low)
        last = min(math.floor(high), n - 1)
        first = min(math.ceil(low), last)
        shares = dict.fromkeys(range(first, last), 1 / cell)
        if first - low > SLIVER:
            shares[first - 1] = (first - low) / cell
        if high - last > SLIVER:
            shares[last] = min(high - last, 1.0, cell) / cell
        found.append(shares)
    most = max(map(len, found))  # where a pixel is made of fewer, the last one comes again, with no weight
    sources, weights = np.zeros((m, most), np.int64), np.zeros((m, most), np.float32)
    for d, each in enumerate(found):
        at = sorted(each)
        sources[d] = at + at[-1:] * (most - len(at))
        weights[d, : len(at)] = [each[i] for i in at]
    return Axis(sources, weights)

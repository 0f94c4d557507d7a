"""Losses that two or more detectors share.

SSIM: Wang, Bovik, Sheikh & Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity",
IEEE Transactions on Image Processing 13(4), 2004. Written from the paper.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian(window: int, sigma: float) -> Tensor:
    """Weights (window,) of a normal distribution, of sum 1."""
    at = torch.arange(window, dtype=torch.float32) - (window - 1) / 2
    weights = torch.exp(-(at**2) / (2 * sigma**2))
    return weights / weights.sum()


def ssim(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5, k1: float = 0.01, k2: float = 0.03) -> Tensor:
    """Structural similarity (n, c, h, w) in [-1, 1] of images (n, c, h, w) in [0, 1], at every pixel.

    `window` pixels a side, odd; `sigma` of its Gaussian weights, in pixels; `k1`, `k2` keep the quotients stable.
    Beyond the border the edge is repeated, so that the map has the size of the image; the paper leaves the border out.
    """
    c = x.shape[1]
    weights = gaussian(window, sigma).to(x)
    # μ_x, μ_y and the second moments are five blurs of the same kind, so they are one.
    stack = torch.cat([x, y, x * x, y * y, x * y], dim=1)  # (n, 5c, h, w)
    stack = F.pad(stack, (window // 2,) * 4, mode="replicate")
    stack = F.conv2d(stack, weights.view(1, 1, 1, -1).expand(5 * c, 1, 1, window), groups=5 * c)
    stack = F.conv2d(stack, weights.view(1, 1, -1, 1).expand(5 * c, 1, window, 1), groups=5 * c)
    mean_x, mean_y, xx, yy, xy = stack.chunk(5, dim=1)
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = k1**2, k2**2
    # Eq. 13: SSIM = (2 μ_x μ_y + C_1)(2 σ_xy + C_2) / ((μ_x² + μ_y² + C_1)(σ_x² + σ_y² + C_2))
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))


def ssim_loss(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Mean of 1 − SSIM: 0 for equal images, at most 2."""
    return 1 - ssim(x, y, window, sigma).mean()

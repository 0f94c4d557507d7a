"""Losses for several detectors.

SSIM: Wang, Bovik, Sheikh & Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity",
IEEE Transactions on Image Processing 13(4), 2004. Perceptual loss: Johnson, Alahi & Fei-Fei, "Perceptual Losses for
Real-Time Style Transfer and Super-Resolution", ECCV 2016, with features of length 1 as in LPIPS: Zhang, Isola, Efros,
Shechtman & Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018. Written from the
papers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from andon.nn.precision import single


def gaussian(window: int, sigma: float) -> Tensor:
    """Weights (window,) of a normal distribution; their sum is 1."""
    at = torch.arange(window, dtype=torch.float32) - (window - 1) / 2
    weights = torch.exp(-(at**2) / (2 * sigma**2))
    return weights / weights.sum()


def ssim(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5, k1: float = 0.01, k2: float = 0.03) -> Tensor:
    """Structural similarity (n, c, h, w) in [-1, 1] of images (n, c, h, w) in [0, 1], at every pixel.

    `window`: side in pixels, odd; `sigma`: of its Gaussian weights, in pixels; `k1`, `k2`: constants of the paper.
    Border pixels are repeated, so that the map has the size of the image; the paper omits the border.
    """
    x, y, c = x.float(), y.float(), x.shape[1]
    weights = gaussian(window, sigma).to(x)
    # μ_x, μ_y and the second moments by one blur
    stack = torch.cat([x, y, x * x, y * y, x * y], dim=1)  # (n, 5c, h, w)
    stack = F.pad(stack, (window // 2,) * 4, mode="replicate")
    with single(x):  # variances are small differences of these
        stack = F.conv2d(stack, weights.view(1, 1, 1, -1).expand(5 * c, 1, 1, window), groups=5 * c)
        stack = F.conv2d(stack, weights.view(1, 1, -1, 1).expand(5 * c, 1, window, 1), groups=5 * c)
    mean_x, mean_y, xx, yy, xy = stack.chunk(5, dim=1)
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = k1**2, k2**2
    # Eq. 13: SSIM = (2 μ_x μ_y + C_1)(2 σ_xy + C_2) / ((μ_x² + μ_y² + C_1)(σ_x² + σ_y² + C_2))
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return numerator / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))


def perceptual_map(maps: Sequence[Tensor], rebuilt: Sequence[Tensor], side: int) -> Tensor:
    """Squared distance of deep features between images and their reconstructions, at every pixel: (n, side, side).

    `maps`, `rebuilt`: outputs of `nn.trunk.Trunk`, (n, c_s, h_s, w_s) for each stage s. Feature vectors are normalised
    to length 1, because stages differ in scale, so errors are in [0, 4]. All stages have the same weight.
    """
    errors = []
    for x, y in zip(maps, rebuilt, strict=True):
        error = ((_directions(x) - _directions(y)) ** 2).sum(dim=1, keepdim=True)  # eq. 1 of LPIPS, all w_s = 1
        errors.append(F.interpolate(error, size=(side, side), mode="bilinear", align_corners=False))
    return torch.stack(errors).mean(dim=0)[:, 0]


def perceptual_loss(maps: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    """Mean over positions, stages and images of the error of `perceptual_map`."""
    errors = [((_directions(x) - _directions(y)) ** 2).sum(dim=1) for x, y in zip(maps, rebuilt, strict=True)]
    return torch.stack([error.mean() for error in errors]).mean()


def _directions(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1, eps=1e-6)

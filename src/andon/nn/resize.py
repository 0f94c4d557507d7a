"""Resizing of images in a network by two matrix products, with equal results on all engines."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from andon.nn.precision import single


class Resize(nn.Module):
    """Resizes square images: triangle filter to reduce, bilinear interpolation to enlarge."""

    def __init__(self, before: int, after: int) -> None:
        """Compute the weights (after, before) for these sides in pixels."""
        super().__init__()
        eye = torch.eye(before)[None, None]
        # Rows and columns are resized with the same weights: the resized columns of the identity matrix.
        weights = F.interpolate(eye, size=(after, before), mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("weights", weights, persistent=False)
        self.weights: Tensor
        self._same = before == after

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, c, before, before) → (n, c, after, after)."""
        if self._same:
            return images
        with single(images):
            return self.weights @ images @ self.weights.T

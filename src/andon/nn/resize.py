"""Images made smaller or larger inside a network by two products with fixed weights, alike on every engine."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from andon.nn.precision import single


class Resize(nn.Module):
    """Square images of one side brought to another: averaged with a triangle's weights, or enlarged bilinearly."""

    def __init__(self, before: int, after: int) -> None:
        """Make the weights (after, before), pixels a side."""
        super().__init__()
        eye = torch.eye(before)[None, None]
        # Each row and each column of an image is resized alike, so the resized columns of the identity are the weights.
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

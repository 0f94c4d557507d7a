"""What parts that lie alike have in common at each position, and how far good pictures are from it.

Where every part lies in the same place, a position has its own mean and spread of features, and its own usual distance
to the memory bank. Where parts lie as they please, a position means nothing. The share of the features' variance that
is found within positions tells the two apart: it sets a weight between 0 and 1 for all that depends on the position.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.inspection import Array

MIDDLE = 0.45  # share of the variance within positions at which the weight is one half
WIDTH = 0.05  # of the share: how gradually the weight falls
LEAST = 0.01  # a smaller weight counts as none
SMOOTH = 9  # positions a side over which the mean and variance of distances are averaged
PARTS = 5  # of fewer parts, a variance without one of them says nothing
FLOOR = 0.01  # least variance of a whitened feature, and least deviation of a distance as a share of the channels


class Usual(NamedTuple):
    """The features of one stage at each position, whitened; (h, w, c)."""

    mean: Array
    precision: Array  # the inverse of the variance

    def distance(self, white: Array) -> Array:
        """Squared distance (…, h, w) of features (…, h, w, c), in variances."""
        square: Array = ((white - self.mean) ** 2 * self.precision).sum(axis=-1)
        return square


class Calibrated(NamedTuple):
    """How distances of one scale become a score: of good pictures without themselves."""

    offset: Array  # (h, w), subtracted from the distances
    factor: Array  # (h, w), by which the rest is multiplied
    mean: np.float32  # of the scores of good pictures
    deviation: np.float32


def weight(white: Array) -> float:
    """Return how much the position counts, 0 to 1, by the features (n, h, w, c) of good pictures."""
    count = len(white)
    within = float(white.var(axis=0).mean()) * count / max(count - 1, 1)
    share = within / max(float(white.var(axis=(0, 1, 2)).mean()), 1e-30)
    found = 1 / (1 + np.exp((share - MIDDLE) / WIDTH))
    return float(found) if found >= LEAST else 0.0


def usual(white: Array) -> Usual:
    """Learn mean and precision at each position from features (n, h, w, c)."""
    return _usual(white.sum(axis=0), (white**2).sum(axis=0), len(white))


def _usual(total: Array, squares: Array, count: int) -> Usual:
    mean = total / np.float32(count)
    variance = np.maximum(squares / np.float32(count) - mean**2, 0)
    # Few pictures give a rough variance: half of it is that of all positions.
    shared = (variance + variance.mean(axis=(0, 1))) / 2
    return Usual(mean, 1 / np.maximum(shared, np.float32(FLOOR)))


def distances_without(white: Array, groups: NDArray[np.intp]) -> Array:
    """Squared distances (n, h, w) of features (n, h, w, c) to what is usual among the other groups (n,)."""
    total, squares = white.sum(axis=0), (white**2).sum(axis=0)
    found = np.empty(white.shape[:3], np.float32)
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        others = _usual(total - white[own].sum(axis=0), squares - (white[own] ** 2).sum(axis=0), len(white) - len(own))
        found[own] = others.distance(white[own])
    return found


def calibrate(distances: Array, gate: float, channels: int, common: float) -> Calibrated:
    """Learn from the distances (n, h, w) of good pictures, each to what the others taught, how usual they are.

    `gate` is the weight of the position, `channels` how many features a distance sums up.
    """
    mean, variance = (
        cv2.blur(values, (SMOOTH, SMOOTH), borderType=cv2.BORDER_REFLECT)
        for values in (distances.mean(axis=0), distances.var(axis=0))
    )
    of_position = (variance + variance.mean()) / 2
    spread = gate * of_position + (1 - gate) * distances.var()
    offset = (gate * mean + (1 - gate) * distances.mean()).astype(np.float32)
    factor = (1 / np.maximum(np.sqrt(spread), FLOOR * channels)).astype(np.float32)
    scores = image_scores((distances - offset) * factor, common)
    return Calibrated(offset, factor, np.float32(scores.mean()), np.float32(max(scores.std(), 1e-3)))


def image_scores(distances: Array, common: float) -> Array:
    """Scores (n,) of calibrated distances (n, h, w): the greatest 3 × 3 mean, less a share of the mean of all."""
    scores: Array = average(distances[:, None], 3).max(axis=(1, 2, 3)) - np.float32(common) * distances.mean(
        axis=(1, 2)
    )
    return scores


def uncalibrated(shape: Sequence[int]) -> Calibrated:
    """Return what leaves distances (h, w) as they are, where there are too few pictures to learn from."""
    return Calibrated(
        np.zeros(tuple(shape), np.float32), np.ones(tuple(shape), np.float32), np.float32(0), np.float32(1)
    )


def average(maps: Array, width: int) -> Array:
    """Mean over width × width positions of (n, c, h, w), zeros beyond the border."""
    reach, (h, w) = width // 2, maps.shape[2:]
    wide = np.pad(maps, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    total = np.zeros_like(maps)
    for dy, dx in np.ndindex(width, width):
        total += wide[:, :, dy : dy + h, dx : dx + w]
    return total / np.float32(width * width)


def enlarge(maps: Array, shape: Sequence[int]) -> Array:
    """(n, g, g) → (n, h, w), bilinear between the centres of the positions."""
    across = [_between(grid, side) for grid, side in zip(maps.shape[1:], shape, strict=True)]
    return np.asarray(across[0] @ maps @ across[1].T, np.float32)


def _between(grid: int, side: int) -> Array:
    """Return the weights (side, grid) of bilinear interpolation along one axis."""
    centre = np.clip((np.arange(side) + 0.5) * grid / side - 0.5, 0, grid - 1)
    weights: Array = np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(grid))).astype(np.float32)
    return weights

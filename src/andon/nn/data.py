"""Batches of training tiles: selected by seed and step, augmented, prepared one batch ahead.

All random values are functions of (seed, step), so that a training can continue from any step without the state of a
random generator.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from andon.detector import Tiles, no_tiles
from andon.geometry import tiling
from andon.inspection import Pixels
from andon.recipe import Augment

FEWEST = 10  # smallest number of groups for a held-out set

Rows = NDArray[np.int64]


def contents(tiles: Tiles) -> str:
    """Return the SHA-256 of the pixels of all tiles, in order. TrainingError when there are none."""
    if not len(tiles):
        raise no_tiles()
    sha = hashlib.sha256()
    for batch in tiles:
        sha.update(batch.tobytes())
    return sha.hexdigest()


def split(groups: Sequence[int], share: float, seed: int) -> tuple[Rows, Rows]:
    """Divide tiles by their groups (n,) into rows for training and rows that are held out for early stopping.

    A group is never on both sides. The same share of the groups of good parts and of defective parts (negative numbers)
    is held out. With fewer than `FEWEST` groups of either kind, nothing is held out.
    """
    array, unique = np.asarray(groups, np.int64), np.unique(groups)
    kinds = [kind for kind in (unique[unique >= 0], unique[unique < 0]) if len(kind)]
    rng = np.random.default_rng(mix(seed, "hold out"))
    enough = share > 0 and all(len(kind) >= FEWEST for kind in kinds)
    sample = [rng.permutation(kind)[: max(1, round(share * len(kind))) if enough else 0] for kind in kinds]
    held_out = np.isin(array, np.concatenate([[], *sample]))
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def batches_of(tiles: Tiles, rows: Rows) -> Iterator[Pixels]:
    """Yield the tiles of these rows in batches (b, t, t, c) of at least one."""
    for batch in tiling.batches(rows.tolist(), tiles.shape):
        yield tiles[batch]


def mix(seed: int, purpose: str, step: int = 0) -> int:
    """Return a 63-bit seed for one purpose at one step."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {step}".encode()).digest()[:8], "big") >> 1


def floats(pixels: Pixels, device: torch.device | None = None) -> Tensor:
    """Move pixels (b, t, t, c) to the device as (b, c, t, t) in [0, 1]."""
    planes = np.empty((len(pixels), pixels.shape[3], *pixels.shape[1:3]), pixels.dtype)
    for tile, its in zip(pixels, planes, strict=True):
        cv2.split(tile, list(its))  # twice as fast as permute of torch
    raw = torch.from_numpy(planes)
    if device is not None and device.type == "cuda":
        raw = raw.pin_memory().to(device, non_blocking=True)
    return raw.float().mul_(1 / float(np.iinfo(pixels.dtype).max))


class Feed:
    """Batches of tiles by step, from one seeded permutation of the rows after another.

    Inside `with`, a thread prepares the next batch during a training step.
    """

    def __init__(self, tiles: Tiles, rows: Rows, batch: int, seed: int, augment: Augment, device: torch.device) -> None:
        """Select the rows of the tiles that are used for training."""
        self._tiles, self._rows, self._augment, self._seed, self._device = tiles, rows, augment, seed, device
        self.batch = min(batch, len(rows))
        self._thread: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[Tensor]] | None = None  # step and its batch

        @lru_cache(maxsize=2)
        def order(epoch: int) -> Rows:
            return np.random.default_rng(mix(seed, "order", epoch)).permutation(rows)

        self._order = order

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, "andon next batch")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._thread.shutdown(cancel_futures=True)
        self._thread = self._next = None

    def rows(self, step: int) -> Rows:
        """Return the rows of the tiles in the batch of a step."""
        epoch, start = divmod(step * self.batch, len(self._rows))
        rows = self._order(epoch)[start : start + self.batch]
        missing = self.batch - len(rows)
        return np.concatenate([rows, self._order(epoch + 1)[:missing]]) if missing else rows

    def __call__(self, step: int) -> Tensor:
        """Return the batch (b, c, t, t) in [0, 1] of a step, on the device, and start to prepare the next one."""
        (ready, future), self._next = self._next or (-1, None), None
        batch = future.result() if future and ready == step else self._prepare(step)
        if self._thread:
            self._next = step + 1, self._thread.submit(self._prepare, step + 1)
        return batch

    def _prepare(self, step: int) -> Tensor:
        random = generator(self._seed, "step", step, self._device)
        return vary(self._tiles[self.rows(step).tolist()], self._augment, random)


def generator(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """Return a generator on the device for one purpose at one step."""
    return torch.Generator(device).manual_seed(mix(seed, purpose, step))


def vary(pixels: Pixels, augment: Augment, generator: torch.Generator) -> Tensor:
    """Augment each tile (t, t, c) of a batch: (b, c, t, t) in [0, 1] on the device of the generator."""
    count, device = len(pixels), generator.device
    # Random values from the CPU avoid a synchronisation with the GPU.
    host = torch.Generator().manual_seed(generator.initial_seed())
    turns = torch.randint(4 if augment.quarter_turns else 1, (count,), generator=host)
    flips = torch.randint(2 if augment.flip else 1, (count, 2), generator=host)
    degrees = augment.rotate * (2 * torch.rand(count, generator=host) - 1)
    matrices = _quarter_turns(turns) @ _flips(flips) @ _rotations(degrees)
    changes = augment.quarter_turns or augment.flip or augment.rotate > 0
    if changes and device.type == "cpu":
        # OpenCV on integers is much faster than torch on floats.
        pixels = np.stack([_warp(*pair) for pair in zip(pixels, matrices.double().numpy(), strict=True)])
    tiles = floats(pixels, device)
    if changes and device.type != "cpu":
        tiles = _sample(tiles, matrices.to(device))
    if augment.brightness:
        factor = 1 + augment.brightness * (2 * torch.rand(count, generator=host) - 1)
        colours = tiles[:, : 3 if tiles.shape[1] >= 3 else 1]  # an additional channel is a mask
        colours.mul_(factor.to(device).view(-1, 1, 1, 1)).clamp_(0, 1)
    return tiles


# Matrices (2, 2) from a pixel (x, y) of the result to its source pixel, both relative to the centre


def _quarter_turns(turns: Tensor) -> Tensor:
    """Return matrices (b, 2, 2) of counter-clockwise rotations by quarter turns (b,)."""
    return torch.tensor([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]]).float()[turns]


def _flips(flips: Tensor) -> Tensor:
    """Return matrices (b, 2, 2) of flips where flips (b, 2), up-down and left-right, are 1."""
    return torch.diag_embed((1 - 2 * flips.flip(1)).float())


def _rotations(degrees: Tensor) -> Tensor:
    """Return matrices (b, 2, 2) of counter-clockwise rotations by degrees (b,)."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _warp(tile: Pixels, matrix: NDArray[np.float64]) -> NDArray[Any]:
    """Transform one tile (t, t, c) of integers like `_sample` a batch of floats."""
    centre = np.full((2, 1), (len(tile) - 1) / 2)
    affine = np.hstack([matrix, centre - matrix @ centre])

    def warp(array: NDArray[Any]) -> NDArray[Any]:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(array, affine, tile.shape[:2], flags=flags, borderMode=cv2.BORDER_REPLICATE)

    if tile.shape[2] == 3:  # OpenCV is twice as fast with four channels as with three
        return cv2.cvtColor(warp(cv2.cvtColor(tile, cv2.COLOR_RGB2RGBA)), cv2.COLOR_RGBA2RGB)
    return warp(tile).reshape(tile.shape)  # OpenCV drops a single channel


def _sample(tiles: Tensor, matrices: Tensor) -> Tensor:
    """Transform each tile (b, c, t, t), bilinear; border pixels are repeated."""
    grid = F.affine_grid(F.pad(matrices, (0, 1)), list(tiles.shape), align_corners=False)
    return F.grid_sample(tiles, grid, padding_mode="border", align_corners=False)


def rotate(tiles: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each tile (b, c, t, t) counter-clockwise about its centre, bilinear; border pixels are repeated."""
    return _sample(tiles, _rotations(degrees))

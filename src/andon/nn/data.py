"""Training tiles on their way to the network: read once, drawn by seed and step, varied on the device.

Whatever is random is a function of (seed, step), so that a training can go on from any step without a saved state of
any random generator.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from andon.detectors.base import Run, Tiles
from andon.errors import AndonError, TrainingError
from andon.inspection import Pixels
from andon.recipe import Augment

Rows = NDArray[np.int64]


class Stock(NamedTuple):
    """Every training tile, read once."""

    pixels: Pixels  # (n, t, t, c), in memory or mapped from a file
    digest: str  # of the pixels, in order


def gather(tiles: Tiles, megabytes: int, run: Run) -> Stock:
    """Read every tile once: into memory, or past `megabytes` into a file without a name that is mapped from disk.

    The file lies in `run.folder`, or in the system's temporary folder, and is gone when the process is, however that
    ends. AndonError when there is no room for it.
    """
    shape = (len(tiles), tiles.side, tiles.side, tiles.channels)
    kind = np.dtype(np.uint8 if tiles.depth == 8 else np.uint16)
    if shape[0] == 0:
        raise TrainingError("no training tiles; expected at least one image of a good part. Add good images.")
    size, digest = int(np.prod(shape)) * kind.itemsize, hashlib.sha256()
    if size <= megabytes * 1_000_000:
        pixels = np.empty(shape, kind)
        for at, batch in _batches(tiles, run):
            pixels[at : at + len(batch)] = batch
            digest.update(batch.tobytes())
        return Stock(pixels, digest.hexdigest())
    folder = run.folder or tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Written, not mapped for writing: a full disk is then an error, and not a signal that ends the process.
            for _, batch in _batches(tiles, run):
                file.write(batch.tobytes())
                digest.update(batch.tobytes())
            file.flush()
            return Stock(np.memmap(file, kind, "r", shape=shape), digest.hexdigest())
    except OSError as error:
        raise AndonError(
            f"{folder}: the training tiles, {size / 1e6:.0f} MB, cannot be kept there: "
            f"{(error.strerror or str(error)).lower()}. Free space or allow writing there, "
            f"or keep them in memory: cache_mb = {-(-size // 1_000_000)}."
        ) from error


def _batches(tiles: Tiles, run: Run) -> Iterator[tuple[int, Pixels]]:
    done = 0
    for batch in tiles:
        yield done, batch
        done += len(batch)
        run.progress("tiles", done, len(tiles))


def split(count: int, share: float, seed: int) -> tuple[Rows, Rows]:
    """Divide `count` tiles into those to learn from and those held out for early stopping; of fewer than ten, none."""
    held = max(1, round(share * count)) if share and count >= 10 else 0
    order = np.random.default_rng(mix(seed, "hold out")).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def mix(seed: int, purpose: str, step: int = 0) -> int:
    """Return a seed of 63 bits for one purpose at one step."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {step}".encode()).digest()[:8], "big") >> 1


def floats(pixels: Pixels, device: torch.device | None = None) -> Tensor:
    """Move pixels (b, t, t, c) to the device as (b, c, t, t) in [0, 1]."""
    raw = torch.tensor(pixels)
    if device is not None and device.type == "cuda":
        raw = raw.pin_memory().to(device, non_blocking=True)
    scale = 1 / float(np.iinfo(pixels.dtype).max)
    return raw.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).mul_(scale)


class Feed:
    """Batches of some rows of a stock, by step: one seeded permutation after another, so each tile comes as often."""

    def __init__(self, pixels: Pixels, rows: Rows, batch: int, seed: int, augment: Augment, device: torch.device):
        """Take the stock's pixels and which of its rows are learnt from."""
        self._pixels, self._rows, self._device, self._augment = pixels, rows, device, augment
        self.batch = min(batch, len(rows))

        @lru_cache(maxsize=2)
        def order(epoch: int) -> Rows:
            return np.random.default_rng(mix(seed, "order", epoch)).permutation(rows)

        self._order = order

    def rows(self, step: int) -> Rows:
        """Say which rows of the stock the batch of a step has."""
        epoch, start = divmod(step * self.batch, len(self._rows))
        rows = self._order(epoch)[start : start + self.batch]
        missing = self.batch - len(rows)
        return np.concatenate([rows, self._order(epoch + 1)[:missing]]) if missing else rows

    def __call__(self, step: int, generator: torch.Generator) -> Tensor:
        """Return the batch (b, c, t, t) in [0, 1] of a step, varied with what the generator draws."""
        return vary(floats(self._pixels[self.rows(step)], self._device), self._augment, generator)


def vary(tiles: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Vary each tile of (b, c, t, t) by itself, as the recipe allows."""
    count, device = len(tiles), tiles.device
    if augment.quarter_turns or augment.flip:
        # Decided on the CPU, so that nobody waits for a GPU, and tile by tile, so that none is turned for nothing.
        host = torch.Generator().manual_seed(generator.initial_seed())
        turns = torch.randint(4 if augment.quarter_turns else 1, (count,), generator=host).tolist()
        flips = torch.randint(2 if augment.flip else 1, (count, 2), generator=host).tolist()
        tiles = torch.stack([_placed(*three) for three in zip(tiles, turns, flips, strict=True)])
    if augment.rotate:
        tiles = rotated(tiles, _between(-augment.rotate, augment.rotate, count, generator, device))
    if augment.brightness:
        factor = 1 + _between(-augment.brightness, augment.brightness, count, generator, device)
        tiles = (tiles * factor.view(-1, 1, 1, 1)).clamp_(0, 1)
    return tiles


def _placed(tile: Tensor, turns: int, flips: list[int]) -> Tensor:
    """Turn a tile (c, t, t) by quarters, and flip it along the axes that are asked for."""
    if turns:
        tile = torch.rot90(tile, turns, (1, 2))
    axes = [axis for axis, flip in zip((1, 2), flips, strict=True) if flip]
    return tile.flip(axes) if axes else tile


def rotated(tiles: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each tile (b, c, t, t) counter-clockwise about its centre, bilinear; the edge is repeated."""
    cos, sin, zero = torch.cos(degrees.deg2rad()), torch.sin(degrees.deg2rad()), torch.zeros_like(degrees)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(tiles.shape), align_corners=False)
    return F.grid_sample(tiles, grid, padding_mode="border", align_corners=False)


def _between(low: float, high: float, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator, device=device)

"""Training tiles on their way to the network: drawn by seed and step, varied, one batch ahead.

Whatever is random is a function of (seed, step), so that a training can go on from any step without a saved state of
any random generator.
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

FEWEST = 10  # groups, of which some can be held out

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
    """Divide tiles (n,) of some groups into those to learn from and those held out for early stopping.

    A group is never on both sides. Where there are groups of defective parts, below 0, the same share of them is held
    out. Of fewer than `FEWEST` groups of good or of defective parts none is, and then nothing is.
    """
    of, known = np.asarray(groups, np.int64), np.unique(groups)
    kinds = [kind for kind in (known[known >= 0], known[known < 0]) if len(kind)]
    rng = np.random.default_rng(mix(seed, "hold out"))
    enough = share > 0 and all(len(kind) >= FEWEST for kind in kinds)
    drawn = [rng.permutation(kind)[: max(1, round(share * len(kind))) if enough else 0] for kind in kinds]
    held = np.isin(of, np.concatenate([[], *drawn]))
    return np.flatnonzero(~held), np.flatnonzero(held)


def of_rows(tiles: Tiles, rows: Rows) -> Iterator[Pixels]:
    """Yield the tiles in some rows, in batches (b, t, t, c) of at least one."""
    for batch in tiling.batches(rows.tolist(), tiles.shape):
        yield tiles[batch]


def mix(seed: int, purpose: str, step: int = 0) -> int:
    """Return a seed of 63 bits for one purpose at one step."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {step}".encode()).digest()[:8], "big") >> 1


def floats(pixels: Pixels, device: torch.device | None = None) -> Tensor:
    """Move pixels (b, t, t, c) to the device as (b, c, t, t) in [0, 1]."""
    planes = np.empty((len(pixels), pixels.shape[3], *pixels.shape[1:3]), pixels.dtype)
    for tile, its in zip(pixels, planes, strict=True):
        cv2.split(tile, list(its))  # half the time that torch takes to permute
    raw = torch.from_numpy(planes)
    if device is not None and device.type == "cuda":
        raw = raw.pin_memory().to(device, non_blocking=True)
    return raw.float().mul_(1 / float(np.iinfo(pixels.dtype).max))


class Feed:
    """Batches of some rows of the tiles, by step: one seeded permutation after another, so each tile comes as often.

    While a batch is trained on, a thread prepares the next: inside `with`.
    """

    def __init__(self, tiles: Tiles, rows: Rows, batch: int, seed: int, augment: Augment, device: torch.device) -> None:
        """Take the tiles and which of their rows are learnt from."""
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
        """Say which rows of the tiles the batch of a step has."""
        epoch, start = divmod(step * self.batch, len(self._rows))
        rows = self._order(epoch)[start : start + self.batch]
        missing = self.batch - len(rows)
        return np.concatenate([rows, self._order(epoch + 1)[:missing]]) if missing else rows

    def __call__(self, step: int) -> Tensor:
        """Return the batch (b, c, t, t) in [0, 1] of a step, on the device, and begin with the next."""
        (ready, batch), self._next = self._next or (-1, None), None
        found = batch.result() if batch and ready == step else self._drawn(step)
        if self._thread:
            self._next = step + 1, self._thread.submit(self._drawn, step + 1)
        return found

    def _drawn(self, step: int) -> Tensor:
        draws = generator(self._seed, "step", step, self._device)
        return vary(self._tiles[self.rows(step).tolist()], self._augment, draws)


def generator(seed: int, purpose: str, step: int, device: torch.device) -> torch.Generator:
    """Return a generator on the device for one purpose at one step."""
    return torch.Generator(device).manual_seed(mix(seed, purpose, step))


def vary(pixels: Pixels, augment: Augment, generator: torch.Generator) -> Tensor:
    """Vary each tile (t, t, c) of a batch by itself, as the recipe allows: (b, c, t, t) in [0, 1] on its device."""
    count, device = len(pixels), generator.device
    # Drawn on the CPU, so that nobody waits for a GPU.
    host = torch.Generator().manual_seed(generator.initial_seed())
    turns = torch.randint(4 if augment.quarter_turns else 1, (count,), generator=host)
    flips = torch.randint(2 if augment.flip else 1, (count, 2), generator=host)
    degrees = augment.rotate * (2 * torch.rand(count, generator=host) - 1)
    moves = _quarter_turns(turns) @ _flips(flips) @ _rotations(degrees)
    moving = augment.quarter_turns or augment.flip or augment.rotate > 0
    if moving and device.type == "cpu":
        # As they are stored, whole numbers: OpenCV then takes a small part of the time that torch takes for floats.
        pixels = np.stack([_moved(*two) for two in zip(pixels, moves.double().numpy(), strict=True)])
    tiles = floats(pixels, device)
    if moving and device.type != "cpu":
        tiles = _sampled(tiles, moves.to(device))
    if augment.brightness:
        factor = 1 + augment.brightness * (2 * torch.rand(count, generator=host) - 1)
        shown = tiles[:, : 3 if tiles.shape[1] >= 3 else 1]  # one channel more is a mask
        shown.mul_(factor.to(device).view(-1, 1, 1, 1)).clamp_(0, 1)
    return tiles


# A move is a matrix (2, 2): from where a pixel (x, y) of the result lies, seen from the centre, to where it comes from.


def _quarter_turns(turns: Tensor) -> Tensor:
    """Return the moves (b, 2, 2) that turn counter-clockwise by some quarters (b,)."""
    return torch.tensor([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[-1, 0], [0, -1]], [[0, 1], [-1, 0]]]).float()[turns]


def _flips(flips: Tensor) -> Tensor:
    """Return the moves (b, 2, 2) that flip where flips (b, 2), up-down and left-right, are 1."""
    return torch.diag_embed((1 - 2 * flips.flip(1)).float())


def _rotations(degrees: Tensor) -> Tensor:
    """Return the moves (b, 2, 2) that rotate counter-clockwise by some degrees (b,)."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _moved(tile: Pixels, move: NDArray[np.float64]) -> NDArray[Any]:
    """Do to one tile (t, t, c) as it is stored what `_sampled` does to a batch of floats."""
    centre = np.full((2, 1), (len(tile) - 1) / 2)
    matrix = np.hstack([move, centre - move @ centre])

    def warped(of: NDArray[Any]) -> NDArray[Any]:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(of, matrix, tile.shape[:2], flags=flags, borderMode=cv2.BORDER_REPLICATE)

    if tile.shape[2] == 3:  # four channels take OpenCV half the time of three
        return cv2.cvtColor(warped(cv2.cvtColor(tile, cv2.COLOR_RGB2RGBA)), cv2.COLOR_RGBA2RGB)
    return warped(tile).reshape(tile.shape)  # OpenCV drops a single channel


def _sampled(tiles: Tensor, moves: Tensor) -> Tensor:
    """Move each tile (b, c, t, t), bilinear; the edge is repeated."""
    matrices = F.pad(moves, (0, 1))
    grid = F.affine_grid(matrices, list(tiles.shape), align_corners=False)
    return F.grid_sample(tiles, grid, padding_mode="border", align_corners=False)


def rotated(tiles: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each tile (b, c, t, t) counter-clockwise about its centre, bilinear; the edge is repeated."""
    return _sampled(tiles, _rotations(degrees))

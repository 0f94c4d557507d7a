"""What is learnt of the patches of one feature map: whitening, the coreset, and the credit of its memories."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from andon.inspection import Array, Pixels
from andon.progress import Progress, silent
from andon.recipe import Augment

Turn = Callable[[Pixels], Pixels]
"""Turns or flips each of some tiles (n, h, w, c), whose shape stays."""

POOL = 4096  # rows among which the next centres are searched
BLOCK = 64  # centres that all rows are compared with at once


def whitening(rows: Array, floor: float) -> tuple[Array, Array]:
    """Return mean (c,) and matrix (c, c) that decorrelate the rows and bring them to unit variance."""
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = rows - mean
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(rows))
    # A floor keeps directions that good parts hardly use from being blown up into noise; a second one, features that
    # hardly vary at all, as those of one flat picture, from being blown up into infinity.
    least = max(floor * values[-1], 1e-6 * float(np.square(rows, dtype=np.float64).mean()), 1e-30)
    return mean, (vectors / np.sqrt(np.maximum(values, least))).astype(np.float32)


def k_centre(rows: Array, count: int, rng: np.random.Generator, progress: Progress = silent) -> NDArray[np.int64]:
    """Choose `count` rows greedily, each the farthest from those chosen before (Algorithm 1, Sener & Savarese 2018).

    Distances only fall as centres are added. So the farthest row lies in the pool, the `POOL` rows that were farthest
    when it was made, until all of these are nearer than every other row was then. Only then are all rows compared with
    the new centres, in one matrix product: the same choice in a fraction of the time.
    """
    norm = np.einsum("ij,ij->i", rows, rows)
    nearest = np.full(len(rows), np.inf, np.float32)  # squared distance of each row to the centres compared so far
    chosen = np.empty(count, np.int64)
    chosen[0] = rng.integers(len(rows))
    compared, step = 0, 1  # centres that all rows were compared with; centres
    while step < count:
        approach(nearest, rows, norm, rows[chosen[compared:step]])
        nearest[chosen[:step]] = -1
        compared, size = step, min(POOL, len(rows))
        pool = np.sort(np.argpartition(nearest, -size)[-size:])
        inside, inside_norm, within = rows[pool], norm[pool], nearest[pool]
        least = within.min() if size < len(rows) else -np.inf
        while step < count and within.max() >= least:
            last = int(within.argmax())
            chosen[step] = pool[last]
            approach(within, inside, inside_norm, inside[last : last + 1])
            within[last] = -1
            step += 1
            if step % 100 == 0 or step == count:
                progress("memories", step, count)
    return chosen


def approach(nearest: Array, rows: Array, norm: Array, centres: Array) -> None:
    """Lower `nearest` (n,) to the squared distances of rows (n, c), of squared length `norm`, to new centres (k, c)."""
    for start in range(0, len(centres), BLOCK):
        block = centres[start : start + BLOCK]
        square = rows @ (-2 * block.T)
        square += np.einsum("ij,ij->i", block, block)
        np.minimum(nearest, square.min(axis=1) + norm, out=nearest)


def neighbour_distance(memories: Array, good: Array, count: int) -> Array:
    """Return the mean squared distance (k,) of each memory to the `count` good patches nearest it, itself left out."""
    count = min(count, len(good) - 1)
    if count == 0:
        return np.zeros(len(memories), np.float32)
    mean, norm, columns = np.empty(len(memories), np.float32), np.einsum("ij,ij->i", good, good), -2 * good.T
    for start in range(0, len(memories), BLOCK):
        some = memories[start : start + BLOCK]
        square = some @ columns  # (block, rows), less the squared length of each memory
        square += norm
        square.partition(count, axis=1)
        nearest = np.sort(square[:, : count + 1], axis=1)[:, 1:] + np.einsum("ij,ij->i", some, some)[:, None]
        mean[start : start + BLOCK] = np.maximum(nearest, 0).mean(axis=1)
    return mean


def copies(augment: Augment, shape: tuple[int, int]) -> list[Turn]:
    """Return the turns and flips under which a good tile of a shape is still a good one; the first changes nothing.

    A quarter turn needs a square; other tiles are turned by half.
    """
    quarters = range(0, 4, 1 if shape[0] == shape[1] else 2) if augment.quarter_turns else (0,)
    flips = [(), (1,), (2,), (1, 2)] if augment.flip else [()]
    if len(quarters) > 1:
        flips = flips[:2]  # the other two are these, turned by half
    return [partial(_turned, quarters=k, flips=axes) for k in quarters for axes in flips]


def _turned(tiles: Pixels, quarters: int, flips: tuple[int, ...]) -> Pixels:
    turned: Pixels = np.ascontiguousarray(np.flip(np.rot90(tiles, quarters, (1, 2)), flips))
    return turned

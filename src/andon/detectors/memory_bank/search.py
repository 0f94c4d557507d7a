"""The distance of a patch to the nearest memory: in NumPy, and as a part of a graph.

A small bank is searched whole. A larger one is an inverted file (Jégou, Douze and Schmid, "Product Quantization for
Nearest Neighbor Search", TPAMI 2011, section IV; written from the paper, without its codes): k-means divides the
memories into cells, and a patch is compared with the memories of the `PROBED` cells whose centres are nearest. Most
patches find their nearest memory, the others one that is almost as near (measured in docs/detectors/memory-bank.md).

Distances are squared, less the credit of the memory (a power diagram). Symbols: k memories, c channels, m cells.
"""

from typing import NamedTuple, Self

import numpy as np
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Var

from andon.graphs.parts import floats, ints
from andon.inspection import Array

WHOLE = 1000  # memories, at most, that are not divided into cells
PROBED = 2  # cells that a patch is compared with
ROUNDS = 10  # of k-means
TOGETHER = 250  # memories that all patches are compared with at once: the distances to them stay in the cache
FAR = np.float32(1e9)  # more than any squared distance


class Memories(NamedTuple):
    """The bank of one feature map, in order of the cells; one cell where the bank is searched whole."""

    rows: Array  # (k, c), whitened
    credit: Array  # (k,), taken off the squared distance
    groups: NDArray[np.intp]  # (k,), of the tiles that the memories are from
    starts: NDArray[np.intp]  # (m + 1,): cell i has the memories from starts[i] to starts[i + 1]

    @classmethod
    def of(cls, rows: Array, credit: Array, groups: NDArray[np.intp]) -> Self:
        """Divide memories into cells."""
        cell = np.zeros(len(rows), np.intp) if len(rows) <= WHOLE else _cells(rows, round((len(rows) / 8) ** 0.5))
        order = np.argsort(cell, kind="stable")
        starts = np.append(np.flatnonzero(np.diff(cell[order], prepend=-1)), len(rows))
        return cls(rows[order], credit[order], groups[order], starts)

    def centres(self) -> tuple[Array, Array]:
        """Return the mean memory of each cell (m, c), and its offset (m,) with the mean credit of the cell."""
        first, counts = self.starts[:-1], np.diff(self.starts)
        centres = np.add.reduceat(self.rows.astype(np.float64), first) / counts[:, None]
        credit = np.add.reduceat(self.credit.astype(np.float64), first) / counts
        return centres.astype(np.float32), _offset(centres, credit).astype(np.float32)

    def distance(self, q: Array) -> Array:
        """Whitened patches (…, n, c) → squared distance less credit (…, n); in float64, n patches at a time."""
        rows, offset = self.rows.T.astype(np.float64), _offset(self.rows, self.credit)
        centres, middle = self.centres()
        nearest = np.empty(q.shape[:-1], np.float32)
        for place in np.ndindex(q.shape[:-2]):
            own = q[place].astype(np.float64)  # (n, c)
            found = offset - 2 * own @ rows  # (n, k)
            if len(centres) > PROBED:
                coarse = middle - 2 * own @ centres.T  # (n, m)
                probed = coarse <= np.sort(coarse, axis=1)[:, [PROBED - 1]]
                found[~probed.repeat(np.diff(self.starts), axis=1)] = np.inf
            nearest[place] = (own**2).sum(axis=1) + found.min(axis=1)
        return nearest

    def search(self, q: Var, apart: Var | None = None) -> Var:
        """Add to a graph: [patches, 1] (n, c + 1) → squared distance less credit (n, 1).

        `apart` (k,), in order of the cells, is added to the squared distance of each memory: 0, or FAR.
        """
        if len(self.starts) <= PROBED + 1:
            near = self._nearest(q, 0, len(self.rows), apart)
        else:
            near = self._probe(q, apart)
            if apart is not None:  # all memories of the probed cells may be apart
                near = op.where(op.less(near, floats(FAR / 2)), near, self._nearest(q, 0, len(self.rows), apart))
        return op.add(near, op.reduce_sum_square(q, axes=(1,), keepdims=1))

    def _probe(self, q: Var, apart: Var | None) -> Var:
        """Add to a graph the least of `_nearest` over the memories of the cells that each patch probes: (n, 1)."""
        centres, offset = self.centres()
        coarse = op.matmul(q, floats(np.vstack([-2 * centres.T, offset[None] - 1])))
        limit, _ = op.top_k(coarse, ints(PROBED), largest=0)
        probed = op.transpose(op.less_or_equal(coarse, op.slice(limit, ints(PROBED - 1), ints(PROBED), ints(1))))
        pairs = op.non_zero(probed)  # (2, pairs): cell and patch, in order of the cells
        counts = op.reduce_sum(op.cast(probed, to=np.int64), ints(1), keepdims=0)
        patches = op.gather(q, op.gather(pairs, op.const(np.int64(1)), axis=0), axis=0)  # (pairs, c + 1)
        found = [
            self._nearest(own, start, end, apart)
            for own, start, end in zip(
                op.split(patches, counts, outputs_count=len(centres)), self.starts[:-1], self.starts[1:], strict=True
            )
        ]
        nowhere = op.expand(floats(FAR), op.shape(probed))  # (m, n)
        near = op.scatter_nd(nowhere, op.transpose(pairs), op.squeeze(op.concat(found, axis=0), ints(1)))
        return op.unsqueeze(op.reduce_min(near, axes=(0,), keepdims=0), ints(1))

    def _nearest(self, q: Var, start: int, end: int, apart: Var | None) -> Var:
        """Add to a graph the least of |q − b|² − credit − |[q, 1]|² over the memories of a range: (n, 1)."""
        # It is [q, 1]·[−2b; |b|² − credit − 1]: nothing elementwise touches the patches × memories matrix.
        least = []
        for first in range(start, end, TOGETHER):
            last = min(first + TOGETHER, end)
            towards = -2 * self.rows[first:last].T
            offset = _offset(self.rows[first:last], self.credit[first:last])[None] - 1
            memories = floats(np.vstack([towards, offset]))
            if apart is not None:
                away = op.unsqueeze(op.slice(apart, ints(first), ints(last)), ints(0))
                memories = op.concat([floats(towards), op.add(floats(offset), away)], axis=0)
            least.append(op.reduce_min(op.matmul(q, memories), axes=(1,), keepdims=1))
        return op.min(least) if len(least) > 1 else least[0]


def _offset(rows: NDArray[np.floating], credit: NDArray[np.floating]) -> Array:
    """What depends on a memory b alone, (k,), in float64: |q − b|² − credit = |q|² + offset − 2 q·b."""
    offset: Array = (rows.astype(np.float64) ** 2).sum(axis=1) - credit
    return offset


def _cells(rows: Array, count: int) -> NDArray[np.intp]:
    """Assign rows (k, c) to `count` cells by k-means, Lloyd's algorithm from random rows; cells can be empty."""
    centres = rows[np.random.default_rng(0).choice(len(rows), count, replace=False)].astype(np.float64)
    for _ in range(ROUNDS):
        cell: NDArray[np.intp] = np.argmin((centres**2).sum(axis=1) - 2 * rows @ centres.T, axis=1)
        for i in np.unique(cell):
            centres[i] = rows[cell == i].mean(axis=0, dtype=np.float64)
    return cell

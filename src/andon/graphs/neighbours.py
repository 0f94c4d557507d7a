"""k-nearest-neighbour distance between standardised embeddings of images: in NumPy, and as a part of a graph.

Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020. Written from the paper. Symbols: f
embedding, N_f its k nearest neighbours among the embeddings of good images.
"""

from typing import NamedTuple, Self

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from andon.errors import TrainingError
from andon.graphs.parts import ints
from andon.inspection import Array


class Neighbours(NamedTuple):
    """The embeddings of good images, and the distance of other embeddings to them."""

    mean: Array  # (d,)
    deviation: Array  # (d,)
    rows: Array  # (N, d), standardised
    k: int

    @classmethod
    def learn(cls, embeddings: Array, k: int, floor: float) -> Self:
        """Standardise the embeddings (N, d) of good images, N ≥ k.

        The minimum of standard deviations is `floor` times their mean, because a feature with almost no variation
        would dominate the distance. If no feature varies, as for equal images, all deviations are 1.
        """
        mean, deviation = embeddings.mean(axis=0, dtype=np.float64), embeddings.std(axis=0, dtype=np.float64)
        typical = float(deviation.mean())
        if typical > 1e-6 * float(np.abs(mean).mean()):  # above rounding errors
            deviation = np.maximum(deviation, floor * typical)
        else:
            deviation = np.ones_like(deviation)
        rows = (embeddings - mean) / deviation
        return cls(mean.astype(np.float32), deviation.astype(np.float32), rows.astype(np.float32), k)

    def nearest(self, embeddings: Array) -> tuple[Array, Array]:
        """Embeddings (n, d) → mean distance (n,) to the k nearest, and the k nearest, standardised (n, k, d)."""
        f = (embeddings.astype(np.float64) - self.mean) / self.deviation
        distances = np.array([np.sqrt(((self.rows - one) ** 2).sum(axis=1)) for one in f])  # (n, N)
        order = np.argsort(distances, axis=1, kind="stable")[:, : self.k]
        mean = np.take_along_axis(distances, order, axis=1).mean(axis=1)  # d(y) = 1/k Σ ‖f − f_y‖ over N_f
        return mean.astype(np.float32), self.rows[order]

    def standardise(self, f: Var) -> Var:
        """Add to a graph: embeddings (n, d) → standardised embeddings (n, d)."""
        return op.div(op.sub(f, op.const(self.mean)), op.const(self.deviation))

    def search(self, f: Var) -> tuple[Var, Var]:
        """Add to a graph: standardised embeddings (n, d) → the results of `nearest`."""
        rows = op.const(self.rows)
        # |f − b|² − |f|² selects the nearest, because |f|² is the same for all b; distances are then computed exactly.
        norms = op.const((self.rows.astype(np.float64) ** 2).sum(axis=1).astype(np.float32))
        _, order = op.top_k(op.gemm(f, rows, norms, alpha=-2.0, transB=1), ints(self.k), largest=0)
        nearest = op.gather(rows, order)  # (n, k, d)
        difference = op.sub(nearest, op.unsqueeze(f, ints(1)))
        distance = op.sqrt(op.reduce_sum(op.mul(difference, difference), ints(2), keepdims=0))  # (n, k)
        # ReduceMean changed in opset 18, and graphs that torch exports have a later opset than this one.
        return op.mul(op.reduce_sum(distance, ints(1), keepdims=0), op.const(np.float32(1 / self.k))), nearest


def require(tiles: int, k: int) -> None:
    """TrainingError when there are fewer training tiles than k."""
    if tiles < k:
        raise TrainingError(
            f"{tiles} training tiles for {k} neighbours; expected at least {k} tiles. Add good images, or set "
            f"neighbours = {max(1, tiles)} or lower."
        )

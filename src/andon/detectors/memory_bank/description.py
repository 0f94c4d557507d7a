"""The features by which `memory-bank` describes tiles."""

from functools import lru_cache
from typing import NamedTuple

import onnxruntime
import spox.opset.ai.onnx.v17 as op
from spox import Var, build

from andon.engines import runtime
from andon.graphs import features
from andon.graphs.parts import input_tiles


class Description(NamedTuple):
    """Which features of tiles are computed."""

    network: str
    digest: str  # of the network's graph
    stages: tuple[int, ...]
    average: int  # positions a side
    scales: int

    def add_to(self, tiles: Var, channels: int, depth: int) -> list[Var]:
        """Add to a graph the way from tiles to the averaged maps (n, c, h, w): of each scale, of each stage."""
        scales = range(1, self.scales + 1)
        maps = [features.describe(tiles, depth, channels, self.network, self.stages, scale) for scale in scales]
        return [pool(x, self.average) for each in maps for x in each]


@lru_cache(maxsize=1)
def session(
    shape: tuple[int, int], channels: int, depth: int, description: Description
) -> onnxruntime.InferenceSession:
    """Load the graph from tiles to the averaged maps `map0`, `map1`, …; the folds of a training share it."""
    tiles = input_tiles(shape, channels, depth)
    return runtime.session(
        build({"tiles": tiles}, {f"map{i}": x for i, x in enumerate(description.add_to(tiles, channels, depth))})
    )


def pool(x: Var, width: int) -> Var:
    """Add to a graph the average of `width` × `width` positions, zeros beyond the border."""
    reach = width // 2
    return x if width == 1 else op.average_pool(x, kernel_shape=(width, width), pads=(reach,) * 4, count_include_pad=1)

"""memory-bank: distance of every patch to the nearest patch remembered from good parts.

Paper: Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), CVPR 2022, arXiv 2106.08265.
Written from the paper; no code of others. Symbols of the paper: φ_j features of stage j, M memory bank, M_C coreset.

Differs from the paper:
- EfficientNet-Lite0 in place of Wide-ResNet50 (study: docs/detectors/memory-bank.md).
- Descriptors are whitened and cut to `dimensions`, in place of a random projection used in the coreset only.
- The coreset is drawn from a seeded random sample of the patches that fits `memory_mb`, not from all of them.
- The image score is the maximum of the locally averaged map; the neighbourhood weighting of eq. 7 is left out.
"""

import time
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from spox import Tensor, Var, argument, build

from andon import features
from andon.detectors.base import Forecast, Progress, Tiles, silent
from andon.errors import TrainingError
from andon.inspection import Array, Pixels, Scores


class Settings(BaseModel):
    """Settings of `memory-bank`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str = "efficientnet-lite0"  # a feature graph of andon.features
    stages: Annotated[tuple[int, ...], Field(min_length=1)] = (4, 10)  # blocks; the first sets the map's grid
    average: Annotated[int, Field(ge=1, le=15)] = 3  # positions a side over which features are averaged; odd
    dimensions: Annotated[int, Field(ge=1)] = 64  # of a whitened descriptor
    floor: Annotated[float, Field(gt=0, le=1)] = 1e-2  # least eigenvalue in whitening, as a share of the greatest
    bank: Annotated[int, Field(ge=1)] = 2000  # memories; time of a search is in proportion
    candidates: Annotated[int, Field(ge=1)] = 60_000  # patches sampled, from which the memories are chosen
    memory_mb: Annotated[int, Field(ge=16)] = 512  # MB for the sample; fewer candidates are kept if it needs more


class MemoryBank:
    """PatchCore on an EfficientNet-Lite, fitted without gradients."""

    name: ClassVar[str] = "memory-bank"
    summary: ClassVar[str] = "distance to the nearest remembered patch of a good part; no gradients, fits in seconds"
    position_aware: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {"cpu": {}, "fine": {"bank": 6000, "candidates": 120_000}}

    def __init__(self, config: Settings, seed: int) -> None:
        """Take the settings; nothing is learnt yet."""
        self.config = config
        self.seed = seed
        self._stages = features.select(config.network, config.stages)
        self._fitted = False

    def forecast(self, tiles: Tiles) -> Forecast:
        """Estimate from one timed batch and a few timed steps of the coreset."""
        c, batch = self.config, next(iter(tiles))
        describe = features.session(self._describing_graph(tiles.channels, tiles.depth))
        describe.run(None, {"tiles": batch[:1]})
        start = time.perf_counter()
        describe.run(None, {"tiles": batch})
        extract = (time.perf_counter() - start) / len(batch) * len(tiles)
        rows = self._rows(len(tiles) * self._grid(tiles.side) ** 2)
        kept = min(rows, 20_000)
        sample = np.random.default_rng(0).random((kept, self._dimensions), dtype=np.float32)
        start = time.perf_counter()
        k_centre(sample, min(20, kept), np.random.default_rng(0))
        choose = (time.perf_counter() - start) / min(20, kept) * min(c.bank, rows) * rows / kept
        width = sum(stage.channels for stage in self._stages)
        floats = rows * (2 * width + self._dimensions + 3) + len(batch) * tiles.side**2 * 60
        return Forecast(extract + choose, floats * 4 / 1e6)

    def fit(self, tiles: Tiles, progress: Progress = silent) -> Self:
        """Sample descriptors, learn the whitening from them, choose the memories."""
        c, rng = self.config, np.random.default_rng(self.seed)
        self._side, self._channels, self._depth = tiles.side, tiles.channels, tiles.depth
        sample = self._sample(tiles, rng, progress)  # (rows, channels of all stages)
        self._mean, self._whiten = whitening(sample, self._dimensions, c.floor)
        white = (sample - self._mean) @ self._whiten  # (rows, dimensions)
        chosen = k_centre(white, min(c.bank, len(white)), rng, progress)
        self._bank = white[chosen]
        self._fitted = True
        return self

    def score(self, tiles: Pixels) -> Scores:
        """Score in NumPy, patch by patch, from the bare feature maps."""
        self._require_fit()
        maps = features.Extractor(self.config.network, self.config.stages)(tiles)
        grid = maps[0].shape[2]
        rows = [_enlarge(_average(m, self.config.average), grid).transpose(0, 2, 3, 1) for m in maps]
        white = (np.concatenate(rows, axis=3) - self._mean) @ self._whiten  # (n, grid, grid, dimensions)
        near = np.empty(white.shape[:3], np.float32)
        for i, j in np.ndindex(white.shape[:2]):
            square = ((white[i, j, :, None] - self._bank) ** 2).sum(axis=2)  # (grid, memories)
            near[i, j] = np.sqrt(square.min(axis=1))
        image = _average(near[:, None], 3).max(axis=(1, 2, 3))
        return Scores(image, _enlarge(near[:, None], tiles.shape[1])[:, 0])

    def graph(self) -> onnx.ModelProto:
        """tiles (n, t, t, c) uint8 or uint16 → score float32 (n,), map float32 (n, t, t)."""
        self._require_fit()
        tiles = self._input(self._channels, self._depth)
        grid = self._grid(self._side)
        # A linear map commutes with averaging and enlarging, so each stage is whitened on its own, smaller grid.
        white: Var | None = None
        start = 0
        for stage, x in zip(self._stages, self._maps(tiles, self._channels, self._depth), strict=True):
            part = self._whiten[start : start + stage.channels]  # (channels, dimensions)
            shift = self._mean[start : start + stage.channels] @ part
            y = _pool(op.conv(x, _const(part.T[:, :, None, None]), _const(-shift)), self.config.average)
            y = _resize(y, grid)
            white = y if white is None else op.add(white, y)
            start += stage.channels
        assert white is not None
        query = op.reshape(op.transpose(white, perm=[0, 2, 3, 1]), _ints(-1, self._dimensions))
        # |q − b|² = |q|² + [q, 1]·[−2b; |b|²]: nothing elementwise touches the patches × memories matrix.
        memories = np.concatenate([-2 * self._bank.T, (self._bank**2).sum(axis=1)[None]])
        one = op.expand(_const(np.ones((1, 1))), op.concat([op.shape(query, end=1), _ints(1)], axis=0))
        cross = op.reduce_min(op.matmul(op.concat([query, one], axis=1), _const(memories)), axes=(1,), keepdims=1)
        square = op.add(op.reduce_sum(op.mul(query, query), _ints(1), keepdims=1), cross)
        near = op.reshape(op.sqrt(op.relu(square)), _ints(-1, 1, grid, grid))
        score = op.reduce_max(_pool(near, 3), axes=(1, 2, 3), keepdims=0)
        full = op.squeeze(_resize(near, self._side), _ints(1))
        return build({"tiles": tiles}, {"score": score, "map": full})

    @property
    def _dimensions(self) -> int:
        return min(self.config.dimensions, sum(stage.channels for stage in self._stages))

    def _grid(self, side: int) -> int:
        return side // self._stages[0].stride

    def _rows(self, patches: int) -> int:
        """How many patches are sampled."""
        width = 2 * sum(stage.channels for stage in self._stages) + self._dimensions
        return min(patches, self.config.candidates, self.config.memory_mb * 1_000_000 // (4 * width))

    def _input(self, channels: int, depth: int) -> Var:
        return argument(Tensor(np.uint8 if depth == 8 else np.uint16, ("n", "t", "t", channels)))

    def _maps(self, tiles: Var, channels: int, depth: int) -> list[Var]:
        return features.describe(tiles, depth, channels, self.config.network, self.config.stages)

    def _describing_graph(self, channels: int, depth: int) -> onnx.ModelProto:
        """tiles (n, t, t, c) → the averaged feature map of each stage, on its own grid."""
        tiles = self._input(channels, depth)
        maps = self._maps(tiles, channels, depth)
        return build(
            {"tiles": tiles}, {s.name: _pool(m, self.config.average) for s, m in zip(self._stages, maps, strict=True)}
        )

    def _descriptors(self, tiles: Tiles) -> Iterator[Array]:
        """Yield the descriptors (b · grid · grid, channels of all stages) of one batch after another."""
        describe = features.session(self._describing_graph(tiles.channels, tiles.depth))
        grid = self._grid(tiles.side)
        for batch in tiles:
            maps = describe.run(None, {"tiles": batch})
            rows = [_enlarge(m, grid).transpose(0, 2, 3, 1) for m in maps]
            yield np.concatenate(rows, axis=3).reshape(-1, sum(m.shape[1] for m in maps))

    def _sample(self, tiles: Tiles, rng: np.random.Generator, progress: Progress) -> Array:
        """Draw a uniform sample of all descriptors in one pass (reservoir)."""
        patches = self._grid(tiles.side) ** 2
        rows = self._rows(len(tiles) * patches)
        sample = np.empty((rows, sum(stage.channels for stage in self._stages)), np.float32)
        seen = 0
        for new in self._descriptors(tiles):
            # The i-th patch takes place r of the sample, r uniform in [0, i]; where r ≥ rows it is passed over.
            order = np.arange(seen, seen + len(new))
            place = np.where(order < rows, order, rng.integers(0, order + 1))
            kept = place < rows
            sample[place[kept]] = new[kept]  # where a place comes twice, the later patch wins
            seen += len(new)
            progress("features", seen // patches, len(tiles))
        if seen == 0:
            raise TrainingError("no training tiles; expected at least one image of a good part. Add good images.")
        return sample[:seen]

    def _require_fit(self) -> None:
        if not self._fitted:
            raise TrainingError(f"this {self.name} is not fitted; expected a fitted detector. Call fit(tiles) first.")


def whitening(rows: Array, dimensions: int, floor: float) -> tuple[Array, Array]:
    """Return mean (c,) and matrix (c, dimensions) that decorrelate the rows, the strongest directions first."""
    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows - mean.astype(np.float32)
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(rows))
    values, vectors = values[::-1][:dimensions], vectors[:, ::-1][:, :dimensions]
    # A floor keeps directions that good parts hardly use from being blown up into noise.
    least = max(floor * values[0], np.finfo(np.float32).tiny)
    return mean.astype(np.float32), (vectors / np.sqrt(np.maximum(values, least))).astype(np.float32)


def k_centre(rows: Array, count: int, rng: np.random.Generator, progress: Progress = silent) -> NDArray[np.int64]:
    """Choose `count` rows greedily, each the farthest from those chosen before (Algorithm 1, Sener & Savarese 2018)."""
    norm = np.einsum("ij,ij->i", rows, rows)
    nearest = np.full(len(rows), np.inf, np.float32)  # squared distance to the nearest row chosen so far
    distance = np.empty_like(nearest)
    chosen = np.empty(count, np.int64)
    chosen[0] = rng.integers(len(rows))
    for step in range(1, count + 1):
        last = chosen[step - 1]
        np.matmul(rows, -2 * rows[last], out=distance)
        distance += norm
        distance += norm[last]
        np.minimum(nearest, distance, out=nearest)
        nearest[last] = -1
        if step < count:
            chosen[step] = nearest.argmax()
        if step % 100 == 0 or step == count:
            progress("memories", step, count)
    return chosen


def _average(maps: Array, width: int) -> Array:
    """Mean over width × width positions of (n, c, h, w); at the border over those there are."""
    reach, (h, w) = width // 2, maps.shape[2:]
    total, count = np.zeros_like(maps), np.zeros((h, w), np.float32)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            to_y, from_y = slice(max(-dy, 0), h - max(dy, 0)), slice(max(dy, 0), h - max(-dy, 0))
            to_x, from_x = slice(max(-dx, 0), w - max(dx, 0)), slice(max(dx, 0), w - max(-dx, 0))
            total[:, :, to_y, to_x] += maps[:, :, from_y, from_x]
            count[to_y, to_x] += 1
    return total / count


def _enlarge(maps: Array, side: int) -> Array:
    """(n, c, g, g) → (n, c, side, side), bilinear between the centres of the positions."""
    grid = maps.shape[2]
    if grid == side:
        return maps
    centre = np.clip((np.arange(side) + 0.5) * grid / side - 0.5, 0, grid - 1)
    weight = np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(grid))).astype(np.float32)  # (side, grid)
    large: Array = weight @ maps @ weight.T
    return large


def _pool(x: Var, width: int) -> Var:
    reach = width // 2
    return x if width == 1 else op.average_pool(x, kernel_shape=(width, width), pads=(reach,) * 4, count_include_pad=0)


def _resize(x: Var, side: int) -> Var:
    sizes = op.concat([op.shape(x, end=2), _ints(side, side)], axis=0)
    return op.resize(x, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")


def _const(value: NDArray[Any]) -> Var:
    return op.const(np.ascontiguousarray(value, np.float32))


def _ints(*values: int) -> Var:
    return op.const(np.array(values, np.int64))

"""memory-bank: how far each patch lies from the nearest patches remembered from good parts.

Paper: Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), CVPR 2022, arXiv 2106.08265.
Written from the paper; no code of others. Its symbols: φ_j features of stage j, M memory bank, M_C coreset.

Differs from the paper (measured in docs/detectors/memory-bank.md):
- EfficientNet-Lite0 in place of Wide-ResNet50.
- Each stage has a bank of its own on its own grid, and the maps are added: as good as one bank of joined
  features, and the search, which would cost more than the network, is several times cheaper.
- Features are whitened in full, and the distance is squared: within a stage, rare directions count as much as common.
- The local average sees zeros beyond the border, where the network's own padding makes good patches look strange.
- A memory in a sparse region has credit: a share of its mean squared distance to its neighbours among the good
  patches is taken off the distance (a power diagram; in place of the neighbourhood weighting of eq. 7).
- The coreset is drawn from a seeded random sample that fits `memory_mb`, not from all patches.
- The image score is the maximum of the 3 × 3 average of the added distances less a share of their mean: exposure and
  focus raise a whole map, a defect raises a part of it.
- The anomaly map counts distances per channel, and the coarser stage for a quarter: it finds defects but blurs them.
"""

import time
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator
from spox import Var, build

from andon.detector import QUIET, DetectorSettings, Forecast, NumpyDetector, Run, Tiles, no_tiles
from andon.engines import runtime
from andon.graphs import features
from andon.graphs.parts import input_tiles, ints
from andon.inspection import Array, Pixels, Scores
from andon.progress import Progress, silent


class Settings(DetectorSettings):
    """Settings of `memory-bank`."""

    network: str = "efficientnet-lite0"
    """Name of a feature graph; `andon features list` lists them."""
    stages: Annotated[tuple[int, ...], Field(min_length=1, strict=False)] = (4, 10)
    """Blocks of the network; each gets a memory bank."""
    average: Annotated[int, Field(ge=1, le=15)] = 3
    """Positions a side over which features are averaged, odd."""
    floor: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Least eigenvalue in whitening, as a share of the greatest."""
    bank: Annotated[int, Field(ge=1)] = 2000
    """Memories of a stage; the time of a search is proportional to it."""
    neighbours: Annotated[int, Field(ge=1)] = 10
    """Good patches around a memory that determine its credit."""
    credit: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of their mean squared distance that is subtracted from the distance; 0: none."""
    common: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the map's mean that is subtracted from the image score."""
    deep: Annotated[float, Field(ge=0)] = 0.25
    """Weight of the coarser stages in the map. They detect; the finest stage localises."""
    candidates: Annotated[int, Field(ge=1)] = 60_000
    """Patches of a stage that are sampled; memories are chosen among them."""
    memory_mb: Annotated[int, Field(ge=16)] = 512
    """MB for the sampled patches; fewer candidates where they need more."""

    @field_validator("average")
    @classmethod
    def _odd(cls, width: int) -> int:
        if width % 2 == 0:
            raise ValueError(f"{width} is even; expected an odd number of positions. Choose {width - 1} or {width + 1}")
        return width


class _Bank(NamedTuple):
    """What is learnt of one stage; c channels, k memories."""

    mean: Array  # (c,)
    whiten: Array  # (c, c)
    memories: Array  # (k, c), whitened
    credit: Array  # (k,), taken off the squared distance


class MemoryBank(NumpyDetector):
    """PatchCore on an EfficientNet-Lite, one bank a stage, fitted without gradients."""

    name: ClassVar[str] = "memory-bank"
    position_aware: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]] = Settings
    config: Settings

    def __init__(self, config: Settings, seed: int) -> None:
        """Take the settings; nothing is learnt yet."""
        super().__init__(config, seed)
        self._stages = features.select(config.network, config.stages)

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate from one timed batch and a few timed steps of the coreset."""
        batch = next(iter(tiles))
        describe = runtime.session(self._describing_graph(tiles))
        describe.run(None, {"tiles": batch[:1]})
        start = time.perf_counter()
        describe.run(None, {"tiles": batch})
        seconds = (time.perf_counter() - start) / len(batch) * len(tiles)
        floats = 0.0
        for stage, rows in zip(self._stages, self._rows(tiles), strict=True):
            sample = np.random.default_rng(0).random((rows, stage.channels), dtype=np.float32)
            steps = min(10, rows)
            start = time.perf_counter()
            k_centre(sample, steps, np.random.default_rng(0))
            # Credit costs about as much again as half of the coreset.
            seconds += 1.5 * (time.perf_counter() - start) / steps * min(self.config.bank, rows)
            floats += rows * (3 * stage.channels + 3)
        pixels = len(batch) * tiles.side**2
        return Forecast(seconds, 4 * (floats + 60 * pixels) / 1e6)  # activations: about 60 floats a pixel

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Sample features, learn the whitening of each stage from them, choose its memories."""
        c, rng = self.config, np.random.default_rng(self.seed)
        features.require_multiple(tiles.side, self._stages)
        self._side, self._channels, self._depth = tiles.side, tiles.channels, tiles.depth
        self._banks: list[_Bank] = []
        for sample in self._sample(tiles, rng, run.progress):  # (rows, channels)
            mean, whiten = whitening(sample, c.floor)
            good = np.asarray((sample - mean) @ whiten, np.float32)
            memories = good[k_centre(good, min(c.bank, len(good)), rng, run.progress)]
            around = neighbour_distance(memories, good, c.neighbours)
            # At least the median: a dense region (a plain background) must not rank above a varied one.
            credit = c.credit * np.maximum(around, np.median(around))
            self._banks.append(_Bank(mean, whiten, memories, credit.astype(np.float32)))
        self._fitted = True
        return self

    def score(self, tiles: Pixels) -> Scores:
        """Score in NumPy, distance by distance, from the bare feature maps."""
        self._require_fit()
        grid, total, shown = self._grid(), np.zeros((), np.float32), np.zeros((), np.float32)
        maps = features.Extractor(self.config.network, self.config.stages)(tiles)
        for stage, bank, x in zip(self._stages, self._banks, maps, strict=True):
            rows = average(x, self.config.average).transpose(0, 2, 3, 1)  # (n, g, g, channels)
            white = (rows - bank.mean) @ bank.whiten
            near = np.empty((len(tiles), 1, *white.shape[1:3]), np.float32)
            for i, y in np.ndindex(white.shape[:2]):
                square = ((white[i, y, :, None] - bank.memories) ** 2).sum(axis=2)  # (g, memories)
                near[i, 0, y] = (square - bank.credit).min(axis=1)
            near = _enlarge(near, grid)
            total, shown = total + near, shown + self._weight(stage) * near
        image = average(total, 3).max(axis=(1, 2, 3)) - np.float32(self.config.common) * total.mean(axis=(1, 2, 3))
        return Scores(image, _enlarge(average(shown, 3), self._side)[:, 0])

    def graph(self) -> onnx.ModelProto:
        """tiles (n, t, t, c) uint8 or uint16 → score float32 (n,), map float32 (n, t, t)."""
        self._require_fit()
        tiles = input_tiles(self._side, self._channels, self._depth)
        maps = self._maps(tiles, self._channels, self._depth)
        total: Var | None = None
        shown: Var | None = None
        for stage, bank, x in zip(self._stages, self._banks, maps, strict=True):
            side, c = self._side // stage.stride, stage.channels
            rows = op.reshape(op.transpose(x, perm=[0, 2, 3, 1]), ints(-1, c))  # (n · side · side, c)
            # [q, 1]: the whitened patch, and a one that carries what depends on the memory alone.
            q = op.gemm(
                rows, _const(np.pad(bank.whiten, ((0, 0), (0, 1)))), _const(np.append(-bank.mean @ bank.whiten, 1))
            )
            # |q − b|² − credit = |[q, 1]|² + [q, 1]·[−2b; |b|² − credit − 1]: nothing elementwise touches the
            # patches × memories matrix.
            offset = (bank.memories**2).sum(axis=1) - bank.credit - 1
            cross = op.matmul(q, _const(np.vstack([-2 * bank.memories.T, offset])))
            near = op.add(
                op.reduce_min(cross, axes=(1,), keepdims=1),
                op.reduce_sum(op.mul(q, q), ints(1), keepdims=1),
            )
            near = _resize(op.reshape(near, ints(-1, 1, side, side)), side, self._grid())
            seen = op.mul(near, _const(np.asarray(self._weight(stage))))
            total = near if total is None else op.add(total, near)
            shown = seen if shown is None else op.add(shown, seen)
        assert total is not None
        assert shown is not None
        worst = op.reduce_max(_pool(total, 3), axes=(1, 2, 3), keepdims=0)
        mean = op.reduce_mean(total, axes=(1, 2, 3), keepdims=0)
        score = op.sub(worst, op.mul(_const(np.asarray(self.config.common)), mean))
        full = op.squeeze(_resize(_pool(shown, 3), self._grid(), self._side), ints(1))
        return build({"tiles": tiles}, {"score": score, "map": full})

    def _weight(self, stage: features.Stage) -> np.float32:
        """What a stage counts in the map: its distance per channel, and less where its grid is coarser."""
        finest = self._side // stage.stride == self._grid()
        return np.float32((1 if finest else self.config.deep) / stage.channels)

    def _grid(self) -> int:
        """Positions a side of the map before it is enlarged."""
        return self._side // min(stage.stride for stage in self._stages)

    def _rows(self, tiles: Tiles) -> list[int]:
        """How many patches are sampled for each stage."""
        width = sum(3 * stage.channels for stage in self._stages)  # the sample, centred, whitened
        most = min(self.config.candidates, self.config.memory_mb * 1_000_000 // (4 * width))
        return [min(most, len(tiles) * (tiles.side // stage.stride) ** 2) for stage in self._stages]

    def _maps(self, tiles: Var, channels: int, depth: int) -> list[Var]:
        maps = features.describe(tiles, depth, channels, self.config.network, self.config.stages)
        return [_pool(x, self.config.average) for x in maps]

    def _describing_graph(self, like: Tiles) -> onnx.ModelProto:
        """tiles (n, t, t, c) → the averaged feature map of each stage."""
        tiles = input_tiles(like.side, like.channels, like.depth)
        named = zip(self._stages, self._maps(tiles, like.channels, like.depth), strict=True)
        return build({"tiles": tiles}, {stage.name: x for stage, x in named})

    def _sample(self, tiles: Tiles, rng: np.random.Generator, progress: Progress) -> list[Array]:
        """Draw a uniform sample of the patches of each stage, all in one pass (reservoir)."""
        describe = runtime.session(self._describing_graph(tiles))
        names = [stage.name for stage in self._stages]
        sizes = zip(self._stages, self._rows(tiles), strict=True)
        samples = [np.empty((rows, stage.channels), np.float32) for stage, rows in sizes]
        seen, done = [0] * len(samples), 0
        for batch in tiles:
            for j, x in enumerate(describe.run(names, {"tiles": batch})):
                new = x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
                # Patch i takes place r of the sample, r uniform in [0, i]; where r is beyond it, it is passed over.
                order = np.arange(seen[j], seen[j] + len(new))
                place = np.where(order < len(samples[j]), order, rng.integers(0, order + 1))
                kept = place < len(samples[j])
                samples[j][place[kept]] = new[kept]  # where a place comes twice, the later patch has it
                seen[j] += len(new)
            done += len(batch)
            progress("features", done, len(tiles))
        if done == 0:
            raise no_tiles()
        return [sample[:count] for sample, count in zip(samples, seen, strict=True)]


def whitening(rows: Array, floor: float) -> tuple[Array, Array]:
    """Return mean (c,) and matrix (c, c) that decorrelate the rows and bring them to unit variance."""
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = rows - mean
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(rows))
    # A floor keeps directions that good parts hardly use from being blown up into noise.
    least = max(floor * values[-1], np.finfo(np.float32).tiny)
    return mean, (vectors / np.sqrt(np.maximum(values, least))).astype(np.float32)


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


def neighbour_distance(memories: Array, good: Array, count: int, block: int = 256) -> Array:
    """Return the mean squared distance (k,) of each memory to the `count` good patches nearest it, itself left out."""
    count = min(count, len(good) - 1)
    if count == 0:
        return np.zeros(len(memories), np.float32)
    mean, norm = np.empty(len(memories), np.float32), np.einsum("ij,ij->i", good, good)
    for start in range(0, len(memories), block):
        some = memories[start : start + block]
        square = norm - 2 * some @ good.T + np.einsum("ij,ij->i", some, some)[:, None]  # (block, rows)
        nearest = np.sort(np.partition(square, count, axis=1)[:, : count + 1], axis=1)
        mean[start : start + block] = np.maximum(nearest[:, 1:], 0).mean(axis=1)
    return mean


def average(maps: Array, width: int) -> Array:
    """Mean over width × width positions of (n, c, h, w), zeros beyond the border."""
    reach, (h, w) = width // 2, maps.shape[2:]
    wide = np.pad(maps, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    total = np.zeros_like(maps)
    for dy, dx in np.ndindex(width, width):
        total += wide[:, :, dy : dy + h, dx : dx + w]
    return total / np.float32(width * width)


def _enlarge(maps: Array, side: int) -> Array:
    """(n, c, g, g) → (n, c, side, side), bilinear between the centres of the positions."""
    grid = maps.shape[2]
    centre = np.clip((np.arange(side) + 0.5) * grid / side - 0.5, 0, grid - 1)
    weight = np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(grid))).astype(np.float32)  # (side, grid)
    large: Array = weight @ maps @ weight.T
    return large


def _pool(x: Var, width: int) -> Var:
    reach = width // 2
    return x if width == 1 else op.average_pool(x, kernel_shape=(width, width), pads=(reach,) * 4, count_include_pad=1)


def _resize(x: Var, grid: int, side: int) -> Var:
    if grid == side:
        return x
    scales = op.const(np.array([1, 1, side / grid, side / grid], np.float32))
    return op.resize(x, None, scales, mode="linear", coordinate_transformation_mode="half_pixel")


def _const(value: NDArray[Any]) -> Var:
    return op.const(np.ascontiguousarray(value, np.float32))

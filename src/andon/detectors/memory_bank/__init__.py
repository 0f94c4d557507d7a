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
- A patch of a large bank is compared with the memories of the two nearest cells, not with all (`search.py`).
- The coreset is drawn from a seeded random sample that fits `memory_mb`, not from all patches.
- Parts that lie alike (`alike.py`): the squared distance of a patch to the mean of its position, in the variances of
  that position (a diagonal PaDiM, arXiv 2011.08785, on whitened features), is added to that of the bank; and the sum
  is calibrated by the usual distance of each position, as good pictures have it to a bank without their own memories.
  Both fade out where parts do not lie alike.
- The image score is the maximum of the 3 × 3 average of the calibrated distances less a share of their mean: exposure
  and focus raise a whole map, a defect raises a part of it.
- Two scales: the tile as it is, and shrunk by two. Each has its banks; their scores are added in standard deviations
  of good pictures, their maps averaged.
- The anomaly map counts distances per channel, uncalibrated.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator
from spox import Tensor, Var, argument, build

from andon.detector import QUIET, Compute, DetectorSettings, Forecast, NumpyDetector, Run, Tiles, no_tiles
from andon.detectors.memory_bank import alike, description
from andon.detectors.memory_bank.alike import Usual
from andon.detectors.memory_bank.coreset import BLOCK, Turn, approach, copies, k_centre, neighbour_distance, whitening
from andon.detectors.memory_bank.description import Description, pool
from andon.detectors.memory_bank.search import FAR, Memories
from andon.engines import runtime
from andon.graphs import features
from andon.graphs.parts import floats, input_tiles, ints, shared_weights
from andon.inspection import Array, Pixels, Scores

CALIBRATED_ON = 150  # training tiles, at most, from which the usual distances are learnt


class Settings(DetectorSettings):
    """Settings of `memory-bank`."""

    network: str = "efficientnet-lite0"
    """Name of a feature graph; `andon features list` lists them."""
    stages: Annotated[tuple[int, ...], Field(min_length=1, strict=False)] = (4, 10)
    """Numbers of the blocks of the network; each has a memory bank."""
    average: Annotated[int, Field(ge=1, le=15)] = 3
    """Side of the window over which features are averaged, positions, odd."""
    floor: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Lower limit of the eigenvalues in whitening, as a share of the greatest."""
    bank: Annotated[int, Field(ge=1)] = 2000
    """Number of stored patches (memories) of each stage; above 1,000, the time of a search grows with its root."""
    neighbours: Annotated[int, Field(ge=1)] = 10
    """Number of good patches near a memory from which its credit is computed, which reduces distances to it."""
    credit: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of the mean squared distance to these patches that is subtracted from the distance; 0: none."""
    common: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the map's mean that is subtracted from the image score."""
    deep: Annotated[float, Field(ge=0)] = 0.75
    """Weight of the coarser stages in the map; the finest stage, which localises best, has weight 1."""
    scales: Literal[1, 2] = 2
    """1: the tile only; 2: also the tile reduced by two, for defects of more sizes, in a quarter more time."""
    alike: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the usual features of each position. Used only if all parts have the same position; 0: never."""
    candidates: Annotated[int, Field(ge=1)] = 60_000
    """Number of sampled patches of each stage, from which memories are chosen."""
    memory_mb: Annotated[int, Field(ge=16)] = 512
    """Memory for the sampled patches, MB; fewer are sampled if they need more."""

    @field_validator("average")
    @classmethod
    def _odd(cls, width: int) -> int:
        if width % 2 == 0:
            raise ValueError(f"{width} is even; expected an odd number of positions. Choose {width - 1} or {width + 1}")
        return width


class _Map(NamedTuple):
    """One feature map: a stage of the network at a scale."""

    scale: int  # 1, or 2 where the tile is shrunk by two
    stage: features.Stage

    @property
    def stride(self) -> int:
        """Pixels of the tile between neighbouring positions."""
        return self.scale * self.stage.stride


class _Bank(NamedTuple):
    """What is learnt of one feature map; c channels, k memories."""

    mean: Array  # (c,)
    whiten: Array  # (c, c)
    memories: Memories  # whitened


class MemoryBank(NumpyDetector):
    """PatchCore on an EfficientNet-Lite, one bank a feature map, fitted without gradients."""

    name: ClassVar[str] = "memory-bank"
    position_aware: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {"standard": {}, "fast": {"scales": 1, "deep": 0.25}, "fine": {}}
    sizes: ClassVar[dict[str, int]] = {"standard": 480, "fast": 256, "fine": 640}
    times: ClassVar[dict[str, float]] = {"standard": 4.4, "fast": 1, "fine": 7.8}
    Config: ClassVar[type[BaseModel]] = Settings
    config: Settings

    def __init__(self, config: Settings, seed: int) -> None:
        """Take the settings; nothing is learnt yet."""
        super().__init__(config, seed)
        stages = features.select(config.network, config.stages)
        self.stride = min(stage.stride for stage in stages)
        self._scales = range(1, config.scales + 1)
        network = features.lookup(config.network).sha256
        self._description = Description(config.network, network, config.stages, config.average, config.scales)
        self._maps = [_Map(scale, stage) for scale in self._scales for stage in stages]

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate from one timed batch and a timed block of the coreset."""
        self._take(tiles)
        batch, describe = next(iter(tiles)), self._describing()
        describe(batch[:1])
        start = time.perf_counter()
        describe(batch)
        # What is usual takes a pass over some tiles of its own, with about as much again for the search.
        passes = len(tiles) + 2 * min(len(tiles), CALIBRATED_ON)
        seconds = (time.perf_counter() - start) / len(batch) * passes
        floats = 0.0
        for each, rows in zip(self._maps, self._rows(tiles), strict=True):
            sample = np.random.default_rng(0).random((rows, each.stage.channels), dtype=np.float32)
            start = time.perf_counter()
            approach(np.zeros(rows, np.float32), sample, np.zeros(rows, np.float32), sample[:BLOCK])
            # Coreset and credit take about twice the time of comparing all rows with all memories.
            seconds += 2 * (time.perf_counter() - start) / BLOCK * min(self.config.bank, rows)
            floats += rows * (3 * each.stage.channels + 3)
        area = len(batch) * tiles.shape[0] * tiles.shape[1]
        return Forecast(seconds, 4 * (floats + 60 * area) / 1e6)  # activations: about 60 floats a pixel

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Sample features, learn the whitening of each map from them, choose its memories, learn what is usual."""
        c, rng = self.config, np.random.default_rng(self.seed)
        features.require_multiple(tiles.shape, [each.stage for each in self._maps], c.scales)
        self._take(tiles)
        self._banks: list[_Bank] = []
        for sample, owners in self._sample(tiles, run, rng):  # (rows, channels), (rows,)
            mean, whiten = whitening(sample, c.floor)
            good = np.asarray((sample - mean) @ whiten, np.float32)
            chosen = k_centre(good, min(c.bank, len(good)), rng, run.progress)
            around = neighbour_distance(good[chosen], good, c.neighbours)
            # At least the median: a dense region (a plain background) must not rank above a varied one.
            credit = (c.credit * np.maximum(around, np.median(around))).astype(np.float32)
            self._banks.append(_Bank(mean, whiten, Memories.of(good[chosen], credit, owners[chosen])))
        self._usual: list[Usual | None] = [None] * len(self._maps)
        grids = {each.scale: self._grid(each) for each in self._maps if self._is_finest(each)}
        self._calibrated = {scale: alike.uncalibrated(grid) for scale, grid in grids.items()}
        self._calibrate(tiles, run)
        self._fitted = True
        return self

    def _take(self, tiles: Tiles) -> None:
        """Remember what the tiles are."""
        self._shape, self._channels, self._depth = tiles.shape, tiles.channels, tiles.depth

    def _calibrate(self, tiles: Tiles, run: Run) -> None:
        """Learn what is usual at each position, and each scale's scores of good tiles."""
        floats = sum(each.stage.channels * h * w for each in self._maps for h, w in [self._grid(each)])
        count = min(len(tiles), CALIBRATED_ON, max(2, self.config.memory_mb * 1_000_000 // (8 * floats)))
        rows = np.linspace(0, len(tiles) - 1, count).round().astype(np.intp)
        groups = np.asarray(tiles.groups, np.intp)[rows]
        white, near = self._without_own(tiles, rows, groups, run)
        others = np.all([x.max(axis=(1, 2)) < FAR / 2 for x in near], axis=0)  # not all memories are the tile's own
        white, near, groups = [x[others] for x in white], [x[others] for x in near], groups[others]
        parts = len(np.unique(groups))
        if parts < 2:
            return
        gate = 0.0
        if parts >= alike.PARTS and self.config.alike:
            # Of the coarsest scale's finest stage: there, parts that lie alike differ most from those that do not.
            finest = max((each.scale, i) for i, each in enumerate(self._maps) if self._is_finest(each))[1]
            gate = alike.weight(white[finest])
        if gate:
            weight = np.float32(gate * self.config.alike)
            for i, x in enumerate(white):
                found = alike.usual(x)
                self._usual[i] = found._replace(precision=weight * found.precision)
                near[i] += weight * alike.distances_without(x, groups)
        for scale in self._scales:
            channels = sum(each.stage.channels for each in self._maps if each.scale == scale)
            self._calibrated[scale] = alike.calibrate(self._joined(near, scale), gate, channels, self.config.common)

    def _without_own(
        self, tiles: Tiles, rows: NDArray[np.intp], groups: NDArray[np.intp], run: Run
    ) -> tuple[list[Array], list[Array]]:
        """Return, for each map, whitened features (n, h, w, c) and distances (n, h, w) to the memories of other groups.

        Of the tiles in `rows` (n,), which are of `groups` (n,).
        """
        describe = self._describing()
        maps = [argument(Tensor(np.float32, (1, each.stage.channels, *self._grid(each)))) for each in self._maps]
        apart = [argument(Tensor(np.float32, bank.memories.credit.shape)) for bank in self._banks]
        searches = [self._search(i, x, apart[i]) for i, x in enumerate(maps)]
        inputs = {f"map{i}": x for i, x in enumerate(maps)} | {f"apart{i}": x for i, x in enumerate(apart)}
        outputs = {
            f"{kind}{i}": x for i, pair in enumerate(searches) for kind, x in zip(("white", "near"), pair, strict=True)
        }
        session = runtime.session(build(inputs, outputs))
        values: list[list[Array]] = [[] for _ in outputs]
        for done, (row, group) in enumerate(zip(rows, groups, strict=True)):
            run.progress("distances of good tiles", done, len(rows))
            own = {f"apart{i}": FAR * (bank.memories.groups == group) for i, bank in enumerate(self._banks)}
            features = {f"map{i}": x for i, x in enumerate(run.memo("features", tiles[[row]], describe))}
            for column, x in zip(values, session.run(list(outputs), {**features, **own}), strict=True):
                column.append(x[0])
        run.progress("distances of good tiles", len(rows), len(rows))
        return [np.stack(x)[..., :-1] for x in values[0::2]], [np.stack(x)[:, 0] for x in values[1::2]]

    def score(self, tiles: Pixels) -> Scores:
        """Score in NumPy, with distances in float64, from the bare feature maps."""
        self._require_fit()
        extract = features.Extractor(self.config.network, self.config.stages)
        maps = [x for scale in self._scales for x in extract(tiles, scale)]
        near: list[Array] = []
        for bank, usual, x in zip(self._banks, self._usual, maps, strict=True):
            rows = alike.average(x, self.config.average).transpose(0, 2, 3, 1)  # (n, h, w, channels)
            white = np.asarray((rows - bank.mean) @ bank.whiten, np.float32)
            found = bank.memories.distance(white)
            near.append(found if usual is None else found + usual.distance(white))
        image = np.zeros(len(tiles), np.float32)
        for scale, good in self._calibrated.items():
            scores = alike.image_scores((self._joined(near, scale) - good.offset) * good.factor, self.config.common)
            image += (scores - good.mean) / good.deviation
        grid = self._calibrated[1].offset.shape
        weighed = [self._weight(each) * alike.enlarge(x, grid) for each, x in zip(self._maps, near, strict=True)]
        shown: Array = np.sum(weighed, axis=0, dtype=np.float32)
        return Scores(image, alike.enlarge(alike.average(shown[:, None], 3)[:, 0], self._shape))

    def graph(self) -> onnx.ModelProto:
        """tiles (n, h, w, c) uint8 or uint16 → score float32 (n,), map float32 (n, h, w)."""
        self._require_fit()
        tiles = input_tiles(self._shape, self._channels, self._depth)
        near = [
            self._search(i, x)[1] for i, x in enumerate(self._description.add_to(tiles, self._channels, self._depth))
        ]
        scores: list[Var] = []
        for scale, good in self._calibrated.items():
            own = [(each, x) for each, x in zip(self._maps, near, strict=True) if each.scale == scale]
            total = _sum([_resize(x, self._grid(each), good.offset.shape) for each, x in own])
            usual = op.mul(op.sub(total, floats(good.offset)), floats(good.factor))
            worst = op.reduce_max(pool(usual, 3), axes=(1, 2, 3), keepdims=0)
            mean = op.reduce_mean(usual, axes=(1, 2, 3), keepdims=0)
            score = op.sub(worst, op.mul(floats(self.config.common), mean))
            scores.append(op.div(op.sub(score, floats(good.mean)), floats(good.deviation)))
        grid = self._calibrated[1].offset.shape
        weighed = [op.mul(x, floats(self._weight(each))) for each, x in zip(self._maps, near, strict=True)]
        shown = _sum([_resize(x, self._grid(each), grid) for each, x in zip(self._maps, weighed, strict=True)])
        full = op.squeeze(_resize(pool(shown, 3), grid, self._shape), ints(1))
        return shared_weights(build({"tiles": tiles}, {"score": _sum(scores), "map": full}))

    def _search(self, i: int, x: Var, apart: Var | None = None) -> tuple[Var, Var]:
        """Add to a graph the way from feature map `i` (n, c, h, w) to its distances (n, 1, h, w).

        `apart` (k,) is added to the squared distance of each memory. Also returns the whitened features and a one
        behind them (n, h, w, c + 1).
        """
        bank, usual, (h, w) = self._banks[i], self._usual[i], self._grid(self._maps[i])
        c = len(bank.mean)
        rows = op.reshape(op.transpose(x, perm=[0, 2, 3, 1]), ints(-1, c))  # (n · h · w, c)
        # [q, 1]: the whitened patch, and a one that carries what depends on the memory alone.
        q = op.gemm(rows, floats(np.pad(bank.whiten, ((0, 0), (0, 1)))), floats(np.append(-bank.mean @ bank.whiten, 1)))
        near = bank.memories.search(q, apart)
        near, white = op.reshape(near, ints(-1, 1, h, w)), op.reshape(q, ints(-1, h, w, c + 1))
        if usual is not None:
            one = np.pad(usual.mean, ((0, 0), (0, 0), (0, 1)), constant_values=1)
            away = op.sub(white, floats(one))
            square = op.mul(op.mul(away, away), floats(np.pad(usual.precision, ((0, 0), (0, 0), (0, 1)))))
            near = op.add(near, op.unsqueeze(op.reduce_sum(square, ints(3), keepdims=0), ints(1)))
        return white, near

    def _is_finest(self, each: _Map) -> bool:
        """Whether a map has the finest grid of its scale."""
        return each.stage.stride == min(other.stage.stride for other in self._maps)

    def _weight(self, each: _Map) -> np.float32:
        """What a map counts in the anomaly map: its distance per channel, and less where it is not the finest."""
        share = 1 if self._is_finest(each) else self.config.deep
        return np.float32(share / (each.stage.channels * len(self._scales)))

    def _grid(self, each: _Map) -> tuple[int, int]:
        """Positions of a feature map: height and width."""
        return self._shape[0] // each.stride, self._shape[1] // each.stride

    def _joined(self, near: Sequence[Array], scale: int) -> Array:
        """Sum the distances (n, h, w) of a scale's maps on its finest grid."""
        own = [x for each, x in zip(self._maps, near, strict=True) if each.scale == scale]
        total: Array = np.sum(
            [alike.enlarge(x, self._calibrated[scale].offset.shape) for x in own], axis=0, dtype=np.float32
        )
        return total

    def _rows(self, tiles: Tiles, turns: Sequence[Turn] = (np.asarray,)) -> list[int]:
        """How many patches are sampled for each map, of tiles in each of their turns."""
        width = sum(3 * each.stage.channels for each in self._maps)  # the sample, centred, whitened
        most = min(self.config.candidates, self.config.memory_mb * 1_000_000 // (4 * width))
        (height, across), count = tiles.shape, len(tiles) * len(turns)
        return [min(most, count * (height // each.stride) * (across // each.stride)) for each in self._maps]

    def _describing(self) -> Compute:
        """Load the graph from tiles to the averaged feature maps (n, c, h, w), in the order of `_maps`."""
        session = description.session(self._shape, self._channels, self._depth, self._description)
        return lambda batch: session.run(None, {"tiles": batch})

    def _sample(self, tiles: Tiles, run: Run, rng: np.random.Generator) -> list[tuple[Array, NDArray[np.intp]]]:
        """Draw a uniform sample of the patches of each map, all in one pass (reservoir), with their tiles' groups.

        Turned and flipped copies of the tiles count as tiles, where the recipe allows them.
        """
        describe, turns = self._describing(), copies(run.augment, tiles.shape)
        sizes = list(zip(self._maps, self._rows(tiles, turns), strict=True))
        samples = [np.empty((rows, each.stage.channels), np.float32) for each, rows in sizes]
        owners = [np.empty(rows, np.intp) for _, rows in sizes]
        groups = np.asarray(tiles.groups, np.intp)
        seen, done = [0] * len(samples), 0
        for batch in tiles:
            own = groups[done : done + len(batch)]
            maps = (run.memo("features", turn(batch), describe) for turn in turns)
            for j, x in ((j, x) for each in maps for j, x in enumerate(each)):
                new = x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
                # Patch i takes place r of the sample, r uniform in [0, i]; where r is beyond it, it is passed over.
                order = np.arange(seen[j], seen[j] + len(new))
                place = np.where(order < len(samples[j]), order, rng.integers(0, order + 1))
                kept = place < len(samples[j])
                samples[j][place[kept]] = new[kept]  # where a place comes twice, the later patch has it
                owners[j][place[kept]] = own.repeat(len(new) // len(batch))[kept]
                seen[j] += len(new)
            done += len(batch)
            run.progress("features", done, len(tiles))
        if done == 0:
            raise no_tiles()
        return [(x[:count], of[:count]) for x, of, count in zip(samples, owners, seen, strict=True)]


def _sum(values: Sequence[Var]) -> Var:
    total = values[0]
    for value in values[1:]:
        total = op.add(total, value)
    return total


def _resize(x: Var, grid: Sequence[int], shape: Sequence[int]) -> Var:
    if tuple(grid) == tuple(shape):
        return x
    scales = np.array([1, 1, *(side / of for side, of in zip(shape, grid, strict=True))], np.float32)
    return op.resize(x, None, op.const(scales), mode="linear", coordinate_transformation_mode="half_pixel")

"""deep-knn: distance of the deep features of a whole image to those of the nearest good images.

Source: the comparison method "deep feature one-class classifier" of Saeedi and Giusti, "Anomaly Detection for
Industrial Inspection using Convolutional Autoencoder and Deep Feature-based One-class Classification", VISAPP 2022,
section 4.4; features after Perera and Patel, "Learning Deep Features for One-Class Classification", IEEE Transactions
on Image Processing 28(11), 2019; k-NN after Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection", 2020.
Written from the paper; no code of others. Symbols: f embedding of an image, N_f its k nearest neighbours in the
training set.

Differs from the paper:
- EfficientNet-Lite0 up to stride 16; the paper does not name its network. `network` and `stages` select another.
- The standard deviation of a feature has a lower limit. The paper does not say what it does with a constant feature.
- The paper has no anomaly map, and a distance between pooled features has no position in the image. Our map shows the
  part of the distance that has one: how much the features at a position exceed the maximum that the k neighbours have
  anywhere, root mean square over the features. A feature that is missing raises the score, but is not on the map.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Self, TypeVar

import cv2
import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from spox import Var, build

from andon.detector import QUIET, DetectorSettings, Forecast, NumpyDetector, Run, Tiles
from andon.graphs import features, neighbours
from andon.graphs.neighbours import Neighbours
from andon.graphs.parts import input_tiles, ints
from andon.inspection import Array, Pixels, Scores

T = TypeVar("T")


class Settings(DetectorSettings):
    """Settings of `deep-knn`."""

    network: str = "efficientnet-lite0"
    """Name of a feature graph; `andon features list` lists them."""
    stages: Annotated[tuple[int, ...], Field(min_length=1, strict=False)] = (10,)
    """Numbers of the blocks of the network whose features are concatenated."""
    neighbours: Annotated[int, Field(ge=1)] = 15
    """k, number of nearest good images; the score is their mean distance."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Lower limit of a feature's standard deviation, as a share of the mean standard deviation."""


class DeepKnn(NumpyDetector):
    """Max-pooled deep features, standardised, and the mean distance to the k nearest good images."""

    name: ClassVar[str] = "deep-knn"
    position_aware: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]] = Settings
    config: Settings

    def __init__(self, config: Settings, seed: int) -> None:
        """Take the settings; nothing is learnt yet."""
        super().__init__(config, seed)
        self._stages = features.select(config.network, config.stages)
        self.stride = min(stage.stride for stage in self._stages)

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate from one timed batch."""
        neighbours.require(len(tiles), self.config.neighbours)
        extract, batch = features.Extractor(self.config.network, self.config.stages), next(iter(tiles))
        extract(batch[:1])
        start = time.perf_counter()
        extract(batch)
        seconds = (time.perf_counter() - start) / len(batch) * len(tiles)
        # Activations: about 60 floats a pixel.
        return Forecast(
            seconds, 4 * (60 * len(batch) * tiles.shape[0] * tiles.shape[1] + 2 * len(tiles) * self._width()) / 1e6
        )

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Embed the good tiles, and standardise the embeddings."""
        neighbours.require(len(tiles), self.config.neighbours)
        features.require_multiple(tiles.shape, self._stages)
        self._shape, self._channels, self._depth = tiles.shape, tiles.channels, tiles.depth
        extract = features.Extractor(self.config.network, self.config.stages)
        rows: list[Array] = []
        for batch in tiles:
            rows += list(_pooled(extract(batch)))
            run.progress("features", len(rows), len(tiles))
        self._good = Neighbours.learn(np.stack(rows), self.config.neighbours, self.config.floor)
        self._fitted = True
        return self

    def score(self, tiles: Pixels) -> Scores:
        """Score in NumPy, from the feature maps."""
        self._require_fit()
        good = self._good
        maps = features.Extractor(self.config.network, self.config.stages)(tiles)
        image, nearest = good.nearest(_pooled(maps))  # eq. 4
        reach = nearest.mean(axis=1) * good.deviation + good.mean  # (n, d)
        pixel = np.zeros(tiles.shape[:3], np.float32)
        for part, x in self._parts(maps):
            for one, limit, out in zip(x, reach[:, part], pixel, strict=True):
                excess = (one.transpose(1, 2, 0) - limit) / good.deviation[part]  # (g, g, c)
                squares = (np.maximum(excess, 0) ** 2).sum(axis=2)
                out += cv2.resize(squares, self._shape[::-1], interpolation=cv2.INTER_LINEAR)
        return Scores(image, np.sqrt(pixel / self._width()))

    def graph(self) -> onnx.ModelProto:
        """tiles (n, t, t, c) uint8 or uint16 → score float32 (n,), map float32 (n, t, t), embedding float32 (n, d)."""
        self._require_fit()
        good = self._good
        tiles = input_tiles(self._shape, self._channels, self._depth)
        maps = features.describe(tiles, self._depth, self._channels, self.config.network, self.config.stages)
        places: list[Var] = []  # standardised features (n, c, g, g) of each stage
        for part, x in self._parts(maps):
            mean, deviation = (op.const(values[part].reshape(-1, 1, 1)) for values in (good.mean, good.deviation))
            places.append(op.div(op.sub(x, mean), deviation))
        f = op.concat([op.reduce_max(x, axes=(2, 3), keepdims=0) for x in places], axis=1)  # (n, d)
        score, nearest = good.search(f)  # eq. 4
        reach = op.unsqueeze(op.reduce_mean(nearest, axes=(1,), keepdims=0), ints(2, 3))  # (n, d, 1, 1)
        total: Var | None = None
        for part, x in self._parts(places):
            excess = op.relu(op.sub(x, op.slice(reach, ints(part.start), ints(part.stop), ints(1))))
            squares = self._enlarge(op.reduce_sum(op.mul(excess, excess), ints(1), keepdims=1))
            total = squares if total is None else op.add(total, squares)
        assert total is not None
        mean_square = op.mul(op.squeeze(total, ints(1)), op.const(np.float32(1 / self._width())))
        return build({"tiles": tiles}, {"score": score, "map": op.sqrt(mean_square), "embedding": f})

    def _embedding(self, tiles: Pixels) -> NDArray[np.float64]:
        """Standardised embeddings (n, d) of tiles."""
        pooled = _pooled(features.Extractor(self.config.network, self.config.stages)(tiles))
        return np.asarray((pooled.astype(np.float64) - self._good.mean) / self._good.deviation)

    def _parts(self, maps: Sequence[T]) -> Iterator[tuple[slice, T]]:
        """Yield for each stage the slice of an embedding that holds its features, and its map."""
        start = 0
        for stage, x in zip(self._stages, maps, strict=True):
            yield slice(start, start + stage.channels), x
            start += stage.channels

    def _enlarge(self, x: Var) -> Var:
        sizes = op.concat([op.shape(x, end=2), ints(*self._shape)], axis=0)
        return op.resize(x, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")

    def _width(self) -> int:
        """Number of features of an embedding."""
        return sum(stage.channels for stage in self._stages)


def _pooled(maps: Sequence[Array]) -> Array:
    """Feature maps (n, c, g, g) of each stage → their maxima (n, d)."""
    return np.concatenate([x.max(axis=(2, 3)) for x in maps], axis=1)

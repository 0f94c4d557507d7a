"""variation: how far each pixel lies from the mean of the good images, in standard deviations at that place.

Source: the baseline "variation" of Saeedi and Giusti, "Anomaly Detection for Industrial Inspection using Convolutional
Autoencoder and Deep Feature-based One-class Classification", VISAPP 2022, section 4.4; after Steger, Ulrich and
Wiedemann, "Machine Vision Algorithms and Applications", 2018. Written from the paper; no code of others.

Differs from the paper:
- Colour images are used as they are, and squared deviations are averaged over channels; the paper uses gray values.
- The anomaly map holds squared deviations, and the score is their mean: the paper's sum divided by the number of
  pixels. The ranking is the same, and the score does not grow with the resolution.
- Standard deviations have a lower limit. The paper does not say what it does with a pixel that never varies.
"""

import time
from typing import Annotated, ClassVar, Self

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from spox import build

from andon.detector import QUIET, DetectorSettings, Forecast, NumpyDetector, Run, Tiles, no_tiles
from andon.graphs.parts import input_tiles
from andon.inspection import Pixels, Scores


class Settings(DetectorSettings):
    """Settings of `variation`."""

    floor: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Lower limit of the standard deviation, as a share of the full range. Without it, a pixel that was the same in
    every good image, such as a saturated background, would have an infinite deviation after a change of one gray level.
    One per cent, 2.6 gray levels of 255, is about the noise of an industrial camera.
    """


class Variation(NumpyDetector):
    """Mean and standard deviation of every pixel; for parts in a fixed position under a fixed camera."""

    name: ClassVar[str] = "variation"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    config: Settings

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate from one timed batch."""
        batch, start = next(iter(tiles)), time.perf_counter()
        _moments(batch)
        seconds = (time.perf_counter() - start) / len(batch) * len(tiles)
        return Forecast(seconds, tiles.shape[0] * tiles.shape[1] * tiles.channels * 8 * (len(batch) + 6) / 1e6)

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Sum gray levels and their squares in one pass, in float64, where sums of integers are exact."""
        total = squares = np.zeros((*tiles.shape, tiles.channels))
        count = 0
        for batch in tiles:
            batch_total, batch_squares = _moments(batch)
            total, squares, count = total + batch_total, squares + batch_squares, count + len(batch)
            run.progress("pixels", count, len(tiles))
        if not count:
            raise no_tiles()
        self._depth = tiles.depth
        self._mean: NDArray[np.float64] = total / count  # (t, t, c), in gray levels
        variance = np.maximum(squares / count - self._mean**2, 0)
        self._deviation: NDArray[np.float64] = np.maximum(np.sqrt(variance), self.config.floor * (2**tiles.depth - 1))
        self._fitted = True
        return self

    def score(self, tiles: Pixels) -> Scores:
        """Score in NumPy and float64."""
        self._require_fit()
        pixel = (((tiles - self._mean) / self._deviation) ** 2).mean(axis=3)
        return Scores(pixel.mean(axis=(1, 2)).astype(np.float32), pixel.astype(np.float32))

    def graph(self) -> onnx.ModelProto:
        """tiles (n, t, t, c) uint8 or uint16 → score float32 (n,), map float32 (n, t, t)."""
        self._require_fit()
        *shape, channels = self._mean.shape
        tiles = input_tiles(shape, channels, self._depth)
        mean, weight = (op.const(value.astype(np.float32)) for value in (self._mean, 1 / self._deviation))
        z = op.mul(op.sub(op.cast(tiles, to=np.float32), mean), weight)
        pixel = op.reduce_mean(op.mul(z, z), axes=(3,), keepdims=0)
        return build({"tiles": tiles}, {"score": op.reduce_mean(pixel, axes=(1, 2), keepdims=0), "map": pixel})


def _moments(batch: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the gray levels and of their squares over a batch (b, t, t, c), each (t, t, c)."""
    values = batch.astype(np.float64)
    return values.sum(axis=0), np.einsum("bijc,bijc->ijc", values, values)

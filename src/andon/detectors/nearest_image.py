"""nearest-image: distance to the most similar image of a good part.

Source: the baseline "NN" of Saeedi and Giusti, "Anomaly Detection for Industrial Inspection using Convolutional
Autoencoder and Deep Feature-based One-class Classification", VISAPP 2022, section 4.4; after Vaikundam, Hung and Chia,
"Anomaly region detection and localization in metal surface inspection", ICIP 2016. Written from the paper; no code of
others.

Differs from the paper:
- Images are compared at a reduced resolution, so that thousands fit into memory and averaging over blocks of pixels
  lowers the noise. The paper does not state its resolution.
- The score is the root mean square of the differences, as a share of the full range: the Euclidean distance divided by
  the square root of the number of values. The ranking is the same, and the score does not grow with the resolution.
- The paper has no anomaly map. Ours is the difference to the nearest image, root mean square over the channels.
- If `memory_mb` is too small for all good images, a seeded random sample of them is stored.
"""

import time
from typing import Annotated, ClassVar, Self

import cv2
import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from pydantic import BaseModel, Field
from spox import build

from andon.detector import QUIET, DetectorSettings, Forecast, NumpyDetector, Run, Tiles, no_tiles
from andon.graphs.parts import input_tiles, ints
from andon.inspection import Array, Pixels, Scores


class Settings(DetectorSettings):
    """Settings of `nearest-image`."""

    side: Annotated[int, Field(ge=1)] = 64
    """Greatest side at which images are compared, pixels: larger images are halved until they fit. Halving keeps sums
    of gray levels exact in float32, so the distance of an image to itself is exactly 0 on every engine.
    """
    memory_mb: Annotated[int, Field(ge=1)] = 256
    """Memory for the stored images, MB, in training and in the bundle."""


class NearestImage(NumpyDetector):
    """The good images themselves, at a reduced resolution; for parts in a fixed position that have few variants."""

    name: ClassVar[str] = "nearest-image"
    position_aware: ClassVar[bool] = True
    square: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    config: Settings

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate from one timed batch; the good images are held twice while they are centred."""
        batch, start = next(iter(tiles)), time.perf_counter()
        values = shrunk(batch, self.config.side)[0].size
        seconds = (time.perf_counter() - start) / len(batch) * len(tiles)
        return Forecast(seconds, (2 * self._rows(len(tiles), values) * values * 4 + batch.nbytes * 4) / 1e6)

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Store the good images, or a sample of them, at the reduced resolution."""
        images: list[Array] = []
        sample: set[int] = set()
        count = 0
        for batch in tiles:
            small = shrunk(batch, self.config.side)  # (b, s, s, c)
            if not sample:
                rows = self._rows(len(tiles), small[0].size)
                sample = set(np.random.default_rng(self.seed).choice(len(tiles), rows, replace=False).tolist())
            images += [image for j, image in enumerate(small, count) if j in sample]
            count += len(batch)
            run.progress("images", count, len(tiles))
        if not images:
            raise no_tiles()
        self._side, self._depth, self._top = tiles.side, tiles.depth, 2**tiles.depth - 1
        self._images = np.stack(images)  # (k, s, s, c), in gray levels
        self._fitted = True
        return self

    def score(self, tiles: Pixels) -> Scores:
        """Score in NumPy, image by image, from the differences."""
        self._require_fit()
        small = shrunk(tiles, self.config.side).astype(np.float64)
        image, pixel = np.empty(len(tiles), np.float32), np.empty(tiles.shape[:3], np.float32)
        for j, query in enumerate(small):
            distances = [float(np.sum((query - good) ** 2)) for good in self._images]
            squares = ((query - self._images[int(np.argmin(distances))]) / self._top) ** 2  # (s, s, c)
            image[j] = np.sqrt(squares.mean())
            rough = np.sqrt(squares.mean(axis=2)).astype(np.float32)
            pixel[j] = cv2.resize(rough, (self._side, self._side), interpolation=cv2.INTER_LINEAR)
        return Scores(image, pixel)

    def graph(self) -> onnx.ModelProto:
        """tiles (n, t, t, c) uint8 or uint16 → score float32 (n,), map float32 (n, t, t)."""
        self._require_fit()
        _, s, _, c = self._images.shape
        block = self._side // s
        tiles = input_tiles((self._side, self._side), c, self._depth)
        blocks = op.reshape(op.cast(tiles, to=np.float32), ints(-1, s, block, s, block, c))
        small = op.reshape(op.reduce_mean(blocks, axes=(2, 4), keepdims=0), ints(-1, s * s * c))
        # Without the mean image the products are more precise. It is rounded to keep the differences exact.
        centre = np.round(self._images.mean(axis=0)).reshape(-1)
        rows = self._images.reshape(len(self._images), -1) - centre
        query, images = op.sub(small, op.const(centre)), op.const(rows)  # (n, s·s·c), (k, s·s·c)
        # The nearest has the lowest |q − b|² = |q|² − 2 q·b + |b|²; |q|² is the same for all. Its difference is exact.
        norms = op.const(np.einsum("ij,ij->i", rows, rows, dtype=np.float64).astype(np.float32))
        nearest = op.arg_min(op.gemm(query, images, norms, alpha=-2.0, transB=1), axis=1, keepdims=0)
        difference = op.mul(op.sub(query, op.gather(images, nearest)), op.const(np.float32(1 / self._top)))
        squares = op.reduce_mean(op.reshape(op.mul(difference, difference), ints(-1, s, s, c)), axes=(3,), keepdims=0)
        score = op.sqrt(op.reduce_mean(squares, axes=(1, 2), keepdims=0))
        rough = op.unsqueeze(op.sqrt(squares), ints(1))
        sizes = op.concat([op.shape(rough, end=2), ints(self._side, self._side)], axis=0)
        full = op.resize(rough, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
        return build({"tiles": tiles}, {"score": score, "map": op.squeeze(full, ints(1))})

    def _rows(self, images: int, values: int) -> int:
        """Number of images that fit into `memory_mb`, at this number of values each."""
        return max(1, min(images, self.config.memory_mb * 1_000_000 // (4 * values)))


def shrunk(tiles: Pixels, side: int) -> Array:
    """Tiles (n, t, t, c) → (n, s, s, c) in gray levels: halved until s ≤ `side`, or until t is odd."""
    small: Array = tiles.astype(np.float32)
    while small.shape[1] > side and small.shape[1] % 2 == 0:
        columns = small[:, :, ::2] + small[:, :, 1::2]
        small = (columns[:, ::2] + columns[:, 1::2]) * np.float32(0.25)
    return small

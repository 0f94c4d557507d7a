"""The export gate: a graph is written into a bundle only if its outputs equal those of the fitted detector.

Every engine is compared with the fitted detector on good training tiles of several parts, and on corrupted copies of
them: an output may be almost constant on good tiles, so its range needs defective ones. The difference of each output
is relative to its own range. Scores that are means of a map differ much less than the values of the map, so relative to
the range of the map, a graph with another order of scores could pass.

A few values of a map may differ more: where two cells of a bank of memories are almost equally near, rounding decides
which one is searched, and the distance of one position changes a little.
"""

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from andon.detector import Detector, Tiles
from andon.engines.runtime import Engine, Runtime
from andon.errors import TrainingError
from andon.geometry import tiling
from andon.inspection import Array, Pixels, Scores

TOLERANCE = 1e-3  # greatest difference, as a share of the range of an output
FEW, MORE = 0.05, 1e-2  # greatest share of the values of a map that may differ more, and their greatest difference
ROUNDING = 32 * float(np.finfo(np.float32).eps)  # difference that is always allowed, as a share of the largest value
GOOD = 8  # good tiles, and as many corrupted ones
CORRUPTIONS = (  # left, top, right, bottom as shares of the side; change of the values as a share of half their range
    (0.25, 0.25, 0.75, 0.75, 1.0),
    (0.0, 0.0, 0.5, 0.5, 0.5),
    (0.4, 0.1, 0.6, 0.9, 1.0),
    (0.0, 0.0, 1.0, 1.0, 0.3),
    (0.5, 0.5, 1.0, 1.0, 0.2),
    (0.1, 0.4, 0.9, 0.6, 0.5),
    (0.0, 0.0, 1.0, 1.0, 1.0),
    (0.6, 0.2, 0.8, 0.4, 1.0),
)


def check(model: Detector, graph: bytes, tiles: Tiles) -> dict[str, float]:
    """Compare scores and maps of every engine with those of the fitted detector, in batches of 1, of 2 and of the size
    that inspection uses.

    Returns engine → largest difference, as a share of the range of the output. TrainingError when it is more than
    TOLERANCE (for FEW values of a map: MORE), or when scores that differ by more than TOLERANCE are in another order.
    BundleError when an engine cannot load the graph.
    """
    pixels = probes(tiles)
    expected = _in_batches(model.score, pixels)
    ranges = [_range(values) for values in expected]
    engines: list[Engine] = ["onnxruntime"]
    if importlib.util.find_spec("openvino"):
        engines.append("openvino")
    parity: dict[str, float] = {}
    for engine in engines:
        scorer, parity[engine] = Runtime(graph, engine), 0.0
        for rows in _batches(len(pixels)):
            outputs = _in_batches(scorer.score, pixels[rows])
            for name, output, want, spread in zip(("score", "map"), outputs, expected, ranges, strict=True):
                difference = _difference(output, want[rows], spread)
                few = name == "map" and difference <= MORE and _share(output, want[rows], spread) <= FEW
                if not (difference <= TOLERANCE or few):
                    raise TrainingError(
                        f"the graph on {engine} differs from the fitted {model.name}: the {name} by {difference:.2g} "
                        f"of its range, in a batch of {len(rows)}; at most {TOLERANCE:g} is allowed."
                    )
                parity[engine] = max(parity[engine], difference)
            if len(rows) == len(pixels) and not _same_order(outputs.image, expected.image, TOLERANCE * ranges[0]):
                raise TrainingError(
                    f"the graph on {engine} differs from the fitted {model.name}: its scores of tiles have "
                    "another order."
                )
    return parity


def probes(tiles: Tiles) -> Pixels:
    """Return up to GOOD good tiles, of different parts if possible, and corrupted copies: (n, t, t, c)."""
    firsts = np.unique(np.asarray(tiles.groups), return_index=True)[1]
    others = np.setdiff1d(np.arange(len(tiles)), firsts)
    rows = sorted(np.concatenate([np.sort(firsts), others])[:GOOD].tolist())
    good: list[Pixels] = []
    done = 0
    for batch in tiles:
        good += [batch[row - done] for row in rows if done <= row < done + len(batch)]
        done += len(batch)
        if len(good) == len(rows):
            break
    corrupted = [_corrupt(good[number % len(good)], *how) for number, how in enumerate(CORRUPTIONS)]
    return np.stack([*good, *corrupted])


def _corrupt(tile: Pixels, left: float, top: float, right: float, bottom: float, share: float) -> Pixels:
    """Change the values of a rectangle by a share of half their range: low values up, high values down."""
    out, (height, width) = tile.copy(), tile.shape[:2]
    area = out[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    half = np.iinfo(tile.dtype).max // 2
    step = area.dtype.type(share * half)
    area[:] = np.where(area > half, area - step, area + step)
    return out


def _in_batches(score: Callable[[Pixels], Scores], pixels: Pixels) -> Scores:
    """Score tiles (n, t, t, c) in the batches of inspection."""
    pieces = [score(np.stack(batch)) for batch in tiling.batches(pixels, pixels.shape[1:3])]
    return Scores(*(np.concatenate(values) for values in zip(*pieces, strict=True)))


def _batches(count: int) -> Iterator[NDArray[np.intp]]:
    """Yield the rows of each batch: all; then pairs and single tiles, good and corrupted."""
    rows = np.arange(count)
    yield rows
    yield rows[[0, -1]]
    yield rows[[-2, 1 % count]]
    yield from rows[[0, -1, count // 2], None]


def _range(values: Array) -> float:
    """The range of an output; at least so large that TOLERANCE exceeds the rounding of float32."""
    return max(float(np.ptp(values)), ROUNDING * float(np.abs(values).max()) / TOLERANCE, 1e-30)


def _difference(output: Array, expected: Array, spread: float) -> float:
    """Largest difference as a share of a range; NaN for values that are not finite, or another shape."""
    if output.shape != expected.shape or not (np.isfinite(output).all() and np.isfinite(expected).all()):
        return float("nan")
    return float(np.abs(output.astype(np.float64) - expected).max()) / spread


def _share(output: Array, expected: Array, spread: float) -> float:
    """Share of the values that differ by more than TOLERANCE of a range."""
    return float(np.mean(np.abs(output.astype(np.float64) - expected) > TOLERANCE * spread))


def _same_order(output: Array, expected: Array, tolerance: float) -> bool:
    """Whether scores (n,) have the expected order, for pairs that differ by more than the tolerance."""
    above = expected[:, None].astype(np.float64) - expected[None] > tolerance
    return bool((output[:, None] > output[None])[above].all())

"""The export gate: a graph is written into a bundle only if it says what the fitted detector says.

Every engine is held against the fitted detector on good training tiles of several parts and on spoiled copies of them,
for the range of an output goes from good to defective: on good tiles alone it may be almost flat. Each output is held
against its own range. Scores that are means of a map differ far less than the map's values do, so the range of the map
would let a graph pass that puts scores in another order.
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

TOLERANCE = 1e-3  # of an output's range: how far the graph may be from the fitted detector
ROUNDING = 32 * float(np.finfo(np.float32).eps)  # of an output's largest value: what is allowed in any case
GOOD = 8  # good tiles; as many are spoiled
SPOILED = (  # left, top, right, bottom, shares of the side; how much the values change, as a share of half their range
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
    """Hold every engine's scores and maps against the fitted detector's, in batches of 1, of 2 and of as many as
    inspection gives a graph at once.

    Returns engine → largest difference as a share of the output's range. TrainingError when that is more than
    TOLERANCE, or when scores that differ by more than it are in another order. BundleError when an engine cannot load
    the graph.
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
            found = _in_batches(scorer.score, pixels[rows])
            for name, have, want, spread in zip(("score", "map"), found, expected, ranges, strict=True):
                apart = _apart(have, want[rows], spread)
                if not apart <= TOLERANCE:
                    raise TrainingError(
                        f"the graph on {engine} differs from the fitted {model.name}: the {name} by {apart:.2g} of its "
                        f"range, in a batch of {len(rows)}; at most {TOLERANCE:g} is allowed."
                    )
                parity[engine] = max(parity[engine], apart)
            if len(rows) == len(pixels) and not _same_order(found.image, expected.image, TOLERANCE * ranges[0]):
                raise TrainingError(
                    f"the graph on {engine} differs from the fitted {model.name}: it puts the scores of tiles in "
                    "another order."
                )
    return parity


def probes(tiles: Tiles) -> Pixels:
    """Return good tiles of up to GOOD parts, and as many or more spoiled copies: (n, t, t, c)."""
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
    spoiled = [_spoiled(good[number % len(good)], *how) for number, how in enumerate(SPOILED)]
    return np.stack([*good, *spoiled])


def _spoiled(tile: Pixels, left: float, top: float, right: float, bottom: float, share: float) -> Pixels:
    """Move the values of a rectangle by a share of half their range; the upper half of them goes down."""
    out, (height, width) = tile.copy(), tile.shape[:2]
    area = out[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    half = np.iinfo(tile.dtype).max // 2
    step = area.dtype.type(share * half)
    area[:] = np.where(area > half, area - step, area + step)
    return out


def _in_batches(score: Callable[[Pixels], Scores], pixels: Pixels) -> Scores:
    """Score tiles (n, t, t, c), as many at once as inspection does."""
    pieces = [score(np.stack(batch)) for batch in tiling.batches(pixels, pixels.shape[1:3])]
    return Scores(*(np.concatenate(values) for values in zip(*pieces, strict=True)))


def _batches(count: int) -> Iterator[NDArray[np.intp]]:
    """Yield which tiles are scored together: all of them; then some good and some spoiled ones, by two and alone."""
    rows = np.arange(count)
    yield rows
    yield rows[[0, -1]]
    yield rows[[-2, 1 % count]]
    yield from rows[[0, -1, count // 2], None]


def _range(values: Array) -> float:
    """The range of an output; never less than that of which TOLERANCE is float32's rounding."""
    return max(float(np.ptp(values)), ROUNDING * float(np.abs(values).max()) / TOLERANCE, 1e-30)


def _apart(found: Array, expected: Array, spread: float) -> float:
    """Largest difference as a share of a range; NaN when anything is not finite or of another shape."""
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("nan")
    return float(np.abs(found.astype(np.float64) - expected).max()) / spread


def _same_order(found: Array, expected: Array, tolerance: float) -> bool:
    """Whether scores (n,) are in the order expected, wherever those expected differ by more than a tolerance."""
    above = expected[:, None].astype(np.float64) - expected[None] > tolerance
    return bool((found[:, None] > found[None])[above].all())

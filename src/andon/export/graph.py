"""One graph from the camera's picture to the verdict: geometry and decision around the graph of a bundle."""

import math
from functools import reduce
from typing import cast

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from spox import Tensor, Var, argument, build, inline

from andon.bundle import Bundle
from andon.export.resampling import FIXED, Axis, Resampling, linear, resampling
from andon.geometry.tiling import Place, ViewMap
from andon.geometry.views import View
from andon.graphs.parts import ints
from andon.inspection import Verdict

PICTURE = "picture"
VERDICTS = (Verdict.PASS, Verdict.REVIEW, Verdict.REJECT)
LARGEST = np.finfo(np.float32).max


def picture_graph(bundle: Bundle, view: View, place: Place, joined: ViewMap) -> onnx.ModelProto:
    """Build picture (H, W, c) → score, p_value, verdict, map (h, w) for pictures of one size.

    `view`, `place` and `joined`: where the view of such a picture, its one tile, and its map lie; their values are not
    used, but for the NaN of `joined`.
    """
    taken = bundle.manifest.input
    kind = np.uint8 if taken.depth == 8 else np.uint16
    picture = argument(Tensor(kind, (*view.frame, taken.channels)))
    tile = _tile(_samples(picture, taken.maximum), view, place, bundle.recipe.geometry.input)
    found = inline(onnx.load_model_from_string(bundle.graph))(tiles=op.unsqueeze(op.cast(tile, to=kind), ints(0)))
    score, raw = op.squeeze(found["score"], ints(0)), op.squeeze(found["map"], ints(0))
    score, finite = _finite(score, raw)
    model = build(
        {PICTURE: picture},
        {
            "score": score,
            "p_value": _p_value(score, finite, bundle),
            "verdict": _verdict(score, bundle),
            "map": _map(raw, place, joined),
        },
    )
    onnx.helper.set_model_props(model, {"bundle": bundle.digest()})
    return model


def _samples(picture: Var, maximum: int | None) -> Var:
    """Samples as they are; 16-bit ones as int32, spread over all 16 bits, so that one above the maximum is an error."""
    if picture.unwrap_tensor().dtype == np.uint8:
        return picture
    wide = op.cast(picture, to=np.int32)
    if maximum is None:
        return wide
    table = (np.arange(maximum + 1, dtype=np.int64) * 65535 + maximum // 2) // maximum  # as `image.scaled`
    return op.gather(op.const(table.astype(np.int32)), wide)


def _tile(samples: Var, view: View, place: Place, shape: tuple[int, int]) -> Var:
    """Crop, paint outside the region of interest, resize and repeat the edge, as `views.align` and `tiling.split`."""
    (x, y), (h, w) = view.origin, view.shape
    if view.shape != view.frame:
        samples = op.slice(samples, ints(y, x), ints(y + h, x + w), ints(0, 1))
    if view.roi is not None:
        gray = np.array(np.iinfo(view.pixels.dtype).max // 2, samples.unwrap_tensor().dtype)
        samples = op.where(op.const(view.roi[..., None]), samples, op.const(gray))
    left, top, inner_w, inner_h = place.inner
    tile = _resized(samples, view, resampling(view.shape, (inner_h, inner_w)))
    for axis, (before, length, inner) in enumerate(zip((top, left), shape, (inner_h, inner_w), strict=True)):
        if inner != length:
            tile = op.gather(tile, op.const(np.clip(np.arange(length) - before, 0, inner - 1)), axis=axis)
    return tile


def _resized(pixels: Var, view: View, to: Resampling) -> Var:
    """Resize (h, w, c) to whole numbers."""
    if to.method == "mean":
        (height, width), (tall, wide), channels = view.shape, to.block, view.pixels.shape[2]
        h, w = height // tall, width // wide
        rows = op.reshape(op.cast(pixels, to=np.float32), ints(h, tall, width * channels))
        columns = op.reshape(op.reduce_sum(rows, ints(1), keepdims=0), ints(h, w, wide, channels))
        means = op.mul(op.reduce_sum(columns, ints(2), keepdims=0), op.const(np.float32(1 / (tall * wide))))
        return op.floor(op.add(means, op.const(np.float32(0.5)))) if to.half_up else op.round(means)
    if to.rows is None or to.columns is None:
        return pixels
    if to.method == "linear" and view.pixels.dtype == np.uint8:
        return _fixed(pixels, to.rows, to.columns)
    return op.round(_mixed(pixels, to.rows, to.columns))


def _mixed(pixels: Var, rows: Axis, columns: Axis) -> Var:
    """Weighted sums of (h, w, c) along the columns, then along the rows."""
    return _sum(_products(_sum(_products(pixels, columns, 1)), rows, 0))


def _products(pixels: Var, along: Axis, axis: int) -> list[Var]:
    """The terms of the weighted sums along the rows (axis 0) or columns (1) of (h, w, c), float32."""
    *_, channels = cast(tuple[int, ...], pixels.unwrap_tensor().shape)
    terms = []
    for sources, weights in zip(along.sources.T, along.weights.T, strict=True):
        picked = op.cast(op.gather(pixels, op.const(sources), axis=axis), to=np.float32)
        # Repeated for each channel, which multiplies faster.
        factors = weights[:, None, None] if axis == 0 else np.repeat(weights[:, None], channels, axis=1)
        terms.append(op.mul(picked, op.const(factors)))
    return terms


def _sum(terms: list[Var]) -> Var:
    """Their sum, in order: another order, or fused products, would round some pixels otherwise than OpenCV."""
    return reduce(op.add, terms)


def _fixed(pixels: Var, rows: Axis, columns: Axis) -> Var:
    """Resize 8-bit pixels linearly as OpenCV does: by whole numbers, cut off after either step."""
    rows, columns = (Axis(axis.sources, np.rint(axis.weights * FIXED)) for axis in (rows, columns))
    wide = op.floor(op.div(_sum(_products(pixels, columns, 1)), op.const(np.float32(16))))
    terms = [op.floor(op.div(term, op.const(np.float32(65536)))) for term in _products(wide, rows, 0)]
    return op.floor(op.div(op.add(_sum(terms), op.const(np.float32(2))), op.const(np.float32(4))))


def _finite(score: Var, raw: Var) -> tuple[Var, Var]:
    """The score, NaN where it or a value of the map is not a finite number; and whether all are."""
    values = op.concat([op.reshape(raw, ints(-1)), op.unsqueeze(score, ints(0))], axis=0)
    strange = op.not_(op.less_or_equal(op.abs(values), op.const(LARGEST)))
    finite = op.equal(op.reduce_sum(op.cast(strange, to=np.int32), keepdims=0), op.const(np.int32(0)))
    return op.where(finite, score, op.const(np.float32(np.nan))), finite


def _p_value(score: Var, finite: Var, bundle: Bundle) -> Var:
    """The p-value of `Calibration.p_value`, float64."""
    values, weights = bundle.calibration.units(bundle.calibration.scores, bundle.recipe.decision.per)
    above = op.less_or_equal(op.cast(score, to=np.float64), op.const(values))
    weight = op.reduce_sum(op.where(above, op.const(weights), op.const(0.0)), keepdims=0)
    share = op.div(op.add(weight, op.const(1.0)), op.const(float(1 + bundle.calibration.parts)))
    return op.where(finite, share, op.const(math.nan))


def _verdict(score: Var, bundle: Bundle) -> Var:
    """The place of the verdict in VERDICTS, int32, as `calibration.judge`."""
    thresholds, exact = bundle.calibration.thresholds(bundle.recipe.decision), op.cast(score, to=np.float64)
    passes, review, reject = (op.const(np.int32(i)) for i in range(len(VERDICTS)))
    held = op.where(op.less_or_equal(exact, op.const(thresholds.review)), passes, review)
    return op.where(op.less_or_equal(exact, op.const(thresholds.reject)), held, reject)


def _map(raw: Var, place: Place, joined: ViewMap) -> Var:
    """The map without padding, not larger than the view; NaN where nothing of the region of interest is shown."""
    x, y, w, h = place.inner
    if (h, w) != raw.unwrap_tensor().shape:
        raw = op.slice(raw, ints(y, x), ints(y + h, x + w), ints(0, 1))
    if (h, w) != joined.raw.shape:
        rows, columns = (linear(n, m) for n, m in zip((h, w), joined.raw.shape, strict=True))
        raw = op.squeeze(_mixed(op.unsqueeze(raw, ints(2)), rows, columns), ints(2))
    seen = np.isfinite(joined.values)
    return raw if seen.all() else op.where(op.const(seen), raw, op.const(np.float32(np.nan)))

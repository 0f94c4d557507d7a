"""Illumination correction: a picture is corrected to the illumination of the good pictures.

A picture is the product of reflectance and illumination. When the illumination changes by one factor or by a smooth
field, the ratio of a picture to the typical good picture changes everywhere; a defect, or a part in another position,
changes it in some places only. The field is fitted to the logarithm of the ratio on a coarse grid: a quadratic function
of the position, by least squares with Cauchy weights (Holland and Welsch, "Robust Regression Using Iteratively
Reweighted Least-Squares", 1977).
"""

import base64
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator

from andon.inspection import Array, Pixels

GRID = 48  # positions per side of the coarse grid
DARK, BRIGHT = 0.02, 0.98  # of full scale: darker and brighter positions are not used
ENOUGH = 0.1  # smallest share of positions that can be used
LIMIT = float(np.log(4))  # largest correction: a factor of 4
ROUNDS = 12  # iterations of the weighted least squares
NOTICED = 0.05  # variation of the light among good pictures from which on a correction is recommended
STRIP = 1 << 20  # pixels that are corrected at once

Kind = Literal["gain", "field"]


class Corrected(NamedTuple):
    """A picture with corrected illumination."""

    pixels: Pixels
    note: str  # why it is not corrected, or not completely; else empty


class Light(BaseModel):
    """The typical good picture on the coarse grid, and the kind of correction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    reference: str  # gray values of the typical good picture, (GRID, GRID), 16 bits: a PNG as base64

    @field_validator("reference")
    @classmethod
    def _readable(cls, text: str) -> str:
        _decode(text)
        return text

    @classmethod
    def learn(cls, kind: Kind, grids: Sequence[Array]) -> "Light":
        """Fit to the grids of good pictures: the median at each position, after scaling to the same brightness."""
        brightness = [max(float(np.median(values)), DARK) for values in grids]
        typical = float(np.median(brightness))
        scaled = [values * (typical / own) for values, own in zip(grids, brightness, strict=True)]
        median = np.clip(np.median(scaled, axis=0), 0, 1)
        data = cv2.imencode(".png", np.rint(median * 65535).astype(np.uint16))[1].tobytes()
        return cls(kind=kind, reference=base64.b64encode(data).decode())

    def correct(self, pixels: Pixels) -> Corrected:
        """Correct the illumination of a picture (H, W, c), uint8 or uint16."""
        field = fit_field(self.kind, grid(pixels), _decode(self.reference))
        if field is None:
            return Corrected(pixels, "too dark or too bright for the correction of its illumination")
        note = ""
        if float(np.abs(field).max()) > LIMIT:
            note = "its illumination differs from that of the good pictures by more than a factor of 4"
            field = np.clip(field, -LIMIT, LIMIT)
        return Corrected(_multiply(pixels, np.exp(-field).astype(np.float32)), note)


def grid(pixels: Pixels) -> Array:
    """Return mean gray values (GRID, GRID) of a picture (H, W, c), as shares of full scale."""
    small: NDArray[Any] = cv2.resize(pixels, (GRID, GRID), interpolation=cv2.INTER_AREA).astype(np.float32)
    gray: Array = small.reshape(GRID, GRID, -1).mean(axis=2) / np.float32(np.iinfo(pixels.dtype).max)
    return gray


def fit_field(kind: Kind, values: Array, reference: Array) -> Array | None:
    """Fit log(illumination / reference illumination) (GRID, GRID); None if too many positions are dark or bright.

    values, reference: gray values (GRID, GRID) of the picture and of the reference.
    """
    usable = (np.minimum(values, reference) > DARK) & (np.maximum(values, reference) < BRIGHT)
    if usable.mean() < ENOUGH:
        return None
    ratio = np.log(values[usable] / reference[usable]).astype(np.float64)
    if kind == "gain":
        return np.full((GRID, GRID), np.median(ratio), np.float32)
    y, x = np.mgrid[-1 : 1 : GRID * 1j, -1 : 1 : GRID * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2)
    used = terms[usable]
    coefficients = np.array([np.median(ratio), 0, 0, 0, 0, 0])
    for _ in range(ROUNDS):
        residuals = ratio - used @ coefficients
        scale = max(1.4826 * float(np.median(np.abs(residuals))), 1e-3)
        weights = 1 / (1 + (residuals / (2 * scale)) ** 2)
        # Ridge regularisation, because usable positions may be in one corner only.
        normal = used.T @ (weights[:, None] * used) + 1e-3 * len(used) * np.diag([0, 1, 1, 1, 1, 1])
        coefficients = np.linalg.solve(normal, used.T @ (weights * ratio))
    return np.asarray(terms @ coefficients, np.float32)


def variation(grids: Sequence[Array]) -> tuple[float, float]:
    """Standard deviation of the illumination among good pictures: of its factor, and of the field without the factor.

    Both in natural logarithms; grids: gray values (GRID, GRID) of each picture.
    """
    reference = _decode(Light.learn("gain", grids).reference)
    fields = [field for values in grids if (field := fit_field("field", values, reference)) is not None]
    if len(fields) < 2:
        return 0.0, 0.0
    factors = np.array([float(field.mean()) for field in fields])
    shapes = np.stack(fields) - factors[:, None, None]
    return float(factors.std()), float(np.sqrt((shapes - shapes.mean(axis=0)).var(axis=0).mean()))


def _decode(text: str) -> Array:
    """Decode the reference (GRID, GRID). ValueError when the text is not valid."""
    data = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if values is None or values.shape != (GRID, GRID) or values.dtype != np.uint16:
        raise ValueError(f"the reference of the light is not a {GRID} × {GRID} PNG of 16-bit gray values")
    return values.astype(np.float32) / np.float32(65535)


def _multiply(pixels: Pixels, factor: Array) -> Pixels:
    """Multiply a picture (H, W, c) by a smooth factor (GRID, GRID), in strips; round and clip the result."""
    top, (height, width) = float(np.iinfo(pixels.dtype).max), pixels.shape[:2]
    out = np.empty_like(pixels)
    wide = cv2.resize(factor, (width, GRID), interpolation=cv2.INTER_LINEAR)  # (GRID, W)
    rows = np.clip((np.arange(height) + 0.5) * GRID / height - 0.5, 0, GRID - 1)
    for start in range(0, height, max(1, STRIP // width)):
        part = slice(start, start + max(1, STRIP // width))
        low = np.floor(rows[part]).astype(int)
        share = (rows[part] - low)[:, None].astype(np.float32)
        factors = (1 - share) * wide[low] + share * wide[np.minimum(low + 1, GRID - 1)]
        out[part] = np.clip(np.rint(pixels[part] * factors[..., None]), 0, top)
    return out

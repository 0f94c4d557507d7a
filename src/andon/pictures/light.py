"""Light that is divided out: a picture is brought to the illumination of the good ones before anything else sees it.

A picture is a product of what the part reflects and of the light that falls on it. Where the light changes between
pictures, by one factor or by a smooth field, the ratio of a picture to the typical good one changes alike; a defect, or
a part that lies elsewhere, changes it in some places only. So the field is fitted to the logarithm of the ratio on a
coarse grid, robustly: a quadratic of the position, by least squares with Cauchy weights (Holland and Welsch, "Robust
Regression Using Iteratively Reweighted Least-Squares", 1977).
"""

import base64
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator

from andon.inspection import Array, Pixels

GRID = 48  # positions a side of the coarse grid
DARK, BRIGHT = 0.02, 0.98  # of full scale: beyond them a position says nothing about the light
ENOUGH = 0.1  # share of the positions that must say something
LIMIT = float(np.log(4))  # a factor beyond 4 either way is taken for a fault
ROUNDS = 12  # of the weighted least squares
NOTICED = 0.05  # variation of the light among good pictures from which it is worth dividing out
STRIP = 1 << 20  # pixels that are multiplied at a time

Kind = Literal["gain", "field"]


class Corrected(NamedTuple):
    """A picture in the light of the good ones."""

    pixels: Pixels
    note: str  # why its light could not be divided out, or not in full; else empty


class Light(BaseModel):
    """The typical good picture on the coarse grid, and how the light of another may differ from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    reference: str  # gray values of the typical good picture, (GRID, GRID), 16 bits: a PNG as base64

    @field_validator("reference")
    @classmethod
    def _readable(cls, text: str) -> str:
        _decoded(text)
        return text

    @classmethod
    def learn(cls, kind: Kind, grids: Sequence[Array]) -> "Light":
        """Learn from good pictures, each as `grid` gives it: the median at each position, brought to one brightness."""
        brightness = [max(float(np.median(one)), DARK) for one in grids]
        typical = float(np.median(brightness))
        evened = [one * (typical / own) for one, own in zip(grids, brightness, strict=True)]
        middle = np.clip(np.median(evened, axis=0), 0, 1)
        data = cv2.imencode(".png", np.rint(middle * 65535).astype(np.uint16))[1].tobytes()
        return cls(kind=kind, reference=base64.b64encode(data).decode())

    def divide(self, pixels: Pixels) -> Corrected:
        """Divide the difference in light out of a picture (H, W, c), uint8 or uint16."""
        field = fitted(self.kind, grid(pixels), _decoded(self.reference))
        if field is None:
            return Corrected(pixels, "too dark or too bright to divide out its light")
        note = ""
        if float(np.abs(field).max()) > LIMIT:
            note = "its light differs from that of the good pictures by more than 4 times"
            field = np.clip(field, -LIMIT, LIMIT)
        return Corrected(_multiplied(pixels, np.exp(-field).astype(np.float32)), note)


def grid(pixels: Pixels) -> Array:
    """Mean gray values (GRID, GRID) of a picture (H, W, c), as shares of full scale."""
    small: NDArray[Any] = cv2.resize(pixels, (GRID, GRID), interpolation=cv2.INTER_AREA).astype(np.float32)
    gray: Array = small.reshape(GRID, GRID, -1).mean(axis=2) / np.float32(np.iinfo(pixels.dtype).max)
    return gray


def fitted(kind: Kind, found: Array, reference: Array) -> Array | None:
    """Fit the logarithm (GRID, GRID) of the light of a picture over that of the reference; None where neither tells."""
    tells = (np.minimum(found, reference) > DARK) & (np.maximum(found, reference) < BRIGHT)
    if tells.mean() < ENOUGH:
        return None
    ratio = np.log(found[tells] / reference[tells]).astype(np.float64)
    if kind == "gain":
        return np.full((GRID, GRID), np.median(ratio), np.float32)
    y, x = np.mgrid[-1 : 1 : GRID * 1j, -1 : 1 : GRID * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2)
    used = terms[tells]
    factors = np.array([np.median(ratio), 0, 0, 0, 0, 0])
    for _ in range(ROUNDS):
        away = ratio - used @ factors
        scale = max(1.4826 * float(np.median(np.abs(away))), 1e-3)
        weights = 1 / (1 + (away / (2 * scale)) ** 2)
        # The ridge keeps the fit from swinging where positions that tell something lie in one corner only.
        normal = used.T @ (weights[:, None] * used) + 1e-3 * len(used) * np.diag([0, 1, 1, 1, 1, 1])
        factors = np.linalg.solve(normal, used.T @ (weights * ratio))
    return np.asarray(terms @ factors, np.float32)


def variation(grids: Sequence[Array]) -> tuple[float, float]:
    """How the light varies among good pictures: deviation of the factor, and of the field besides the factor."""
    reference = _decoded(Light.learn("gain", grids).reference)
    fields = [field for one in grids if (field := fitted("field", one, reference)) is not None]
    if len(fields) < 2:
        return 0.0, 0.0
    factors = np.array([float(field.mean()) for field in fields])
    shapes = np.stack(fields) - factors[:, None, None]
    return float(factors.std()), float(np.sqrt((shapes - shapes.mean(axis=0)).var(axis=0).mean()))


def _decoded(text: str) -> Array:
    """The reference on the grid. ValueError when it is none."""
    data = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if values is None or values.shape != (GRID, GRID) or values.dtype != np.uint16:
        raise ValueError(f"the reference of the light is no {GRID} × {GRID} picture of 16-bit gray values")
    return values.astype(np.float32) / np.float32(65535)


def _multiplied(pixels: Pixels, factor: Array) -> Pixels:
    """Multiply a picture (H, W, c) by a smooth factor (GRID, GRID), in strips; the result is rounded and clipped."""
    top, (height, width) = float(np.iinfo(pixels.dtype).max), pixels.shape[:2]
    out = np.empty_like(pixels)
    whole = cv2.resize(factor, (width, GRID), interpolation=cv2.INTER_LINEAR)  # (GRID, W)
    rows = np.clip((np.arange(height) + 0.5) * GRID / height - 0.5, 0, GRID - 1)
    for start in range(0, height, max(1, STRIP // width)):
        part = slice(start, start + max(1, STRIP // width))
        low = np.floor(rows[part]).astype(int)
        share = (rows[part] - low)[:, None].astype(np.float32)
        of_part = (1 - share) * whole[low] + share * whole[np.minimum(low + 1, GRID - 1)]
        out[part] = np.clip(np.rint(pixels[part] * of_part[..., None]), 0, top)
    return out

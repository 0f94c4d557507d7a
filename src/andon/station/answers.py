"""The result of an inspection in a separate process, as plain data."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import cv2
import numpy as np

from andon.files import strict_json
from andon.geometry.tiling import ViewMap
from andon.geometry.views import Placement
from andon.inspection import Array, Region, Thresholds
from andon.station.events import Outcome

MOST_VALUES = 1 << 20
"""Largest number of values in a stored map. A larger map is divided into blocks; each gives its highest value."""


@dataclass(frozen=True)
class Map:
    """An anomaly map at the detector's scale, small enough to store, and its position in the picture."""

    values: bytes
    """float16 (h, w), little-endian, in units of `unit`; NaN: not inspected."""
    shape: tuple[int, int]
    unit: float
    """The highest absolute value of the map."""
    view: tuple[int, int]
    """Height and width of the inspected view, in pixels of the picture."""
    origin: tuple[int, int]
    """x, y of the view's corner in the picture."""
    frame: tuple[int, int]
    """Height and width of the picture."""
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]] | None
    """From the view to the picture; None: the part was not registered."""

    @classmethod
    def of(cls, joined: ViewMap) -> Self:
        values, view = _reduced(joined.values), joined.view
        unit = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
        return cls(
            values=(values / unit).astype("<f2").tobytes(),
            shape=(values.shape[0], values.shape[1]),
            unit=unit,
            view=view.shape,
            origin=view.origin,
            frame=view.frame,
            matrix=None if view.matrix is None else _rows(view.matrix.tolist()),
        )

    def to_bytes(self) -> bytes:
        """Return one line of JSON, followed by the values."""
        head = {key: value for key, value in asdict(self).items() if key != "values"}
        return strict_json(head).encode() + b"\n" + self.values

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the bytes that `to_bytes` returned. ValueError for any others."""
        line, _, values = data.partition(b"\n")
        try:
            head = json.loads(line)
            pairs = {key: (int(head[key][0]), int(head[key][1])) for key in ("shape", "view", "origin", "frame")}
            unit, matrix = float(head["unit"]), head["matrix"] and _rows(head["matrix"])
        except (LookupError, TypeError) as error:
            raise ValueError(f"not a map: {error!r}") from None
        if min(pairs["shape"]) < 1 or len(values) != 2 * math.prod(pairs["shape"]):
            raise ValueError(f"{len(values)} bytes of a map of {pairs['shape']} values")
        return cls(values, unit=unit, matrix=matrix, **pairs)

    def enlarge(self) -> Array:
        """Return the map (H, W) in pixels of the picture, for `render.overlay`; NaN: not inspected."""
        values = np.frombuffer(self.values, "<f2").reshape(self.shape).astype(np.float32) * np.float32(self.unit)
        known, size = np.isfinite(values), (self.view[1], self.view[0])
        weight = np.asarray(cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_LINEAR))
        enlarged = np.asarray(cv2.resize(np.where(known, values, 0), size, interpolation=cv2.INTER_LINEAR))
        inside = np.asarray(cv2.resize(known.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)) > 0
        inside &= weight > 0
        view = np.full(self.view, np.nan, np.float32)
        view[inside] = enlarged[inside] / weight[inside]
        matrix = None if self.matrix is None else np.asarray(self.matrix)
        return ViewMap(view, Placement(self.view, self.origin, self.frame, None, matrix=matrix)).enlarge()


def _rows(matrix: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    (a, b, c), (d, e, f) = matrix
    return (float(a), float(b), float(c)), (float(d), float(e), float(f))


def _reduced(values: Array) -> Array:
    """Reduce a map (h, w) to about MOST_VALUES values: the highest of each block; NaN if all values of it are NaN."""
    by = math.ceil(math.sqrt(values.size / MOST_VALUES))
    if by == 1:
        return values
    for axis, length in enumerate(values.shape):
        count = -(-length // by)
        values = np.fmax.reduceat(values, np.arange(count) * length // count, axis=axis)
    return values


@dataclass(frozen=True, eq=False)
class Answer:
    """The result of one picture."""

    job: int
    verdict: Outcome
    """INVALID: the picture could not be used. LATE: the deadline had passed. ERROR: the inspection failed."""
    record: dict[str, Any]
    """That of `Inspection.record`, or source, digest, verdict and error. Also: software, engine, `stages` in ms, and
    `appearance` (mean, contrast and sharpness as shares of full scale)."""
    map: Map | None = None
    """None: the graph did not see the picture."""

    @property
    def score(self) -> float:
        """NaN if there is none."""
        return _number(self.record.get("score"), math.nan)

    @property
    def p_value(self) -> float:
        """NaN if there is none."""
        return _number(self.record.get("p_value"), math.nan)

    @property
    def thresholds(self) -> Thresholds | None:
        """The thresholds of the verdict."""
        found = self.record.get("thresholds")
        return found and Thresholds(**{name: _number(found.get(name), math.inf) for name in Thresholds._fields})

    @property
    def regions(self) -> tuple[Region, ...]:
        return tuple(
            Region(tuple(each["box"]), each["area"], tuple(each["centroid"]), each["peak"], tuple(each["peak_at"]))
            for each in self.record.get("regions", ())
        )

    @property
    def stages(self) -> dict[str, float]:
        """Milliseconds by stage: wait, read, prepare, score, judge, and total from `inspect` to the answer."""
        return dict(self.record["stages"])

    @property
    def error(self) -> str:
        """Reason why the picture was not inspected; empty if it was."""
        return str(self.record.get("error", ""))


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else float(value)

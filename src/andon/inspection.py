"""Results as plain data: `Scores` of a detector, `Inspection` of an image."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from andon.files import finite

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8 | np.uint16]


class Scores(NamedTuple):
    """Raw scores of a batch of tiles, not clamped; higher is more anomalous."""

    image: Array  # (n,)       score of each tile
    pixel: Array  # (n, h, w)  anomaly maps


class Scorer(Protocol):
    """Anything that scores tiles: the engine that runs a graph, or a stand-in."""

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, t, t, c), uint8 or uint16."""
        ...


class Verdict(StrEnum):
    """Decision on a part. INVALID: the part was not found in the picture, or the picture is not usable."""

    PASS = "PASS"
    REVIEW = "REVIEW"
    REJECT = "REJECT"
    INVALID = "INVALID"


class Thresholds(NamedTuple):
    """Thresholds in the raw units of the detector's score. A score equal to a threshold does not exceed it.

    `reject` is infinite when the verdict REJECT is disabled: see `Calibration.thresholds`.
    """

    review: float
    reject: float
    pixel: float


class Registration(NamedTuple):
    """The pose of a part relative to the reference picture."""

    quality: float  # correlation with the reference, at most 1; below the recipe's least quality the part is not found
    angle: float  # degrees, clockwise in the picture
    shift: tuple[float, float]  # x, y in pixels, from the centre of the picture to the centre of the reference's frame
    scale: float  # size of the part in the picture relative to the reference
    seen: float  # share of the reference's frame inside the picture
    milliseconds: float  # time of the registration

    def record(self) -> dict[str, Any]:
        """The pose as plain data for JSON."""
        rounded = {key: round(value, 4) for key, value in self._asdict().items() if key != "shift"}
        return {**rounded, "shift": [round(value, 2) for value in self.shift]}


@dataclass(frozen=True)
class Region:
    """A connected area of the anomaly map above the pixel threshold; coordinates in pixels of the image."""

    box: tuple[int, int, int, int]  # x, y, width, height
    area: int  # pixels
    centroid: tuple[float, float]  # x, y
    peak: float  # maximum of the map in the area
    peak_at: tuple[int, int]  # x, y


class Map(Protocol):
    """An anomaly map at any scale."""

    def enlarge(self) -> Array:
        """Enlarge it to the size of the image (H, W)."""
        ...


@dataclass(frozen=True, eq=False)
class Inspection:
    """The result of one image."""

    source: str
    verdict: Verdict
    score: float  # NaN when INVALID
    p_value: float  # expected share of good parts with at least this score; NaN when INVALID
    thresholds: Thresholds
    map: Map  # at the scale of the detector; `anomaly_map` has the size of the image
    regions: tuple[Region, ...]
    removed_regions: int  # number of regions that are not listed: below the minimum area, or not among the worst 100
    milliseconds: float  # from the source to this result; for an `Image`, without reading it
    notes: tuple[str, ...] = ()  # conversions of the image, unusual appearance, why it is INVALID
    registration: Registration | None = None  # None if the recipe uses no registration
    digest: str = ""  # SHA-256 of the file's bytes, or of the array; see `image.Image`
    bundle: str = ""  # digest of the bundle
    decision: str = ""  # digest of the decision: its settings and thresholds

    @cached_property
    def anomaly_map(self) -> Array:
        """(H, W), the size of the original image, computed at first access; NaN where nothing was inspected."""
        return self.map.enlarge()

    def record(self) -> dict[str, Any]:
        """Return everything but the map, as plain data for JSON; null for a number that is not finite."""
        record = {
            "source": self.source,
            "digest": self.digest,
            "verdict": self.verdict.value,
            "score": self.score,
            "p_value": self.p_value,
            "thresholds": self.thresholds._asdict(),
            "regions": [
                {
                    "box": list(r.box),
                    "area": r.area,
                    "centroid": list(r.centroid),
                    "peak": r.peak,
                    "peak_at": list(r.peak_at),
                }
                for r in self.regions
            ],
            "removed_regions": self.removed_regions,
            "milliseconds": round(self.milliseconds, 3),
            "notes": list(self.notes),
            "registration": self.registration.record() if self.registration else None,
            "bundle": self.bundle,
            "decision": self.decision,
        }
        return dict(finite(record))

"""Results as plain data: what a detector gives (`Scores`), and what an inspection says (`Inspection`)."""

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
    """What a detector says of a batch of tiles. Raw and never clamped; higher is more anomalous."""

    image: Array  # (n,)       one score a tile
    pixel: Array  # (n, t, t)  the anomaly map


class Scorer(Protocol):
    """All that inspection needs of a detector."""

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, t, t, c), uint8 or uint16."""
        ...


class Verdict(StrEnum):
    """What to do with a part. INVALID: the part was not found in the picture, so nothing is said of it."""

    PASS = "PASS"
    REVIEW = "REVIEW"
    REJECT = "REJECT"
    INVALID = "INVALID"


class Thresholds(NamedTuple):
    """A score above a threshold crosses it; all are in the raw units of the detector's score.

    `reject` is infinite where no part gets REJECT: see `Calibration.thresholds`.
    """

    review: float
    reject: float
    pixel: float


class Registration(NamedTuple):
    """Where the part was found, against the reference picture."""

    quality: float  # correlation with the reference, 1: the same; below the recipe's least quality it was not found
    angle: float  # degrees by which the part is turned, clockwise as one sees it
    shift: tuple[float, float]  # x, y in pixels, of the middle of the reference's frame from the middle of the picture
    scale: float  # size of the part in the picture, 1: as in the reference
    seen: float  # share of the reference's frame that lies in the picture
    milliseconds: float  # that finding it took

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
    peak: float  # the highest value of the map inside
    peak_at: tuple[int, int]  # x, y


class Map(Protocol):
    """An anomaly map at any scale."""

    def whole(self) -> Array:
        """Enlarge it to the size of the image (H, W)."""
        ...


@dataclass(frozen=True, eq=False)
class Inspection:
    """One image, inspected."""

    source: str
    verdict: Verdict
    score: float  # NaN when INVALID
    p_value: float  # share of good parts expected to score this high, from held-out good images; NaN when INVALID
    thresholds: Thresholds
    map: Map  # at the scale of the detector; `anomaly_map` has the size of the image
    regions: tuple[Region, ...]
    removed_regions: int  # how many are not listed: below the minimum area, or beyond the worst 100
    milliseconds: float  # from the source to this result; of an `Image`, without reading it
    notes: tuple[str, ...] = ()  # what was done to the image that one might not expect; why it is INVALID
    registration: Registration | None = None  # None: the recipe asks for none
    digest: str = ""  # SHA-256 of the file's bytes, or of the array; see `image.Image`
    bundle: str = ""  # digest of the bundle
    decision: str = ""  # digest of the decision: its settings and the thresholds that came of them

    @cached_property
    def anomaly_map(self) -> Array:
        """(H, W) in the frame of the image that came in, made when it is first asked for; NaN: not inspected."""
        return self.map.whole()

    def record(self) -> dict[str, Any]:
        """Everything but the map, as plain data for JSON; null for what is not a finite number."""
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

"""Held-out good scores → thresholds, p-values, verdicts; and which false-reject rate so many parts can support.

Split conformal prediction: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005; for outliers:
Bates, Candès, Lei, Romano & Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023.
No distribution is assumed, only that a good part of tomorrow is drawn as the held-out good parts were.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict

from andon.inspection import Array, Region, Thresholds, Verdict
from andon.recipe import Decision


class HeldOut(NamedTuple):
    """What the graph says of one held-out good image."""

    part: str  # frames of one part share it
    score: float
    peak: float  # the highest value of its anomaly map
    median: float  # the middle value of its anomaly map


class Calibration(BaseModel):
    """Scores of held-out good parts, ascending; a part photographed several times counts once, by its worst frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    scores: list[float]  # (n,) one a part
    peaks: list[float]  # (n,) highest map value of each part
    typical: float  # middle map value of good images: the low end of every heat map

    @classmethod
    def learn(cls, held_out: Sequence[HeldOut]) -> "Calibration":
        """Reduce frames to parts."""
        parts: dict[str, tuple[float, float]] = {}
        for frame in held_out:
            score, peak = parts.get(frame.part, (-math.inf, -math.inf))
            parts[frame.part] = max(score, frame.score), max(peak, frame.peak)
        return cls(
            images=len(held_out),
            scores=sorted(score for score, _ in parts.values()),
            peaks=sorted(peak for _, peak in parts.values()),
            typical=float(np.median([frame.median for frame in held_out])),
        )

    @property
    def supported_rate(self) -> float:
        """The lowest false-reject rate that can be promised with so many held-out parts: 1 / (n + 1)."""
        return 1 / (len(self.scores) + 1)

    def p_value(self, score: float) -> float:
        """(1 + number of held-out good scores ≥ score) / (1 + n), in (0, 1]."""
        n = len(self.scores)
        return (1 + n - int(np.searchsorted(self.scores, score, side="left"))) / (1 + n)

    def thresholds(self, decision: Decision) -> Thresholds:
        """Raw thresholds for the asked rates, or for the supported rate where that is higher."""
        return Thresholds(
            review=_given(decision.review_threshold, order_statistic(self.scores, decision.review_rate)),
            reject=_given(decision.reject_threshold, order_statistic(self.scores, decision.reject_rate)),
            pixel=_given(decision.pixel_threshold, order_statistic(self.peaks, decision.pixel_rate)),
        )

    def describe(self, decision: Decision) -> list[str]:
        """Sentences for people: on how many parts this rests, and what they can and cannot support."""
        n, supported = len(self.scores), self.supported_rate
        units = f"{n} held-out good {'image' if self.images == n else 'part'}{'s' * (n != 1)}"
        if self.images != n:
            units += f" ({self.images} images)"
        sentences = []
        for name, rate, threshold in (
            ("review", decision.review_rate, decision.review_threshold),
            ("reject", decision.reject_rate, decision.reject_threshold),
        ):
            if threshold is not None:
                sentences.append(f"{name}: the threshold {threshold:g} was set by hand; no rate is promised for it.")
            elif rate < supported:
                needed = math.ceil(1 / rate - 1e-9) - 1
                sentences.append(
                    f"{name}: {units} support a false-reject rate of {percent(supported)}; "
                    f"for {percent(rate)} hold out {needed}."
                )
            else:
                sentences.append(f"{name}: at most {percent(rate)} of good parts, from {units}.")
        return sentences


def percent(rate: float) -> str:
    """Write a rate in [0, 1] for people."""
    return f"{100 * rate:.1f} %" if rate >= 0.001 else f"{100 * rate:.2g} %"


def _given(override: float | None, found: float) -> float:
    return found if override is None else override


def order_statistic(ascending: Sequence[float], rate: float) -> float:
    """The threshold that a further good part exceeds with probability at most max(rate, 1 / (n + 1)).

    score > threshold ⟺ p-value ≤ rate: with k = ⌊rate · (n + 1)⌋ it is the k-th largest of the n scores.
    """
    n = len(ascending)
    k = max(1, math.floor(rate * (n + 1) + 1e-9))
    return ascending[n - min(k, n)]


def judge(score: float, thresholds: Thresholds) -> Verdict:
    """PASS, REVIEW or REJECT; a score that is not a number is never passed."""
    if not score <= thresholds.reject:
        return Verdict.REJECT
    return Verdict.REVIEW if score > thresholds.review else Verdict.PASS


def regions(anomaly_map: Array, threshold: float, min_area: int) -> tuple[tuple[Region, ...], int]:
    """Find connected areas (8 neighbours) of a map (H, W) above the threshold, worst first; count those too small."""
    above = (anomaly_map > threshold).astype(np.uint8)  # NaN compares false
    if not above.any():
        return (), 0
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(above, connectivity=8)
    found = []
    for i in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[i])
        if area < min_area:
            continue
        inside = np.where(labels[y : y + h, x : x + w] == i, anomaly_map[y : y + h, x : x + w], -np.inf)
        row, column = divmod(int(inside.argmax()), w)
        centroid = (float(centroids[i][0]), float(centroids[i][1]))
        found.append(Region((x, y, w, h), area, centroid, float(inside.max()), (x + column, y + row)))
    found.sort(key=lambda region: -region.peak)
    return tuple(found), count - 1 - len(found)

"""Held-out good scores → thresholds, p-values, verdicts; and which false-reject rate so many parts can support.

Split conformal prediction: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005; for outliers:
Bates, Candès, Lei, Romano & Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023.
No distribution is assumed, only that a good part of tomorrow is drawn as the held-out good parts were.

Several pictures of one part are no independent witnesses. Each part weighs one, shared by its pictures, which keeps the
promise for any one picture of a new part: Dunn, Wasserman & Ramdas, "Distribution-free prediction sets for two-layer
hierarchical models", JASA 2022.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from andon.inspection import Thresholds, Verdict
from andon.recipe import Decision

SLACK = 1e-9  # for sums of weights, which are fractions


class HeldOut(NamedTuple):
    """What the graph says of one held-out good image."""

    part: str  # frames of one part share it
    score: float
    peak: float  # the highest value of its anomaly map
    median: float  # the middle value of its anomaly map


class Calibration(BaseModel):
    """What the graph says of held-out good images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    part: list[int]  # (n,) which part an image shows, from 0
    scores: list[float]  # (n,)
    peaks: list[float]  # (n,) highest value of each image's map
    typical: float  # middle map value of good images: the low end of every heat map

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not len(self.part) == len(self.scores) == len(self.peaks) > 0:
            lengths = f"{len(self.part)} parts, {len(self.scores)} scores and {len(self.peaks)} peaks"
            raise ValueError(f"a calibration of {lengths}; expected as many of each, at least one")
        return self

    @classmethod
    def learn(cls, held_out: Sequence[HeldOut]) -> "Calibration":
        """Take note of held-out good images."""
        numbers = {part: i for i, part in enumerate(dict.fromkeys(frame.part for frame in held_out))}
        return cls(
            part=[numbers[frame.part] for frame in held_out],
            scores=[frame.score for frame in held_out],
            peaks=[frame.peak for frame in held_out],
            typical=float(np.median([frame.median for frame in held_out])),
        )

    @property
    def images(self) -> int:
        """How many images were held out."""
        return len(self.scores)

    @property
    def parts(self) -> int:
        """How many parts they show."""
        return len(set(self.part))

    @property
    def supported_rate(self) -> float:
        """The lowest false-reject rate that can be promised with so many held-out parts: 1 / (parts + 1)."""
        return 1 / (self.parts + 1)

    def p_value(self, score: float) -> float:
        """(1 + Σ over parts of the share of its images that score as high) / (1 + parts), in (0, 1]."""
        as_high = np.asarray(self.scores) >= score
        return (1 + float(self._weights()[as_high].sum())) / (1 + self.parts)

    def _weights(self) -> NDArray[np.float64]:
        """The weight (n,) of each image: a part weighs 1, shared by its images."""
        images = Counter(self.part)
        return np.array([1 / images[part] for part in self.part])

    def thresholds(self, decision: Decision) -> Thresholds:
        """Raw thresholds for the asked rates, or for the supported rate where that is higher."""
        return Thresholds(
            review=_given(decision.review_threshold, self._threshold(self.scores, decision.review_rate)),
            reject=_given(decision.reject_threshold, self._threshold(self.scores, decision.reject_rate)),
            pixel=_given(decision.pixel_threshold, self._threshold(self.peaks, decision.pixel_rate)),
        )

    def _threshold(self, values: list[float], rate: float) -> float:
        """The value that a further good image exceeds with probability at most max(rate, supported rate).

        value > threshold ⟺ p-value ≤ rate: the highest held-out value that, with all as high, weighs too much.
        With one image a part it is the k-th largest of the n values, k = ⌊rate · (n + 1)⌋.
        """
        falling = np.argsort(values)[::-1]
        ordered, weight = np.asarray(values)[falling], np.cumsum(self._weights()[falling])
        last_of_ties = np.append(ordered[1:] != ordered[:-1], True)
        too_much = weight > max(rate * (1 + self.parts) - 1, 0) + SLACK
        return float(ordered[last_of_ties & too_much][0])

    def describe(self, decision: Decision) -> list[str]:
        """Sentences for people: on how many parts this rests, and what they can and cannot support."""
        n, supported = self.parts, self.supported_rate
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
        if decision.pixel_threshold is not None:
            by_hand = f"the threshold {decision.pixel_threshold:g} was set by hand"
            sentences.append(f"pixel: {by_hand}; no share of good images without a region is promised for it.")
        thresholds = self.thresholds(decision)
        if thresholds.review > thresholds.reject:
            found = f"the review threshold {thresholds.review:g} is above the reject threshold {thresholds.reject:g}"
            sentences.append(f"{found}, so no image gets REVIEW. Set both by hand, or neither.")
        return sentences


def percent(rate: float) -> str:
    """Write a rate in [0, 1] for people."""
    return f"{100 * rate:.1f} %" if rate >= 0.001 else f"{100 * rate:.2g} %"


def _given(override: float | None, found: float) -> float:
    return found if override is None else override


def judge(score: float, thresholds: Thresholds) -> Verdict:
    """PASS, REVIEW or REJECT; a score that is not a number is never passed."""
    if not score <= thresholds.reject:
        return Verdict.REJECT
    return Verdict.REVIEW if score > thresholds.review else Verdict.PASS

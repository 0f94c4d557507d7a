"""Held-out good scores → thresholds, p-values, verdicts; and which false-reject rate so many parts can support.

Split conformal prediction: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005; for outliers:
Bates, Candès, Lei, Romano & Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023.
No distribution is assumed, only that a good part of tomorrow is drawn as the held-out good parts were.

Several pictures of one part are not independent observations. The promise is made for one of two units:

- per image: any one picture of a new part. Each part weighs one, shared by its pictures: Dunn, Wasserman & Ramdas,
  "Distribution-free prediction sets for two-layer hierarchical models", JASA 2022. That these weights with the "+1" of
  the new part are valid for finite samples: Lee, Barber & Willett, "Distribution-free inference with hierarchical
  data", arXiv 2306.06342, 2023.
- per part: the worst picture of a new part. The score of a part is its highest; parts are exchangeable, so the plain
  conformal p-value holds.

Cross-conformal calibration: Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 2015.
Every good picture is scored by a detector that has not seen its fold; the detector in the bundle learns from all. The
bound that is proved (CV+: Barber, Candès, Ramdas & Tibshirani, "Predictive inference with the jackknife+", Annals of
Statistics 2021) is for a new part that is scored by the detectors of the folds. The detector in the bundle has seen
more good parts than each of them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from andon.binomial import long_run
from andon.errors import counted
from andon.inspection import Thresholds, Verdict
from andon.pictures.appearance import Usual
from andon.recipe import Decision

SLACK = 1e-9  # for sums of weights, which are fractions
SHOWN = 5  # held-out pictures with the highest scores that are named
GAP = 1.5  # a gap is told when it is so many times as wide as what lies between its lower end and the median

Unit = Literal["image", "part"]
Floats = NDArray[np.float64]


class HeldOut(NamedTuple):
    """The scores of one held-out good image."""

    part: str  # frames of one part share it
    score: float
    peak: float  # the highest value of its anomaly map
    median: float  # the middle value of its anomaly map
    name: str = ""
    digest: str = ""  # SHA-256 of its file
    fold: int = 0  # whose detector gave the score, in cross-conformal calibration


class Highest(NamedTuple):
    """A held-out good image whose score is among the highest, which set the thresholds."""

    name: str
    digest: str
    score: float


class Calibration(BaseModel):
    """The scores of held-out good images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    part: list[int]  # (n,) which part an image shows, from 0
    scores: list[float]  # (n,)
    peaks: list[float]  # (n,) highest value of each image's map
    typical: float  # middle map value of good images: the low end of every heat map
    names: list[str] = []  # (n,) file names; empty in bundles of before they were kept
    digests: list[str] = []  # (n,) SHA-256 of the files; as the names
    appearance: Usual | None = None  # how these images look; None in bundles of before it was kept
    fold: list[int] = []  # (n,) the fold of each image, from 0; empty: held out from the one detector, not crossed

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not len(self.part) == len(self.scores) == len(self.peaks) > 0:
            lengths = f"{len(self.part)} parts, {len(self.scores)} scores and {len(self.peaks)} peaks"
            raise ValueError(f"a calibration of {lengths}; expected as many of each, at least one")
        for values in (self.names, self.digests, self.fold):
            if len(values) not in (0, len(self.scores)):
                raise ValueError(f"a calibration of {len(self.scores)} scores with {len(values)} names or folds")
        return self

    @classmethod
    def learn(
        cls, held_out: Sequence[HeldOut], crossed: bool = False, appearance: Usual | None = None
    ) -> "Calibration":
        """Collect the scores of held-out good images; `crossed`: each was scored by the detector of its fold."""
        numbers = {part: i for i, part in enumerate(dict.fromkeys(frame.part for frame in held_out))}
        return cls(
            part=[numbers[frame.part] for frame in held_out],
            scores=[frame.score for frame in held_out],
            peaks=[frame.peak for frame in held_out],
            typical=float(np.median([frame.median for frame in held_out])),
            names=[frame.name for frame in held_out],
            digests=[frame.digest for frame in held_out],
            fold=[frame.fold for frame in held_out] if crossed else [],
            appearance=appearance,
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
    def folds(self) -> int:
        """How many folds the calibration was crossed in; 0: it was not."""
        return len(set(self.fold))

    @property
    def supported_rate(self) -> float:
        """The lowest false-reject rate that can be promised with so many held-out parts: 1 / (parts + 1)."""
        return 1 / (self.parts + 1)

    def p_value(self, score: float, per: Unit = "image") -> float:
        """The share of good images, or of good parts, expected to score as high, in (0, 1]; NaN for a score of NaN.

        Per image: (1 + Σ over parts of the share of its images that score as high) / (1 + parts). Per part: the same
        with one score a part, its highest.
        """
        if math.isnan(score):
            return math.nan
        values, above = self._ranked[per]
        return (1 + float(above[np.searchsorted(values, score)])) / (1 + self.parts)

    @cached_property
    def _ranked(self) -> dict[Unit, tuple[Floats, Floats]]:
        """Scores (m,), ascending, and the sum (m + 1,) of the weights of each and of all above it."""
        ranked: dict[Unit, tuple[Floats, Floats]] = {}
        for per in get_args(Unit):
            values, weights = self.units(self.scores, per)
            order = np.argsort(values)
            ranked[per] = values[order], np.append(np.cumsum(weights[order][::-1])[::-1], 0.0)
        return ranked

    def units(self, values: Sequence[float], per: Unit) -> tuple[Floats, Floats]:
        """Values and weights (m,): an image weighs its share of its part; per part only the highest value counts."""
        part, of = np.asarray(self.part), np.asarray(values, np.float64)
        if per == "image":
            images = Counter(self.part)
            return of, np.array([1 / images[p] for p in self.part])
        highest = np.full(int(part.max()) + 1, -np.inf)
        np.maximum.at(highest, part, of)
        highest = highest[np.isfinite(highest)]
        return highest, np.ones(len(highest))

    def thresholds(self, decision: Decision) -> Thresholds:
        """Raw thresholds for the asked rates, or for the supported rate where that is higher.

        The reject threshold is infinite where its rate is not supported, unless the decision says otherwise: a part
        beyond all held-out ones then gets REVIEW.
        """
        per = decision.per
        reject = self._threshold(self.scores, decision.reject_rate, per)
        if self.withholds_reject(decision):
            reject = math.inf
        return Thresholds(
            review=_given(decision.review_threshold, self._threshold(self.scores, decision.review_rate, per)),
            reject=_given(decision.reject_threshold, reject),
            pixel=_given(decision.pixel_threshold, self._threshold(self.peaks, decision.pixel_rate, per)),
        )

    def supports(self, rate: float) -> bool:
        """Whether a false-reject rate can be promised with so many held-out parts."""
        return rate >= self.supported_rate - SLACK

    def withholds_reject(self, decision: Decision) -> bool:
        """Whether no part gets REJECT, because the held-out parts do not support the reject rate."""
        by_hand = decision.reject_threshold is not None
        return not (by_hand or decision.reject_unsupported or self.supports(decision.reject_rate))

    def _threshold(self, values: Sequence[float], rate: float, per: Unit) -> float:
        """The value that a further good unit exceeds with probability at most max(rate, supported rate).

        value > threshold ⟺ p-value ≤ rate: the highest held-out value that, with all as high, weighs too much.
        With one value a part it is the k-th largest of the n values, k = ⌊rate · (n + 1)⌋.
        """
        found, weights = self.units(values, per)
        falling = np.argsort(found)[::-1]
        ordered, weight = found[falling], np.cumsum(weights[falling])
        last_of_ties = np.append(ordered[1:] != ordered[:-1], True)
        too_much = weight > max(rate * (1 + self.parts) - 1, 0) + SLACK
        return float(ordered[last_of_ties & too_much][0])

    def long_run(self, rate: float, per: Unit) -> tuple[float, float] | None:
        """Interval, 95 %, of the long-run rate of this one calibration at a promised rate.

        The promise holds on average over calibrations; the rate of one calibration follows Beta(k, n + 1 − k), where
        its threshold is the k-th largest of n values. None where the images of a part share its weight.
        """
        if per == "image" and self.images > self.parts:
            return None
        return long_run(max(1, math.floor(rate * (self.parts + 1) + SLACK)), self.parts)

    def proved_rate(self, rate: float) -> float:
        """The proved bound on the false-reject rate: the rate itself, or the bound of CV+ where folds were crossed."""
        rate = max(rate, self.supported_rate)
        if not self.folds:
            return rate
        n, k = self.parts, self.folds
        return min(1.0, 2 * rate + min(2 * (1 - 1 / k) / (n / k + 1), (1 - k / n) / (k + 1)))

    def simulated(self, rate: float, per: Unit) -> tuple[int, int] | None:
        """Simulate a crossed calibration on its own scores: each fold judged by the thresholds of all others.

        Returns how many images, or parts, would exceed the threshold, and of how many. None where nothing was crossed.
        """
        if self.folds < 2:
            return None
        above, fold = 0, np.asarray(self.fold)
        for each in sorted(set(self.fold)):
            rest, own = (self._only(np.flatnonzero(side)) for side in (fold != each, fold == each))
            found, _ = own.units(own.scores, per)
            above += int((found > rest._threshold(rest.scores, rate, per)).sum())
        return above, self.parts if per == "part" else self.images

    def _only(self, rows: NDArray[np.intp]) -> "Calibration":
        kept = {key: [getattr(self, key)[i] for i in rows] for key in ("part", "scores", "peaks")}
        return Calibration.model_validate({**kept, "typical": self.typical})

    def highest(self) -> list[Highest]:
        """The held-out images with the highest scores, highest first: those that set the thresholds."""
        if not self.names:
            return []
        order = np.argsort(self.scores, kind="stable")[::-1][:SHOWN]
        return [Highest(self.names[i], self.digests[i], self.scores[i]) for i in order.tolist()]

    def outstanding(self) -> int:
        """How many of the highest scores stand apart from the rest by a gap; 0: none.

        A gap lies below one of the SHOWN highest scores, and is wider than GAP × the distance from the score below it
        to the median.
        """
        falling = np.sort(self.scores)[::-1]
        middle = float(np.median(falling))
        for j in range(min(SHOWN, len(falling) // 4), 0, -1):
            if falling[j - 1] - falling[j] > GAP * max(falling[j] - middle, SLACK * abs(middle)):
                return j
        return 0

    def describe(self, decision: Decision) -> list[str]:
        """Sentences for people: on how many parts this rests, what they support, and how far one calibration varies."""
        sentences = [
            self._promise("review", decision, decision.review_rate, decision.review_threshold),
            self._promise("reject", decision, decision.reject_rate, decision.reject_threshold),
        ]
        if decision.pixel_threshold is not None:
            by_hand = f"the threshold {decision.pixel_threshold:g} was set by hand"
            sentences.append(f"pixel: {by_hand}; no share of good images without a region is promised for it.")
        thresholds = self.thresholds(decision)
        if thresholds.review > thresholds.reject:
            found = f"the review threshold {thresholds.review:g} is above the reject threshold {thresholds.reject:g}"
            sentences.append(f"{found}, so no image gets REVIEW. Set both by hand, or neither.")
        if count := self.outstanding():
            falling = sorted(self.scores, reverse=True)
            scores = ", ".join(f"{score:.4g}" for score in falling[:count])
            names = f" ({', '.join(each.name for each in self.highest()[:count])})" if self.names else ""
            sentences.append(
                f"gap: the highest held-out {'score is' if count == 1 else 'scores are'} {scores}{names}, the next is "
                f"{falling[count]:.4g}. Look at {'this picture' if count == 1 else 'these pictures'}: if the part is "
                "defective or the picture is a bad one, remove it and train again."
            )
        return sentences

    def _promise(self, name: str, decision: Decision, rate: float, threshold: float | None) -> str:
        """What is promised at one threshold."""
        if threshold is not None:
            return f"{name}: the threshold {threshold:g} was set by hand; no rate is promised for it."
        n, unit = self.parts, decision.per
        noun = "image" if self.images == n and unit == "image" else "part"
        units = counted(n, f"held-out good {noun}")
        if self.images != n:
            units += f" ({self.images} images)"
        whose = "good parts, each by its worst image" if unit == "part" else "good images"
        if self.supports(rate):
            sentence = f"{name}: at most {percent(rate)} of {whose}, from {units}"
            if self.folds:
                sentence = f"{name}: about {percent(rate)} of {whose}, from {units} {self._crossed(rate, unit)}"
        else:
            needed = math.ceil(1 / rate - SLACK) - 1
            in_all = "in all" if self.folds else f"for calibration; with cross-conformal calibration, {needed} in all"
            sentence = (
                f"{name}: {units} support a false-reject rate of {percent(self.supported_rate)}; "
                f"{percent(rate)} needs {needed} {noun}s {in_all}"
            )
            if name == "reject" and self.withholds_reject(decision):
                return f"{sentence}. Until then no part gets REJECT: one beyond all held-out parts gets REVIEW."
            if self.folds:
                sentence += f"; {self._crossed(rate, unit)}"
        if interval := self.long_run(max(rate, self.supported_rate), unit):
            low, high = interval
            sentence += f". In the long run this calibration stops between {percent(low)} and {percent(high)}"
        return f"{sentence}."

    def _crossed(self, rate: float, per: Unit) -> str:
        simulated = self.simulated(rate, per)
        text = f"crossed in {self.folds} folds"
        if simulated:
            text += f" (simulated on them: {simulated[0]} of {simulated[1]}"
            text += f"; proved for the detectors of the folds: at most {percent(self.proved_rate(rate))})"
        return text


def percent(rate: float) -> str:
    """Write a rate in [0, 1] for people."""
    return f"{100 * rate:.1f} %" if rate >= 0.001 else f"{100 * rate:.2g} %"


def _given(override: float | None, found: float) -> float:
    return found if override is None else override


def judge(score: float, thresholds: Thresholds) -> Verdict:
    """PASS, REVIEW or REJECT; a score that is not a finite number is never passed."""
    if not (math.isfinite(score) and score <= thresholds.reject):
        return Verdict.REJECT
    return Verdict.REVIEW if score > thresholds.review else Verdict.PASS

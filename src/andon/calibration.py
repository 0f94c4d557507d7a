"""Scores of held-out good images → thresholds, p-values, verdicts, and the false-reject rates that they support.

Split conformal prediction: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005; for outliers:
Bates, Candès, Lei, Romano & Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 2023.
No distribution is assumed. New good parts and held-out good parts must come from the same distribution.

Several pictures of one part are not independent observations. The rates hold for one of two units:

- per image: any one picture of a new part. Each part has weight 1, divided equally among its pictures: Dunn, Wasserman
  & Ramdas, "Distribution-free prediction sets for two-layer hierarchical models", JASA 2022. Proof that these weights,
  with the "+1" of the new part, are valid for finite samples: Lee, Barber & Willett, "Distribution-free inference with
  hierarchical data", arXiv 2306.06342, 2023.
- per part: the picture of a new part with the highest score. Parts are exchangeable, so the standard conformal p-value
  holds.

Cross-conformal calibration: Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 2015.
Every good picture is scored by a detector that was not trained on its fold; the detector in the bundle is trained on
all. The proved bound (CV+: Barber, Candès, Ramdas & Tibshirani, "Predictive inference with the jackknife+", Annals of
Statistics 2021) holds for a new part that is scored by the detectors of the folds. The detector in the bundle is
trained on more good parts than each of them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from andon import files
from andon.binomial import long_run
from andon.errors import counted
from andon.inspection import Thresholds, Verdict
from andon.pictures.appearance import GoodAppearance
from andon.recipe import Decision

TOLERANCE = 1e-9  # of sums of weights, which are fractions
HIGHEST = 5  # number of held-out pictures with the highest scores that are named
GAP = 1.5  # smallest width of a reported gap, in multiples of the distance from its lower end to the median

Unit = Literal["image", "part"]
Floats = NDArray[np.float64]


class HeldOut(NamedTuple):
    """The scores of one held-out good image."""

    part: str  # identifier of the part, the same for all its images
    score: float
    peak: float  # maximum of its anomaly map
    median: float  # median of its anomaly map
    name: str = ""
    digest: str = ""  # SHA-256 of its file
    fold: int = 0  # in cross-conformal calibration: the fold that its detector was not trained on


class Highest(NamedTuple):
    """A held-out good image with one of the highest scores. These set the thresholds."""

    name: str
    digest: str
    score: float


class Calibration(BaseModel):
    """The scores of held-out good images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    part: list[int]  # (n,) index of the part that an image shows
    scores: list[float]  # (n,)
    peaks: list[float]  # (n,) maximum of each anomaly map
    typical: float  # median value of the anomaly maps of good images: the low end of every heat map
    names: list[str] = []  # (n,) file names; empty in bundles of older versions
    digests: list[str] = []  # (n,) SHA-256 of the files; empty in bundles of older versions
    appearance: GoodAppearance | None = None  # statistics of these images; None in bundles of older versions
    fold: list[int] = []  # (n,) index of the fold of each image; empty: split calibration, without folds

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if not len(self.part) == len(self.scores) == len(self.peaks) > 0:
            lengths = f"{len(self.part)} parts, {len(self.scores)} scores and {len(self.peaks)} peaks"
            raise ValueError(f"a calibration of {lengths}; expected the same number of each, at least one")
        for values in (self.names, self.digests, self.fold):
            if len(values) not in (0, len(self.scores)):
                raise ValueError(
                    f"a calibration of {len(self.scores)} scores with {len(values)} names, digests or folds; "
                    "expected the same number"
                )
        return self

    @classmethod
    def learn(
        cls, held_out: Sequence[HeldOut], crossed: bool = False, appearance: GoodAppearance | None = None
    ) -> "Calibration":
        """Collect the scores of held-out good images; `crossed`: each was scored by the detector of its fold."""
        index = {part: i for i, part in enumerate(dict.fromkeys(frame.part for frame in held_out))}
        return cls(
            part=[index[frame.part] for frame in held_out],
            scores=[frame.score for frame in held_out],
            peaks=[frame.peak for frame in held_out],
            typical=float(np.median([frame.median for frame in held_out])),
            names=[frame.name for frame in held_out],
            digests=[frame.digest for frame in held_out],
            fold=[frame.fold for frame in held_out] if crossed else [],
            appearance=appearance,
        )

    @property
    def extendable(self) -> bool:
        """Whether scores by the same detector can be added: split, not crossed, and with a digest of each image."""
        return not self.folds and len(self.digests) == self.images

    def extend(self, other: "Calibration") -> "Calibration":
        """Add held-out images of other parts, scored by the same detector. Known images are left out.

        The statistics of appearance stay. ValueError unless both are extendable.
        """
        if not (self.extendable and other.extendable):
            raise ValueError("a crossed calibration, or one without digests; expected two that can be extended")
        known, first = set(self.digests), max(self.part) + 1
        rows = [row for row, digest in enumerate(other.digests) if digest not in known]
        columns = {
            name: getattr(self, name) + [getattr(other, name)[row] for row in rows]
            for name in ("scores", "peaks", "names", "digests")
        }
        added = len(rows)
        return Calibration(
            **columns,
            part=self.part + [first + other.part[row] for row in rows],
            typical=(self.images * self.typical + added * other.typical) / (self.images + added),
            appearance=self.appearance or other.appearance,
        )

    @property
    def images(self) -> int:
        """Number of held-out images."""
        return len(self.scores)

    @property
    def parts(self) -> int:
        """Number of held-out parts."""
        return len(set(self.part))

    @property
    def folds(self) -> int:
        """Number of folds of a cross-conformal calibration; 0 for a split calibration."""
        return len(set(self.fold))

    @property
    def supported_rate(self) -> float:
        """The lowest false-reject rate that this number of held-out parts supports: 1 / (parts + 1)."""
        return 1 / (self.parts + 1)

    def p_value(self, score: float, per: Unit = "image") -> float:
        """Expected share of good images, or good parts, with at least this score, in (0, 1]; NaN for a score of NaN.

        Per image: (1 + Σ over parts of the share of its images with at least this score) / (1 + parts). Per part: the
        same with one score per part, its highest.
        """
        if math.isnan(score):
            return math.nan
        values, above = self._ranked[per]
        return (1 + float(above[np.searchsorted(values, score)])) / (1 + self.parts)

    @cached_property
    def _ranked(self) -> dict[Unit, tuple[Floats, Floats]]:
        """For each unit: scores (m,), ascending, and for each score the sum of weights from it upwards (m + 1,)."""
        ranked: dict[Unit, tuple[Floats, Floats]] = {}
        for per in get_args(Unit):
            values, weights = self.units(self.scores, per)
            order = np.argsort(values)
            ranked[per] = values[order], np.append(np.cumsum(weights[order][::-1])[::-1], 0.0)
        return ranked

    def units(self, values: Sequence[float], per: Unit) -> tuple[Floats, Floats]:
        """Values and weights (m,). Per image: weight 1 / images of its part. Per part: its highest value, weight 1."""
        part, array = np.asarray(self.part), np.asarray(values, np.float64)
        if per == "image":
            images = Counter(self.part)
            return array, np.array([1 / images[p] for p in self.part])
        highest = np.full(int(part.max()) + 1, -np.inf)
        np.maximum.at(highest, part, array)
        highest = highest[np.isfinite(highest)]
        return highest, np.ones(len(highest))

    def thresholds(self, decision: Decision) -> Thresholds:
        """Thresholds on the raw score for the rates of the decision, or for the supported rate if it is higher.

        The reject threshold is infinite when its rate is not supported, unless `reject_unsupported` is set: a part with
        a score above all held-out scores then gets REVIEW.
        """
        per = decision.per
        reject = self._threshold(self.scores, decision.reject_rate, per)
        if self.withholds_reject(decision):
            reject = math.inf
        return Thresholds(
            review=_either(decision.review_threshold, self._threshold(self.scores, decision.review_rate, per)),
            reject=_either(decision.reject_threshold, reject),
            pixel=_either(decision.pixel_threshold, self._threshold(self.peaks, decision.pixel_rate, per)),
        )

    def decision_digest(self, decision: Decision) -> str:
        """SHA-256 of a decision and its thresholds; with the digest of the bundle it identifies what decided."""
        return files.digest(repr((decision.model_dump_json(), tuple(self.thresholds(decision)))).encode())

    def supports(self, rate: float) -> bool:
        """Whether this number of held-out parts supports a false-reject rate."""
        return rate >= self.supported_rate - TOLERANCE

    def withholds_reject(self, decision: Decision) -> bool:
        """Whether the verdict REJECT is disabled, because the held-out parts do not support the reject rate."""
        by_hand = decision.reject_threshold is not None
        return not (by_hand or decision.reject_unsupported or self.supports(decision.reject_rate))

    def _threshold(self, values: Sequence[float], rate: float, per: Unit) -> float:
        """The value that a new good unit exceeds with probability at most max(rate, supported rate).

        value > threshold ⟺ p-value ≤ rate. It is the highest held-out value for which the sum of weights from it
        upwards exceeds rate · (n + 1) − 1. With one value per part it is the k-th largest of n values,
        k = ⌊rate · (n + 1)⌋.
        """
        units, weights = self.units(values, per)
        descending = np.argsort(units)[::-1]
        ordered, weight = units[descending], np.cumsum(weights[descending])
        last_of_ties = np.append(ordered[1:] != ordered[:-1], True)
        exceeds = weight > max(rate * (1 + self.parts) - 1, 0) + TOLERANCE
        return float(ordered[last_of_ties & exceeds][0])

    def long_run(self, rate: float, per: Unit) -> tuple[float, float] | None:
        """95 % interval (low, high) of the long-run false-reject rate of this calibration at a nominal rate.

        The nominal rate holds on average over calibrations. The rate of one calibration follows Beta(k, n + 1 − k) when
        its threshold is the k-th largest of n values. None per image when parts have several images.
        """
        if per == "image" and self.images > self.parts:
            return None
        return long_run(max(1, math.floor(rate * (self.parts + 1) + TOLERANCE)), self.parts)

    def proved_rate(self, rate: float) -> float:
        """The proved bound on the false-reject rate: the rate itself, or the bound of CV+ with folds."""
        rate = max(rate, self.supported_rate)
        if not self.folds:
            return rate
        n, k = self.parts, self.folds
        return min(1.0, 2 * rate + min(2 * (1 - 1 / k) / (n / k + 1), (1 - k / n) / (k + 1)))

    def simulate(self, rate: float, per: Unit) -> tuple[int, int] | None:
        """Simulate a cross-conformal calibration: each fold is judged by the threshold of all other folds.

        Returns the number of images, or parts, above the threshold, and their total. None without folds.
        """
        if self.folds < 2:
            return None
        above, fold = 0, np.asarray(self.fold)
        for index in sorted(set(self.fold)):
            others, own = (self._subset(np.flatnonzero(side)) for side in (fold != index, fold == index))
            scores, _ = own.units(own.scores, per)
            above += int((scores > others._threshold(others.scores, rate, per)).sum())
        return above, self.parts if per == "part" else self.images

    def _subset(self, rows: NDArray[np.intp]) -> "Calibration":
        columns = {key: [getattr(self, key)[i] for i in rows] for key in ("part", "scores", "peaks")}
        return Calibration.model_validate({**columns, "typical": self.typical})

    def highest(self) -> list[Highest]:
        """The held-out images with the highest scores, in descending order. They set the thresholds."""
        if not self.names:
            return []
        order = np.argsort(self.scores, kind="stable")[::-1][:HIGHEST]
        return [Highest(self.names[i], self.digests[i], self.scores[i]) for i in order.tolist()]

    def outliers(self) -> int:
        """Number of highest scores that a gap separates from the other scores; at most HIGHEST, 0 without a gap.

        A gap is wider than GAP × the distance from the score below it to the median.
        """
        descending = np.sort(self.scores)[::-1]
        median = float(np.median(descending))
        for j in range(min(HIGHEST, len(descending) // 4), 0, -1):
            if descending[j - 1] - descending[j] > GAP * max(descending[j] - median, TOLERANCE * abs(median)):
                return j
        return 0

    def describe(self, decision: Decision) -> list[str]:
        """Sentences for people: the number of parts, the rates that they support, and the interval of the rates."""
        sentences = [
            self._promise("review", decision, decision.review_rate, decision.review_threshold),
            self._promise("reject", decision, decision.reject_rate, decision.reject_threshold),
        ]
        if decision.pixel_threshold is not None:
            by_hand = f"the threshold {decision.pixel_threshold:g} was set by hand"
            sentences.append(f"pixel: {by_hand}; no share of good images with a region is promised for it.")
        thresholds = self.thresholds(decision)
        if thresholds.review > thresholds.reject:
            order = f"the review threshold {thresholds.review:g} is above the reject threshold {thresholds.reject:g}"
            sentences.append(f"{order}, so no image gets REVIEW. Set both by hand, or neither.")
        if count := self.outliers():
            descending = sorted(self.scores, reverse=True)
            scores = ", ".join(f"{score:.4g}" for score in descending[:count])
            names = f" ({', '.join(image.name for image in self.highest()[:count])})" if self.names else ""
            sentences.append(
                f"gap: the highest held-out {'score is' if count == 1 else 'scores are'} {scores}{names}, the next is "
                f"{descending[count]:.4g}. Look at {'this picture' if count == 1 else 'these pictures'}: if it shows a "
                "defect or is a bad picture, remove it and train again."
            )
        return sentences

    def _promise(self, name: str, decision: Decision, rate: float, threshold: float | None) -> str:
        """The sentence on the rate of one threshold."""
        if threshold is not None:
            return f"{name}: the threshold {threshold:g} was set by hand; no rate is promised for it."
        n, unit = self.parts, decision.per
        noun = "image" if self.images == n and unit == "image" else "part"
        units = counted(n, f"held-out good {noun}")
        if self.images != n:
            units += f" ({self.images} images)"
        population = "good parts, each by its worst image" if unit == "part" else "good images"
        if self.supports(rate):
            sentence = f"{name}: at most {percent(rate)} of {population}, from {units}"
            if self.folds:
                sentence = f"{name}: about {percent(rate)} of {population}, from {units} {self._cross(rate, unit)}"
        else:
            minimum = math.ceil(1 / rate - TOLERANCE) - 1
            total = (
                "in total" if self.folds else f"for calibration, or {minimum} in total for cross-conformal calibration"
            )
            sentence = (
                f"{name}: {units} support a false-reject rate of {percent(self.supported_rate)}; "
                f"{percent(rate)} needs {minimum} {noun}s {total}"
            )
            if name == "reject" and self.withholds_reject(decision):
                return f"{sentence}. Until then no part gets REJECT: a score above all held-out scores gets REVIEW."
            if self.folds:
                sentence += f"; {self._cross(rate, unit)}"
        if interval := self.long_run(max(rate, self.supported_rate), unit):
            low, high = interval
            sentence += f". In the long run, {percent(low)} to {percent(high)} of {population} exceed this threshold"
        return f"{sentence}."

    def _cross(self, rate: float, per: Unit) -> str:
        text = f"in {self.folds} cross-conformal folds"
        if simulation := self.simulate(rate, per):
            above, total = simulation
            text += f" (simulation: {above} of {total}"
            text += f"; proved for the detectors of the folds: at most {percent(self.proved_rate(rate))})"
        return text


def percent(rate: float) -> str:
    """Format a rate in [0, 1] as a percentage."""
    return f"{100 * rate:.1f} %" if rate >= 0.001 else f"{100 * rate:.2g} %"


def _either(override: float | None, value: float) -> float:
    return value if override is None else override


def judge(score: float, thresholds: Thresholds) -> Verdict:
    """PASS, REVIEW or REJECT; a score that is not finite gets REJECT."""
    if not (math.isfinite(score) and score <= thresholds.reject):
        return Verdict.REJECT
    return Verdict.REVIEW if score > thresholds.review else Verdict.PASS

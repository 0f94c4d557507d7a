"""Figures of a detector from labels and scores: pure functions on arrays.

Ties are exact: images or pixels with equal scores are on the same side of a threshold; AUROC counts a tied pair as 0.5.

References
----------
- Average precision: the step sum of scikit-learn's `average_precision_score`, without interpolation.
- Clopper and Pearson (1934), The use of confidence or fiducial limits.
- DeLong, DeLong and Clarke-Pearson (1988), Comparing the areas under two or more correlated ROC curves.
- AUPRO: Bergmann et al. (2021), The MVTec anomaly detection dataset, section 5.1.
- Saturated per-region overlap (sPRO): Bergmann et al. (2022), Beyond dents and scratches, section 4.
- AUPIMO: Bertoldo, Ayala, Vasconcelos and others (2024), AUPIMO: redefining visual anomaly detection benchmarks.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from andon.binomial import clopper_pearson
from andon.evaluate import piles
from andon.evaluate.piles import Pile, Shelf, Steps

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Roc(NamedTuple):
    """Rates at each distinct score as a threshold, descending; the first point is (0, 0) at infinity."""

    fpr: Floats
    tpr: Floats
    threshold: Floats


def roc(labels: ArrayLike, scores: ArrayLike) -> Roc:
    """Compute the ROC curve; `labels` (n,): True for defects; `scores` (n,): higher is more anomalous."""
    threshold, false_alarms, hits = _counts(labels, scores)
    return Roc(
        np.concatenate([[0.0], false_alarms / false_alarms[-1]]),
        np.concatenate([[0.0], hits / hits[-1]]),
        np.concatenate([[np.inf], threshold]),
    )


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a defect has a higher score than a good part; a tie counts half."""
    _, false_alarms, hits = _counts(labels, scores)
    previous = np.concatenate([[0], hits[:-1]])
    area = np.sum(np.diff(false_alarms, prepend=0) * (hits + previous))
    return float(area / (2 * hits[-1] * false_alarms[-1]))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision: precision weighted by the increase of recall at each distinct score."""
    _, false_alarms, hits = _counts(labels, scores)
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / (hits + false_alarms)))


def fpr_at_tpr(labels: ArrayLike, scores: ArrayLike, tpr: float = 0.95) -> float:
    """Lowest false-positive rate at a threshold with a true-positive rate of at least `tpr`."""
    _, false_alarms, hits = _counts(labels, scores)
    enough = int(np.argmax(hits >= tpr * hits[-1] - 1e-9))
    return float(false_alarms[enough] / false_alarms[-1])


def f1_max(labels: ArrayLike, scores: ArrayLike) -> float:
    """Highest F1 over all thresholds: an oracle figure, because the threshold is chosen with the labels."""
    _, false_alarms, hits = _counts(labels, scores)
    return float(np.max(2 * hits / (hits + false_alarms + hits[-1])))


def _counts(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Ints, Ints]:
    """Distinct scores, descending, with the numbers of good parts and of defects at or above each."""
    truth, score = _check(labels, scores)
    order = np.argsort(-score, kind="stable")
    score, truth = score[order], truth[order]
    last = np.append(np.flatnonzero(score[1:] != score[:-1]), len(score) - 1)
    hits = np.cumsum(truth)[last]
    return score[last], last + 1 - hits, hits


def _check(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    truth, score = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != score.shape:
        raise ValueError(f"labels {truth.shape} and scores {score.shape}; expected two of shape (n,)")
    if np.isnan(score).any():
        raise ValueError(f"{np.isnan(score).sum()} scores are NaN; expected numbers. Remove and count these samples")
    if truth.all() or not truth.any():
        raise ValueError(f"{truth.sum()} defects among {len(truth)} samples; expected good parts and defects")
    return truth, score


def auroc_interval(labels: ArrayLike, scores: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the AUROC: DeLong's variance on the logit scale, so that it is within [0, 1].

    With perfect separation this variance is zero. Then the interval is Clopper and Pearson's for independent
    good-defect pairs, min(good, defects) in number, all in the correct order.
    """
    truth, score = _check(labels, scores)
    good, bad = np.sort(score[~truth]), np.sort(score[truth])
    area = auroc(truth, score)
    pairs = min(len(good), len(bad))
    if area in (0.0, 1.0):
        return clopper_pearson(round(area * pairs), pairs, level)
    if pairs < 2:
        return 0.0, 1.0
    # for each defect the share of good parts below it, for each good part the share of defects above it; ties half
    below = (np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")) / (2 * len(good))
    above = 1 - (np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")) / (2 * len(bad))
    error = math.sqrt(np.var(below, ddof=1) / len(bad) + np.var(above, ddof=1) / len(good))
    if error == 0:  # all scores are equal
        return 0.0, 1.0
    reach = NormalDist().inv_cdf((1 + level) / 2) * error / (area * (1 - area))
    logit = math.log(area / (1 - area))
    return 1 / (1 + math.exp(reach - logit)), 1 / (1 + math.exp(-reach - logit))


Region = tuple[Mask, Callable[[int], int]]
"""One annotated defect: its pixels (H, W), and its saturation: inspected pixels → pixels that are enough."""

PIMO_RATES = (1e-5, 1e-4)
"""Shared false-positive rates between which AUPIMO is the mean overlap, as in the paper."""


class PixelFigures(NamedTuple):
    """Figures over pixels, each in [0, 1]."""

    auroc: float
    ap: float
    f1_max_oracle: float
    aupro: tuple[float, ...]  # one for each limit
    components: int  # number of annotated defects, by 8-connectivity


class PixelMetrics:
    """Pixel AUROC, AP, F1, AUPRO, sPRO and AUPIMO over images that are added one by one: exact, in bounded memory.

    memory_mb: pixels are kept in memory up to this budget, then in a temporary file. good_images: the number of images
    without a mask that are added, at most; AUPIMO keeps this number times 1e-4 of the pixels of an image.

    Cost: 4 bytes per good pixel and 12 bytes per defect pixel; about 60 MB of working memory; each pixel is sorted
    twice. `figures` reads all pixels once.
    """

    def __init__(self, memory_mb: float = 512, good_images: int = 1000) -> None:
        self.good = 0  # number of good pixels
        self.defects: dict[str, int] = {}  # kind → number of defect pixels
        self.components: dict[str, int] = {}  # kind → number of annotated defects with an inspected pixel
        self.regions: dict[str, int] = {}  # kind → number of regions with a saturation and an inspected pixel
        self._shelf = Shelf(int(memory_mb * 1e6))
        self._good: dict[str, Pile] = {}  # kind of images with regions, or "" for all others → their good pixels
        self._piles: dict[str, Pile] = {}  # kind → defect pixels
        self._saturated: dict[str, Pile] = {}  # kind → the highest pixels of each region, as many as are enough
        self._images: dict[str, list[piles.Place]] = {}  # kind → defect pixels of each image, ascending
        self._shared = _SharedRate(PIMO_RATES[1], good_images)

    def add(
        self,
        anomaly_map: ArrayLike,
        mask: ArrayLike | None = None,
        kind: str = "defect",
        regions: Sequence[Region] = (),
    ) -> None:
        """Add one image: a map (H, W), NaN where nothing was inspected, and the mask (H, W) of its defects or None.

        regions: the annotated defects of the mask with their saturations, for sPRO. Pixels that were not inspected are
        in no figure, even if the mask marks them.
        """
        values = np.asarray(anomaly_map, dtype=np.float32)
        inspected = ~np.isnan(values)
        truth = None if mask is None else np.asarray(mask, dtype=bool)
        if truth is not None and truth.shape != values.shape:
            raise ValueError(f"mask {truth.shape} for a map {values.shape}; expected the same shape")
        good = inspected if truth is None else inspected & ~truth
        pixels = values[good]
        if truth is not None and truth.any():
            self._add_defects(values, truth, truth & inspected, kind)
            self._add_regions(values, inspected, kind, regions)
        else:
            self._shared.add(pixels)
        self.good += len(pixels)
        self._pile(self._good, kind if regions else "").add(pixels)

    @property
    def good_images(self) -> int:
        """The number of images without defects that have an inspected pixel."""
        return self._shared.images

    def _pile(self, named: dict[str, Pile], name: str) -> Pile:
        return named.setdefault(name, Pile(self._shelf))

    def _add_defects(self, values: NDArray[np.float32], truth: Mask, inspected: Mask, kind: str) -> None:
        _, labels = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        component, scores = labels[inspected], values[inspected]
        sizes = np.bincount(component)
        self.defects[kind] = self.defects.get(kind, 0) + len(component)
        self.components[kind] = self.components.get(kind, 0) + int(np.count_nonzero(sizes))
        self._pile(self._piles, kind).add(scores, sizes[component].astype(np.uint32))
        if len(scores):
            self._images.setdefault(kind, []).append(self._shelf.put(np.sort(scores).view(np.uint32)))

    def _add_regions(self, values: NDArray[np.float32], inspected: Mask, kind: str, regions: Sequence[Region]) -> None:
        for area, saturation in regions:
            scores = values[np.asarray(area, dtype=bool) & inspected]
            if len(scores):
                enough = min(max(1, saturation(len(scores))), len(scores))
                highest = np.partition(scores, len(scores) - enough)[len(scores) - enough :]
                self._pile(self._saturated, kind).add(highest, np.full(enough, enough, np.uint32))
                self.regions[kind] = self.regions.get(kind, 0) + 1

    def _defects(self, kind: str | None) -> list[Pile]:
        """The defect pixels of a kind, or of all. ValueError without good or without defect pixels."""
        kinds = list(self.defects) if kind is None else [kind]
        total = sum(self.defects.get(k, 0) for k in kinds)
        if not total or not self.good:
            raise ValueError(f"{total} defect and {self.good} good pixels; expected some of both")
        return [self._piles[k] for k in kinds]

    def figures(self, kind: str | None = None, limits: tuple[float, ...] = (0.30, 0.05)) -> PixelFigures:
        """Compute the figures; with a `kind`, from its defects and the good pixels of all images.

        AUPRO is the integral over the false-positive rate from 0 to each of `limits`, divided by this limit.
        """
        defects = self._defects(kind)
        total = sum(self.defects.values()) if kind is None else self.defects[kind]
        components = sum(self.components.values()) if kind is None else self.components[kind]
        pairs = precision = f1 = 0.0
        hits = 0
        overlap = _Overlap(self.good, components, limits)
        for step in piles.steps([*self._good.values()], defects):
            reached = hits + np.cumsum(step.defects)
            alarms = step.above + step.equal
            pairs += float(np.sum(step.defects * (self.good - step.above - step.equal / 2)))
            precision += float(np.sum(step.defects * (reached / (reached + alarms))))
            f1 = max(f1, float(np.max(2 * reached / (reached + alarms + total))))
            overlap.add(step)
            hits = int(reached[-1])
        return PixelFigures(
            auroc=pairs / total / self.good,
            ap=precision / total,
            f1_max_oracle=f1,
            aupro=overlap.areas(),
            components=components,
        )

    def f1(self, threshold: float, kind: str | None = None) -> float:
        """F1 of the pixels above a threshold; with a `kind`, of its defects and the good pixels of all images."""
        defects = self._defects(kind)
        total = sum(self.defects.values()) if kind is None else self.defects[kind]
        hits = piles.count_above(defects, threshold)
        return 2 * hits / (hits + piles.count_above([*self._good.values()], threshold) + total)

    def spro(self, kind: str, limits: tuple[float, ...] = (0.30, 0.05)) -> tuple[float, ...]:
        """Area under the mean saturated overlap of the regions of a kind, for each of `limits`, as AUPRO.

        The overlap of a region is the number of its pixels above the threshold, divided by its saturation and at most
        1. As in the authors' evaluation, the false-positive rate is that of the images without defects and of the
        images of this kind. ValueError without regions or good pixels.
        """
        goods = [self._good[name] for name in ("", kind) if name in self._good]
        good = sum(len(run.score) for pile in goods for run in pile.runs())
        if not self.regions.get(kind) or not good:
            raise ValueError(f"{self.regions.get(kind, 0)} regions and {good} good pixels; expected some of both")
        overlap = _Overlap(good, self.regions[kind], limits)
        for step in piles.steps(goods, [self._saturated[kind]]):
            overlap.add(step)
        return overlap.areas()

    def aupimo(self, kind: str | None = None) -> list[float]:
        """AUPIMO of each image with defects, in the order they were added; with a `kind`, of its images.

        The mean share of the defect pixels above the threshold, over thresholds whose shared false-positive rate, the
        mean over the images without defects, lies between PIMO_RATES, on a logarithmic scale. At each rate, the
        threshold is the lowest that does not exceed it. ValueError without images of both kinds.
        """
        places = [p for k, of in self._images.items() if kind in (None, k) for p in of]
        if not places or not self._shared.images:
            raise ValueError(f"{len(places)} images of defects and {self._shared.images} good; expected some of both")
        thresholds, weight = self._shared.thresholds(*PIMO_RATES)
        scores = (self._shelf.get(place).view(np.float32) for place in places)
        return [float(weight @ (1 - np.searchsorted(s, thresholds, "right") / len(s))) for s in scores]


class _Overlap:
    """The area under the mean overlap of regions, from steps in descending order of scores."""

    def __init__(self, good: int, regions: int, limits: tuple[float, ...]) -> None:
        self._good, self._regions, self._limits = good, regions, limits
        self._x = self._y = 0.0  # the current end of the curve: false-positive rate, mean overlap
        self._areas = np.zeros(len(limits))

    def add(self, step: Steps) -> None:
        x0, x1 = step.above / self._good, (step.above + step.equal) / self._good
        y1 = self._y + np.cumsum(step.weight) / self._regions
        y0 = np.concatenate([[self._y], y1[:-1]])
        x_before = np.concatenate([[self._x], x1[:-1]])
        for j, limit in enumerate(self._limits):
            flat = np.minimum(x0, limit) - np.minimum(x_before, limit)
            rise = np.minimum(x1, limit) - np.minimum(x0, limit)  # good and defect pixels of one score: a slope
            share = np.divide(rise, x1 - x0, out=np.zeros_like(rise), where=x1 > x0)
            self._areas[j] += np.sum(flat * y0 + rise * (y0 + (y1 - y0) * share / 2))
        self._x, self._y = float(x1[-1]), float(y1[-1])

    def areas(self) -> tuple[float, ...]:
        """The area up to each limit, divided by the limit."""
        pairs = zip(self._areas, self._limits, strict=True)
        return tuple(float((area + (limit - min(self._x, limit)) * self._y) / limit) for area, limit in pairs)


class _SharedRate:
    """The mean false-positive rate of images without defects, at the thresholds where it is low."""

    def __init__(self, rate: float, most: int) -> None:
        self.images = 0
        self._most, self._limit = most, rate * most
        self._score = np.empty(0, np.float32)  # the highest scores, descending
        self._share = np.empty(0)  # 1 / pixels of the image of each

    def add(self, scores: NDArray[np.float32]) -> None:
        """Add the inspected pixels (n,) of an image. Scores below which the rate is surely too high are dropped."""
        if self.images == self._most and len(scores):
            raise ValueError(f"more than the {self._most} images without defects that were stated; expected no more")
        if not len(scores):
            return
        self.images += 1
        kept = scores[scores > self._score[-1]] if self._share.sum() > self._limit else scores
        score = np.concatenate([self._score, kept])
        order = np.argsort(-score, kind="stable")
        share = np.concatenate([self._share, np.full(len(kept), 1 / len(scores))])[order]
        keep = np.cumsum(share) - share <= self._limit
        self._score, self._share = score[order][keep], share[keep]

    def thresholds(self, low: float, high: float) -> tuple[NDArray[np.float32], Floats]:
        """Scores (k,), and the share (k,) of the rates from `low` to `high` for which each is the greatest exceeded.

        At a false-positive rate x, the lowest threshold that does not exceed it is just above the highest score whose
        own rate is more than x. Shares are on a logarithmic scale of rates; their sum is 1.
        """
        last = np.append(np.flatnonzero(self._score[1:] != self._score[:-1]), len(self._score) - 1)
        rate = np.cumsum(self._share)[last] / self.images
        edges = np.log(np.clip(np.concatenate([[low], rate]), low, high))
        weight = np.diff(edges) / math.log(high / low)
        return self._score[last][weight > 0], weight[weight > 0]

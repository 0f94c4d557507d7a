"""Figures of a detector from labels and scores: pure functions on arrays.

Ties are exact: images or pixels with equal scores are on the same side of a threshold; AUROC counts a tied pair as 0.5.

References
----------
- Average precision: the step sum of scikit-learn's `average_precision_score`, without interpolation.
- Clopper and Pearson (1934), The use of confidence or fiducial limits.
- DeLong, DeLong and Clarke-Pearson (1988), Comparing the areas under two or more correlated ROC curves.
- AUPRO: Bergmann et al. (2021), The MVTec anomaly detection dataset, section 5.1.
"""

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from andon.binomial import clopper_pearson
from andon.files import Scratch

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


_RUN = 4_000_000  # pixels in a sorted run
_BLOCK = 500_000  # pixels that are merged at once
_STRIDE = 1024  # distance of samples in a run, in pixels
_NO_SIZE = np.empty(0, np.uint32)


class PixelFigures(NamedTuple):
    """Figures over pixels, each in [0, 1]."""

    auroc: float
    ap: float
    f1_max_oracle: float
    aupro: tuple[float, ...]  # one for each limit
    components: int  # number of annotated defects, by 8-connectivity


class PixelMetrics:
    """Pixel AUROC, AP, F1 and AUPRO over images that are added one by one: exact, in bounded memory.

    There are no bins. Between two defect scores only the false-positive rate changes, so all figures follow from the
    numbers of good pixels above and at each distinct defect score. The pixels are stored as sorted runs of float32. The
    runs are cut at common values into blocks of about half a million pixels, and the blocks are merged in descending
    order of scores.

    Cost: 4 bytes per good pixel and 8 bytes per defect pixel, in memory up to `memory_mb`, then in a temporary file;
    about 60 MB of working memory; each pixel is sorted twice. `figures` reads all pixels once.
    """

    def __init__(self, memory_mb: float = 512) -> None:
        self.good = 0  # number of good pixels
        self.defects: dict[str, int] = {}  # kind → number of defect pixels
        self.components: dict[str, int] = {}  # kind → number of annotated defects with an inspected pixel
        self._shelf = _Shelf(int(memory_mb * 1e6))
        self._good = _Pile(self._shelf)
        self._piles: dict[str, _Pile] = {}

    def add(self, anomaly_map: ArrayLike, mask: ArrayLike | None = None, kind: str = "defect") -> None:
        """Add one image: a map (H, W), NaN where nothing was inspected, and the mask (H, W) of its defects or None.

        Pixels that were not inspected are in no figure, even if the mask marks them.
        """
        values = np.asarray(anomaly_map, dtype=np.float32)
        inspected = ~np.isnan(values)
        if mask is not None:
            truth = np.asarray(mask, dtype=bool)
            if truth.shape != values.shape:
                raise ValueError(f"mask {truth.shape} for a map {values.shape}; expected the same shape")
            if truth.any():
                self._add_defects(values, truth, truth & inspected, kind)
                inspected &= ~truth
        good = values[inspected]
        self.good += len(good)
        self._good.add(good)

    def _add_defects(self, values: NDArray[np.float32], truth: Mask, inspected: Mask, kind: str) -> None:
        _, labels = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        component = labels[inspected]
        sizes = np.bincount(component)
        self.defects[kind] = self.defects.get(kind, 0) + len(component)
        self.components[kind] = self.components.get(kind, 0) + int(np.count_nonzero(sizes))
        self._piles.setdefault(kind, _Pile(self._shelf)).add(values[inspected], sizes[component].astype(np.uint32))

    def figures(self, kind: str | None = None, limits: tuple[float, ...] = (0.30, 0.05)) -> PixelFigures:
        """Compute the figures; with a `kind`, from its defects and the good pixels of all images.

        AUPRO is the integral over the false-positive rate from 0 to each of `limits`, divided by this limit.
        """
        kinds = [kind] if kind is not None else list(self.defects)
        total = sum(self.defects.get(k, 0) for k in kinds)
        components = sum(self.components.get(k, 0) for k in kinds)
        if not total or not self.good:
            raise ValueError(f"{total} defect and {self.good} good pixels; expected some of both")
        pairs = precision = f1 = 0.0
        hits, fpr, pro = 0, 0.0, 0.0  # the current end of the curves
        areas = np.zeros(len(limits))
        for step in self._steps([self._piles[k] for k in kinds if k in self._piles]):
            reached = hits + np.cumsum(step.defects)
            alarms = step.above + step.equal
            pairs += float(np.sum(step.defects * (self.good - step.above - step.equal / 2)))
            precision += float(np.sum(step.defects * (reached / (reached + alarms))))
            f1 = max(f1, float(np.max(2 * reached / (reached + alarms + total))))
            x0, x1 = step.above / self.good, alarms / self.good
            overlap = pro + np.cumsum(step.weight) / components
            y0 = np.concatenate([[pro], overlap[:-1]])
            x_before = np.concatenate([[fpr], x1[:-1]])
            for j, limit in enumerate(limits):
                flat = np.minimum(x0, limit) - np.minimum(x_before, limit)
                rise = np.minimum(x1, limit) - np.minimum(x0, limit)  # good and defect pixels of one score: a slope
                share = np.divide(rise, x1 - x0, out=np.zeros_like(rise), where=x1 > x0)
                areas[j] += np.sum(flat * y0 + rise * (y0 + (overlap - y0) * share / 2))
            hits, fpr, pro = int(reached[-1]), float(x1[-1]), float(overlap[-1])
        areas += [(limit - min(fpr, limit)) * pro for limit in limits]
        return PixelFigures(
            auroc=pairs / total / self.good,
            ap=precision / total,
            f1_max_oracle=f1,
            aupro=tuple(float(a / limit) for a, limit in zip(areas, limits, strict=True)),
            components=components,
        )

    def _steps(self, piles: list["_Pile"]) -> Iterator["_Steps"]:
        """Yield the steps of all curves in descending order of scores, one block of scores at a time."""
        good = [run.score for run in self._good.runs()]
        defects = [run for pile in piles for run in pile.runs()]
        samples = np.sort(np.concatenate([score[::_STRIDE] for score in [*good, *(run.score for run in defects)]]))
        # There are about _BLOCK pixels between two of these values; a value that more pixels have is one of them.
        values = np.unique(samples[:: _BLOCK // _STRIDE])
        good_at = [_edges(score, values) for score in good]
        defects_at = [_edges(run.score, values) for run in defects]
        above = 0
        for j in reversed(range(2 * len(values) + 1)):  # even: between two values; odd: exactly at one
            scores = [score[at[j] : at[j + 1]] for score, at in zip(good, good_at, strict=True)]
            slices = [(run, slice(at[j], at[j + 1])) for run, at in zip(defects, defects_at, strict=True)]
            pixels = [_Run(run.score[part], run.size[part]) for run, part in slices]
            count = sum(map(len, scores))
            if not any(len(run.score) for run in pixels):
                pass
            elif j % 2:
                weight = sum(float(np.sum(1 / run.size)) for run in pixels)
                defect = sum(len(run.score) for run in pixels)
                yield _Steps(np.array([above]), np.array([count]), np.array([defect]), np.array([weight]))
            else:
                yield _merge(scores, pixels, above)
            above += count


class _Run(NamedTuple):
    """Pixels in ascending order of their scores."""

    score: NDArray[np.float32]  # (n,)
    size: NDArray[np.uint32]  # (n,) pixels of the annotated defect each belongs to; (0,) for good pixels


class _Steps(NamedTuple):
    """Numbers of pixels at each distinct defect score, descending; all (k,)."""

    above: Ints  # good pixels above the score, in total
    equal: Ints  # good pixels with this score
    defects: Ints  # defect pixels with this score
    weight: Floats  # sum over these defect pixels of 1 / size of the annotated defect


def _merge(good: list[NDArray[np.float32]], defects: list[_Run], above: int) -> _Steps:
    """Merge slices of runs with the same range of scores; `above`: number of good pixels with higher scores."""
    score = np.concatenate([run.score for run in defects])
    order = np.argsort(score)[::-1]
    score, size = score[order], np.concatenate([run.size for run in defects])[order]
    first = np.concatenate([[0], np.flatnonzero(score[1:] != score[:-1]) + 1])
    merged = np.sort(np.concatenate(good)) if good else np.empty(0, np.float32)
    left, right = np.searchsorted(merged, score[first], "left"), np.searchsorted(merged, score[first], "right")
    return _Steps(
        above=above + len(merged) - right,
        equal=right - left,
        defects=np.diff(first, append=len(score)),
        weight=np.add.reduceat(1 / size, first),
    )


def _edges(score: NDArray[np.float32], values: NDArray[np.float32]) -> list[int]:
    """Return the positions at which a sorted run is cut: below, at, between, …, at and above the `values`."""
    cuts = np.stack([np.searchsorted(score, values, "left"), np.searchsorted(score, values, "right")], axis=1)
    return [0, *cuts.ravel().tolist(), len(score)]


class _Pile:
    """Pixels that are added in any order and stored as sorted runs."""

    def __init__(self, shelf: "_Shelf") -> None:
        self._shelf = shelf
        self._unsorted: list[tuple[NDArray[np.float32], NDArray[np.uint32]]] = []
        self._runs: list[tuple[_Place, _Place]] = []

    def add(self, score: NDArray[np.float32], size: NDArray[np.uint32] = _NO_SIZE) -> None:
        self._unsorted.append((score, size))
        if sum(len(score) for score, _ in self._unsorted) >= _RUN:
            self._sort()

    def runs(self) -> list[_Run]:
        self._sort()
        return [_Run(self._shelf.get(s).view(np.float32), self._shelf.get(z)) for s, z in self._runs]

    def _sort(self) -> None:
        if self._unsorted:
            score, size = (np.concatenate(parts) for parts in zip(*self._unsorted, strict=True))
            self._unsorted.clear()
            if len(size):
                order = np.argsort(score)
                score, size = score[order], size[order]
            else:
                score.sort()
            self._runs.append((self._shelf.put(score.view(np.uint32)), self._shelf.put(size)))


_Place = NDArray[np.uint32] | slice  # an array in memory, or its position in the file


class _Shelf:
    """Arrays in memory up to a budget of bytes, then in a temporary file."""

    def __init__(self, budget: int) -> None:
        self._free = budget
        self._file: Scratch | None = None
        self._stored = 0  # number of values in the file
        self._mapped: NDArray[np.uint32] = _NO_SIZE  # the file; one mapping, because each needs a file handle

    def put(self, values: NDArray[np.uint32]) -> _Place:
        if values.nbytes <= self._free:
            self._free -= values.nbytes
            return values
        if self._file is None:
            self._file = Scratch("the scores of pixels")
        self._file.write(values.data)
        self._stored += len(values)
        return slice(self._stored - len(values), self._stored)

    def get(self, place: _Place) -> NDArray[np.uint32]:
        if isinstance(place, slice):
            if len(self._mapped) < self._stored and self._file is not None:
                self._mapped = self._file.mapped(np.uint32, (self._stored,))
            return self._mapped[place]
        return place

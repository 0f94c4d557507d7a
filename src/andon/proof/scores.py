"""Scores of a table → gauge R&R, and the distance of each part from the thresholds, in repeatability sigmas.

Scores of different bundles have different units, so each bundle is analysed separately.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from andon.errors import DatasetError
from andon.proof import gauge
from andon.proof.gauge import Gauge
from andon.proof.table import Row, Table
from andon.proof.verdicts import rater


@dataclass(frozen=True)
class Distance:
    """Distance of the mean score of a part from each threshold, positive above it."""

    part: str
    reference: str
    presentations: int
    score: float  # mean
    sigmas: dict[str, float]  # threshold → repeatability standard deviations, infinite if that is 0

    @property
    def nearest(self) -> float:
        """Absolute distance from the nearest threshold."""
        return min(map(abs, self.sigmas.values()), default=math.inf)


@dataclass(frozen=True)
class Scale:
    """All scores of one bundle, or of all rows without a bundle."""

    bundle: str
    scores: int
    gauge: Gauge | None
    left_out: int  # parts with missing scores, left out of the gauge R&R
    sigma: float  # repeatability: pooled standard deviation within a part and a rater; NaN without repetitions
    thresholds: dict[str, float]
    distances: tuple[Distance, ...]  # nearest to a threshold first
    missing: tuple[str, ...]  # sentences: what is not shown, and why


def scales(table: Table, level: float, threshold: float | None = None) -> tuple[Scale, ...]:
    """Analyse the scores of each bundle; rows without a score are left out.

    `threshold` replaces those in the table. Errors: DatasetError for one threshold and several bundles.
    """
    groups: dict[str, list[Row]] = {}
    for row in table.rows:
        if not math.isnan(row.score):
            groups.setdefault(row.bundle, []).append(row)
    if threshold is not None and len(groups) > 1:
        raise DatasetError(
            f"{table.name}: scores of {len(groups)} bundles and one threshold; expected one bundle, because scores of "
            "different bundles have different units. Analyse each bundle separately."
        )
    return tuple(_scale(bundle, rows, level, threshold) for bundle, rows in groups.items())


def _scale(bundle: str, rows: list[Row], level: float, threshold: float | None) -> Scale:
    cells: dict[str, dict[str, list[float]]] = {}  # part → rater → scores
    for row in rows:
        cells.setdefault(row.part, {}).setdefault(rater(row), []).append(row.score)
    missing: list[str] = []
    analysis, left_out = _gauge(cells, level, missing)
    within = [np.array(scores) for raters in cells.values() for scores in raters.values() if len(scores) > 1]
    df = sum(len(scores) - 1 for scores in within)
    sigma = math.sqrt(sum(float(((s - s.mean()) ** 2).sum()) for s in within) / df) if df else math.nan
    if df and sigma <= 1e-12 * max(abs(row.score) for row in rows):
        sigma = 0.0
        missing.append(
            "repeatability: the scores of all trials of a part are equal, so these are not new presentations"
        )
    thresholds = {"threshold": threshold} if threshold is not None else _thresholds(rows, missing)
    references = {row.part: row.reference for row in rows}
    distances = []
    if thresholds and df:
        for part, by_rater in cells.items():
            scores = [score for each in by_rater.values() for score in each]
            mean = float(np.mean(scores))
            sigmas = {name: _sigmas(mean - value, sigma) for name, value in thresholds.items()}
            distances.append(Distance(part, references[part], len(scores), mean, sigmas))
    ordered = tuple(sorted(distances, key=lambda distance: distance.nearest))
    return Scale(bundle, len(rows), analysis, left_out, sigma, thresholds, ordered, tuple(missing))


def _gauge(cells: dict[str, dict[str, list[float]]], level: float, missing: list[str]) -> tuple[Gauge | None, int]:
    """Analyse the parts with the most common number of scores from every rater; count the others."""
    names = list(dict.fromkeys(name for raters in cells.values() for name in raters))
    sizes = Counter(len(scores) for raters in cells.values() for scores in raters.values() if len(scores) > 1)
    if not sizes:
        missing.append("gauge R&R: no part has two scores from one appraiser in one condition")
        return None, len(cells)
    trials = max(sizes, key=lambda size: (sizes[size], size))
    full = [r for r in cells.values() if all(len(r.get(name, ())) == trials for name in names)]
    if len(full) < 2:
        missing.append(
            f"gauge R&R: {len(full)} parts have {trials} scores from each of {len(names)} raters; 2 are needed"
        )
        return None, len(cells) - len(full)
    scores = np.array([[raters[name] for name in names] for raters in full])
    return gauge.analyse(scores, level), len(cells) - len(full)


def _thresholds(rows: list[Row], missing: list[str]) -> dict[str, float]:
    """The thresholds that are equal in all rows."""
    thresholds = {}
    for name in ("review", "reject"):
        values = {getattr(row, f"{name}_threshold") for row in rows}
        values = {value for value in values if not math.isnan(value)}
        if len(values) > 1:
            missing.append(f"distances from the {name} threshold: the table has {len(values)} different ones")
        elif values and math.isfinite(min(values)):
            thresholds[name] = values.pop()
    if not thresholds:
        missing.append("distances from a threshold: no threshold is known; set --threshold, or use records of andon")
    return thresholds


def _sigmas(difference: float, sigma: float) -> float:
    if sigma:
        return difference / sigma
    return math.copysign(math.inf, difference) if difference else 0.0

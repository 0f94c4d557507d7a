"""Counts of verdicts: rates per presentation and per part, Cohen's and Fleiss' kappa, each with an interval.

Parts are independent; the presentations of one part may depend on each other. There are two kinds of intervals.

Of these parts: Clopper and Pearson over presentations. The presentations must be independent given the part; their
rates may differ (Hoeffding, "On the distribution of the number of successes in independent trials",
1956).

Of parts like these: the bound of Gaffke ("Three test statistics for a nonparametric one-sided hypothesis on the mean of
a nonnegative variable", 2005) for means of values in [0, 1]: random Dirichlet weights over the parts and one
additional part with the worst possible value. It equals Clopper and Pearson's if each part is always or never wrong. In
general its coverage is a conjecture, checked by simulation (`tests/test_agreement.py`). Kappas use the same weights,
and the additional part that changes kappa most.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon.binomial import clopper_pearson
from andon.proof import bounds

DRAWS = 40_000  # vectors of weights; fewer, but at least DRAWS / 20, if they have more than VALUES values
VALUES = 8_000_000
SEED = 0
Counts = NDArray[np.int64]
Draws = NDArray[np.float64]
Interval = tuple[float, float]


class Share(NamedTuple):
    """Cases among independent units."""

    cases: int
    n: int
    interval: Interval | None  # Clopper and Pearson; None without units

    @property
    def value(self) -> float | None:
        """The rate; None without units."""
        return self.cases / self.n if self.n else None


@dataclass(frozen=True)
class Rate:
    """How often verdicts are wrong (or right), per presentation and per part."""

    presentations: Share  # cases among all presentations; the interval is of these parts
    interval: Interval | None  # of the mean over parts like these
    parts: Share  # wrong: parts with a wrong presentation; right: parts with none
    upper: float  # one-sided bound of these parts, over presentations; 1 without any
    upper_like: float  # one-sided bound of parts like these
    lower: float
    lower_like: float


@dataclass(frozen=True)
class Kappa:
    """Agreement beyond chance."""

    value: float | None  # None if all verdicts are equal: kappa is 0 / 0
    interval: Interval | None
    lower: float  # one-sided bound; −1 if there is none
    observed: float  # share of agreeing pairs
    expected: float  # by chance
    parts: int


def share(cases: int, n: int, level: float) -> Share:
    """Cases among independent units, with the exact interval."""
    return Share(cases, n, clopper_pearson(cases, n, level) if n else None)


def rate(cases: Counts, presentations: Counts, level: float, wrong: bool = True) -> Rate:
    """Rate of cases (parts,) among presentations (parts,), each at least 1; a part counts if any presentation
    is a case (`wrong`), or if all are.
    """
    k, n, parts = int(cases.sum()), int(presentations.sum()), len(cases)
    counted = cases > 0 if wrong else cases == presentations
    means = cases / presentations
    tail = (1 - level) / 2
    return Rate(
        share(k, n, level),
        (1 - _mean_bound(1 - means, tail), _mean_bound(means, tail)) if parts else None,
        share(int(counted.sum()), parts, level),
        upper=bounds.upper_rate(k, n, level),
        upper_like=_mean_bound(means, 1 - level),
        lower=bounds.lower_rate(k, n, level),
        lower_like=1 - _mean_bound(1 - means, 1 - level),
    )


def cohen(cells: Counts, level: float = 0.95) -> Kappa:
    """Cohen's kappa from pairs of verdicts per part (parts, 4): both pass, only b stops, only a stops, both stop.

    κ = (p_o − p_e) / (1 − p_e), with p_e = Σ_c p_a,c p_b,c: Cohen, "A coefficient of agreement for nominal scales",
    1960.
    """
    cells = cells[cells.sum(axis=1) > 0]
    extreme = np.eye(4, dtype=np.int64) * int(cells.sum(axis=1).max(initial=1))
    return _kappa(cells, extreme, _cohen, level)


def fleiss(counts: Counts, level: float = 0.95) -> Kappa:
    """Fleiss' kappa from how many verdicts of each category a part got (parts, categories).

    κ = (p_o − p_e) / (1 − p_e), with p_o = mean over parts of (Σ_c n_ic² − m) / (m (m − 1)) and p_e = Σ_c p_c²: Fleiss,
    "Measuring nominal scale agreement among many raters", 1971. The number m of verdicts may differ between parts. A
    part with one verdict is left out.
    """
    counts = counts[counts.sum(axis=1) > 1]
    categories, m = counts.shape[1], int(counts.sum(axis=1).max(initial=2))
    split = (m + np.arange(categories)) // categories  # m verdicts, as evenly as possible
    return _kappa(counts, np.vstack([m * np.eye(categories, dtype=np.int64), split]), _fleiss, level)


def _mean_bound(values: NDArray[np.float64], tail: float) -> float:
    """Upper bound of the mean of values (n,) in [0, 1] at one tail; 1 without values."""
    n = len(values)
    different, counts = np.unique(values, return_counts=True)
    if np.isin(different, (0.0, 1.0)).all():
        return bounds.upper_rate(int(values.sum()), n, 1 - tail)
    weights = _weights(np.append(counts, 1))
    return float(np.quantile(weights @ np.append(different, 1.0), 1 - tail))


def _weights(counts: Counts) -> Draws:
    """Dirichlet weights (draws, kinds) of all parts, summed over the parts of each kind."""
    draws = max(DRAWS // 20, min(DRAWS, VALUES // len(counts)))
    drawn = np.random.default_rng(SEED).standard_gamma(counts.astype(np.float64), size=(draws, len(counts)))
    return np.asarray(drawn / drawn.sum(axis=1, keepdims=True))


class _Agreement(NamedTuple):
    kappa: Draws
    observed: Draws
    expected: Draws


def _kappa(counts: Counts, extreme: Counts, formula: Callable[[Counts, Draws], _Agreement], level: float) -> Kappa:
    parts = len(counts)
    if not parts:
        return Kappa(None, None, -1.0, math.nan, math.nan, 0)
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    seen = formula(kinds, times[None].astype(np.float64))
    value, observed, expected = (float(each[0]) for each in seen)
    if math.isnan(value):
        return Kappa(None, None, -1.0, observed, expected, parts)
    weights = _weights(np.append(times, 1))
    drawn = np.stack([formula(np.vstack([kinds, part]), weights).kappa for part in extreme])
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    tail = (1 - level) / 2
    interval = (float(np.quantile(low, tail)), float(np.quantile(high, 1 - tail)))
    return Kappa(value, interval, float(np.quantile(low, 1 - level)), observed, expected, parts)


def _cohen(kinds: Counts, weights: Draws) -> _Agreement:
    """Kinds of parts (k, 4) under weights (draws, k)."""
    cells = weights @ kinds
    cells = cells / cells.sum(axis=1, keepdims=True)
    a, b = cells[:, 2] + cells[:, 3], cells[:, 1] + cells[:, 3]
    return _beyond_chance(cells[:, 0] + cells[:, 3], a * b + (1 - a) * (1 - b))


def _fleiss(kinds: Counts, weights: Draws) -> _Agreement:
    """Kinds of parts (k, categories) under weights (draws, k)."""
    m = kinds.sum(axis=1)
    alike = (kinds * (kinds - 1)).sum(axis=1) / (m * (m - 1))
    of_category = weights @ kinds
    of_category = of_category / of_category.sum(axis=1, keepdims=True)
    return _beyond_chance((weights @ alike) / weights.sum(axis=1), (of_category**2).sum(axis=1))


def _beyond_chance(observed: Draws, expected: Draws) -> _Agreement:
    by_chance = 1 - expected
    possible = by_chance > 1e-12
    kappa = np.where(possible, (observed - expected) / np.where(possible, by_chance, 1), np.nan)
    return _Agreement(kappa, observed, expected)

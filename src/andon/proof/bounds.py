"""One-sided exact bounds: of a rate (binomial), and of a number of cases in a finite lot (hypergeometric).

The two-sided interval at confidence C has the one-sided bounds at (1 + C) / 2.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from andon.binomial import rate_with_tail

ROUNDING = 1e-9  # relative; a probability this close to the limit counts as allowed, which widens the bound


def upper_rate(k: int, n: int, confidence: float) -> float:
    """Upper bound of the rate from `k` cases in `n` independent trials, by Clopper and Pearson; 1 without trials."""
    return 1.0 if k == n else rate_with_tail(k, n, 1 - confidence)


def lower_rate(k: int, n: int, confidence: float) -> float:
    """Lower bound of the rate from `k` cases in `n` independent trials, by Clopper and Pearson; 0 without trials."""
    return 1 - upper_rate(n - k, n, confidence) if k else 0.0


def chance(k: int, n: int, rates: ArrayLike) -> NDArray[np.float64]:
    """P(X ≤ k) for X ~ Binomial(n, rate), k < n, for rates (m,) between 0 and 1: (m,)."""
    i = np.arange(k + 1)
    coefficients = np.concatenate([[0.0], np.cumsum(np.log((n - i[:-1]) / (i[:-1] + 1)))])
    p = np.atleast_1d(np.asarray(rates, np.float64))[:, None]
    terms = np.exp(coefficients + i * np.log(p) + (n - i) * np.log1p(-p))
    return np.asarray(np.minimum(terms.sum(axis=1), 1.0))


def smallest_sample(k: int, rate: float, confidence: float) -> int:
    """Fewest trials for which `k` cases prove that the rate is at most `rate`: `upper_rate` ≤ `rate`, 0 < rate < 1."""
    low, high = k, k + 1  # low is too few, high is enough
    while chance(k, high, rate)[0] > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if chance(k, middle, rate)[0] > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def allowed(n: int, rate: float, confidence: float) -> int:
    """Most cases in `n` trials that still prove that the rate is at most `rate`, 0 < rate < 1; −1: none."""
    low, high = -1, n  # low proves it, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if chance(middle, n, rate)[0] > 1 - confidence:
            high = middle
        else:
            low = middle
    return low


def upper_count(k: int, n: int, lot: int, confidence: float) -> int:
    """Upper bound of the cases in a lot, from `k` cases in `n` members drawn without replacement."""
    low, high = k, lot - (n - k)  # low is allowed
    while low < high:
        middle = (low + high + 1) // 2
        if _chance_in_lot(k, n, middle, lot) > (1 - confidence) * (1 - ROUNDING):
            low = middle
        else:
            high = middle - 1
    return low


def lower_count(k: int, n: int, lot: int, confidence: float) -> int:
    """Lower bound of the cases in a lot, from `k` cases in `n` members drawn without replacement."""
    return lot - upper_count(n - k, n, lot, confidence)


def _chance_in_lot(k: int, n: int, cases: int, lot: int) -> float:
    """P(X ≤ k) for X, the number of cases among `n` members drawn from a lot with `cases` cases."""
    first, last = max(0, n - (lot - cases)), min(k, n, cases)
    if last < first:
        return 0.0
    i = np.arange(first, last)
    ratios = np.log((cases - i) * (n - i)) - np.log((i + 1.0) * (lot - cases - n + i + 1))
    start = _log_choose(cases, first) + _log_choose(lot - cases, n - first) - _log_choose(lot, n)
    return float(np.exp(start + np.concatenate([[0.0], np.cumsum(ratios)])).sum())


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

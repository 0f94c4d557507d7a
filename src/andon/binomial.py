"""Exact intervals of a rate: Clopper and Pearson's, and the long-run rate of one calibrated threshold."""

import math

import numpy as np


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of a rate of which `k` cases in `n` were seen; without cases, (0, 1)."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} cases in {n}; expected 0 ≤ k ≤ n")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else 1 - rate_with_tail(n - k, n, tail)
    return low, 1.0 if k == n else rate_with_tail(k, n, tail)


def rate_with_tail(k: int, n: int, tail: float) -> float:
    """The rate p at which P(X ≤ k) = `tail` for X ~ Binomial(n, p), k < n, by bisection."""
    i = np.arange(k + 1)
    # log of the binomial coefficients C(n, i), from C(n, i + 1) = C(n, i) (n - i) / (i + 1)
    coefficients = np.concatenate([[0.0], np.cumsum(np.log((n - i[:-1]) / (i[:-1] + 1)))])
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        logs = coefficients + i * math.log(middle) + (n - i) * math.log1p(-middle)
        top = float(logs.max())
        if top + math.log(np.exp(logs - top).sum()) > math.log(tail):
            low = middle
        else:
            high = middle
    return middle


def long_run(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the rate at which new values exceed the k-th largest of n earlier ones, 1 ≤ k ≤ n.

    Over all draws of n values from one continuous distribution that rate follows Beta(k, n + 1 − k), with mean
    k / (n + 1): Vovk, "Conditional validity of inductive conformal predictors", ACML 2012.
    """
    if not 1 <= k <= n:
        raise ValueError(f"the {k}-th largest of {n} values; expected 1 ≤ k ≤ n")
    tail = (1 - level) / 2
    # Beta(k, n + 1 − k) lies below p with the probability that a binomial of n cases at rate p reaches k.
    return rate_with_tail(k - 1, n, 1 - tail), rate_with_tail(k - 1, n, tail)

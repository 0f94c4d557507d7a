"""Exact intervals of rates: Clopper-Pearson, and the long-run rate of one calibrated threshold."""

import math

import numpy as np

MANY = 10_000
"""Terms of a sum; above it, the other tail is summed where it has fewer."""


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval (low, high) of a rate with `k` events in `n` trials; (0, 1) for n = 0."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} events in {n} trials; expected 0 ≤ k ≤ n")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else 1 - rate_with_tail(n - k, n, tail)
    return low, 1.0 if k == n else rate_with_tail(k, n, tail)


def rate_with_tail(k: int, n: int, tail: float) -> float:
    """The rate p at which P(X ≤ k) = `tail` for X ~ Binomial(n, p), k < n, by bisection."""
    if k > MANY and 2 * k > n:
        return 1 - rate_with_tail(n - k - 1, n, 1 - tail)  # n − X ~ Binomial(n, 1 − p)
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
    """Interval (low, high) of the rate at which new values exceed the k-th largest of n earlier values, 1 ≤ k ≤ n.

    For n values drawn from a continuous distribution, this rate follows Beta(k, n + 1 − k) with mean k / (n + 1):
    Vovk, "Conditional validity of inductive conformal predictors", ACML 2012.
    """
    if not 1 <= k <= n:
        raise ValueError(f"the {k}-th largest of {n} values; expected 1 ≤ k ≤ n")
    tail = (1 - level) / 2
    # P(Beta(k, n + 1 − k) ≤ p) = P(Binomial(n, p) ≥ k)
    return rate_with_tail(k - 1, n, 1 - tail), rate_with_tail(k - 1, n, tail)

"""χ² and F: distribution functions from incomplete gamma and beta functions, quantiles by bisection.

Series and continued fractions: Press et al., "Numerical Recipes", third edition, 2007, sections 6.2 and 6.4.
"""

import math
from collections.abc import Callable

STEPS = 100_000  # limit; a series needs about the square root of the degrees of freedom
TINY = 1e-300


def chi2_cdf(x: float, df: float) -> float:
    """P(X ≤ x) for X ~ χ² with `df` degrees of freedom."""
    a, z = df / 2, x / 2
    if z <= 0:
        return 0.0
    scale = math.exp(a * math.log(z) - z - math.lgamma(a))
    if z < a + 1:  # series
        term = total = 1 / a
        for n in range(1, STEPS):
            term *= z / (a + n)
            total += term
            if term < total * 1e-16:
                break
        return scale * total
    return 1 - scale * _fraction(z + 1 - a, lambda n: (n * (a - n), z + 1 - a + 2 * n))


def f_cdf(x: float, df1: float, df2: float) -> float:
    """P(X ≤ x) for X ~ F with `df1` and `df2` degrees of freedom."""
    if x <= 0:
        return 0.0
    a, b = df1 / 2, df2 / 2
    share, rest = df1 * x / (df1 * x + df2), df2 / (df1 * x + df2)
    scale = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(share or TINY) + b * math.log(rest or TINY)
    )
    if share < (a + 1) / (a + b + 2):
        return scale * _beta_fraction(share, a, b) / a
    return 1 - scale * _beta_fraction(rest, b, a) / b


def chi2_quantile(p: float, df: float) -> float:
    """The x with P(X ≤ x) = p for X ~ χ², 0 < p < 1."""
    return _quantile(lambda x: chi2_cdf(x, df), p)


def f_quantile(p: float, df1: float, df2: float) -> float:
    """The x with P(X ≤ x) = p for X ~ F, 0 < p < 1."""
    return _quantile(lambda x: f_cdf(x, df1, df2), p)


def _beta_fraction(x: float, a: float, b: float) -> float:
    def term(n: int) -> tuple[float, float]:
        m = n // 2
        if n % 2:
            return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)), 1.0
        return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), 1.0

    return _fraction(1.0, term)


def _fraction(first: float, term: Callable[[int], tuple[float, float]]) -> float:
    """1 / (first + a₁ / (b₁ + a₂ / (b₂ + …))) with (aₙ, bₙ) = term(n), by Lentz's method."""
    value = c = first or TINY
    d = 0.0
    for n in range(1, STEPS):
        above, below = term(n)
        d = 1 / ((below + above * d) or TINY)
        c = (below + above / c) or TINY
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return 1 / value


def _quantile(cdf: Callable[[float], float], p: float) -> float:
    low, high = 0.0, 1.0
    while cdf(high) < p:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high) and high - low > 1e-14 * high:
        low, high = (middle, high) if cdf(middle) < p else (low, middle)
    return middle

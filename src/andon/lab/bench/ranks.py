"""Significant differences of detectors over several products: Friedman's test and Nemenyi's critical difference.

Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006, sections 3.2.2 and 3.2.4. Its
approximation of Friedman's distribution is poor for few data sets, so here the p-value comes from permuting the
detectors' figures within each product, seeded.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

PERMUTATIONS = 9999
FEWEST = (3, 5)  # detectors and products; with fewer, ranks show no significant difference

# q at 0.05 for 2, 3, … detectors: the studentized range at infinite degrees of freedom over √2 (Demšar, table 5a).
_Q = [1.960, 2.344, 2.569, 2.728, 2.850, 2.948, 3.031, 3.102, 3.164, 3.219, 3.268, 3.313, 3.354, 3.391, 3.426, 3.458]


class Ranking(NamedTuple):
    """Detectors from the best mean rank to the worst."""

    names: tuple[str, ...]
    mean_ranks: tuple[float, ...]  # 1 is best
    products: int
    p_value: float  # of the hypothesis that all detectors are equal
    critical_difference: float  # of two mean ranks, at 0.05
    groups: tuple[tuple[int, int], ...]  # first and last detector of each group without significant differences


def rank(names: Sequence[str], figures: ArrayLike) -> Ranking | str:
    """Rank detectors by figures (products, detectors), higher is better; or return why there are too few."""
    values = np.asarray(figures, dtype=np.float64)
    n, k = values.shape if values.size else (0, len(names))
    if k < FEWEST[0] or n < FEWEST[1] or k > len(_Q) + 1:
        return (
            f"No critical-difference diagram: {k} detectors on {n} products with results of all detectors; "
            f"{FEWEST[0]} to {len(_Q) + 1} detectors on at least {FEWEST[1]} products are needed."
        )
    ranks = np.stack([_ranks(row) for row in values])
    means = ranks.mean(axis=0)
    order = np.argsort(means, kind="stable")
    difference = _Q[k - 2] * math.sqrt(k * (k + 1) / (6 * n))
    means = means[order]
    return Ranking(
        tuple(names[j] for j in order),
        tuple(means.tolist()),
        n,
        _friedman(ranks),
        difference,
        _groups(means, difference),
    )


def _ranks(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1 for the highest; ties get the mean of their ranks."""
    above, same = (row[None] > row[:, None]).sum(axis=1), (row[None] == row[:, None]).sum(axis=1)
    return np.asarray(above + (same + 1) / 2)


def _friedman(ranks: NDArray[np.float64]) -> float:
    """Share of permutations within products whose mean ranks (k,) have at least this variance; includes the data."""
    rng, spread = np.random.default_rng(0), float(ranks.mean(axis=0).var())
    several = np.broadcast_to(ranks, (PERMUTATIONS, *ranks.shape))
    permuted = rng.permuted(several, axis=2).mean(axis=1).var(axis=1)
    return float((1 + np.count_nonzero(permuted >= spread - 1e-12)) / (1 + PERMUTATIONS))


def _groups(means: NDArray[np.float64], difference: float) -> tuple[tuple[int, int], ...]:
    """The longest runs of two or more detectors within one critical difference."""
    groups: list[tuple[int, int]] = []
    for first, mean in enumerate(means):
        last = int(np.flatnonzero(means - mean <= difference)[-1])
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return tuple(groups)

"""Which detectors differ over several products by more than chance: Friedman's test and Nemenyi's critical difference.

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
FEWEST = (3, 5)  # detectors and products; with fewer, ranks cannot tell a difference from chance

# q at 0.05 for 2, 3, … detectors: the studentized range at infinite degrees of freedom over √2 (Demšar, table 5a).
_Q = [1.960, 2.344, 2.569, 2.728, 2.850, 2.948, 3.031, 3.102, 3.164, 3.219, 3.268, 3.313, 3.354, 3.391, 3.426, 3.458]


class Ranking(NamedTuple):
    """Detectors from the best mean rank to the worst."""

    names: tuple[str, ...]
    mean_ranks: tuple[float, ...]  # 1 is best
    products: int
    p_value: float  # of the hypothesis that all are equal
    critical_difference: float  # of two mean ranks, at 0.05
    groups: tuple[tuple[int, int], ...]  # first and last of a run of detectors that do not differ significantly


def rank(names: Sequence[str], figures: ArrayLike) -> Ranking | str:
    """Rank detectors by figures (products, detectors), higher being better; or say why that would tell nothing."""
    values = np.asarray(figures, dtype=np.float64)
    n, k = values.shape if values.size else (0, len(names))
    if k < FEWEST[0] or n < FEWEST[1] or k > len(_Q) + 1:
        return (
            f"No critical-difference diagram: {k} detectors on {n} products that all of them finished; "
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
    """Ranks from 1 for the highest; ties share the mean of their ranks."""
    above, same = (row[None] > row[:, None]).sum(axis=1), (row[None] == row[:, None]).sum(axis=1)
    return np.asarray(above + (same + 1) / 2)


def _friedman(ranks: NDArray[np.float64]) -> float:
    """Share of permutations within products whose mean ranks (k,) spread at least as far, the given one included."""
    rng, spread = np.random.default_rng(0), float(ranks.mean(axis=0).var())
    several = np.broadcast_to(ranks, (PERMUTATIONS, *ranks.shape))
    permuted = rng.permuted(several, axis=2).mean(axis=1).var(axis=1)
    return float((1 + np.count_nonzero(permuted >= spread - 1e-12)) / (1 + PERMUTATIONS))


def _groups(means: NDArray[np.float64], difference: float) -> tuple[tuple[int, int], ...]:
    """The longest runs of two or more within one critical difference."""
    found: list[tuple[int, int]] = []
    for first, mean in enumerate(means):
        last = int(np.flatnonzero(means - mean <= difference)[-1])
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return tuple(found)

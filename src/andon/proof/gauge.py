"""Gauge R&R of the score by analysis of variance: repeatability, reproducibility, %GRR, distinct categories.

Several raters: two-way random effects, parts × raters × trials. In the estimates, the interaction is pooled with the
repeatability if it is not significant (p > 0.25). One rater: one-way random effects, parts × trials. AIAG,
"Measurement Systems Analysis", fourth edition, 2010, chapter III and appendix A.

Intervals do not pool. The interval of the repeatability is exact (χ²). That of %GRR is exact with one rater (F), and
a generalized confidence interval with several: Burdick, Borror and Montgomery, "Design and Analysis of Gauge R&R
Studies", SIAM 2005. All assume normal scores with the same variance for all parts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from andon.proof import distributions

POOLED = 0.25  # an interaction with a higher p-value is pooled with the repeatability, as AIAG recommends
CATEGORIES = math.sqrt(2)  # ndc = √2 σ_part / σ_GRR, 1.41 in AIAG
DRAWS = 100_000  # of a generalized confidence interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class Effect:
    """One row of the analysis of variance."""

    name: str
    df: int
    squares: float
    f: float | None  # None: not tested
    p_value: float | None

    @property
    def mean(self) -> float:
        """The mean square."""
        return self.squares / self.df


@dataclass(frozen=True)
class Gauge:
    """Standard deviations in the units of the score, with intervals at `level`."""

    parts: int
    raters: int
    trials: int
    level: float
    effects: tuple[Effect, ...]
    pooled: bool  # whether the interaction was pooled with the repeatability
    repeatability: float
    repeatability_interval: Interval
    reproducibility: float  # of raters and of their interaction with parts; 0 with one rater
    part: float
    grr: float  # √(repeatability² + reproducibility²)
    total: float
    share: float  # %GRR as a rate: grr / total; NaN if all scores are equal
    share_interval: Interval
    categories: float  # ndc before rounding down; infinite if only the parts vary

    @property
    def ndc(self) -> int | None:
        """Number of distinct categories, at least 1 as in AIAG; None if it is infinite or undefined."""
        return max(1, math.floor(self.categories)) if math.isfinite(self.categories) else None

    @property
    def ndc_interval(self) -> tuple[float, float]:
        """Interval of the number of categories before rounding down."""
        low, high = (_categories(share) for share in self.share_interval)
        return high, low


def analyse(scores: NDArray[np.float64], level: float = 0.95) -> Gauge:
    """Analyse finite scores (parts, raters, trials): at least two parts and two trials."""
    p, o, r = scores.shape
    centred = scores - scores.mean()
    part, rater, cell = centred.mean(axis=(1, 2)), centred.mean(axis=(0, 2)), centred.mean(axis=2)
    squares = {
        "parts": o * r * float((part**2).sum()),
        "raters": p * r * float((rater**2).sum()),
        "parts × raters": r * float(((cell - part[:, None] - rater) ** 2).sum()),
        "repeatability": float(((centred - cell[:, :, None]) ** 2).sum()),
    }
    df = {"parts": p - 1, "raters": o - 1, "parts × raters": (p - 1) * (o - 1), "repeatability": p * o * (r - 1)}
    rounding = (1e-13 * float(np.abs(scores).max())) ** 2 * scores.size  # a smaller sum of squares is rounding error
    squares = {name: value if value > rounding else 0.0 for name, value in squares.items()}
    mean = {name: squares[name] / df[name] for name in df if df[name]}
    pooled, within = False, "repeatability"
    unpooled = [Effect(name, df[name], squares[name], None, None) for name in squares if df[name]]
    if o > 1:
        _, p_value = _test(mean, df, "parts × raters", "repeatability")
        pooled = p_value is not None and p_value > POOLED
        within = "repeatability" if pooled else "parts × raters"
    if pooled:
        df["repeatability"] += df["parts × raters"]
        squares["repeatability"] += squares["parts × raters"]
        mean["repeatability"] = squares["repeatability"] / df["repeatability"]
    effects = []
    for name in squares:
        if not df[name] or (pooled and name == "parts × raters"):
            continue
        against = {"repeatability": "", "parts × raters": "repeatability"}.get(name, within)
        f, p_value = _test(mean, df, name, against) if against else (None, None)
        effects.append(Effect(name, df[name], squares[name], f, p_value))
    used = {effect.name: effect.mean for effect in effects}
    variance = {name: float(value) for name, value in _variances(used, p, o, r, pooled).items()}
    grr, total = variance["repeatability"] + variance["reproducibility"], sum(variance.values())
    share = math.sqrt(grr / total) if total else math.nan
    tail = (1 - level) / 2
    error = unpooled[-1]
    limits = [math.sqrt(error.squares / distributions.chi2_quantile(q, error.df)) for q in (1 - tail, tail)]
    return Gauge(
        *(p, o, r, level, tuple(effects), pooled),
        repeatability=math.sqrt(variance["repeatability"]),
        repeatability_interval=(limits[0], limits[1]),
        reproducibility=math.sqrt(variance["reproducibility"]),
        part=math.sqrt(variance["part"]),
        grr=math.sqrt(grr),
        total=math.sqrt(total),
        share=share,
        share_interval=_exact(unpooled, r, tail) if o == 1 else _generalized(unpooled, (p, o, r), tail),
        categories=_categories(share),
    )


def _test(mean: dict[str, float], df: dict[str, int], name: str, against: str) -> tuple[float | None, float | None]:
    if not mean[against]:
        return None, None
    f = mean[name] / mean[against]
    return f, 1 - distributions.f_cdf(f, df[name], df[against])


def _categories(share: float) -> float:
    """√2 σ_part / σ_GRR, from the share σ_GRR / σ_total."""
    return CATEGORIES * math.sqrt(max(0.0, 1 - share**2)) / share if share else math.inf


def _variances(mean: Mapping[str, Any], p: int, o: int, r: int, pooled: bool) -> dict[str, Any]:
    """Components of variance from expected mean squares, numbers or arrays; negative ones become 0."""
    error = mean["repeatability"]
    within = error if pooled or o == 1 else mean["parts × raters"]
    zero = 0 * error
    rater = np.maximum((mean["raters"] - within) / (p * r), 0) if o > 1 else zero
    return {
        "repeatability": error,
        "reproducibility": rater + np.maximum((within - error) / r, 0),
        "part": np.maximum((mean["parts"] - within) / (o * r), 0),
    }


def _exact(effects: list[Effect], r: int, tail: float) -> Interval:
    """Interval of grr / total with one rater, by the F distribution of the ratio of mean squares."""
    parts, error = effects
    if not error.squares:
        return (0.0, 0.0) if parts.squares else (0.0, 1.0)
    f = parts.mean / error.mean
    quantiles = (distributions.f_quantile(q, parts.df, error.df) for q in (tail, 1 - tail))
    ratios = [max(0.0, (f / quantile - 1) / r) for quantile in quantiles]  # σ²_part / σ²_repeatability, high and low
    return 1 / math.sqrt(1 + ratios[0]), 1 / math.sqrt(1 + ratios[1])


def _generalized(effects: list[Effect], shape: tuple[int, int, int], tail: float) -> Interval:
    """Interval of grr / total with several raters: quantiles over mean squares drawn given those observed."""
    generator = np.random.default_rng(0)
    drawn = {effect.name: effect.squares / generator.chisquare(effect.df, DRAWS) for effect in effects}
    variance = _variances(drawn, *shape, pooled=False)
    grr = variance["repeatability"] + variance["reproducibility"]
    total = grr + variance["part"]
    if not total.any():
        return 0.0, 1.0
    low, high = np.quantile(np.sqrt(grr / np.where(total > 0, total, 1)), [tail, 1 - tail])
    return float(low), float(high)

"""Gauge R&R against statsmodels' analysis of variance and AIAG's example; quantiles against SciPy; coverage."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import stats
from statsmodels.formula.api import ols

from andon.proof import distributions, gauge

AIAG = """
 0.29 -0.56 1.34 0.47 -0.80  0.02 0.59 -0.31 2.26 -1.36    0.41 -0.68 1.17 0.50 -0.92 -0.11 0.75 -0.20 1.99 -1.25
 0.64 -0.58 1.27 0.64 -0.84 -0.21 0.66 -0.17 2.01 -1.31    0.08 -0.47 1.19 0.01 -0.56 -0.20 0.47 -0.63 1.80 -1.68
 0.25 -1.22 0.94 1.03 -1.20  0.22 0.55  0.08 2.12 -1.62    0.07 -0.68 1.34 0.20 -1.28  0.06 0.83 -0.34 2.19 -1.50
 0.04 -1.38 0.88 0.14 -1.46 -0.29 0.02 -0.46 1.77 -1.49   -0.11 -1.13 1.09 0.20 -1.07 -0.67 0.01 -0.56 1.45 -1.77
-0.15 -0.96 0.67 0.11 -1.45 -0.49 0.21 -0.49 1.87 -2.16
"""  # three appraisers × three trials × ten parts


def test_the_example_of_aiag() -> None:
    """AIAG, "Measurement Systems Analysis", the example of chapter III by ANOVA, as software vendors reprint it."""
    scores = np.array(AIAG.split(), float).reshape(3, 3, 10).transpose(2, 0, 1)
    found = gauge.analyse(scores)
    squares = {effect.name: effect.squares for effect in found.effects}
    assert squares == pytest.approx({"parts": 88.3619, "raters": 3.1673, "repeatability": 3.1179}, abs=1e-4)
    assert found.pooled  # the interaction is far from significant
    names = ("repeatability", "reproducibility", "grr", "part")
    assert [getattr(found, name) for name in names] == pytest.approx([0.199933, 0.226838, 0.302373, 1.042327], abs=5e-6)
    assert 100 * found.share == pytest.approx(27.86, abs=0.005)
    assert found.ndc == 4


def drawn(
    shape: tuple[int, int, int], sigmas: tuple[float, ...], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Scores with the standard deviations of parts, raters, their interaction, and repeatability."""
    p, o, r = shape
    shapes = ((p, 1, 1), (1, o, 1), (p, o, 1), (p, o, r))
    return sum((s * generator.standard_normal(each) for s, each in zip(sigmas, shapes, strict=True)), np.zeros(shape))


@pytest.mark.parametrize("shape", [(10, 3, 3), (5, 2, 2), (2, 2, 2), (20, 1, 4)])
@pytest.mark.parametrize("interaction", [0.0, 2.0])
def test_the_table_of_variance_is_that_of_statsmodels(shape: tuple[int, int, int], interaction: float) -> None:
    scores = 100 + drawn(shape, (1, 0.5, interaction, 0.3), np.random.default_rng(1))
    p, o, _ = np.indices(shape).reshape(3, -1)
    found = gauge.analyse(scores)
    terms = "C(p)" if shape[1] == 1 else "C(p) + C(o)" if found.pooled else "C(p) + C(o) + C(p):C(o)"
    table = sm.stats.anova_lm(ols(f"y ~ {terms}", pd.DataFrame({"y": scores.ravel(), "p": p, "o": o})).fit())
    assert [effect.squares for effect in found.effects] == pytest.approx(table["sum_sq"].tolist(), rel=1e-6)
    assert [effect.df for effect in found.effects] == table["df"].tolist()
    ours = {effect.name: effect for effect in found.effects}
    if found.pooled or shape[1] == 1:  # else raters and parts are held against the interaction
        assert ours["parts"].f == pytest.approx(table.loc["C(p)", "F"], rel=1e-6)
        assert ours["parts"].p_value == pytest.approx(table.loc["C(p)", "PR(>F)"], abs=1e-9)
    else:
        assert ours["parts × raters"].p_value == pytest.approx(table.loc["C(p):C(o)", "PR(>F)"], abs=1e-9)


def test_scores_of_a_large_offset_keep_their_figures() -> None:
    scores = drawn((10, 2, 3), (1, 0.2, 0, 0.3), np.random.default_rng(0))
    assert gauge.analyse(scores + 1e6).share == pytest.approx(gauge.analyse(scores).share, rel=1e-6)


def test_scores_that_are_all_alike_and_trials_that_are_all_alike() -> None:
    nothing = gauge.analyse(np.full((4, 2, 3), 0.1))
    assert math.isnan(nothing.share) and nothing.ndc is None and nothing.share_interval == (0, 1)
    for raters in (1, 2):
        same = gauge.analyse(np.repeat(np.arange(5.0)[:, None], 3 * raters, axis=1).reshape(5, raters, 3))
        assert (same.repeatability, same.share, same.ndc) == (0, 0, None)
        assert same.share_interval == (0, 0)
    noise = gauge.analyse(np.array([[[0.0, 1.0]], [[1.0, 0.0]]]))  # parts do not differ
    assert (noise.share, noise.ndc, noise.part) == (1, 1, 0)


@pytest.mark.parametrize(
    ("shape", "sigmas"),
    [
        ((10, 1, 3), (1, 0, 0, 0.3)),
        ((10, 3, 3), (1, 0.3, 0.3, 0.3)),
        ((10, 2, 2), (1, 0, 0, 0.3)),
        ((5, 2, 2), (0.1, 0, 0, 1)),
    ],
)
def test_coverage(shape: tuple[int, int, int], sigmas: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """At least the nominal 95 %, less four standard errors of 500 simulations."""
    monkeypatch.setattr(gauge, "DRAWS", 3000)
    generator = np.random.default_rng(0)
    found = [gauge.analyse(drawn(shape, sigmas, generator)) for _ in range(500)]
    part, *others = np.square(sigmas)
    truth = math.sqrt(sum(others) / (sum(others) + part))
    assert np.mean([each.share_interval[0] <= truth <= each.share_interval[1] for each in found]) >= 0.911
    within = [each.repeatability_interval[0] <= sigmas[3] <= each.repeatability_interval[1] for each in found]
    assert np.mean(within) >= 0.911


@pytest.mark.parametrize("p", [0.001, 0.025, 0.5, 0.975])
def test_quantiles_are_those_of_scipy(p: float) -> None:
    for df in (1, 2, 5, 50, 10_000, 200_000):
        assert distributions.chi2_quantile(p, df) == pytest.approx(stats.chi2.ppf(p, df), rel=1e-8)
    for df1 in (1, 2, 9, 1000, 33_333):
        for df2 in (1, 3, 100, 66_666):
            found = distributions.f_quantile(p, df1, df2)
            assert found == pytest.approx(stats.f.ppf(p, df1, df2), rel=1e-8)
            assert distributions.f_cdf(found, df1, df2) == pytest.approx(p, rel=1e-8)
    assert distributions.f_cdf(0, 2, 3) == distributions.chi2_cdf(0, 2) == 0

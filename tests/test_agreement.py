"""Rates and kappas against statsmodels and published examples; coverage of their intervals by simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

from andon.proof import agreement

ENOUGH = 0.935  # coverage of a nominal 95 %, less four standard errors of 400 simulations and more


FLEISS_1971 = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""  # thirty patients, five diagnoses, six psychiatrists


def test_the_table_of_fleiss() -> None:
    """Fleiss, "Measuring nominal scale agreement among many raters", 1971, table 1: kappa is 0.430."""
    counts = np.array([[int(digit) for digit in row] for row in FLEISS_1971.split()])
    assert counts.shape == (30, 5) and (counts.sum(axis=1) == 6).all()
    found = agreement.fleiss(counts)
    assert found.value == pytest.approx(0.430, abs=5e-4)
    assert found.observed == pytest.approx(0.5556, abs=5e-4)
    assert found.expected == pytest.approx(0.2201, abs=5e-4)


@pytest.mark.parametrize("seed", range(8))
def test_fleiss_is_that_of_statsmodels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    m, chance = int(generator.integers(2, 10)), generator.uniform(0.05, 0.95, 40)
    stops = generator.binomial(m, chance)
    counts = np.stack([m - stops, stops], axis=1)
    found = agreement.fleiss(counts)
    assert found.value == pytest.approx(fleiss_kappa(counts))
    assert found.interval is not None and found.interval[0] < found.value < found.interval[1]


@pytest.mark.parametrize("seed", range(8))
def test_cohen_is_that_of_statsmodels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    cells = generator.multinomial(3, generator.dirichlet([4, 1, 1, 3]), size=30)
    found = agreement.cohen(cells)
    expected = cohens_kappa(cells.sum(axis=0).reshape(2, 2))
    assert found.value == pytest.approx(expected.kappa)
    assert found.interval is not None and found.interval[0] < found.value < found.interval[1]


def test_parts_with_fewer_verdicts_count_as_they_are() -> None:
    counts = np.array([[3, 0], [0, 2], [1, 1], [1, 0]])  # the last says nothing
    found = agreement.fleiss(counts)
    shares = np.array([4, 3]) / 7
    assert found.parts == 3
    assert found.observed == pytest.approx((1 + 1 + 0) / 3)
    assert found.expected == pytest.approx((shares**2).sum())


@pytest.mark.parametrize("counts", [[], [[3, 0]], [[3, 0], [3, 0]], [[0, 3]] * 5, [[1, 0], [0, 1]]])
def test_kappa_of_verdicts_that_are_all_alike_is_undefined(counts: list[list[int]]) -> None:
    assert agreement.fleiss(np.array(counts, int).reshape(-1, 2)).value is None
    cells = np.array([[a, 0, 0, 0] for a, _ in counts], int).reshape(-1, 4)
    assert agreement.cohen(cells).value is None


def test_full_agreement_on_few_parts_shows_little() -> None:
    many, few = (agreement.fleiss(np.array([[3, 0], [0, 3]] * n)) for n in (100, 3))
    assert many.value == few.value == 1
    assert many.lower > 0.95 and few.lower < 0.5
    assert agreement.fleiss(np.array([[2, 0], [0, 2]])).parts == 2


def test_rates_of_both_counting_rules() -> None:
    found = agreement.rate(np.array([0, 0, 1, 3]), np.array([3, 3, 3, 3]), 0.95)
    assert (found.presentations[:2], found.parts[:2]) == ((4, 12), (2, 4))
    assert found.presentations.interval == pytest.approx(stats.binomtest(4, 12).proportion_ci(method="exact"))
    right = agreement.rate(np.array([3, 3, 2, 0]), np.array([3, 3, 3, 3]), 0.95, wrong=False)
    assert (right.presentations[:2], right.parts[:2]) == ((8, 12), (2, 4))
    assert right.interval == pytest.approx([1 - found.interval[1], 1 - found.interval[0]])
    assert right.lower_like == pytest.approx(1 - found.upper_like)


def test_no_miss_in_48_presentations_of_16_parts() -> None:
    """0 of 48 allows 6.1 % of these parts at 95 %; of parts like these 16 parts allow 1 − 0.05^(1/16)."""
    found = agreement.rate(np.zeros(16, int), np.full(16, 3), 0.95)
    assert found.upper == pytest.approx(0.0605, abs=5e-4)
    assert found.upper_like == pytest.approx(1 - 0.05 ** (1 / 16))
    nothing = agreement.rate(np.zeros(0, int), np.zeros(0, int), 0.95)
    assert (nothing.upper, nothing.upper_like, nothing.interval, nothing.presentations.value) == (1, 1, None, None)


def test_the_bound_of_parts_that_are_wrong_always_or_never_is_that_of_clopper_and_pearson() -> None:
    found = agreement.rate(np.array([0] * 18 + [3, 3]), np.full(20, 3), 0.95)
    assert found.interval == pytest.approx(stats.binomtest(2, 20).proportion_ci(method="exact"))
    mixed = agreement.rate(np.array([0] * 18 + [3, 2]), np.full(20, 3), 0.95)  # takes the way of simulation
    assert mixed.interval is not None and 0.9 * found.interval[1] < mixed.interval[1] < found.interval[1]


Kinds = tuple[tuple[float, ...], tuple[float, ...]]  # chance that a presentation is stopped, share of such parts


@pytest.fixture(autouse=True)
def _fewer_draws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "coverage" in request.node.name:
        monkeypatch.setattr(agreement, "DRAWS", 2000)


def _covered(truth: float, intervals: list[tuple[float, float] | None]) -> None:
    known = [each for each in intervals if each is not None]
    assert len(known) > 0.9 * len(intervals)
    assert np.mean([low - 1e-9 <= truth <= high + 1e-9 for low, high in known]) >= ENOUGH


def _stops(n: int, m: int, kinds: Kinds) -> Callable[[np.random.Generator], NDArray[np.int64]]:
    return lambda generator: generator.binomial(m, generator.choice(kinds[0], n, p=kinds[1]))


@pytest.mark.parametrize(
    ("n", "m", "kinds"),
    [
        (16, 3, ((0.0, 0.3), (0.9, 0.1))),
        (50, 3, ((0.0, 0.5, 1.0), (0.9, 0.05, 0.05))),
        (10, 3, ((0.2, 0.9), (0.5, 0.5))),
        (16, 9, ((0.1,), (1.0,))),
    ],
)
def test_coverage_of_rates_of_parts_like_these(n: int, m: int, kinds: Kinds) -> None:
    generator, draw = np.random.default_rng(0), _stops(n, m, kinds)
    found = [agreement.rate(draw(generator), np.full(n, m), 0.95) for _ in range(400)]
    truth = float(np.dot(*kinds))
    _covered(truth, [each.interval for each in found])
    assert np.mean([each.upper_like >= truth for each in found]) >= ENOUGH
    assert np.mean([each.lower_like <= truth for each in found]) >= ENOUGH


def test_coverage_of_rates_of_these_parts() -> None:
    """Parts with rates of their own: the interval over presentations holds their mean."""
    generator = np.random.default_rng(0)
    rates = np.array([0.0] * 10 + [0.05] * 5 + [0.6])
    found = [agreement.rate(generator.binomial(3, rates), np.full(16, 3), 0.95) for _ in range(400)]
    _covered(rates.mean(), [each.presentations.interval for each in found])


@pytest.mark.parametrize(
    ("n", "m", "kinds"),
    [
        (20, 3, ((0.01, 0.99), (0.5, 0.5))),
        (50, 9, ((0.02, 0.5, 0.98), (0.5, 0.1, 0.4))),
        (50, 3, ((0.05, 0.9), (0.95, 0.05))),
        (20, 3, ((0.5,), (1.0,))),
        (10, 3, ((0.1, 0.8), (0.5, 0.5))),
    ],
)
def test_coverage_of_fleiss(n: int, m: int, kinds: Kinds) -> None:
    chance, part = np.array(kinds[0]), np.array(kinds[1])
    stopped = part @ chance
    expected = stopped**2 + (1 - stopped) ** 2
    truth = (part @ (chance**2 + (1 - chance) ** 2) - expected) / (1 - expected)
    generator, draw = np.random.default_rng(0), _stops(n, m, kinds)
    drawn = [draw(generator) for _ in range(400)]
    _covered(truth, [agreement.fleiss(np.stack([m - stops, stops], axis=1)).interval for stops in drawn])


@pytest.mark.parametrize(
    ("n", "cells"),
    [
        (20, (0.5, 0.02, 0.02, 0.46)),
        (50, (0.85, 0.05, 0.05, 0.05)),
        (30, (0.3, 0.2, 0.2, 0.3)),
        (9, (0.5, 0.1, 0.1, 0.3)),
    ],
)
def test_coverage_of_cohen(n: int, cells: tuple[float, ...]) -> None:
    truth = cohens_kappa(np.array(cells).reshape(2, 2) * 1e6).kappa
    generator = np.random.default_rng(0)
    drawn = [generator.multinomial(1, cells, size=n) for _ in range(400)]
    _covered(truth, [agreement.cohen(each).interval for each in drawn])

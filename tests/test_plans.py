"""Plans of a proof: exact sample sizes, operating-characteristic curves, exact bounds of rates and of lots."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from andon.errors import AndonError
from andon.proof import bounds, plans
from test_cli import run


@pytest.mark.parametrize(("rate", "parts"), [(0.02, 149), (0.05, 59), (0.01, 299)])
def test_the_known_sizes_without_a_failure(rate: float, parts: int) -> None:
    assert bounds.smallest_sample(0, rate, 0.95) == parts


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("rate", [1e-4, 0.003, 0.05, 0.5])
@pytest.mark.parametrize("failures", [0, 1, 2, 7, 40])
def test_a_sample_is_large_enough_and_one_part_less_is_not(failures: int, rate: float, confidence: float) -> None:
    parts = bounds.smallest_sample(failures, rate, confidence)
    assert stats.binom.cdf(failures, parts, rate) <= (1 - confidence) * (1 + 1e-9)
    assert parts == failures + 1 or stats.binom.cdf(failures, parts - 1, rate) > (1 - confidence) * (1 - 1e-9)
    assert bounds.upper_rate(failures, parts, confidence) <= rate * (1 + 1e-9)


def test_bounds_of_a_rate_agree_with_scipy() -> None:
    for n in (1, 2, 17, 1000):
        for k in {0, 1, n // 2, n - 1, n}:
            for confidence in (0.5, 0.95, 0.9999):
                exact = stats.binomtest(k, n, alternative="less").proportion_ci(confidence, "exact").high
                assert bounds.upper_rate(k, n, confidence) == pytest.approx(exact, abs=1e-9)
                exact = stats.binomtest(k, n, alternative="greater").proportion_ci(confidence, "exact").low
                assert bounds.lower_rate(k, n, confidence) == pytest.approx(exact, abs=1e-9)
    assert (bounds.lower_rate(0, 0, 0.95), bounds.upper_rate(0, 0, 0.95)) == (0.0, 1.0)


def test_bounds_of_a_lot_agree_with_scipy() -> None:
    for lot, n in [(1, 1), (5, 2), (40, 40), (60, 7), (3000, 250)]:
        for k in {0, 1, n // 3, n - 1, n}:
            for confidence in (0.9, 0.975):
                possible = np.arange(k, lot - (n - k) + 1)
                allowed = possible[stats.hypergeom.cdf(k, lot, possible, n) > (1 - confidence) * (1 - 1e-9)]
                assert bounds.upper_count(k, n, lot, confidence) == allowed.max()
                allowed = possible[stats.hypergeom.sf(k - 1, lot, possible, n) > (1 - confidence) * (1 - 1e-9)]
                assert bounds.lower_count(k, n, lot, confidence) == allowed.min()


def test_a_lot_that_was_looked_at_whole_is_known_and_one_that_was_not_is_unknown() -> None:
    assert bounds.lower_count(3, 50, 50, 0.95) == bounds.upper_count(3, 50, 50, 0.95) == 3
    assert (bounds.lower_count(0, 0, 50, 0.95), bounds.upper_count(0, 0, 50, 0.95)) == (0, 50)
    assert bounds.upper_count(0, 0, 0, 0.95) == 0


def test_a_plan_counts_parts_and_names_the_true_rate_that_succeeds() -> None:
    found = plans.plan(0.01, 0.005, 0.95, 3)
    slip, rejects = found.claims
    assert [row.parts for row in slip.rows] == [299, 473, 628, 773]
    assert rejects.rows[0].parts == 598
    for row in slip.rows:
        assert stats.binom.cdf(row.failures, row.parts, row.needed_rate) == pytest.approx(plans.SUCCESS, abs=1e-9)
    assert "299" in found.text() and "0.0352 %" in found.text()


def test_the_curve_is_the_chance_of_success() -> None:
    rates = np.array([0.0001, 0.01, 0.3])
    assert bounds.chance(2, 628, rates) == pytest.approx(stats.binom.cdf(2, 628, rates), abs=1e-12)
    drawn = plans.characteristic("slip", 0.01, [(0, 299), (1, 473), (2, 628), (5, 1049)])
    assert drawn.startswith("<svg") and drawn.count("<polyline") == 4 and "5 of 1049" in drawn


def test_the_command_prints_a_table_or_json_and_writes_a_page(tmp_path: Path, capsys: Any) -> None:
    arguments = ("plan", "--slip", 0.01, "--false-rejects", 0.005, "--confidence", 0.95)
    code, out, err = run(capsys, *arguments, "--out", tmp_path / "new" / "plan")
    assert (code, err) == (0, "") and re.search(r"0 +299 ", out) and re.search(r"0 +598 ", out)
    page = (tmp_path / "new" / "plan" / "plan.html").read_text()
    assert page.count("<svg") == 2 and "299 defective parts without a failure" in page and "<script" not in page
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    assert json.loads(out)["claims"] == json.loads((tmp_path / "new/plan/plan.json").read_text())["claims"]


@pytest.mark.parametrize("rate", [0.0, -0.1, 0.51, 1.0, float("nan"), float("inf"), 1e-7])
def test_an_impossible_rate_is_refused(rate: float, capsys: Any) -> None:
    for option in ("--slip", "--false-rejects"):
        code, _, err = run(capsys, "plan", option, rate)
        assert code == 2 and err.startswith(f"andon: {option}") and "expected a rate" in err


@pytest.mark.parametrize("confidence", [0.0, 0.49, 1.0, float("nan"), 95.0])
def test_a_confidence_that_proves_nothing_is_refused(confidence: float) -> None:
    with pytest.raises(AndonError, match=r"^--confidence .*expected a confidence"):
        plans.plan(0.01, None, confidence, 5)


def test_a_plan_without_a_rate_and_too_many_failures_are_refused() -> None:
    with pytest.raises(AndonError, match="neither --slip nor --false-rejects"):
        plans.plan(None, None, 0.95, 5)
    with pytest.raises(AndonError, match=r"--failures -1: expected 0 to 100"):
        plans.plan(0.01, None, 0.95, -1)


def test_the_extremes_that_are_taken_give_a_page() -> None:
    for rate, confidence, failures in [(1e-6, 0.999999, 100), (0.5, 0.5, 0), (0.5, 0.5, 100)]:
        assert b"<svg" in plans.html(plans.plan(rate, rate, confidence, failures))
    assert plans.share(1e-9) == "0.0000001 %"
    assert plans.share(0.999999) == "99.9999 %"
    assert plans.share(1.0) == "100 %"

"""Drift: p-values against brute force, the bound on false alarms, and changes that are found."""

import json
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andon.calibration import Calibration, HeldOut
from andon.pictures import appearance
from andon.station.drift import KINDS, MEASURES, Drift, Ranks, measured
from andon.station.events import StationError
from conftest import part

LEVELS = st.lists(st.integers(0, 5).map(float), max_size=20)


@given(LEVELS, LEVELS)
def test_p_values_are_ranks_among_all_that_came_before(reference: list[float], production: list[float]) -> None:
    """By the definition: (above + chance × equal, itself included) / number; the reference has no order."""
    ranks, known = Ranks(reference, "seed"), list(reference)
    for value in production:
        p = ranks.add(value)
        known.append(value)
        above, same = sum(each > value for each in known), sum(each == value for each in known)
        assert above / len(known) <= p <= (above + same) / len(known)
    assert [Ranks(reference, "seed").add(v) for v in production[:1]] == [
        Ranks(reference, "seed").add(v) for v in production[:1]
    ]


def test_p_values_are_uniform_and_independent_whatever_the_distribution() -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for run in range(2_000):
        values = rng.standard_cauchy(12).round(1)  # ties among them
        ranks = Ranks(values[:10].tolist(), str(run))
        pairs.append([ranks.add(value) for value in values[10:].tolist()])
    counts = np.histogram2d(*np.transpose(pairs), bins=4, range=[[0, 1], [0, 1]])[0]
    chi_squared = float(((counts - 125) ** 2 / 125).sum())
    assert chi_squared < 37.7  # 99.9 % of 15 degrees of freedom


def test_ranks_against_the_reference_alone_are_not_independent() -> None:
    """The trap that semi-online ranks avoid: two p-values share the reference, so both are low together."""
    rng = np.random.default_rng(2)
    pairs = [(rng.standard_normal(10)[:, None] > rng.standard_normal(2)).mean(axis=0) for _ in range(2_000)]
    assert np.corrcoef(np.transpose(pairs))[0, 1] > 0.05


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_a_bet_on_uniform_p_values_is_fair(number: int) -> None:
    p = (np.arange(100_000) + 0.5) / 100_000
    paid = np.array([KINDS[number][1](value) for value in p])
    assert paid.min() >= 0
    assert paid.mean() == pytest.approx(1, abs=1e-9)


def first_alarm(drift: Drift, values: np.ndarray, name: str = "score") -> int:
    """Number of the part that raised the alarm, 0: none."""
    for n, value in enumerate(values.tolist(), 1):
        if drift.add({"score": value} if name == "score" else {"appearance": {"mean": value, "sharpness": None}}):
            return n
    return 0


def test_false_alarms_keep_their_bound() -> None:
    rng = np.random.default_rng(3)
    runs, parts, one_in = 300, 300, 3_000
    drawn = [(rng.lognormal(size=30).tolist(), rng.lognormal(size=parts)) for _ in range(runs)]
    alarms = sum(first_alarm(Drift(a, one_in / len(MEASURES), seed=str(i)), b) > 0 for i, (a, b) in enumerate(drawn))
    expected = runs * parts / one_in  # at most 30
    assert 0 < alarms <= expected + 3 * np.sqrt(expected)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "higher": lambda x: x + 2,
    "lower": lambda x: x - 2,
    "wider spread": lambda x: 4 * x,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_found_named_and_dated(kind: str) -> None:
    rng = np.random.default_rng(4)
    drift = Drift(rng.standard_normal(100).tolist())
    before, after = rng.standard_normal(500), CHANGES[kind](rng.standard_normal(400))
    n = first_alarm(drift, np.concatenate([before, after]))
    assert drift.change and 500 < n < 700
    assert (drift.change.measure, drift.change.kind, drift.change.parts) == ("score", kind, n)
    assert abs(drift.change.since - (n - 500)) < 25
    assert "recalibrate on verified good parts" in str(drift.change)
    kept = drift.change
    drift.add({"score": 0.0})
    assert drift.change == kept


def test_a_defect_now_and_then_is_no_drift_and_rejects_in_a_row_are() -> None:
    rng = np.random.default_rng(5)
    scores = rng.standard_normal(100).tolist()
    production = rng.standard_normal(2_000) + 50 * (rng.random(2_000) < 0.05)
    assert first_alarm(Drift(scores), production) == 0
    assert 0 < first_alarm(Drift(scores), np.concatenate([rng.standard_normal(50), 50 + rng.random(40)])) < 80


def test_all_measures_are_charted_and_a_dimmed_lamp_or_a_blurred_lens_is_named() -> None:
    def record(seed: int, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, object]:
        look = appearance.measure(change(part(seed)))
        shares = {"mean": look.mean / look.top, "sharpness": look.sharpness / look.top}
        return {"score": float(seed % 7), "appearance": shares, "registration": {"quality": 0.9 + 0.001 * (seed % 5)}}

    def dimmed(x: np.ndarray) -> np.ndarray:
        return (x * 0.8).astype(np.uint8)

    def blurred(x: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(x, (0, 0), 1), np.uint8)

    for change, measure in ((dimmed, "brightness"), (blurred, "sharpness")):
        drift = Drift([float(seed % 7) for seed in range(50)])
        assert not any(drift.add(record(seed, lambda x: x)) for seed in range(120))
        assert set(drift.points()) == set(MEASURES)
        found = next(found for seed in range(200, 300) if (found := drift.add(record(seed, change))))
        assert found.measure == measure and found.kind == "lower"
        point = drift.points()[measure]
        assert point.value < point.mean < point.low < point.high  # the chart shows it too
        assert point.evidence >= 1


def test_what_a_record_does_not_say_is_left_out() -> None:
    assert measured({"verdict": "ERROR"}) == {}
    assert measured({"score": None, "appearance": {"mean": 0.5, "sharpness": 0.1}, "registration": None}) == {
        "brightness": 0.5,
        "sharpness": 0.1,
    }
    drift = Drift([1.0, 2.0])
    assert drift.add({"score": float("nan")}) is None and drift.points() == {}


def test_references_outlast_a_restart_and_the_horizon() -> None:
    rng = np.random.default_rng(6)
    drift = Drift((), learn=50, horizon=100)
    assert first_alarm(drift, rng.normal(0.5, 0.01, 450), "brightness") == 0
    state = json.loads(json.dumps(drift.state()))
    assert {name: len(values) for name, values in state["references"].items()} == {"brightness": 50}
    restarted = Drift((), learn=50, state=state)
    assert first_alarm(restarted, rng.normal(0.4, 0.01, 60), "brightness") > 0
    assert first_alarm(Drift((), learn=50), rng.normal(0.4, 0.01, 60), "brightness") == 0  # nothing to compare with
    assert Drift([1.0, 2.0]).state() == {"references": {}, "change": None}


def test_a_change_outlasts_a_restart_until_it_is_ended_and_a_second_one_is_found() -> None:
    rng = np.random.default_rng(7)
    drift = Drift((), learn=50)
    first_alarm(drift, rng.normal(0.5, 0.01, 400), "brightness")
    assert first_alarm(drift, rng.normal(0.4, 0.01, 60), "brightness") > 0
    restarted = Drift((), learn=50, state=json.loads(json.dumps(drift.state())))
    assert restarted.change == drift.change
    for each in (drift, restarted):
        each.restart()
        assert each.change is None and each.points() == {} and each.state()["change"] is None
        assert first_alarm(each, rng.normal(0.5, 0.01, 400), "brightness") == 0
        assert first_alarm(each, rng.normal(0.4, 0.01, 60), "brightness") > 0


def test_a_few_values_that_were_learnt_go_on_growing_after_a_restart() -> None:
    drift = Drift((), learn=50, state={"references": {"brightness": [0.5, 0.51]}})
    first_alarm(drift, np.full(60, 0.5), "brightness")
    assert len(drift.state()["references"]["brightness"]) == 50


def calibration(crossed: bool) -> Calibration:
    held_out = [HeldOut(str(n // 2), float(n), float(n), 0.0, fold=n % 3) for n in range(40)]
    return Calibration.learn(held_out, crossed)


def test_the_reference_is_one_held_out_image_of_each_part_and_never_a_crossed_one() -> None:
    """Scores of the detectors of the folds are not comparable with those of the bundle's detector."""
    low = np.full(40, -1.0)
    assert Drift.of(calibration(crossed=False)).state()["references"] == {}
    assert first_alarm(Drift.of(calibration(crossed=False)), low) > 0
    drift = Drift.of(calibration(crossed=True))
    assert first_alarm(drift, low) == 0
    assert drift.state()["references"]["score"] == [-1.0] * 40


@pytest.mark.parametrize(("before", "after"), [(150, 0), (150, 150), (300, 200), (600, 200)])
def test_what_drifted_is_no_reference_when_the_cause_is_removed(before: int, after: int) -> None:
    rng = np.random.default_rng(before + after)
    drift = Drift(rng.standard_normal(100).tolist())
    usual, dark = rng.normal(0.5, 0.01, before), rng.normal(0.47, 0.01, 60 + after)
    assert first_alarm(drift, usual, "brightness") == 0
    found = first_alarm(drift, dark, "brightness")
    assert found > 0
    first_alarm(drift, dark[found : found + after], "brightness")
    assert sum(value < 0.48 for value in drift.state()["references"]["brightness"]) < 15  # of 500 from before
    drift.restart()
    assert first_alarm(drift, rng.normal(0.5, 0.01, 2000), "brightness") == 0
    assert len(drift.state()["references"]["brightness"]) == 500


CHANGE = {"measure": "score", "kind": "higher", "parts": 9, "since": 3}


@settings(max_examples=20)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60))
def test_every_finite_value_can_be_charted(values: list[float]) -> None:
    drift = Drift((), learn=5, horizon=7)
    for value in values:
        drift.add({"score": value})
    assert drift.points()["score"].value == values[-1]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"parts_per_alarm": 0.5}, "parts_per_alarm = 0.5"),
        ({"parts_per_alarm": float("nan")}, "parts_per_alarm = nan"),
        ({"learn": 1}, "learn = 1"),
        ({"horizon": 0}, "horizon = 0"),
        ({"weight": 0.0}, "weight = 0.0"),
        ({"scores": [1.0, float("nan")]}, "references of drift: score"),
        ({"state": {"references": {"smell": [1.0]}}}, "references of drift: smell"),
        ({"state": {"change": CHANGE | {"measure": "smell"}}}, "'smell'"),
        ({"state": {"change": CHANGE | {"since": 0}}}, "expected one of score"),
    ],
)
def test_impossible_settings_are_refused(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(StationError, match=message):
        Drift(**keywords)  # type: ignore[arg-type]

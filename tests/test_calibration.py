"""Calibration keeps its promise about false rejects, and says what it cannot promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andon.calibration import Calibration, HeldOut, judge
from andon.inspection import Thresholds, Verdict
from andon.recipe import Decision

SCORES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


def learn(scores: list[float]) -> Calibration:
    return Calibration.learn([HeldOut(str(i), s, s, 0.0) for i, s in enumerate(scores)])


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (24, 0.1), (99, 0.01), (200, 0.05), (10, 0.01)])
def test_the_realised_false_reject_rate_is_at_most_the_promised_one(n: int, rate: float) -> None:
    """Over many draws of held-out and new good parts; exact for a continuous score, whatever its distribution."""
    rng = np.random.default_rng(n)
    draws = 4_000
    decision = Decision(review_rate=max(rate, 0.5), reject_rate=rate, reject_unsupported=True)
    rejected = 0
    for *held_out, new in rng.lognormal(size=(draws, n + 1)).tolist():
        rejected += new > learn(held_out).thresholds(decision).reject
    promised = max(rate, 1 / (n + 1))
    expected = max(1, math.floor(rate * (n + 1) + 1e-9)) / (n + 1)  # what the theory gives, never above the promise
    spread = 4 * math.sqrt(expected * (1 - expected) / draws)
    assert expected <= promised + 1e-12
    assert abs(rejected / draws - expected) < spread


@given(scores=SCORES, score=st.floats(-1e6, 1e6, width=32), rate=st.floats(0.001, 0.999))
def test_a_score_crosses_the_threshold_just_when_its_p_value_is_at_most_the_rate(
    scores: list[float], score: float, rate: float
) -> None:
    found = learn(scores)
    level = max(rate, found.supported_rate)
    decision = Decision(review_rate=max(rate, 0.9991), reject_rate=rate, reject_unsupported=True)
    assert (score > found.thresholds(decision).reject) == (found.p_value(score) <= level + 1e-9)


@given(scores=SCORES)
def test_p_values_fall_with_the_score_and_stay_in_range(scores: list[float]) -> None:
    found = learn(scores)
    values = [found.p_value(s) for s in sorted(scores)]
    assert values == sorted(values, reverse=True)
    assert all(found.supported_rate <= v <= 1 for v in values)
    assert found.p_value(max(scores) + 1) == pytest.approx(found.supported_rate)


def test_a_part_weighs_one_however_many_images_it_has() -> None:
    found = Calibration.learn([HeldOut("a", s, s, 0.0) for s in (1, 2, 3, 4)] + [HeldOut("b", 2.5, 9, 0.0)])
    assert (found.images, found.parts) == (5, 2)
    assert found.p_value(2.2) == pytest.approx((1 + 2 / 4 + 1) / 3)
    assert found.p_value(5) == pytest.approx(1 / 3)
    assert found.thresholds(Decision(review_rate=0.5, reject_rate=0.4)).reject == 4  # 0.4 · 3 − 1 = 0.2 < 1/4
    assert found.thresholds(Decision(review_rate=0.5, reject_rate=0.45)).reject == 3  # 0.35: one of four may be above


def test_the_promise_holds_for_any_one_image_of_a_new_part() -> None:
    """Parts differ far more than the images of one part: counting images as if they were parts would break it."""
    rng = np.random.default_rng(0)
    draws, parts, rate = 3_000, 30, 0.1
    decision = Decision(review_rate=0.5, reject_rate=rate)
    rejected = naive = 0
    for _ in range(draws):
        centre = rng.lognormal(size=parts + 1)
        frames = [
            HeldOut(str(i), float(centre[i] * rng.lognormal(0, 0.05)), 0.0, 0.0)
            for i in range(parts)
            for _ in range(rng.integers(1, 7))
        ]
        new = float(centre[parts] * rng.lognormal(0, 0.05))
        rejected += new > Calibration.learn(frames).thresholds(decision).reject
        naive += new > np.quantile([frame.score for frame in frames], 1 - rate)
    assert rejected / draws < rate + 3 * math.sqrt(rate * (1 - rate) / draws)
    assert naive > rejected


def test_it_says_which_rate_so_many_images_support() -> None:
    sentences = learn([float(i) for i in range(24)]).describe(Decision())
    assert sentences == [
        "review: at most 5.0 % of good images, from 24 held-out good images. In the long run, 0.1 % to 14.2 % of good "
        "images exceed this threshold.",
        "reject: 24 held-out good images support a false-reject rate of 4.0 %; 1.0 % needs 99 images for calibration, "
        "or 99 in total for cross-conformal calibration. Until then no part gets REJECT: a score above all held-out "
        "scores gets REVIEW.",
    ]


def test_without_support_for_the_reject_rate_a_part_beyond_all_gets_review() -> None:
    found = learn([float(i) for i in range(24)])
    assert judge(1e9, found.thresholds(Decision())) is Verdict.REVIEW
    assert judge(1e9, found.thresholds(Decision(reject_unsupported=True))) is Verdict.REJECT
    assert judge(1e9, found.thresholds(Decision(reject_rate=0.04))) is Verdict.REJECT
    assert judge(1e9, found.thresholds(Decision(reject_threshold=30))) is Verdict.REJECT
    assert judge(math.inf, found.thresholds(Decision())) is Verdict.REJECT
    assert judge(math.nan, found.thresholds(Decision())) is Verdict.REJECT


def frames(rng: np.random.Generator, parts: int) -> list[HeldOut]:
    """Parts that differ far more than their images, with one to six images each."""
    found = []
    for i in range(parts):
        centre = rng.lognormal()
        for _ in range(rng.integers(1, 7)):
            score = float(centre * rng.lognormal(0, 0.3))
            found.append(HeldOut(str(i), score, score, 0.0))
    return found


def test_per_part_the_promise_holds_for_the_worst_image_of_a_new_part() -> None:
    rng = np.random.default_rng(1)
    draws, parts, rate = 3_000, 30, 0.1
    stopped = {"image": 0, "part": 0}
    for _ in range(draws):
        calibration = Calibration.learn(frames(rng, parts))
        worst = max(frame.score for frame in frames(rng, 1))
        for per in ("image", "part"):
            decision = Decision(review_rate=0.5, reject_rate=rate, per=per)
            stopped[per] += worst > calibration.thresholds(decision).reject
    expected = 3 / 31  # ⌊rate · 31⌋ / 31
    assert abs(stopped["part"] / draws - expected) < 4 * math.sqrt(expected / draws)
    assert stopped["image"] / draws > rate + 4 * math.sqrt(rate / draws)  # the promise per image is another one


@given(SCORES, st.integers(1, 4), st.floats(-1e6, 1e6, width=32), st.floats(0.001, 0.999))
def test_per_part_threshold_and_p_value_agree(scores: list[float], images: int, score: float, rate: float) -> None:
    found = Calibration.learn([HeldOut(str(i // images), s, s, 0.0) for i, s in enumerate(scores)])
    decision = Decision(review_rate=max(rate, 0.9991), reject_rate=rate, reject_unsupported=True, per="part")
    level = max(rate, found.supported_rate)
    assert (score > found.thresholds(decision).reject) == (found.p_value(score, "part") <= level + 1e-9)


def test_the_long_run_rate_of_one_calibration_lies_in_the_interval_that_is_reported() -> None:
    """The rate of one calibration on uniform scores is 1 - its threshold; 95 % of them must lie inside."""
    rng = np.random.default_rng(0)
    n, rate, draws = 60, 0.05, 1_500
    inside, rates = 0, []
    for scores in rng.uniform(size=(draws, n)).tolist():
        found = learn(scores)
        interval = found.long_run(rate, "image")
        assert interval is not None
        rates.append(1 - found.thresholds(Decision()).review)
        inside += interval[0] <= rates[-1] <= interval[1]
    assert abs(inside / draws - 0.95) < 4 * math.sqrt(0.95 * 0.05 / draws)
    assert np.mean(rates) == pytest.approx(3 / 61, abs=0.003)  # the promise holds on average: k = 3 of 61


def test_a_gap_in_the_highest_scores_is_reported() -> None:
    scores = [999, 962, 250, 173, *np.linspace(60, 118, 40).tolist()]
    held = [HeldOut(str(i), s, s, 0.0, f"{i}.png", f"{i:064}") for i, s in enumerate(scores)]
    found = Calibration.learn(held)
    assert found.outliers() == 4
    sentence = found.describe(Decision())[-1]
    assert sentence.startswith("gap: the highest held-out scores are 999, 962, 250, 173 (0.png, 1.png, 2.png, 3.png)")
    assert [each.name for each in found.highest()] == ["0.png", "1.png", "2.png", "3.png", "43.png"]
    assert found.highest()[0].digest == f"{0:064}"


@pytest.mark.parametrize("draw", ["normal", "exponential", "uniform"])
def test_usual_scores_show_no_gap(draw: str) -> None:
    rng = np.random.default_rng(0)
    told = sum(learn(getattr(rng, draw)(size=40).tolist()).outliers() > 0 for _ in range(300))
    assert told < 300 * 0.15


def test_a_crossed_calibration_says_what_is_proved_and_what_is_simulated() -> None:
    rng = np.random.default_rng(0)
    held = [HeldOut(str(i), float(s), float(s), 0.0, fold=i % 5) for i, s in enumerate(rng.normal(size=40))]
    found = Calibration.learn(held, crossed=True)
    assert (found.folds, found.supported_rate) == (5, 1 / 41)
    assert found.proved_rate(0.05) == pytest.approx(2 * 0.05 + (1 - 5 / 40) / 6)
    assert Calibration.learn(held).proved_rate(0.05) == 0.05
    simulated = found.simulate(0.05, "image")
    assert simulated is not None and simulated[1] == 40 and simulated[0] <= 6
    sentence = found.describe(Decision())[0]
    assert sentence.startswith(
        "review: about 5.0 % of good images, from 40 held-out good images in 5 cross-conformal folds ("
    )
    assert "proved for the detectors of the folds: at most 24.6 %" in sentence


def test_it_says_so_when_a_threshold_was_set_by_hand() -> None:
    decision = Decision(reject_threshold=7.5)
    found = learn([1.0, 2.0])
    assert found.thresholds(decision).reject == 7.5
    assert found.describe(decision)[1] == "reject: the threshold 7.5 was set by hand; no rate is promised for it."


@pytest.mark.parametrize(
    ("decision", "sentence"),
    [
        (Decision(pixel_threshold=7.5), "pixel: the threshold 7.5 was set by hand; no share of good images"),
        (
            Decision(review_threshold=700.0, reject_unsupported=True),
            "the review threshold 700 is above the reject threshold 49, so no image",
        ),
    ],
)
def test_it_says_what_a_threshold_by_hand_does(decision: Decision, sentence: str) -> None:
    assert learn([float(i) for i in range(50)]).describe(decision)[-1].startswith(sentence)


@pytest.mark.parametrize("values", [{"part": []}, {"peaks": [1.0, 2.0]}, {"scores": [float("nan")]}])
def test_a_calibration_that_is_none(values: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"the same number of each|finite"):
        Calibration.model_validate({"part": [0], "scores": [1.0], "peaks": [1.0], "typical": 0.0, **values})


def test_verdicts() -> None:
    thresholds = Thresholds(review=1.0, reject=2.0, pixel=0.0)
    assert [judge(s, thresholds) for s in (1.0, 1.5, 2.0, 2.1, math.nan)] == [
        Verdict.PASS,
        Verdict.REVIEW,
        Verdict.REVIEW,
        Verdict.REJECT,
        Verdict.REJECT,
    ]

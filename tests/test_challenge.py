"""Challenge parts: due, failed, passed; and what a passed run shows."""

import pytest

from andon.station.challenge import Answer, Part, Run, check, escape_bound, margins, stands, wrong
from andon.station.events import Challenge, Outcome, StationError

GOOD = Part("golden", Outcome.PASS, expires=1000)
RED = Part("scratch", Outcome.REJECT, expires=1000, region=(10, 10, 20, 20))
PARTS = (GOOD, RED)
CAUGHT = Answer("scratch", Outcome.REJECT, 0.5, ((25, 25, 10, 10),))
PASSED = Answer("golden", Outcome.PASS, -0.5)
RUN = Run(100, (PASSED, CAUGHT))


def test_a_run_holds_until_it_is_due_again_or_a_part_expires() -> None:
    assert stands((), None, 0, 60) == Challenge.NONE
    assert stands(PARTS, None, 0, 60) == Challenge.DUE
    assert stands(PARTS, RUN, 160, 60) == Challenge.PASSED
    assert stands(PARTS, RUN, 161, 60) == Challenge.DUE
    assert stands(PARTS, RUN, 99, 60) == Challenge.DUE
    assert stands(PARTS, RUN, 1000, 5000) == Challenge.PASSED
    assert stands(PARTS, RUN, 1001, 5000) == Challenge.DUE


@pytest.mark.parametrize(
    ("answers", "names"),
    [
        ((PASSED, CAUGHT), []),
        ((PASSED, CAUGHT._replace(outcome=Outcome.PASS)), ["scratch"]),
        ((PASSED._replace(outcome=Outcome.REJECT), CAUGHT), ["golden"]),
        ((PASSED, CAUGHT._replace(regions=((30, 30, 5, 5),))), ["scratch"]),
        ((PASSED, CAUGHT._replace(regions=())), ["scratch"]),
        ((PASSED, CAUGHT._replace(outcome=Outcome.LATE)), ["scratch"]),
        ((PASSED,), ["scratch"]),
        ((PASSED, CAUGHT, CAUGHT), ["scratch"]),
        ((), ["golden", "scratch"]),
    ],
)
def test_every_part_is_presented_once_and_judged_as_expected(answers: tuple[Answer, ...], names: list[str]) -> None:
    run = Run(100, answers)
    assert wrong(PARTS, run) == names
    assert stands(PARTS, run, 100, 60) == (Challenge.FAILED if names else Challenge.PASSED)
    assert stands(PARTS, run, 9999, 60) == (Challenge.FAILED if names else Challenge.DUE)


@pytest.mark.parametrize(
    "parts", [(), (GOOD,), (RED,), (GOOD, RED, RED), (GOOD, RED, Part("x", Outcome.INVALID, expires=1))]
)
def test_a_set_that_shows_nothing_is_refused(parts: tuple[Part, ...]) -> None:
    check(PARTS)
    with pytest.raises(StationError):
        check(parts)


def test_the_trend_of_a_margin() -> None:
    later = Run(200, (PASSED, CAUGHT._replace(margin=0.1)))
    assert margins([RUN, later], "scratch") == [(100, 0.5), (200, 0.1)]


@pytest.mark.parametrize(("parts", "bound"), [(3, 0.63), (10, 0.26), (59, 0.05)])
def test_what_caught_parts_bound(parts: int, bound: float) -> None:
    assert round(escape_bound(parts), 2) == bound
    assert (1 - escape_bound(parts)) ** parts == pytest.approx(0.05)


def test_no_part_bounds_nothing() -> None:
    with pytest.raises(StationError, match="at least 1"):
        escape_bound(0)

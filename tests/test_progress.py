"""One progress over several stages: its time left follows the plan, and never claims more than is known."""

from pathlib import Path

from andon.progress import STAGE, Overall
from andon.training import train as training

Call = tuple[str, int, int]


class Watch:
    """An Overall on a clock that is set by hand, and what it reports."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, list[Call]()
        self.overall = Overall(lambda *call: self.calls.append(call), lambda: self.now)

    def at(self, now: float, stage: str, done: int, total: int) -> Call | None:
        """Report a stage at a time; return what is said of the whole."""
        self.now, before = now, len(self.calls)
        self.overall(stage, done, total)
        assert self.calls[before] == (stage, done, total)
        return self.calls[before + 1] if len(self.calls) > before + 1 else None


def test_without_a_plan_nothing_is_reported_of_the_whole() -> None:
    watch = Watch()
    assert watch.at(1, "reading", 3, 10) is None


def test_the_time_left_is_that_of_the_plan() -> None:
    watch = Watch()
    watch.at(10, "reading", 10, 10)
    watch.overall.plan(100, 20)
    assert watch.at(10, "fit", 0, 50) == (STAGE, 10, 130)
    assert watch.at(60, "fit", 25, 50) == (STAGE, 60, 130)
    assert watch.at(110, "fit", 50, 50) == (STAGE, 110, 130)
    watch.overall.plan(20)
    assert watch.at(120, "calibrating", 5, 10) == (STAGE, 120, 130)
    watch.overall.finish()
    assert watch.calls[-1] == (STAGE, 120, 120)


def test_a_stage_that_is_slower_than_planned_says_so() -> None:
    watch = Watch()
    watch.overall.plan(100, 20)
    watch.at(0, "fit", 0, 50)
    assert watch.at(100, "fit", 10, 50) == (STAGE, 100, 520)


def test_past_the_plan_and_without_a_rate_the_time_left_is_unknown() -> None:
    watch = Watch()
    watch.overall.plan(10, 5)
    assert watch.at(5, "fit", 0, 0) == (STAGE, 5, 15)
    assert watch.at(30, "fit", 7, 0) == (STAGE, 30, 0)


def test_a_training_reports_the_whole(parts: Path, tmp_path: Path) -> None:
    calls = list[Call]()
    training.train(
        parts,
        tmp_path / "b.andon",
        size=64,
        settings={"bank": 50},
        progress=lambda *call: calls.append(call),
    )
    whole = [call for call in calls if call[0] == STAGE]
    assert {stage for stage, _, _ in calls} >= {"reading images", "calibrating", STAGE}
    assert whole[-1][1] == whole[-1][2]
    assert all(done <= total or total == 0 for _, done, total in whole)

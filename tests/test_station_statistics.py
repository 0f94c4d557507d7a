"""Statistics from the records against the same by brute force, on SQLite and on PostgreSQL."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from andon.station import statistics
from andon.station.catalogue import Version, differences
from andon.station.entries import Entry, Row
from andon.station.events import Outcome, StationError
from andon.station.ledger import Ledger

START = datetime(2026, 11, 26, 6, tzinfo=UTC)
VERDICTS = ("PASS", "PASS", "PASS", "REVIEW", "REJECT", "INVALID", "LATE", "ERROR")
BERLIN = ZoneInfo("Europe/Berlin")


class Clock:
    def __init__(self) -> None:
        self.now = START.timestamp()

    def __call__(self) -> float:
        return self.now


def inspection(rng: random.Random, job: int, product: str) -> Entry:
    verdict = rng.choice(VERDICTS)
    judged = verdict in statistics.JUDGED
    boxes = [[rng.randrange(60), rng.randrange(30), rng.randrange(1, 40), rng.randrange(1, 30)] for _ in range(job % 3)]
    body = {"regions": [{"box": box} for box in boxes] if judged else []}
    return Entry("inspection", job, product, f"p{job}", None, verdict, rng.random() if judged else None, None, body)


@pytest.fixture
def ledger(database: str) -> Iterator[Ledger]:
    """A record on each database."""
    with filled(database) as ledger:
        yield ledger


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[Ledger]:
    with filled(str(tmp_path / "lite.db")) as ledger:
        yield ledger


@contextmanager
def filled(url: str) -> Iterator[Ledger]:
    """Two hours of two products, with decisions, jobs that ended in another way, and challenge parts."""
    rng, clock = random.Random(5), Clock()
    with Ledger(url, "s", clock) as ledger, Ledger(url, "another", clock) as other:
        job = 0
        for step in range(60):
            clock.now = START.timestamp() + 120 * step
            entries = [inspection(rng, job + n, rng.choice(("ring", "file"))) for n in range(4)]
            for each in entries[:2]:
                if step % 3 == 0:
                    entries.append(Entry("decision", each.job, each.product, verdict=rng.choice(("PASS", "REJECT"))))
                if step % 7 == 0:
                    entries.append(Entry("event", each.job, each.product, verdict="LATE", body={"event": "superseded"}))
            if step % 6 == 0:  # the last word counts
                entries.append(Entry("decision", entries[0].job, entries[0].product, verdict="PASS"))
            entries.append(Entry("challenge", 10_000 + step, "ring", "red", verdict="REJECT", score=9.0))
            rows = ledger.append(entries)
            other.append([inspection(rng, job, "ring")])
            assert len(rows) == len(entries)
            job += 4
        yield ledger


def counted(rows: list[Row], since: datetime, until: datetime) -> tuple[Counter[str], Counter[str]]:
    """How the jobs of `ring` ended, and what people said of them, one by one."""
    ended, decided = Counter[str](), Counter[str]()
    for row in rows:
        if row.kind != "inspection" or row.product != "ring" or not since <= datetime.fromisoformat(row.time) < until:
            continue
        same = [each for each in rows if each.job == row.job]
        end = [each.verdict for each in same if each.kind == "event"] or [row.verdict]
        said = [each.verdict for each in same if each.kind == "decision"] or end
        ended[str(end[-1])] += 1
        decided[str(said[-1])] += 1
    return ended, decided


def test_production_is_what_a_count_one_by_one_gives(ledger: Ledger) -> None:
    rows = list(ledger.walk())
    edges = [START + timedelta(minutes=m) for m in (3, 4, 30, 31, 100, 500)]
    found = statistics.production(ledger, "ring", edges)
    assert len(found) == 5 and found[-1].parts > 0
    for each, since, until in zip(found, edges, edges[1:], strict=False):
        assert (each.ended, each.decided) == counted(rows, since, until)
    total = sum(found, statistics.Production())
    ended, decided = counted(rows, edges[0], edges[-1])
    assert total.parts == ended.total() and total.first_yield == ended["PASS"] / ended.total()
    assert total.final_yield == decided["PASS"] / ended.total() != total.first_yield
    low, high = total.interval()
    assert 0 < low < total.first_yield < high < 1
    assert statistics.production(ledger, "nothing", edges) == [statistics.Production()] * 5


def test_scores_are_those_of_numpy(ledger: Ledger) -> None:
    rows = [row for row in ledger.walk(product="ring", kind="inspection") if row.score is not None]
    edges = [START + timedelta(minutes=m) for m in (-9, 0, 17, 18, 19, 120)]
    found = statistics.scores(ledger, "ring", edges)
    times = np.array([datetime.fromisoformat(row.time).timestamp() for row in rows])
    values = np.array([row.score for row in rows])
    for each, since, until in zip(found, edges, edges[1:], strict=False):
        inside = values[(times >= since.timestamp()) & (times < until.timestamp())]
        assert each.parts == len(inside)
        if each.parts:
            assert each[1:] == pytest.approx((inside.min(), inside.mean(), inside.max()))
        else:
            assert np.isnan(each[1:]).all()
    last = statistics.dots(ledger, "ring", edges[1], edges[-1], 5, False)
    assert [dot.record for dot in last] == [row.sequence for row in rows[-5:]]
    doubtful = statistics.dots(ledger, "ring", edges[1], edges[-1], 1000, True)
    assert [dot.score for dot in doubtful] == [row.score for row in rows if row.verdict in ("REVIEW", "REJECT")]


def test_positions_count_each_part_once_in_a_cell(lite: Ledger) -> None:
    """Painted pixel by pixel on a picture of 64 × 32, whose cells are 2 × 2 pixels."""
    frame, until = (64, 32), START + timedelta(hours=3)
    found = statistics.positions(lite, "ring", START, until, frame)
    expected, parts, without = np.zeros((16, 32), np.int64), 0, 0
    for row in lite.walk(product="ring", kind="inspection"):
        if row.verdict in ("REVIEW", "REJECT"):
            picture = np.zeros((32, 64), np.bool_)
            for region in row.body["regions"]:
                x, y, w, h = region["box"]
                picture[y : y + h, x : x + w] = True
            expected += picture.reshape(16, 2, 32, 2).any(axis=(1, 3))
            parts, without = parts + bool(row.body["regions"]), without + (not row.body["regions"])
    assert parts > 5 and without > 5
    assert (found.counts == expected).all() and found[1:] == (parts, without, frame)
    reach = statistics.positions(lite, "ring", START, until).frame
    assert reach[0] > 64 and reach[1] > 32  # boxes of the test reach further than its picture
    assert statistics.positions(lite, "nothing", START, until).counts.tolist() == [[0] * 32] * 32


def test_sqlite_makes_statistics_from_the_index_alone(tmp_path: Path) -> None:
    """With 100,000 records, reading the records themselves would take seconds."""
    plans: list[Any] = []
    with Ledger(str(tmp_path / "records.db"), "s") as ledger:

        def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            if "records" in statement and statement.startswith(("WITH", "SELECT")):
                plan = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                plans.append(" ".join(row[3] for row in plan))

        sa.event.listen(ledger.engine, "before_cursor_execute", explain)
        edges = [START, START + timedelta(hours=1)]
        statistics.scores(ledger, "ring", edges)
        statistics.dots(ledger, "ring", *edges, 10, False)
        assert len(plans) == 2
        statistics.production(ledger, "ring", edges)
        assert len(plans) > 3
    for plan in plans[:3]:
        assert "COVERING INDEX records_statistics (station=? AND product=? AND time>? AND time<?)" in plan
    for plan in plans[3:]:
        assert "sequence>?" in plan or "records_time" in plan


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1)), min_size=1, max_size=30))
def test_a_p_chart_has_limits_at_three_deviations(groups: list[tuple[int, float]]) -> None:
    counts = [(n, int(n * share)) for n, share in groups]
    made = [statistics.Production(Counter(REJECT=k, PASS=n - k, LATE=3)) for n, k in counts]
    chart = statistics.p_chart(made)
    n, k = np.array(counts).T
    if n.sum() == 0:
        assert np.isnan(chart.mean) and not any(point.outside for point in chart.points)
        return
    mean = k.sum() / n.sum()
    assert chart.mean == pytest.approx(mean)
    for point, parts, rejects in zip(chart.points, n, k, strict=True):
        assert (point.judged, point.rejects) == (parts, rejects)
        if parts:
            reach = 3 * np.sqrt(mean * (1 - mean) / parts)
            assert point.low == pytest.approx(max(0, mean - reach)) and point.high == pytest.approx(
                min(1, mean + reach)
            )
            assert point.outside == (not point.low <= rejects / parts <= point.high)
        else:
            assert np.isnan(point.share) and not point.outside


MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
SPANS = st.timedeltas(timedelta(minutes=1), timedelta(days=800))
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns"])


@settings(deadline=None)
@given(MOMENTS, SPANS, ZONES)
def test_periods_cover_the_time_in_steps_of_the_plant(since: datetime, span: timedelta, name: str) -> None:
    until, zone = since + span, ZoneInfo(name)
    edges = statistics.periods(since, until, zone)
    assert edges[0] <= since < edges[1] and edges[-2] < until <= edges[-1]
    assert len(edges) <= 75 and all(a < b for a, b in pairwise(edges))
    if span > timedelta(days=20):  # 60 shifts
        assert {edge.astimezone(zone).time().isoformat() for edge in edges} == {"00:00:00"}


def test_a_day_on_which_the_clock_changes_has_shifts_of_its_own() -> None:
    since, until = datetime(2026, 10, 24, tzinfo=BERLIN), datetime(2026, 10, 27, tzinfo=BERLIN)
    edges = statistics.periods(since, until, BERLIN, 10)
    local = [edge.astimezone(BERLIN) for edge in edges]
    assert [each.hour for each in local] == [0, 8, 16, 0, 7, 15, 0, 8, 16, 0]  # 25 October has 25 hours
    assert edges[6] - edges[5] == timedelta(hours=9)


def test_a_time_that_ends_before_it_begins_is_refused(lite: Ledger) -> None:
    for since, until in ((START, START), (START, START.replace(tzinfo=None))):
        with pytest.raises(StationError, match="expected a start before the end"):
            statistics.periods(since, until, UTC)
    for edges in ([START], [START + timedelta(seconds=n) for n in range(600)]):
        with pytest.raises(StationError, match="expected 2 to 501"):
            statistics.production(lite, "ring", edges)


def test_margins_and_marks_are_those_of_the_records(tmp_path: Path) -> None:
    clock = Clock()
    with Ledger(str(tmp_path / "records.db"), "s", clock) as ledger:
        for step, score in enumerate((5.0, 4.0, None)):
            clock.now += 60
            body = {"thresholds": {"review": 1.0, "reject": 3.0, "pixel": 1.0}, "regions": []}
            red = Entry(
                "challenge", step, "ring", "red", verdict="REJECT" if score else "ERROR", score=score, body=body
            )
            ledger.append([red, Entry("challenge", 50 + step, "file", "red", verdict="PASS", score=0.0, body=body)])
        ledger.append(
            [
                Entry("change", product="ring", body={"change": "activate", "digest": "a" * 64, "who": "Ada"}),
                Entry("change", product="ring", body={"change": "release", "digest": "b" * 64, "who": "Ada"}),
                Entry("event", product="ring", body={"event": "drift", "measure": "score"}),
                Entry("change", product="ring", body={"change": "roll back", "digest": "b" * 64, "who": "Ada"}),
            ]
        )
        (red,) = statistics.margins(ledger, "ring").values()
        assert [each.margin for each in red[:2]] == [2.0, 1.0] and np.isnan(red[2].margin)
        assert [each.verdict for each in red] == ["REJECT", "REJECT", Outcome.ERROR] and red[0].time < red[1].time
        found = statistics.marks(ledger, "ring")
        assert sorted(mark.kind for mark in found) == ["activate", "drift", "roll back"]
        assert statistics.marks(ledger, "file") == [] and statistics.margins(ledger, "nothing") == {}


def test_measures_are_those_of_one_bundle_with_their_weighted_mean(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(9, 2)).tolist()
    with Ledger(str(tmp_path / "records.db"), "s") as ledger:
        for job, (score, mean) in enumerate(values):
            body = {"bundle": "new" if job > 2 else "old", "appearance": {"mean": mean}, "registration": None}
            ledger.append([Entry("inspection", job, "ring", f"p{job}", None, "PASS", score, body=body)])
        found = statistics.measures(ledger, "ring", "new", 100)
    assert set(found) == {"score", "brightness"}
    for name, column in (("score", 0), ("brightness", 1)):
        expected = values[3][column]
        for each, row in zip(found[name], values[3:], strict=True):
            expected = 0.9 * expected + 0.1 * row[column]
            assert each.value == row[column] and each.mean == pytest.approx(expected)


def test_differences_of_two_versions_name_what_changed() -> None:
    about = {"detector": "x", "input": {"size": [96, 96], "depth": 8}, "history": ["a"], "thresholds": {"review": 1.0}}
    before = Version("a" * 64, "f", "2026", "Ada", about)
    later = {**about, "input": {"size": [96, 96], "light": "gain"}, "history": [], "more": True, "detector": "y"}
    after = Version("b" * 64, "g", "2027", "Ada", later)
    found = [tuple(each) for each in differences(before, after)]
    assert found == [("detector", "x", "y"), ("input.depth", 8, None), ("input.light", None, "gain")]
    assert differences(before, before) == []

"""The record of a station, on SQLite and on PostgreSQL: chained, durable, append-only, one writer."""

import hashlib
import json
import random
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import example, given, settings
from hypothesis import strategies as st

import andon
from andon.errors import AndonError, StorageError
from andon.station import reader, schema
from andon.station.entries import Entry, Picture, Row, decided, inspected
from andon.station.events import Memory, StationError
from andon.station.ledger import Ledger
from andon.station.reader import Reader

START = datetime(2026, 11, 26, 6, tzinfo=UTC)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = START.timestamp()

    def __call__(self) -> float:
        return self.now


def digest_by_hand(row: Row) -> str:
    """As the documentation says: SHA-256 of the record without its digest as JSON, keys sorted, no spaces, ASCII."""
    record = {key: value for key, value in row.record().items() if key != "digest"}
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def event(text: str) -> Entry:
    return Entry("event", body={"event": text})


def spoil(url: str, *statements: str) -> None:
    """Change the database as somebody would who wants to: without the triggers."""
    engine = schema.connect(url, writes=True)
    drop = (
        ["DROP TRIGGER records_update", "DROP TRIGGER records_delete", "DROP TRIGGER records_replace"]
        if engine.dialect.name == "sqlite"
        else ["DROP TRIGGER records_change ON records"]
    )
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        for statement in (*drop, *statements):
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_records_are_there_for_others_when_append_returns(database: str) -> None:
    with Ledger(database, "line 1") as ledger:
        entry = Entry("inspection", 7, "bolt", "b-1", "lot 9", "REJECT", 1.5, 0.001, {"digest": "ab", "regions": []})
        rows = ledger.append([entry, event("door opened")])
        with Reader(database, "line 1") as other:
            assert [other.record(1), other.record(2), other.record(3)] == [*rows, None]
            assert other.head() == (2, rows[1].digest)
    first = rows[0]
    assert (first.station, first.sequence, first.kind, first.job) == ("line 1", 1, "inspection", 7)
    assert (first.product, first.part, first.lot, first.verdict) == ("bolt", "b-1", "lot 9", "REJECT")
    assert (first.score, first.p_value, first.body) == (1.5, 0.001, {"digest": "ab", "regions": []})
    assert rows[0].previous == "" and rows[1].previous == rows[0].digest
    assert [row.digest for row in rows] == [digest_by_hand(row) for row in rows]
    assert abs(datetime.fromisoformat(first.time) - datetime.now(UTC)) < timedelta(minutes=1)


def test_numbers_that_json_cannot_hold_are_null(database: str) -> None:
    with Ledger(database, "s") as ledger:
        (row,) = ledger.append(
            [Entry("inspection", score=float("nan"), p_value=float("inf"), body={"x": float("nan")})]
        )
        assert ledger.record(1) == row
        assert ledger.verify() == []
    assert (row.score, row.p_value, row.body) == (None, None, {"x": None})


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_names_in_any_script_and_any_plain_data_come_back_and_verify(database: str) -> None:
    with Ledger(database, "線路・Linie Ä / خط") as ledger:

        @settings(max_examples=60, deadline=None)
        @example("part", "lot", -0.0, -0.0)
        @given(ANY_TEXT, ANY_TEXT, st.floats(allow_nan=False, allow_infinity=False), PLAIN)
        def keeps(part: str, lot: str, score: float, data: Any) -> None:
            (row,) = ledger.append([Entry("inspection", part=part, lot=lot, score=score, body={"data": data})])
            found = ledger.record(row.sequence)
            assert found == row and found.canonical() == row.canonical()
            assert ledger.history(part=part, lot=lot, limit=1) == [row]
            assert row in ledger.story(part)
            assert row.digest == digest_by_hand(row)

        keeps()
        assert ledger.verify() == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Entry("gossip"), "record of kind 'gossip': expected inspection"),  # type: ignore[arg-type]
        (Entry("event", part=""), "part '': expected 1 to 500 characters"),
        (Entry("event", part="a\0b"), "without NUL"),
        (Entry("event", lot="\udcff"), "valid Unicode"),
        (Entry("event", product="x" * 501), "1 to 500 characters"),
        (Entry("event", part=5), "part '5': expected"),  # type: ignore[arg-type]
        (Entry("event", job=-1), "job -1: expected an integer"),
        (Entry("event", job=1 << 63), "to 2^63"),
        (Entry("event", job=True), "job True"),
        (Entry("event", score="high"), "not plain data"),  # type: ignore[arg-type]
        (Entry("event", body={"x": {1, 2}}), "not plain data"),
        (Entry("event", body={"x": b"bytes"}), "not plain data"),
        (Entry("event", body={"x": "y" * (1 << 20)}), "expected at most 1048576"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_whole_group(tmp_path: Path, entry: Entry, words: str) -> None:
    with Ledger(str(tmp_path / "r.db"), "s") as ledger:
        with pytest.raises(StationError) as told:
            ledger.append([event("before"), entry])
        assert words in str(told.value)
        assert ledger.history() == []
        assert ledger.append([event("after")])[0].sequence == 1


@pytest.mark.parametrize("name", ["", "x" * 101, "a\0", "\udc00"])
def test_a_station_needs_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(StationError, match=r"station .*expected 1 to 100 characters"):
        Ledger(str(tmp_path / "r.db"), name)


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "sqlite://", "sqlite:///:memory:", "://secret@", "x://"])
def test_other_databases_are_refused_and_no_password_is_reported(url: str) -> None:
    with pytest.raises(StationError, match=r"expected the path of an SQLite file.*postgresql://") as told:
        Ledger(url, "s")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET verdict = 'PASS'",
        "DELETE FROM records",
        "TRUNCATE records",
        "INSERT OR REPLACE INTO records SELECT * FROM records",
    ],
)
def test_the_database_itself_refuses_changes(database: str, statement: str) -> None:
    with Ledger(database, "s") as ledger:
        rows = ledger.append([Entry("inspection", verdict="REJECT"), event("x")])
        with pytest.raises(sa.exc.DBAPIError), ledger.engine.begin() as connection:
            connection.exec_driver_sql(statement)
        assert ledger.history() == rows[::-1]


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE records SET verdict = 'PASS' WHERE sequence = 5"], {5: "was changed"}),
        (["UPDATE records SET body = '{\"a\": 1}' WHERE sequence = 5"], {5: "was changed"}),
        (["UPDATE records SET score = score + 1e-9 WHERE sequence = 5"], {5: "was changed"}),
        (["UPDATE records SET time = '2020' WHERE sequence = 5"], {5: "was changed"}),
        (["UPDATE records SET digest = previous WHERE sequence = 5"], {5: "was changed", 6: "does not name"}),
        (["DELETE FROM records WHERE sequence IN (5, 6)"], {5: "records 5 to 6 are missing"}),
        (["DELETE FROM records WHERE sequence > 8"], {9: "records 9 to 10 are missing"}),
        (
            ["DELETE FROM records WHERE sequence = 10", "UPDATE stations SET sequence = 9"],
            {9: "is not the record that the station noted"},
        ),
        (["DELETE FROM records"], {1: "records 1 to 10 are missing"}),
    ],
)
def test_the_chain_shows_what_was_changed(database: str, statements: list[str], expected: dict[int, str]) -> None:
    with Ledger(database, "s") as ledger:
        ledger.append([Entry("inspection", verdict="REJECT", score=number, body={"a": 1}) for number in range(10)])
        assert ledger.verify() == []
    spoil(database, *statements)
    with Reader(database, "s") as chain:
        found = chain.verify()
    assert {each.sequence for each in found} == set(expected)
    assert all(any(e.sequence == number and words in e.what for e in found) for number, words in expected.items())


@pytest.mark.parametrize(("sequence", "station"), [(1000, "s"), (0, "s"), (-5, "s"), (1, "other")])
def test_a_record_that_is_put_in_outside_the_chain_is_found(database: str, sequence: int, station: str) -> None:
    with Ledger(database, "s") as ledger:
        (row,) = ledger.append([Entry("inspection", part="7", verdict="REJECT")])
    forged = replace(row, station=station, sequence=sequence, verdict="PASS")
    names = ", ".join(column.name for column in schema.records.columns)
    values = ", ".join("NULL" if value is None else f"'{value}'" for value in astuple(forged))
    spoil(database, f"INSERT INTO records ({names}) VALUES ({values})")
    assert reader.names(database) == sorted({"s", station})
    with Reader(database, station) as chain:
        assert [(each.sequence, each.what[:10]) for each in chain.verify()] == [(sequence, "was put in")]
    with Ledger(database, "s") as ledger:
        ledger.append([event("the station goes on")])
        assert len(ledger.verify()) == (station == "s")


@pytest.mark.parametrize(
    "change", ["part = x'00ff'", "score = 9e999", "p_value = 9e999", "body = x'7b7d'", "job = 'seven'"]
)
def test_other_types_in_columns_of_sqlite_are_reported(tmp_path: Path, change: str) -> None:
    url = str(tmp_path / "r.db")
    with Ledger(url, "s") as ledger:
        ledger.append([event("1"), event("2"), event("3")])
    spoil(url, f"UPDATE records SET {change} WHERE sequence = 2")
    with Reader(url, "s") as chain:
        assert [(each.sequence, each.what[:11]) for each in chain.verify()] == [(2, "was changed")]


def test_a_record_that_is_forged_with_its_digest_breaks_the_next(database: str) -> None:
    with Ledger(database, "s") as ledger:
        rows = ledger.append([Entry("inspection", verdict="REJECT") for _ in range(3)])
    forged = Row(**{**vars(rows[1]), "verdict": "PASS"})
    digest = hashlib.sha256(forged.canonical().encode()).hexdigest()
    spoil(database, f"UPDATE records SET verdict = 'PASS', digest = '{digest}' WHERE sequence = 2")
    with Reader(database, "s") as chain:
        assert [(each.sequence, each.what.split(" ", 1)[0]) for each in chain.verify()] == [(3, "does")]


def choices(low: float, since: datetime, until: datetime) -> dict[str, tuple[Any, Callable[[Row], bool]]]:
    """Each filter of the history, and the same in plain Python."""
    return {
        "product": ("nut", lambda row: row.product == "nut"),
        "verdict": ("REVIEW", lambda row: row.verdict == "REVIEW"),
        "lot": ("b", lambda row: row.lot == "b"),
        "part": ("part 3", lambda row: row.part == "part 3"),
        "job": (7, lambda row: row.job == 7),
        "kind": ("decision", lambda row: row.kind == "decision"),
        "score": ((low, low + 0.4), lambda row: row.score is not None and low <= row.score <= low + 0.4),
        "since": (since, lambda row: datetime.fromisoformat(row.time) >= since),
        "until": (until, lambda row: datetime.fromisoformat(row.time) <= until),
    }


def test_pages_of_history_are_those_of_a_plain_list(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, clock = random.Random(1), Clock()
    with Ledger(database, "s", clock) as ledger, Ledger(database, "other", clock) as other:
        rows: list[Row] = []
        for number in range(60):
            clock.now += draw.choice([0, 1, 60])
            entries = [
                Entry(
                    draw.choice(["inspection", "inspection", "decision", "event"]),
                    job=number // 2,
                    product=draw.choice(["bolt", "nut", None]),
                    part=f"part {draw.randrange(20)}",
                    lot=draw.choice(["a", "b"]),
                    verdict=draw.choice(["PASS", "PASS", "REVIEW", "REJECT"]),
                    score=draw.choice([None, draw.random()]),
                )
                for _ in range(draw.randrange(1, 4))
            ]
            rows += ledger.append(entries)
            other.append(entries)
        for trial in range(120):
            monkeypatch.setattr(reader, "FEW", draw.choice([0, 3, 30, 1000]))
            low = draw.random()
            since, until = sorted(START + timedelta(seconds=draw.randrange(1500)) for _ in range(2))
            every = choices(low, since, until)
            chosen = draw.sample(sorted(every), draw.choice([0, 1, 1, 2, 3]))
            filters: dict[str, Any] = {name: every[name][0] for name in chosen}
            expected = [row for row in reversed(rows) if all(every[name][1](row) for name in chosen)]
            found, after = [], None
            while page := ledger.history(**filters, after=after, limit=7):
                found += page
                after = page[-1].sequence
            assert found == expected, (trial, filters)
            assert list(ledger.walk(**filters)) == expected[::-1]


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"limit": 0}, "0 records per page: expected 1 to 10000"),
        ({"limit": 10_001}, "expected 1 to 10000"),
        ({"since": datetime(2026, 1, 1)}, "expected a time zone"),
        ({"until": datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))}, "a year from 1 to 9999"),
        ({"part": "a\0b"}, "without NUL"),
        ({"lot": "\udcff"}, "valid Unicode"),
        ({"kind": "\0"}, "without NUL"),
        ({"after": -1}, "after -1: expected an integer"),
        ({"job": 1 << 63}, "to 2\\^63"),
    ],
)
def test_a_history_that_cannot_be_answered_is_refused(tmp_path: Path, filters: dict[str, Any], words: str) -> None:
    with Ledger(str(tmp_path / "r.db"), "s") as ledger, pytest.raises(StationError, match=words):
        ledger.history(**filters)


def test_single_records_that_cannot_be_asked_for_are_refused(database: str) -> None:
    with Ledger(database, "s") as ledger:
        with pytest.raises(StationError, match="record -1: expected"):
            ledger.record(-1)
        with pytest.raises(StationError, match="without NUL"):
            ledger.story("\0")
        assert ledger.record((1 << 63) - 1) is None


def test_a_story_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST", 3)
    with Ledger(str(tmp_path / "r.db"), "s") as ledger:
        for number in range(3):
            ledger.append([Entry("event", part="always the same")])
            assert len(ledger.story("always the same")) == number + 1
        ledger.append([Entry("event", part="always the same")])
        with pytest.raises(StationError, match="more than 3 records; expected an id that belongs to one part"):
            ledger.story("always the same")


@pytest.mark.parametrize("reading", [float("nan"), float("inf"), 1e15, -1e15])
def test_a_clock_that_shows_no_time_writes_nothing(tmp_path: Path, reading: float) -> None:
    clock = Clock()
    with Ledger(str(tmp_path / "r.db"), "s", clock) as ledger:
        clock.now = reading
        with pytest.raises(StationError, match="Set the clock"):
            ledger.append([event("x")])
        assert ledger.history() == []


@pytest.mark.parametrize("name", ["a b?c=d.db", "100%.db", "x@y#z.db", "記録.db"])
def test_any_file_name_will_do_and_it_stays_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger(name, "s") as ledger:
        rows = ledger.append([event("x")])
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert ledger.history() == rows
        assert ledger.append([event("y")])[0].sequence == 2
    assert (tmp_path / name).is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_commits_to_sqlite_are_synced(tmp_path: Path) -> None:
    with Ledger(str(tmp_path / "r.db"), "s") as ledger, ledger.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_the_story_of_a_part_goes_over_all_stations(database: str) -> None:
    clock = Clock()
    with Ledger(database, "first", clock) as first, Ledger(database, "second", clock) as second:
        told = []
        for ledger in (first, second, first):
            clock.now += 1
            told += ledger.append([Entry("inspection", part="p"), Entry("inspection", part="q")])[:1]
        assert first.story("p") == second.story("p") == told
        assert first.story("nobody's") == []
        assert (first.verify(), second.verify()) == ([], [])
        assert reader.names(database) == ["first", "second"]
    with pytest.raises(StationError, match=r"2 stations in the database \(first, second\); expected one"):
        reader.opened(database, None)
    with reader.opened(database, "second") as chosen:
        assert chosen.head()[0] == 2


def test_an_inspection_holds_all_that_traces_it() -> None:
    record = {
        "digest": "picture",
        "score": 0.7,
        "p_value": 0.02,
        "verdict": "PASS",
        "thresholds": {"review": 1.0, "reject": 2.0, "pixel": 3.0},
        "bundle": "bundle",
        "decision": "decision",
    }
    entry = inspected(4, "bolt", "b-7", "lot", "LATE", record, "onnxruntime 1.22", {"read": 1.5, "score": 20.0})
    assert (entry.job, entry.product, entry.part, entry.lot) == (4, "bolt", "b-7", "lot")
    assert (entry.verdict, entry.score, entry.p_value) == ("LATE", 0.7, 0.02)
    assert entry.body == {
        **record,
        "software": f"andon {andon.__version__}",
        "engine": "onnxruntime 1.22",
        "stages_ms": {"read": 1.5, "score": 20.0},
    }


def test_operators_confirm_and_override_with_a_reason(database: str) -> None:
    with Ledger(database, "s") as ledger:
        (row,) = ledger.append([Entry("inspection", 3, "bolt", "b-1", "l", "REJECT", body={"digest": "ab"})])
        with pytest.raises(StationError, match="without verdict or reason; expected both"):
            decided(row, "override", "Ayşe", "PASS", "  ")
        with pytest.raises(StationError, match="with verdict PASS; expected no verdict"):
            decided(row, "confirm", "Ayşe", "PASS")
        with pytest.raises(StationError, match="operator '': expected"):
            decided(row, "confirm", "")
        disputed, confirmed, overridden = ledger.append(
            [
                decided(row, "dispute", "Ayşe"),
                decided(row, "confirm", "Ayşe", defect="scratch", box=(1, 2, 3, 4)),
                decided(row, "override", "Ayşe", "PASS", "dust, blown off", key="k1"),
            ]
        )
        with pytest.raises(StationError, match="expected an inspection"):
            decided(confirmed, "override", "Ayşe", "PASS", "again")
        assert ledger.story("b-1") == [row, disputed, confirmed, overridden]
        assert ledger.record(1) == row
    assert [each.verdict for each in (disputed, confirmed, overridden)] == [None, "REJECT", "PASS"]
    assert (confirmed.body["defect"], confirmed.body["box"]) == ("scratch", [1, 2, 3, 4])
    assert (overridden.body["was"], overridden.body["record"], overridden.body["key"]) == ("REJECT", 1, "k1")
    assert (overridden.body["who"], overridden.body["reason"]) == ("Ayşe", "dust, blown off")


def test_job_ids_are_never_given_twice(database: str) -> None:
    given: list[int] = []

    def take(ledger: Ledger) -> None:
        for count in (1, 3, 2):
            first = ledger.reserve(count)
            given.extend(range(first, first + count))

    for _ in range(2):
        with Ledger(database, "s") as ledger:
            threads = [threading.Thread(target=take, args=(ledger,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with pytest.raises(StationError, match="0 job ids: expected at least 1"):
                ledger.reserve(0)
    assert sorted(given) == list(range(1, 49))


def test_what_the_machine_remembers_survives(database: str) -> None:
    memory = Memory(next_job=7, missed=2, counts={"PASS": 5})
    with Ledger(database, "s") as ledger:
        assert ledger.state() is None
        ledger.keep_state(json.loads(memory.to_json()))
    with Ledger(database, "s") as ledger:
        assert Memory.from_json(json.dumps(ledger.state())) == memory
        ledger.append([event("x")], state={"n": 1})
        assert ledger.state() == {"n": 1}
        with pytest.raises(StationError):
            ledger.append([Entry("event", part="")], state={"n": 2})
        assert ledger.state() == {"n": 1}
        assert len(ledger.history()) == 1


def test_the_outbox_gives_messages_in_order_until_they_are_delivered(database: str) -> None:
    with Ledger(database, "s") as ledger:
        first = ledger.append([event("1"), event("2")], deliver=("mqtt", "webhook:erp"))
        ledger.append([event("not for others")])
        last = ledger.append([event("3")], deliver=("mqtt",))
    with Ledger(database, "s") as ledger:
        assert ledger.outbox("mqtt") == ledger.outbox("mqtt") == [*first, *last]
        assert ledger.outbox("mqtt", limit=1) == first[:1]
        assert ledger.backlog() == {"mqtt": 3, "webhook:erp": 2}
        ledger.delivered("mqtt", first[1].sequence)
        assert ledger.outbox("mqtt") == last
        assert ledger.outbox("webhook:erp") == first
        assert ledger.outbox("unknown") == []
        ledger.delivered("mqtt", last[0].sequence)
        ledger.delivered("webhook:erp", last[0].sequence)
        assert ledger.backlog() == {}
        assert len({row.key for row in ledger.history()}) == 4
        assert first[0].key == f"s:1:{first[0].digest[:16]}"


def test_time_never_goes_back_and_the_jump_of_the_clock_is_a_record(database: str) -> None:
    clock = Clock()
    with Ledger(database, "s", clock) as ledger:
        ledger.append([event("before")])
        clock.now -= 3600
        after = ledger.append([event("after")])
        clock.now += 1
        ledger.append([event("later")])
    clock.now -= 10
    with Ledger(database, "s", clock) as ledger:
        clock.now -= 7  # also over a restart
        ledger.append([event("last")])
        rows = list(ledger.walk())
        assert ledger.verify() == []
    told = [row.body["event"] for row in rows]
    assert told == ["before", "clock went back", "after", "later", "clock went back", "last"]
    assert after == [rows[2]]
    assert rows[1].body == {"event": "clock went back", "from": rows[0].clock, "to": rows[1].clock}
    assert [row.time for row in rows] == sorted(row.time for row in rows)
    assert rows[2].time == "2026-11-26T06:00:00.000000Z" and rows[2].clock == "2026-11-26T05:00:00.000000Z"


def test_a_second_writer_is_refused_until_the_first_ends(database: str) -> None:
    with Ledger(database, "s") as first:
        with pytest.raises(StationError, match=r"process \d+ on \S+ since 2.*writes the records of station 's'"):
            Ledger(database, "s")
        first.append([event("still here")])
        with Ledger(database, "t") as other:
            other.append([event("another identity")])
    with Ledger(database, "s") as second:
        assert second.append([event("next")])[0].sequence == 2
        assert second.verify() == []


def test_a_writer_that_lost_its_identity_unseen_writes_nothing(database: str) -> None:
    with Ledger(database, "s") as ledger:
        ledger.append([event("mine")])
        with ledger.engine.begin() as connection:  # as when the lock was lost and another process went on
            connection.execute(sa.update(schema.stations).values(holder='{"pid":1,"host":"h","since":"now"}'))
        for call in (lambda: ledger.append([event("x")]), lambda: ledger.reserve(1), lambda: ledger.keep_state({})):
            with pytest.raises(StationError, match="process 1 on h since now writes the records"):
                call()
        assert len(ledger.history()) == 1


def test_threads_write_one_chain(database: str) -> None:
    with Ledger(database, "s") as ledger:

        def write(name: int) -> None:
            for number in range(10):
                ledger.append([Entry("event", part=f"{name}", body={"n": number}), event("second")])

        threads = [threading.Thread(target=write, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.verify() == []
        rows = list(ledger.walk())
        assert [row.sequence for row in rows] == list(range(1, 121))
        for name in range(6):
            assert [row.body["n"] for row in rows if row.part == f"{name}"] == list(range(10))


@pytest.mark.parametrize("arrived", [True, False], ids=["the commit arrived", "the commit did not arrive"])
def test_a_commit_in_doubt_is_written_once(database: str, arrived: bool) -> None:
    with Ledger(database, "s") as ledger:
        before = ledger.append([event("same")])

        def cut(connection: sa.Connection) -> None:
            sa.event.remove(ledger.engine, "commit", cut)
            if arrived:
                connection.connection.commit()
            raise ConnectionResetError("connection reset by peer")

        sa.event.listen(ledger.engine, "commit", cut)
        with pytest.raises(StorageError, match="cannot be reached: connection reset by peer"):
            ledger.append([event("same")], deliver=("mqtt",), state={"n": 1})
        again = ledger.append([event("same")], deliver=("mqtt",), state={"n": 1})
        assert list(ledger.walk()) == [*before, *again]
        assert ledger.outbox("mqtt") == again
        assert ledger.append([event("same")])[0].sequence == 3
        assert ledger.verify() == []


def test_the_tables_are_those_that_the_migrations_make(database: str) -> None:
    with Ledger(database, "s") as ledger, ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "0002"


def upgrade() -> None:
    op.create_table("more", sa.Column("name", sa.Text, primary_key=True))
    if FAILS:
        op.execute("SELECT * FROM nothing")
"""


def with_next_version(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
    """An andon that is one version newer."""
    for path in schema.MIGRATIONS.rglob("*.py"):
        copy = folder / path.relative_to(schema.MIGRATIONS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    (folder / "versions" / "r9999.py").write_text(NEXT.replace("FAILS", str(fails)))
    monkeypatch.setattr(schema, "MIGRATIONS", folder)


def test_an_older_database_is_brought_up_to_date_and_a_newer_one_refused(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(database, "s") as ledger:
        rows = ledger.append([event("old")])
    with monkeypatch.context() as newer:
        with_next_version(tmp_path / "a", newer)
        with pytest.raises(StationError, match=r"version 0002 of the records; expected 9999\. Start the station once"):
            Reader(database, "s")
        with Ledger(database, "s") as ledger:
            assert sa.inspect(ledger.engine).has_table("more")
            assert ledger.history() == rows
            assert ledger.append([event("new")])[0].sequence == 2
            assert ledger.verify() == []
    for opened in (Ledger, Reader):
        with pytest.raises(StationError, match="version 9999 of the records, newer than 0002"):
            opened(database, "s")


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(database, "s") as ledger:
        rows = ledger.append([event("old")])
    with monkeypatch.context() as newer:
        with_next_version(tmp_path / "a", newer, fails=True)
        with pytest.raises((AndonError, sa.exc.DBAPIError)):
            Ledger(database, "s")
    with Ledger(database, "s") as ledger:
        assert not sa.inspect(ledger.engine).has_table("more")
        assert ledger.history() == rows


def test_records_are_found_by_how_their_jobs_ended(database: str) -> None:
    """A later record corrects the outcome of a job; pages of the history have no gaps and no doubles."""
    random_ = random.Random(0)
    ended: list[str] = []
    with Ledger(database, "s") as ledger:
        for job in range(200):
            recorded, told = (random_.choice(("PASS", "REJECT", "LATE")) for _ in range(2))
            ledger.append([Entry("inspection", job, "bolt", f"part {job}", verdict=recorded, score=float(job))])
            if corrected := random_.random() < 0.3:
                ledger.append([Entry("event", job, "bolt", f"part {job}", verdict=told, body={"event": "superseded"})])
            ended.append(told if corrected else recorded)
            ledger.append([Entry("decision", job, "bolt", f"part {job}", verdict="PASS", body={"who": "Ada"})])
        jobs = list(range(200))
        ends = ledger.corrections(jobs)
        rows = list(ledger.walk(kind="inspection"))
        assert [ends.get(row.job, row).verdict for row in rows] == ended
        for outcome in ("PASS", "REJECT", "LATE", "ERROR"):
            expected = [job for job in jobs if ended[job] == outcome]
            known = {"kind": "inspection", "outcome": outcome}
            assert [row.job for row in ledger.walk(**known)] == expected
            found, after = [], None
            while page := ledger.history(**known, after=after, limit=7):
                found, after = found + page, page[-1].sequence
            assert [row.job for row in found] == expected[::-1]
            middle = ledger.history(**known, product="bolt", score=(50.0, 99.0), limit=200)
            assert [row.job for row in middle] == [job for job in expected[::-1] if 50 <= job < 100]


def test_stations_that_start_together_on_a_new_database_make_it_once(database: str) -> None:
    failures = []

    def begin(name: str) -> None:
        try:
            with Ledger(database, name) as ledger:
                ledger.append([event("first")])
        except AndonError as error:
            failures.append(error)

    threads = [threading.Thread(target=begin, args=(f"station {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(reader.names(database)) == 4


def test_a_station_waits_for_the_one_that_makes_the_database(tmp_path: Path) -> None:
    """SQLite itself waits for no lock when a new file changes to WAL."""
    url = str(tmp_path / "records.db")
    with closing(sqlite3.connect(url, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
        release.start()
        with Ledger(url, "s") as ledger:
            assert ledger.append([event("first")])[0].sequence == 1
        release.join()


def test_a_database_that_another_program_holds_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "PATIENCE_S", 0.2)
    url = str(tmp_path / "records.db")
    with closing(sqlite3.connect(url, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"database is locked\. Another program has held it"):
            Ledger(url, "s")


def test_a_reader_cannot_write_to_sqlite(tmp_path: Path) -> None:
    url = str(tmp_path / "r.db")
    with Ledger(url, "s") as ledger:
        ledger.append([event("x")])
    with Reader(url, "s") as chain, suppress(sa.exc.OperationalError), chain.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE stations SET sequence = 0")
    with Reader(url, "s") as chain:
        assert chain.head()[0] == 1


def test_pictures_keep_their_highest_worth_and_latest_time(database: str) -> None:
    clock = Clock()
    with Ledger(database, "s", clock) as ledger:
        for worth in (0, 2, 1):
            clock.now += 1
            ledger.append([Entry("inspection", pictures=(Picture("ab", 10, worth), Picture(f"{worth}", 5, worth)))])
        with ledger.reading() as connection:
            query = sa.select(schema.pictures.c["digest", "worth", "time"]).order_by(schema.pictures.c.digest)
            found = [tuple(row) for row in connection.execute(query)]
        assert list(ledger.pictures()) == ["0", "1", "2", "ab"]
    assert [row[:2] for row in found] == [("0", 0), ("1", 1), ("2", 2), ("ab", 2)]
    assert found[3][2] == "2026-11-26T06:00:03.000000Z"

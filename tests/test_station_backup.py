"""Backup and restoring, export, and the commands for them: between SQLite and PostgreSQL, in all directions."""

import csv
import json
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import sqlalchemy as sa

from andon.errors import AndonError
from andon.station import backup as copies
from andon.station import export, schema
from andon.station.archive import Archive
from andon.station.entries import Entry, Picture, Row, decided
from andon.station.events import StationError
from andon.station.ledger import Held, Ledger
from andon.station.reader import Reader
from andon.station.upkeep import verified
from postgres import Cluster
from test_cli import run
from test_station_ledger import spoil, with_next_version

PICTURE = b"a picture that was rejected" * 100


def filled(url: str, folder: Path, records: int = 5) -> list[Row]:
    """The record of a station with all kinds of contents; return its rows."""
    archive = Archive(folder)
    digest = archive.put(PICTURE, ".png")
    with Ledger(url, "line 1") as ledger:
        ledger.reserve(40)
        body = {"digest": digest, "thresholds": {"review": 1.0, "reject": 2.0, "pixel": 3.5}, "bundle": "cafe"}
        entries = [
            Entry("inspection", job, "bolt", f"b-{job}", "L1", "REJECT", 2.5, 0.01, body, (Picture(digest, 2700, 2),))
            for job in range(1, records + 1)
        ]
        rows = ledger.append(entries, deliver=("mqtt",), state={"machine": "remembers"})
        rows += ledger.append(
            [decided(rows[0], "override", "Ayşe", "PASS", "=dust"), Entry("event", body={"event": "door"})]
        )
        ledger.delivered("mqtt", 2)
        return rows


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_a_restored_backup_goes_on_where_it_ends(
    database: str, target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows = filled(database, tmp_path / "pictures", records=1500)  # more than one page
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "bolt.andon").write_bytes(b"bundle")
    (tmp_path / "station.toml").write_text("[station]")
    out = tmp_path / "backup"
    also = [tmp_path / "bundles", tmp_path / "station.toml"]
    copied = copies.backup(database, out, tmp_path / "pictures", also)
    assert copied == copies.Copied({"line 1": 1502}, 1, {}, {})
    assert (out / "also/bundles/bolt.andon").read_bytes() == b"bundle"
    assert (out / "also/station.toml").read_text() == "[station]"
    assert sorted(path.name for path in out.iterdir()) == ["also", "manifest.json", "pictures", "records.db"]

    postgres: Cluster | None = request.getfixturevalue("postgres") if target == "postgresql" else None
    new = postgres.database() if postgres else str(tmp_path / "new" / "records.db")
    assert copies.restore(out, new, tmp_path / "new pictures") == copied
    with Ledger(new, "line 1") as ledger:
        restored = list(ledger.walk())
        assert restored[:-1] == rows
        assert restored[-1].body["event"] == "restored"
        assert restored[-1].body["backup of"] == json.loads((out / "manifest.json").read_text())["time"]
        assert ledger.verify() == []
        assert ledger.outbox("mqtt", limit=9999) == rows[2:1500]
        assert ledger.state() == {"machine": "remembers"}
        assert ledger.reserve(1) > 40 + 100_000  # ids that were given after the backup are not given again
        assert ledger.append([Entry("event")])[0].sequence == 1504
        assert ledger.verify() == []
    assert Archive(tmp_path / "new pictures").open(rows[0].body["digest"]) == PICTURE
    with pytest.raises(StationError, match="already contains station line 1"):
        copies.restore(out, new)


def test_a_backup_of_a_line_that_runs_is_of_one_moment(database: str, tmp_path: Path) -> None:
    stop = threading.Event()
    with Ledger(database, "line 1") as ledger:

        def work() -> None:
            while not stop.is_set():
                ledger.append([Entry("event", body={"n": 1}), Entry("event", body={"n": 2})], deliver=("mqtt",))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            found = [copies.backup(database, tmp_path / f"backup {number}") for number in range(3)]
        finally:
            stop.set()
            thread.join()
    counts = [each.records["line 1"] for each in found]
    assert counts == sorted(counts) and all(count % 2 == 0 for count in counts)
    assert [each.breaks for each in found] == [{}, {}, {}]
    for number, count in enumerate(counts):
        with Reader(str(tmp_path / f"backup {number}" / "records.db"), "line 1") as chain:
            assert len(list(chain.walk())) == count


def test_a_picture_that_ages_out_meanwhile_is_not_missing(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention forgets a picture, then removes its file, while a backup or a verification looks for it."""
    rows, archive = filled(database, tmp_path / "pictures"), Archive(tmp_path / "pictures")
    digest, other = rows[0].body["digest"], archive.put(b"another picture" * 100, ".png")
    with Ledger(database, "line 1") as ledger:
        ledger.append([Entry("inspection", 41, "bolt", verdict="REJECT", pictures=(Picture(other, 1500, 2),))])
    opened = Archive.open

    def ages_out(archive: Archive, digest: str) -> bytes:
        if archive.folder == tmp_path / "pictures" and digest != other:
            with Ledger(database, "line 1") as ledger:
                ledger.forget([Held(digest, rows[4].time, 2700)], "older than 90 days")
            archive.remove(digest)
        return opened(archive, digest)

    monkeypatch.setattr(Archive, "open", ages_out)
    copied = copies.backup(database, tmp_path / "backup", tmp_path / "pictures")
    assert (copied.pictures, copied.missing) == (1, {})
    assert copies.restore(tmp_path / "backup", str(tmp_path / "new.db"), tmp_path / "new").missing == {}
    with Reader(database, "line 1") as chain:
        monkeypatch.setattr(type(chain), "pictures", lambda reader: iter([digest, other]))  # listed before it aged out
        assert verified(chain, archive)["wrong"] == []
        archive.remove(other)
        (wrong,) = verified(chain, archive)["wrong"]
        assert f"no picture {other}" in wrong


def test_a_station_is_added_to_a_database_that_has_others(database: str, tmp_path: Path) -> None:
    filled(str(tmp_path / "a.db"), tmp_path / "pictures")
    copies.backup(str(tmp_path / "a.db"), tmp_path / "backup")
    with Ledger(database, "line 2") as other:
        mine = other.append([Entry("event")])
        copies.restore(tmp_path / "backup", database)
        assert other.history() == mine and other.verify() == []
    with Ledger(database, "line 1") as restored:
        assert restored.verify() == []


def test_a_backup_of_an_older_andon_is_brought_up_to_date(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = filled(str(tmp_path / "a.db"), tmp_path / "pictures")
    copies.backup(str(tmp_path / "a.db"), tmp_path / "backup")
    before = (tmp_path / "backup" / "records.db").read_bytes()
    with monkeypatch.context() as newer:
        with_next_version(tmp_path / "migrations", newer)
        copies.restore(tmp_path / "backup", database)
        with Reader(database, "line 1") as chain:
            assert list(chain.walk())[:-1] == rows
    assert (tmp_path / "backup" / "records.db").read_bytes() == before


def test_what_is_not_whole_is_copied_as_it_is_and_reported(tmp_path: Path, capsys: Any) -> None:
    url, pictures = str(tmp_path / "a.db"), tmp_path / "pictures"
    rows = filled(url, pictures)
    digest = rows[0].body["digest"]
    Archive(pictures).remove(digest)
    spoil(url, "UPDATE records SET verdict = 'PASS' WHERE sequence = 3")
    code, out, _ = run(capsys, "station", "backup", tmp_path / "backup", "--records", url, "--pictures", pictures)
    assert code == 1
    assert out.splitlines()[:5] == [
        "line 1: 7 records, NOT WHOLE",
        "  record 3 was changed: its digest differs from its contents",
        "0 pictures, 1 missing or damaged",
        f"  line 1: {digest}",
        f"backup: {tmp_path / 'backup'}",
    ]
    code, out, _ = run(capsys, "station", "restore", tmp_path / "backup", "--records", tmp_path / "b.db", "--json")
    assert code == 1 and json.loads(out)["breaks"] == {
        "line 1": ["record 3 was changed: its digest differs from its contents"]
    }


def test_stations_with_archives_of_their_own_lose_nothing_in_a_backup(tmp_path: Path) -> None:
    """A picture that another station does not have is not one that aged out."""
    url, new = str(tmp_path / "a.db"), str(tmp_path / "new.db")
    first = filled(url, tmp_path / "pictures")[0].body["digest"]
    second = Archive(tmp_path / "other").put(b"of the other station" * 100, ".png")
    with Ledger(url, "line 2") as ledger:
        ledger.append([Entry("inspection", 1, "bolt", verdict="REJECT", pictures=(Picture(second, 2000, 2),))])
    place = Archive(tmp_path / "pictures").path(first)
    place.chmod(0o600)
    place.write_bytes(b"damaged")
    copied = copies.backup(url, tmp_path / "backup", tmp_path / "pictures")
    assert copied.missing == {"line 1": [first], "line 2": [second]}
    copies.restore(tmp_path / "backup", new, tmp_path / "new")
    for name, digest in (("line 1", first), ("line 2", second)):
        with Reader(new, name) as reader:
            assert list(reader.pictures()) == [digest]


@pytest.mark.parametrize("damage", ["records", "also", "no manifest", "manifest", "format", "missing", "empty"])
def test_a_damaged_backup_is_refused_and_nothing_restored(tmp_path: Path, damage: str) -> None:
    filled(str(tmp_path / "a.db"), tmp_path / "pictures")
    out = tmp_path / "backup"
    (tmp_path / "station.toml").write_text("[station]")
    copies.backup(str(tmp_path / "a.db"), out, also=[tmp_path / "station.toml"])
    manifest = out / "manifest.json"
    if damage == "records":
        with (out / "records.db").open("r+b") as file:
            file.seek(5000)
            file.write(b"x")
    elif damage == "also":
        (out / "also" / "station.toml").write_text("[other]")
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "manifest":
        manifest.write_text("[1, 2]")
    elif damage == "format":
        manifest.write_text('{"format": 2}')
    elif damage == "missing":
        (out / "records.db").unlink()
    else:
        shutil.rmtree(out)
        out.mkdir()
    with pytest.raises(StationError, match=r"backup.*(damaged|not a backup|format 2; expected 1)"):
        copies.restore(out, str(tmp_path / "new.db"))
    assert not (tmp_path / "new.db").exists()


def test_a_backup_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    url = str(tmp_path / "a.db")
    filled(url, tmp_path / "pictures")
    (tmp_path / "taken").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x").write_text("")
    (tmp_path / "x").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for out, database, also, words in (
        (tmp_path / "taken", url, [], "already exists; expected a new folder"),
        (tmp_path / "out", str(tmp_path / "none.db"), [], "there is no such database"),
        (tmp_path / "out", url, [tmp_path / "nothing"], "does not exist, or its name is used twice"),
        (tmp_path / "out", url, [tmp_path / "x", tmp_path / "one" / "x"], "its name is used twice"),
        (tmp_path / "x" / "out", url, [], "a file of this name exists"),
    ):
        with pytest.raises(AndonError, match=words):
            copies.backup(database, out, None, also)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_table_holds_all_records_with_their_digests(database: str, tmp_path: Path) -> None:
    rows = filled(database, tmp_path / "pictures")
    with Reader(database, "line 1") as chain:
        assert export.write(chain.walk(), tmp_path / "all.csv") == 7
        assert export.write(chain.walk(verdict="REJECT"), tmp_path / "rejects.parquet") == 5
        assert export.write(chain.walk(lot="none"), tmp_path / "none.parquet") == 0
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == list(export.COLUMNS)
    assert [(each["sequence"], each["digest"]) for each in table] == [(f"{row.sequence}", row.digest) for row in rows]
    assert [json.loads(each["body"]) for each in table] == [row.body for row in rows]
    first, decision, event = table[0], table[5], table[6]
    assert (first["part"], first["score"], first["reject_threshold"], first["bundle"]) == ("b-1", "2.5", "2.0", "cafe")
    assert (first["picture"], first["time"]) == (rows[0].body["digest"], rows[0].time)
    assert (decision["decision_by"], decision["reason"], decision["verdict"]) == ("Ayşe", "'=dust", "PASS")
    assert (event["event"], event["score"]) == ("door", "")
    parquet = pyarrow.parquet.read_table(tmp_path / "rejects.parquet").to_pylist()
    assert [each["digest"] for each in parquet] == [row.digest for row in rows[:5]]
    assert (parquet[0]["score"], parquet[0]["job"], parquet[0]["event"]) == (2.5, 1, None)
    assert parquet[0]["time"] == datetime.fromisoformat(rows[0].time)
    assert pyarrow.parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_a_table_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    url = str(tmp_path / "a.db")
    filled(url, tmp_path / "pictures")
    place = tmp_path / "table.csv"
    place.write_text("before")

    def breaks(rows: Any) -> Any:
        yield from list(rows)[:2]
        raise AndonError("the database went away")

    with Reader(url, "line 1") as chain:
        with pytest.raises(AndonError, match="went away"):
            export.write(breaks(chain.walk()), place)
        with pytest.raises(AndonError, match=r"ends in \.csv or \.parquet"):
            export.write(chain.walk(), tmp_path / "table.xlsx")
    assert place.read_text() == "before"
    assert not (tmp_path / "table.xlsx").exists()


def test_the_commands_of_the_audit(database: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("ANDON_RECORDS", database)
    pictures = tmp_path / "pictures"
    rows = filled(database, pictures)
    code, out, _ = run(capsys, "audit", "verify", "--pictures", pictures)
    assert (code, out) == (0, f"line 1: 7 records, whole\n  note: 7:{rows[-1].digest}\n")
    noted = ("audit", "verify", "--station", "line 1", "--noted")
    assert run(capsys, *noted, f"3:{rows[2].digest}")[0] == 0
    code, out, _ = run(capsys, *noted, f"3:{rows[3].digest}")
    assert code == 1 and "record 3: is not the one that was noted" in out
    assert run(capsys, *noted, f"{'9' * 40}:x")[0] == 1
    Archive(pictures).path(rows[0].body["digest"]).write_bytes(b"retouched")
    code, out, _ = run(capsys, "audit", "verify", "--pictures", pictures, "--json")
    assert code == 1 and "its contents differ from the digest in its name" in json.loads(out)[0]["wrong"][0]

    code, out, _ = run(capsys, "audit", "show", "b-1")
    first, second = out.splitlines()
    assert code == 0
    assert first.endswith(
        f"line 1  #1  inspection  bolt  REJECT  score 2.5  p 0.01  lot L1  job 1  "
        f"digest {rows[0].body['digest'][:12]}  bundle cafe"
    )
    assert "decision  bolt  PASS  lot L1  job 1  decision override  who Ayşe  reason =dust" in second
    code, out, _ = run(capsys, "audit", "show", "b-1", "--json")
    assert [each["digest"] for each in json.loads(out)] == [rows[0].digest, rows[5].digest]
    assert run(capsys, "audit", "show", "nobody's")[:2] == (1, "no record of part 'nobody's'\n")

    code, out, _ = run(capsys, "audit", "export", tmp_path / "t.csv", "--kind", "inspection", "--since", "2026-01-01")
    assert (code, out) == (0, f"5 records: {tmp_path / 't.csv'}\n")
    assert run(capsys, "audit", "export", tmp_path / "t.csv", "--until", "2026-01-01", "-q")[:2] == (0, "")
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("audit", "verify", "--noted", "1:ab"), "--noted without --station"),
        (("audit", "verify", "--station", "line 1", "--noted", "x"), "expected NUMBER:DIGEST"),
        (("audit", "verify", "--station", "line 9"), "holds no records of station 'line 9'"),
        (("audit", "verify", "--pictures", "A FILE"), "a file of this name exists"),
        (("audit", "export", "t.csv", "--since", "yesterday"), "expected 2026-11-26 or"),
        (("audit", "export", "t.csv", "--kind", "inspektion"), "Did you mean 'inspection'?"),
        (("audit", "export", "no/folder/t.csv"), "there is no folder"),
        (("station", "restore", "nothing"), "not a backup"),
    ],
)
def test_mistakes_in_the_call_end_with_code_2(
    tmp_path: Path, capsys: Any, monkeypatch: Any, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    url = str(tmp_path / "a.db")
    filled(url, tmp_path / "pictures")
    (tmp_path / "A FILE").write_text("")
    code, _, err = run(capsys, *arguments, "--records", url)
    assert code == 2 and err.startswith("andon: ") and words in err
    assert "Traceback" not in err


def test_a_picture_that_only_the_records_name_is_missed_and_one_that_aged_out_is_not(tmp_path: Path) -> None:
    url, archive = str(tmp_path / "a.db"), Archive(tmp_path / "pictures")
    first, second = archive.put(b"first", ".png"), archive.put(b"second", ".png")
    entries = [
        Entry(
            "inspection", n, "bolt", verdict="REJECT", body={"kept": {"picture": each}}, pictures=(Picture(each, 6, 2),)
        )
        for n, each in enumerate((first, second))
    ]
    with Ledger(url, "line 1") as ledger:
        rows = ledger.append(entries)
        assert verified(ledger, archive)["wrong"] == []
        for digest in (first, second):
            archive.remove(digest)
        with ledger.engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(sa.delete(schema.pictures).where(schema.pictures.c.digest == first))
        ledger.forget([Held(second, rows[1].time, 6)], "older than 90 days")
        (wrong,) = verified(ledger, archive)["wrong"]
        assert first in wrong
        forged = "'line 1', 1000, '2026', '2026', 'event', '\"no object\"', '', 'forged'"
        with ledger.engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.exec_driver_sql(
                "INSERT INTO records (station, sequence, time, clock, kind, body, previous, digest) VALUES ("
                + forged
                + ")"
            )
        assert [each[:15] for each in verified(ledger, archive)["wrong"]] == ["record 1000: wa", wrong[:15]]


def test_an_audit_of_no_database_says_so(tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "audit", "verify", "--records", tmp_path / "none.db")
    assert code == 2 and "there is no such database" in err
    assert not (tmp_path / "none.db").exists()
    engine = schema.connect(str(tmp_path / "empty.db"), writes=True)
    schema.migrate(engine)
    engine.dispose()
    code, _, err = run(capsys, "audit", "verify", "--records", tmp_path / "empty.db")
    assert code == 2 and "holds no records of any station" in err
    code, _, err = run(capsys, "audit", "export", tmp_path / "t.csv", "--records", tmp_path / "empty.db")
    assert code == 2 and "0 stations in the database (none); expected one" in err


def test_the_time_of_an_export_may_name_a_zone(tmp_path: Path, capsys: Any) -> None:
    url = str(tmp_path / "a.db")
    moment = datetime(2026, 11, 26, 6, tzinfo=UTC)
    with Ledger(url, "s", moment.timestamp) as ledger:
        ledger.append([Entry("event")])
    for until, count in (("2026-11-26T07:00:00+01:00", 1), ("2026-11-26T07:00:00+02:00", 0)):
        assert run(capsys, "audit", "export", tmp_path / "t.csv", "--records", url, "--until", until)[1].startswith(
            f"{count} record"
        )

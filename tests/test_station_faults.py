"""Records and pictures when things fail: killed processes, full and read-only disks, a database that is away."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from andon.errors import AndonError, StorageError
from andon.station import schema
from andon.station.archive import Archive
from andon.station.backup import backup
from andon.station.entries import Entry
from andon.station.events import StationError
from andon.station.ledger import Ledger
from andon.station.reader import Reader
from disk import Disk
from postgres import Cluster

WRITER = Path(__file__).parent / "station_writer.py"


def event(text: str) -> Entry:
    return Entry("event", body={"event": text})


def started(url: str, folder: Path) -> "subprocess.Popen[str]":
    """Start a process that writes, and wait until it has opened the ledger."""
    process = subprocess.Popen(
        [sys.executable, str(WRITER), url, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "open\n", process.stderr.read()
    return process


def killed(process: "subprocess.Popen[str]") -> str:
    """Kill it as `kill -9` does; return what it had acknowledged, without a last line that was cut."""
    process.kill()
    out, _ = process.communicate()
    return out[: out.rfind("\n") + 1]


def test_killed_at_random_moments_every_acknowledged_record_is_there(database: str, tmp_path: Path) -> None:
    draw = random.Random(5)
    acknowledged: list[str] = []
    for _ in range(8):
        process = started(database, tmp_path / "pictures")
        time.sleep(draw.uniform(0.0, 0.25))
        acknowledged += killed(process).split()
    assert len(acknowledged) > 8
    archive = Archive(tmp_path / "pictures")
    with Ledger(database, "killed") as ledger:
        assert ledger.verify() == []
        rows = list(ledger.walk())
        waiting = ledger.outbox("mqtt", limit=len(rows) + 1)
        state = ledger.state()
        assert ledger.reserve(1) > max(row.job or 0 for row in rows)
    there = {f"{row.sequence}:{row.digest}:{row.job}:{row.body['digest']}" for row in rows}
    assert set(acknowledged) <= there
    assert len(rows) % 3 == 0  # groups are whole
    assert waiting == rows
    assert state == {"job": rows[-3].job}
    assert len({row.job for row in rows}) == len(rows)
    for row in rows:
        assert (
            archive.open(row.body["digest"])
            == f"picture of job {(row.job or 0) - (row.sequence - 1) % 3}".encode() * 3000
        )


def test_a_second_process_is_refused_and_the_identity_is_free_when_the_first_is_killed(
    database: str, tmp_path: Path
) -> None:
    process = started(database, tmp_path)
    try:
        with pytest.raises(StationError, match=f"process {process.pid} on .* writes the records of station 'killed'"):
            Ledger(database, "killed")
        with Reader(database, "killed") as beside:
            assert beside.verify() == []
    finally:
        killed(process)
    deadline = time.monotonic() + 20  # PostgreSQL must see that the connection is gone
    while True:
        try:
            Ledger(database, "killed").close()
            break
        except StationError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_full_disk_is_reported_and_loses_nothing_and_passes(disk: Disk) -> None:
    with Ledger(str(disk.folder / "r.db"), "s") as ledger:
        rows = ledger.append([event("before")])
        filler = disk.fill()
        with pytest.raises(StorageError, match=r"cannot be reached: .*(full|disk I/O).*\. Free space") as told:
            for number in range(3000):
                rows += ledger.append([Entry("event", body={"n": number, "text": "x" * 1000})])
        assert str(disk.folder) in str(told.value)
        with pytest.raises(StorageError):
            ledger.append([Entry("event", body={"text": "x" * 100_000})])
        assert list(ledger.walk()) == rows
        filler.unlink()
        rows += ledger.append([event("after")])
        assert list(ledger.walk()) == rows
        assert ledger.verify() == []
    with Ledger(str(disk.folder / "r.db"), "s") as ledger:
        assert list(ledger.walk()) == rows


def test_a_full_disk_keeps_no_half_picture(disk: Disk) -> None:
    archive = Archive(disk.folder / "pictures")
    kept = archive.put(b"small")
    filler = disk.fill()
    with pytest.raises(StorageError, match=r"the file cannot be written: .*no space left on device"):
        archive.put(bytes(100_000), ".png")
    assert list(archive.walk()) == [archive.path(kept)]
    filler.unlink()
    assert archive.open(archive.put(bytes(100_000), ".png")) == bytes(100_000)


def test_a_database_on_a_full_disk_cannot_be_made(disk: Disk) -> None:
    disk.fill()
    with pytest.raises(AndonError, match=r"Free space|no space left"):
        Ledger(str(disk.folder / "r.db"), "s")


def test_a_read_only_disk_is_reported_and_passes(disk: Disk) -> None:
    url, archive = str(disk.folder / "r.db"), Archive(disk.folder / "pictures")
    kept = archive.put(b"one")
    with Ledger(url, "s") as ledger:
        rows = ledger.append([event("x")])
    disk.remount("ro")
    with pytest.raises(StorageError, match="Allow writing in"):
        Ledger(url, "s")
    with pytest.raises(StorageError, match=r"cannot be written: .*read-only"):
        archive.put(b"two")
    with pytest.raises(StorageError, match="cannot be removed: read-only"):
        archive.remove(kept)
    with pytest.raises(StorageError, match="the folder cannot be created"):
        Archive(disk.folder / "new")
    assert archive.open(kept) == b"one"
    disk.remount("rw")
    archive.put(b"two")
    with Ledger(url, "s") as ledger:
        assert list(ledger.walk()) == rows
        ledger.append([event("y")])


def test_a_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AndonError, match="a file of this name exists"):
        Ledger(str(tmp_path / "file" / "r.db"), "s")
    with pytest.raises(StorageError, match="the folder cannot be created"):
        Archive(tmp_path / "file" / "pictures")


def test_a_database_that_was_moved_away_takes_no_records(tmp_path: Path) -> None:
    place = tmp_path / "r.db"
    with Ledger(str(place), "s") as ledger:
        ledger.append([event("x")])
        place.rename(tmp_path / "moved.db")
        with pytest.raises(StorageError, match="the database is gone"):
            ledger.append([event("lost")])
        place.write_bytes((tmp_path / "moved.db").read_bytes())
        with pytest.raises(StorageError, match="another file is in its place"):
            ledger.append([event("lost")])
        (tmp_path / "moved.db").replace(place)
        assert ledger.append([event("y")])[0].sequence == 2
        assert ledger.verify() == []


@pytest.mark.parametrize("data", [b"not a database" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_not_a_database_is_reported(tmp_path: Path, data: bytes) -> None:
    place = tmp_path / "r.db"
    place.write_bytes(data)
    for opened in (Ledger, Reader):
        with pytest.raises(StorageError, match=r"r.db: .*(not a database|malformed).*Restore it from a backup"):
            opened(str(place), "s")
    assert place.read_bytes()[:14] == data[:14]


def test_a_database_that_was_cut_is_reported(tmp_path: Path) -> None:
    place = tmp_path / "r.db"
    with Ledger(str(place), "s") as ledger:
        for _ in range(5):
            ledger.append([Entry("event", body={"text": "x" * 5000}) for _ in range(20)])
    with place.open("r+b") as file:
        file.truncate(place.stat().st_size // 2 // 4096 * 4096)
    with pytest.raises(StorageError, match=r"malformed.*Restore it from a backup"), Reader(str(place), "s") as chain:
        chain.verify()


def test_postgres_away_for_a_while_is_reported_and_passes(postgres: Cluster) -> None:
    url = postgres.database()
    with Ledger(url, "s") as ledger, Reader(url, "s") as beside:
        first = ledger.reserve(1)
        rows = ledger.append([event("before")])
        assert beside.history() == rows
        postgres.stop()
        try:
            for call in (
                lambda: ledger.append([event("meanwhile")]),
                lambda: ledger.reserve(1),
                ledger.state,
                ledger.history,
                beside.verify,
                lambda: Reader(url, "s"),
            ):
                with pytest.raises(StorageError, match=r"cannot be reached: .*Start the database, or allow access"):
                    call()
        finally:
            postgres.start()
        rows += ledger.append([event("after")])
        assert ledger.reserve(1) > first
        assert beside.history() == rows[::-1]
        assert beside.verify() == []
        with pytest.raises(StationError, match="writes the records"):
            Ledger(url, "s")  # the lock was taken again


def test_a_ledger_can_be_closed_while_postgres_is_away(postgres: Cluster) -> None:
    url = postgres.database()
    ledger = Ledger(url, "s")
    postgres.stop("immediate")
    try:
        with pytest.raises(StorageError):
            ledger.append([event("x")])
        ledger.close()
    finally:
        postgres.start()
    Ledger(url, "s").close()


def test_a_postgres_that_does_not_answer_is_reported_and_passes(
    postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "PATIENCE_S", 1)
    url = postgres.database()
    with Ledger(url, "s") as ledger:
        rows = ledger.append([event("before")])
        with ledger._writing() as connection:
            backend = int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(StorageError, match=r"cannot be reached: .*timed out"):
                ledger.append([event("in doubt")])
            with pytest.raises(StorageError, match="the lost connection still holds the lock"):
                ledger.append([event("in doubt")])
            assert ledger.history() == rows
        finally:
            os.kill(backend, signal.SIGCONT)
        deadline = time.monotonic() + 20
        while True:
            try:
                rows += ledger.append([event("in doubt")])
                break
            except StorageError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert list(ledger.walk()) == rows
        assert ledger.verify() == []


def test_a_cut_connection_is_opened_again(postgres: Cluster) -> None:
    url = postgres.database()
    with Ledger(url, "s") as ledger:
        rows = ledger.append([event("before")])
        postgres.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'andon' AND pid <> pg_backend_pid()"
        )
        with pytest.raises(StorageError):
            ledger.append([event("after")])
        rows += ledger.append([event("after")])
        assert list(ledger.walk()) == rows
        assert ledger.verify() == []


def test_a_writer_whose_lock_went_to_another_is_refused(postgres: Cluster) -> None:
    url = postgres.database()
    with Ledger(url, "s") as first:
        first.append([event("first")])
        postgres.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'andon' AND pid <> pg_backend_pid()"
        )
        with Ledger(url, "s") as second:
            second.append([event("second")])
            for _ in range(2):
                with pytest.raises(AndonError):
                    first.append([event("x")])
        with pytest.raises(StationError, match="writes the records of station 's'"):
            first.append([event("x")])
        assert [row.body["event"] for row in first.walk()] == ["first", "second"]


def test_a_postgres_that_would_lose_commits_is_refused(postgres: Cluster) -> None:
    url = postgres.database()
    postgres.sql("ALTER SYSTEM SET fsync = off")
    postgres.sql("SELECT pg_reload_conf()")
    try:
        while postgres.sql("SHOW fsync").strip() != "off":
            time.sleep(0.01)
        with pytest.raises(StationError, match="fsync = off: a power cut would lose records"):
            Ledger(url, "s")
    finally:
        postgres.sql("ALTER SYSTEM RESET fsync")
        postgres.sql("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    "change", ["/missing", "?unix_sock=/tmp/no/such/socket"], ids=["no such database", "no such server"]
)
def test_a_database_that_is_not_there_is_reported_without_the_password(postgres: Cluster, change: str) -> None:
    good = sa.make_url(postgres.database())
    url = (
        f"postgresql://andon:s3cret@{change}"
        if change[0] == "?"
        else (f"postgresql://andon:s3cret@{change}?unix_sock={good.query['unix_sock']}")
    )
    with pytest.raises(StorageError, match="cannot be reached") as told:
        Ledger(url, "s")
    assert "s3cret" not in str(told.value)


def test_a_backup_on_a_full_disk_leaves_nothing(disk: Disk, tmp_path: Path) -> None:
    with Ledger(str(tmp_path / "r.db"), "s") as ledger:
        ledger.append([Entry("event", body={"text": "x" * 10_000}) for _ in range(100)])
        filler = disk.fill()
        with pytest.raises(StorageError, match="Free space"):
            backup(str(tmp_path / "r.db"), disk.folder / "backup")
        assert list(disk.folder.iterdir()) == [filler]
        filler.unlink()
        assert backup(str(tmp_path / "r.db"), disk.folder / "backup").records == {"s": 100}

"""Pictures by their digest, and how long they are kept."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from andon import files
from andon.errors import StorageError
from andon.station import retention
from andon.station.archive import Archive
from andon.station.entries import Entry, Picture
from andon.station.events import StationError
from andon.station.ledger import Ledger
from andon.station.retention import BATCH, Retention, worth

DAY = 24 * 3600


class Clock:
    """A clock that the test sets; it begins now, because files have the times of the system."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def test_a_file_is_kept_once_under_its_digest(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "new" / "pictures")
    digest = archive.put(b"picture", ".png")
    assert digest == files.digest(b"picture")
    assert archive.put(b"picture", ".png") == archive.put(b"picture", ".jpg") == digest
    place = archive.folder / digest[:2] / digest[2:4] / f"{digest}.png"
    assert archive.path(digest) == place and list(archive.walk()) == [place]
    assert archive.open(digest) == b"picture"
    assert archive.remove(digest) and list(archive.walk()) == []
    assert archive.remove(digest)
    for call in (archive.path, archive.open):
        with pytest.raises(StationError, match=f"no picture {digest}: it was not kept, or has aged out"):
            call(digest)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "/..", "*" * 64, "é" * 64])
def test_nothing_but_a_digest_reaches_a_path(tmp_path: Path, digest: str) -> None:
    archive = Archive(tmp_path)
    for call in (archive.path, archive.open, archive.remove):
        with pytest.raises(StationError, match="expected SHA-256, 64 hexadecimal digits"):
            call(digest)


@pytest.mark.parametrize("suffix", ["png", ".", "./../x", ".PNG", ".png\n", ".toolongsuffix"])
def test_a_suffix_is_checked(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(StationError, match="expected none, or a dot"):
        Archive(tmp_path).put(b"x", suffix)
    assert list(Archive(tmp_path).walk()) == []


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    digest = archive.put(b"picture")
    archive.path(digest).write_bytes(b"pictura")
    with pytest.raises(StationError, match=r"its contents differ from the digest in its name. Restore it"):
        archive.open(digest)


def test_what_was_put_again_is_not_removed(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    digest = archive.put(b"picture")
    os.utime(archive.path(digest), (0, 0))
    archive.put(b"picture")
    assert not archive.remove(digest, unused_s=60)
    assert archive.open(digest) == b"picture"
    os.utime(archive.path(digest), (0, 0))
    assert archive.remove(digest, unused_s=60)


class Line:
    """A ledger and an archive, and pictures as an inspection gives them."""

    def __init__(self, url: str, folder: Path) -> None:
        self.clock = Clock()
        self.ledger = Ledger(url, "s", self.clock)
        self.archive = Archive(folder / "pictures", self.clock)

    def retention(self, days: float = 30, max_bytes: int = 1 << 40, keep_one_in: int = 1) -> Retention:
        return Retention(self.ledger, self.archive, days, max_bytes, keep_one_in, clock=self.clock)

    def inspect(self, name: str, outcome: str) -> str:
        """An inspection whose picture is kept; it has 100 bytes."""
        data = name.encode().ljust(100)
        digest = self.archive.put(data, ".png")
        os.utime(self.archive.path(digest), (self.clock.now, self.clock.now))
        kept = Picture(digest, len(data), worth(outcome))
        self.ledger.append([Entry("inspection", part=name, verdict=outcome, pictures=(kept,))])
        return digest

    def kept(self) -> set[str]:
        on_disk = {path.name[:64] for path in self.archive.walk()}
        assert on_disk == set(self.ledger.pictures())
        return on_disk


@pytest.fixture
def line(database: str, tmp_path: Path) -> Iterator[Line]:
    line = Line(database, tmp_path)
    with line.ledger:
        yield line


def test_pictures_that_are_too_old_go_and_that_is_a_record(line: Line) -> None:
    old = [line.inspect(f"old {outcome}", outcome) for outcome in ("PASS", "REJECT", "REVIEW")]
    again = line.inspect("the same picture again", "PASS")
    line.clock.now += 20 * DAY
    young = line.inspect("young", "PASS")
    assert line.inspect("the same picture again", "PASS") == again
    keeper = line.retention(days=30)
    assert keeper.step() == 0
    line.clock.now += 15 * DAY
    assert keeper.step() == 3
    assert keeper.step() == 0
    assert line.kept() == {young, again}
    last = line.ledger.history(limit=1)[0]
    assert last.kind == "event"
    assert {**last.body, "pictures": set(last.body["pictures"])} == {
        "event": "aged out",
        "why": "older than 30 days",
        "bytes": 300,
        "pictures": set(old),
    }
    assert line.ledger.verify() == []


def test_when_space_is_short_the_oldest_passes_go_first_then_reviews_then_rejects(line: Line) -> None:
    order = ["REJECT", "REVIEW", "PASS", "REJECT", "PASS", "REVIEW"]
    digests = []
    for number, outcome in enumerate(order):
        line.clock.now += 1
        digests.append(line.inspect(f"{number}", outcome))
    line.clock.now += 3600
    gone = []
    for count in range(6, -1, -1):
        keeper = line.retention(max_bytes=max(100 * count, 1))
        assert keeper.step() == (count < 6)
        gone += [digest for digest in digests if digest not in line.kept() and digest not in gone]
    assert [digests.index(digest) for digest in gone] == [2, 4, 1, 5, 0, 3]
    assert line.ledger.history(limit=1)[0].body["why"] == "more than 1 bytes"


def test_a_fresh_picture_stays_whatever_the_archive_holds(line: Line) -> None:
    digest = line.inspect("fresh", "PASS")
    keeper = line.retention(max_bytes=1)
    assert keeper.step() == 0
    assert line.kept() == {digest}
    line.clock.now += 61
    assert keeper.step() == 1


def test_a_step_is_small(line: Line) -> None:
    for number in range(BATCH + 5):
        line.inspect(f"{number}", "PASS")
    line.clock.now += 40 * DAY
    keeper = line.retention()
    assert [keeper.step(), keeper.step(), keeper.step()] == [BATCH, 5, 0]


def test_a_picture_that_a_record_names_meanwhile_stays(line: Line) -> None:
    digest = line.inspect("same", "PASS")
    line.clock.now += 40 * DAY
    keeper = line.retention()
    found = keeper._older("9999")  # what a step saw before the next inspection was written
    assert [each.digest for each in found] == [digest]
    line.inspect("same", "PASS")
    assert line.ledger.forget(found, "older") == []
    assert line.kept() == {digest}


def test_what_a_killed_process_left_is_swept_up(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "LOOKS", 2)
    named = {line.inspect(f"{number}", "PASS") for number in range(3)}
    unnamed = line.archive.put(b"put, and killed before its record")
    half = line.archive.path(unnamed).with_name(f".{unnamed[:40]}.0123abcd.part")
    half.write_bytes(b"put, and ki")
    keeper = line.retention()

    def sweep() -> None:
        while keeper.sweep():
            pass

    sweep()
    assert half.exists() and line.archive.open(unnamed)
    line.clock.now += 3601
    for path in line.archive.walk():
        os.utime(path, (0, 0))
    sweep()
    assert not half.exists()
    assert line.kept() == named


def test_one_in_n_passes_is_kept_and_all_else(line: Line) -> None:
    keeper = line.retention(keep_one_in=10)
    kept = [job for job in range(5000) if keeper.keeps("PASS", job)]
    assert 400 < len(kept) < 600
    assert kept == [job for job in range(5000) if keeper.keeps("PASS", job)]
    for cavities in (2, 4, 5, 10):  # the draw has no period of its own
        shares = [sum(job % cavities == cavity for job in kept) / len(kept) * cavities for cavity in range(cavities)]
        assert min(shares) > 0.6 and max(shares) < 1.4
    assert all(keeper.keeps(outcome, 1) for outcome in ("REVIEW", "REJECT", "INVALID", "LATE", "ERROR", "ABORTED"))
    assert all(line.retention(keep_one_in=1).keeps("PASS", job) for job in range(50))


@pytest.mark.parametrize(
    ("days", "max_bytes", "keep_one_in"), [(0, 1, 1), (float("inf"), 1, 1), (float("nan"), 1, 1), (1, 0, 1), (1, 1, 0)]
)
def test_limits_that_keep_nothing_are_refused(tmp_path: Path, days: float, max_bytes: int, keep_one_in: int) -> None:
    with Ledger(str(tmp_path / "r.db"), "s") as ledger, pytest.raises(StationError, match="Correct the settings"):
        Retention(ledger, Archive(tmp_path), days, max_bytes, keep_one_in)


def test_it_runs_beside_the_line_and_reports_what_goes_wrong(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        line.inspect(f"{number}", "PASS")
    line.clock.now += 40 * DAY
    fresh = line.inspect("fresh", "REJECT")
    reports: list[Exception] = []
    failed, works = threading.Event(), threading.Event()
    remove = line.archive.remove

    def fails_first(digest: str, unused_s: float = 0) -> bool:
        if not failed.is_set():
            failed.set()
            raise StorageError("read-only")
        works.set()
        return remove(digest, unused_s)

    monkeypatch.setattr(line.archive, "remove", fails_first)
    keeper = line.retention()
    keeper.start(reports.append, every_s=0.01)
    assert failed.wait(30)
    line.ledger.append([Entry("event", body={"event": "the line goes on"})])
    for path in line.archive.walk():
        if path.name[:64] != fresh:
            os.utime(path, (0, 0))
    monkeypatch.setattr(retention, "SWEEP_EVERY_S", 0)
    assert works.wait(30)
    keeper.close()
    assert [str(each) for each in reports] == ["read-only"]
    assert line.archive.open(fresh)
    assert line.ledger.verify() == []

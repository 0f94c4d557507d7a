"""Decide which pictures are kept, and for how long: by days and bytes, in the background.

All pictures of rejects, reviews and failed inspections are kept, and one in N of the passes. Pictures are removed after
a number of days. If the archive is larger than a number of bytes, the oldest passes are removed first, then reviews,
then all others. A record names the removed pictures. Records are never removed.
"""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from andon import files
from andon.station import schema
from andon.station.archive import DIGEST, Archive
from andon.station.entries import stamp_of
from andon.station.events import Outcome, StationError
from andon.station.ledger import Held, Ledger

LONGEST_DAYS = 100_000
BATCH = 100
"""Maximum number of pictures that one step removes from the archive."""
LOOKS = 1000
"""Number of files of the archive that one call of `sweep` examines."""
WORTHS = (0, 1, 2)
BREATH_S = 0.05
SWEEP_EVERY_S = 24 * 3600
LEFTOVER_S = 3600
"""Age in seconds from which a file without a record is removed: a killed process has left it."""


def worth(outcome: str) -> int:
    """Return the worth of a picture: PASS 0, REVIEW 1, all others 2. Pictures of low worth are removed first."""
    return {Outcome.PASS.value: 0, Outcome.REVIEW.value: 1}.get(outcome, 2)


class Usage(NamedTuple):
    """Use of the archive by the pictures of one worth."""

    worth: int
    """0: PASS; 1: REVIEW; 2: all others."""
    files: int
    """Number of pictures and maps."""
    size: int
    """Bytes."""
    oldest: str
    """Time of the oldest record."""


class Retention:
    """Keeps an archive within its limits, a few files at a time.

    Args:
        ledger: records of the station.
        archive: pictures of this station only: files that none of its records names are removed after an hour.
        days: time for which a picture is kept after the last record that names it.
        max_bytes: maximum total size of the pictures.
        keep_one_in: one of this number of PASS pictures is kept; 1: all.
        fresh_s: a younger picture is never removed.
        clock: returns seconds since 1970; also compared with the times of files.
    """

    def __init__(
        self,
        ledger: Ledger,
        archive: Archive,
        days: float,
        max_bytes: int,
        keep_one_in: int,
        fresh_s: float = 60,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < days <= LONGEST_DAYS or max_bytes < 1 or keep_one_in < 1:
            raise StationError(
                f"retention of {days} days, {max_bytes} bytes, one in {keep_one_in}: expected days above 0 and at most "
                f"{LONGEST_DAYS}, and at least 1 for the others. Correct the settings."
            )
        self.ledger, self.archive = ledger, archive
        self.days, self.max_bytes, self.keep_one_in, self.fresh_s = days, max_bytes, keep_one_in, fresh_s
        self._clock = clock
        self._walk: Iterator[Path] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def keeps(self, outcome: str, job: int) -> bool:
        """Whether to keep the picture of a job. A hash of the job id selects passes, so that they are not periodic."""
        drawn = int(files.digest(f"{self.ledger.station}:{job}".encode())[:12], 16)
        return worth(outcome) > 0 or drawn % self.keep_one_in == 0

    def usage(self) -> list[Usage]:
        """Return the use of the archive by worth, from passes to rejects."""
        table = schema.pictures.c
        count, size, oldest = sa.func.count(), sa.func.sum(table.size), sa.func.min(table.time)
        query = sa.select(table.worth, count, size, oldest).where(table.station == self.ledger.station)
        with self.ledger.reading() as connection:
            rows = connection.execute(query.group_by(table.worth).order_by(table.worth))
            return [Usage(worth, number, int(total), str(first)) for worth, number, total, first in rows]

    def step(self) -> int:
        """Remove at most `BATCH` pictures; return how many were removed. 0: the archive is within its limits."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        gone = self._drop(self._older(stamp_of(now - timedelta(days=self.days))), f"older than {self.days:g} days")
        if not gone:
            before = stamp_of(now - timedelta(seconds=self.fresh_s))
            gone = self._drop(self._surplus(before), f"more than {self.max_bytes} bytes")
        return gone

    def sweep(self) -> bool:
        """Remove files that no record names, among the next `LOOKS` files; return whether more files follow.

        After the last file, the next call starts again with the first.
        """
        self._walk = self._walk or self.archive.walk()
        some = list(islice(self._walk, LOOKS))
        stale = [path for path in some if self._stale(path)]
        known = self._known({path.name[:64] for path in stale})
        for path in stale:
            if path.name[:64] not in known:
                self._remove(path)
        if len(some) < LOOKS:
            self._walk = None
        return len(some) == LOOKS

    def start(self, report: Callable[[Exception], None], every_s: float = 60) -> None:
        """Start a thread that keeps the archive within its limits. Errors are reported, and the thread tries again."""
        self._thread = threading.Thread(target=self._run, args=(report, every_s), name="retention", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _run(self, report: Callable[[Exception], None], every_s: float) -> None:
        pause, sweep_at = 0.0, 0.0
        while not self._stop.wait(pause):
            busy = False
            try:
                busy = self.step() > 0
                if time.monotonic() >= sweep_at:
                    more = self.sweep()
                    busy, sweep_at = busy or more, sweep_at if more else time.monotonic() + SWEEP_EVERY_S
            except Exception as error:
                report(error)
            pause = BREATH_S if busy else every_s

    def _drop(self, pictures: list[Held], why: str) -> int:
        """Record the removal, then remove the files. `sweep` removes files that remain after a kill."""
        gone = self.ledger.forget(pictures, why) if pictures else []
        for each in gone:
            self.archive.remove(each.digest, unused_s=self.fresh_s)
        return len(gone)

    def _older(self, before: str) -> list[Held]:
        found: list[Held] = []
        for each in WORTHS:
            found += self._oldest(each, before, BATCH - len(found))
        return found

    def _surplus(self, before: str) -> list[Held]:
        """Return the pictures to remove until the archive is within `max_bytes`: lowest worth first, then oldest."""
        table = schema.pictures.c
        query = sa.select(sa.func.coalesce(sa.func.sum(table.size), 0)).where(table.station == self.ledger.station)
        with self.ledger.reading() as connection:
            over = int(connection.execute(query).scalar_one()) - self.max_bytes
        found: list[Held] = []
        for each in WORTHS:
            for picture in self._oldest(each, before, BATCH - len(found)) if over > 0 else []:
                if over <= 0:
                    break
                found.append(picture)
                over -= picture.size
        return found

    def _oldest(self, worth: int, before: str, most: int) -> list[Held]:
        table = schema.pictures.c
        query = sa.select(table.digest, table.time, table.size).where(
            table.station == self.ledger.station, table.worth == worth, table.time < before
        )
        with self.ledger.reading() as connection:
            return [Held(*row) for row in connection.execute(query.order_by(table.time).limit(most))]

    def _known(self, digests: set[str]) -> set[str]:
        if not digests:
            return set()
        table = schema.pictures.c
        query = sa.select(table.digest).where(table.station == self.ledger.station, table.digest.in_(digests))
        with self.ledger.reading() as connection:
            return set(connection.execute(query).scalars())

    def _stale(self, path: Path) -> bool:
        try:
            return self._clock() - path.stat().st_mtime > LEFTOVER_S
        except FileNotFoundError:
            return False

    def _remove(self, path: Path) -> None:
        if DIGEST.fullmatch(path.name[:64]):
            self.archive.remove(path.name[:64], unused_s=LEFTOVER_S)
        else:
            path.unlink(missing_ok=True)  # an incomplete file

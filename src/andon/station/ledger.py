"""Writing the record of a station: durable when a call returns, chained, by one process at a time."""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

import filelock
import sqlalchemy as sa
from sqlalchemy import exc

from andon import files
from andon.errors import StorageError
from andon.station import schema
from andon.station.entries import LONGEST_TEXT, Entry, Row, chained, check_text, draft, stamp
from andon.station.events import StationError
from andon.station.reader import Reader, columns

Head = tuple[int, str, str, str]  # sequence, digest, time and clock of the last record


class Ledger(Reader):
    """The one writer of a station's records; a second one is refused. Every call may come from any thread.

    An error is StorageError when the database is away, full or read-only: nothing is half-written, and the same call
    works when the cause is gone. When a commit was in doubt, the same call again finds out and writes nothing twice.

    Args:
        url: `postgresql://…`, `sqlite:///…`, or the path of an SQLite file, which is made.
        station: the identity whose chain is written.
        clock: seconds since 1970.
    """

    def __init__(self, url: str, station: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._mutex = threading.RLock()
        self._connection: sa.Connection | None = None
        self._head: Head | None = None
        self._doubt: tuple[list[dict[str, Any]], list[Row]] | None = None
        self._lock: filelock.FileLock | None = None
        self._inode: int | None = None
        self._holder = files.canonical_json(
            {"host": socket.gethostname(), "pid": os.getpid(), "since": stamp(clock()), "token": secrets.token_hex(8)}
        )
        self._claimed = False
        super().__init__(url, station)

    def _open(self) -> None:
        try:
            self._open_file()
            schema.migrate(self.engine)
            with self._writing():
                pass
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Let go of the station's identity."""
        with self._mutex:
            self._drop()
            if self._lock:
                self._lock.release()
            super().close()

    def append(
        self, entries: Sequence[Entry], deliver: Sequence[str] = (), state: dict[str, Any] | None = None
    ) -> list[Row]:
        """Write all entries, or none; they are durable when this returns.

        Args:
            entries: what happened, in this order.
            deliver: targets that each entry is to be delivered to, by way of the outbox.
            state: what `state()` returns from now on.
        """
        drafts = [draft(entry) for entry in entries]
        for target in deliver:
            check_text("target", target, LONGEST_TEXT)
        if not drafts and state is None:
            return []
        with self._writing() as connection:
            head = self._head or self._load(connection)
            rows, new = self._settled(head, drafts), head
            if rows is None:
                rows, new = self._write(connection, head, drafts, state)
                _insert(connection, schema.outbox, [self._message(row, to) for to in deliver for row in rows])
                self._keep_pictures(connection, rows, entries)
        self._head, self._doubt = new, None
        return rows

    def _settled(self, head: Head, drafts: list[dict[str, Any]]) -> list[Row] | None:
        """The rows of these drafts, when the last call wrote them after all though its commit was in doubt."""
        if self._doubt and drafts and self._doubt[0] == drafts and self._doubt[1][-1].digest == head[1]:
            return self._doubt[1]
        return None

    def _write(
        self, connection: sa.Connection, head: Head, drafts: list[dict[str, Any]], state: dict[str, Any] | None
    ) -> tuple[list[Row], Head]:
        changes: dict[str, Any] = {} if state is None else {"state": files.canonical_json(state)}
        rows: list[Row] = []
        if drafts:
            clock = stamp(self._clock())
            jump = [draft(_jump(head[3], clock))] if clock < head[3] else []
            rows = chained(head[:3], self.station, clock, jump + drafts)
            head = (rows[-1].sequence, rows[-1].digest, rows[-1].time, clock)
            changes |= dict(zip(("sequence", "digest", "time", "clock"), head, strict=True))
            _insert(connection, schema.records, [row.values() for row in rows])
            rows = rows[len(jump) :]
            self._doubt = (drafts, rows)
        if connection.execute(self._mine(sa.update(schema.stations)).values(**changes)).rowcount != 1:
            raise StationError(_busy(self.place, self.station, None))
        return rows, head

    def _message(self, row: Row, target: str) -> dict[str, Any]:
        return {"station": self.station, "target": target, "sequence": row.sequence}

    def _keep_pictures(self, connection: sa.Connection, rows: list[Row], entries: Sequence[Entry]) -> None:
        table = schema.pictures.c
        for row, entry in zip(rows, entries, strict=True):
            for picture in entry.pictures:
                mine = sa.and_(table.station == self.station, table.digest == picture.digest)
                connection.execute(sa.delete(schema.pictures).where(mine, table.worth <= picture.worth))
                known = connection.execute(sa.select(table.worth).where(mine)).scalar()
                if known is None:
                    values = {**picture._asdict(), "station": self.station, "time": row.time}
                    connection.execute(sa.insert(schema.pictures).values(values))

    def state(self) -> dict[str, Any] | None:
        """What was kept last; None when nothing was."""
        with self._writing() as connection:
            query = sa.select(schema.stations.c.state).where(schema.stations.c.name == self.station)
            text = connection.execute(query).scalar_one()
        return json.loads(text) if text else None

    def keep_state(self, state: dict[str, Any]) -> None:
        """Keep what the machine remembers, in place of what was kept before."""
        self.append([], state=state)

    def reserve(self, count: int) -> int:
        """The first of `count` job ids in a row that nobody was or will be given."""
        if count < 1:
            raise StationError(f"{count} job ids: expected at least 1. Ask for one or more.")
        with self._writing() as connection:
            table = schema.stations
            query = self._mine(sa.update(table)).values(next_job=table.c.next_job + count).returning(table.c.next_job)
            return int(connection.execute(query).scalar_one()) - count

    def outbox(self, target: str, limit: int = 100) -> list[Row]:
        """What a target has not yet taken, the oldest first. It may get a message twice: `Row.key` tells it."""
        table, waits = schema.records.c, schema.outbox.c
        same = sa.and_(table.station == waits.station, table.sequence == waits.sequence)
        query = sa.select(*columns).join_from(schema.outbox, schema.records, same)
        query = query.where(waits.station == self.station, waits.target == target)
        with schema.errors(self.engine), self.engine.begin() as connection:
            found = connection.execute(query.order_by(waits.sequence).limit(limit)).mappings()
            return [Row(**each) for each in found]

    def delivered(self, target: str, sequence: int) -> None:
        """A target has taken all its messages up to this one."""
        waits = schema.outbox.c
        with self._writing() as connection:
            connection.execute(
                sa.delete(schema.outbox).where(
                    waits.station == self.station, waits.target == target, waits.sequence <= sequence
                )
            )

    def backlog(self) -> dict[str, int]:
        """How many messages wait for each target."""
        waits = schema.outbox.c
        query = sa.select(waits.target, sa.func.count()).where(waits.station == self.station).group_by(waits.target)
        with schema.errors(self.engine), self.engine.begin() as connection:
            return {str(target): int(count) for target, count in connection.execute(query)}

    # One writer

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction of the one connection that writes; made anew after an error."""
        with self._mutex, schema.errors(self.engine):
            self._check_file()
            connection = self._connection = self._connection or self._connect()
            try:
                with connection.begin():
                    yield connection
            except BaseException:
                self._drop()
                raise

    def _connect(self) -> sa.Connection:
        connection = self.engine.connect().execution_options(writes=True)
        try:
            with connection.begin():
                self._claim(connection)
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        self._claimed = True
        return connection

    def _drop(self) -> None:
        connection, self._connection, self._head = self._connection, None, None
        if connection:
            with suppress(exc.DBAPIError, OSError):
                connection.invalidate()  # a lock of PostgreSQL ends with its connection
            connection.close()

    def _claim(self, connection: sa.Connection) -> None:
        """Become the writer of this station, or after a lost connection again."""
        table = schema.stations
        found = connection.execute(sa.select(table.c.holder).where(table.c.name == self.station)).scalar()
        if self.engine.dialect.name == "postgresql":
            number = schema.lock_number(f"station {self.station}")
            if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(number))).scalar():
                raise StationError(_busy(self.place, self.station, found))
        if self._claimed and found != self._holder:
            raise StationError(_busy(self.place, self.station, found))
        if found is None:
            first = {"sequence": 0, "digest": "", "time": "", "clock": "", "next_job": 1, "state": ""}
            connection.execute(sa.insert(table).values(name=self.station, holder=self._holder, **first))
        else:
            connection.execute(sa.update(table).where(table.c.name == self.station).values(holder=self._holder))

    def _open_file(self) -> None:
        """Lock the station's identity beside an SQLite file; the lock ends with the process."""
        file = schema.file_of(self.engine)
        if not file:
            return
        files.make_folder(file.parent)
        name = f"{file.name}.{files.digest(self.station.encode())[:12]}.lock"
        self._lock = filelock.FileLock(file.with_name(name), blocking=False)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            self._lock = None
            raise StationError(_busy(self.place, self.station, self._peek())) from None
        except (OSError, NotImplementedError) as error:
            self._lock = None
            raise StorageError(
                f"{file}: cannot be locked: {error}. Allow writing in {file.parent}, or name another place."
            ) from None

    def _peek(self) -> str | None:
        table = schema.stations.c
        with suppress(exc.DBAPIError), self.engine.begin() as connection:
            return connection.execute(sa.select(table.holder).where(table.name == self.station)).scalar()
        return None

    def _check_file(self) -> None:
        """A database that was moved or replaced would take records that nobody finds again."""
        file = schema.file_of(self.engine)
        if not file or not self._connection:
            return
        try:
            inode = file.stat().st_ino
        except OSError as error:
            raise StorageError(f"{file}: the database is gone: {files.reason(error)}. Put it back.") from None
        self._inode = self._inode or inode
        if inode != self._inode:
            raise StorageError(f"{file}: another file is in its place. Put the database of this station back.")

    def _mine(self, query: sa.Update) -> sa.Update:
        table = schema.stations.c
        return query.where(table.name == self.station, table.holder == self._holder)

    def _load(self, connection: sa.Connection) -> Head:
        table = schema.stations.c
        query = sa.select(table.sequence, table.digest, table.time, table.clock).where(table.name == self.station)
        sequence, digest, moment, clock = connection.execute(query).one()
        return sequence, digest, moment, clock


def _insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(sa.insert(table), rows)


def _jump(before: str, now: str) -> Entry:
    return Entry("event", body={"event": "clock went back", "from": before, "to": now})


def _busy(place: str, station: str, holder: str | None) -> str:
    found = json.loads(holder) if holder else {}
    who = "process {pid} on {host} since {since}".format_map(found) if found else "another process"
    return (
        f"{place}: {who} writes the records of station '{station}'. Expected one writer. End it, or give this station "
        "a name of its own."
    )

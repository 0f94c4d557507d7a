"""The only process that writes the records of a station: its lock and its connection."""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import filelock
import sqlalchemy as sa
from sqlalchemy import exc

from andon import files
from andon.errors import StorageError
from andon.station import schema
from andon.station.entries import Row, stamp
from andon.station.events import StationError
from andon.station.reader import Reader

Head = tuple[int, str, str, str]  # sequence, digest, time and clock of the last record


class Writer(Reader):
    """Holds the lock of a station while it is open; a second writer is refused.

    The lock is a file beside the SQLite database, or an advisory lock of the session in PostgreSQL. Both end with the
    process, even if it is killed. Each write also checks the holder in the database, so that a process that lost its
    lock without noticing cannot write.
    """

    writes = True

    def __init__(self, url: str, station: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._mutex = threading.RLock()
        self._connection: sa.Connection | None = None
        self._head: Head | None = None
        self._doubt: tuple[list[dict[str, Any]], list[Row]] | None = None
        self._lock: filelock.FileLock | None = None
        self._inode: int | None = None  # set at the first connection
        self._holder = files.canonical_json(
            {"host": socket.gethostname(), "pid": os.getpid(), "since": stamp(clock()), "token": secrets.token_hex(8)}
        )
        super().__init__(url, station)

    def _open(self) -> None:
        self._open_file()
        schema.migrate(self.engine)
        with self._writing():
            pass

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Release the lock and close the database."""
        with self._mutex:
            self._drop()
            if self._lock:
                self._lock.release()
            super().close()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """Yield a transaction of the only writing connection, which is replaced after an error."""
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
        file = schema.file_of(self.engine)
        self._inode = file.stat().st_ino if file else 0
        return connection

    def _drop(self) -> None:
        connection, self._connection, self._head = self._connection, None, None
        if connection:
            with suppress(exc.DBAPIError, OSError):
                connection.invalidate()  # a lock of PostgreSQL ends with its connection
            connection.close()

    def _claim(self, connection: sa.Connection) -> None:
        """Become the writer of this station, at the start or after a lost connection."""
        table = schema.stations
        found = connection.execute(sa.select(table.c.holder).where(table.c.name == self.station)).scalar()
        if self.engine.dialect.name == "postgresql":
            number = schema.lock_number(f"station {self.station}")
            if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(number))).scalar():
                if found == self._holder:
                    raise StorageError(
                        f"{self.place}: the lost connection still holds the lock of station '{self.station}'. "
                        "PostgreSQL ends it within a minute. Try again then."
                    )
                raise StationError(_busy(self.place, self.station, found))
        if self._inode is not None and found != self._holder:
            raise StationError(_busy(self.place, self.station, found))
        if found is None:
            first = {"sequence": 0, "digest": "", "time": "", "clock": "", "next_job": 1, "state": ""}
            connection.execute(sa.insert(table).values(name=self.station, holder=self._holder, **first))
        else:
            connection.execute(sa.update(table).where(table.c.name == self.station).values(holder=self._holder))

    def _open_file(self) -> None:
        """Lock the station by a file beside the SQLite database."""
        file = schema.file_of(self.engine)
        if not file:
            return
        files.make_folder(file.parent)
        name = f"{file.name}.{files.digest(self.station.encode())[:12]}.lock"
        self._lock = filelock.FileLock(file.with_name(name), blocking=False, thread_local=False)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            self._lock = None
            raise StationError(_busy(self.place, self.station, self._peek())) from None
        except (OSError, NotImplementedError) as error:
            self._lock = None
            raise StorageError(
                f"{file}: cannot be locked: {error}. Allow writing in {file.parent}, or choose another place."
            ) from None

    def _peek(self) -> str | None:
        table = schema.stations.c
        with suppress(StorageError), self.reading() as connection:
            return connection.execute(sa.select(table.holder).where(table.name == self.station)).scalar()
        return None

    def _check_file(self) -> None:
        """Raise StorageError if the database file was moved or replaced: its records would be lost."""
        file = schema.file_of(self.engine)
        if not file or self._inode is None:
            return
        try:
            inode = file.stat().st_ino
        except OSError as error:
            raise StorageError(f"{file}: the database is gone: {files.reason(error)}. Put it back.") from None
        if inode != self._inode:
            raise StorageError(f"{file}: another file is in its place. Put the database of this station back.")

    def _mine(self, query: sa.Update) -> sa.Update:
        table = schema.stations.c
        return query.where(table.name == self.station, table.holder == self._holder)

    def _lost(self, connection: sa.Connection) -> StationError:
        table = schema.stations.c
        holder = connection.execute(sa.select(table.holder).where(table.name == self.station)).scalar()
        return StationError(_busy(self.place, self.station, holder))

    def _load(self, connection: sa.Connection) -> Head:
        table = schema.stations.c
        query = sa.select(table.sequence, table.digest, table.time, table.clock).where(table.name == self.station)
        sequence, digest, moment, clock = connection.execute(query).one()
        return sequence, digest, moment, clock


def _busy(place: str, station: str, holder: str | None) -> str:
    found = json.loads(holder) if holder else {}
    who = "process {pid} on {host} since {since}".format_map(found) if found else "another process"
    return (
        f"{place}: {who} writes the records of station '{station}'; expected no other writer. End it, or give this "
        "station another name."
    )

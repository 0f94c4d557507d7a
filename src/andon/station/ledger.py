"""Write the records of a station: durable when a call returns, in a chain of digests, with an outbox for delivery."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from andon import files
from andon.station import schema
from andon.station.entries import LONGEST_TEXT, Entry, Row, chained, check_text, draft, stamp
from andon.station.events import StationError
from andon.station.reader import columns
from andon.station.writer import Head, Writer


class Held(NamedTuple):
    """A picture in the archive."""

    digest: str
    time: str
    """Time of the last record that names it."""
    size: int
    """Bytes."""


class Ledger(Writer):
    """Writes the records of a station. All methods may be called from any thread.

    StorageError when the database is not available, full or read-only: then nothing was written, and the call can be
    repeated when the cause is removed. If it is not known whether a commit succeeded, the repeated call finds this out
    and writes nothing twice.

    Args:
        url: `postgresql://…`, `sqlite:///…`, or the path of an SQLite file, which is created if missing.
        station: name of the station.
        clock: seconds since 1970.
    """

    def append(
        self, entries: Sequence[Entry], deliver: Sequence[str] = (), state: dict[str, Any] | None = None
    ) -> list[Row]:
        """Write all entries or none; they are durable when this returns.

        Args:
            entries: entries in the order of the chain.
            deliver: targets of the outbox for each entry.
            state: the value that `state()` returns from now on.
        """
        drafts = [draft(entry) for entry in entries]
        for target in deliver:
            check_text("target", target, LONGEST_TEXT)
        if not drafts and state is None:
            return []
        with self._mutex:
            with self._writing() as connection:
                head = self._head or self._load(connection)
                rows = self._settled(connection, drafts)
                if rows is None:
                    rows, head = self._write(connection, head, drafts, state)
                    self._doubt = (drafts, rows) if rows else None
                    _insert(connection, schema.outbox, [self._message(row, to) for to in deliver for row in rows])
                    self._keep_pictures(connection, rows, entries)
            self._head, self._doubt = head, None
        return rows

    def _settled(self, connection: sa.Connection, drafts: list[dict[str, Any]]) -> list[Row] | None:
        """Return the rows of these drafts if the last call wrote them, although its commit reported an error."""
        if not self._doubt or self._doubt[0] != drafts:
            return None
        rows, table = self._doubt[1], schema.records.c
        query = sa.select(table.digest).where(table.station == self.station, table.sequence == rows[-1].sequence)
        return rows if connection.execute(query).scalar() == rows[-1].digest else None

    def _write(
        self, connection: sa.Connection, head: Head, drafts: list[dict[str, Any]], state: dict[str, Any] | None
    ) -> tuple[list[Row], Head]:
        """Append drafts to the chain. The update of the station's row fails if this process is no longer the writer."""
        changes: dict[str, Any] = {} if state is None else {"state": files.canonical_json(state)}
        rows: list[Row] = []
        new, jumps = head, 0
        if drafts:
            clock = stamp(self._clock())
            jumps = int(clock < head[3])
            before = [draft(_jump(head[3], clock))] * jumps
            rows = chained(head[:3], self.station, clock, before + drafts)
            new = (rows[-1].sequence, rows[-1].digest, rows[-1].time, clock)
            changes |= dict(zip(("sequence", "digest", "time", "clock"), new, strict=True))
        mine = {"my_name": self.station, "my_holder": self._holder, "my_sequence": head[0]}
        if connection.execute(_advance(tuple(changes)), {**changes, **mine}).rowcount != 1:
            raise self._lost(connection)
        _insert(connection, schema.records, [row.values() for row in rows])
        return rows[jumps:], new

    def _message(self, row: Row, target: str) -> dict[str, Any]:
        return {"station": self.station, "target": target, "sequence": row.sequence}

    def _keep_pictures(self, connection: sa.Connection, rows: list[Row], entries: Sequence[Entry]) -> None:
        named: dict[str, dict[str, Any]] = {}
        for row, entry in zip(rows, entries, strict=True):
            for each in entry.pictures:
                worth = max(each.worth, named.get(each.digest, {"worth": 0})["worth"])
                named[each.digest] = {**each._asdict(), "worth": worth, "station": self.station, "time": row.time}
        if named:
            connection.execute(_hold(self.engine.dialect.name), list(named.values()))

    def forget(self, pictures: Sequence[Held], why: str) -> list[Held]:
        """Record that pictures aged out, before their files are removed.

        Returns the pictures whose files may be removed. Pictures that a newer record names are kept.
        """
        table = schema.pictures.c
        with self._mutex:
            with self._writing() as connection:
                head = self._head or self._load(connection)
                gone = [
                    each
                    for each in pictures
                    if connection.execute(
                        sa.delete(schema.pictures).where(
                            table.station == self.station, table.digest == each.digest, table.time == each.time
                        )
                    ).rowcount
                ]
                if gone:
                    size = sum(each.size for each in gone)
                    body = {"event": "aged out", "why": why, "bytes": size, "pictures": [g.digest for g in gone]}
                    _, head = self._write(connection, head, [draft(Entry("event", body=body))], None)
            self._head = head
        return gone

    def state(self) -> dict[str, Any] | None:
        """Return the state that was written last; None if there is none."""
        with self.reading() as connection:
            query = sa.select(schema.stations.c.state).where(schema.stations.c.name == self.station)
            text = connection.execute(query).scalar_one()
        return json.loads(text) if text else None

    def keep_state(self, state: dict[str, Any]) -> None:
        """Replace the stored state of the machine."""
        self.append([], state=state)

    def reserve(self, count: int) -> int:
        """Reserve `count` successive job ids that were never used; return the first."""
        if count < 1:
            raise StationError(f"{count} job ids: expected at least 1. Correct it.")
        with self._writing() as connection:
            table = schema.stations
            query = self._mine(sa.update(table)).values(next_job=table.c.next_job + count).returning(table.c.next_job)
            following = connection.execute(query).scalar()
            if following is None:
                raise self._lost(connection)
        return int(following) - count

    def outbox(self, target: str, limit: int = 100) -> list[Row]:
        """Return the undelivered records of a target, the oldest first. `Row.key` identifies a repeated delivery."""
        table, waits = schema.records.c, schema.outbox.c
        same = sa.and_(table.station == waits.station, table.sequence == waits.sequence)
        query = sa.select(*columns).join_from(schema.outbox, schema.records, same)
        query = query.where(waits.station == self.station, waits.target == target)
        with self.reading() as connection:
            found = connection.execute(query.order_by(waits.sequence).limit(limit)).mappings()
            return [Row(**each) for each in found]

    def delivered(self, target: str, sequence: int) -> None:
        """Note that a target has received all records up to this one."""
        waits = schema.outbox.c
        with self._writing() as connection:
            connection.execute(
                sa.delete(schema.outbox).where(
                    waits.station == self.station, waits.target == target, waits.sequence <= sequence
                )
            )

    def backlog(self) -> dict[str, int]:
        """Return the number of undelivered records of each target."""
        waits = schema.outbox.c
        query = sa.select(waits.target, sa.func.count()).where(waits.station == self.station).group_by(waits.target)
        with self.reading() as connection:
            return {str(target): int(count) for target, count in connection.execute(query)}


# The statements of each record are built once: building them takes longer than their execution.


@cache
def _advance(changed: tuple[str, ...]) -> sa.Update:
    """Return the update of these columns of a station's row, if it still has this writer and this last record."""
    table = schema.stations.c
    mine = [getattr(table, name) == sa.bindparam(f"my_{name}") for name in ("name", "holder", "sequence")]
    return sa.update(schema.stations).where(*mine).values({name: sa.bindparam(name) for name in changed})


@cache
def _hold(dialect: str) -> sa.Executable:
    """Return the statement that adds pictures, or updates their times and worths."""
    query = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(schema.pictures)
    old, new = schema.pictures.c.worth, query.excluded.worth
    again = {"time": query.excluded.time, "worth": sa.case((old > new, old), else_=new)}
    return query.on_conflict_do_update(index_elements=["station", "digest"], set_=again)


def _insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(sa.insert(table), rows)


def _jump(before: str, now: str) -> Entry:
    return Entry("event", body={"event": "clock went back", "from": before, "to": now})

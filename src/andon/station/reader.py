"""Read the records of a station, also while the station writes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, Self

import sqlalchemy as sa

from andon.errors import counted
from andon.progress import Progress, silent
from andon.station import schema
from andon.station.entries import LONGEST_NAME, LONGEST_TEXT, Kind, Row, check_number, check_text, stamp_of
from andon.station.events import StationError

PAGE = 1000  # number of rows of one query when all rows are read
MOST = 10_000  # maximum number of rows of one page of the history
ALL = 1 << 30  # a limit that is never reached; it prevents the database from merging two queries
STRAYS = 10  # maximum number of records outside the chain that are named, on either side
FEW = 1000  # maximum number of records that are examined one by one

columns = (*(c for c in schema.records.c if c.name != "body"), schema.records.c.body.label("text"))


class Break(NamedTuple):
    """A place where the chain is broken."""

    sequence: int
    what: str


class Reader:
    """The records of one station in a database that may hold several.

    Args:
        url: `postgresql://…`, `sqlite:///…`, or the path of an SQLite file.
        station: name of the station.
    """

    writes = False

    def __init__(self, url: str, station: str) -> None:
        check_text("station", station, LONGEST_NAME)
        self.station = station
        self.engine = schema.connect(url, self.writes)
        self.place = schema.place(self.engine.url)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        schema.check(self.engine)

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a transaction for reading. After an error its connection is closed, because it may hold unread data."""
        with schema.errors(self.engine), self.engine.connect() as connection:
            try:
                with connection.begin():
                    yield connection
            except BaseException:
                connection.invalidate()
                raise

    def history(
        self,
        product: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        verdict: str | None = None,
        outcome: str | None = None,
        lot: str | None = None,
        part: str | None = None,
        score: tuple[float, float] | None = None,
        kind: Kind | None = None,
        job: int | None = None,
        after: int | None = None,
        limit: int = 50,
        oldest_first: bool = False,
    ) -> list[Row]:
        """Return one page, the newest first.

        Args:
            verdict: the verdict of a record.
            outcome: the same, or the verdict of the record that corrects it, where there is one (see `corrections`).
            after: sequence number of the last row of the previous page.
        """
        if not 1 <= limit <= MOST:
            raise StationError(f"{limit} records per page: expected 1 to {MOST}. Read several pages with `after`.")
        texts = {"product": product, "verdict": verdict, "outcome": outcome, "lot": lot, "part": part, "kind": kind}
        for name, text in texts.items():
            if text is not None:
                check_text(name, text, LONGEST_TEXT)
        for name, number in {"job": job, "after": after}.items():
            if number is not None:
                check_number(name, number)
        table = schema.records.c
        equal = {"part": part, "job": job, "lot": lot, "verdict": verdict, "product": product}
        filters: list[sa.ColumnElement[bool]] = [table[n] == value for n, value in equal.items() if value is not None]
        conditions: list[sa.ColumnElement[bool] | sa.TextClause] = [table.station == self.station, *filters]
        if kind is not None:
            conditions.append(table.kind == kind)
        if kind not in (None, "inspection"):
            conditions.append(schema.OTHERS)  # allows the database to use the index by kind
        if after is not None:
            conditions.append(table.sequence > after if oldest_first else table.sequence < after)
        with self.reading() as connection:
            if since is not None:
                conditions.append(table.sequence >= self.first(connection, table.time >= stamp_of(since)))
            if until is not None:
                conditions.append(table.sequence < self.first(connection, table.time > stamp_of(until)))
            if score is not None:
                filters.append(table.score.between(*score))
                conditions.append((table.score + 0).between(*score))  # + 0 prevents a slow use of the index
            order = table.sequence.asc() if oldest_first else table.sequence.desc()
            query = sa.select(*columns).where(*conditions).order_by(order).limit(limit)
            if outcome is None:
                if score is not None or len(filters) > 1:
                    query = query.where(*self._narrow(connection, filters))
                return _rows(connection.execute(query))
            # Two queries, because databases find few records slowly by a condition with "or".
            recorded, event = table.verdict == outcome, schema.records.alias("event")
            corrects = [event.c.station == self.station, *_corrects(event)]
            same = event.c.job == table.job
            other = sa.select(event.c.job).where(*corrects, same, event.c.verdict.concat("") != outcome).exists()
            kept = query.where(recorded, ~other)
            if filters:
                kept = kept.where(*self._narrow(connection, [*filters, recorded]))
            those = (
                sa.select(table.sequence).join_from(event, schema.records, same).where(table.station == self.station)
            )
            those = those.where(*corrects, event.c.verdict == outcome, sa.text("event.kind <> 'inspection'"))
            turned = query.where(~recorded, table.sequence.in_(sa.select(those.limit(ALL).cte().c.sequence)))
            rows = [row for each in (kept, turned) for row in _rows(connection.execute(each))]
            return sorted(rows, key=lambda row: row.sequence, reverse=not oldest_first)[:limit]

    def _narrow(self, connection: sa.Connection, filters: list[sa.ColumnElement[bool]]) -> list[sa.ColumnElement[bool]]:
        """Limit the query to the first filter with few matches: databases often begin with the wrong one of several."""
        sequence = schema.records.c.sequence
        for each in filters:
            those = sa.select(sequence).where(schema.records.c.station == self.station, each)
            few = those.limit(FEW + 1).subquery()
            if connection.execute(sa.select(sa.func.count()).select_from(few)).scalar_one() <= FEW:
                # This limit is never reached; it prevents the database from merging the two queries.
                return [sequence.in_(sa.select(those.limit(FEW + MOST).cte().c.sequence))]
        return []

    def first(self, connection: sa.Connection, condition: sa.ColumnElement[bool]) -> int:
        """Return the sequence number of the first record in time; 2^62 if there is none."""
        table = schema.records.c
        query = sa.select(table.sequence).where(table.station == self.station, condition)
        found = connection.execute(query.order_by(table.time, table.sequence).limit(1)).scalar()
        return (1 << 62) if found is None else int(found)

    def record(self, sequence: int) -> Row | None:
        check_number("record", sequence)
        table = schema.records.c
        query = sa.select(*columns).where(table.station == self.station, table.sequence == sequence)
        with self.reading() as connection:
            return next(iter(_rows(connection.execute(query))), None)

    def inspections(self, jobs: Sequence[int | None]) -> Iterator[Row | None]:
        """The inspection of each job, in their order; None where there is none."""
        table = schema.records.c
        for start in range(0, len(jobs), PAGE):
            some = jobs[start : start + PAGE]
            query = sa.select(*columns).where(table.station == self.station, table.job.in_(some))
            with self.reading() as connection:
                rows = _rows(connection.execute(query.where(table.kind == "inspection").order_by(table.sequence)))
                found = {row.job: row for row in rows}
            yield from map(found.get, some)

    def corrections(self, jobs: Sequence[int | None]) -> dict[int | None, Row]:
        """Return the record that corrects the outcome of each job, where there is one: at most `MOST` jobs."""
        table = schema.records.c
        query = sa.select(*columns).where(
            table.station == self.station, table.job.in_(jobs), *_corrects(schema.records)
        )
        with self.reading() as connection:
            return {row.job: row for row in _rows(connection.execute(query.order_by(table.sequence)))}

    def story(self, part: str) -> list[Row]:
        """Return all records of a part, of every station in this database, the oldest first; at most 10,000."""
        check_text("part", part, LONGEST_TEXT)
        table = schema.records.c
        query = sa.select(*columns).where(table.part == part).order_by(table.time, table.station, table.sequence)
        with self.reading() as connection:
            rows = _rows(connection.execute(query.limit(MOST + 1)))
        if len(rows) > MOST:
            raise StationError(
                f"part '{part}': more than {MOST} records; expected an id that belongs to one part. Read them in pages "
                "with `history`, or export them."
            )
        return rows

    def pictures(self) -> Iterator[str]:
        """Yield the digests of all stored pictures of this station."""
        table, last = schema.pictures.c, ""
        query = sa.select(table.digest).where(table.station == self.station).order_by(table.digest).limit(PAGE)
        while True:
            with self.reading() as connection:
                found = connection.execute(query.where(table.digest > last)).scalars().all()
            yield from found
            if len(found) < PAGE:
                return
            last = found[-1]

    def kept(self) -> set[str]:
        """Return the digests of the pictures and maps that the records say are stored: kept, and not aged out.

        Records that are not intact are left out; `verify` finds them.
        """
        found: set[str] = set()
        for row in filter(Row.intact, self.walk()):
            found.update(row.body.get("kept", {}).values())
            if row.kind == "event" and row.body.get("event") in ("aged out", "restored"):
                found.difference_update(row.body.get("pictures", ()))
        return found

    def holds(self, digest: str) -> bool:
        """Whether a stored picture is still named; retention forgets a picture before it removes the file."""
        table = schema.pictures.c
        query = sa.select(table.digest).where(table.station == self.station, table.digest == digest)
        with self.reading() as connection:
            return connection.execute(query).first() is not None

    def walk(self, **filters: Any) -> Iterator[Row]:
        """Yield all records in the order of the chain, or those that match the filters of `history`."""
        after, count = 0, PAGE
        while count == PAGE:
            rows = self.history(**filters, after=after, limit=PAGE, oldest_first=True)
            yield from rows
            count, after = len(rows), rows[-1].sequence if rows else after

    def head(self) -> tuple[int, str]:
        """Return sequence number and digest of the last record, as the station noted them; 0 and empty if none."""
        table = schema.stations.c
        query = sa.select(table.sequence, table.digest).where(table.name == self.station)
        with self.reading() as connection:
            found = connection.execute(query).one_or_none()
        if found is None and not self._outside(1, 0):
            raise StationError(
                f"{self.place}: holds no records of station '{self.station}'. `andon audit verify` lists its stations."
            )
        return (int(found.sequence), str(found.digest)) if found else (0, "")

    def _outside(self, first: int, last: int) -> list[int]:
        """Return a few sequence numbers of records below the first or above the last, the farthest first."""
        table = schema.records.c
        query = sa.select(table.sequence).where(table.station == self.station)
        below = query.where(table.sequence < first).order_by(table.sequence).limit(STRAYS)
        above = query.where(table.sequence > last).order_by(table.sequence.desc()).limit(STRAYS)
        with self.reading() as connection:
            return [int(n) for each in (below, above) for n in connection.execute(each).scalars()]

    def verify(self, progress: Progress = silent) -> list[Break]:
        """Return all places where the chain is broken. Records that are added during the verification are left out.

        Of the records outside the chain, a few are named.
        """
        last, noted = self.head()
        breaks: list[Break] = []
        sequence, digest, time = 0, "", ""
        for row in self.walk():
            if row.sequence > last:
                break
            if row.sequence % PAGE == 0:
                progress("verifying records", row.sequence, last)
            if row.sequence != sequence + 1:
                breaks.append(Break(sequence + 1, f"records {sequence + 1} to {row.sequence - 1} are missing"))
            elif row.previous != digest:
                breaks.append(Break(row.sequence, "does not name the digest of the record before it"))
            if not row.intact():
                breaks.append(Break(row.sequence, "was changed: its digest differs from its contents"))
            if row.time < time:
                breaks.append(
                    Break(row.sequence, f"its time {row.time} is before that of the record before it, {time}")
                )
            sequence, digest, time = row.sequence, row.digest, row.time
        if sequence < last:
            breaks.append(Break(sequence + 1, f"records {sequence + 1} to {last} are missing"))
        elif digest != noted:
            breaks.append(Break(last, "is not the record that the station noted as its last"))
        outside = self._outside(1, last)
        end, _ = self.head()  # read after them: a record and its head are written together
        breaks += [
            Break(each, f"was put in: the last record that the station noted is {end}")
            for each in sorted(outside)
            if not 1 <= each <= end
        ]
        return breaks


def _corrects(table: sa.FromClause) -> tuple[sa.ColumnElement[bool], ...]:
    """Conditions for events that correct the outcome of a job."""
    # An expression in place of the column: the database would use the index of the verdict, not that of the job.
    return table.c.kind == "event", table.c.verdict.concat("").is_not(None)


def names(url: str) -> list[str]:
    """Return the names of the stations in a database, also of those that have records only."""
    engine, name, of = schema.connect(url, writes=False), schema.stations.c.name, schema.records.c.station
    try:
        schema.check(engine)
        with schema.errors(engine), engine.begin() as connection:
            found: set[str] = set(connection.execute(sa.select(name)).scalars())
            last: str | None = ""
            # From one name to the next by the index, because records are many.
            while (last := connection.execute(sa.select(sa.func.min(of)).where(of > last)).scalar()) is not None:
                found.add(last)
            return sorted(found)
    finally:
        engine.dispose()


def opened(url: str, station: str | None) -> Reader:
    """Return the reader of a station, by name or as the only one in a database."""
    if station is None:
        found = names(url)
        if len(found) != 1:
            raise StationError(
                f"{counted(len(found), 'station')} in the database ({', '.join(found) or 'none'}); expected one. Name "
                "the station with --station."
            )
        station = found[0]
    return Reader(url, station)


def _rows(found: sa.CursorResult[Any]) -> list[Row]:
    return [Row(**each) for each in found.mappings()]

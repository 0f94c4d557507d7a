"""The review queue: parts with REVIEW, and parts whose verdict is disputed."""

from typing import NamedTuple

import sqlalchemy as sa

from andon.station import schema
from andon.station.entries import Row
from andon.station.events import Outcome
from andon.station.reader import Reader


class Waiting(NamedTuple):
    """State of the review queue."""

    count: int
    row: Row | None
    """The inspection to show; None: the queue is empty."""


def waiting(reader: Reader, product: str | None = None, after: int | None = None) -> Waiting:
    """Return the review queue: REVIEW without any decision, and inspections whose last decision is a dispute.

    after: a skipped record; the inspection to show is the next older one, or the newest if there is no older one.
    """
    with reader.reading() as connection:
        found = connection.execute(_waiting(reader.station, product)).scalars().all()
    number = next((each for each in found if after is None or each < after), found[0] if found else None)
    return Waiting(len(found), None if number is None else reader.record(number))


def decision(reader: Reader, row: Row) -> Row | None:
    """Return the last decision on an inspection; None if there is none."""
    return next(iter(reader.history(job=row.job, kind="decision", limit=1)), None)


def _waiting(station: str, product: str | None) -> sa.CompoundSelect[tuple[int]]:
    """Return the query for the numbers of the waiting inspections, the newest first."""
    table = schema.records.c
    newest = sa.func.row_number().over(partition_by=table.job, order_by=table.sequence.desc()).label("newest")
    decisions = sa.select(table.job, table.verdict, newest).where(
        *(table.station == station, table.kind == "decision", schema.OTHERS)
    )
    said = decisions.cte("said").c
    kept = [table.station == station, table.kind == "inspection"]
    if product is not None:
        kept.append(table.product == product)
    disputed = sa.select(said.job).where(said.newest == 1, said.verdict.is_(None))
    decided = sa.select(said.job).where(said.job.is_not(None))
    found = sa.select(table.sequence).where(*kept)
    reviews = found.where(table.verdict == Outcome.REVIEW, table.job.not_in(decided))
    return sa.union(reviews, found.where(table.job.in_(disputed))).order_by(sa.desc("sequence"))

"""The review queue: parts with REVIEW, and parts whose verdict is disputed."""

from typing import NamedTuple

import sqlalchemy as sa

from andon.station import schema
from andon.station.entries import Row
from andon.station.events import Outcome
from andon.station.reader import Reader


class Waiting(NamedTuple):
    """State of the review queue."""

    parts: int
    row: Row | None
    """The inspection to show; None: the queue is empty."""


def waiting(reader: Reader, product: str | None = None, after: int | None = None) -> Waiting:
    """Return the review queue: REVIEW without any decision, and inspections whose last decision is a dispute.

    after: a skipped record; the inspection to show is the next older one, or the newest if there is no older one.
    """
    with reader.reading() as connection:
        found: set[int] = set()
        for query in _waiting(reader.station, product):
            found.update(connection.execute(query).scalars())
    numbers = sorted(found, reverse=True)
    number = next((each for each in numbers if after is None or each < after), numbers[0] if numbers else None)
    return Waiting(len(numbers), None if number is None else reader.record(number))


def decision(reader: Reader, row: Row) -> Row | None:
    """Return the last decision on an inspection; None if there is none."""
    return next(iter(reader.history(job=row.job, kind="decision", limit=1)), None)


def _waiting(station: str, product: str | None) -> tuple[sa.Select[int], sa.Select[int]]:
    """Return the queries for the numbers of REVIEW inspections without a decision, and of disputed inspections."""
    table = schema.records.c
    # An expression in place of the column: the database would use the column's index and read the records of all time.
    job, of_product = table.job + 0, table.product.concat("")
    newest = sa.func.row_number().over(partition_by=job, order_by=table.sequence.desc()).label("newest")
    decisions = sa.select(table.job, table.verdict, newest).where(
        *(table.station == station, table.kind == "decision", schema.OTHERS)
    )
    said = decisions.cte("said").c
    kept = [table.station == station, table.kind == "inspection"]
    if product is not None:
        kept.append(of_product == product)
    disputed = sa.select(said.job).where(said.newest == 1, said.verdict.is_(None))
    decided = sa.select(said.job).where(said.job.is_not(None))
    found = sa.select(table.sequence).where(*kept)
    return found.where(table.verdict == Outcome.REVIEW, table.job.not_in(decided)), found.where(table.job.in_(disputed))

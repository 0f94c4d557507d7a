"""The parts that wait for a person: REVIEW, and those whose verdict somebody disputes."""

from typing import NamedTuple

import sqlalchemy as sa

from andon.station import schema
from andon.station.entries import Row
from andon.station.events import Outcome
from andon.station.reader import Reader


class Waiting(NamedTuple):
    """The queue of parts that wait for a decision."""

    parts: int
    row: Row | None
    """The inspection that is shown; None: nothing waits."""


def waiting(reader: Reader, product: str | None = None, after: int | None = None) -> Waiting:
    """Inspections without a decision since they were disputed, or at all where they are REVIEW; the newest first.

    after: the record that was skipped; the next one is older than it, or the newest where none is.
    """
    with reader.reading() as connection:
        found: set[int] = set()
        for query in _waiting(reader.station, product):
            found.update(connection.execute(query).scalars())
    numbers = sorted(found, reverse=True)
    number = next((each for each in numbers if after is None or each < after), numbers[0] if numbers else None)
    return Waiting(len(numbers), None if number is None else reader.record(number))


def decision(reader: Reader, row: Row) -> Row | None:
    """What a person said last of an inspection; None: nothing."""
    return next(iter(reader.history(job=row.job, kind="decision", limit=1)), None)


def _waiting(station: str, product: str | None) -> tuple[sa.Select[int], sa.Select[int]]:
    """The numbers of the inspections that wait: reviews nobody decided on, and disputed ones."""
    table = schema.records.c
    # Of a job or a product as they stand, the database would take the index, and read the records of all time.
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

"""The parts that wait for a person: REVIEW, and those whose verdict somebody disputes."""

from datetime import datetime

from andon.station.entries import DISPUTE, Row
from andon.station.events import Outcome
from andon.station.reader import MOST, Reader

LOOK = 500
"""The last inspections with REVIEW that are looked at."""


def waiting(reader: Reader, product: str | None = None) -> list[Row]:
    """Inspections without a decision since they were disputed, or at all where they are REVIEW; the newest first."""
    reviews = reader.history(product, verdict=Outcome.REVIEW, kind="inspection", limit=LOOK)
    since = datetime.fromisoformat(reviews[-1].time) if len(reviews) == LOOK else None
    last: dict[int | None, Row] = {}
    for row in reader.history(product, kind="decision", since=since, limit=MOST):
        last.setdefault(row.job, row)
    open_jobs = {row.job: row for row in reviews if row.job not in last}
    for job, row in last.items():
        if row.body.get("decision") == DISPUTE and job is not None:
            open_jobs.update((found.job, found) for found in reader.history(job=job, kind="inspection", limit=1))
    return sorted(open_jobs.values(), key=lambda row: -row.sequence)


def decision(reader: Reader, row: Row) -> Row | None:
    """What a person said last of an inspection; None: nothing."""
    return next(iter(reader.history(job=row.job, kind="decision", limit=1)), None)

"""A part on its way through the station, and how views are told what happens."""

import queue
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from andon.station.entries import Entry, Picture, Row
from andon.station.events import Event, Job, Outcome
from andon.station.loaded import Loaded

FEED = 1000
"""Most events that wait for a view."""


class Finished(NamedTuple):
    """A job whose record is durable."""

    row: Row
    outcome: Outcome
    """How the job ended. It differs from the record's verdict when the deadline passed, or an error began, while that
    became durable; a further record says so."""


@dataclass
class Flight:
    """One job from its trigger to its durable end."""

    job: Job
    lot: str | None = None
    loaded: Loaded | None = None
    """The bundle that inspects it, as it was at the trigger."""
    future: "Future[Finished]" = field(default_factory=Future)
    data: bytes = b""
    digest: str | None = None
    """Of the picture."""
    entered: bool = False
    """Its record waits to become durable."""
    row: Row | None = None
    """Its durable record."""
    ended: Outcome | None = None
    """How the machine ended it."""

    def entry(
        self,
        verdict: Outcome,
        score: float | None,
        p_value: float | None,
        body: dict[str, Any],
        pictures: tuple[Picture, ...],
    ) -> Entry:
        """Its record."""
        job = self.job
        return Entry(
            "challenge" if job.challenge else "inspection",
            job=job.id,
            product=job.product,
            part=job.part,
            lot=self.lot,
            verdict=verdict.value,
            score=score,
            p_value=p_value,
            body={"bundle": job.digest, "digest": self.digest, **body},
            pictures=pictures,
        )

    def superseded(self) -> Entry:
        """The record that says that the job ended in another way than its record tells."""
        assert self.row and self.ended
        job = self.job
        facts = {"event": "superseded", "record": self.row.sequence, "recorded": self.row.verdict}
        return Entry("event", job.id, job.product, job.part, self.lot, self.ended.value, body=facts)


class Latest(NamedTuple):
    """The picture of the last part of a product."""

    job: int
    picture: bytes
    map: bytes
    """Empty: the graph did not see the picture."""


class Feed:
    """What happens, for one view: events of the machine, and records once they are durable. Read it from any thread."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Event | Row] = queue.Queue(FEED)
        self.lost = 0
        """How much was left out because the view read too slowly: look at the station's state, then go on."""

    def get(self, timeout_s: float = 0) -> Event | Row | None:
        """The next one; None when there is none in so many seconds."""
        try:
            return self._queue.get(timeout_s > 0, timeout_s or None)
        except queue.Empty:
            return None

    def put(self, what: Event | Row) -> None:
        try:
            self._queue.put_nowait(what)
        except queue.Full:
            self.lost += 1

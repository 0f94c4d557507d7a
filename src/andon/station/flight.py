"""A job in progress, and the feed of events for views."""

import queue
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from andon.station.entries import Entry, Picture, Row
from andon.station.events import Event, Job, Outcome
from andon.station.loaded import Loaded

FEED = 1000
"""Maximum number of events that wait for a view."""


class Finished(NamedTuple):
    """A job whose record is durable."""

    row: Row
    outcome: Outcome
    """How the job ended. Differs from the record's verdict if the deadline passed, or an error began, while the record
    was being written; then a further record contains this outcome."""


@dataclass
class Flight:
    """One job from its trigger until its end is recorded."""

    job: Job
    lot: str | None = None
    loaded: Loaded | None = None
    """The bundle that inspects it: the active one at the time of the trigger."""
    future: "Future[Finished]" = field(default_factory=Future)
    data: bytes = b""
    digest: str | None = None
    """Digest of the picture."""
    entered: bool = False
    """Its record was handed to the keeper."""
    row: Row | None = None
    """Its durable record."""
    ended: Outcome | None = None
    """How the state machine ended it."""

    def entry(
        self,
        verdict: Outcome,
        score: float | None,
        p_value: float | None,
        body: dict[str, Any],
        pictures: tuple[Picture, ...],
    ) -> Entry:
        """Return the entry of its record."""
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
        """Return the entry that corrects the outcome in its record."""
        assert self.row and self.ended
        job = self.job
        facts = {"event": "superseded", "record": self.row.sequence, "recorded": self.row.verdict}
        return Entry("event", job.id, job.product, job.part, self.lot, self.ended.value, body=facts)


class Latest(NamedTuple):
    """The last picture of a product."""

    job: int
    picture: bytes
    map: bytes
    """Empty: the graph did not see the picture."""


class Feed:
    """A queue for one view: events of the state machine, and durable records. It may be read from any thread."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Event | Row] = queue.Queue(FEED)
        self.lost = 0
        """Number of events lost because the view read too slowly. The view must then read the station's state."""

    def get(self, timeout_s: float = 0) -> Event | Row | None:
        """Return the next event or record; None if there is none within `timeout_s` seconds."""
        try:
            return self._queue.get(timeout_s > 0, timeout_s or None)
        except queue.Empty:
            return None

    def put(self, what: Event | Row) -> None:
        try:
            self._queue.put_nowait(what)
        except queue.Full:
            self.lost += 1

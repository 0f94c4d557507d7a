"""Jobs from the trigger to the durable verdict, their records, and the events for views.

```
trigger → job → picture → worker process → record, durable → deadline checked again → answered or latched
```
"""

import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import andon
from andon import files
from andon.errors import AndonError, StorageError
from andon.station.answers import Answer
from andon.station.archive import Archive
from andon.station.config import Config
from andon.station.drift import Change
from andon.station.entries import Entry, Picture, Row, stamp
from andon.station.events import Alarm, Event, Job, Memory, Outcome, Result, StationError, Transitioned
from andon.station.flight import Feed, Finished, Flight, Latest
from andon.station.keeper import Keeper
from andon.station.ledger import Ledger
from andon.station.loaded import Loaded
from andon.station.machine import Machine
from andon.station.metrics import Metrics
from andon.station.retention import Retention, worth

IDS = 1000  # number of job ids reserved at a time
LOG = 1000  # maximum number of stored messages
FROZEN = "the same picture as that of the previous part: the camera gives no new pictures"
ENDS = {
    Outcome.LATE: "there was no verdict at the deadline",
    Outcome.ERROR: "an error of the station, or a restart, ended the job",
    Outcome.ABORTED: "Abort, Halt or Reset ended the job",
}
IN_COLUMNS = ("source", "verdict", "score", "p_value")
"""Fields of an inspection's record that have columns of their own in the ledger."""
STATES_RECORDED = ("Preoperational", "Halted", "Error", "Initialized")
"""A transition from or to one of these states is recorded; the transitions of each job are not."""


class Jobs(ABC):
    """Runs jobs: state machine, records, pictures. `Station` adds the methods for views.

    Args:
        config: settings of the station.
        tell: receives messages for the person who started the station.
    """

    def __init__(self, config: Config, tell: Callable[[str], None]) -> None:
        self.config, self._listener = config, tell
        self.log: deque[tuple[str, str]] = deque(maxlen=LOG)
        """Times and texts of the messages, the oldest first."""
        self.lock = threading.RLock()
        """Held during every call of the state machine."""
        self._ending = threading.Lock()
        self.loaded: dict[str, Loaded] = {}
        """The bundles of prepared products, in their processes."""
        self.idle: dict[str, Loaded] = {}
        """The bundles of products whose processes ended because they were not used."""
        self.latest: dict[str, Latest] = {}
        """The last picture of each product, for display; most pictures of passes are not stored."""
        self._flights: dict[int, Flight] = {}
        self._feeds: list[Feed] = []
        self._unkept: dict[str, tuple[bytes, str]] = {}
        self._software = {"software": f"andon {andon.__version__}"}
        self._missed = self._lost = 0
        self._pool = ThreadPoolExecutor(4, "station")
        self.ledger = Ledger(config.database(), config.name)
        try:
            self.archive = Archive(config.data / "pictures")
            keeping = config.pictures
            self.retention = Retention(
                self.ledger, self.archive, keeping.days, int(keeping.max_gb * 1e9), keeping.keep_one_in
            )
            self.machine = Machine(self._remembered(), self._now(), config.depth, config.heartbeat_s)
            self.keeper = Keeper(self.ledger, self._state, self._storage, self.guarded, config.targets())
            self.metrics = Metrics(self)
        except BaseException:
            self.ledger.close()
            raise

    def tell(self, sentence: str) -> None:
        """Report a message to the person who started the station, and store it for the page of settings."""
        self.log.append((stamp(time.time()), sentence))
        self._listener(sentence)

    @property
    def ready(self) -> bool:
        return self.machine.ready

    def watched(self) -> dict[str, Loaded]:
        """Return the bundles whose drift is known, by product: those in their processes, and those of idle products."""
        return {**self.idle, **self.loaded}

    def watch_again(self, product: str, who: str) -> None:
        """Begin the charts of drift again, because the cause was removed; the record says who did it.

        StationError when no drift was found.
        """
        with self._ending:
            loaded = self.watched().get(product)
            change = loaded.drift.change if loaded else None
            if loaded is None or change is None:
                raise StationError(f"product '{product}': no drift was found, so there is none to end.")
            facts = {"event": "drift ended", "who": who, **change._asdict(), "bundle": loaded.version.digest}
            self.keep(Entry("event", product=product, body=facts))
            loaded.watch_again()

    def subscribe(self) -> Feed:
        """Return a feed that receives all events from now on, until `unsubscribe`."""
        feed = Feed()
        with self.lock:
            self._feeds = [*self._feeds, feed]
        return feed

    def unsubscribe(self, feed: Feed) -> None:
        with self.lock:
            self._feeds = [each for each in self._feeds if each is not feed]
            self._lost += feed.lost

    @property
    def lost(self) -> int:
        """Number of events lost because views read too slowly."""
        return self._lost + sum(feed.lost for feed in self._feeds)

    def keep(self, *entries: Entry, timeout_s: float = 15) -> list[Row]:
        """Write records durably. StorageError when this takes too long; writing continues in the background."""
        futures: list[Future[Row]] = [Future() for _ in entries]
        for entry, future in zip(entries, futures, strict=True):
            self.keeper.put(entry, lambda row, future=future: self._kept(row, future))  # type: ignore[misc]
        try:
            return [future.result(timeout_s) for future in futures]
        except TimeoutError:
            raise StorageError("the records cannot be written now, but may be written later. See the alarms.") from None

    def do(self, call: Callable[[float], list[Event]]) -> None:
        """Call the state machine, and handle its events."""
        with self.lock:
            self._hear(call(self._now()))

    def deadlines(self) -> list[float]:
        """Seconds from trigger to verdict of each prepared product."""
        return [product.deadline for product in self.machine.memory.products.values()]

    def worker_dead(self, reason: str) -> None:
        """Report that the processes of a product end repeatedly; the error lasts until Reset."""
        self.tell(reason)
        self.do(lambda now: self.machine.fail("WORKER_DEAD", now, until_reset=True))

    def uses(self, loaded: Loaded) -> bool:
        """Whether a job in progress uses this bundle."""
        return any(flight.loaded is loaded for flight in list(self._flights.values()))

    # A job

    def _begin(self, start: Callable[[], list[Event]], lot: str | None) -> Job:
        if self.machine.memory.next_job >= self._last_id:
            raise StationError("no job ids are available: the records cannot be written now. See the alarms.")
        events = start()
        job = self.machine.memory.waiting[-1]
        loaded = self.loaded[job.product]
        loaded.used = self._now()
        self._flights[job.id] = Flight(job, lot, loaded)
        self._hear(events)
        return job

    def _acquired(self, job: int, data: bytes, digest: str) -> Flight:
        flight = self._flights.get(job)
        if flight is None:
            raise StationError(f"job {job}: no such job waits for a picture; it has ended, or never began.")
        self._hear(self.machine.acquired(job, self._now()))
        flight.data, flight.digest = data, digest
        return flight

    def _inspect(self, flight: Flight) -> "Future[Finished]":
        job, loaded = flight.job, flight.loaded
        assert loaded
        if not job.challenge and loaded.frozen(job.part, flight.digest, self.config.frozen_after):
            self._enter(flight, Outcome.ERROR, {"error": FROZEN})
            if loaded.repeats >= self.config.frozen_after - 1:
                self.do(lambda now: self.machine.fail("CAMERA_LOST", now, until_reset=True))
            return flight.future
        try:
            answer = loaded.workers.inspect(job.id, flight.data, job.deadline - self._now())
        except AndonError as error:
            self._enter(flight, Outcome.ERROR, {"error": str(error)})
        else:
            answer.add_done_callback(lambda done: self._later(self._answered, flight, done.result()))
        return flight.future

    def _answered(self, flight: Flight, answer: Answer) -> None:
        """Record the answer of a worker."""
        if answer.verdict == Outcome.LATE:  # `tick` ends the job as LATE
            return
        body = {name: value for name, value in answer.record.items() if name not in IN_COLUMNS}
        self._enter(flight, answer.verdict, body, answer)
        loaded = flight.loaded
        change = None if flight.job.challenge or loaded is None else loaded.watch(answer.record)
        if change and loaded:
            self._drifted(loaded, change)

    def _drifted(self, loaded: Loaded, change: Change) -> None:
        """Report a drift. Inspection continues."""
        product = loaded.product
        self.tell(f"product {product}: {change}")
        self._publish(Alarm("DRIFT", f"{product}: {change}", True))
        facts = {"event": "drift", **change._asdict(), "bundle": loaded.version.digest}
        self.keeper.put(Entry("event", product=product, body=facts))

    def _enter(self, flight: Flight, verdict: Outcome, body: dict[str, Any], answer: Answer | None = None) -> None:
        """Give the record of a job to the keeper, unless the job has ended."""
        found = answer.map.to_bytes() if answer and answer.map else b""
        if not flight.job.challenge:
            self.latest[flight.job.product] = Latest(flight.job.id, flight.data, found)
        pictures = self._archive(flight, verdict, found)
        kept = dict(zip(("picture", "map"), (each.digest for each in pictures), strict=False))
        score, p_value = (answer.score, answer.p_value) if answer else (None, None)
        entry = flight.entry(verdict, score, p_value, {**self._software, **body, "kept": kept}, pictures)
        self.do(self.machine.tick)
        with self.lock:
            if flight.ended is None:
                flight.entered = True
                self.keeper.put(entry, lambda row: self.guarded(self._durable, flight, row))

    def _durable(self, flight: Flight, row: Row) -> None:
        """End a job whose record is durable; the deadline is checked again."""
        with self.lock:
            self._publish(row)
            flight.row = row
            if flight.ended is None:
                self._hear(self.machine.verdict(flight.job.id, Outcome(str(row.verdict)), self._now()))
            else:
                self._supersede(flight)

    def _ended(self, result: Result) -> None:
        """Handle the end of a job in the state machine."""
        flight = self._flights.pop(result.job.id, None) or Flight(result.job)
        flight.ended = result.outcome
        if flight.row is not None and flight.row.verdict == result.outcome.value:
            self._finish(flight, flight.row)
        elif flight.row is not None:
            self._supersede(flight)
        elif not flight.entered:
            self._later(self._enter_ended, flight, result.outcome)
        if result.outcome == Outcome.ERROR and "STORAGE" in self.machine.memory.errors and not flight.future.done():
            flight.future.set_exception(StorageError("the record cannot be written now, so there is no verdict."))

    def _enter_ended(self, flight: Flight, outcome: Outcome) -> None:
        """Record a job that ended without an answer."""
        pictures = self._archive(flight, outcome)
        body = {**self._software, "error": f"{outcome}: {ENDS[outcome]}"}

        def finish(row: Row) -> None:
            with self.lock:
                self._publish(row)
                self._finish(flight, row)

        self.keeper.put(flight.entry(outcome, None, None, body, pictures), finish)

    def _supersede(self, flight: Flight) -> None:
        def finish(row: Row) -> None:
            with self.lock:
                self._publish(row)
                assert flight.row
                self._finish(flight, flight.row)

        self.keeper.put(flight.superseded(), finish)

    def _finish(self, flight: Flight, row: Row) -> None:
        assert flight.ended
        flight.data = b""
        if flight.job.challenge:
            self._presented(flight, row)
        else:
            labels = (flight.job.product, flight.ended.value)
            self.metrics.verdicts.labels(*labels).inc()
            self.metrics.total.labels(flight.job.product).observe(self._now() - flight.job.started)
            for stage, milliseconds in (row.body.get("stages") or {}).items():
                self.metrics.stages.labels(flight.job.product, stage).observe(milliseconds / 1000)
        if not flight.future.done():
            flight.future.set_result(Finished(row, flight.ended))

    def _archive(self, flight: Flight, outcome: Outcome, map: bytes = b"") -> tuple[Picture, ...]:
        """Store picture and map if `retention` keeps them. A file that cannot be written raises the error STORAGE."""
        if flight.job.challenge or not flight.data or not self.retention.keeps(outcome, flight.job.id):
            return ()
        assert flight.digest
        contents = [(flight.data, "", flight.digest)]
        contents += [(map, ".map", files.digest(map))] if map else []
        try:
            self.archive.put_all(contents)
        except StorageError as error:
            self._unkept |= {digest: (data, suffix) for data, suffix, digest in contents}
            self._storage(error)
        return tuple(Picture(digest, len(data), worth(outcome)) for data, _, digest in contents)

    @abstractmethod
    def _presented(self, flight: Flight, row: Row) -> None:
        """Handle the result of a challenge part."""

    # Events

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            self._publish(event)
            match event:
                case Result():
                    self._ended(event)
                case Alarm(code="MISSED_TRIGGER"):
                    self._missed += 1
                case Alarm(code="LATE"):
                    pass  # the record of the job contains it
                case Alarm(code, text, active):
                    self.tell(f"{code}: {text}" if active else f"{code}: has ended")
                    self.keeper.put(Entry("event", body={"event": "alarm", "code": code, "active": active}))
                case Transitioned(number, source, target) if source in STATES_RECORDED or target in STATES_RECORDED:
                    facts = {"event": "state", "transition": number, "from": source, "to": target}
                    self.keeper.put(Entry("event", body=facts))

    def _publish(self, what: Event | Row) -> None:
        for feed in self._feeds:
            feed.put(what)

    def _kept(self, row: Row, future: "Future[Row]") -> None:
        self._publish(row)
        future.set_result(row)

    def _storage(self, error: AndonError | None) -> None:
        """Begin the error STORAGE, or, with None, end it if all pictures are written."""
        if error is not None:
            if "STORAGE" not in self.machine.memory.errors:
                self.tell(str(error))
            self.do(lambda now: self.machine.fail("STORAGE", now))
        elif not self._unkept:
            self.do(lambda now: self.machine.resolve("STORAGE", now))

    def _state(self) -> dict[str, Any]:
        """Return the state that is written with each transaction."""
        with self.lock:
            return {"memory": self.machine.memory.plain()}

    def _remembered(self) -> Memory:
        """Return the memory of the last run. Waiting jobs that have a durable record are ended with its verdict."""
        kept = self.ledger.state()
        memory = Memory.from_json(files.strict_json(kept["memory"])) if kept else Memory()
        first = self.ledger.reserve(IDS)
        self._last_id = first + IDS
        ends = {job.id: self.ledger.history(job=job.id, limit=1) for job in memory.waiting}
        results = [
            Result(job=job, outcome=Outcome(str(ends[job.id][0].verdict)), at=0.0, until=0.0)
            for job in memory.waiting
            if ends[job.id]
        ]
        made = [result for result in results if not result.job.challenge]
        return replace(
            memory,
            next_job=first,
            counts=dict(Counter(memory.counts) + Counter(result.outcome.value for result in made)),
            products={},
            waiting=tuple(job for job in memory.waiting if not ends[job.id]),
            latched=(*memory.latched, *(result for result in made if result.job.latch)),
        )

    def _now(self) -> float:
        """Return the time of a monotonic clock, so that a change of the system time does not affect deadlines."""
        return time.monotonic()

    def _later(self, call: Callable[..., None], *arguments: Any) -> None:
        self._pool.submit(self.guarded, call, *arguments)

    def guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call a function in a thread that must continue after errors. A job that an error interrupts ends LATE."""
        try:
            call(*arguments)
        except StorageError as error:
            self._storage(error)
        except Exception:
            self.tell(f"an error in andon:\n{traceback.format_exc()}")

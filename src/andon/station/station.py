"""The one place where a trigger becomes a durable verdict. Every view calls only this.

```
trigger → job → picture → worker process → record, durable → deadline checked again → answered or latched
```

A view needs: `trigger` and `picture` (or `inspect`, which is both), `challenge_part`, `acknowledge`, `output`, `ready`,
`subscribe`, and `call` for the methods of OPC 40100-1. All may be called from any thread; none waits for an inspection.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import andon
from andon import files
from andon.errors import AndonError, ImageError, StorageError
from andon.station.archive import Archive
from andon.station.config import Config
from andon.station.entries import LONGEST_TEXT, Entry, Picture, Row, check_text
from andon.station.events import Alarm, Event, Job, Memory, Outcome, Result, StationError, Transitioned
from andon.station.flight import Feed, Finished, Flight
from andon.station.keeper import Keeper
from andon.station.ledger import Ledger
from andon.station.machine import Machine
from andon.station.products import Loaded, Products
from andon.station.retention import Retention, worth

IDS = 1000  # job ids that are reserved at a time
TICK_S = 0.02
LOOK_S = 0.25
FROZEN = "the same picture as of the part before: the camera gives no new pictures"
STATES_TOLD = ("Preoperational", "Halted", "Error", "Initialized")
"""A change from or to one of these is a record; from job to job there is none."""


class Station:
    """A station, from its settings. `start` it, and `close` it.

    Args:
        config: its settings.
        tell: takes sentences for the person who started it.
    """

    def __init__(self, config: Config, tell: Callable[[str], None]) -> None:
        self.config, self.tell = config, tell
        self.lock = threading.RLock()
        """Held for every call of the machine."""
        self._stop = threading.Event()
        self._flights: dict[int, Flight] = {}
        self._feeds: list[Feed] = []
        self._unkept: dict[str, tuple[bytes, str]] = {}
        self._missed = 0
        self._pool = ThreadPoolExecutor(4, "station")
        self.ledger = Ledger(config.database(), config.name)
        try:
            self.archive = Archive(config.data / "pictures")
            keeping = config.pictures
            self.retention = Retention(
                self.ledger, self.archive, keeping.days, int(keeping.max_gb * 1e9), keeping.keep_one_in
            )
            self.machine = Machine(self._remembered(), self._now(), config.depth, config.heartbeat_s)
            self.keeper = Keeper(self.ledger, self._state, self._storage)
            self.products = Products(self)
        except BaseException:
            self.ledger.close()
            raise
        self._threads = [
            threading.Thread(target=self._run, args=(self._tick, TICK_S), name="clock", daemon=True),
            threading.Thread(target=self._run, args=(self._look, LOOK_S), name="housekeeping", daemon=True),
        ]

    # For views

    def start(self) -> None:
        """Take up work; products become ready one after another."""
        self.keeper.start()
        self.keeper.put(Entry("event", body={"event": "started", "software": f"andon {andon.__version__}"}))
        self._hear(self.machine.first_events)
        for thread in self._threads:
            thread.start()
        self.retention.start(lambda error: self.tell(f"pictures: {error}"))
        self.products.start()

    def close(self) -> None:
        """End all jobs, write what waits, and let go of everything."""
        self._stop.set()
        self.products.close()
        if self._threads[0].ident:
            for thread in self._threads:
                thread.join()
            if self.machine.state != "Halted":
                self.do(self.machine.halt)
            self._pool.shutdown()
            self.keeper.put(Entry("event", body={"event": "stopped"}))
            lost = self.keeper.close()
            if lost:
                self.tell(f"{lost} records could not be written: the storage is away. None of them was acknowledged.")
        self.retention.close()
        self.ledger.close()

    def trigger(self, product: str, part: str, lot: str | None = None, latch: bool = True) -> Job:
        """Start a job, in Ready or in ContinuousExecution. StationError: it is refused, and counted as missed."""
        check_text("part", part, LONGEST_TEXT)
        if lot is not None:
            check_text("lot", lot, LONGEST_TEXT)
        with self.lock:
            machine = self.machine
            start = machine.part if machine.state == "ContinuousExecution" else machine.start_single
            return self._begin(lambda: start(product, part, self._now(), latch), lot)

    def picture(self, job: int, data: bytes) -> "Future[Finished]":
        """The picture of a job. The future is done when the record is durable and the job has ended."""
        digest = files.digest(data)
        with self.lock:
            flight = self._acquired(job, data, digest)
        return self._inspect(flight)

    def inspect(self, product: str, part: str, lot: str | None, data: bytes) -> "Future[Finished]":
        """Trigger and picture in one: the result is the answer, and nothing is latched."""
        digest = files.digest(data)
        with self.lock:
            flight = self._acquired(self.trigger(product, part, lot, latch=False).id, data, digest)
        return self._inspect(flight)

    def challenge_part(self, product: str, part: str, data: bytes) -> "Future[Finished]":
        """Present a challenge part; it is no production."""
        self.products.expected(product, part)
        digest = files.digest(data)
        with self.lock:
            job = self._begin(lambda: self.machine.challenge_part(product, part, self._now()), None)
            flight = self._acquired(job.id, data, digest)
        return self._inspect(flight)

    def call(self, method: str) -> None:
        """A method of OPC 40100-1: select_mode_automatic, halt, reset, start_continuous, stop or abort."""
        methods = {
            name: getattr(self.machine, name)
            for name in ("select_mode_automatic", "halt", "reset", "start_continuous", "stop", "abort")
        }
        self.do(methods[method])
        if method == "reset":
            self.products.reset()

    def acknowledge(self, job: int) -> None:
        """ResultsAck of the oldest latched result."""
        self.do(lambda now: self.machine.acknowledge(job, now))

    def output(self) -> Outcome:
        """What the sorter does with the part of the oldest latched result. Reject is the resting state."""
        with self.lock:
            return self.machine.output(self._now())

    @property
    def ready(self) -> bool:
        return self.machine.ready

    def subscribe(self) -> Feed:
        """Be told what happens from now on, until `unsubscribe`."""
        feed = Feed()
        with self.lock:
            self._feeds = [*self._feeds, feed]
        return feed

    def unsubscribe(self, feed: Feed) -> None:
        with self.lock:
            self._feeds = [each for each in self._feeds if each is not feed]

    def keep(self, *entries: Entry, timeout_s: float = 15) -> list[Row]:
        """Make records of decisions and changes durable. StorageError when that takes too long; it goes on."""
        futures: list[Future[Row]] = [Future() for _ in entries]
        for entry, future in zip(entries, futures, strict=True):
            self.keeper.put(entry, lambda row, future=future: self._kept(row, future))  # type: ignore[misc]
        try:
            return [future.result(timeout_s) for future in futures]
        except TimeoutError:
            raise StorageError("the records cannot be written now. Nothing was answered; see the alarms.") from None

    def do(self, call: Callable[[float], list[Event]]) -> None:
        """Make a call of the machine, and do what its events ask for."""
        with self.lock:
            self._hear(call(self._now()))

    def uses(self, loaded: Loaded) -> bool:
        """Whether a job that has not ended is inspected by this bundle."""
        return any(flight.loaded is loaded for flight in list(self._flights.values()))

    # A job

    def _begin(self, start: Callable[[], list[Event]], lot: str | None) -> Job:
        if self.machine.memory.next_job >= self._last_id:
            raise StationError("no job ids are left: the records cannot be written now. See the alarms.")
        events = start()
        job = self.machine.memory.waiting[-1]
        self._flights[job.id] = Flight(job, lot, self.products.loaded[job.product])
        self._hear(events)
        return job

    def _acquired(self, job: int, data: bytes, digest: str) -> Flight:
        flight = self._flights.get(job)
        if flight is None:
            raise StationError(f"job {job}: no such job waits for a picture; it ended or never began.")
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
            answer.add_done_callback(lambda done: self._later(self._answered, flight, done))
        return flight.future

    def _answered(self, flight: Flight, done: "Future[Any]") -> None:
        """A worker has answered, or could not."""
        try:
            answer = done.result()
        except ImageError as error:
            self._enter(flight, Outcome.INVALID, {"error": str(error)})
        except Exception as error:
            self._enter(flight, Outcome.ERROR, {"error": f"{error}" or type(error).__name__})
        else:
            body = {**answer.record, "stages": answer.stages}
            self._enter(flight, Outcome(answer.verdict), body, answer.map)

    def _enter(self, flight: Flight, verdict: Outcome, body: dict[str, Any], map: bytes = b"") -> None:
        """Hand the record of a job to the keeper, unless the job has ended meanwhile."""
        pictures = self._archive(flight, verdict, map)
        self.do(self.machine.tick)
        with self.lock:
            if flight.ended is None:
                flight.entered = True
                self.keeper.put(
                    flight.entry(verdict, self._facts(body), pictures), lambda row: self._durable(flight, row)
                )

    def _durable(self, flight: Flight, row: Row) -> None:
        """The record of a verdict is durable: the deadline is checked again."""
        with self.lock:
            self._publish(row)
            flight.row = row
            if flight.ended is None:
                self._hear(self.machine.verdict(flight.job.id, Outcome(row.verdict), self._now()))
            else:
                self._supersede(flight)

    def _ended(self, result: Result) -> None:
        """The machine has ended a job."""
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
        body = self._facts({"error": f"no verdict at the end of the job: {outcome}"})

        def finish(row: Row) -> None:
            with self.lock:
                self._publish(row)
                self._finish(flight, row)

        self.keeper.put(flight.entry(outcome, body, pictures), finish)

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
            self.products.presented(flight, row)
        if not flight.future.done():
            flight.future.set_result(Finished(row, flight.ended))

    def _facts(self, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "software": f"andon {andon.__version__}"}

    def _archive(self, flight: Flight, outcome: Outcome, map: bytes = b"") -> tuple[Picture, ...]:
        """Keep picture and map, when they are to be kept. A file that cannot be written is an error of the station."""
        if flight.job.challenge or not flight.data or not self.retention.keeps(outcome, flight.job.id):
            return ()
        kept = []
        for data, suffix in ((flight.data, ""), (map, ".map")):
            if data:
                digest = files.digest(data)
                try:
                    self.archive.put(data, suffix)
                except StorageError as error:
                    self._unkept[digest] = (data, suffix)
                    self._storage(error)
                kept.append(Picture(digest, len(data), worth(outcome)))
        return tuple(kept)

    # What happens

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            self._publish(event)
            match event:
                case Result():
                    self._ended(event)
                case Alarm(code="MISSED_TRIGGER"):
                    self._missed += 1
                case Alarm(code="LATE"):
                    pass  # the record of the job says so
                case Alarm(code, text, active):
                    self.tell(f"{code}: {text}" if active else f"{code}: has ended")
                    self.keeper.put(Entry("event", body={"event": "alarm", "code": code, "active": active}))
                case Transitioned(number, source, target) if source in STATES_TOLD or target in STATES_TOLD:
                    facts = {"event": "state", "transition": number, "from": source, "to": target}
                    self.keeper.put(Entry("event", body=facts))

    def _publish(self, what: Event | Row) -> None:
        for feed in self._feeds:
            feed.put(what)

    def _kept(self, row: Row, future: "Future[Row]") -> None:
        self._publish(row)
        future.set_result(row)

    def _storage(self, error: AndonError | None) -> None:
        """Records or pictures cannot be written, or can be again."""
        if error is not None:
            if "STORAGE" not in self.machine.memory.errors:
                self.tell(str(error))
            self.do(lambda now: self.machine.fail("STORAGE", now))
        elif not self._unkept:
            self.do(lambda now: self.machine.resolve("STORAGE", now))

    def _state(self) -> dict[str, Any]:
        """What is kept with each transaction."""
        with self.lock:
            return {"memory": self.machine.memory.plain()}

    def _remembered(self) -> Memory:
        """What the last run remembered. A job whose record is durable has ended, whether or not anybody was told."""
        kept = self.ledger.state()
        memory = Memory.from_json(files.strict_json(kept["memory"])) if kept else Memory()
        first = self.ledger.reserve(IDS)
        self._last_id = first + IDS
        ends = {job.id: self.ledger.history(job=job.id, limit=1) for job in memory.waiting}
        results = [
            Result(job=job, outcome=Outcome(ends[job.id][0].verdict), at=0.0, until=0.0)
            for job in memory.waiting
            if ends[job.id]
        ]
        return replace(
            memory,
            next_job=first,
            products={},
            waiting=tuple(job for job in memory.waiting if not ends[job.id]),
            latched=(*memory.latched, *(result for result in results if result.job.latch)),
        )

    # Beside the line

    def _now(self) -> float:
        """Seconds of a clock that nobody sets: deadlines hold when the time of day jumps."""
        return time.monotonic()

    def _later(self, call: Callable[..., None], *arguments: Any) -> None:
        self._pool.submit(self._guarded, call, *arguments)

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self.tell(f"error in andon: {error!r}")
            raise

    def _run(self, call: Callable[[], None], every_s: float) -> None:
        while not self._stop.wait(every_s):
            try:
                call()
            except StorageError as error:
                self._storage(error)

    def _tick(self) -> None:
        self.do(self.machine.tick)

    def _look(self) -> None:
        """What need not be done at once."""
        if self.machine.state == "Preoperational":
            self.do(self.machine.power_up)
        if self._last_id - self.machine.memory.next_job < IDS / 2:
            self.ledger.reserve(IDS)
            self._last_id += IDS
        for digest, (data, suffix) in list(self._unkept.items()):
            self.archive.put(data, suffix)
            del self._unkept[digest]
        if "STORAGE" in self.machine.memory.errors and not self.keeper.away:
            self._storage(None)
        missed, self._missed = self._missed, 0
        if missed:
            self.keeper.put(Entry("event", body={"event": "missed triggers", "count": missed}))
        self.products.look()

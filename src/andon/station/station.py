"""The interface of a station for views: HTTP, line protocols and pages.

Views use `trigger` and `picture` (or `inspect`, which does both), `challenge_part`, `acknowledge`, `output`, `ready`,
`subscribe`, and `call` for the methods of OPC 40100-1. All may be called from any thread; none waits for an inspection.
"""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack

from andon import files
from andon.station.config import Config
from andon.station.entries import LONGEST_TEXT, Entry, Row, check_text
from andon.station.events import Job, Outcome, Result
from andon.station.flight import Finished, Flight
from andon.station.jobs import IDS, Jobs
from andon.station.keys import Keys
from andon.station.products import Products
from andon.station.teaching.teach import Teaching
from andon.station.upkeep import Upkeep

TICK_S = 0.02
LOOK_S = 0.25


class Station(Jobs):
    """A station. Call `start` once, and `close` at the end.

    Args:
        config: settings of the station.
        tell: receives messages for the person who started the station.
    """

    def __init__(self, config: Config, tell: Callable[[str], None]) -> None:
        super().__init__(config, tell)
        self._stop = threading.Event()
        self.closing = False
        """True when the station ends, so that endless views such as streams of events end."""
        self.cameras_lost: set[str] = set()
        """The products whose camera gives no pictures: the cause of CAMERA_LOST remains after Reset."""
        self._folder = ExitStack()
        try:
            busy = "another station uses this folder. End it, or give this station another folder (data = …)."
            self._folder.enter_context(files.lock_folder(config.data, busy))
            # Files that a killed process was writing.
            for left in (*config.data.glob("bundles/*.part"), *config.data.glob("backups/.*.part")):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
            self.keys = Keys(config.data / "keys.json")
            self.products = Products(self)
            self.teaching = Teaching(self, self.products)
            self.upkeep = Upkeep(config, self.ledger, self.products)
        except BaseException:
            self._folder.close()
            self.ledger.close()
            raise
        self._threads = [
            threading.Thread(target=self._run, args=(self._tick, TICK_S), name="clock", daemon=True),
            threading.Thread(target=self._run, args=(self._look, LOOK_S), name="housekeeping", daemon=True),
        ]

    def start(self) -> None:
        """Start the station; products become ready one after another."""
        self.keeper.start()
        keeping = self.config.pictures.model_dump()
        self.keeper.put(Entry("event", body={"event": "started", **self._software, "pictures": keeping}))
        self._hear(self.machine.first_events)
        for thread in self._threads:
            thread.start()
        self.retention.start(lambda error: self.tell(f"pictures: {error}"))
        self.products.start()
        self.teaching.start()

    def close(self) -> None:
        """End all jobs, write the waiting records, and release all resources."""
        self.closing = True
        self._stop.set()
        self.upkeep.close()
        if self._threads[0].ident:
            for thread in self._threads:
                thread.join()
            if self.machine.state != "Halted":
                self.do(self.machine.halt)
            self._pool.shutdown()
            self.products.close()
            self.teaching.close()
            self.keeper.put(Entry("event", body={"event": "stopped"}))
            lost = self.keeper.close()
            if lost:
                self.tell(f"{lost} records could not be written: the storage fails. None of them was acknowledged.")
        self.retention.close()
        self.ledger.close()
        self._folder.close()

    def trigger(self, product: str, part: str, lot: str | None = None, latch: bool = True) -> Job:
        """Start a job, in Ready or ContinuousExecution. StationError: the trigger is refused and counted as missed."""
        check_text("part", part, LONGEST_TEXT)
        if lot is not None:
            check_text("lot", lot, LONGEST_TEXT)
        with self.lock:
            machine = self.machine
            start = machine.part if machine.state == "ContinuousExecution" else machine.start_single
            return self._begin(lambda: start(product, part, self._now(), latch), lot)

    def miss(self) -> None:
        """Count a trigger that a view refused itself as missed."""
        self.do(self.machine.miss)

    def picture(self, job: int, data: bytes) -> "Future[Finished]":
        """Pass the picture of a job. The future is done when the record is durable and the job has ended."""
        digest = files.digest(data)
        with self.lock:
            flight = self._acquired(job, data, digest)
        return self._inspect(flight)

    def inspect(self, product: str, part: str, lot: str | None, data: bytes) -> "Future[Finished]":
        """Trigger and pass the picture in one call. The result is in the future only; it is not latched."""
        digest = files.digest(data)
        with self.lock:
            flight = self._acquired(self.trigger(product, part, lot, latch=False).id, data, digest)
        return self._inspect(flight)

    def challenge_part(self, product: str, part: str, data: bytes) -> "Future[Finished]":
        """Inspect a challenge part, which is not counted as production."""
        self.products.expected(product, part)
        digest = files.digest(data)
        with self.lock:
            job = self._begin(lambda: self.machine.challenge_part(product, part, self._now()), None)
            flight = self._acquired(job.id, data, digest)
        return self._inspect(flight)

    def call(self, method: str) -> None:
        """Call a method of OPC 40100-1: select_mode_automatic, halt, reset, start_continuous, stop or abort."""
        methods = {
            name: getattr(self.machine, name)
            for name in ("select_mode_automatic", "halt", "reset", "start_continuous", "stop", "abort")
        }
        if method == "reset":
            self.products.revive()
        with self.lock:
            self.do(methods[method])
            if method == "reset" and self.cameras_lost:
                self.do(lambda now: self.machine.fail("CAMERA_LOST", now))
            self._settle()

    def acknowledge(self, job: int) -> None:
        """Acknowledge (ResultsAck) the oldest latched result."""
        self.do(lambda now: self.machine.acknowledge(job, now))

    def output(self) -> Outcome:
        """Return the output for the sorter from the oldest latched result. Without one, REJECT."""
        with self.lock:
            return self.machine.output(self._now())

    def counts(self, result: Result) -> Outcome:
        """Return the outcome that is valid now: PASS and REVIEW become LATE after their deadline."""
        good = result.outcome in (Outcome.PASS, Outcome.REVIEW)
        return Outcome.LATE if good and self._now() > result.until else result.outcome

    def _presented(self, flight: Flight, row: Row) -> None:
        self.products.presented(flight, row)

    # In the background

    def _run(self, call: Callable[[], None], every_s: float) -> None:
        while not self._stop.wait(every_s):
            self.guarded(call)

    def _tick(self) -> None:
        self.do(self.machine.tick)

    def _settle(self) -> None:
        """Leave Preoperational, and prepare loaded bundles."""
        with self.lock:
            if self.machine.state == "Preoperational":
                self.do(self.machine.power_up)
            self.products.settle()

    def _look(self) -> None:
        """Do periodic work that is not urgent."""
        self._settle()
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

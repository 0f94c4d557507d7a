"""Inspection in separate, supervised processes: a picture that crashes a process affects one part only.

A process inspects one picture at a time. It is killed a stated time after the picture's deadline, and replaced when it
has ended. When too many processes end in a short time, the workers are dead, and all pictures get ERROR. While there is
no picture, each process runs its graph on a test tile, so that the heartbeat shows that the graph works.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from andon.engines.runtime import Engine
from andon.errors import counted
from andon.station.answers import Answer, Map
from andon.station.events import Outcome, StationError
from andon.station.process import Died, NotBegun, Process, shield
from andon.station.task import Task
from andon.streams.line import workers_of

TICK = 0.02  # seconds between two checks of deadlines
REST = 0.2  # the same, while all processes are idle
CHECK = 10.0  # maximum time of a test tile in seconds
LONGEST_PAUSE = 5.0  # maximum pause before a process is started again, in seconds
LONGEST_END = 5.0  # seconds to wait for the end of a lane after its process was killed


class Workers:
    """Processes that inspect with one bundle.

    >>> with Workers(Path("ring.andon"), processes=2) as workers:
    ...     workers.inspect(1, Path("part.png").read_bytes(), deadline_s=0.5).result().verdict
    <Outcome.PASS: 'PASS'>

    Every future returns an `Answer`, never an exception. Callbacks are called from any thread and must not block.
    """

    def __init__(
        self,
        bundle: str | Path,
        processes: int = 1,
        threads: int = 0,
        restarts: int = 5,
        *,
        window_s: float = 60.0,
        grace_s: float = 1.0,
        idle_s: float = 2.0,
        start_s: float = 60.0,
        waiting: int = 32,
        max_bytes: int = 64 << 20,
        engine: Engine = "onnxruntime",
        on_pass: Callable[[], None] = lambda: None,
        on_dead: Callable[[str], None] = lambda reason: None,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Start the processes and wait until the graph of each works. StationError when one does not.

        `threads` of the engine in each process; 0: number of cores / number of processes. After more than `restarts`
        within `window_s` seconds, `on_dead` is called with the reason, and every picture gets ERROR. A process is
        killed `grace_s` after the deadline of its picture. After `idle_s` without a picture it runs the test tile.
        `on_pass` is called when a picture or test tile has passed through the graph. At most `waiting` pictures of at
        most `max_bytes` wait for a process. `tell` receives messages on problems.
        """
        if processes < 1 or restarts < 0 or waiting < 1 or min(window_s, grace_s, idle_s, start_s) <= 0:
            raise StationError(
                f"processes = {processes}, restarts = {restarts}, waiting = {waiting}, window_s = {window_s}, "
                f"grace_s = {grace_s}, idle_s = {idle_s}, start_s = {start_s}; expected numbers above 0 "
                "(restarts from 0)."
            )
        cores = workers_of(0) - 1
        self._order = {
            "bundle": str(Path(bundle).resolve()),
            "engine": engine,
            "threads": threads or max(1, cores // processes),
        }
        self._restarts, self._window, self._grace = restarts, window_s, grace_s
        self._idle, self._start = idle_s, start_s
        self._most_waiting, self._most_bytes = waiting, max_bytes
        self._on_pass, self._on_dead, self._tell = on_pass, on_dead, tell
        self._lock = threading.RLock()  # guards what follows; used directly, so that Ctrl-C never leaves it locked
        self._change = threading.Condition(self._lock)
        self._waiting: deque[Task] = deque()
        self._deaths: deque[float] = deque()
        self._about: dict[str, Any] = {}
        self._closing, self._constructed, self._dead = False, False, ""
        self._watch_ended = threading.Event()
        self._lanes = [_Lane(self) for _ in range(processes)]
        self._watcher = threading.Thread(target=self._watch, name="andon-watch", daemon=True)
        for thread in (*self._lanes, self._watcher):
            thread.start()
        try:
            with self._lock:
                self._change.wait_for(lambda: self._dead or all(lane.started for lane in self._lanes))
                self._constructed = True
            if self._dead:
                raise StationError(self._dead)
        except BaseException:
            self.close(finish=False)
            raise

    @property
    def about(self) -> dict[str, Any]:
        """Product, digests of bundle and decision, software and engine."""
        return dict(self._about)

    @property
    def dead(self) -> str:
        """Reason why the workers are dead; empty while they inspect."""
        return self._dead

    @property
    def queued(self) -> int:
        """Number of pictures that wait for a process."""
        return len(self._waiting)

    @property
    def pids(self) -> list[int]:
        """Ids of the running processes."""
        with self._lock:
            return [lane.process.pid for lane in self._lanes if lane.process and lane.process.runs]

    def inspect(self, job: int, data: bytes, deadline_s: float) -> "Future[Answer]":
        """Begin to inspect the bytes of a picture's file, with a deadline from now. It never waits.

        The bytes are decoded in a process. StationError for other types, an infinite deadline, and after `close`.
        """
        if not isinstance(data, bytes):
            raise StationError(f"job {job}: a {type(data).__name__}; expected the bytes of a picture's file.")
        if not math.isfinite(deadline_s):
            raise StationError(f"job {job}: a deadline in {deadline_s} s; expected a finite number of seconds.")
        task = Task(job, data, time.monotonic() + deadline_s)
        with self._lock:
            if self._closing:
                raise StationError(f"job {job}: the workers of this bundle are closed. Use those that replaced them.")
            full = len(self._waiting) >= self._most_waiting
            if not (refused := self._refusal(task, full)):
                self._waiting.append(task)
                self._change.notify_all()
        if refused:
            task.end(*refused, self._about)
        return task.answer

    def _refusal(self, task: Task, full: bool) -> tuple[Outcome, str] | None:
        if self._dead:
            return Outcome.ERROR, self._dead
        if len(task.data) > self._most_bytes:
            sizes = f"{len(task.data) / (1 << 20):,.1f} MiB; expected at most {self._most_bytes / (1 << 20):,.1f} MiB"
            return Outcome.INVALID, f"{task.name}: {sizes}. Raise the limit, or send a smaller file."
        if full:
            wait = counted(self._most_waiting, "picture")
            return Outcome.ERROR, f"{task.name}: {wait} already wait. Trigger less often, or use more processes."
        return None

    def golden(self, data: bytes, expected: Outcome = Outcome.PASS, deadline_s: float = 30.0) -> Answer:
        """Inspect a golden picture before the bundle is used. StationError when its verdict is not as expected."""
        answer = self.inspect(0, data, deadline_s).result()
        if answer.verdict != expected:
            why = answer.error or f"score {answer.score:.4g}, p-value {answer.p_value:.2g}"
            raise StationError(
                f"golden picture: {answer.verdict}; expected {expected} ({why}). The bundle is not activated. Check "
                "that bundle and picture belong to this product and camera. Set another, if the camera is new."
            )
        return answer

    def close(self, finish: bool = True) -> None:
        """Inspect the waiting pictures, then end the processes. Without `finish`, unanswered pictures get ERROR."""
        with self._lock:
            self._closing, left = True, []
            if not finish:
                self._dead, left = self._dead or "the workers were closed", self._empty()
                for lane in self._lanes:
                    lane.kill(self._dead)
            self._change.notify_all()
        for task in left:
            task.end(Outcome.ERROR, self._dead, self._about)
        for lane in self._lanes:
            lane.join(None if finish else LONGEST_END)
        self._watch_ended.set()
        self._watcher.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(finish=error[0] is None)

    def _empty(self) -> list[Task]:
        left = list(self._waiting)
        self._waiting.clear()
        return left

    def _over(self) -> bool:
        """Whether the workers are dead, or closed with nothing left to inspect."""
        return bool(self._dead) or (self._closing and not self._waiting)

    def _watch(self) -> None:
        """Kill overdue processes, answer waiting pictures whose deadline has passed, and notify the lanes."""
        pause = TICK
        while not self._watch_ended.wait(pause):
            now = time.monotonic()
            with self._lock:
                late = [task for task in self._waiting if now > task.until]
                for task in late:
                    self._waiting.remove(task)
                for lane in self._lanes:
                    if now > lane.overdue:
                        lane.kill("it did not answer in time and was killed")
                pause = TICK if self._waiting or any(lane.overdue < math.inf for lane in self._lanes) else REST
                if late or any(lane.process and not lane.process.runs for lane in self._lanes):
                    self._change.notify_all()
            for task in late:
                task.end(Outcome.LATE, "no process was free before its deadline", self._about)

    def _started(self, lane: "_Lane", about: dict[str, Any]) -> None:
        if "refused" in about:
            raise Died(about["refused"])
        with self._lock:
            if self._about and about != self._about:
                raise Died(f"{self._order['bundle']}: the file has changed since it was activated. Activate it again.")
            self._about, lane.started = about, True
            self._change.notify_all()
        self._on_pass()

    def _take(self, lane: "_Lane") -> Task | None:
        """Return the next picture; None after `idle_s` without one. Died when the process has ended in the meantime."""

        def ready() -> bool:
            return self._over() or bool(self._waiting) or not (lane.process and lane.process.runs)

        with self._lock:
            self._change.wait_for(ready, self._idle)
            if lane.process and not lane.process.runs:
                raise Died(lane.process.ending())
            return self._waiting.popleft() if self._waiting else None

    def _give_back(self, task: Task, reason: str) -> None:
        """Put back a picture that its process has not begun; once only, or one picture could end all processes."""
        with self._lock:
            over, task.returned = self._dead or (reason if task.returned else ""), True
            if not over:
                self._waiting.appendleft(task)
        if over:
            task.end(Outcome.ERROR, over, self._about)

    def _bury(self, lane: "_Lane", reason: str) -> bool:
        """Note that a process has ended; return whether to start another, after a pause that increases."""
        with self._lock:
            if self._over():
                return False
            now = time.monotonic()
            self._deaths.append(now)
            while self._deaths[0] < now - self._window:
                self._deaths.popleft()
            count = len(self._deaths)
        self._tell(f"a process that inspects has ended: {reason}")
        if not self._constructed or count > self._restarts:
            times = f" ({count} times within {self._window:g} s)" if self._constructed else ""
            self._give_up(f"{reason}{times}" if self._constructed else reason)
            return False
        with self._lock:
            self._change.wait_for(self._over, 0 if count == 1 else min(0.1 * 2**count, LONGEST_PAUSE))
            return not self._over()

    def _give_up(self, reason: str) -> None:
        with self._lock:
            if self._dead:
                return
            self._dead, left = reason, self._empty()
            self._change.notify_all()
        for task in left:
            task.end(Outcome.ERROR, reason, self._about)
        if self._constructed:
            self._on_dead(reason)


class _Lane(threading.Thread):
    """A thread that runs one process after the other and waits for its answers."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(name="andon-worker", daemon=True)
        self._workers = workers
        self.process: Process | None = None
        self.started = False
        self.overdue = math.inf  # time at which the process is killed if it has not answered, of time.monotonic

    def kill(self, reason: str) -> None:
        """Kill the process. The caller holds the lock."""
        self.overdue = math.inf
        if self.process:
            self.process.kill(reason)

    def run(self) -> None:
        shield()
        try:
            while self._live():
                pass
        except Exception as error:
            self._workers._give_up(f"a fault in the supervision of workers: {type(error).__name__}: {error}")

    def _live(self) -> bool:
        """Start a process and use it until it has ended; return whether to start another."""
        workers = self._workers
        try:
            process = Process()
            with workers._lock:
                self.process = process
            try:
                about, _ = self._ask(workers._order, b"", workers._start)
                workers._started(self, about)
                while not workers._over():
                    self._serve(workers._take(self))
                return False
            finally:
                process.close()
        except (Died, OSError) as death:
            return workers._bury(self, str(death))

    def _serve(self, task: Task | None) -> None:
        """Inspect a picture; without one, run the test tile."""
        workers = self._workers
        if task:
            self._inspect(task)
        elif not workers._over():
            reply, _ = self._ask({}, b"", CHECK)
            if "fault" in reply:
                raise Died(reply["fault"])
            workers._on_pass()

    def _inspect(self, task: Task) -> None:
        workers, waited = self._workers, 1000 * (time.monotonic() - task.began)
        if not task.open():
            return
        try:
            reply, data = self._ask({"name": task.name}, task.data, task.until + workers._grace - time.monotonic())
            if "fault" in reply:
                task.end(Outcome.ERROR, f"a fault in the inspection: {reply['fault']}", workers._about)
                return
            kept, verdict = Map.from_bytes(data) if data else None, Outcome(reply["verdict"])
        except NotBegun as death:
            workers._give_back(task, f"two processes have ended before they received it: {death}")
            raise
        except Exception as error:
            task.end(Outcome.ERROR, f"the process that inspected it has ended: {error}", workers._about)
            raise Died(str(error)) from None
        task.finish(verdict, {**reply, **workers._about}, kept, waited)
        if kept:
            workers._on_pass()

    def _ask(self, head: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Send a task to the process and return its answer. Died when it ends, or is killed after `seconds`."""
        assert self.process
        with self._workers._lock:
            self.overdue = time.monotonic() + seconds
        try:
            return self.process.ask(head, data)
        finally:
            with self._workers._lock:
                self.overdue = math.inf

"""The line: frames → outcomes, inspected side by side, handed on in order, with bounded memory.

```
source ── thread ──> queue ──> `workers` threads: read, prepare, score, judge, draw ──> in order ──> sink
```

While the graph runs on one frame, others are read, aligned and judged. Tiles of frames that wait for the engine at the
same time go through the graph as one batch.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

from andon.errors import AndonError, ImageError, few
from andon.pictures import image
from andon.streams.frames import Control, Frame, Inspects, Outcome, Report, Sink, Source
from andon.streams.sources import Iterated

Policy = Literal["block", "drop"]
TICK = 0.1  # seconds between two looks at what else may have happened
GRACE = 5.0  # seconds that a source has to end after it was told to stop


@dataclass(frozen=True)
class Settings:
    """How a line runs."""

    policy: Policy = "block"  # when the line is full: let the source wait, or drop its frame and count it
    workers: int = 0  # threads that inspect; 0: as many as there are cores, and one more
    queue: int = 0  # frames that may be on the line; 0: twice the workers. Each may hold its pixels and its map
    stall: float = 0.0  # seconds without a frame after which that is told; 0: never

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.policy not in ("block", "drop"):
            raise AndonError(f"policy = '{self.policy}'; expected 'block' or 'drop'.")
        if min(self.workers, self.queue) < 0 or not self.stall >= 0:
            raise AndonError(
                f"workers = {self.workers}, queue = {self.queue}, stall = {self.stall}; expected numbers from 0."
            )


def workers_of(workers: int) -> int:
    """How many threads inspect: those that are asked for, or one more than the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or cores + 1


class Line:
    """Threads that inspect frames. `submit` never waits; who submits bounds how many frames are on the line.

    A frame that cannot be inspected is an outcome with a `fault`; no exception of an inspection leaves the line.
    """

    def __init__(
        self, inspector: Inspects, workers: int = 0, draw: Callable[[Outcome], bytes | None] | None = None
    ) -> None:
        """`draw` makes the picture of an outcome, in the same threads."""
        self.workers = workers_of(workers)
        self._inspector, self._draw = inspector, draw
        self._pool = ThreadPoolExecutor(self.workers, "andon-line")

    def submit(self, frame: Frame) -> "Future[Outcome]":
        """Begin to inspect a frame."""
        return self._pool.submit(self.inspect, frame)

    def close(self) -> None:
        """Finish what runs; frames that have not begun are cancelled."""
        self._pool.shutdown(cancel_futures=True)

    def inspect(self, frame: Frame) -> Outcome:
        """Inspect a frame in this thread: what every thread of the line does."""
        began = time.perf_counter()
        try:
            read = self._inspector.read(frame.content, frame.label)
            inspection = self._inspector.inspect(read)  # verdict, digest and heat map come from the same bytes
            inspection = replace(inspection, milliseconds=1000 * (time.perf_counter() - began))
            outcome = Outcome(frame, read, inspection)
            return replace(outcome, drawn=self._draw(outcome)) if self._draw else outcome
        except Exception as error:
            return Outcome(frame, fault=error)


_Item = tuple[int, "Future[Outcome]"]  # how many frames were dropped before it, and what it becomes


class _Feeder(threading.Thread):
    """Takes frames from the source and puts them on the line, until there are no more or it is told to stop."""

    def __init__(self, source: Source, line: Line, settings: Settings, control: Control, report: Report) -> None:
        super().__init__(name="andon-source", daemon=True)  # a source that hangs holds no process back
        self.items: queue.Queue[_Item | None] = queue.Queue(settings.queue or 2 * line.workers)
        self.error: BaseException | None = None
        self.closed = threading.Event()  # nobody takes items any more
        self.latest = time.monotonic()  # when the last frame came
        self._source, self._line, self._drops = source, line, settings.policy == "drop"
        self._control, self._report = control, report

    def run(self) -> None:
        try:
            frames = self._source.frames(self._control)
            try:
                self._feed(frames)
            finally:
                if hasattr(frames, "close"):
                    frames.close()
        except BaseException as error:
            self.error = error
        self._put(None)

    def _feed(self, frames: Iterator[Frame]) -> None:
        number = dropped = 0
        lost = self._report.lost
        while not self._control.stop.is_set() and (frame := next(frames, None)) is not None:
            self.latest, number = time.monotonic(), number + 1
            if self._drops and self.items.full():
                self._report.dropped += 1
                dropped += 1
                if dropped == 1:
                    self._control.tell(f"{frame.name or f'frame {number}'}: dropped, because the line is full")
                continue
            missing, lost, dropped = dropped + self._report.lost - lost, self._report.lost, 0
            if self.closed.is_set():
                return
            self._put((missing, self._line.submit(replace(frame, number=number))))

    def _put(self, item: _Item | None) -> None:
        while not self.closed.is_set():
            try:
                self.items.put(item, timeout=TICK)
                return
            except queue.Full:
                continue


def outcomes(
    source: Source,
    line: Line,
    settings: Settings,
    report: Report,
    stop: threading.Event,
    tell: Callable[[str], None],
) -> Generator[Outcome, None, None]:
    """Yield the outcome of each frame in order. After `stop` the frames that are on the line still come.

    Errors: whatever the source raises, after the outcomes of its frames.
    """
    control = Control(report, stop, tell)
    feeder = _Feeder(source, line, settings, control, report)
    watch = _Watch(control, report, settings.stall)
    feeder.start()
    ended = False
    try:
        while True:
            try:
                item = feeder.items.get(timeout=TICK)
            except queue.Empty:
                if watch.gave_up(feeder):
                    return
                continue
            if item is None:
                break
            dropped, promise = item
            yield watch.look(replace(promise.result(), dropped=dropped))
        ended, report.stopped = True, stop.is_set()
        if feeder.error:
            raise feeder.error
    finally:
        if not ended:
            stop.set()
        feeder.closed.set()
        line.close()


class _Watch:
    """Looks at what comes, and at what does not: stalls, repeated pictures, another size."""

    def __init__(self, control: Control, report: Report, stall: float) -> None:
        self._control, self._report, self._stall = control, report, stall
        self._stalled = False
        self._stopped: float | None = None
        self._digest, self._repeats = "", 0
        self._shape: tuple[int, ...] = ()

    def gave_up(self, feeder: _Feeder) -> bool:
        """Tell of a stall; say whether a source that was told to stop has not done so for too long."""
        now = time.monotonic()
        quiet = now - feeder.latest
        if self._control.stop.is_set():
            self._stopped = self._stopped or now
            if now - self._stopped > GRACE:
                self._report.stopped = True
                self._control.tell(f"the source did not stop within {GRACE:g} s; it was left alone")
                return True
        elif self._stall and quiet > self._stall and not self._stalled:
            self._stalled = True
            self._report.stalls += 1
            self._control.tell(f"no frame for {self._stall:g} s. Check trigger, light and cable.")
        return False

    def look(self, outcome: Outcome) -> Outcome:
        """Compare with the frame before; tell of what changed."""
        label = outcome.frame.label
        if self._stalled:
            self._stalled = False
            self._control.tell(f"{label}: frames come again")
        if outcome.picture is None:
            return outcome
        digest, shape = outcome.picture.digest, outcome.picture.full
        if self._shape and shape != self._shape:
            (h, w), (before_h, before_w) = shape, self._shape
            self._control.tell(f"{label}: {w} × {h} pixels, after frames of {before_w} × {before_h}")
        self._repeats = self._repeats + 1 if digest == self._digest else 0
        self._digest, self._shape = digest, shape
        if self._repeats:
            self._report.repeated += 1
        if self._repeats == 1:
            self._control.tell(f"{label}: the same picture as the frame before. Has the camera frozen?")
        return replace(outcome, repeats=self._repeats)


def pictures(
    inspector: Inspects,
    sources: Iterable[image.Source],
    workers: int = 0,
    draw: Callable[[Outcome], bytes | None] | None = None,
) -> Generator[Outcome, None, None]:
    """Yield the outcomes of pictures that are all there, in order; one worker inspects them in the caller's thread.

    Errors: every exception that no single picture caused.
    """
    line, frames = Line(inspector, workers, draw), (Frame(each, number=n) for n, each in enumerate(sources, 1))
    with (
        nullcontext(map(line.inspect, frames))
        if workers == 1
        else closing(outcomes(Iterated(frames), line, Settings(), Report(), threading.Event(), _untold)) as found
    ):
        for outcome in found:
            if outcome.fault and not isinstance(outcome.fault, ImageError):
                raise outcome.fault
            yield outcome


def _untold(sentence: str) -> None:
    """Say nothing: pictures that are all there neither stall nor get lost."""


def stream(
    inspector: Inspects,
    source: Source,
    sink: Sink,
    settings: Settings,
    *,
    stop: threading.Event | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
    draw: Callable[[Outcome], bytes | None] | None = None,
) -> Report:
    """Hand the outcome of each frame to the sink; see `Inspector.stream`."""
    report, line = Report(), Line(inspector, settings.workers, draw)
    stop = stop or threading.Event()
    with closing(outcomes(source, line, settings, report, stop, tell)) as found:
        for outcome in found:
            try:
                sink(outcome)
            except Exception as error:
                raise _undelivered(error, outcome, found, stop) from error
            report.frames += 1
            report.verdicts[outcome.verdict] += 1
            report.failed += outcome.inspection is None
    return report


def _undelivered(error: Exception, outcome: Outcome, rest: Iterator[Outcome], stop: threading.Event) -> AndonError:
    """Stop the line, and name what was inspected but could not be handed on."""
    stop.set()
    names = [outcome.frame.label]
    try:
        names += [each.frame.label for each in rest]
    except Exception as further:
        names.append(f"(then the source failed: {further})")
    many = f"{len(names)} frames were" if len(names) > 1 else "1 frame was"
    kind = "" if isinstance(error, AndonError) else f"{type(error).__name__}: "
    return AndonError(
        f"the sink failed at {outcome.frame.label}: {kind}{error}\n"
        f"{many} inspected and not handed on: {few(names, 10)}. Inspect them again when the cause is removed."
    )

"""The line: frames → outcomes, inspected in parallel, handed to the sink in order, with bounded memory.

```
source ── thread ──> queue ──> `workers` threads: read, prepare, score, judge, draw ──> in order ──> sink
```

While the graph runs on one frame, other frames are read, aligned, scored and judged.
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
TICK = 0.1  # seconds between two checks for events
GRACE = 5.0  # seconds in which a source must end after the stop event


@dataclass(frozen=True)
class Settings:
    """Settings of a line."""

    policy: Policy = "block"  # if the line is full: the source waits, or the frame is dropped and counted
    workers: int = 0  # number of threads that inspect; 0: number of cores plus one
    queue: int = 0  # greatest number of frames on the line, each with pixels and map; 0: twice the workers
    stall: float = 0.0  # seconds without a frame after which a warning follows; 0: never

    def __post_init__(self) -> None:
        """Raise AndonError for impossible values."""
        if self.policy not in ("block", "drop"):
            raise AndonError(f"policy = '{self.policy}'; expected 'block' or 'drop'. Correct it.")
        if min(self.workers, self.queue) < 0 or not self.stall >= 0:
            raise AndonError(
                f"workers = {self.workers}, queue = {self.queue}, stall = {self.stall}; expected numbers from 0."
            )


def workers_of(workers: int) -> int:
    """Number of threads that inspect: `workers`, or for 0 the number of cores of this process plus one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or cores + 1


class Line:
    """Threads that inspect frames. `submit` does not wait; the caller limits the number of frames on the line.

    A frame that cannot be inspected has an outcome with a `fault`; an inspection raises no exception.
    """

    def __init__(
        self, inspector: Inspects, workers: int = 0, draw: Callable[[Outcome], bytes | None] | None = None
    ) -> None:
        """`draw` makes the heat map of an outcome, in the same threads."""
        self.workers = workers_of(workers)
        self._inspector, self._draw = inspector, draw
        self._pool = ThreadPoolExecutor(self.workers, "andon-line")

    def submit(self, frame: Frame) -> "Future[Outcome]":
        """Start the inspection of a frame."""
        return self._pool.submit(self.inspect, frame)

    def close(self) -> None:
        """Finish running inspections, and cancel waiting frames."""
        self._pool.shutdown(cancel_futures=True)

    def inspect(self, frame: Frame) -> Outcome:
        """Inspect a frame in this thread."""
        began = time.perf_counter()
        try:
            read = self._inspector.read(frame.content, frame.label)
            inspection = self._inspector.inspect(read)  # verdict, digest and heat map come from the same bytes
            inspection = replace(inspection, milliseconds=1000 * (time.perf_counter() - began))
            outcome = Outcome(frame, read, inspection)
            return replace(outcome, drawn=self._draw(outcome)) if self._draw else outcome
        except Exception as error:
            return Outcome(frame, fault=error)


_Item = tuple[int, "Future[Outcome]"]  # number of frames dropped before it, and its outcome


class _Feeder(threading.Thread):
    """Moves frames from the source to the line, until the source ends or the stop event."""

    def __init__(self, source: Source, line: Line, settings: Settings, control: Control, report: Report) -> None:
        super().__init__(name="andon-source", daemon=True)  # daemon: a blocked source does not keep the process alive
        self.items: queue.Queue[_Item | None] = queue.Queue(settings.queue or 2 * line.workers)
        self.error: BaseException | None = None
        self.closed = threading.Event()  # no consumer any more
        self.latest = time.monotonic()  # time of the last frame
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
    """Yield the outcome of each frame in order. After `stop`, the frames on the line are still inspected.

    Errors: those of the source, after the outcomes of its frames.
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
    """Detects stalls, repeated pictures and changes of size."""

    def __init__(self, control: Control, report: Report, stall: float) -> None:
        self._control, self._report, self._stall = control, report, stall
        self._stalled = False
        self._stopped: float | None = None
        self._digest, self._repeats = "", 0
        self._shape: tuple[int, ...] = ()

    def gave_up(self, feeder: _Feeder) -> bool:
        """Report a stall; return whether the source did not stop within GRACE seconds."""
        now = time.monotonic()
        quiet = now - feeder.latest
        if self._control.stop.is_set():
            self._stopped = self._stopped or now
            if now - self._stopped > GRACE:
                self._report.stopped = True
                self._control.tell(f"the source did not stop within {GRACE:g} s; its thread was abandoned")
                return True
        elif self._stall and quiet > self._stall and not self._stalled:
            self._stalled = True
            self._report.stalls += 1
            self._control.tell(f"no frame for {self._stall:g} s. Check trigger, light and cable.")
        return False

    def look(self, outcome: Outcome) -> Outcome:
        """Compare a frame with the previous one, and report changes."""
        label = outcome.frame.label
        if self._stalled:
            self._stalled = False
            self._control.tell(f"{label}: frames arrive again")
        if outcome.picture is None:
            return outcome
        digest, shape = outcome.picture.digest, outcome.picture.full
        if self._shape and shape != self._shape:
            (h, w), (before_h, before_w) = shape, self._shape
            self._control.tell(f"{label}: {w} × {h} pixels; previous frames had {before_w} × {before_h}")
        self._repeats = self._repeats + 1 if digest == self._digest else 0
        self._digest, self._shape = digest, shape
        if self._repeats:
            self._report.repeated += 1
        if self._repeats == 1:
            self._control.tell(f"{label}: the same picture as the previous frame. Check whether the camera is frozen.")
        return replace(outcome, repeats=self._repeats)


def pictures(
    inspector: Inspects,
    sources: Iterable[image.Source],
    workers: int = 0,
    draw: Callable[[Outcome], bytes | None] | None = None,
) -> Generator[Outcome, None, None]:
    """Yield the outcomes of a known set of pictures, in order; one worker inspects in the thread of the caller.

    Errors: all exceptions except ImageError.
    """
    line, frames = Line(inspector, workers, draw), (Frame(each, number=n) for n, each in enumerate(sources, 1))
    with (
        nullcontext(map(line.inspect, frames))
        if workers == 1
        else closing(outcomes(Iterated(frames), line, Settings(), Report(), threading.Event(), _silent)) as results
    ):
        for outcome in results:
            if outcome.fault and not isinstance(outcome.fault, ImageError):
                raise outcome.fault
            yield outcome


def _silent(sentence: str) -> None:
    """Do nothing: a known set of pictures has no stalls and no lost frames."""


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
    with closing(outcomes(source, line, settings, report, stop, tell)) as results:
        for outcome in results:
            try:
                sink(outcome)
            except Exception as error:
                raise _undelivered(error, outcome, results, stop) from error
            report.frames += 1
            report.verdicts[outcome.verdict] += 1
            report.failed += outcome.inspection is None
    return report


def _undelivered(error: Exception, outcome: Outcome, rest: Iterator[Outcome], stop: threading.Event) -> AndonError:
    """Stop the line, and list the frames that were inspected but not handed to the sink."""
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
        f"{many} inspected, but not handed to the sink: {few(names, 10)}. Remove the cause, then inspect them again."
    )

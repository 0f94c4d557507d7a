"""Long-running work in separate processes, with progress, result and cancellation."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from andon.errors import AndonError
from andon.station.aside import follow
from andon.station.events import StationError

NICENESS = 10
"""Added to the niceness of the process, so that inspections have priority."""
REPORT_EVERY_S = 0.2
PATIENCE_S = 5.0
"""Seconds in which cancelled work must remove its files; then it is killed."""


@dataclass(frozen=True)
class Work:
    """State of one piece of work. Times are seconds of `time.monotonic`."""

    who: str
    began: float
    stage: str = ""
    done: int = 0
    total: int = 0
    """0: unknown."""
    said: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    result: Any = None
    error: str = ""
    """Reason why it ended without a result."""
    runs: bool = True

    @property
    def share(self) -> float | None:
        """Completed share of the stage, from 0 to 1; None if unknown."""
        return min(self.done / self.total, 1.0) if self.total else None


class Report:
    """Sends progress and messages of the work to the station's process."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self._pipe, self._at, self._stage = pipe, 0.0, ""

    def progress(self, stage: str, done: int, total: int) -> None:
        """See `andon.progress.Progress`. Frequent calls are not all sent."""
        now = time.monotonic()
        if stage != self._stage or now - self._at >= REPORT_EVERY_S:
            self._at, self._stage = now, stage
            self._pipe.send(("progress", (stage, done, total)))

    def tell(self, sentence: str) -> None:
        self._pipe.send(("said", sentence))

    def warn(self, sentence: str) -> None:
        self._pipe.send(("warned", sentence))


class Background:
    """Work by name; at most one of each name runs. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work: dict[str, Work] = {}
        self._processes: dict[str, Any] = {}
        self._listeners: dict[str, threading.Thread] = {}

    def start(self, name: str, who: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a module's function in a separate process, with a `Report` and plain data.

        StationError while work with this name runs.
        """
        context = multiprocessing.get_context("spawn")
        with self._lock:
            if (before := self._work.get(name)) and before.runs:
                raise StationError(f"{name}: already started by {before.who}. Wait until it has ended, or cancel it.")
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(theirs, function, arguments), name=name, daemon=True)
            process.start()
            theirs.close()
            self._processes[name] = process
            self._work[name] = Work(who, time.monotonic())
            thread = threading.Thread(target=self._listen, args=(name, ours, process), name=name, daemon=True)
            self._listeners[name] = thread
        thread.start()

    def find(self, name: str) -> Work | None:
        """Return the last work with a name; None if there was none since the start of the station."""
        return self._work.get(name)

    def forget(self, name: str) -> None:
        """Forget work that has ended."""
        with self._lock:
            if name in self._work and not self._work[name].runs:
                del self._work[name]

    def cancel(self, name: str) -> None:
        """Cancel work; it removes its files. Does nothing if the work has ended."""
        with self._lock:
            process, listener = self._processes.get(name), self._listeners.get(name)
        if process and process.is_alive():
            process.terminate()
            process.join(PATIENCE_S)
            process.kill()
        if listener and listener.ident:
            listener.join()  # it notes the end

    def close(self) -> None:
        for name in list(self._processes):
            self.cancel(name)

    def _listen(self, name: str, pipe: "Connection[Any, Any]", process: Any) -> None:
        end: dict[str, Any] = {}
        with suppress(EOFError, OSError), pipe:
            while not end:
                kind, what = pipe.recv()
                with self._lock:
                    work = self._work[name]
                    if kind == "progress":
                        self._work[name] = replace(work, **dict(zip(("stage", "done", "total"), what, strict=True)))
                    elif kind == "said":
                        self._work[name] = replace(work, said=(*work.said, what))
                    elif kind == "warned":
                        self._work[name] = replace(work, warned=(*work.warned, what))
                    else:
                        end = {kind: what}
        process.join()
        with self._lock:
            end = end or {"error": "cancelled, or its process was killed."}
            self._work[name] = replace(self._work[name], runs=False, **end)


def _run(pipe: "Connection[Any, Any]", function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Run the work in its process. SIGTERM raises an exception, so that incomplete files are removed."""
    signal.signal(signal.SIGTERM, _end)
    follow()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        pipe.send(("result", function(Report(pipe), *arguments)))
    except AndonError as error:
        pipe.send(("error", str(error)))
    except Exception as error:
        pipe.send(("error", f"an error in andon: {error!r}"))
        raise


def _end(*_: object) -> None:
    raise SystemExit(1)

"""One peer as a process of its own, within a time and a memory; every way in which it can fail is a Failure."""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6
POLL = 0.1  # seconds between looks at the memory
GRACE = 1.0  # seconds for the last output of a process that has ended
NO_MEMORY = ("MemoryError", "allocate memory", "std::bad_alloc", "Cannot allocate")
LONGEST = 300  # characters of a reason


class Failure(Exception):
    """A peer failed: its status in the results, and the reason."""

    def __init__(self, status: str, reason: str) -> None:
        """Shorten the reason to one line."""
        self.status, self.reason = status, " ".join(reason.split())[:LONGEST]
        super().__init__(f"{status}: {self.reason}")


class Process:
    """A running peer. Its log is `log`; it is ended, with all that it started, on leaving the context."""

    def __init__(self, command: Sequence[str | Path], log: Path, megabytes: float, environment: dict[str, str]) -> None:
        """Start it in a session of its own, so that what it starts can be found and ended. Failure when it cannot."""
        self.log, self.megabytes, self.stage = log, megabytes, "after its start"
        self._events: queue.Queue[str] = queue.Queue()
        with log.open("wb") as errors:
            try:
                self._process = subprocess.Popen(
                    [str(part) for part in command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=log.parent,
                    env={**os.environ, **environment},
                    text=True,
                    start_new_session=True,
                )
            except OSError as error:
                raise Failure("not installed", f"{command[0]} cannot be started: {error.strerror}") from None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._events.put(line)

    def expect(self, event: str, seconds: float) -> dict[str, Any]:
        """Wait for the next event, which must be this one. Failure when it does not come within its limits."""
        began = time.monotonic()
        while True:
            try:
                line = self._events.get(timeout=POLL)
            except queue.Empty:
                self._check(time.monotonic() - began, seconds)
                continue
            try:
                contents: dict[str, Any] = json.loads(line)
            except ValueError:
                raise Failure("crash", f"wrote '{line.strip()}' where the event {event} was expected") from None
            if contents.get("event") != event:
                raise Failure("crash", f"sent the event {contents.get('event')} where {event} was expected")
            self.stage = f"after the event {event}"
            return contents

    def ask(self, line: str, event: str, seconds: float) -> dict[str, Any]:
        """Write a line to the peer and wait for its answer. Failure as `expect`."""
        assert self._process.stdin
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            self._reader.join(POLL)
        return self.expect(event, seconds)

    def _check(self, spent: float, seconds: float) -> None:
        used = resident_mb(self._process.pid)
        if used > self.megabytes:
            raise Failure("out of memory", f"used {used:.0f} MB {self.stage}; the limit is {self.megabytes:.0f} MB")
        # Not reaped before __exit__: until then its number, and that of its group, belong to it.
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._reader.join(GRACE)  # longer if a process that it started keeps the output open
            if self._events.empty():
                raise self._ended()
        elif spent > seconds:
            raise Failure("timeout", f"no answer within {seconds:.0f} s {self.stage}")

    def _ended(self) -> Failure:
        self._end()
        code = self._process.returncode
        lines = self.log.read_text(errors="replace").strip().splitlines()
        last = (lines[-1] if lines else "no message").replace(str(self.log.parent), "…")
        if any(sign in last for sign in NO_MEMORY):
            return Failure("out of memory", last)
        how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return Failure("crash", f"{how} {self.stage}: {last}")

    def __enter__(self) -> Self:
        """Return the process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process and all that it started."""
        self._end()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with suppress(OSError):  # what was not written is not needed
                    stream.close()

    def _end(self) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def resident_mb(session: int) -> float:
    """Megabytes in memory of all processes of a session."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[3]) == session:
                total += int(fields[21])
    return total * PAGE_MB

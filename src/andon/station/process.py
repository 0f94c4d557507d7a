"""A process that inspects, seen from the station: started, asked, killed."""

import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any, cast

from andon.station.work import receive, send

MOST_ANSWER = 1 << 26  # bytes of a map: far more than `answers.MOST_VALUES` need
PATIENCE = 2.0  # seconds that a process has to end by itself when its input has ended


class Died(Exception):
    """A process has ended, or what it sent was no answer; the text says why."""


class NotBegun(Died):
    """It ended before the picture was handed over."""


def shield() -> None:
    """Keep Ctrl-C and SIGTERM from this thread and from all processes that it starts; the station ends them.

    A terminal sends Ctrl-C, and systemd sends SIGTERM, to every process of the station.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


class Process:
    """One process. Threads may kill it while another asks it."""

    def __init__(self) -> None:
        """Start it. OSError when the system cannot."""
        self._popen = subprocess.Popen(
            # -P: no module is taken from the folder that the station was started in
            [sys.executable, "-P", "-X", "faulthandler", "-m", "andon.station.work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._tasks, self._answers = cast(IO[bytes], self._popen.stdin), cast(IO[bytes], self._popen.stdout)
        self._killed = ""

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def runs(self) -> bool:
        return self._popen.poll() is None

    def ask(self, head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Hand it a task and wait for the answer. Died when it ends before, NotBegun when it has not got the task."""
        try:
            send(cast(Any, self._tasks), head, data)
        except OSError:
            raise NotBegun(self.ending()) from None
        try:
            return receive(cast(Any, self._answers), MOST_ANSWER)
        except EOFError:
            raise Died(self.ending()) from None
        except ValueError as error:
            raise Died(f"it sent what is no answer: {error}") from None

    def kill(self, reason: str) -> None:
        """End it at once."""
        if self.runs:
            self._killed = reason
            self._popen.kill()

    def ending(self) -> str:
        """Say how it ended; what has closed its pipes and runs on is killed."""
        try:
            code = self._popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill("it closed its output")
            code = self._popen.wait()
        if self._killed:
            return self._killed
        if code >= 0:
            return f"exit code {code}"
        return f"ended by {signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'}"

    def close(self) -> None:
        """End its input, wait until it has ended, and close its pipes."""
        with suppress(OSError):  # what it did not read is lost with it
            self._tasks.close()
        self.ending()
        self._answers.close()

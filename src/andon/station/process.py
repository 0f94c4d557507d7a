"""Start, use and kill a process that inspects; the station's side."""

import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any, cast

from andon.station.work import receive, send

MOST_ANSWER = 1 << 26  # maximum number of bytes of a map; more than `answers.MOST_VALUES` need
PATIENCE = 2.0  # seconds in which a process must end after its input has ended; then it is killed


class Died(Exception):
    """A process has ended or sent an invalid answer; the text is the reason."""


class NotBegun(Died):
    """The process ended before it received the picture."""


def shield() -> None:
    """Block Ctrl-C and SIGTERM in this thread and in all processes that it starts; the station ends them.

    A terminal sends Ctrl-C, and systemd sends SIGTERM, to every process of the station.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


class Process:
    """One process. Other threads may kill it while one waits for its answer."""

    def __init__(self) -> None:
        """Start the process. OSError when the system cannot."""
        self._popen = subprocess.Popen(
            # -P: never import modules from the current folder
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
        """Send a task, return the answer. Died when the process ends, NotBegun when it ends before it has the task."""
        try:
            send(cast(Any, self._tasks), head, data)
        except OSError:
            raise NotBegun(self.ending()) from None
        try:
            return receive(cast(Any, self._answers), MOST_ANSWER)
        except EOFError:
            raise Died(self.ending()) from None
        except ValueError as error:
            raise Died(f"it sent an invalid answer: {error}") from None

    def kill(self, reason: str) -> None:
        """Kill the process."""
        if self.runs:
            self._killed = reason
            self._popen.kill()

    def ending(self) -> str:
        """Return how it ended. A process that closed its pipes and still runs is killed."""
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
        """Close its input, wait until the process has ended, and close its output."""
        with suppress(OSError):  # it may have ended with unread input
            self._tasks.close()
        self.ending()
        self._answers.close()

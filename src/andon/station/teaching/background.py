"""One process at a time beside the line: checks, previews, trainings. It ends with the station, not the browser."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

from andon import files
from andon.errors import AndonError
from andon.progress import STAGE
from andon.station.events import StationError
from andon.station.process import PATIENCE
from andon.station.teaching import pictures, work

Action = Literal["check", "preview", "expected", "train"]
State = Literal["running", "done", "failed", "cancelled", "interrupted"]
MOST_SAID = 200  # sentences that are kept
LONGEST_LOG = 2000  # bytes of the end of the log that a failure shows


@dataclass(frozen=True)
class Run:
    """One action on one project, and how far it is."""

    action: Action
    fingerprint: str
    """Of what it was started on."""
    by: str
    state: State = "running"
    stage: str = ""
    done: int = 0
    total: int = 0
    """0: not known."""
    elapsed_s: int = 0
    left_s: int | None = None
    """Time left; None: not known."""
    said: tuple[str, ...] = field(default_factory=tuple)
    warned: tuple[str, ...] = field(default_factory=tuple)
    reason: str = ""
    """Why it has failed."""
    before: str = ""
    """Fingerprint of the last run before it that was done; empty: none."""

    @property
    def result(self) -> str:
        """Fingerprint of what the result was made from; empty: there is no result."""
        return self.fingerprint if self.state == "done" else self.before


class Background:
    """What runs beside the line.

    Args:
        folder: of the projects.
        tell: takes sentences for the person who started the station.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder, self._tell = folder, tell
        self._lock = threading.Lock()
        self._runs: dict[str, dict[Action, Run]] = {}
        self._busy: tuple[str, Action, subprocess.Popen[bytes]] | None = None
        self._cancelled = self._closing = False
        self._thread: threading.Thread | None = None

    def recover(self) -> None:
        """Clear away what a station that crashed has left: files of a training, and temporary folders.

        A training that had ended is done.
        """
        for place in self._folder.glob("*"):
            trained = files.is_file(place / work.NEW / work.RESULT)
            for path in place.glob("run/*.run.json"):
                run = _read(path)
                if run and run.state == "running" and run.action == "train" and trained:
                    self._keep(place, replace(run, state="done", left_s=0))
                elif run and run.state == "running":
                    self._keep(place, replace(run, state="interrupted", reason="the station was stopped"))
            with suppress(AndonError):
                work.settle(place) if trained else None
            for left in (place / work.NEW, *place.glob("run/.*.part"), *place.glob(".bring-*")):
                with suppress(AndonError, OSError):
                    pictures.clear(left) if files.is_folder(left) else left.unlink()

    def last(self, place: Path, action: Action) -> Run | None:
        """The last run of an action on the project in this folder, or the one that goes on."""
        with self._lock:
            known = self._runs.setdefault(place.name, {})
            if action not in known and (found := _read(_path(place, action))):
                known[action] = found
            return known.get(action)

    @property
    def busy(self) -> tuple[str, Action] | None:
        """The folder's name of the project and the action that goes on."""
        busy = self._busy
        return busy and busy[:2]

    def start(self, place: Path, action: Action, fingerprint: str, who: str) -> None:
        """Begin an action. StationError when another goes on."""
        last = self.last(place, action)
        with self._lock:
            if self._closing:
                raise StationError("the station is being stopped. Start the training again when it runs.")
            if self._busy:
                raise StationError(
                    f"'{self._busy[1]}' of {'this' if self._busy[0] == place.name else 'another'} project goes on; one "
                    "at a time runs beside the line. Wait until it ends, or cancel it."
                )
            files.make_folder(place / work.RUN)
            log = (place / work.RUN / "log.txt").open("wb")
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "andon.station.teaching.work", action, str(place)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                    start_new_session=True,
                )
            except OSError as error:
                raise StationError(f"a process cannot be started: {files.reason(error)}. Free memory.") from None
            finally:
                log.close()
            self._cancelled = False
            self._busy = (place.name, action, process)
            run = Run(action, fingerprint, who, before=last.result if last else "")
            self._runs.setdefault(place.name, {})[action] = run
            self._thread = threading.Thread(target=self._follow, args=(place, run, process), name=action, daemon=True)
            self._thread.start()

    def cancel(self, place: Path) -> None:
        """End what goes on in a project. StationError when nothing does."""
        with self._lock:
            if not self._busy or self._busy[0] != place.name:
                raise StationError("nothing goes on in this project any more. Load the page again.")
            self._cancelled = True
            self._busy[2].kill()

    def close(self) -> None:
        """End what goes on."""
        with self._lock:
            self._closing = True
            if self._busy:
                self._busy[2].kill()
        if self._thread:
            self._thread.join()

    def _follow(self, place: Path, run: Run, process: subprocess.Popen[bytes]) -> None:
        """Read the messages of a process until its end."""
        began, ended = time.monotonic(), False
        try:
            self._keep(place, run)
            for line in cast(IO[bytes], process.stdout):
                with suppress(ValueError):
                    message = json.loads(line)
                    ended = ended or bool(message.get("end"))
                    run = _heard(run, message, round(time.monotonic() - began))
                    self._runs[place.name][run.action] = run
            run = self._ended(place, run, process, ended)
            _write(place, run)
            if run.state == "done":  # a station that is killed from here on goes on when it starts
                work.settle(place)
            pictures.clear(place / work.NEW)
        except AndonError as error:  # the disk is full
            self._tell(f"teaching: {error}")
            run = replace(run, state="failed", reason=str(error))
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._runs[place.name][run.action] = run
                self._busy = None

    def _ended(self, place: Path, run: Run, process: subprocess.Popen[bytes], ended: bool) -> Run:
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        cast(IO[bytes], process.stdin).close()
        cast(IO[bytes], process.stdout).close()
        if ended:
            return replace(run, state="done", left_s=0)
        if self._cancelled:
            return replace(run, state="cancelled")
        if self._closing:
            return replace(run, state="interrupted", reason="the station was stopped")
        if run.reason:
            return replace(run, state="failed")
        log = (place / work.RUN / "log.txt").read_bytes()[-LONGEST_LOG:].decode(errors="replace").strip()
        last = log.splitlines()[-1] if log else "it wrote nothing"
        self._tell(f"teaching: {run.action} ended with exit code {code}: {log}")
        return replace(run, state="failed", reason=f"the process ended with exit code {code}: {last[:500]}")

    def _keep(self, place: Path, run: Run) -> None:
        with self._lock:
            self._runs.setdefault(place.name, {})[run.action] = run
        _write(place, run)


def _path(place: Path, action: Action) -> Path:
    return place / work.RUN / f"{action}.run.json"


def _write(place: Path, run: Run) -> None:
    files.write(_path(place, run.action), files.strict_json(run.__dict__).encode())


def _read(path: Path) -> Run | None:
    try:
        values = json.loads(path.read_bytes())
        return Run(**{**values, "said": tuple(values["said"]), "warned": tuple(values["warned"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _heard(run: Run, message: dict[str, Any], elapsed_s: int) -> Run:
    run = replace(run, elapsed_s=elapsed_s)
    if message.get("stage") == STAGE:
        total = int(message["total"])
        return replace(run, left_s=total - int(message["done"]) if total else None)
    if "stage" in message:
        return replace(run, stage=message["stage"], done=int(message["done"]), total=int(message["total"]))
    if "tell" in message:
        return replace(run, said=(*run.said, message["tell"])[-MOST_SAID:])
    if "warn" in message:
        return replace(run, warned=(*run.warned, message["warn"])[-MOST_SAID:])
    return replace(run, reason=message.get("error", run.reason))

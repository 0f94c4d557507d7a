"""A loaded bundle: its worker processes and its drift."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from andon import files
from andon.calibration import Calibration
from andon.errors import AndonError
from andon.station.catalogue import Version
from andon.station.drift import Change, Drift
from andon.station.workers import Workers

RETIRE_S = 0.05
RETRY_S = 60  # until what drift has learnt is stored again, after a failure


class Loaded:
    """A bundle with its worker processes."""

    def __init__(
        self,
        product: str,
        version: Version,
        deadline_s: float,
        workers: Workers,
        calibration: Calibration,
        folder: Path,
        load_s: float,
    ) -> None:
        """`folder` stores references and change of drift. `load_s`: duration of loading."""
        self._file = folder / f"{version.digest}.json"
        self._learnt, self._fault, self._again = _learnt(self._file), "", 0.0
        self.drift = Drift.of(calibration, seed=version.digest, state=self._learnt)
        self.product, self.version, self.deadline_s, self.workers = product, version, deadline_s, workers
        self.load_s, self.used = load_s, time.monotonic()
        """Duration of loading in seconds, and the time of the last use."""
        self.repeats = 0
        """Number of successive parts with the picture of the previous part."""
        self._last = ("", "")
        self._lock = threading.Lock()

    @property
    def memory(self) -> int:
        """Memory of its processes in bytes; 0 if the system does not report it."""
        return sum(map(_resident, self.workers.pids))

    def frozen(self, part: str, digest: str | None, after: int) -> bool:
        """Whether this picture equals that of the previous part. A repeated picture of the same part does not count."""
        with self._lock:
            before, self._last = self._last, (part, digest or "")
            same = after > 0 and before[1] == digest and before[0] != part
            self.repeats = self.repeats + 1 if same else self.repeats if before[1] == digest else 0
            return same

    def watch(self, record: Mapping[str, Any]) -> Change | None:
        """Add the record of a production part to the charts; return the first detected change, once."""
        with self._lock:
            known = self.drift.change
            found = self.drift.add(record)
        if found and known is None:
            self.keep()
            return found
        return None

    def watch_again(self) -> None:
        """End the change that was found, if any, and begin the charts again."""
        with self._lock:
            self.drift.restart()
        self.keep()

    def resume(self, slept: "Loaded") -> None:
        """Go on with the drift of the same bundle, whose processes had ended."""
        self.drift, self._lock = slept.drift, slept._lock

    def retire(self, needed: Callable[["Loaded"], bool]) -> None:
        """End its processes in the background when no job needs them."""

        def end() -> None:
            while needed(self):
                time.sleep(RETIRE_S)
            self.workers.close()

        threading.Thread(target=end, name="retiring", daemon=True).start()

    def keep(self, tell: Callable[[str], None] | None = None) -> None:
        """Store references and change of drift, for use after a restart. A fault is told once; inspection goes on."""
        with self._lock:
            learnt = self.drift.state()
        if learnt == self._learnt or time.monotonic() < self._again:
            return
        try:
            files.make_folder(self._file.parent)
            files.write(self._file, files.strict_json(learnt).encode())
        except AndonError as error:
            if tell:
                self._again, told, self._fault = time.monotonic() + RETRY_S, self._fault, str(error)
                if told != self._fault:
                    tell(f"product {self.product}: what drift has learnt is not stored: {error}")
        else:
            self._learnt, self._fault = learnt, ""


def _learnt(file: Path) -> dict[str, Any]:
    """Read the stored state. If the file is missing or damaged, return none: the references are learnt again."""
    try:
        found = json.loads(file.read_bytes())
        Drift(state=found)
    except (OSError, ValueError, TypeError, AttributeError, AndonError):
        return {}
    return dict(found)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # the process has ended
        return 0

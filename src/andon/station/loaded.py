"""A bundle of a product in its processes."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from andon import files
from andon.calibration import Calibration
from andon.errors import AndonError, StorageError
from andon.station.catalogue import Version
from andon.station.drift import Change, Drift
from andon.station.workers import Workers

RETIRE_S = 0.05


class Loaded:
    """A bundle in its processes."""

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
        """`folder`: for what drift learnt from production. `load_s`: how long it took to load."""
        self._file = folder / f"{version.digest}.json"
        self._learnt = _learnt(self._file)
        self.drift = Drift.of(calibration, seed=version.digest, state=self._learnt)
        self.product, self.version, self.deadline_s, self.workers = product, version, deadline_s, workers
        self.load_s, self.used = load_s, time.monotonic()
        """Seconds that loading took; when somebody used it last."""
        self.repeats = 0
        """Parts in a row that have the picture of the part before."""
        self._last = ("", "")
        self._lock = threading.Lock()

    @property
    def memory(self) -> int:
        """Bytes that its processes hold; 0 where the system does not tell."""
        return sum(map(_resident, self.workers.pids))

    def frozen(self, part: str, digest: str | None, after: int) -> bool:
        """Whether this is the picture of the part before. The same part again is no sign of that."""
        with self._lock:
            before, self._last = self._last, (part, digest or "")
            same = after > 0 and before[1] == digest and before[0] != part
            self.repeats = self.repeats + 1 if same else self.repeats if before[1] == digest else 0
            return same

    def watch(self, record: Mapping[str, Any]) -> Change | None:
        """Take the record of a production part; return a change, the first time that it shows."""
        with self._lock:
            known = self.drift.change
            found = self.drift.add(record)
        return found if known is None else None

    def retire(self, needed: Callable[["Loaded"], bool]) -> None:
        """End its processes once no job needs them, without waiting for that."""

        def end() -> None:
            while needed(self):
                time.sleep(RETIRE_S)
            self.workers.close()

        threading.Thread(target=end, name="retiring", daemon=True).start()

    def keep(self) -> None:
        """Keep what drift has learnt, so that it goes on after a restart."""
        with self._lock:
            learnt = self.drift.state()
        if learnt != self._learnt:
            try:
                files.make_folder(self._file.parent)
                files.write(self._file, files.strict_json(learnt).encode())
            except AndonError as error:
                raise StorageError(str(error)) from error
            self._learnt = learnt


def _learnt(file: Path) -> dict[str, list[float]]:
    """What was kept; nothing when there is none, or when it is damaged: it is learnt anew then."""
    try:
        found = json.loads(file.read_bytes())
        Drift(state=found)
    except (OSError, ValueError, TypeError, AndonError):
        return {}
    return dict(found)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # it has ended
        return 0

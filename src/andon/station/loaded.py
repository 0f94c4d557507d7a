"""A bundle of a product in its processes."""

import threading

from andon.station.catalogue import Version
from andon.station.workers import Workers


class Loaded:
    """A bundle in its processes."""

    def __init__(self, product: str, version: Version, deadline_s: float, workers: Workers) -> None:
        self.product, self.version, self.deadline_s, self.workers = product, version, deadline_s, workers
        self.repeats = 0
        """Parts in a row that have the picture of the part before."""
        self._last = ("", "")
        self._lock = threading.Lock()

    def frozen(self, part: str, digest: str | None, after: int) -> bool:
        """Whether this is the picture of the part before. The same part again is no sign of that."""
        with self._lock:
            before, self._last = self._last, (part, digest or "")
            same = after > 0 and before[1] == digest and before[0] != part
            self.repeats = self.repeats + 1 if same else self.repeats if before[1] == digest else 0
            return same

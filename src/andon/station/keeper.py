"""One thread that writes records; all waiting records are written in one transaction."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from andon.errors import AndonError, StorageError
from andon.station.entries import Entry, Row
from andon.station.ledger import Ledger

MOST = 256  # maximum number of entries in one transaction
RETRY_S = 0.5


class Pending(NamedTuple):
    entry: Entry
    done: Callable[[Row], None]
    """Called when the record is durable."""


class Keeper:
    """Writes entries in order. If the storage is not available, reports this and tries again.

    Args:
        ledger: the records.
        state: returns the state to write in the same transaction.
        storage: called with the error when records cannot be written, and with None when they can be again.
        guarded: calls a function and reports its errors.
        deliver: targets of the outbox.
    """

    def __init__(
        self,
        ledger: Ledger,
        state: Callable[[], dict[str, Any]],
        storage: Callable[[AndonError | None], None],
        guarded: Callable[..., None],
        deliver: tuple[str, ...] = (),
    ) -> None:
        self._ledger, self._state, self._storage, self._deliver = ledger, state, storage, deliver
        self._guarded = guarded
        self._waiting: deque[Pending] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.away = False
        """True while records cannot be written."""
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, entry: Entry, done: Callable[[Row], None] = lambda row: None) -> None:
        """Add an entry to the queue; never waits."""
        with self._changed:
            self._waiting.append(Pending(entry, done))
            self._changed.notify()

    @property
    def depth(self) -> int:
        """Number of entries that are not yet durable."""
        return len(self._waiting)

    def close(self, timeout_s: float = 10) -> int:
        """Write the waiting entries; return the number of entries that could not be written."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return self.depth

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                batch = [self._waiting[i] for i in range(min(MOST, len(self._waiting)))]
            rows = self._write(batch)
            if rows is None:
                return
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()
            for pending, row in zip(batch, rows, strict=True):
                self._guarded(pending.done, row)

    def _write(self, batch: list[Pending]) -> list[Row] | None:
        """Write one batch, with repeated attempts; None if the station closes first."""
        entries = [pending.entry for pending in batch]
        while True:
            try:
                rows = self._ledger.append(entries, self._deliver, self._state())
            except Exception as error:  # includes: another process has become the writer
                self.away = True
                self._storage(error if isinstance(error, AndonError) else _unexpected(error))
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, RETRY_S):
                        return None
                continue
            if self.away:
                self.away = False
                self._storage(None)
            return rows


def _unexpected(error: Exception) -> StorageError:
    return StorageError(f"the records cannot be written: {type(error).__name__}: {error}. andon tries again.")

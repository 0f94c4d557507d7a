"""Delivery of records to another system: in order, at least once, from the outbox in the database."""

from abc import abstractmethod

from andon import files
from andon.errors import AndonError, StorageError
from andon.station.entries import Row
from andon.station.line.running import Running
from andon.station.line.shown import Value
from andon.station.station import Station

FIRST_S, LONGEST_S = 0.5, 60.0
AT_ONCE = 100
LOOK_S = 1.0


class Undelivered(AndonError):
    """The other system did not take a message; it is tried again."""


class Outbox(Running):
    """What waits for one target, delivered in a thread of its own. After a failure it pauses, twice as long each time.

    Args:
        station: whose records these are.
        target: its name in the outbox.
    """

    def __init__(self, station: Station, target: str) -> None:
        super().__init__(target)
        self._station, self.target = station, target
        self._feed = station.subscribe()
        self.fault = ""
        """Why the last message was not taken."""
        self.sent: Row | None = None
        """The last record that was taken since the start."""

    def close(self) -> None:
        """End. What waits is delivered when the station runs again."""
        super().close()
        self._station.unsubscribe(self._feed)

    def values(self) -> list[Value]:
        """What waits, and what was taken last."""
        sent = self.sent
        last = f"{sent.time[:19]}Z, record {sent.sequence}" if sent else "none since the start"
        waits = self._station.ledger.backlog().get(self.target, 0)
        return [Value("outbox", "waiting", f"{waits}"), Value("outbox", "last delivered", last)]

    @abstractmethod
    def _send(self, row: Row) -> None:
        """Deliver a message; return when it was taken. Undelivered when it was not."""

    def _wait(self, seconds: float) -> None:
        """Wait until something happens, at most so long."""
        if self._feed.get(seconds) is not None:
            while self._feed.get() is not None:
                pass

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)
        self._wait(0)

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.is_set():
            try:
                more = self._send_all()
            except StorageError:
                self._pause(LOOK_S)  # the station tells of it
            except Undelivered as error:
                self.fault = str(error)
                if not pause and not self._stop.is_set():
                    self._station.tell(f"{self.target}: {error} Messages wait, and are sent again.")
                pause = min(LONGEST_S, 2 * pause or FIRST_S)
                self._pause(pause)
            else:
                if pause:
                    self._station.tell(f"{self.target}: messages are delivered again")
                self.fault, pause = "", 0.0
                if not more:
                    self._wait(LOOK_S)

    def _send_all(self) -> bool:
        """Deliver what waits; whether more may wait."""
        taken: Row | None = None
        rows = self._station.ledger.outbox(self.target, AT_ONCE)
        try:
            for row in rows:
                if self._stop.is_set():
                    break
                self._send(row)
                taken = self.sent = row
        finally:
            if taken:
                self._station.ledger.delivered(self.target, taken.sequence)
        return len(rows) == AT_ONCE


def payload(row: Row) -> bytes:
    """What is sent of a record. `key` is the same each time it is sent, and different for every other record."""
    return files.strict_json({"key": row.key, **row.record()}).encode()

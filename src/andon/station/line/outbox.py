"""Deliver records to another system: in order, at least once, from the outbox in the database."""

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
    """The other system did not accept a message; it will be sent again."""


class Outbox(Running):
    """Delivers the records of one target in a separate thread. After each failure, the pause doubles.

    Args:
        station: station whose records are delivered.
        target: name of the target in the outbox.
    """

    def __init__(self, station: Station, target: str) -> None:
        super().__init__(station, target)
        self.target = target
        self._feed = station.subscribe()
        self.fault = ""
        """Reason why the last message was not accepted."""
        self.sent: Row | None = None
        """The last record that was delivered since the start."""

    def close(self) -> None:
        """Stop. Waiting records are delivered when the station runs again."""
        super().close()
        self._station.unsubscribe(self._feed)

    def values(self) -> list[Value]:
        """Return the number of waiting records, and the last delivered record."""
        sent = self.sent
        last = f"{sent.time[:19]}Z, record {sent.sequence}" if sent else "none since the start"
        waits = self._station.ledger.backlog().get(self.target, 0)
        return [Value("outbox", "waiting", f"{waits}"), Value("outbox", "last delivered", last)]

    @abstractmethod
    def _send(self, row: Row) -> None:
        """Deliver a record; return when it was accepted. Undelivered otherwise."""

    def _wait(self, seconds: float) -> None:
        """Wait for an event of the station, at most `seconds`."""
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
                self._pause(LOOK_S)  # the station reports it
            except Undelivered as error:
                self.fault = str(error)
                if not pause and not self._stop.is_set():
                    self._station.tell(f"{self.target}: {error} Messages wait, and will be sent again.")
                pause = min(LONGEST_S, 2 * pause or FIRST_S)
                self._pause(pause)
            else:
                if pause:
                    self._station.tell(f"{self.target}: messages are delivered again")
                self.fault, pause = "", 0.0
                if not more:
                    self._wait(LOOK_S)

    def _send_all(self) -> bool:
        """Deliver waiting records; return whether more may wait."""
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
    """Return the message of a record. Its `key` is unique, and the same in every delivery."""
    return files.strict_json({"key": row.key, **row.record()}).encode()

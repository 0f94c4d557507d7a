"""Continuous work in a separate thread."""

import threading
from abc import ABC, abstractmethod

from andon.station.station import Station

AGAIN_S = 1.0


class Running(ABC):
    """Continuous work, between `start` and `close`. After an error that nothing expected, it is told and begins again.

    Args:
        station: station for which it works.
        name: name of the thread.
    """

    def __init__(self, station: Station, name: str) -> None:
        self._station = station
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait until the thread has ended. Unfinished work is done after the next start."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            self._station.guarded(self._run)
            self._stop.wait(AGAIN_S)

    @abstractmethod
    def _run(self) -> None:
        """Work until `_stop` is set."""

"""Continuous work in a separate thread."""

import threading
from abc import ABC, abstractmethod


class Running(ABC):
    """Continuous work, between `start` and `close`.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait until the thread has ended. Unfinished work is done after the next start."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Work until `_stop` is set."""

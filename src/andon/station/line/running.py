"""Work that goes on beside the line, in a thread of its own."""

import threading
from abc import ABC, abstractmethod


class Running(ABC):
    """`start` it, and `close` it.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End, and wait until it has ended. What is not done is done after the next start."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Work until `_stop` is set."""

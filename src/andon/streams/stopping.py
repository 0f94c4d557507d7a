"""Ctrl-C and SIGTERM as the wish to stop: what is on the line is finished and handed on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; the second one ends the program at once.

    Only the main thread of a program can call it.
    """
    stop = threading.Event()
    before = {each: signal.getsignal(each) for each in SIGNALS}

    def heard(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.default_int_handler)
        threading.Thread(target=stop.set).start()  # this thread may hold the lock of the event just now

    for each in SIGNALS:
        signal.signal(each, heard)
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

"""A server with an event loop in a separate thread."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from andon.station.line.shown import Shown

T = TypeVar("T")
ASK_S = 2.0


class Served(ABC):
    """A server, between `start` and `close`. After `start`, `port` is its port."""

    port = 0

    def __init__(self, name: str) -> None:
        self._begun: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name=name, daemon=True)

    def start(self) -> None:
        """Start the server; return when it listens. AndonError when it cannot."""
        self._thread.start()
        self._begun.result()

    def close(self) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it could not listen, and has ended its loop
                self._loop.call_soon_threadsafe(self._end.set)
        if self._thread.ident:
            self._thread.join()

    @abstractmethod
    def status(self) -> Shown:
        """Return the values that the other system sees now. Never call it in the thread of the event loop."""

    def ask(self, call: Callable[[], T]) -> T:
        """Call a function in the thread of the event loop, so that nothing changes during the call."""
        found: Future[T] = Future()

        def answer() -> None:
            try:
                found.set_result(call())
            except Exception as error:
                found.set_exception(error)

        self._loop.call_soon_threadsafe(answer)
        return found.result(ASK_S)

    @abstractmethod
    async def _open(self) -> None:
        """Listen."""

    @abstractmethod
    async def _close(self) -> None: ...

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._open()
        except BaseException as error:
            self._begun.set_exception(error)
            return
        self._begun.set_result(None)
        await self._end.wait()
        await self._close()

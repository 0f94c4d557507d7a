"""End the processes of unused products; the next trigger or preparation starts them again."""

import queue
import threading
import time
from collections.abc import Callable

from andon.station.jobs import Jobs
from andon.station.loaded import Loaded

LOOK_S = 0.02


class Idle:
    """Unloads idle products and loads them when they are needed. The product used last is never unloaded.

    Args:
        jobs: of the station.
        changes: lock held while a bundle is loaded or exchanged.
        load: loads the active bundle of a product and prepares it.
    """

    def __init__(self, jobs: Jobs, changes: threading.RLock, load: Callable[[str], None]) -> None:
        self._jobs, self._changes, self._load = jobs, changes, load
        self._after_s = jobs.config.idle_minutes * 60
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._waking: set[str] = set()

    def use(self, name: str) -> bool:
        """Begin to load a product if it is idle, without waiting; return whether it is prepared."""
        with self._jobs.lock:
            loaded = self._jobs.loaded.get(name)
            if loaded:
                loaded.used = time.monotonic()
            elif name in self._jobs.idle and name not in self._waking:
                self._waking.add(name)
                self._wanted.put(name)
            return name in self._jobs.machine.memory.products

    def awake(self, name: str, timeout_s: float) -> bool:
        """Load a product if it is idle, and wait; False if this takes longer than `timeout_s`."""
        end = time.monotonic() + timeout_s
        while not self.use(name) and name in self._jobs.idle:
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_S)
        return True

    def woke(self, loaded: Loaded) -> bool:
        """Note that a product is loaded; return whether its bundle is the one that was idle. Its drift then goes on."""
        name, slept = loaded.product, self._jobs.idle.get(loaded.product)
        self._jobs.idle = {each: one for each, one in self._jobs.idle.items() if each != name}
        if slept is None or slept.version.digest != loaded.version.digest:
            return False
        loaded.resume(slept)
        return True

    def serve(self) -> None:
        """Load the products that are needed, until `close`."""
        for name in iter(self._wanted.get, None):
            self._load(name)
            self._waking.discard(name)

    def close(self) -> None:
        self._wanted.put(None)

    def look(self) -> None:
        """Unload products that were not used for `idle_minutes`. Does nothing during a change of bundles."""
        if not self._after_s or not self._changes.acquire(blocking=False):
            return
        try:
            with self._jobs.lock:
                used = sorted(self._jobs.loaded.values(), key=lambda each: each.used)
                for loaded in used[:-1]:
                    if time.monotonic() - loaded.used > self._after_s:
                        self._sleep(loaded)
        finally:
            self._changes.release()

    def _sleep(self, loaded: Loaded) -> None:
        jobs, name = self._jobs, loaded.product
        if jobs.machine.state not in ("Initialized", "Ready") or jobs.uses(loaded):
            return
        if name in jobs.machine.memory.products:  # an unprepared product must not be prepared later
            jobs.do(lambda now: jobs.machine.unprepare(name, now))
            jobs.idle = {**jobs.idle, name: loaded}
        jobs.loaded = {each: one for each, one in jobs.loaded.items() if one is not loaded}
        jobs.tell(f"product {name}: idle; its processes have ended, and the next trigger starts them")
        loaded.retire(jobs.uses)

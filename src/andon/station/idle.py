"""Products that nobody uses give their processes back; the next trigger, or preparation, loads them again."""

import queue
import threading
import time
from collections.abc import Callable

from andon.station.jobs import Jobs
from andon.station.loaded import Loaded

LOOK_S = 0.02


class Idle:
    """Which products sleep, and what wakes them. The product that was used last never sleeps.

    Args:
        jobs: of the station.
        changes: held while a bundle is loaded or exchanged.
        load: loads the active bundle of a product and prepares it.
    """

    def __init__(self, jobs: Jobs, changes: threading.RLock, load: Callable[[str], None]) -> None:
        self._jobs, self._changes, self._load = jobs, changes, load
        self._after_s = jobs.config.idle_minutes * 60
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._waking: set[str] = set()

    def use(self, name: str) -> bool:
        """Somebody needs a product now: whether it is prepared. This never waits; one that sleeps begins to load."""
        with self._jobs.lock:
            loaded = self._jobs.loaded.get(name)
            if loaded:
                loaded.used = time.monotonic()
            elif name in self._jobs.idle and name not in self._waking:
                self._waking.add(name)
                self._wanted.put(name)
            return name in self._jobs.machine.memory.products

    def awake(self, name: str, timeout_s: float) -> bool:
        """Need a product, and wait at most so long until it is loaded. True also for one that does not sleep."""
        end = time.monotonic() + timeout_s
        while not self.use(name) and name in self._jobs.idle:
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_S)
        return True

    def serve(self) -> None:
        """Load what is wanted, until `close`."""
        for name in iter(self._wanted.get, None):
            self._load(name)
            self._waking.discard(name)

    def close(self) -> None:
        self._wanted.put(None)

    def look(self) -> None:
        """Let products sleep that nobody has used for long. What is being changed is looked at the next time."""
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
        if name in jobs.machine.memory.products:  # one that was unprepared stays so
            jobs.do(lambda now: jobs.machine.unprepare(name, now))
            jobs.idle = {**jobs.idle, name: loaded.version.digest}
        jobs.loaded = {each: one for each, one in jobs.loaded.items() if one is not loaded}
        jobs.tell(f"product {name}: idle; its processes have ended, and the next trigger starts them")
        loaded.retire(jobs.uses)

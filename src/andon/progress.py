"""Several stages of work as one progress: seconds done of seconds expected."""

import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total); `total` 0 means unknown."""

STAGE = "in all (s)"


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


class Overall:
    """Passes the progress of stages on, and reports all of them as one more stage, in seconds.

    The time left is what the plan expects, or more where the rate of the running stage says more. A phase that takes
    longer than planned and has no rate makes it unknown: the total is then 0, and never a time that is not meant.
    """

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without a plan; nothing is reported of the whole until there is one."""
        self._progress, self._clock = progress, clock
        self._began = self._phase = clock()
        self._planned: tuple[float, ...] = ()
        self._stage, self._stage_began = "", self._began

    def plan(self, *seconds: float) -> None:
        """Begin a phase: the seconds that it is expected to take, and those of each phase after it."""
        self._planned, self._phase = seconds, self._clock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take the progress of a stage, and report that of the whole."""
        self._progress(stage, done, total)
        now = self._clock()
        if stage != self._stage:
            self._stage, self._stage_began = stage, now
        if not self._planned:
            return
        left = self._planned[0] - (now - self._phase)
        if 0 < done <= total:
            left = max(left, (now - self._stage_began) * (total - done) / done)
            known = True
        else:
            known = left > 0
        elapsed, later = round(now - self._began), sum(self._planned[1:])
        self._progress(STAGE, elapsed, round(now - self._began + max(left, 0) + later) if known else 0)

    def finish(self) -> None:
        """Report the whole as done."""
        elapsed = round(self._clock() - self._began)
        self._progress(STAGE, elapsed, elapsed)

"""Progress of single stages and of a whole training, in seconds."""

import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total); `total` 0 means unknown."""

STAGE = "total (s)"


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


class Overall:
    """Forwards the progress of stages, and reports the elapsed and the total time as one more stage, in seconds.

    The remaining time of a phase is the planned time, or the time extrapolated from the current stage if it is longer.
    When a phase exceeds its plan and its stage reports no rate, the total is unknown, 0.
    """

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without a plan; the total is not reported before there is one."""
        self._progress, self._clock = progress, clock
        self._start = self._phase_start = clock()
        self._plan: tuple[float, ...] = ()
        self._stage, self._stage_start = "", self._start

    def plan(self, *seconds: float) -> None:
        """Start a phase, with the expected seconds of this phase and of each later phase."""
        self._plan, self._phase_start = seconds, self._clock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Forward the progress of a stage, and report the total time."""
        self._progress(stage, done, total)
        now = self._clock()
        if stage != self._stage:
            self._stage, self._stage_start = stage, now
        if not self._plan:
            return
        remaining = self._plan[0] - (now - self._phase_start)
        if 0 < done <= total:
            remaining = max(remaining, (now - self._stage_start) * (total - done) / done)
            known = True
        else:
            known = remaining > 0
        elapsed, later = now - self._start, sum(self._plan[1:])
        self._progress(STAGE, round(elapsed), round(elapsed + max(remaining, 0) + later) if known else 0)

    def finish(self) -> None:
        """Report the end of all stages."""
        elapsed = round(self._clock() - self._start)
        self._progress(STAGE, elapsed, elapsed)

"""A picture that waits for its answer."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from andon.files import digest
from andon.station.answers import Answer, Map
from andon.station.events import Outcome


@dataclass(eq=False)
class Task:
    """One picture, its deadline, and the future of its answer."""

    job: int
    data: bytes
    until: float  # deadline in the time of time.monotonic
    began: float = field(default_factory=time.monotonic)
    answer: "Future[Answer]" = field(default_factory=Future)
    returned: bool = False  # a process has ended before it received the picture

    @property
    def name(self) -> str:
        return f"job {self.job}"

    def open(self) -> bool:
        """Return False if the answer was cancelled; otherwise it can no longer be cancelled."""
        return self.answer.running() or self.answer.set_running_or_notify_cancel()

    def end(self, verdict: Outcome, error: str, about: dict[str, Any]) -> None:
        """Give an answer without an inspection."""
        record = {"source": self.name, "digest": digest(self.data), "verdict": verdict.value, "error": error}
        if self.open():
            self.finish(verdict, {**record, **about, "stages": {}}, None, 1000 * (time.monotonic() - self.began))

    def finish(self, verdict: Outcome, record: dict[str, Any], kept: Map | None, waited: float) -> None:
        """Give the answer; after the deadline its verdict is LATE."""
        now = time.monotonic()
        if now > self.until and verdict != Outcome.ERROR:
            verdict = Outcome.LATE
        stages = {"wait": round(waited, 3), **record["stages"], "total": round(1000 * (now - self.began), 3)}
        record = {**record, "verdict": verdict.value, "stages": stages}
        self.answer.set_result(Answer(self.job, verdict, record, kept))

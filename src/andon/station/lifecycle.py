"""The part of the state machine without calls from outside: time, automatic transitions, the end of jobs.

`Machine` adds the calls.
"""

import math
from dataclasses import replace
from typing import Any

from andon.errors import unknown
from andon.station.events import (
    ALARMS,
    Alarm,
    Challenge,
    Event,
    Job,
    Memory,
    Notice,
    Outcome,
    Product,
    Result,
    StationError,
    Transitioned,
)
from andon.station.table import TRANSITIONS

SUBSTATES = ("Initialized", "Ready", "SingleExecution", "ContinuousExecution")
EXECUTION = ("SingleExecution", "ContinuousExecution")
RECIPES = ("Initialized", "Ready")

NUMBERS = {t.number: t for t in TRANSITIONS}


class Lifecycle:
    """State of one station, its jobs and its errors.

    Args:
        memory: memory of the last run. Its waiting jobs end with ERROR, its challenge parts are due.
        now: the time; the clock may have restarted since the memory was written.
        depth: maximum number of jobs without an acknowledged result; further triggers are refused.
        heartbeat_s: maximum time without a pass through the graph, while a product is prepared.
    """

    def __init__(self, memory: Memory, now: float, depth: int = 8, heartbeat_s: float = 10) -> None:
        _time(now)
        if depth < 1 or not 0 < heartbeat_s < math.inf:
            raise StationError(f"depth = {depth}, heartbeat_s = {heartbeat_s}; expected at least 1, and above 0.")
        self.depth, self.heartbeat_s = depth, heartbeat_s
        self.state = "Preoperational"
        self.now = self._last_pass = now
        self.heartbeat = False
        """Toggles with every pass through the graph."""
        self._run: int | None = None
        self._acquiring: int | None = None
        self._challenge_failed = False
        self._events: list[Event] = []
        due = {name: replace(p, challenge=_again(p.challenge)) for name, p in memory.products.items()}
        # Errors that only Reset ends survive a restart. Others are detected again if their cause still exists.
        errors: dict[str, bool] = {code: kept for code, kept in memory.errors.items() if kept}
        self.memory = replace(memory, products=due, latched=_past(memory.latched, now), errors=errors)
        self._end_all(Outcome.ERROR)
        self.first_events = self._flush()
        """Events of the jobs that the restart ended."""

    # Values for views

    @property
    def able(self) -> bool:
        """Whether a product is prepared and no challenge parts are due or have failed."""
        stands = [p.challenge for p in self.memory.products.values()]
        return bool(stands) and not {Challenge.DUE, Challenge.FAILED} & set(stands)

    @property
    def room(self) -> bool:
        """Whether one more job is allowed."""
        return len(self.memory.waiting) + len(self.memory.latched) < self.depth

    @property
    def full(self) -> bool:
        """Whether the queue contains only results that wait for acknowledgement, so that a trigger overflows it."""
        return len(self.memory.latched) >= self.depth

    @property
    def ready(self) -> bool:
        """Whether a trigger would be accepted now; the Ready bit of line protocols."""
        return self.state in ("Ready", "ContinuousExecution") and self.able and self.room

    def output(self, now: float) -> Outcome:
        """Return the output for the sorter from the oldest latched result: PASS, REVIEW, otherwise REJECT."""
        if self.state not in SUBSTATES or not self.memory.latched or not self.now <= now:
            return Outcome.REJECT
        first = self.memory.latched[0]
        good = first.outcome in (Outcome.PASS, Outcome.REVIEW) and now <= first.until
        return first.outcome if good else Outcome.REJECT

    def _set(self, **changes: Any) -> None:
        self.memory = replace(self.memory, **changes)

    def _flush(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _go(self, number: int, target: str, notice: Notice | None = None) -> None:
        self._events.append(Transitioned(number, self.state, target))
        self._events += [notice or Notice(name) for name in NUMBERS[number].events if name != "StateChanged"]
        self.state = target

    def _alarm(self, code: str, active: bool = True) -> None:
        self._events.append(Alarm(code, ALARMS[code], active))

    def _product(self, product: Product) -> None:
        self._set(products={**self.memory.products, product.name: product})

    def _next_id(self) -> int:
        self._set(next_job=self.memory.next_job + 1)
        return self.memory.next_job - 1

    def _begin(self, call: str, now: float, *states: str) -> None:
        self._tick(now)
        if self.state not in states:
            raise StationError(
                f"{call} in state {self.state}; expected {' or '.join(states)}. Bring the station there first."
            )

    def _known(self, name: str) -> Product:
        if name not in self.memory.products:
            raise StationError(f"{unknown('prepared product', name, self.memory.products)} Prepare it first.")
        return self.memory.products[name]

    def _waiting(self, job: int) -> Job:
        for waiting in self.memory.waiting:
            if waiting.id == job:
                return waiting
        raise StationError(
            f"job {job}: no such job waits for a verdict; it has ended, or never began. Match results by job id."
        )

    def _tick(self, now: float) -> None:
        _time(now)
        if now < self.now:
            self._alarm("CLOCK_BACKWARDS")
            self._last_pass = now
            self._set(latched=_past(self.memory.latched, now))
            self.now = now
            self._end_all(Outcome.LATE)
        self.now = now
        for job in self.memory.waiting:
            if now > job.deadline:
                self._end(job, Outcome.LATE)
        stale = bool(self.memory.products) and now - self._last_pass > self.heartbeat_s
        if stale and self.state in SUBSTATES:
            self._fail("HEARTBEAT_STALE", until_reset=False)
        self._settle()

    def _settle(self) -> None:
        """Make all automatic transitions that are due."""
        failed = Challenge.FAILED in {p.challenge for p in self.memory.products.values()}
        if failed != self._challenge_failed:
            self._challenge_failed = failed
            self._alarm("CHALLENGE_FAILED", failed)
        if self.state == "Error" and not self.memory.errors:
            resumed = "ContinuousExecution" if self._run else "Ready"
            self._last_pass = self.now
            self._go(340, resumed if self.able else "Initialized")
            self._run = self._run if self.able else None
        if self.state == "ContinuousExecution" and not self.able:
            self._to_ready(860)
        if self.state == "Initialized" and self.able:
            self._go(560, "Ready")
        if self.state == "Ready" and not self.able:
            self._go(650, "Initialized")

    def _to_ready(self, number: int) -> None:
        job = self._run if self.state == "ContinuousExecution" else self._acquiring
        self._run = self._acquiring = None
        self._go(number, "Ready", Notice("Ready", job))

    def _leave_execution(self, job: int) -> None:
        if self.state == "SingleExecution" and self._acquiring == job:
            self._to_ready(760)

    def _end(self, job: Job, outcome: Outcome) -> None:
        result = Result(job=job, outcome=outcome, at=float(self.now), until=job.deadline)
        self._set(waiting=tuple(w for w in self.memory.waiting if w.id != job.id))
        self._events.append(result)
        if not job.challenge:
            counts = {**self.memory.counts, outcome.value: self.memory.counts.get(outcome.value, 0) + 1}
            latched = (*self.memory.latched, result) if job.latch else self.memory.latched
            self._set(latched=latched, counts=counts)
        if outcome == Outcome.LATE:
            self._alarm("LATE")
        self._leave_execution(job.id)

    def _end_all(self, outcome: Outcome) -> None:
        if self.state in ("Halted", "Preoperational"):
            self._run = self._acquiring = None
        for job in self.memory.waiting:
            self._end(job, outcome)

    def _fail(self, code: str, until_reset: bool) -> None:
        if code not in self.memory.errors:
            self._alarm(code)
        self._set(errors={**self.memory.errors, code: until_reset or self.memory.errors.get(code, False)})
        if self.state in SUBSTATES:
            # The standard has no Error event for transition 430, unlike 130.
            self._go(430, "Error")
            self._events.append(Notice("Error"))
            self._acquiring = None
        elif self.state == "Preoperational":
            self._go(130, "Error")
        self._end_all(Outcome.ERROR)
        self._set(latched=_past(self.memory.latched, self.now))

    def _clear(self, code: str) -> None:
        if code in self.memory.errors:
            self._set(errors={k: kept for k, kept in self.memory.errors.items() if k != code})
            self._alarm(code, active=False)


def _time(now: float) -> None:
    if not math.isfinite(now):
        raise StationError(f"time {now}: expected seconds as a finite number. Use the time of a clock.")


def _again(stands: Challenge) -> Challenge:
    """Return the status after a restart: passed parts are due again, failed ones remain failed."""
    return Challenge.DUE if stands == Challenge.PASSED else stands


def _past(latched: tuple[Result, ...], now: float) -> tuple[Result, ...]:
    """Return the same results, expired, so that the output does not show them."""
    return tuple(replace(r, until=float(now - 1)) for r in latched)

"""The station's state machine, after OPC 40100-1. It has no clock: every call passes the time in seconds.

A call first handles the time that has passed (deadlines, heartbeat), then acts and returns all events. A call that is
refused raises StationError; its only effect is that a refused trigger is counted and can begin the error
RESULT_OVERFLOW. The next call returns the events of a refused call.
The output is REJECT unless a verdict was given in time.
"""

import math
from dataclasses import replace

from andon.errors import unknown
from andon.station.events import (
    ERRORS,
    Challenge,
    Event,
    Job,
    Notice,
    Outcome,
    Product,
    StationError,
)
from andon.station.lifecycle import EXECUTION, RECIPES, SUBSTATES, Lifecycle


class Machine(Lifecycle):
    """The state machine of one station; arguments as `Lifecycle`."""

    # Methods of VisionStateMachineType

    def power_up(self, now: float) -> list[Event]:
        """Leave Preoperational automatically."""
        return self._leave_preoperational(now, 150, "power up")

    def select_mode_automatic(self, now: float) -> list[Event]:
        return self._leave_preoperational(now, 151, "SelectModeAutomatic")

    def halt(self, now: float) -> list[Event]:
        """End all jobs and refuse triggers until Reset, for maintenance and teaching."""
        self._begin("Halt", now, "Preoperational", "Error", *SUBSTATES)
        self._go({"Preoperational": 121, "Error": 321}.get(self.state, 421), "Halted")
        self._end_all(Outcome.ABORTED)
        return self._flush()

    def reset(self, now: float) -> list[Event]:
        """End all jobs and the errors that only Reset ends. If another error is active, go back to Error."""
        self._begin("Reset", now, "Halted", "Error", *SUBSTATES)
        self._go({"Halted": 211, "Error": 311}.get(self.state, 411), "Preoperational")
        self._end_all(Outcome.ABORTED)
        for code in [code for code, kept in self.memory.errors.items() if kept or code == "RESULT_OVERFLOW"]:
            self._clear(code)
        if self.memory.errors:
            self._go(130, "Error")
        return self._flush()

    # Products

    def prepare(
        self, name: str, digest: str, deadline_s: float, released: bool, checked: bool, challenges: bool, now: float
    ) -> list[Event]:
        """PrepareProduct, for a loaded bundle. `challenges`: whether the product has challenge parts."""
        self._begin("PrepareProduct", now, *RECIPES)
        if not name or not digest or not 0 < deadline_s < math.inf:
            raise StationError(
                f"product '{name}', digest '{digest}', deadline {deadline_s} s: expected a name, a digest and a "
                "deadline above 0. Set deadline_ms in the recipe."
            )
        if not released or not checked:
            lacking = "is not released" if not released else "was not checked on a golden picture"
            raise StationError(
                f"product '{name}': its bundle {lacking}. Expected a released and checked bundle. Release and check it."
            )
        if not self.memory.products:
            self._last_pass = now
        stands = Challenge.DUE if challenges else Challenge.NONE
        self._product(Product(name=name, digest=digest, deadline=float(deadline_s), challenge=stands))
        notice = Notice("RecipePrepared", product=name, digest=digest)
        if self.state == "Initialized" and self.able:
            self._go(562, "Ready", notice)
        else:
            self._events.append(notice)
        self._settle()
        return self._flush()

    def unprepare(self, name: str, now: float) -> list[Event]:
        """UnprepareProduct."""
        self._begin("UnprepareProduct", now, *RECIPES)
        self._known(name)
        if any(job.product == name for job in self.memory.waiting):
            raise StationError(f"product '{name}': a job waits for its verdict. Wait until it ends, or call Abort.")
        self._set(products={k: p for k, p in self.memory.products.items() if k != name})
        if self.state == "Ready" and not self.able:
            self._go(652, "Initialized")
        self._settle()
        return self._flush()

    def challenge(self, name: str, stands: Challenge, now: float) -> list[Event]:
        """Set the status of the challenge parts of a product."""
        self._tick(now)
        product = self._known(name)
        self._product(replace(product, challenge=stands))
        self._settle()
        return self._flush()

    # Jobs

    def start_single(self, product: str, part: str, now: float, latch: bool = True) -> list[Event]:
        """StartSingleJob: a trigger. The event JobStarted contains the id of the job."""
        return self._trigger("StartSingleJob", ("Ready",), product, part, now, latch)

    def start_continuous(self, now: float) -> list[Event]:
        """StartContinuous: from now on, each `part` starts a job."""
        self._begin("StartContinuous", now, "Ready")
        self._run = self._next_id()
        self._go(681, "ContinuousExecution", Notice("JobStarted", self._run))
        return self._flush()

    def part(self, product: str, part: str, now: float, latch: bool = True) -> list[Event]:
        """A trigger within a continuous job."""
        return self._trigger("trigger", ("ContinuousExecution",), product, part, now, latch)

    def miss(self, now: float) -> list[Event]:
        """Count a trigger that a view refused itself."""
        self._tick(now)
        self._missed()
        return self._flush()

    def challenge_part(self, product: str, part: str, now: float) -> list[Event]:
        """Trigger a challenge part. The state does not change; the station need not be Ready."""
        return self._trigger("challenge", RECIPES, product, part, now)

    def acquired(self, job: int, now: float) -> list[Event]:
        """Note that the picture is taken: the part may be moved. A single execution ends; its verdict may follow."""
        if self._waiting(job).acquired:
            raise StationError(f"job {job}: already has a picture; expected one for each job. Trigger a new job.")
        self._tick(now)
        if any(w.id == job for w in self.memory.waiting):
            self._set(waiting=tuple(replace(w, acquired=w.acquired or w.id == job) for w in self.memory.waiting))
            self._events.append(Notice("AcquisitionDone", job))
            self._leave_execution(job)
        self._settle()
        return self._flush()

    def verdict(self, job: int, verdict: Outcome, now: float) -> list[Event]:
        """End a job with its verdict; after the deadline, with LATE."""
        if verdict in (Outcome.LATE, Outcome.ABORTED):
            raise StationError(
                f"job {job}: only the station itself gives the verdict {verdict}. Expected PASS, REVIEW, REJECT, "
                "INVALID or ERROR."
            )
        self._waiting(job)
        self._tick(now)
        if any(w.id == job for w in self.memory.waiting):
            self._end(self._waiting(job), verdict)
        self._settle()
        return self._flush()

    def acknowledge(self, job: int, now: float) -> list[Event]:
        """Acknowledge (ResultsAck) the oldest latched result. This ends RESULT_OVERFLOW."""
        if not self.memory.latched or self.memory.latched[0].job.id != job:
            oldest = self.memory.latched[0].job.id if self.memory.latched else "none"
            raise StationError(f"job {job}: the oldest result is {oldest}. Acknowledge results in order, each once.")
        self._tick(now)
        self._set(latched=self.memory.latched[1:])
        if not self.memory.errors.get("RESULT_OVERFLOW"):
            self._clear("RESULT_OVERFLOW")
        self._settle()
        return self._flush()

    def stop(self, now: float) -> list[Event]:
        """Stop: leave execution; jobs in progress are finished."""
        self._begin("Stop", now, *EXECUTION)
        self._to_ready({"SingleExecution": 761, "ContinuousExecution": 861}[self.state])
        self._settle()
        return self._flush()

    def abort(self, now: float) -> list[Event]:
        """Abort: leave execution; waiting jobs end with ABORTED."""
        self._begin("Abort", now, *EXECUTION)
        self._to_ready({"SingleExecution": 762, "ContinuousExecution": 862}[self.state])
        self._end_all(Outcome.ABORTED)
        self._settle()
        return self._flush()

    # Events

    def passed(self, now: float) -> list[Event]:
        """Toggle the heartbeat: a picture or test tile has passed through the graph."""
        self._tick(now)
        self._last_pass, self.heartbeat = now, not self.heartbeat
        if not self.memory.errors.get("HEARTBEAT_STALE"):
            self._clear("HEARTBEAT_STALE")
        self._settle()
        return self._flush()

    def fail(self, code: str, now: float, until_reset: bool = False) -> list[Event]:
        """Begin an error. It ends all waiting jobs and keeps the station in Error until `resolve` or Reset."""
        _error(code)
        self._tick(now)
        self._fail(code, until_reset)
        return self._flush()

    def resolve(self, code: str, now: float) -> list[Event]:
        """End an error whose cause is removed."""
        _error(code)
        if self.memory.errors.get(code):
            raise StationError(f"{code} lasts until Reset. Check the station, then call Reset.")
        self._tick(now)
        self._clear(code)
        self._settle()
        return self._flush()

    def tick(self, now: float) -> list[Event]:
        """Check deadlines and the heartbeat. Call it as often as the required precision of deadlines."""
        self._tick(now)
        self._settle()
        return self._flush()

    def _leave_preoperational(self, now: float, number: int, call: str) -> list[Event]:
        self._begin(call, now, "Preoperational")
        if self.memory.errors:
            self._go(130, "Error")
        else:
            self._last_pass = now
            self._go(number, "Initialized")
        self._settle()
        return self._flush()

    def _trigger(
        self, call: str, states: tuple[str, ...], product: str, part: str, now: float, latch: bool = True
    ) -> list[Event]:
        production, overflow = call != "challenge", False
        try:
            self._begin(call, now, *states)
            bundle = self._known(product)
            if not part:
                raise StationError("the part has no id; expected one, to match results and parts. Add it.")
            overflow = self.full and latch and production
            if not self.room:
                raise StationError(
                    f"{len(self.memory.waiting)} jobs wait, {len(self.memory.latched)} results are not acknowledged; "
                    f"expected fewer than {self.depth} in total. Acknowledge results."
                )
        except StationError:
            if production:
                self._missed()
            if overflow:
                self._fail("RESULT_OVERFLOW", until_reset=False)
            raise
        run = self._run if self.state == "ContinuousExecution" else None
        job = Job(
            id=self._next_id(),
            product=product,
            digest=bundle.digest,
            part=part,
            started=float(now),
            deadline=float(now + bundle.deadline),
            run=run,
            challenge=not production,
            latch=latch and production,
        )
        self._set(waiting=(*self.memory.waiting, job))
        notice = Notice("JobStarted", job.id, product, bundle.digest)
        if call == "StartSingleJob":
            self._acquiring = job.id
            self._go(671, "SingleExecution", notice)
        else:
            self._events.append(notice)
        return self._flush()

    def _missed(self) -> None:
        self._set(missed=self.memory.missed + 1)
        self._alarm("MISSED_TRIGGER")


def _error(code: str) -> None:
    if code not in ERRORS:
        raise StationError(unknown("error", code, ERRORS))

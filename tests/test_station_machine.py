"""The station's machine against the table of OPC 40100-1: every call in every state, in any order."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from andon.station.events import (
    ALARMS,
    ERRORS,
    Alarm,
    Challenge,
    Event,
    Memory,
    Notice,
    Outcome,
    Result,
    StationError,
    Transitioned,
)
from andon.station.machine import Machine
from andon.station.table import STATES, TRANSITIONS

TABLE = {t.number: t for t in TRANSITIONS}
SUBSTATES = {name for name, number in STATES.items() if number > STATES["Operational"]}
PRODUCTS = ("bolt", "nut")
DEADLINE = 4.0
HEARTBEAT = 40.0
VERDICTS = [Outcome.PASS, Outcome.REVIEW, Outcome.REJECT, Outcome.INVALID, Outcome.ERROR]


def prepare(machine: Machine, name: str, now: float, challenges: bool = False) -> list[Event]:
    return machine.prepare(name, f"digest of {name}", DEADLINE, True, True, challenges, now)


CALLS = {  # call → the states in which it is legal
    "halt": {"Preoperational", "Error", *SUBSTATES},
    "reset": {"Halted", "Error", *SUBSTATES},
    "power_up": {"Preoperational"},
    "select_mode_automatic": {"Preoperational"},
    "start_continuous": {"Ready"},
    "stop": {"SingleExecution", "ContinuousExecution"},
    "abort": {"SingleExecution", "ContinuousExecution"},
}
METHODS = {"Halt": "halt", "Reset": "reset", "StartContinuous": "start_continuous", "Stop": "stop", "Abort": "abort"}


class Station(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.machine = Machine(Memory(), self.now, depth=4, heartbeat_s=HEARTBEAT)
        self.jobs: dict[int, tuple[str, float]] = {}
        self.ended: Counter[int] = Counter()
        self.answered: set[int | None] = set()

    def hear(self, events: list[Event]) -> list[Event]:
        """Check events against the table and the jobs that were started."""
        for i, event in enumerate(events):
            if isinstance(event, Transitioned):
                row = TABLE[event.number]
                assert event.source == row.source or (row.source == "Operational" and event.source in SUBSTATES)
                assert event.target == row.target or (row.target == "Operational" and event.target in SUBSTATES)
                for name in set(row.events) - {"StateChanged"}:
                    assert isinstance(events[i + 1], Notice) and events[i + 1].name == name
            elif isinstance(event, Notice) and event.name == "JobStarted":
                assert event.job not in self.jobs
                self.jobs[event.job] = (event.product or "", self.now + DEADLINE)
            elif isinstance(event, Result):
                product, deadline = self.jobs[event.job.id]
                assert event.job.product == product
                self.ended[event.job.id] += 1
                if event.outcome in (Outcome.PASS, Outcome.REVIEW):
                    assert event.at <= deadline
        return events

    def attempt(self, legal: bool, call, *arguments) -> list[Event] | None:
        """A legal call is taken; an illegal one is refused and changes nothing but the count of missed triggers."""
        before, state = self.machine.memory, self.machine.state
        try:
            events = call(*arguments, self.now)
        except StationError as error:
            assert not legal, error
            assert str(error).count(".") >= 1
            assert self.machine.state == state
            trigger = call.__name__ in ("start_single", "part")
            assert self.machine.memory.missed == before.missed + trigger
            restored = {**vars(self.machine.memory), "missed": before.missed}
            assert restored == vars(before)
            return None
        assert legal, f"{call.__name__} in {state}"
        return self.hear(events)

    @rule()
    def bring_up(self) -> None:
        """Take the way to Ready from any state, so that random calls do not only wander among errors."""
        machine = self.machine
        for code in machine.memory.errors:
            if not machine.memory.errors[code]:
                self.hear(machine.resolve(code, self.now))
        while machine.state in ("Preoperational", "Halted", "Error"):
            self.hear((machine.power_up if machine.state == "Preoperational" else machine.reset)(self.now))
        for name in machine.memory.products:
            self.hear(machine.challenge(name, Challenge.PASSED, self.now))
        if not machine.memory.products:
            self.hear(prepare(machine, "bolt", self.now))
        while machine.memory.latched:
            self.hear(machine.acknowledge(machine.memory.latched[0].job.id, self.now))
        assert machine.state in ("Ready", "SingleExecution", "ContinuousExecution")

    @precondition(lambda self: self.machine.state in ("Ready", "SingleExecution", "ContinuousExecution"))
    @rule(call=st.sampled_from(["start_continuous", "stop", "abort"]))
    def execute(self, call: str) -> None:
        """The calls of execution, more often than chance among all calls would make them."""
        self.attempt(self.machine.state in CALLS[call], getattr(self.machine, call))

    @rule(name=st.sampled_from(PRODUCTS), seconds=st.sampled_from([0.5, DEADLINE, DEADLINE + 0.5]))
    def inspect(self, name: str, seconds: float) -> None:
        """A whole job, from its trigger to a verdict that may be late."""
        call = "part" if self.machine.state == "ContinuousExecution" else "start_single"
        if not self.machine.ready or name not in self.machine.memory.products:
            return
        events = self.hear(getattr(self.machine, call)(name, "part", self.now))
        job = next(e.job for e in events if isinstance(e, Notice) and e.name == "JobStarted")
        self.now += seconds
        result = [e for e in self.hear(self.machine.verdict(job, Outcome.PASS, self.now)) if isinstance(e, Result)][-1]
        expected = Outcome.PASS if seconds <= DEADLINE else Outcome.LATE
        stale = "HEARTBEAT_STALE" in self.machine.memory.errors
        assert result.job.id == job and (result.outcome == expected or (stale and result.outcome == Outcome.ERROR))

    @rule(call=st.sampled_from(sorted(CALLS)))
    def call(self, call: str) -> None:
        self.attempt(self.machine.state in CALLS[call], getattr(self.machine, call))

    @rule(name=st.sampled_from(PRODUCTS), released=st.booleans(), checked=st.booleans(), challenges=st.booleans())
    def prepare(self, name: str, released: bool, checked: bool, challenges: bool) -> None:
        legal = self.machine.state in ("Initialized", "Ready") and released and checked
        arguments = (name, f"digest of {name}", DEADLINE, released, checked, challenges)
        events = self.attempt(legal, self.machine.prepare, *arguments)
        assert events is None or [e.product for e in events if isinstance(e, Notice)] == [name]

    @rule(name=st.sampled_from(PRODUCTS))
    def unprepare(self, name: str) -> None:
        memory = self.machine.memory
        legal = self.machine.state in ("Initialized", "Ready") and name in memory.products
        legal &= all(job.product != name for job in memory.waiting)
        self.attempt(legal, self.machine.unprepare, name)

    @rule(name=st.sampled_from(PRODUCTS), stands=st.sampled_from(Challenge))
    def challenge(self, name: str, stands: Challenge) -> None:
        self.attempt(name in self.machine.memory.products, self.machine.challenge, name, stands)

    @rule(
        call=st.sampled_from(["start_single", "part", "challenge_part"]),
        name=st.sampled_from(PRODUCTS),
        part=st.sampled_from(["p1", "p2", ""]),
        latch=st.booleans(),
    )
    def trigger(self, call: str, name: str, part: str, latch: bool) -> None:
        states = {"start_single": ["Ready"], "part": ["ContinuousExecution"]}.get(call, ["Initialized", "Ready"])
        memory = self.machine.memory
        legal = self.machine.state in states and bool(part) and name in memory.products
        legal &= len(memory.waiting) + len(memory.latched) < 4
        assert not (legal and call == "part") or self.machine.ready
        trigger = getattr(self.machine, call)
        full = len(memory.latched) == 4 and self.machine.state in states and bool(part) and name in memory.products
        if latch and full and call != "challenge_part":
            self.overflow(trigger, name, part)
        elif latch or call == "challenge_part":
            self.attempt(legal, trigger, name, part)
        else:

            def answered(now: float) -> list[Event]:
                return trigger(name, part, now, False)

            answered.__name__ = call
            events = self.attempt(legal, answered)
            self.answered |= {e.job for e in events or [] if isinstance(e, Notice)}

    def overflow(self, trigger, name: str, part: str) -> None:
        """A result that could not be latched is an error; the trigger is missed and no result is lost."""
        before = self.machine.memory
        with pytest.raises(StationError, match="Acknowledge results"):
            trigger(name, part, self.now)
        after = self.machine.memory
        assert self.machine.state == "Error" and after.errors == {**before.errors, "RESULT_OVERFLOW": False}
        assert after.missed == before.missed + 1 and not self.machine.ready
        assert [r.job for r in after.latched] == [r.job for r in before.latched]
        assert self.machine.output(self.now) == Outcome.REJECT
        codes = [e.code for e in self.hear(self.machine.tick(self.now)) if isinstance(e, Alarm)]
        assert codes == ["MISSED_TRIGGER", "RESULT_OVERFLOW"]

    @rule(name=st.sampled_from(PRODUCTS))
    def nobody_acknowledges(self, name: str) -> None:
        """Fill the queue, and trigger once more."""
        machine = self.machine
        if not machine.ready or machine.memory.waiting or name not in machine.memory.products:
            return
        trigger = machine.part if machine.state == "ContinuousExecution" else machine.start_single
        while machine.ready:
            self.hear(trigger(name, "part", self.now))
            self.hear(machine.verdict(machine.memory.waiting[0].id, Outcome.PASS, self.now))
        self.overflow(trigger, name, "part")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), outcome=st.sampled_from(VERDICTS))
    def verdict(self, data, outcome: Outcome) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        waits = job in {w.id for w in self.machine.memory.waiting}
        events = self.attempt(waits, self.machine.verdict, job, outcome)
        assert not waits or [e.outcome for e in events if isinstance(e, Result)] == [outcome]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def acquired(self, data) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        self.attempt(job in {w.id for w in self.machine.memory.waiting if not w.acquired}, self.machine.acquired, job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def acknowledge(self, data) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        latched = self.machine.memory.latched
        kept = self.machine.memory.errors.get("RESULT_OVERFLOW")
        if self.attempt(bool(latched) and latched[0].job.id == job, self.machine.acknowledge, job) is not None:
            assert kept or "RESULT_OVERFLOW" not in self.machine.memory.errors

    @rule(code=st.sampled_from(ERRORS), until_reset=st.booleans())
    def fail(self, code: str, until_reset: bool) -> None:
        halted = self.machine.state == "Halted"
        self.hear(self.machine.fail(code, self.now, until_reset))
        assert self.machine.state == ("Halted" if halted else "Error")
        assert self.machine.output(self.now) == Outcome.REJECT
        assert not self.machine.memory.waiting

    @rule(code=st.sampled_from(ERRORS))
    def resolve(self, code: str) -> None:
        self.attempt(not self.machine.memory.errors.get(code), self.machine.resolve, code)

    @rule()
    def passed(self) -> None:
        before = self.machine.heartbeat
        self.hear(self.machine.passed(self.now))
        assert self.machine.heartbeat != before

    @rule(seconds=st.sampled_from([0.5, 3.0, DEADLINE, HEARTBEAT + 1]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.hear(self.machine.tick(self.now))
        assert all(self.now <= job.deadline for job in self.machine.memory.waiting)

    @rule()
    def clock_goes_backwards(self) -> None:
        self.now -= 2
        events = self.hear(self.machine.tick(self.now))
        assert {e.outcome for e in events if isinstance(e, Result)} <= {Outcome.LATE}
        assert not self.machine.memory.waiting
        assert self.machine.output(self.now) == Outcome.REJECT

    @rule()
    def restart(self) -> None:
        memory = Memory.from_json(self.machine.memory.to_json())
        assert memory == self.machine.memory
        waiting = {job.id for job in memory.waiting}
        self.machine = Machine(memory, self.now, depth=4, heartbeat_s=HEARTBEAT)
        events = self.hear(self.machine.first_events)
        assert {e.job.id: e.outcome for e in events} == dict.fromkeys(waiting, Outcome.ERROR)
        assert self.machine.state == "Preoperational"
        assert self.machine.output(self.now) == Outcome.REJECT

    @invariant()
    def never_ready_while_a_challenge_is_due_or_failed(self) -> None:
        stands = {p.challenge for p in self.machine.memory.products.values()}
        if not stands or stands & {Challenge.DUE, Challenge.FAILED}:
            assert self.machine.state not in ("Ready", "ContinuousExecution")
            assert not self.machine.ready

    @invariant()
    def a_job_ends_once_and_none_is_lost(self) -> None:
        assert all(n == 1 for n in self.ended.values())
        waiting = {job.id for job in self.machine.memory.waiting}
        runs = {job for job, (product, _) in self.jobs.items() if not product}
        assert set(self.jobs) - runs == waiting | set(self.ended)
        assert not waiting & set(self.ended)

    @invariant()
    def reject_unless_a_verdict_was_produced_in_time(self) -> None:
        output, latched = self.machine.output(self.now), self.machine.memory.latched
        if output != Outcome.REJECT:
            assert self.machine.state in SUBSTATES and not self.machine.memory.errors
            assert output == latched[0].outcome
            assert self.now <= self.jobs[latched[0].job.id][1]
        assert self.machine.output(self.now + DEADLINE + 1) == Outcome.REJECT

    @invariant()
    def errors_hold_the_station_in_error(self) -> None:
        if self.machine.memory.errors:
            assert self.machine.state in ("Error", "Halted", "Preoperational")
        else:
            assert self.machine.state != "Error"

    @invariant()
    def production_alone_is_counted_and_latched(self) -> None:
        assert not any(result.job.challenge for result in self.machine.memory.latched)
        assert not self.answered & {result.job.id for result in self.machine.memory.latched}
        assert len(self.machine.memory.waiting) + len(self.machine.memory.latched) <= 4


Station.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None, derandomize=True)
TestStation = Station.TestCase


@pytest.mark.parametrize(("method", "call"), METHODS.items())
def test_a_call_is_legal_where_the_table_has_its_method(method: str, call: str) -> None:
    sources = {t.source for t in TRANSITIONS if t.method == method}
    if "Operational" in sources:
        sources = sources - {"Operational"} | SUBSTATES
    assert CALLS[call] == sources


def ready(now: float = 0) -> Machine:
    machine = Machine(Memory(), now, heartbeat_s=HEARTBEAT)
    machine.power_up(now)
    prepare(machine, "bolt", now)
    return machine


def outcomes(events: list[Event]) -> dict[int, Outcome]:
    return {e.job.id: e.outcome for e in events if isinstance(e, Result)}


def numbers(events: list[Event]) -> list[int]:
    return [e.number for e in events if isinstance(e, Transitioned)]


def test_a_job_starts_before_the_last_result_is_out_and_results_are_matched_by_id() -> None:
    machine = ready()
    machine.start_single("bolt", "first", 1)
    machine.acquired(1, 1)
    machine.start_single("bolt", "second", 2)
    machine.acquired(2, 2)
    assert machine.state == "Ready"
    assert outcomes(machine.verdict(2, Outcome.REJECT, 3)) == {2: Outcome.REJECT}
    assert outcomes(machine.verdict(1, Outcome.PASS, 3)) == {1: Outcome.PASS}
    assert machine.output(3) == Outcome.REJECT
    machine.acknowledge(2, 3)
    assert machine.output(3) == Outcome.PASS


def test_a_result_that_is_an_answer_is_counted_and_not_latched() -> None:
    machine = ready()
    machine.start_single("bolt", "p", 1, latch=False)
    machine.acquired(1, 1)
    assert outcomes(machine.verdict(1, Outcome.PASS, 2)) == {1: Outcome.PASS}
    assert machine.memory.latched == () and machine.memory.counts == {"PASS": 1}
    assert machine.output(2) == Outcome.REJECT


def test_a_verdict_at_the_deadline_counts_and_one_after_it_is_late() -> None:
    machine = ready()
    machine.start_single("bolt", "p", 1)
    assert outcomes(machine.verdict(1, Outcome.PASS, 1 + DEADLINE)) == {1: Outcome.PASS}
    assert machine.output(1 + DEADLINE) == Outcome.PASS
    assert machine.output(1 + DEADLINE + 0.1) == Outcome.REJECT
    machine.start_single("bolt", "q", 6)
    assert outcomes(machine.verdict(2, Outcome.PASS, 6 + DEADLINE + 0.1)) == {2: Outcome.LATE}
    assert machine.memory.counts == {"PASS": 1, "LATE": 1}


def test_a_deadline_ends_the_job_without_a_verdict() -> None:
    machine = ready()
    machine.start_single("bolt", "p", 1)
    events = machine.tick(1 + DEADLINE + 0.1)
    assert outcomes(events) == {1: Outcome.LATE} and numbers(events) == [760]
    with pytest.raises(StationError, match="job 1"):
        machine.verdict(1, Outcome.PASS, 6)


def test_an_error_in_operation_raises_the_error_event_that_the_table_lacks() -> None:
    machine = ready()
    events = machine.fail("CAMERA_LOST", 1)
    assert numbers(events) == [430] and Notice("Error") in events
    events = machine.resolve("CAMERA_LOST", 2)
    assert numbers(events) == [340] and machine.state == "Ready" and Notice("ErrorResolved") in events


def test_a_pass_from_before_an_error_is_not_shown_after_it() -> None:
    machine = ready()
    machine.start_single("bolt", "p", 1)
    machine.verdict(1, Outcome.PASS, 1)
    assert machine.output(1) == Outcome.PASS
    machine.fail("CAMERA_LOST", 1)
    machine.resolve("CAMERA_LOST", 1)
    assert machine.state == "Ready" and machine.output(1) == Outcome.REJECT


def test_the_alarm_of_a_failed_challenge_ends_with_its_product() -> None:
    machine = ready()
    assert Alarm("CHALLENGE_FAILED", ALARMS["CHALLENGE_FAILED"], True) in machine.challenge("bolt", Challenge.FAILED, 1)
    assert Alarm("CHALLENGE_FAILED", ALARMS["CHALLENGE_FAILED"], False) in machine.unprepare("bolt", 2)


def test_an_error_interrupts_a_continuous_job_which_goes_on_afterwards() -> None:
    machine = ready()
    machine.start_continuous(1)
    machine.part("bolt", "p", 1)
    assert outcomes(machine.fail("CAMERA_LOST", 2)) == {2: Outcome.ERROR}
    machine.resolve("CAMERA_LOST", 3)
    assert machine.state == "ContinuousExecution"
    machine.part("bolt", "q", 4)
    assert machine.memory.waiting[0].run == 1
    assert numbers(machine.stop(5)) == [861]
    assert outcomes(machine.verdict(3, Outcome.PASS, 5)) == {3: Outcome.PASS}


@pytest.mark.parametrize(("call", "number", "ended"), [("stop", 761, {}), ("abort", 762, {1: Outcome.ABORTED})])
def test_a_single_execution_is_stopped_or_aborted(call: str, number: int, ended: dict[int, Outcome]) -> None:
    machine = ready()
    machine.start_single("bolt", "p", 1)
    events = getattr(machine, call)(2)
    assert numbers(events) == [number] and outcomes(events) == ended
    assert machine.state == "Ready" and len(machine.memory.waiting) == 1 - len(ended)


def test_abort_ends_what_waits() -> None:
    machine = ready()
    machine.start_continuous(1)
    machine.part("bolt", "p", 1)
    events = machine.abort(2)
    assert numbers(events) == [862] and outcomes(events) == {2: Outcome.ABORTED}


def test_an_error_that_only_reset_ends_is_not_resolved_and_lasts_through_a_restart() -> None:
    machine = ready()
    machine.fail("WORKER_DEAD", 1, until_reset=True)
    with pytest.raises(StationError, match="Reset"):
        machine.resolve("WORKER_DEAD", 2)
    machine = Machine(machine.memory, 0)
    assert numbers(machine.power_up(0)) == [130] and machine.state == "Error"
    assert numbers(machine.reset(1)) == [311] and machine.state == "Preoperational"


def test_a_stale_heartbeat_is_an_error_until_a_picture_goes_through_the_graph() -> None:
    machine = ready()
    machine.tick(HEARTBEAT)
    assert machine.state == "Ready"
    machine.tick(HEARTBEAT + 1)
    assert machine.state == "Error" and machine.memory.errors == {"HEARTBEAT_STALE": False}
    machine.passed(HEARTBEAT + 2)
    assert machine.state == "Ready"


def test_challenge_parts_are_due_after_a_restart_and_run_while_the_station_is_not_ready() -> None:
    machine = ready()
    machine.challenge("bolt", Challenge.PASSED, 1)
    assert machine.state == "Ready"
    machine = Machine(Memory.from_json(machine.memory.to_json()), 0)
    machine.power_up(0)
    assert machine.state == "Initialized"
    machine.challenge_part("bolt", "red rabbit", 1)
    assert outcomes(machine.verdict(1, Outcome.REJECT, 2)) == {1: Outcome.REJECT}
    assert machine.memory.counts == {} and machine.memory.latched == ()
    assert numbers(machine.challenge("bolt", Challenge.PASSED, 3)) == [560]


def test_a_failed_challenge_stops_a_continuous_job_with_an_alarm() -> None:
    machine = ready()
    machine.start_continuous(1)
    events = machine.challenge("bolt", Challenge.FAILED, 2)
    assert numbers(events) == [860, 650] and "CHALLENGE_FAILED" in {getattr(e, "code", "") for e in events}


@pytest.mark.parametrize("change", ["restart", "clock"])
def test_a_pass_is_not_shown_once_its_time_is_uncertain(change: str) -> None:
    machine = ready(100)
    machine.start_single("bolt", "p", 101)
    machine.verdict(1, Outcome.PASS, 101)
    assert machine.output(101) == Outcome.PASS
    if change == "restart":
        machine = Machine(machine.memory, 50)
        machine.power_up(50)
        assert machine.state == "Ready" and machine.memory.latched
    else:
        machine.tick(50)
    assert machine.output(50) == machine.output(51) == Outcome.REJECT


def test_a_restart_ends_the_jobs_that_waited_and_never_uses_an_id_again() -> None:
    machine = ready()
    machine.start_single("bolt", "p", 1)
    machine = Machine(Memory.from_json(machine.memory.to_json()), 0)
    assert outcomes(machine.first_events) == {1: Outcome.ERROR}
    machine.power_up(0)
    assert Notice("JobStarted", 2, "bolt", "digest of bolt") in machine.start_single("bolt", "q", 1)


def test_a_controller_that_never_acknowledges_is_not_ready_and_its_triggers_are_counted() -> None:
    machine = ready()
    for job in range(1, 9):
        machine.start_single("bolt", "p", job)
        machine.verdict(job, Outcome.PASS, job)
    assert not machine.ready
    with pytest.raises(StationError, match="Acknowledge results"):
        machine.start_single("bolt", "p", 9)
    assert machine.memory.missed == 1 and machine.state == "Error"
    alarms = [(e.code, e.active) for e in machine.acknowledge(1, 9) if isinstance(e, Alarm)]
    assert alarms == [("MISSED_TRIGGER", True), ("RESULT_OVERFLOW", True), ("RESULT_OVERFLOW", False)]
    assert machine.ready and len(machine.memory.latched) == 7


def test_an_overflow_ends_by_reset_and_its_results_wait_on() -> None:
    machine = ready()
    for job in range(1, 9):
        machine.start_single("bolt", "p", job)
        machine.verdict(job, Outcome.PASS, job)
    with pytest.raises(StationError):
        machine.start_single("bolt", "p", 9)
    machine.reset(9)
    machine.power_up(9)
    assert machine.state == "Ready" and not machine.ready and not machine.memory.errors
    assert [result.job.id for result in machine.memory.latched] == list(range(1, 9))


def test_an_answer_by_request_overflows_nothing() -> None:
    machine = ready()
    for job in range(1, 9):
        machine.start_single("bolt", "p", job)
        machine.verdict(job, Outcome.PASS, job)
    with pytest.raises(StationError, match="Acknowledge results"):
        machine.start_single("bolt", "p", 9, latch=False)
    assert machine.memory.missed == 1 and machine.state == "Ready"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"next_job": "1"}', '{"latch": []}', "null"])
def test_memory_that_is_damaged_is_refused(text: str) -> None:
    with pytest.raises(StationError, match="memory of the station"):
        Memory.from_json(text)


@pytest.mark.parametrize("now", [float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(now: float) -> None:
    machine = ready()
    with pytest.raises(StationError, match="finite"):
        machine.start_single("bolt", "p", now)


def test_errors_have_a_meaning_and_an_unknown_one_is_refused() -> None:
    assert set(ERRORS) <= set(ALARMS)
    with pytest.raises(StationError, match="Did you mean 'CAMERA_LOST'"):
        ready().fail("CAMERA_LOSS", 1)


def test_the_page_says_what_the_table_and_the_machine_say() -> None:
    root = Path(__file__).parents[1]
    page = (root / "docs/station.md").read_text()
    source = "".join((root / f"src/andon/station/{name}.py").read_text() for name in ("lifecycle", "machine"))
    used = {int(number) for number in re.findall(r"\b\d{3}\b", source)}
    transitions = [
        f"| {t.number} | {t.source} | {t.target} | {t.method or 'automatic'} | {', '.join(t.events)} "
        f"| {'yes' if t.number in used else 'no'} |"
        for t in TRANSITIONS
    ]
    assert re.findall(r"^\| \d{3} .*$", page.split("## Transitions")[1], re.M) == transitions
    alarms = [
        f"| {i} | `{code}` | {text} | {'Error' if code in ERRORS else 'unchanged'} |"
        for i, (code, text) in enumerate(ALARMS.items(), 1)
    ]
    assert re.findall(r"^\| \d+ \| `.*$", page, re.M) == alarms
    states = re.findall(r"^\| (\w+) \|", page.split("## States")[1].split("## From")[0], re.M)
    assert set(states[1:]) == set(STATES)
    outcomes = re.findall(r"^\| `(\w+)` \|", page.split("## What makes")[1].split("## Alarms")[0], re.M)
    assert set(outcomes) == set(Outcome) - {Outcome.PASS, Outcome.REVIEW}

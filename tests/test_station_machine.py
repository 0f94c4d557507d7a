"""The station's machine against the table of OPC 40100-1: every call in every state, in any order."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from andon.station.events import ERRORS, Challenge, Memory, Notice, Outcome, Result, StationError, Transitioned
from andon.station.machine import Machine
from andon.station.table import STATES, TRANSITIONS

TABLE = {t.number: t for t in TRANSITIONS}
SUBSTATES = {name for name, number in STATES.items() if number > STATES["Operational"]}
PRODUCTS = ("bolt", "nut")
DEADLINE = 4.0
HEARTBEAT = 40.0
VERDICTS = [Outcome.PASS, Outcome.REVIEW, Outcome.REJECT, Outcome.INVALID, Outcome.ERROR]


def prepare(machine: Machine, name: str, now: float, challenges: bool = False) -> list:
    return machine.prepare(name, f"digest of {name}", DEADLINE, True, True, challenges, now)


CALLS = {  # call → the methods of the table that it is, and the states in which it is legal
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

    def hear(self, events: list) -> list:
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

    def attempt(self, legal: bool, call, *arguments) -> list | None:
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
    )
    def trigger(self, call: str, name: str, part: str) -> None:
        states = {"start_single": ["Ready"], "part": ["ContinuousExecution"]}.get(call, ["Initialized", "Ready"])
        memory = self.machine.memory
        legal = self.machine.state in states and bool(part) and name in memory.products
        legal &= len(memory.waiting) + len(memory.latched) < 4
        assert not (legal and call == "part") or self.machine.ready
        self.attempt(legal, getattr(self.machine, call), name, part)

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
        self.attempt(job in {w.id for w in self.machine.memory.waiting}, self.machine.acquired, job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def acknowledge(self, data) -> None:
        job = data.draw(st.sampled_from(sorted(self.jobs)))
        latched = self.machine.memory.latched
        self.attempt(bool(latched) and latched[0].job.id == job, self.machine.acknowledge, job)

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
        assert len(self.machine.memory.waiting) + len(self.machine.memory.latched) <= 4


Station.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
TestStation = Station.TestCase


@pytest.mark.parametrize(("method", "call"), METHODS.items())
def test_a_call_is_legal_where_the_table_has_its_method(method: str, call: str) -> None:
    sources = {t.source for t in TRANSITIONS if t.method == method}
    if "Operational" in sources:
        sources = sources - {"Operational"} | SUBSTATES
    assert CALLS[call] == sources

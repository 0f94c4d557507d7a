"""Events and memory of the state machine, as plain immutable data."""

from dataclasses import field
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from andon.errors import AndonError
from andon.files import strict_json

FROZEN = ConfigDict(extra="forbid", strict=True)

ALARMS = {
    "CAMERA_LOST": "The camera gives no pictures.",
    "WORKER_DEAD": "A process that inspects has died.",
    "HEARTBEAT_STALE": "No picture went through the graph for too long.",
    "STORAGE": "Records or pictures cannot be written.",
    "CLOCK_BACKWARDS": "The clock went back; no verdict that was awaited can be shown to be in time.",
    "CHALLENGE_FAILED": "A challenge part got another verdict than expected.",
    "MISSED_TRIGGER": "A trigger came while the station could not take it.",
    "LATE": "A verdict was not there at its deadline.",
    "DRIFT": "Scores or pictures of a product have changed.",
    "RESULT_OVERFLOW": "A trigger found the queue full of results that are not acknowledged.",
}
"""Code of an alarm → its meaning. The number of an alarm in line protocols is its position here, from 1."""

ERRORS = ("CAMERA_LOST", "WORKER_DEAD", "HEARTBEAT_STALE", "STORAGE", "RESULT_OVERFLOW")
"""The alarms that keep the station in the state Error while they are active."""


class StationError(AndonError):
    """A call that the station refuses. It changes nothing, but a refused trigger is counted."""


class Outcome(StrEnum):
    """How a job ends. Every outcome except PASS and REVIEW means reject."""

    PASS = "PASS"
    REVIEW = "REVIEW"
    REJECT = "REJECT"
    INVALID = "INVALID"
    LATE = "LATE"
    ERROR = "ERROR"
    ABORTED = "ABORTED"


class Challenge(StrEnum):
    """Status of the challenge parts of a product. NONE: it has none."""

    NONE = "NONE"
    DUE = "DUE"
    FAILED = "FAILED"
    PASSED = "PASSED"


@dataclass(frozen=True, config=FROZEN)
class Product:
    """A prepared bundle."""

    name: str
    digest: str
    deadline: float
    """Maximum time from trigger to verdict in seconds; a later verdict is LATE."""
    challenge: Challenge


@dataclass(frozen=True, config=FROZEN)
class Job:
    """One part, from its trigger to its verdict."""

    id: int
    product: str
    digest: str
    part: str
    started: float
    deadline: float
    run: int | None = None
    """Id of the continuous job to which it belongs."""
    acquired: bool = False
    """Its picture has been taken."""
    challenge: bool = False
    """It inspects a challenge part, which is never counted or archived as production."""
    latch: bool = True
    """Its result is held until it is acknowledged. False: its result is the answer to a request."""


@dataclass(frozen=True, config=FROZEN)
class Result:
    job: Job
    outcome: Outcome
    at: float
    until: float
    """Time until which the output shows PASS or REVIEW: the deadline, or earlier after an error or a restart."""


@dataclass(frozen=True, config=FROZEN)
class Memory:
    """The state that must survive a restart."""

    version: int = 1
    next_job: int = 1
    products: dict[str, Product] = field(default_factory=dict)
    waiting: tuple[Job, ...] = ()
    """Jobs that wait for their verdict."""
    latched: tuple[Result, ...] = ()
    """Results that are not acknowledged, the oldest first."""
    missed: int = 0
    """Triggers that were refused."""
    counts: dict[str, int] = field(default_factory=dict)
    """Results of production by outcome."""
    errors: dict[str, bool] = field(default_factory=dict)
    """Active error → whether only Reset ends it."""

    def plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return dict(_MEMORY.dump_python(self, mode="json"))

    def to_json(self) -> str:
        return strict_json(self.plain())

    @classmethod
    def from_json(cls, text: str) -> "Memory":
        try:
            memory = _MEMORY.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the text"
            raise StationError(
                f"memory of the station: {place}: {first['msg']}. Expected the text that `Memory.to_json` returned. "
                "Restore it from a backup, or begin with a new one whose job ids were never used."
            ) from None
        if memory.version != 1:
            raise StationError(
                f"memory of the station: version {memory.version}; expected 1. Use the andon that wrote it, or newer."
            )
        return memory


_MEMORY = TypeAdapter(Memory)


class Transitioned(NamedTuple):
    """A transition of the table. Source and target are substates where the table has their parent Operational."""

    number: int
    source: str
    target: str


class Notice(NamedTuple):
    """An event of OPC 40100-1: JobStarted, Ready, AcquisitionDone, RecipePrepared, Error, ErrorResolved."""

    name: str
    job: int | None = None
    product: str | None = None
    digest: str | None = None


class Alarm(NamedTuple):
    code: str
    text: str
    active: bool
    """False: the alarm has ended."""


Event = Transitioned | Notice | Alarm | Result

"""The register map of the Modbus server, also in docs/line-protocols.md."""

from collections.abc import Sequence
from typing import NamedTuple

from andon.station.events import ALARMS, Outcome
from andon.station.line.shown import Value
from andon.station.table import STATES

CONTROL, PRODUCT = 0, 1
PART, LOT = 8, 24
"""First registers of the values that the PLC writes: control word, number of the product, ids of part and lot."""
CONTROLS = 40

STATUS = 100
STATUSES = 60
"""First register and number of registers that the PLC reads."""

TEXT = 16
"""Number of registers of an id: 32 bytes, the first in the high byte; unused bytes are 0."""

ENABLE, TRIGGER, RESULTS_ACK, RESET = 1, 2, 4, 8
"""Bits of the control word."""
READY, ACK, BUSY, VALID, MISSED, ERROR, HEARTBEAT = 1, 2, 4, 8, 16, 32, 64
"""Bits of the status word."""

CONTROL_BITS = {ENABLE: "ENABLE", TRIGGER: "TRIGGER", RESULTS_ACK: "RESULTS_ACK", RESET: "RESET"}
STATUS_BITS = {
    **{READY: "READY", ACK: "ACK", BUSY: "BUSY", VALID: "VALID"},
    **{MISSED: "MISSED", ERROR: "ERROR", HEARTBEAT: "HEARTBEAT"},
}

OUTCOMES = {outcome: number for number, outcome in enumerate(Outcome, 1)}
"""Outcome of a job → its number; 0: no result."""


class Status(NamedTuple):
    """The values that the PLC reads, from register 100. In numbers of two registers, the high word is first."""

    word: int
    state: int
    alarm: int
    """Number of the active error; 0: none."""
    latched: int
    """Number of results that are not acknowledged."""
    missed: int
    """Number of refused triggers. Two registers."""
    taken: int
    """Job of the last accepted trigger. Two registers."""
    job: int
    """Job of the result. Two registers."""
    output: int
    """Output for the part now: 1 PASS, 2 REVIEW, 3 REJECT."""
    outcome: int
    """Outcome of the job, see `OUTCOMES`."""
    product: int
    part: str
    digest: str
    """Digest of the bundle: SHA-256, 64 hexadecimal digits."""

    def registers(self) -> list[int]:
        return [
            *(self.word, self.state, self.alarm, self.latched),
            *(*_double(self.missed), *_double(self.taken), *_double(self.job)),
            *(self.output, self.outcome, self.product, 0),
            *(0, 0, 0, 0, 0, 0),
            *_words(self.part.encode()[: 2 * TEXT]),
            *(0, 0, 0, 0),
            *_words(bytes.fromhex(self.digest)),
            *(0,) * 4,
        ]


def shown(written: list[int], status: Status, products: Sequence[str]) -> list[Value]:
    """Return the values of all registers, for display. `written`: the first CONTROLS registers."""
    control, number = written[CONTROL], written[PRODUCT]
    states, alarms = {number: name for name, number in STATES.items()}, dict(enumerate(ALARMS, 1))
    outcomes = {number: outcome.value for outcome, number in OUTCOMES.items()}
    names = dict(enumerate(products, 1))
    return [
        Value(f"{CONTROL}", "control", f"0x{control:04X}", _bits(control, CONTROL_BITS)),
        Value(f"{PRODUCT}", "product", f"{number}", names.get(number, "")),
        *(
            Value(f"{place}–{place + TEXT - 1}", name, _readable(written[place : place + TEXT]))
            for name, place in (("part", PART), ("lot", LOT))
        ),
        Value("100", "status", f"0x{status.word:04X}", _bits(status.word, STATUS_BITS)),
        Value("101", "state", f"{status.state}", states.get(status.state, "")),
        Value("102", "alarm", f"{status.alarm}", alarms.get(status.alarm, "")),
        Value("103", "latched results", f"{status.latched}"),
        Value("104–105", "missed triggers", f"{status.missed}"),
        Value("106–107", "job taken", f"{status.taken}"),
        Value("108–109", "job of the result", f"{status.job}"),
        Value("110", "output", f"{status.output}", outcomes.get(status.output, "")),
        Value("111", "outcome", f"{status.outcome}", outcomes.get(status.outcome, "")),
        Value("112", "product of the result", f"{status.product}", names.get(status.product, "")),
        Value("120–135", "part of the result", status.part),
        Value("140–155", "bundle of the result", status.digest),
    ]


def _bits(word: int, names: dict[int, str]) -> str:
    return " ".join(name for bit, name in names.items() if word & bit)


def _readable(registers: list[int]) -> str:
    try:
        return text(registers)
    except UnicodeDecodeError:
        return " ".join(f"{each:04X}" for each in registers)


def text(registers: list[int]) -> str:
    """Return an id that a PLC wrote, up to the first zero byte. UnicodeDecodeError if it is not UTF-8."""
    return b"".join(each.to_bytes(2, "big") for each in registers).partition(b"\0")[0].decode().strip()


def _words(data: bytes) -> list[int]:
    data = data.ljust(2 * TEXT, b"\0")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, 2 * TEXT, 2)]


def _double(number: int) -> tuple[int, int]:
    return number >> 16 & 0xFFFF, number & 0xFFFF

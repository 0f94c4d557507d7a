"""The register map of the Modbus server. docs/line-protocols.md shows the same."""

from typing import NamedTuple

from andon.station.events import Outcome

CONTROL, PRODUCT = 0, 1
PART, LOT = 8, 24
"""What the PLC writes: control word, number of the product, ids of part and lot."""
CONTROLS = 40

STATUS = 100
STATUSES = 60
"""What the PLC reads."""

TEXT = 16
"""Registers of an id: 32 bytes, the first in the high byte; unused ones are 0."""

ENABLE, TRIGGER, RESULTS_ACK, RESET = 1, 2, 4, 8
"""Bits of the control word."""
READY, ACK, BUSY, VALID, MISSED, ERROR, HEARTBEAT = 1, 2, 4, 8, 16, 32, 64
"""Bits of the status word."""

OUTCOMES = {outcome: number for number, outcome in enumerate(Outcome, 1)}
"""How a job ended, as a number; 0: nothing."""


class Status(NamedTuple):
    """What the PLC reads, from register 100 on. Numbers of two registers have the high word first."""

    word: int
    state: int
    alarm: int
    """Number of the error that lasts; 0: none."""
    latched: int
    """Results that are not acknowledged."""
    missed: int
    """Triggers that were refused. Two registers."""
    taken: int
    """Job of the last trigger that was taken. Two registers."""
    job: int
    """Job of the result. Two registers."""
    output: int
    """What to do with the part, now: 1 PASS, 2 REVIEW, 3 REJECT."""
    outcome: int
    """How the job ended, see `OUTCOMES`."""
    product: int
    part: str
    digest: str
    """Of the bundle: SHA-256 as 64 hexadecimal digits."""

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


def text(registers: list[int]) -> str:
    """An id that a PLC wrote; it ends before the first byte that is 0. UnicodeDecodeError when it is no UTF-8."""
    return b"".join(each.to_bytes(2, "big") for each in registers).partition(b"\0")[0].decode().strip()


def _words(data: bytes) -> list[int]:
    data = data.ljust(2 * TEXT, b"\0")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, 2 * TEXT, 2)]


def _double(number: int) -> tuple[int, int]:
    return number >> 16 & 0xFFFF, number & 0xFFFF

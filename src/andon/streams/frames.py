"""Data of a line: the frame of a source, its outcome, and the report on all frames."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from andon.errors import AndonError
from andon.inspection import Inspection, Verdict
from andon.pictures import image


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source: pixels, the bytes of a file, or a path that the line reads."""

    content: image.Source
    name: str | None = None  # for records and messages; None: the path, or a name made from the number
    part: str = ""  # id of the part, if known
    time: datetime = field(default_factory=now)  # of exposure or arrival
    number: int = 0  # set by the line, from 1; includes dropped frames

    @property
    def label(self) -> str:
        """Name for messages and records."""
        if self.name is not None:
            return self.name
        content = self.content
        if isinstance(content, image.Image):
            return content.name
        return Path(content).as_posix() if isinstance(content, str | Path) else f"frame {self.number}"


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a frame."""

    frame: Frame
    picture: image.Image | None = None  # None if it could not be read
    inspection: Inspection | None = None  # None if it could not be inspected; `fault` is the reason
    fault: Exception | None = None  # an ImageError if the picture is bad; otherwise an error of the line
    drawn: bytes | None = None  # result of `draw`
    dropped: int = 0  # frames lost since the previous frame, on the line and at the source
    repeats: int = 0  # number of frames directly before this one with the same picture

    @property
    def verdict(self) -> Verdict:
        """The verdict; INVALID when the frame could not be inspected."""
        return self.inspection.verdict if self.inspection else Verdict.INVALID

    @property
    def error(self) -> str:
        """Reason why it could not be inspected; empty if it was."""
        if self.fault is None or isinstance(self.fault, AndonError):
            return str(self.fault or "")
        return f"{self.frame.label}: error in the inspection: {type(self.fault).__name__}: {self.fault}"

    def record(self) -> dict[str, Any]:
        """Plain data for JSON: the record of the inspection or the error, with part, number and time of the frame."""
        frame = self.frame
        record: dict[str, Any] = (
            self.inspection.record()
            if self.inspection
            else {"source": frame.label, "verdict": self.verdict.value, "error": self.error}
        )
        record |= {"part": frame.part, "frame": frame.number, "captured": frame.time.isoformat(timespec="milliseconds")}
        if remarks := self.remarks():
            record["notes"] = [*record.get("notes", ()), *remarks]
        return record

    def remarks(self) -> list[str]:
        """Notes: lost frames before this one, and repeated pictures."""
        notes = [f"{self.dropped} frames before this one were not inspected"] if self.dropped else []
        if self.repeats:
            notes.append(f"the same picture as the {self.repeats} before it: is the camera frozen?")
        return notes


def contents(frame: Frame) -> bytes:
    """A picture as a file: the file itself, or pixels as PNG, which loses nothing."""
    if isinstance(frame.content, np.ndarray):
        pixels = image.read(frame.content).pixels
        ordered = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., ::-1]
        return cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    assert not isinstance(frame.content, bytes | image.Image)  # cameras and folders give pixels or paths
    return Path(frame.content).read_bytes()


Sink = Callable[[Outcome], None]
"""A function that receives the outcomes, one at a time, in the order of the frames."""


@dataclass
class Report:
    """The counts of a line, updated while it runs."""

    frames: int = 0  # outcomes handed to the sink
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    failed: int = 0  # those of the INVALID frames that could not be inspected
    dropped: int = 0  # frames dropped because the line was full
    lost: int = 0  # frames lost at the source, if it reports them
    repeated: int = 0  # frames with the same picture as the one before
    stalls: int = 0  # number of pauses longer than `Settings.stall`
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=100))  # the latest warnings
    stopped: bool = False  # whether it was stopped; otherwise the source ended

    @property
    def whole(self) -> bool:
        """Whether every frame was inspected, as far as the source reports losses."""
        return not (self.failed or self.dropped or self.lost)

    def sentence(self) -> str:
        """Summary for people."""
        counts = ", ".join(f"{self.verdicts[verdict]} {verdict}" for verdict in Verdict if self.verdicts[verdict])
        others = (
            (self.failed, "could not be inspected"),
            (self.dropped, "dropped"),
            (self.lost, "lost at the source"),
            (self.repeated, "repeated"),
        )
        failures = "".join(f"; {count} {what}" for count, what in others if count)
        return f"{self.frames} frames: {counts or 'none inspected'}{failures}"


class Control:
    """Shared by a source and its line: the stop event, and the function that reports warnings."""

    def __init__(self, report: Report, stop: threading.Event, tell: Callable[[str], None]) -> None:
        """`tell` may be called from any thread."""
        self.stop, self._report, self._tell = stop, report, tell
        self._guard = threading.Lock()

    def tell(self, sentence: str) -> None:
        """Report a warning, or the end of a problem."""
        with self._guard:
            self._report.warnings.append(sentence)
            self._tell(sentence)

    def lose(self, count: int, sentence: str) -> None:
        """Count and report frames that the source lost."""
        self._report.lost += count
        self.tell(sentence)


@runtime_checkable
class Source(Protocol):
    """A source of frames."""

    def frames(self, control: Control) -> Iterator[Frame]:
        """Yield frames until the end, or until shortly after `control.stop` is set. Runs in a separate thread."""
        ...


class Inspects(Protocol):
    """The methods of an inspector that a line uses."""

    def read(self, source: image.Source, name: str | None = None) -> image.Image: ...

    def inspect(self, source: image.Source, name: str | None = None) -> Inspection: ...

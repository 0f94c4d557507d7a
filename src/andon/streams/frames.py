"""What travels on a line: a frame from the source, its outcome, and the report on all of them."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from andon.errors import AndonError
from andon.inspection import Inspection, Verdict
from andon.pictures import image


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture as a source gives it: pixels, the bytes of a file, or its path, which is read on the line."""

    content: image.Source
    name: str | None = None  # in records and messages; None: the path, or what kind of content it is
    part: str = ""  # id of the part that it shows, when somebody knows it
    time: datetime = field(default_factory=now)  # when it was taken, or came in
    number: int = 0  # counted by the line from 1; dropped frames count too

    @property
    def label(self) -> str:
        """A name for messages and records."""
        if self.name is not None:
            return self.name
        content = self.content
        if isinstance(content, image.Image):
            return content.name
        return Path(content).as_posix() if isinstance(content, str | Path) else f"frame {self.number}"


@dataclass(frozen=True, eq=False)
class Outcome:
    """A frame and what came of it."""

    frame: Frame
    picture: image.Image | None = None  # the picture as it was read; None when it could not be
    inspection: Inspection | None = None  # None: it could not be inspected, and `fault` says why
    fault: Exception | None = None  # an ImageError when the picture is at fault; anything else is a fault of the line
    drawn: bytes | None = None  # what `draw` made of it
    dropped: int = 0  # frames that were lost between the one before and this one, here and at the source
    repeats: int = 0  # how many frames in a row before this one had the same picture

    @property
    def verdict(self) -> Verdict:
        """The verdict; INVALID when the frame could not be inspected."""
        return self.inspection.verdict if self.inspection else Verdict.INVALID

    @property
    def error(self) -> str:
        """Why it could not be inspected; empty when it could."""
        if self.fault is None or isinstance(self.fault, AndonError):
            return str(self.fault or "")
        return f"{self.frame.label}: a fault in the inspection: {type(self.fault).__name__}: {self.fault}"

    def record(self) -> dict[str, Any]:
        """Plain data for JSON: the record of the inspection, or the error; with part, number and time of the frame."""
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
        """Sentences on what lies between this frame and the one before."""
        said = [f"{self.dropped} frames before this one were not inspected"] if self.dropped else []
        if self.repeats:
            said.append(f"the same picture as the {self.repeats} before it: has the camera frozen?")
        return said


Sink = Callable[[Outcome], None]
"""Takes the outcomes, one after another, in the order of the frames."""


@dataclass
class Report:
    """What went over a line, counted as it runs."""

    frames: int = 0  # outcomes that the sink took
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    failed: int = 0  # of the INVALID: those that could not be inspected
    dropped: int = 0  # frames that the line dropped because it was full
    lost: int = 0  # frames that the source lost, as far as it knows
    repeated: int = 0  # frames with the same picture as the one before
    stalls: int = 0  # times that no frame came for longer than `Settings.stall`
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=100))  # the last sentences on what went wrong
    stopped: bool = False  # whether it was told to stop; else the source came to its end

    @property
    def whole(self) -> bool:
        """Whether every frame was inspected, as far as anybody knows."""
        return not (self.failed or self.dropped or self.lost)

    def sentence(self) -> str:
        """Sum up for people."""
        counts = ", ".join(f"{self.verdicts[verdict]} {verdict}" for verdict in Verdict if self.verdicts[verdict])
        others = (
            (self.failed, "could not be inspected"),
            (self.dropped, "dropped"),
            (self.lost, "lost at the source"),
            (self.repeated, "repeated"),
        )
        told = "".join(f"; {count} {what}" for count, what in others if count)
        return f"{self.frames} frames: {counts or 'none inspected'}{told}"


class Control:
    """What a source and its line share: the wish to stop, and a place to say what goes wrong."""

    def __init__(self, report: Report, stop: threading.Event, tell: Callable[[str], None]) -> None:
        """`tell` is called from any thread."""
        self.stop, self._report, self._tell = stop, report, tell
        self._guard = threading.Lock()

    def tell(self, sentence: str) -> None:
        """Say what went wrong, or that it is well again."""
        with self._guard:
            self._report.warnings.append(sentence)
            self._tell(sentence)

    def lose(self, count: int, sentence: str) -> None:
        """Count frames that the source lost, and say so."""
        self._report.lost += count
        self.tell(sentence)


@runtime_checkable
class Source(Protocol):
    """Where frames come from."""

    def frames(self, control: Control) -> Iterator[Frame]:
        """Yield frames until the end, or soon after `control.stop` is set. Runs in a thread of its own."""
        ...


class Inspects(Protocol):
    """What a line needs of an inspector."""

    def read(self, source: image.Source, name: str | None = None) -> image.Image: ...

    def inspect(self, source: image.Source, name: str | None = None) -> Inspection: ...

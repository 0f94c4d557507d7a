"""Where outcomes go: records and pictures on disk. Any function of an outcome is a sink too."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from andon import files, render
from andon.calibration import Calibration
from andon.errors import AndonError
from andon.inspection import Verdict
from andon.pictures import image
from andon.records import Records
from andon.render import Scale
from andon.streams.frames import Frame, Outcome, Sink

Which = Literal["all", "alarms", "none"]


def each(*sinks: Sink) -> Sink:
    """Hand every outcome to several sinks, to all of them also when one fails; the first error is raised then."""

    def take(outcome: Outcome) -> None:
        errors = []
        for sink in sinks:
            try:
                sink(outcome)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return take


def recorded(records: Records) -> Sink:
    """Write the record of every outcome, as `andon inspect` does, with part, number and time of the frame."""
    return lambda outcome: records.add(outcome.record())


class HeatMaps:
    """Pictures with heat map below a folder: drawn on the line (`draw`), written in order (the sink itself).

    A picture that cannot be written is told, and stops nothing: its record is written already.
    """

    def __init__(
        self,
        folder: Path,
        scale: Scale,
        calibration: Calibration,
        tell: Callable[[str], None],
        which: Which = "alarms",
        place: Callable[[Frame], Path] | None = None,
    ) -> None:
        """`which` pictures: all, those with REVIEW or REJECT, or none; `place` names a frame's picture in the folder.

        AndonError when the folder cannot be made.
        """
        self._folder, self._scale, self._scores, self._tell = folder, scale, calibration.scores, tell
        self._which, self._place = which, place or placed(None)
        files.make_folder(folder)

    def draw(self, outcome: Outcome) -> bytes | None:
        """Draw the picture of an outcome, as PNG; None when it is not wanted, or there is no picture."""
        read, found = outcome.picture, outcome.inspection
        wanted = self._which == "all" or (self._which == "alarms" and outcome.verdict in _ALARMS)
        if read is None or found is None or not wanted:
            return None
        drawn = render.overlay(read.pixels, found.anomaly_map, self._scale, found.regions)
        return image.png(render.labelled(drawn, found, self._scores))

    def __call__(self, outcome: Outcome) -> None:
        """Write what was drawn."""
        if outcome.drawn is None:
            return
        target = self._folder / self._place(outcome.frame)
        try:
            files.make_folder(target.parent)
            files.write(target, outcome.drawn)
        except AndonError as error:
            self._tell(f"inspected, but without a heat map: {error}")


def placed(below: Path | None) -> Callable[[Frame], Path]:
    """Names the pictures of frames: by the path of a file below a folder, or by time, number and part."""

    def place(frame: Frame) -> Path:
        if isinstance(frame.content, str | Path):
            path = Path(frame.content)
            shown = path.relative_to(below) if below and path.is_relative_to(below) else Path(path.name)
            return shown.with_name(f"{shown.name}.png")
        part = re.sub(r"[^\w-]", "_", frame.part)[:60]
        return Path(f"{frame.time:%Y%m%dT%H%M%S.%f} {frame.number:06} {part}".strip() + ".png")

    return place


_ALARMS = (Verdict.REVIEW, Verdict.REJECT)

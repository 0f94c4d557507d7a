"""Sinks: records and heat maps on disk. Any function of an outcome is a sink too."""

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
    """Return a sink that calls several sinks; all are called even when one fails, then the first error is raised."""

    def call(outcome: Outcome) -> None:
        errors = []
        for sink in sinks:
            try:
                sink(outcome)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return call


def recorded(records: Records) -> Sink:
    """Return a sink that writes the record of every outcome, with part, number and time of the frame."""
    return lambda outcome: records.add(outcome.record())


class HeatMaps:
    """Heat maps in a folder: drawn in the threads of the line (`draw`), written in order (the sink itself).

    A heat map that cannot be written is reported; the line continues, because the record is already written.
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
        """`which`: all, those of REVIEW and REJECT, or none; `place` gives the path of a frame's heat map in the
        folder.

        AndonError when the folder cannot be created.
        """
        self._folder, self._scale, self._scores, self._tell = folder, scale, calibration.scores, tell
        self._which, self._place = which, place or placed(None)
        files.make_folder(folder)

    def draw(self, outcome: Outcome) -> bytes | None:
        """Draw the heat map of an outcome as PNG; None if it is not wanted, or there is no picture."""
        picture, inspection = outcome.picture, outcome.inspection
        wanted = self._which == "all" or (self._which == "alarms" and outcome.verdict in _ALARMS)
        if picture is None or inspection is None or not wanted:
            return None
        drawn = render.overlay(picture.pixels, inspection.anomaly_map, self._scale, inspection.regions)
        return image.png(render.labelled(drawn, inspection, self._scores))

    def __call__(self, outcome: Outcome) -> None:
        """Write the heat map."""
        if outcome.drawn is None:
            return
        target = self._folder / self._place(outcome.frame)
        try:
            files.make_folder(target.parent)
            files.write(target, outcome.drawn)
        except AndonError as error:
            self._tell(f"inspected, but without a heat map: {error}")


def placed(below: Path | None) -> Callable[[Frame], Path]:
    """Return a function that names heat maps: by the path of the file in a folder, or by time, number and part."""

    def place(frame: Frame) -> Path:
        if isinstance(frame.content, str | Path):
            path = Path(frame.content)
            shown = path.relative_to(below) if below and path.is_relative_to(below) else Path(path.name)
            return shown.with_name(f"{shown.name}.png")
        part = re.sub(r"[^\w-]", "_", frame.part)[:60]
        return Path(f"{frame.time:%Y%m%dT%H%M%S.%f} {frame.number:06} {part}".strip() + ".png")

    return place


_ALARMS = (Verdict.REVIEW, Verdict.REJECT)

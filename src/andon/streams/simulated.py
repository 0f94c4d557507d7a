"""A simulated camera, for trials and tests of a line."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from andon import files
from andon.errors import AndonError
from andon.pictures import image
from andon.pictures.headers import SUFFIXES
from andon.streams.cameras import CameraLost, Shot

Fault = Literal["lost", "skipped", "stalled"]


class Simulated:
    """A camera that shows the pictures of a folder repeatedly, at a constant rate.

    `faults` maps the number of a frame, from 1, to a fault before it: "lost": the cable is unplugged and the next two
    attempts to connect fail; "skipped": the frame is missing; "stalled": it is ten intervals late.
    """

    FAILURES = 2  # failed attempts to connect after "lost"

    def __init__(
        self,
        pictures: Path | Sequence[image.Source],
        rate: float = 5.0,
        faults: Mapping[int, Fault] | None = None,
    ) -> None:
        """`pictures`: a folder, or sources for `image.read`; `rate`: frames per second. AndonError without pictures."""
        if isinstance(pictures, Path):
            if not files.is_folder(pictures):
                raise AndonError(f"{pictures}: no such folder; expected a folder of pictures. Check the path.")
            pictures = sorted(path for path in pictures.iterdir() if path.suffix.lower() in SUFFIXES)
        if not pictures:
            raise AndonError("the simulated camera has no pictures to show. Name a folder of pictures.")
        if not rate > 0:
            raise AndonError(f"rate = {rate}; expected a number of frames per second above 0. Correct it.")
        self._pictures, self._interval, self._faults = pictures, 1 / rate, dict(faults or {})
        self._number, self._failures, self._due = 0, 0, 0.0

    def open(self) -> None:
        """Connect."""
        if self._failures:
            self._failures -= 1
            raise CameraLost("the simulated cable is unplugged.")
        self._due = time.monotonic()

    def grab(self, seconds: float) -> Shot | None:
        """Wait until the next picture is due."""
        fault = self._faults.pop(self._number + 1, None)
        if fault == "lost":
            self._failures = self.FAILURES
            raise CameraLost("the simulated cable was unplugged.")
        if fault == "skipped":
            self._number += 1
        if fault == "stalled":
            self._due += 10 * self._interval
        wait = self._due - time.monotonic()
        time.sleep(max(0.0, min(wait, seconds)))
        if wait > seconds:
            return None
        self._due = max(self._due + self._interval, time.monotonic())
        self._number += 1
        return Shot(image.read(self._pictures[(self._number - 1) % len(self._pictures)]).pixels, self._number)

    def close(self) -> None:
        """Disconnect."""

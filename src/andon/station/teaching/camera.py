"""Pictures from the camera that the settings of a station name for a product."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import cast

from andon import files
from andon.station.config import Config, ProductSettings
from andon.station.events import StationError
from andon.station.teaching.bringing import workplace
from andon.station.teaching.pictures import Pictures, Taken
from andon.streams import naming
from andon.streams.frames import Control, Frame, Report, Source, contents

MOST, LONGEST_S = 20, 5.0  # pictures at once; seconds from one to the next
WAIT_S = 10.0  # for a camera that gives no picture


def cameras_of(config: Config) -> dict[str, ProductSettings]:
    """The products that have a camera. A folder that a camera fills is none: its pictures are copied."""
    return {name: each for name, each in config.products.items() if each.camera and not files.is_folder(each.camera)}


class Cameras:
    """Takes pictures, for one person at a time.

    Args:
        config: names the cameras; no other can be opened.
        tell: takes sentences for the person who started the station.
    """

    def __init__(self, config: Config, tell: Callable[[str], None]) -> None:
        self.opened: dict[str, Source] = {}
        """Product → its camera where the line has opened it: few cameras can be opened twice."""
        self._config, self._tell = config, tell
        self._one, self._stop = threading.Lock(), threading.Event()

    def close(self) -> None:
        """End what is being taken."""
        self._stop.set()

    def take(self, pictures: Pictures, product: str, count: int, every_s: float, folder: str) -> Taken:
        """Take pictures into a folder of a project. StationError when none comes; CameraLost: it cannot be opened."""
        known = cameras_of(self._config)
        if product not in known:
            raise StationError(
                f"product '{product[:64]}': expected one whose camera stands in the settings of the station: "
                f"{', '.join(known) or 'none'}. Choose one, or name its camera in the settings."
            )
        if not (1 <= count <= MOST and 0 <= every_s <= LONGEST_S):
            raise StationError(
                f"{count} pictures, {every_s:g} s apart: expected 1 to {MOST} pictures, at most {LONGEST_S:g} s apart."
            )
        if not self._one.acquire(blocking=False):
            raise StationError("somebody takes pictures from a camera. Wait until that has ended, and try again.")
        self._stop = stop = threading.Event()
        end = threading.Timer(WAIT_S + count * every_s, stop.set)
        try:
            source = self.opened.get(product) or naming.named(
                known[product].camera, channels=known[product].camera_channels
            )
            end.start()
            with workplace(pictures.place) as place:
                sources = []
                for number, frame in enumerate(self._frames(source, stop, count, every_s), 1):
                    name = f"{product}-{frame.time:%Y%m%d-%H%M%S}-{number}.png"
                    (place / name).write_bytes(contents(frame))
                    sources.append((place / name, name, folder))
                taken = pictures.take_all(sources)
        finally:
            end.cancel()
            self._one.release()
        if not sources:
            raise StationError(
                f"camera of '{product}': no picture came within {WAIT_S:g} s. Look at its cable, power and trigger."
            )
        missing = (f"{len(sources)} of {count} pictures came",) if len(sources) < count else ()
        return taken._replace(refused=(*taken.refused, *missing))

    def _frames(self, source: Source, stop: threading.Event, count: int, every_s: float) -> Generator[Frame]:
        """So many frames, no closer than they shall be; those between are not kept."""
        due = 0.0
        with closing(cast(Generator[Frame], source.frames(Control(Report(), stop, self._tell)))) as frames:
            for frame in frames:
                if time.monotonic() >= due:
                    due, count = time.monotonic() + every_s, count - 1
                    yield frame
                if not count:
                    return

"""The protocol of cameras, and the source that reads one and reconnects it with growing pauses."""

import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple, Protocol

import cv2

from andon.errors import AndonError
from andon.inspection import Pixels
from andon.streams.frames import Control, Frame, now
from andon.streams.sources import rgb


class CameraLost(AndonError):
    """A camera that cannot be opened, or gives no more pictures. The source closes it and reconnects after a pause."""


class Shot(NamedTuple):
    """One picture of a camera."""

    pixels: Pixels  # (H, W), (H, W, 1) or (H, W, 3) RGB, uint8 or uint16; the camera must not change it later
    number: int | None = None  # counter of the camera, +1 each frame; a gap means lost frames
    time: datetime | None = None  # of the exposure; None: the time of arrival is used


class Camera(Protocol):
    """The interface of a camera. Methods are called from one thread; `open` may follow `close`."""

    def open(self) -> None:
        """Connect and start the acquisition. CameraLost when the camera cannot be reached."""
        ...

    def grab(self, seconds: float) -> Shot | None:
        """Wait about `seconds` for the next picture; None if there is none. CameraLost when the camera fails."""
        ...

    def close(self) -> None:
        """Disconnect. Never raises an error; does nothing if closed."""
        ...


class Live:
    """The frames of a camera, until the line stops.

    The first connection must succeed. A camera that is lost later is reported, and opened again after `first` seconds;
    the pause doubles with each attempt, up to `longest` seconds.
    """

    WAIT = 0.5  # seconds between two checks of the stop event

    def __init__(self, camera: Camera, name: str = "camera", *, first: float = 0.5, longest: float = 30.0) -> None:
        """`name` identifies the camera in records and messages. AndonError for impossible pauses."""
        if not 0 < first <= longest:
            raise AndonError(
                f"first = {first}, longest = {longest} seconds; expected 0 < first <= longest. Correct them."
            )
        self._camera, self._name, self._first, self._longest = camera, name, first, longest
        self.lost = False
        """The camera is gone; it is opened again and again."""

    def frames(self, control: Control) -> Iterator[Frame]:
        """Yield frames until the stop event. CameraLost when the camera cannot be opened at the start."""
        count, last = 0, None
        try:
            self._camera.open()
            while not control.stop.is_set():
                try:
                    shot = self._camera.grab(self.WAIT)
                except CameraLost as error:
                    self.lost = True
                    control.tell(f"{self._name}: {error}")
                    if not self._reconnect(control):
                        return
                    last = None
                    continue
                if shot is None:
                    continue
                if shot.number is not None and last is not None and shot.number > last + 1:
                    missing = shot.number - last - 1
                    control.lose(missing, f"{self._name}: {missing} frames were lost before frame {shot.number}")
                count, last = count + 1, shot.number
                yield Frame(shot.pixels, f"{self._name}, frame {count}", time=shot.time or now())
        finally:
            self._camera.close()

    def _reconnect(self, control: Control) -> bool:
        """Open the camera again, with any number of attempts; False after the stop event."""
        pause, began = self._first, time.monotonic()
        while True:
            self._camera.close()
            if control.stop.wait(pause):
                return False
            try:
                self._camera.open()
            except CameraLost as error:
                if pause < self._longest:  # later attempts are not reported
                    control.tell(f"{self._name}: still not connected: {error}")
                pause = min(2 * pause, self._longest)
            else:
                self.lost = False
                control.tell(f"{self._name}: reconnected after {time.monotonic() - began:.1f} s")
                return True


class OpenCV:
    """A camera of OpenCV, by number, device file or URL such as rtsp://. 8 bits per sample.

    OpenCV does not report lost frames, and has an internal buffer of a few frames.
    """

    LOST = 3  # failed grabs in a row after which the camera is lost

    def __init__(self, address: int | str, channels: int = 3) -> None:
        """With `channels` 1, frames with three equal channels become gray pictures."""
        self._address, self._channels = address, channels
        self._video: cv2.VideoCapture | None = None
        self._failures = 0

    def open(self) -> None:
        """Connect."""
        self._failures = 0
        network = isinstance(self._address, str) and "://" in self._address
        options = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 5000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5000) if network else ()
        self._video = cv2.VideoCapture(self._address, cv2.CAP_FFMPEG if network else cv2.CAP_ANY, list(options))
        if not self._video.isOpened():
            self.close()
            raise CameraLost(
                f"no camera at {public(str(self._address))}; expected one that OpenCV can open. Check the cable, "
                "the number or URL, and that no other program uses it."
            )

    def grab(self, seconds: float) -> Shot | None:
        """Read the next picture; OpenCV waits as long as the driver."""
        if self._video is None:
            raise CameraLost("the camera is closed; open it first.")
        read, pixels = self._video.read()
        if read:
            self._failures = 0
            return Shot(rgb(pixels, self._channels))
        self._failures += 1
        if self._failures >= self.LOST:
            raise CameraLost("the camera gives no more pictures. Check cable and power.")
        return None

    def close(self) -> None:
        """Disconnect."""
        if self._video is not None:
            self._video.release()
            self._video = None


def public(address: str) -> str:
    """The address without its password."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)

"""Cameras behind one small protocol, and the source that keeps one running: it reconnects, with a growing pause."""

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
    """A camera that cannot be opened, or gives no more pictures: it is closed, and opened again after a pause."""


class Shot(NamedTuple):
    """What a camera gives."""

    pixels: Pixels  # (H, W), (H, W, 1) or (H, W, 3) in RGB order, uint8 or uint16; not changed afterwards
    number: int | None = None  # the camera's own counter, by 1 each frame; a gap tells of lost frames
    time: datetime | None = None  # when it was taken; None: when it came


class Camera(Protocol):
    """All that a line needs of a camera. Called from one thread; `open` again after `close`."""

    def open(self) -> None:
        """Connect, and begin to take pictures. CameraLost when it cannot be reached."""
        ...

    def grab(self, seconds: float) -> Shot | None:
        """Wait for the next picture, about `seconds` at most; None when there was none. CameraLost when it is gone."""
        ...

    def close(self) -> None:
        """Disconnect. Never fails, and does nothing when it is closed."""
        ...


class Live:
    """The frames of a camera, for as long as the line runs.

    The first connection must succeed. Later a lost camera is told, and opened again after `first` seconds, then after
    twice as long each time, up to `longest`.
    """

    WAIT = 0.5  # seconds for one picture, before the wish to stop is looked at

    def __init__(self, camera: Camera, name: str = "camera", *, first: float = 0.5, longest: float = 30.0) -> None:
        """`name` stands for the camera in records and messages."""
        if not 0 < first <= longest:
            raise AndonError(f"first = {first}, longest = {longest} seconds; expected 0 < first <= longest.")
        self._camera, self._name, self._first, self._longest = camera, name, first, longest
        self.lost = False
        """The camera is gone; it is opened again and again."""

    def frames(self, control: Control) -> Iterator[Frame]:
        """Yield until it is told to stop. CameraLost when the camera cannot be opened at the start."""
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
        """Open the camera again, however long it takes; False when it is told to stop meanwhile."""
        pause, began = self._first, time.monotonic()
        while True:
            self._camera.close()
            if control.stop.wait(pause):
                return False
            try:
                self._camera.open()
            except CameraLost as error:
                if pause < self._longest:  # then it is known
                    control.tell(f"{self._name}: still gone: {error}")
                pause = min(2 * pause, self._longest)
            else:
                self.lost = False
                control.tell(f"{self._name}: connected again after {time.monotonic() - began:.1f} s")
                return True


class OpenCV:
    """A camera through OpenCV: its number, its device, or a URL such as rtsp://. Eight bits a sample.

    OpenCV does not say which frames it lost, and keeps a few in a buffer of its own.
    """

    LOST = 3  # pictures in a row that do not come

    def __init__(self, address: int | str, channels: int = 3) -> None:
        """`channels` 1 makes gray pictures of frames whose three channels are equal."""
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
                f"no camera at {public(str(self._address))}; expected one that OpenCV can open. Check cable, number "
                "or URL, and that no other program uses it."
            )

    def grab(self, seconds: float) -> Shot | None:
        """Take the next picture; OpenCV waits as long as the driver does."""
        if self._video is None:
            raise CameraLost("it is closed; open it first.")
        read, pixels = self._video.read()
        if read:
            self._failures = 0
            return Shot(rgb(pixels, self._channels))
        self._failures += 1
        if self._failures >= self.LOST:
            raise CameraLost("gives no more pictures. Check cable and power.")
        return None

    def close(self) -> None:
        """Disconnect."""
        if self._video is not None:
            self._video.release()
            self._video = None


def public(address: str) -> str:
    """An address without the password in it."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)

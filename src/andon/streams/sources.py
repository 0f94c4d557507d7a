"""Sources that need no device: an iterable of pictures, and a video file."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from andon import files
from andon.errors import AndonError
from andon.inspection import Pixels
from andon.streams.frames import Control, Frame, Source, now

VIDEOS = frozenset({".avi", ".mp4", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"})


class Iterated:
    """An iterable of pictures: paths, bytes, arrays (RGB or gray), or `Frame`s with name, part and time.

    Arrays are copied on arrival, so that the caller may reuse the buffer.
    """

    def __init__(self, pictures: Iterable[Any]) -> None:
        """Take sources for `image.read`, or frames."""
        self._pictures = pictures

    def frames(self, control: Control) -> Iterator[Frame]:
        """Yield the frames in order."""
        for picture in self._pictures:
            frame = picture if isinstance(picture, Frame) else Frame(picture)
            yield frame if not isinstance(frame.content, np.ndarray) else _copied(frame)


def _copied(frame: Frame) -> Frame:
    return Frame(np.array(frame.content), frame.name, frame.part, frame.time)


def rgb(frame: Any, channels: int) -> Pixels:
    """Convert a picture of OpenCV, (H, W) or BGR, to RGB; with `channels` 1 to gray, if its channels are equal."""
    if frame.ndim == 2 or frame.shape[2] == 1:
        return np.asarray(frame)
    if channels == 1 and (frame[..., 0] == frame[..., 1]).all() and (frame[..., 1] == frame[..., 2]).all():
        return np.ascontiguousarray(frame[..., :1])
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


class Video:
    """The frames of a video file, as fast as the line inspects them. They are compressed, so do not use them as a
    proof.

    If a file ends before its last frame, this is reported, and the missing frames count as lost.
    """

    def __init__(self, path: str | Path, channels: int = 3) -> None:
        """With `channels` 1, frames with three equal channels become gray. AndonError when the file does not exist."""
        self._path, self._channels = Path(path), channels
        if not files.is_file(path):
            raise AndonError(f"{path}: no such file; expected a video. Check the path.")

    def frames(self, control: Control) -> Iterator[Frame]:
        """Yield frames until the end. AndonError when no frame can be decoded."""
        name = self._path.as_posix()
        video = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        try:
            total, rate = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS)
            began, count = now(), 0
            while not control.stop.is_set():
                read, pixels = video.read()
                if not read:
                    break
                count += 1
                time = began + timedelta(seconds=(count - 1) / rate if rate > 0 else 0)
                yield Frame(rgb(pixels, self._channels), f"{name}, frame {count}", time=time)
            if not count and not control.stop.is_set():
                raise AndonError(
                    f"{name}: no frame can be decoded; expected a video. Copy it again, or convert it to MP4 with "
                    "H.264."
                )
            if count < total and not control.stop.is_set():
                sentence = f"{name}: ended after {count} of {total} frames. The file may be incomplete; copy it again."
                control.lose(total - count, sentence)
        finally:
            video.release()


class Limited:
    """The first frames of another source."""

    def __init__(self, source: Source, count: int) -> None:
        """Limit a source to `count` frames."""
        self._source, self._count = source, count

    def frames(self, control: Control) -> Iterator[Frame]:
        """Yield at most `count` frames."""
        return islice(self._source.frames(control), self._count)

"""Make a source from an object, or from a text such as an argument of the command line."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from andon import files
from andon.errors import AndonError
from andon.pictures import image
from andon.pictures.headers import SUFFIXES
from andon.streams.cameras import Live, OpenCV, public
from andon.streams.folder import Folder
from andon.streams.frames import Source
from andon.streams.genicam import GenICam
from andon.streams.simulated import Simulated
from andon.streams.sources import VIDEOS, Iterated, Video


def of(source: "Source | Iterable[Any] | str | Path") -> Source:
    """Return a source: from a source, an iterable of pictures or frames, or the path of a folder or video."""
    if isinstance(source, str | Path):
        return named(str(source))
    if isinstance(source, bytes | np.ndarray | image.Image):
        raise AndonError(
            f"the source is one {type(source).__name__}; expected a source, or an iterable of pictures. "
            "Use inspect for one image."
        )
    if isinstance(source, Source):
        return source
    if isinstance(source, Iterable):
        return Iterated(source)
    raise AndonError(
        f"the source is a {type(source).__name__}; expected a source, an iterable of pictures, or the path of a folder."
    )


def named(text: str, watch: bool = False, channels: int = 3, **folder: Any) -> Source:
    """Return the source that a text names: a folder, a video file, a camera's number or URL, `genicam:`,
    `simulated:FOLDER`.

    With `watch`, a folder waits for new files. With `channels` 1, cameras and videos with equal channels give gray
    pictures. `folder` are options of `Folder`. AndonError for any other text.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind == "genicam":
        return Live(GenICam(rest), text)
    if colon and kind == "simulated":
        return Live(Simulated(Path(rest)), text)
    if text.isdecimal() or "://" in text or (text.startswith("/dev/") and not files.is_file(text)):
        return Live(OpenCV(int(text) if text.isdecimal() else text, channels), f"camera {public(text)}")
    if files.is_folder(text):
        return Folder(Path(text), watch=watch, **folder)
    path = Path(text)
    if files.is_file(text) and path.suffix.lower() in VIDEOS:
        return Video(path, channels)
    if files.is_file(text) and path.suffix.lower() in SUFFIXES:
        raise AndonError(f"{text}: one picture; expected a folder, a video or a camera. Use `andon inspect` for it.")
    what = "not a video file" if files.is_file(text) else "no such file or folder"
    raise AndonError(
        f"{text}: {what}; expected a folder, a video ({', '.join(sorted(VIDEOS))}), the number or URL of a camera, "
        "genicam:, genicam:ADDRESS or simulated:FOLDER. Check the path."
    )

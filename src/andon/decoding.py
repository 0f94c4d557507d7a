"""A picture file's bytes and header → pixels, by OpenCV; what OpenCV does wrong is put right or refused here.

OpenCV 5.0, each with a test: colours of 16-bit TIFF come out garbled unless it is read UNCHANGED; TIFF with zero for
white is turned round at 8 bits and not at 16; colours of 8-bit TIFF are multiplied by alpha; 16-bit gray with alpha
comes out at 8 bits; gray stored as a palette comes out as colour; text PGM without a last line end does not come out;
orientation is applied under some flags and not under others; and damaged JPEG data is filled up with gray, of which
only libjpeg's word on stderr tells.
"""

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np

from andon.errors import ImageError
from andon.headers import Header
from andon.inspection import Pixels

# OpenCV's log repeats on stderr what the ImageErrors raised here say with the file's name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes, header: Header, name: str) -> tuple[Pixels, tuple[str, ...]]:
    """Decode to upright pixels (H, W, 1) or (H, W, 3) in RGB order, and say what was done that one might not expect.

    Errors: ImageError when the data is damaged.
    """
    if data[:2] in (b"P1", b"P2", b"P3"):
        data += b"\n"
    tiff = header.format == "TIFF"
    pixels, notes = _decoded(data, cv2.IMREAD_UNCHANGED if tiff else _PLAIN, name)
    if pixels is None or not _fits(pixels, header):
        kind = f"{header.depth}-bit {header.samples} {header.format}"
        raise ImageError(f"{name}: damaged, or a {kind} of a rare variety. Export it again as 8- or 16-bit PNG.")
    if header.alpha:
        notes.append("alpha dropped")
        if tiff and pixels.ndim == 3 and header.depth == 8 and pixels[..., -1].min() < 255:
            raise ImageError(
                f"{name}: TIFF with transparent pixels, whose colours are lost; expected an opaque picture. "
                "Export it without alpha."
            )
    if header.gray and pixels.ndim == 3:
        pixels = pixels[..., 0]
    elif not header.gray:
        pixels = cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)
    if header.inverted:
        pixels = ~pixels
    if header.maximum:
        notes.append(f"values up to {header.maximum} of 65535, kept as stored")
    if header.orientation > 1:
        notes.append(f"rotated by EXIF orientation {header.orientation}")
        if not tiff:  # libtiff has turned it
            pixels = _upright(pixels, header.orientation)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1)), tuple(notes)


_PLAIN = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
_STRAY = re.compile(r"Corrupt JPEG data: 1?\d extraneous bytes before marker 0xd9")  # some cameras' padding


def _decoded(data: bytes, flags: int, name: str) -> tuple[Any, list[str]]:
    try:
        with _overheard() as lines:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded: {error.err}. Copy or export it again.") from error
    stray = [line for line in lines if _STRAY.match(line)]
    damage = [line for line in lines if line.startswith(("Corrupt", "Premature", "libpng error")) and line not in stray]
    if damage:
        raise ImageError(f"{name}: damaged: {damage[0].strip()}. Copy or export it again.")
    return pixels, ["stray bytes before its end ignored"] if stray else []


def _fits(pixels: Any, header: Header) -> bool:
    """Whether the decoder understood the file as its header reads."""
    turned = header.format == "TIFF" and header.orientation >= 5
    size = (header.width, header.height) if turned else (header.height, header.width)
    return (
        pixels.shape[:2] == size
        and pixels.itemsize * 8 == max(header.depth, 8)
        and (header.gray or (pixels.ndim == 3 and pixels.shape[2] >= 3))
    )


def _upright(pixels: Any, orientation: int) -> Any:
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


_stderr = threading.Lock()
_HEARD = (
    "Corrupt JPEG",
    "Premature end of JPEG",
    "Invalid SOS",
    "Inconsistent progression",
    "Warning: unknown",
    "libpng ",
)


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """Collect what libjpeg and libpng print to stderr, their only word on damaged data, and pass on all else."""
    heard: list[str] = []
    with _stderr, tempfile.TemporaryFile() as file:
        try:
            terminal = os.dup(2)
        except OSError:  # a service without stderr
            yield heard
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield heard
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            if file.seek(0, os.SEEK_END):
                file.seek(0)
                for line in file.read().decode(errors="replace").splitlines():
                    if line.startswith(_HEARD):
                        heard.append(line)
                    else:
                        os.write(2, f"{line}\n".encode())

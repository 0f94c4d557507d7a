"""The bytes and the header of a picture file → pixels, or an ImageError when data is missing or damaged.

Decoding is thread-safe and changes no state of the process. The decoders of OpenCV report damage on stderr or not at
all. Therefore each format is checked:

- JPEG: simplejpeg in strict mode, where every warning of libjpeg-turbo is an error.
- PNG: the data is inflated here, which checks its length and checksum, and passed to OpenCV uncompressed.
- TIFF: the size of every strip is checked before OpenCV decodes it (module tiff).
- BMP and PNM: decoded here, with NumPy.
- WebP: libwebp reports errors.

This module also corrects errors of OpenCV 5.0 in undamaged files, each with a test: 16-bit colour TIFF is wrong unless
it is read UNCHANGED; TIFF with zero for white is inverted at 8 bits and not at 16; colours of 8-bit TIFF are multiplied
by alpha; 16-bit gray with alpha becomes 8 bits; a gray palette becomes colour; some flags apply the orientation, others
do not.
"""

import re
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import simplejpeg

from andon.errors import ImageError, damaged, out_of_memory
from andon.inspection import Pixels
from andon.pictures import tiff
from andon.pictures.headers import Header, png_parts

# OpenCV's log on stderr repeats the ImageErrors of this module, without the name of the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes, header: Header, name: str, reduced: int = 1) -> tuple[Pixels, tuple[str, ...]]:
    """Decode to upright pixels (H, W, 1) or (H, W, 3) in RGB order; also return notes on conversions.

    `reduced`: 1, 2, 4 or 8; a JPEG is decoded to H / reduced, W / reduced if both are integers.

    Errors: ImageError when the data is damaged, MemoryError when there is not enough memory.
    """
    notes: list[str] = []
    try:
        if header.format == "JPEG":
            divisible = not (header.width % reduced or header.height % reduced)
            pixels = _jpeg(data, header, name, notes, reduced if divisible else 1)
        else:
            pixels = _DECODERS[header.format](data, header, name, notes)
    except cv2.error as error:
        if out_of_memory(error):
            raise MemoryError(f"{name}: {error.err}") from error
        raise damaged(name, error.err) from error
    if header.alpha:
        notes.append("alpha dropped")
    if header.inverted:
        pixels = ~pixels
    if header.maximum:
        if pixels.max() > header.maximum:
            raise damaged(name, f"a value of {pixels.max()}; its header states at most {header.maximum}")
        notes.append(f"values up to {header.maximum} of 65535, not rescaled")
    if header.orientation > 1:
        notes.append(f"rotated by EXIF orientation {header.orientation}")
        if header.format != "TIFF":  # libtiff has applied it
            pixels = _upright(pixels, header.orientation)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1)), tuple(notes)


_STRAY = re.compile(r"Corrupt JPEG data: 1?\d extraneous bytes before marker 0xd9")  # padding by some cameras


def _jpeg(data: bytes, header: Header, name: str, notes: list[str], reduced: int) -> Any:
    colours = "GRAY" if header.gray else "RGB"
    size = header.height // reduced, header.width // reduced
    scale = {"min_height": size[0], "min_width": size[1], "min_factor": reduced} if reduced > 1 else {}
    try:
        try:
            pixels = simplejpeg.decode_jpeg(data, colours, **scale)
        except ValueError as error:
            if not _STRAY.match(str(error)):
                raise
            notes.append("extra bytes before the end of the JPEG ignored")
            # This first warning is at the end of the data, so there is no damage before it.
            pixels = simplejpeg.decode_jpeg(data, colours, **scale, strict=False)
    except ValueError as error:
        if out_of_memory(error):
            raise MemoryError(f"{name}: {error}") from error
        raise damaged(name, str(error)) from None
    if pixels.shape[:2] != size:
        raise damaged(name, f"{pixels.shape[1]} × {pixels.shape[0]} pixels; its header states another size")
    return pixels


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _png(data: bytes, header: Header, name: str, notes: list[str]) -> Any:
    width, height, depth, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = []  # of each pass: rows, bytes of a row
    for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        across, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if across > 0 and rows > 0:
            passes.append((rows, 1 + (across * bits + 7) // 8))
    parts: dict[bytes, list[memoryview]] = {}
    for kind, body in png_parts(data, name):
        parts.setdefault(kind, []).append(body)
    expected = sum(rows * size for rows, size in passes)
    raw = tiff.inflate(b"".join(parts.get(b"IDAT", [])), expected)
    if raw is None or len(raw) != expected:
        what = (
            "is truncated or has a wrong checksum"
            if raw is None
            else f"contains {'more' if len(raw) > expected else len(raw)} bytes"
        )
        raise damaged(name, f"its compressed data {what}; expected {expected} bytes")
    at = 0
    for rows, size in passes:
        if max(raw[at : at + rows * size : size]) > 4:
            raise damaged(name, "a row has an unknown filter type")
        at += rows * size
    head = struct.pack(">IIBBBBB", width, height, depth, 0 if colour == 3 else colour, 0, 0, interlaced)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(raw, 0)), (b"IEND", b"")
    stored = data[:8] + b"".join(_chunk(*chunk) for chunk in chunks)
    if colour != 3:
        return _rgb(_opencv(stored, _PLAIN, header, name), header)
    # OpenCV decodes the indices as gray values, scaled to 0 to 255.
    indices = _opencv(stored, _PLAIN, header._replace(samples="gray"), name) // (255 // ((1 << depth) - 1))
    return _coloured(indices, np.frombuffer(parts[b"PLTE"][0], np.uint8).reshape(-1, 3), header, name)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


def _coloured(indices: Any, palette: Any, header: Header, name: str) -> Any:
    """Convert indices (H, W) to the colours of a palette (n, 3), RGB."""
    if indices.max() >= len(palette):
        raise damaged(name, f"colour {indices.max()} of a palette of {len(palette)}")
    table = np.zeros((256, 1, 3), np.uint8)
    table[: len(palette), 0] = palette
    return cv2.LUT(indices, table[:, 0, 0].copy()) if header.gray else cv2.LUT(cv2.merge([indices] * 3), table)


def _tiff(data: bytes, header: Header, name: str, notes: list[str]) -> Any:
    tiff.check(data, name)
    pixels = _opencv(data, cv2.IMREAD_UNCHANGED, header, name)
    if header.alpha and pixels.ndim == 3 and header.depth == 8 and pixels[..., -1].min() < 255:
        raise ImageError(
            f"{name}: TIFF with transparent pixels, whose colours cannot be read; expected an opaque picture. "
            "Export it without alpha."
        )
    return _rgb(pixels, header)


def _webp(data: bytes, header: Header, name: str, notes: list[str]) -> Any:
    return _rgb(_opencv(data, _PLAIN, header, name), header)


def _bmp(data: bytes, header: Header, name: str, notes: list[str]) -> Any:
    (size,) = struct.unpack_from("<I", data, 14)
    (height,) = struct.unpack_from("<i", data, 22) if size > 12 else (header.height,)  # negative: top row first
    (bits,) = struct.unpack_from("<H", data, 28 if size > 12 else 24)
    stride = (header.width * bits + 31) // 32 * 4
    rows = np.frombuffer(data, np.uint8, stride * header.height, header.start).reshape(header.height, stride)
    rows = rows[:, : (header.width * bits + 7) // 8][:: -1 if height > 0 else 1]
    if bits == 24:
        return cv2.cvtColor(np.ascontiguousarray(rows).reshape(header.height, -1, 3), cv2.COLOR_BGR2RGB)
    if bits > 8:
        values = np.ascontiguousarray(rows).view(f"<u{bits // 8}")
        return np.dstack([_unmasked(values, mask) for mask in header.masks])
    indices = np.unpackbits(rows, axis=1).reshape(header.height, -1, bits)
    indices = np.packbits(indices, axis=2)[:, : header.width, 0] >> (8 - bits)
    entry = 3 if size == 12 else 4
    used = 0 if size == 12 else struct.unpack_from("<I", data, 46)[0]
    stored = data[14 + size : min(header.start, 14 + size + (used or 1 << bits) * entry)]
    palette = np.frombuffer(stored, np.uint8, len(stored) // entry * entry).reshape(-1, entry)[:, 2::-1]
    return _coloured(np.ascontiguousarray(indices), palette[:256], header, name)


def _unmasked(values: Any, mask: int) -> Any:
    """Return the bits selected by a mask, scaled to 0 to 255."""
    lowest = (mask & -mask).bit_length() - 1
    most = mask >> lowest
    spread = (((values & mask) >> lowest).astype(np.uint16) * 255 + most // 2) // most
    return spread.astype(np.uint8)


def _pnm(data: bytes, header: Header, name: str, notes: list[str]) -> Any:
    shape = (header.height, header.width, 1 if header.gray else 3)
    count, kind = header.height * header.width * shape[2], data[1:2]
    if kind in b"123":
        text = data[header.start :]
        if text.translate(None, b"0123456789 \t\n\v\f\r") or (kind != b"1" and re.search(rb"\d{6}", text)):
            raise damaged(name, "its values are not all numbers up to 65535")
        if kind == b"1":
            digits = text.translate(None, b" \t\n\v\f\r")
            values = (np.frombuffer(digits, np.uint8) - ord("0")).astype(np.uint32)
        else:
            values = np.fromstring(text, np.uint32, sep=" ")
        most = 1 if kind == b"1" else 255 if header.depth == 8 else 65535
        if len(values) < count:
            raise damaged(name, "the file ends before the end of the picture")
        if len(values) > count:
            raise damaged(name, f"{len(values)} values; its header states {count}")
        if values.max() > most:
            raise damaged(name, f"a value of {values.max()}; expected at most {most}")
        pixels = values.astype(np.uint8 if header.depth <= 8 else np.uint16).reshape(shape)
        return np.where(pixels, np.uint8(0), np.uint8(255)) if kind == b"1" else pixels
    if kind == b"4":
        line = (header.width + 7) // 8
        packed = np.frombuffer(data, np.uint8, line * header.height, header.start).reshape(header.height, line)
        return np.where(np.unpackbits(packed, axis=1, count=header.width), np.uint8(0), np.uint8(255))
    if header.depth == 8:
        return np.frombuffer(data, np.uint8, count, header.start).reshape(shape).copy()
    return np.frombuffer(data, ">u2", count, header.start).astype(np.uint16).reshape(shape)


_DECODERS = {"PNG": _png, "TIFF": _tiff, "WebP": _webp, "BMP": _bmp, "PNM": _pnm}

_PLAIN = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION


def _opencv(data: bytes, flags: int, header: Header, name: str) -> Any:
    """Decode with OpenCV and compare the result with the header."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        # OpenCV gives no reason. This allocation raises MemoryError if memory was the reason.
        np.empty((4, header.height, header.width, 4, max(header.depth, 8) // 8), np.uint8)
    if pixels is None or not _fits(pixels, header):
        kind = f"{header.depth}-bit {header.samples} {header.format}"
        raise ImageError(f"{name}: damaged, or an unsupported kind of {kind}. Export it again as 8- or 16-bit PNG.")
    return pixels


def _fits(pixels: Any, header: Header) -> bool:
    """Whether size, depth and channels of the decoded pixels match the header."""
    turned = header.format == "TIFF" and header.orientation >= 5
    size = (header.width, header.height) if turned else (header.height, header.width)
    return (
        pixels.shape[:2] == size
        and pixels.itemsize * 8 == max(header.depth, 8)
        and (header.gray or (pixels.ndim == 3 and pixels.shape[2] >= 3))
    )


def _rgb(pixels: Any, header: Header) -> Any:
    """Convert OpenCV's channels to gray or RGB, as in the header."""
    if header.gray:
        return pixels[..., 0] if pixels.ndim == 3 else pixels
    return cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)


def _upright(pixels: Any, orientation: int) -> Any:
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels

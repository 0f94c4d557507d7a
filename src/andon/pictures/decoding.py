"""A picture file's bytes and header → pixels, or an ImageError when anything of them is missing or damaged.

Decoding touches no state of the process: threads decode side by side, and a process may fork meanwhile. The decoders of
OpenCV report damage on stderr or not at all, so each format goes a way on which damage is an error:

- JPEG: simplejpeg in strict mode, where every warning of libjpeg-turbo is an error.
- PNG: the data is inflated here, which checks its length and checksum, and given to OpenCV as stored blocks.
- TIFF: every strip is measured before OpenCV decodes it (module tiff).
- BMP and PNM: read here, with NumPy.
- WebP: libwebp returns an error itself.

What OpenCV 5.0 gets wrong in a whole file is put right here, each with a test: colours of 16-bit TIFF come out garbled
unless it is read UNCHANGED; TIFF with zero for white is inverted at 8 bits and not at 16; colours of 8-bit TIFF are
multiplied by alpha; 16-bit gray with alpha comes out at 8 bits; gray stored as a palette comes out as colour;
orientation is applied under some flags and not under others.
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

# Set once, on import: OpenCV's log repeats on stderr what the ImageErrors raised here say with the file's name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes, header: Header, name: str, reduced: int = 1) -> tuple[Pixels, tuple[str, ...]]:
    """Decode to upright pixels (H, W, 1) or (H, W, 3) in RGB order, and say what was done that one might not expect.

    A JPEG whose sides are multiples of `reduced` (1, 2, 4 or 8) has H and W divided by it.

    Errors: ImageError when the data is damaged, MemoryError when memory does not suffice.
    """
    notes: list[str] = []
    try:
        if header.format == "JPEG":
            whole = not (header.width % reduced or header.height % reduced)
            pixels = _jpeg(data, header, name, notes, reduced if whole else 1)
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
        notes.append(f"values up to {header.maximum} of 65535, kept as stored")
    if header.orientation > 1:
        notes.append(f"rotated by EXIF orientation {header.orientation}")
        if header.format != "TIFF":  # libtiff has turned it
            pixels = _upright(pixels, header.orientation)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1)), tuple(notes)


_STRAY = re.compile(r"Corrupt JPEG data: 1?\d extraneous bytes before marker 0xd9")  # some cameras' padding


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
            notes.append("stray bytes before its end ignored")
            pixels = simplejpeg.decode_jpeg(
                data, colours, **scale, strict=False
            )  # that was the first complaint, at the very end
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
    passes = []  # rows, and the bytes of each
    for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        across, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if across > 0 and rows > 0:
            passes.append((rows, 1 + (across * bits + 7) // 8))
    parts: dict[bytes, list[memoryview]] = {}
    for kind, body in png_parts(data, name):
        parts.setdefault(kind, []).append(body)
    expected = sum(rows * size for rows, size in passes)
    raw = tiff.inflated(b"".join(parts.get(b"IDAT", [])), expected)
    if raw is None or len(raw) != expected:
        found = (
            "is cut or has a wrong checksum"
            if raw is None
            else f"holds {'more' if len(raw) > expected else len(raw)} bytes"
        )
        raise damaged(name, f"its compressed data {found}; expected {expected} bytes")
    at = 0
    for rows, size in passes:
        if max(raw[at : at + rows * size : size]) > 4:
            raise damaged(name, "a row is filtered in a way that does not exist")
        at += rows * size
    head = struct.pack(">IIBBBBB", width, height, depth, 0 if colour == 3 else colour, 0, 0, interlaced)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(raw, 0)), (b"IEND", b"")
    stored = data[:8] + b"".join(_chunk(*chunk) for chunk in chunks)
    if colour != 3:
        return _rgb(_opencv(stored, _PLAIN, header, name), header)
    # Indices are decoded as gray, which spans 0 to 255.
    indices = _opencv(stored, _PLAIN, header._replace(samples="gray"), name) // (255 // ((1 << depth) - 1))
    return _coloured(indices, np.frombuffer(parts[b"PLTE"][0], np.uint8).reshape(-1, 3), header, name)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


def _coloured(indices: Any, palette: Any, header: Header, name: str) -> Any:
    """Look the indices (H, W) up in a palette (n, 3) of RGB."""
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
            f"{name}: TIFF with transparent pixels, whose colours are lost; expected an opaque picture. "
            "Export it without alpha."
        )
    return _rgb(pixels, header)


def _webp(data: bytes, header: Header, name: str, notes: list[str]) -> Any:
    return _rgb(_opencv(data, _PLAIN, header, name), header)


def _bmp(data: bytes, header: Header, name: str, notes: list[str]) -> Any:
    (size,) = struct.unpack_from("<I", data, 14)
    (height,) = struct.unpack_from("<i", data, 22) if size > 12 else (header.height,)  # negative: the top row is first
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
    """Return the bits under a mask, spread over 0 to 255."""
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
            raise damaged(name, "something else than numbers up to 65535 among its values")
        if kind == b"1":
            digits = text.translate(None, b" \t\n\v\f\r")
            values = (np.frombuffer(digits, np.uint8) - ord("0")).astype(np.uint32)
        else:
            values = np.fromstring(text, np.uint32, sep=" ")
        most = 1 if kind == b"1" else 255 if header.depth == 8 else 65535
        if len(values) < count:
            raise damaged(name, "the file ends before its picture does")
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
    """Decode by OpenCV and hold the result against the header."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        # OpenCV gives no reason. Should this allocation fail, memory was the reason.
        np.empty((4, header.height, header.width, 4, max(header.depth, 8) // 8), np.uint8)
    if pixels is None or not _fits(pixels, header):
        kind = f"{header.depth}-bit {header.samples} {header.format}"
        raise ImageError(f"{name}: damaged, or a {kind} of a rare variety. Export it again as 8- or 16-bit PNG.")
    return pixels


def _fits(pixels: Any, header: Header) -> bool:
    """Whether the decoder understood the file as its header reads."""
    turned = header.format == "TIFF" and header.orientation >= 5
    size = (header.width, header.height) if turned else (header.height, header.width)
    return (
        pixels.shape[:2] == size
        and pixels.itemsize * 8 == max(header.depth, 8)
        and (header.gray or (pixels.ndim == 3 and pixels.shape[2] >= 3))
    )


def _rgb(pixels: Any, header: Header) -> Any:
    """Turn OpenCV's channels into those of the header: gray, or RGB."""
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

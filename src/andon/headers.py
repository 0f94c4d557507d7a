"""What a picture file says of itself, read without decoding a pixel: format, size, colour, depth, frames.

It stands before the decoder because the decoder is silent where a person wants to be told: it takes the first page of
a TIFF, the first frame of an animation, scales 16 bits to 8 in places, and would unpack a decompression bomb.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from andon.errors import ImageError


class Header(NamedTuple):
    """A picture file's own description of its pixels."""

    format: str  # PNG, JPEG, BMP, TIFF, WebP or PNM
    width: int  # pixels as stored, before the EXIF orientation is applied
    height: int
    samples: str  # gray, RGB, palette, gray palette, CMYK, YCbCr, …: as stored
    alpha: bool
    depth: int  # bits a sample, as stored
    kind: str = "unsigned"  # or signed, or float
    frames: int = 1
    orientation: int = 1  # EXIF, 1 to 8
    inverted: bool = False  # zero is white, and the decoder will not turn it round
    maximum: int = 0  # the largest value a sample may take where the file states one that does not fill the depth
    problem: str = ""  # why these pixels would be decoded wrongly

    @property
    def channels(self) -> int:
        """Samples a pixel, as stored: gray and palettes 1, RGB 3, CMYK 4, one more with alpha."""
        return {"RGB": 3, "YCbCr": 3, "CMYK": 4, "YCCK": 4}.get(self.samples, 1) + self.alpha

    @property
    def gray(self) -> bool:
        """Whether it reads as one channel; everything else reads as three."""
        return self.samples in {"gray", "gray palette"}


# fmt: off
SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm",
    ".pnm", ".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".exr", ".hdr", ".psd", ".svg", ".dng", ".cr2",
    ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".dcm",
})
# fmt: on
"""Names under which a person expects a picture, readable here or not."""

READABLE = "PNG, JPEG, BMP, TIFF, WebP or PGM/PPM"

_OTHERS: tuple[tuple[bytes, str], ...] = (
    (rb"GIF8[79]a", "GIF"),
    (rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "HEIC"),
    (rb"....ftypavi[fs]", "AVIF"),
    (rb"....ftypcrx", "camera RAW"),
    (rb"FUJIFILMCCD-RAW|II[RU]|IIRO|MMOR", "camera RAW"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?RADIANCE|#\?RGBE", "Radiance HDR"),
    (rb"8BPS", "Photoshop"),
    (rb"%PDF", "PDF"),
    (rb"P7|P[fF]\s", "PAM or PFM"),
    (rb"\0\0[\1\2]\0", "icon or Targa"),
    (rb".{128}DICM", "DICOM"),
    (rb"\x93NUMPY", "NumPy array"),
    (rb"PK\x03\x04", "zip archive"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG"),
    (rb"\s*<(!doctype html|html)", "HTML page"),
)


def header(data: bytes, name: str) -> Header:
    """Read the description of a whole file; an ImageError when it is not a picture, or is cut short or damaged."""
    if not data:
        _refuse(name, "an empty file; expected a picture", "Copy or export it again.")
    for magic, read in _READERS:
        if re.match(magic, data, re.DOTALL):
            try:
                return read(data, name)
            except (struct.error, IndexError, OverflowError):
                _cut(name, "its header is incomplete")
    for magic, other in _OTHERS:
        if re.match(magic, data[:1024], re.DOTALL | re.IGNORECASE):
            _refuse(name, f"{other} file; andon reads {READABLE}", "Convert it, for example to PNG.")
    start = data[:8].hex(" ")
    raise ImageError(f"{name}: not a picture (starts with {start}); andon reads {READABLE}. Check it, or remove it.")


def _refuse(name: str, found: str, remedy: str) -> NoReturn:
    raise ImageError(f"{name}: {found}. {remedy}")


def _cut(name: str, what: str) -> NoReturn:
    _refuse(name, f"truncated or damaged: {what}", "Copy or export it again.")


def _png(data: bytes, name: str) -> Header:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if colour not in (0, 2, 3, 4, 6):
        _cut(name, f"colour type {colour} does not exist")
    samples = {0: "gray", 2: "RGB", 3: "palette", 4: "gray", 6: "RGB"}[colour]
    alpha, frames, orientation, at, kind = colour in (4, 6), 1, 1, 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            _cut(name, "the file ends before its picture does")
        length, kind = struct.unpack_from(">I4s", data, at)
        body = memoryview(data)[at + 8 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if len(checksum) < 4:
            _cut(name, "the file ends before its picture does")
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            _cut(name, f"the checksum of its part {kind.decode('latin-1')} is wrong")
        if kind == b"PLTE" and colour == 3 and _is_gray(bytes(body), 3):
            samples = "gray palette"
        elif kind == b"tRNS":
            alpha = True
        elif kind == b"acTL":
            frames = int.from_bytes(body[:4], "big")
        elif kind == b"eXIf":
            orientation = _orientation(bytes(body))
        at += 12 + length
    return Header("PNG", width, height, samples, alpha, depth, frames=frames, orientation=orientation)


_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _jpeg(data: bytes, name: str) -> Header:
    at, orientation, adobe, frame = 2, 1, -1, None
    while True:
        found = _END_OF_SCAN.search(data, at)
        if found is None:
            _cut(name, "the file ends before its picture does")
        at = found.end()
        marker = data[at - 1]
        if marker == 0xD9:  # end of image; some cameras append more behind it
            break
        if marker in (0x01, 0xD8):
            continue
        (length,) = struct.unpack_from(">H", data, at)
        body = data[at + 2 : at + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack_from(">BHHB", body)
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _orientation(body[6:])
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) > 11:
            adobe = body[11]
        at += length
    if frame is None:
        _cut(name, "it holds no picture")
    depth, height, width, components = frame
    samples = {1: "gray", 3: "RGB" if adobe == 0 else "YCbCr", 4: "YCCK" if adobe == 2 else "CMYK"}.get(components, "?")
    problem = "CMYK without the Adobe mark that says whether it is inverted" if components == 4 and adobe < 0 else ""
    return Header("JPEG", width, height, samples, False, depth, orientation=orientation, problem=problem)


def _bmp(data: bytes, name: str) -> Header:
    offset, size = struct.unpack_from("<II", data, 10)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = used = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        (used,) = struct.unpack_from("<I", data, 46)
    if compression in (0, 3) and len(data) < offset + (width * bits + 31) // 32 * 4 * abs(height):
        _cut(name, "the file ends before its picture does")
    samples = "RGB"
    if bits <= 8:
        entry = 3 if size == 12 else 4
        palette = data[14 + size : 14 + size + (used or 1 << bits) * entry]
        samples = "gray palette" if _is_gray(palette, entry) else "palette"
    alpha = bits == 32 and size >= 56 and struct.unpack_from("<I", data, 66)[0] != 0
    return Header("BMP", width, abs(height), samples, alpha, min(bits, 8))


def _webp(data: bytes, name: str) -> Header:
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        _cut(name, "the file ends before its picture does")
    width = height = frames = 0
    alpha, orientation = False, 1
    for kind, at, length in _riff(data):
        if kind == b"VP8X":
            alpha = bool(data[at] & 0x10)
            width = 1 + int.from_bytes(data[at + 4 : at + 7], "little")
            height = 1 + int.from_bytes(data[at + 7 : at + 10], "little")
        elif kind == b"VP8 " and not width:
            width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, at + 6))
        elif kind == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", data, at + 1)
            width, height, alpha = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bool(bits >> 28 & 1)
        elif kind == b"EXIF":
            exif = data[at : at + length]
            orientation = _orientation(exif.removeprefix(b"Exif\0\0"))
        frames += kind == b"ANMF"
    return Header("WebP", width, height, "RGB", alpha, 8, frames=max(frames, 1), orientation=orientation)


def _riff(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, length
        at += 8 + length + length % 2


_PNM_NUMBER = re.compile(rb"(?:\s|#[^\n]*\n)+(\d{1,9})")


def _pnm(data: bytes, name: str) -> Header:
    kind, at, numbers = data[1] - ord("0"), 2, [0, 0, 1]
    for i in range(2 if kind in (1, 4) else 3):  # bitmaps state no maximum
        found = _PNM_NUMBER.match(data, at)
        if found is None:
            _cut(name, "its header is incomplete")
        numbers[i], at = int(found[1]), found.end()
    width, height, maximum = numbers
    channels = 3 if kind in (3, 6) else 1
    depth = 1 if kind in (1, 4) else 8 if maximum < 256 else 16
    if kind == 1:
        whole = len(re.findall(rb"[01]", data[at:])) >= width * height
    elif kind in (2, 3):
        whole = len(data[at:].split()) >= width * height * channels
    else:
        line = (width + 7) // 8 if kind == 4 else width * channels * depth // 8
        whole = len(data) > at + line * height
    if not whole:
        _cut(name, "the file ends before its picture does")
    full = maximum in (1, 255, 65535)
    return Header(
        "PNM", width, height, "RGB" if channels == 3 else "gray", False, depth, maximum=0 if full else maximum
    )


_TIFF_SAMPLES = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 32803: "camera RAW"}
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

Tags = dict[int, tuple[int, ...]]


def _tiff(data: bytes, name: str) -> Header:
    pages = list(_pages(data, name))
    tags = pages[0]
    photometric, samples_per_pixel = tags.get(262, (1,))[0], tags.get(277, (1,))[0]
    samples = _TIFF_SAMPLES.get(photometric, f"photometric {photometric}")
    if tags.get(254, (0,))[0] & 1 or 50706 in tags:  # the first page is a preview, or it is a digital negative
        samples = "camera RAW"
    depth = max(tags.get(258, (1,)))
    kind = {1: "unsigned", 2: "signed", 3: "float"}.get(tags.get(339, (1,))[0], "unsigned")
    colours = {"RGB": 3, "YCbCr": 3, "CMYK": 4}.get(samples, 1)
    if samples == "palette" and 320 in tags:
        third = len(tags[320]) // 3
        if tags[320][:third] == tags[320][third : 2 * third] == tags[320][2 * third :]:
            samples = "gray palette"
    offsets, lengths = tags.get(273, tags.get(324, ())), tags.get(279, tags.get(325, ()))
    if not offsets or any(o + n > len(data) for o, n in zip(offsets, lengths, strict=False)):
        _cut(name, "the file ends before its picture does")
    problem = ""
    if depth == 16 and samples_per_pixel > 1 and tags.get(284, (1,))[0] == 2:
        problem = "16-bit samples in separate planes"
    elif depth == 16 and samples_per_pixel == 2:
        problem = "16-bit gray with alpha"
    elif samples_per_pixel > colours + 1:
        problem = f"{samples_per_pixel} samples a pixel"
    return Header(
        "TIFF",
        tags.get(256, (0,))[0],
        tags.get(257, (0,))[0],
        samples,
        alpha=samples_per_pixel > colours,
        depth=depth,
        kind=kind,
        frames=sum(not page.get(254, (0,))[0] & 5 for page in pages[1:]) + 1,  # previews and masks are no pages
        orientation=tags.get(274, (1,))[0],
        inverted=photometric == 0 and depth == 16,
        problem=problem,
    )


def _pages(data: bytes, name: str) -> Iterator[Tags]:
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    word, count, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    (at,) = struct.unpack_from(order + word, data, 8 if big else 4)
    seen: set[int] = set()
    while at and at not in seen:
        if at >= len(data):
            _cut(name, "the file ends before its picture does")
        seen.add(at)
        (entries,) = struct.unpack_from(order + count, data, at)
        at += struct.calcsize(count)
        tags: Tags = {}
        for _ in range(entries):
            tag, kind, number = struct.unpack_from(order + "HH" + word, data, at)
            code = _TIFF_TYPES.get(kind, "")
            size = number * struct.calcsize("=" + code)
            if size:
                where = at + 4 + struct.calcsize(word)
                if size > struct.calcsize(word):
                    (where,) = struct.unpack_from(order + word, data, where)
                tags[tag] = struct.unpack_from(f"{order}{number}{code}", data, where)
            at += entry
        yield tags
        (at,) = struct.unpack_from(order + word, data, at)


def _orientation(exif: bytes) -> int:
    try:
        value = next(_pages(exif, "EXIF")).get(274, (1,))[0]
    except (struct.error, OverflowError, StopIteration, ImageError):
        return 1  # a damaged note beside the picture does not make the picture unreadable
    return value if 1 <= value <= 8 else 1


def _is_gray(palette: bytes, entry: int) -> bool:
    return palette[0::entry] == palette[1::entry] == palette[2::entry]


_READERS = (
    (rb"\x89PNG\r\n\x1a\n", _png),
    (rb"\xff\xd8\xff", _jpeg),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", _bmp),
    (rb"(II[\x2a\x2b]\0|MM\0[\x2a\x2b])", _tiff),
    (rb"RIFF.{4}WEBP", _webp),
    (rb"P[1-6][\s#]", _pnm),
)

"""Headers of picture files: format, size, colour, depth, frames, without decoding pixels.

Headers are checked first, because decoders are silent: they take the first page of a TIFF or the first frame of an
animation, reduce some 16-bit pictures to 8 bits, and unpack a decompression bomb.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from andon.errors import ImageError, damaged
from andon.pictures import tiff


class Header(NamedTuple):
    """The description of the pixels in a picture file."""

    format: str  # PNG, JPEG, BMP, TIFF, WebP or PNM
    width: int  # pixels as stored, before the EXIF orientation is applied
    height: int
    samples: str  # gray, RGB, palette, gray palette, CMYK, YCbCr, …: as stored
    alpha: bool
    depth: int  # bits per sample, as stored
    kind: str = "unsigned"  # or signed, or float
    frames: int = 1
    orientation: int = 1  # EXIF, 1 to 8
    inverted: bool = False  # zero is white, and the decoder does not invert it
    maximum: int = 0  # the largest value of a sample, if the file states one that is less than full scale
    problem: str = ""  # why these pixels would be decoded wrongly, and what is expected if not gray or RGB
    start: int = 0  # of BMP and PNM: offset of the pixels in bytes
    masks: tuple[int, ...] = ()  # of BMP: bit masks of red, green and blue in a pixel

    @property
    def channels(self) -> int:
        """Samples per pixel, as stored: gray and palettes 1, RGB 3, CMYK 4, one more with alpha."""
        return {"RGB": 3, "YCbCr": 3, "CMYK": 4, "YCCK": 4}.get(self.samples, 1) + self.alpha

    @property
    def gray(self) -> bool:
        """Whether the picture is read as gray; all others are read as RGB."""
        return self.samples in {"gray", "gray palette"}


# fmt: off
SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm",
    ".pnm", ".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".exr", ".hdr", ".psd", ".svg", ".dng", ".cr2",
    ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".dcm",
})
# fmt: on
"""Suffixes of picture files, supported or not."""

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
    """Read the header of a file. ImageError when it is no supported picture, or is truncated or damaged."""
    if not data:
        _refuse(name, "an empty file; expected a picture", "Copy or export it again.")
    for magic, read, _ in _READERS:
        if re.match(magic, data, re.DOTALL):
            try:
                return read(data, name)
            except (struct.error, LookupError, OverflowError, ValueError) as error:
                raise damaged(name, f"its header is invalid or incomplete: {error}") from None
    for magic, other in _OTHERS:
        if re.match(magic, data[:1024], re.DOTALL | re.IGNORECASE):
            _refuse(name, f"{other} file; andon reads {READABLE}", "Convert it, for example to PNG.")
    start = data[:8].hex(" ")
    raise ImageError(f"{name}: not a picture (starts with {start}); andon reads {READABLE}. Check it, or remove it.")


def suffix(data: bytes) -> str:
    """Return the usual suffix of the format of a file, by its first bytes; empty for an unknown format."""
    return next((usual for magic, _, usual in _READERS if re.match(magic, data, re.DOTALL)), "")


def _refuse(name: str, what: str, remedy: str) -> NoReturn:
    raise ImageError(f"{name}: {what}. {remedy}")


_CUT = "the file ends before the end of the picture"


_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def _png(data: bytes, name: str) -> Header:
    start, width, height, depth, colour, *methods = struct.unpack_from(">8sIIBBBBB", data, 8)
    if start != b"\0\0\0\x0dIHDR":
        raise damaged(name, "its first part is not IHDR")
    if depth not in _PNG_DEPTHS.get(colour, ()) or methods[:2] != [0, 0] or methods[2] > 1:
        raise damaged(name, f"colour type {colour} with {depth} bits and methods {methods} is not defined")
    samples = {0: "gray", 2: "RGB", 3: "palette", 4: "gray", 6: "RGB"}[colour]
    alpha, frames, orientation, colours = colour in (4, 6), 1, 1, 0
    kinds: set[bytes] = set()
    for kind, body in png_parts(data, name):
        if kind in kinds and kind in (b"IHDR", b"PLTE"):
            raise damaged(name, f"its part {kind.decode()} occurs twice")
        kinds.add(kind)
        if kind == b"PLTE" and colour == 3:
            colours = len(body) // 3
            if not 0 < len(body) <= 768 or len(body) % 3:
                raise damaged(name, f"its palette has {len(body)} bytes")
            if _is_gray(bytes(body), 3):
                samples = "gray palette"
        elif kind == b"tRNS":
            alpha = True
        elif kind == b"acTL":
            frames = int.from_bytes(body[:4], "big")
        elif kind == b"eXIf":
            orientation = _orientation(bytes(body)) or 1
        elif kind[0] < 0x60 and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise damaged(name, f"its critical part {kind.decode('latin-1')} is unknown")
    if colour == 3 and not colours:
        raise damaged(name, "it has no palette")
    return Header("PNG", width, height, samples, alpha, depth, frames=frames, orientation=orientation)


def png_parts(data: bytes, name: str) -> Iterator[tuple[bytes, memoryview]]:
    """Yield kind and content of each chunk of a PNG up to its end. ImageError when one is truncated or damaged."""
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise damaged(name, _CUT)
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise damaged(name, _CUT)
        body = memoryview(data)[at + 8 : end]
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end : end + 4], "big"):
            raise damaged(name, f"the checksum of its part {kind.decode('latin-1')} is wrong")
        yield kind, body
        at = end + 4


_MAX_SCANS = 500  # limits the decoding time; encoders write about ten
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _jpeg(data: bytes, name: str) -> Header:
    at, orientation, adobe, scans, frame, progressive = 2, 0, -1, 0, None, False
    missing: dict[int, list[int]] = {}  # component → number of missing bits of each coefficient
    while True:
        match = _END_OF_SCAN.search(data, at)
        if match is None:
            raise damaged(name, _CUT)
        at = match.end()
        marker = data[at - 1]
        if marker == 0xD9:  # end of image; some cameras append other data
            break
        if marker in (0x01, 0xD8):
            continue
        (length,) = struct.unpack_from(">H", data, at)
        body = data[at + 2 : at + length]
        if marker == 0xDA:
            scans += 1
            if scans > _MAX_SCANS:
                raise damaged(name, f"more than {_MAX_SCANS} scans")
            first, last, bits = body[-3:] if progressive else (0, 63, 0)
            for component in body[1 : 1 + 2 * body[0] : 2]:
                missing[component][first : last + 1] = [bits & 15] * (last + 1 - first)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = struct.unpack_from(">BHHB", body)
            progressive = marker & 3 == 2
            missing = {component: [16] * 64 for component in body[6 : 6 + 3 * frame[3] : 3]}
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = orientation or _orientation(body[6:])  # the first counts, as in OpenCV
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) > 11:
            adobe = body[11]
        at += length
    if frame is None:
        raise damaged(name, "it contains no picture")
    if any(map(any, missing.values())):
        raise damaged(name, "its last scans are missing")
    depth, height, width, components = frame
    samples = {1: "gray", 3: "RGB" if adobe == 0 else "YCbCr", 4: "YCCK" if adobe == 2 else "CMYK"}.get(components, "?")
    problem = "CMYK without an Adobe marker, so possibly inverted" if components == 4 and adobe < 0 else ""
    return Header("JPEG", width, height, samples, False, depth, orientation=orientation or 1, problem=problem)


_BMP_COMPRESSIONS = {1: "RLE", 2: "RLE", 4: "JPEG", 5: "PNG"}
_BMP_MASKS = {16: (0x7C00, 0x03E0, 0x001F), 32: (0xFF0000, 0xFF00, 0xFF)}  # defaults


def _bmp(data: bytes, name: str) -> Header:
    start, size = struct.unpack_from("<II", data, 10)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = used = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        (used,) = struct.unpack_from("<I", data, 46)
    problem, samples, masks, entry = "", "RGB", _BMP_MASKS.get(bits, ()), 3 if size == 12 else 4
    if bits not in (1, 4, 8, 16, 24, 32) or width <= 0:
        raise damaged(name, f"{bits} bits per pixel, {width} pixels wide")
    if compression in (3, 6) and masks and size != 64:
        masks = struct.unpack_from("<3I", data, 54)
        if _overlap(masks, bits):
            problem = f"colour masks {', '.join(f'{mask:#x}' for mask in masks)}"
    elif compression:
        problem = f"compression {compression} ({_BMP_COMPRESSIONS.get(compression, 'unknown')}); expected none"
    if not problem and len(data) < start + (width * bits + 31) // 32 * 4 * abs(height):
        raise damaged(name, _CUT)
    if bits <= 8:
        palette = data[14 + size : min(start, 14 + size + (min(used, 256) or 1 << bits) * entry)]
        samples = "gray palette" if _is_gray(palette, entry) else "palette"
    alpha = bits == 32 and (size >= 56 or compression == 6) and struct.unpack_from("<I", data, 66)[0] != 0
    return Header("BMP", width, abs(height), samples, alpha, min(bits, 8), problem=problem, start=start, masks=masks)


def _overlap(masks: tuple[int, ...], bits: int) -> bool:
    """Whether masks overlap, or are not contiguous runs of one to eight bits."""
    runs = all(re.fullmatch("0*1{1,8}0*", f"{mask:b}") for mask in masks)
    return not runs or sum(masks) != masks[0] | masks[1] | masks[2] or sum(masks) >> bits != 0


def _webp(data: bytes, name: str) -> Header:
    end = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < end:
        raise damaged(name, _CUT)
    width = height = frames = 0
    alpha, orientation = False, 1
    for kind, at, length in _riff(data[:end]):
        if at + length > end:
            raise damaged(name, f"its part {kind.decode('latin-1')} is truncated")
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
            orientation = _orientation(exif.removeprefix(b"Exif\0\0")) or 1
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
        match = _PNM_NUMBER.match(data, at)
        if match is None:
            raise damaged(name, "its header is incomplete")
        numbers[i], at = int(match[1]), match.end()
    width, height, maximum = numbers
    if not 0 < maximum < 65536:
        raise damaged(name, f"values up to {maximum}; expected at most 65535")
    channels = 3 if kind in (3, 6) else 1
    depth = 1 if kind in (1, 4) else 8 if maximum < 256 else 16
    if kind > 3:
        end = at + 1 + height * ((width * channels * depth + 7) // 8)
        if len(data) < end:
            raise damaged(name, _CUT)
        if data[end:].strip(b"\0\t\n\r "):  # converted line ends, a wrong header, or more pictures
            raise damaged(name, f"{len(data) - end} bytes after its picture; expected one picture per file")
    samples, maximum = "RGB" if channels == 3 else "gray", 0 if maximum in (1, 255, 65535) else maximum
    return Header("PNM", width, height, samples, False, depth, maximum=maximum, start=at + 1)


_TIFF_SAMPLES = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 32803: "camera RAW"}


def _tiff(data: bytes, name: str) -> Header:
    pages = tiff.pages(data)
    page = next(pages, None)
    if page is None:
        raise damaged(name, "it contains no picture")
    photometric, samples_per_pixel = page.value(262, 1), page.value(277, 1)
    samples = _TIFF_SAMPLES.get(photometric, f"photometric {photometric}")
    if page.value(254, 0) & 1 or 50706 in page:  # the first page is a preview, or the file is a digital negative
        samples = "camera RAW"
    depths = page.values(258, 16).tolist() or [1]
    depth = max(depths)
    kind = {1: "unsigned", 2: "signed", 3: "float"}.get(page.value(339, 1), "unsigned")
    colours = {"RGB": 3, "CMYK": 4}.get(samples, 1)
    if samples == "palette":
        palette = page.values(320, 3 << 8)
        third = len(palette) // 3
        if third < 1 << depth:
            raise damaged(name, f"its palette has {third} colours; expected {1 << depth}")
        if (palette[:third] == palette[third : 2 * third]).all() and (palette[:third] == palette[-third:]).all():
            samples = "gray palette"
    compression, predictor, orientation = page.value(259, 1), page.value(317, 1), page.value(274, 1)
    problem = ""
    if compression not in tiff.COMPRESSIONS:
        scheme = tiff.OTHER_COMPRESSIONS.get(compression, "unknown")
        problem = f"compression {compression} ({scheme}); expected none, LZW, Deflate or PackBits"
    elif predictor not in (1, 2) or (predictor == 2 and depth < 8):
        problem = f"predictor {predictor} at {depth} bits"
    elif predictor == 2 and compression not in tiff.PREDICTED:  # libtiff ignores it, other readers do not
        problem = f"predictor 2 under compression {tiff.COMPRESSIONS[compression]}; expected it under LZW or Deflate"
    elif page.value(266, 1) != 1:
        problem = "bits in reversed order"
    elif samples == "YCbCr":
        problem = "YCbCr colours"
    elif min(depths) != depth:
        problem = f"samples of {min(depths)} and {depth} bits"
    elif depth == 16 and samples_per_pixel > 1 and page.value(284, 1) == 2:
        problem = "16-bit samples in separate planes"
    elif depth == 16 and samples_per_pixel == 2:
        problem = "16-bit gray with alpha"
    elif samples_per_pixel > colours + 1:
        problem = f"{samples_per_pixel} samples per pixel"
    elif samples_per_pixel < colours:
        raise damaged(name, f"{samples_per_pixel} samples per pixel; expected {colours} for {samples}")
    return Header(
        "TIFF",
        page.value(256, 0),
        page.value(257, 0),
        samples,
        alpha=samples_per_pixel > colours,
        depth=depth,
        kind=kind,
        frames=sum(not other.value(254, 0) & 5 for other in pages) + 1,  # previews and masks do not count
        orientation=orientation if 1 <= orientation <= 8 else 1,
        inverted=photometric == 0 and depth == 16,
        problem=problem,
    )


def _orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data, 1 for an invalid one; 0 without one."""
    try:
        value = next(tiff.pages(exif)).value(274, 0)
    except (ValueError, OverflowError, StopIteration):
        return 0  # damaged EXIF data does not make the picture unreadable
    return value if 0 <= value <= 8 else 1


def _is_gray(palette: bytes, entry: int) -> bool:
    return palette[0::entry] == palette[1::entry] == palette[2::entry]


_READERS = (
    (rb"\x89PNG\r\n\x1a\n", _png, ".png"),
    (rb"\xff\xd8\xff", _jpeg, ".jpg"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", _bmp, ".bmp"),
    (rb"(II[\x2a\x2b]\0|MM\0[\x2a\x2b])", _tiff, ".tiff"),
    (rb"RIFF.{4}WEBP", _webp, ".webp"),
    (rb"P[1-6][\s#]", _pnm, ".pnm"),
)

"""Damage, odd varieties, limits and memory: each refused by name, or read right, whatever else the process does."""

import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from andon.errors import ImageError, out_of_memory
from andon.pictures import image
from andon.pictures import tiff as tiffs
from test_image import GRAY16, JPEG, PNG, RGB16, chunk, encoded, png

WAVES = (90 + 60 * np.sin(np.arange(96) / 7)[:, None] * np.cos(np.arange(96) / 5)).astype(np.uint8)  # (96, 96)
TEXTURE = np.clip(WAVES + np.random.default_rng(0).normal(0, 4, WAVES.shape), 0, 255).astype(np.uint8)


def strips(parts: list[bytes], compression: int, bits: int = 8, **changed: int) -> bytes:
    """A gray TIFF of 96 × 96 pixels in strips of equal height; `changed` sets the tag t<number>."""
    at, count = 8, len(parts)
    offsets = [at + sum(len(part) + len(part) % 2 for part in parts[:i]) for i in range(count)]
    lists = at + sum(len(part) + len(part) % 2 for part in parts)
    tags = {256: 96, 257: 96, 258: bits, 259: compression, 262: 1, 277: 1, 278: 96 // count}
    tags |= {int(name[1:]): value for name, value in changed.items()}
    entries = [(tag, 3, 1, value) for tag, value in tags.items()]
    entries += [
        (273, 4, count, lists if count > 1 else offsets[0]),
        (279, 4, count, lists + 4 * count if count > 1 else len(parts[0])),
    ]
    out = b"II*\0" + struct.pack("<I", lists + 8 * count) + b"".join(part + bytes(len(part) % 2) for part in parts)
    out += struct.pack(f"<{count}I", *offsets) + struct.pack(f"<{count}I", *map(len, parts))
    out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return out + bytes(4)


def deflated(pixels: np.ndarray, count: int = 4) -> list[bytes]:
    rows = len(pixels) // count
    return [zlib.compress(pixels[i : i + rows].tobytes()) for i in range(0, len(pixels), rows)]


def changed(parts: list[bytes], number: int, change: Callable[[bytes], bytes]) -> list[bytes]:
    return [change(part) if i == number - 1 else part for i, part in enumerate(parts)]


def zeros(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(30) + data[middle + 30 :]


def bmp(
    bits: int, compression: int, pixels: bytes, masks: tuple[int, ...] = (), size: int = 40, palette: int = 0
) -> bytes:
    """A BMP of 16 × 16 pixels, with a palette of so many reds."""
    head = struct.pack("<IiiHHIIiiII", size, 16, 16, 1, bits, compression, 0, 0, 0, palette, 0)
    head += struct.pack(f"<{len(masks)}I", *masks)
    head += bytes(max(0, size - len(head))) + bytes([0, 0, 255, 0]) * palette
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


LZW = encoded(".tif", TEXTURE)
RAW = [TEXTURE[i : i + 24].tobytes() for i in range(0, 96, 24)]
PACKED = [b"".join(bytes([95]) + row.tobytes() for row in TEXTURE[i : i + 24]) for i in range(0, 96, 24)]
ZIPPED, ZIPPED16 = deflated(TEXTURE), deflated(TEXTURE.astype(np.uint16) * 257)
PROGRESSIVE = encoded(".jpg", TEXTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
WEBP = encoded(".webp", np.dstack([TEXTURE] * 3), cv2.IMWRITE_WEBP_QUALITY, 80)


# ---------------------------------------------------------------------------------------------------------- damage


def wrong_checksum() -> bytes:
    data = bytearray(zlib.compress(bytes(17 * 8)))
    data[-1] ^= 1
    return PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 8, 8, 0, 0, 0, 0)) + chunk(b"IDAT", data) + PNG[-12:]


DAMAGED = {
    "zeros in a Deflate strip": (strips(changed(ZIPPED, 3, zeros), 8), "strip 3 of 4, compression 8 (Deflate), "),
    "old Deflate": (strips(changed(ZIPPED, 2, zeros), 32946), "strip 2 of 4, compression 32946 (Deflate), "),
    "cut Deflate strip": (strips(changed(ZIPPED, 4, lambda part: part[:-9]), 8), "strip 4 of 4, compression 8"),
    "zeros in 16 bits": (strips(changed(ZIPPED16, 3, zeros), 8, 16), "strip 3 of 4, compression 8 (Deflate), "),
    "short Deflate strip": (
        strips(changed(ZIPPED, 1, lambda part: zlib.compress(bytes(9))), 8),
        "strip 1 of 4, compression 8 (Deflate), contains 9 bytes; expected 2304.",
    ),
    "long Deflate strip": (strips([zlib.compress(bytes(10**7)), *ZIPPED[1:]], 8), "strip 1 of 4, compression 8"),
    "zeros in LZW": (LZW[: len(LZW) // 3] + bytes(60) + LZW[len(LZW) // 3 + 60 :], "compression 5 (LZW), cannot be"),
    "LZW without a clear": (strips([bytes(900)], 5), "strip 1 of 1, compression 5 (LZW), cannot be decompressed"),
    "cut PackBits": (strips(changed(PACKED, 2, lambda part: part[:-5]), 32773), "strip 2 of 4, compression 32773"),
    "short PackBits": (
        strips(changed(PACKED, 2, lambda part: part[:-97]), 32773),
        "contains 2208 bytes; expected 2304.",
    ),
    "short raw strip": (
        strips(changed(RAW, 2, lambda part: part[:-5]), 1),
        "strip 2 of 4, compression 1 (none), contains",
    ),
    "too few strips": (strips(ZIPPED, 8, t278=12), "4 strips with 4 lengths; expected 8"),
    "JPEG 2000 in TIFF": (
        strips(ZIPPED, 34712),
        "TIFF with compression 34712 (JPEG 2000); expected none, LZW, Deflate",
    ),
    "JPEG in TIFF": (strips(ZIPPED, 7), "TIFF with compression 7 (JPEG); expected none, LZW, Deflate or PackBits."),
    "fax in TIFF": (strips(ZIPPED, 4), "TIFF with compression 4 (CCITT fax); expected none"),
    "unknown compression": (strips(ZIPPED, 65000), "TIFF with compression 65000 (unknown); expected none"),
    "unknown predictor": (strips(ZIPPED, 8, t317=5), "TIFF with predictor 5 at 8 bits; expected"),
    "predictor with PackBits": (strips(PACKED, 32773, t317=2), "TIFF with predictor 2 under compression PackBits; exp"),
    "predictor without compression": (strips(RAW, 1, t317=2), "TIFF with predictor 2 under compression none; expected"),
    "bits in reverse": (strips(RAW, 1, t266=2), "TIFF with bits in reversed order"),
    "PNG with a wrong checksum within": (
        wrong_checksum(),
        "damaged: its compressed data is truncated or has a wrong checksum",
    ),
    "PNG with a colour too many": (
        png([bytes([5] * 16)] * 8, 16, 8, 3, chunk(b"PLTE", bytes(9))),
        "damaged: colour 5 of a palette of 3.",
    ),
    "PNG without palette": (png([bytes(16)] * 8, 16, 8, 3), "damaged: it has no palette."),
    "PNG of an unknown kind": (
        PNG[:33] + chunk(b"ABCD", b"") + PNG[33:],
        "its critical part ABCD is unknown",
    ),
    "PNG filtered in an unknown way": (
        PNG[:8]
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 8, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress((b"\7" + bytes(16)) * 8))
        + PNG[-12:],
        "damaged: a row has an unknown filter type.",
    ),
    "cut JPEG with an end": (JPEG[: len(JPEG) // 2] + b"\xff\xd9", "damaged: Corrupt JPEG data: premature end"),
    "cut progressive JPEG": (PROGRESSIVE[: len(PROGRESSIVE) // 2] + b"\xff\xd9", "damaged: "),
    "progressive JPEG without its last scan": (
        PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + b"\xff\xd9",
        "damaged: its last scans are missing.",
    ),
    "JPEG with a wrong height": (JPEG.replace(b"\0@\0@", b"\0\x20\0@", 1), "damaged: Corrupt JPEG data: "),
    "WebP cut inside": (
        b"RIFF" + struct.pack("<I", len(WEBP) // 2 - 8) + WEBP[8 : len(WEBP) // 2],
        "damaged: its part VP8  is truncated.",
    ),
    "BMP with a colour too many": (bmp(8, 0, b"\x09" * 256, palette=4), "damaged: colour 9 of a palette of 4."),
    "BMP in run lengths": (bmp(8, 1, b"\x10\5\0\0" * 16, palette=256), "BMP with compression 1 (RLE); expected none."),
    "BMP with masks of 10 bits": (
        bmp(32, 3, bytes(1024), (0x3FF00000, 0xFFC00, 0x3FF)),
        "BMP with colour masks 0x3ff00000, 0xffc00, 0x3ff; expected gray or RGB.",
    ),
    "BMP with masks that overlap": (bmp(32, 3, bytes(1024), (0xFF, 0xFF, 0xFF00)), "BMP with colour masks 0xff, 0xff,"),
    "BMP with a mask beyond its bits": (bmp(16, 3, bytes(512), (0xFF0000, 0x7E0, 0x1F)), "BMP with colour masks"),
    "PGM beyond its maximum": (
        b"P5 8 8 1023\n" + b"\4\0" * 64,
        "damaged: a value of 1024; its header states at most 1023.",
    ),
    "text PGM beyond its maximum": (b"P2 8 8 255 " + b"300 " * 64, "damaged: a value of 300; expected at most 255."),
    "text PGM with more values": (b"P2 8 8 255 " + b"30 " * 65, "damaged: 65 values; its header states 64."),
    "bitmap with more values": (b"P1 8 8 " + b"1 " * 65, "damaged: 65 values; its header states 64."),
    "two PGM in one": ((b"P5 8 8 255\n" + b"\7" * 64) * 2, "damaged: 75 bytes after its picture; expected one picture"),
    "PPM with line ends exchanged": (b"P6 8 8 255\n" + b"\7\r\n" * 65, "damaged: 3 bytes after its picture; expected"),
    "text PGM with text": (b"P2 8 8 255 " + b"x " * 64, "damaged: its values are not all numbers up to 65535"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_refused_by_name(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, message = DAMAGED[kind]
    with pytest.raises(ImageError) as error:
        image.read(data, "part.tif")
    assert str(error.value).startswith("part.tif: ")
    assert message in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (strips(ZIPPED, 8), TEXTURE),
        (strips(ZIPPED, 32946), TEXTURE),
        (strips(ZIPPED16, 8, 16), TEXTURE.astype(np.uint16) * 257),
        (strips(RAW, 1), TEXTURE),
        (strips(PACKED, 32773), TEXTURE),
        (LZW, TEXTURE),
        (encoded(".tif", GRAY16), GRAY16),
        (encoded(".tif", RGB16), RGB16),
        (strips([*ZIPPED[:3], zlib.compress(TEXTURE[72:].tobytes())], 8), TEXTURE),
    ],
)
def test_whole_tiffs_are_read_exactly(data: bytes, pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(image.read(data).pixels, pixels.reshape(*pixels.shape[:2], -1))


@pytest.mark.parametrize("side", [8, 61, 300])
@pytest.mark.parametrize("levels", [1, 3, 256])
def test_any_zeros_in_lzw_are_seen(side: int, levels: int) -> None:
    rng = np.random.default_rng(side)
    data = encoded(".tif", rng.integers(0, levels, (side, side)).astype(np.uint8))
    image.read(data)
    page = next(tiffs.pages(data))
    start, length = page.value(273, 0), page.value(279, 0)
    missed = 0
    for at in rng.integers(start, start + max(length - 20, 1), 20):
        spoiled = data[:at] + bytes(20) + data[at + 20 :]
        if spoiled != data:
            try:
                image.read(spoiled)
                missed += 1
            except ImageError:
                pass
    assert missed <= 2  # a byte that another encoder could have written


# ----------------------------------------------------------------------------------------------- BMP by its masks

RED = {
    "32 bits, blue first": bmp(32, 3, struct.pack("<I", 0xFF0000) * 256, (0xFF0000, 0xFF00, 0xFF)),
    "32 bits, red first": bmp(32, 3, struct.pack("<I", 0xFF) * 256, (0xFF, 0xFF00, 0xFF0000)),
    "32 bits, high": bmp(32, 3, struct.pack("<I", 0xFF000000) * 256, (0xFF000000, 0xFF0000, 0xFF00)),
    "32 bits, none stated": bmp(32, 0, struct.pack("<I", 0xFF0000) * 256),
    "16 bits, 565": bmp(16, 3, struct.pack("<H", 0xF800) * 256, (0xF800, 0x7E0, 0x1F)),
    "16 bits, 555": bmp(16, 3, struct.pack("<H", 0x7C00) * 256, (0x7C00, 0x3E0, 0x1F)),
    "16 bits, none stated": bmp(16, 0, struct.pack("<H", 0x7C00) * 256),
    "header of 56 bytes": bmp(32, 3, struct.pack("<I", 0xFF) * 256, (0xFF, 0xFF00, 0xFF0000, 0), 56),
    "header of 108 bytes": bmp(32, 3, struct.pack("<I", 0xFF) * 256, (0xFF, 0xFF00, 0xFF0000, 0), 108),
    "header of 124 bytes": bmp(32, 3, struct.pack("<I", 0xFF) * 256, (0xFF, 0xFF00, 0xFF0000, 0), 124),
    "24 bits": bmp(24, 0, bytes([0, 0, 255]) * 256),
    "palette": bmp(8, 0, bytes(256), palette=2),
    "palette of 4 bits": bmp(4, 0, bytes(128), palette=16),
    "palette of 1 bit": bmp(1, 0, bytes(64), palette=2),
}


@pytest.mark.parametrize("kind", RED)
def test_bmp_is_read_by_its_masks(kind: str) -> None:
    read = image.read(RED[kind])
    assert read.notes == ()
    np.testing.assert_array_equal(read.pixels, np.full((16, 16, 3), (255, 0, 0)))


def test_bmp_with_alpha_is_read_and_reported() -> None:
    masks = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    for data in (
        bmp(32, 3, struct.pack("<I", 0xFF) * 256, masks, 108),
        bmp(32, 6, struct.pack("<I", 0xFF) * 256, masks),
    ):
        read = image.read(data)
        assert read.pixels[0, 0].tolist() == [255, 0, 0] and read.notes == ("alpha dropped",)


# ------------------------------------------------------------------------------------------------------- limits


def overlapping(tags: int, size: int) -> bytes:
    """A TIFF directory whose tags all hold the same `size` bytes, as bytes."""
    entries = b"".join(struct.pack("<HHII", 256 + i, 1, size, 8) for i in range(tags))
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4 + size)


@pytest.mark.parametrize(
    "data",
    [
        overlapping(100, 60_000),
        PNG[:33] + chunk(b"eXIf", overlapping(100, 60_000)) + PNG[33:],
        JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 60_008) + b"Exif\0\0" + overlapping(100, 58_000)[:60_000] + JPEG[2:],
        b"P2 20000 20000 255\n" + b"1 " * 100_000,
        b"P6 99999999 99999999 255\n" + bytes(60_000),
        strips([bytes(9)], 1, t256=60000, t257=60000, t278=1),
    ],
    ids=["TIFF", "EXIF of PNG", "EXIF of JPEG", "text PGM", "PPM", "strips"],
)
def test_limits_are_checked_before_anything_is_parsed(data: bytes) -> None:
    tracemalloc.start()
    try:
        image.read(data)
    except ImageError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2_000_000  # 48 MB of Python objects once


def test_pages_and_tags_have_limits() -> None:
    page = struct.pack("<HHHIII", 1, 256, 4, 1, 96, 0)  # one tag; `next` is set below
    chain = b"II*\0" + struct.pack("<I", 8)
    for i in range(2 * tiffs.MAX_PAGES):
        chain += page[:-4] + struct.pack("<I", 8 + (i + 1) * len(page))
    for data in (chain, b"II*\0" + struct.pack("<IH", 8, 60_000) + bytes(800_000)):
        with pytest.raises(ImageError, match="its header is invalid or incomplete"):
            image.read(data)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    with path.open("wb") as file:
        file.write(b"II*\0")
        file.truncate(image.MAX_BYTES + 1)
    with pytest.raises(ImageError, match=r"sparse.tif: 1,024 MiB; expected at most 1,024 MiB. Check the file"):
        image.read(path)


# ------------------------------------------------------------------------------------- nothing of the process is used


def test_a_complaining_decoder_elsewhere_does_not_touch_a_whole_picture() -> None:
    jpeg = bytearray(encoded(".jpg", np.tile(TEXTURE, (5, 6)), cv2.IMWRITE_JPEG_RST_INTERVAL, 8))
    at = jpeg.find(b"\xff\xd3")
    jpeg[at:at] = b"\x11\x22"
    frame, done = np.frombuffer(bytes(jpeg), np.uint8), threading.Event()

    def grab() -> None:
        while not done.is_set():
            cv2.imdecode(frame, cv2.IMREAD_COLOR)

    thread = threading.Thread(target=grab)
    thread.start()
    try:
        for _ in range(100):
            image.read(PNG)
    finally:
        done.set()
        thread.join()


ALONE = """
import os, sys
os.environ["TMPDIR"] = "/nonexistent"
from andon.pictures import image
for descriptor in (0, 1, 2):
    os.close(descriptor)
whole, cut = (open(path, "rb").read() for path in sys.argv[1:])
image.read(whole)
try:
    image.read(cut)
except image.ImageError:
    os._exit(17)
"""


def test_decoding_needs_no_temporary_folder_and_no_descriptors(tmp_path: Path) -> None:
    (tmp_path / "whole.jpg").write_bytes(JPEG)
    (tmp_path / "cut.jpg").write_bytes(JPEG[: len(JPEG) // 2] + b"\xff\xd9")
    command = [sys.executable, "-c", ALONE, tmp_path / "whole.jpg", tmp_path / "cut.jpg"]
    assert subprocess.run(command, timeout=60).returncode == 17


FORKS = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from andon.pictures import image
data = [open(path, "rb").read() for path in sys.argv[1:]]
done = threading.Event()
def decode():
    while not done.is_set():
        for each in data:
            image.read(each)
threads = [threading.Thread(target=decode) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
for _ in range(20):
    child = os.fork()
    if not child:
        for each in data:
            image.read(each)
        os._exit(0)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
done.set()
for thread in threads:
    thread.join()
sys.exit(any(codes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_children_decode_though_another_thread_decoded_at_the_fork(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.tif")]
    for path, data in zip(paths, (JPEG, encoded(".png", TEXTURE), LZW), strict=True):
        path.write_bytes(data)
    assert subprocess.run([sys.executable, "-c", FORKS, *paths], timeout=120).returncode == 0


# ------------------------------------------------------------------------------------------------ lack of memory

SHORT = """
import resource, sys
from andon.pictures import image
small, big = (open(path, "rb").read() for path in sys.argv[1:])
image.read(small)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 20 * 2**20, -1))
try:
    image.read(big)
except MemoryError:
    sys.exit(17)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits of memory as Linux sets them")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".ppm", ".webp"])
def test_lack_of_memory_is_not_damage(suffix: str, tmp_path: Path) -> None:
    small, big = tmp_path / f"small{suffix}", tmp_path / f"big{suffix}"
    for path, side in ((small, 64), (big, 4000)):
        path.write_bytes(encoded(suffix, np.zeros((side, side, 3), np.uint8)))
    done = subprocess.run([sys.executable, "-c", SHORT, small, big], timeout=120, capture_output=True, text=True)
    assert done.returncode == 17, done.stderr


def test_every_library_may_run_out_of_memory() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(cv2.error("OpenCV(5.0.0): Failed to allocate 768000000 bytes in function 'OutOfMemoryError'"))
    assert out_of_memory(OSError(12, "Cannot allocate memory"))
    assert out_of_memory(RuntimeError("Failed to allocate memory for requested buffer of size 16777216"))
    assert not out_of_memory(ValueError("a value of 7"))

"""Pictures as files really come: each read right, or refused with a message that says what to do."""

import base64
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andon import files
from andon.errors import AndonError, ImageError
from andon.pictures import image
from andon.pictures.image import Input

GRAY = np.add.outer(np.arange(12) * 20, np.arange(16)).astype(np.uint8)  # (12, 16), every pixel of its own value
RGB = np.dstack([GRAY, 255 - GRAY, GRAY // 2])  # (12, 16, 3)
GRAY16, RGB16 = GRAY.astype(np.uint16) * 256 + 7, RGB.astype(np.uint16) * 256 + 7

# 8 × 8 pixels, made with Pillow, which shows the first as (235, 51, 143).
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwACAQEBAQECAQEBAgICAgIEAwICAgIFBAQDBAYFBgYGBQYGBgcJCAYHCQcGBggLCAkKCgoKCgYICwwLCgwJ"
    "CgoK/8AAFAgACAAIBEMRAE0RAFkRAEsRAP/EABUAAQEAAAAAAAAAAAAAAAAAAAkH/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAA4EQwBNAFkASwAA"
    "PwB/BtrYax//2Q=="
)
ADOBE = CMYK_JPEG.index(b"\xff\xee")
YCCK_JPEG = CMYK_JPEG[: ADOBE + 15] + b"\x02" + CMYK_JPEG[ADOBE + 16 :]  # Pillow: (0, 0, 119)


def encoded(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, ordered, options)[1].tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows: list[bytes], width: int, depth: int, colour: int, *extra: bytes, height: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height or len(rows), depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + data + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, photometric: int, pages: int = 1, bits: int = 0, **changed: int) -> bytes:
    """A bare TIFF of one strip; `changed` sets the tag t<number>."""
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    tags = {256: pixels.shape[1], 257: pixels.shape[0], 258: bits or pixels.itemsize * 8, 259: 1, 262: photometric}
    tags |= {273: 8, 277: samples, 278: pixels.shape[0], 279: pixels.nbytes}
    tags |= {int(name[1:]): value for name, value in changed.items()}
    if samples == 2:
        tags[258] *= 65537  # two short numbers in one long
    elif samples > 2:  # a list of depths, placed behind the pixels
        tags[258] = 8 + pixels.nbytes
    depths = struct.pack(f"<{samples}H", *[pixels.itemsize * 8] * samples)
    body, at = pixels.tobytes() + depths, 8 + pixels.nbytes + len(depths)
    out = b"II*\0" + struct.pack("<I", at) + body
    for page in range(pages):
        out += struct.pack("<H", len(tags))
        for tag, value in sorted(tags.items()):
            count = samples if tag == 258 else 1
            out += struct.pack("<HHII", tag, 3 if tag == 258 else 4, count, value)
        out += struct.pack("<I", 0 if page == pages - 1 else len(out) + 4)
    return out


def exif(orientation: int) -> bytes:
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def webp(pixels: np.ndarray, flags: int, *extra: tuple[bytes, bytes]) -> bytes:
    """Lossless WebP with further chunks of even length."""
    height, width = pixels.shape[:2]
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    chunks = b"VP8X" + struct.pack("<II", 10, flags) + canvas
    chunks += encoded(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, 101)[12:]
    chunks += b"".join(kind + struct.pack("<I", len(body)) + body for kind, body in extra)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


# ---------------------------------------------------------------------------------------------- read as it was stored


@pytest.mark.parametrize("pixels", [GRAY, RGB, GRAY16, RGB16], ids=["gray8", "rgb8", "gray16", "rgb16"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".pgm", ".ppm"])
def test_lossless_formats_give_back_what_was_written(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    path = tmp_path / f"Prüfling 1.final{suffix.upper()}"
    depths, channels = image._FORMATS[suffix]
    if pixels.itemsize * 8 not in depths or (pixels.shape[2] if pixels.ndim == 3 else 1) not in channels:
        with pytest.raises(ImageError, match="cannot store"):
            image.write(path, pixels)
        return
    if suffix == ".webp":
        path.write_bytes(encoded(suffix, pixels, cv2.IMWRITE_WEBP_QUALITY, 101))
    else:
        image.write(path, pixels)
    read = image.read(path)
    assert read.pixels.dtype == pixels.dtype
    assert read.name == path.as_posix() and read.notes == ()
    np.testing.assert_array_equal(read.pixels, pixels.reshape(12, 16, -1))


def test_jpeg_is_close_and_keeps_gray_gray() -> None:
    smooth = np.tile(np.arange(40, 200, 5, dtype=np.uint8), (32, 1))
    assert np.abs(image.read(encoded(".jpg", smooth)).pixels[..., 0].astype(int) - smooth).max() <= 3
    colour = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    assert np.abs(image.read(encoded(".jpg", colour)).pixels.astype(int) - colour).max() <= 3


PALETTE = [b"\x01\x23" * 4] * 8  # rows of 16 indices of 4 bits: 0 1 2 3 …
COLOURS = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9]))
GRAYS = chunk(b"PLTE", bytes([0, 0, 0, 50, 50, 50, 100, 100, 100, 255, 255, 255]))
ODD_FILES: dict[str, tuple[bytes, object, tuple[str, ...]]] = {  # file, its first four pixels, notes
    "palette PNG": (png(PALETTE, 16, 4, 3, COLOURS), [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], ()),
    "gray palette PNG": (png(PALETTE, 16, 4, 3, GRAYS), [[0], [50], [100], [255]], ()),
    "palette PNG with alpha": (
        png(PALETTE, 16, 4, 3, COLOURS, chunk(b"tRNS", b"\0")),
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]],
        ("alpha dropped",),
    ),
    "1-bit PNG": (png([b"\xa5\xa5"] * 8, 16, 1, 0), [[255], [0], [255], [0]], ()),
    "2-bit PNG": (png([b"\x1b" * 4] * 8, 16, 2, 0), [[0], [85], [170], [255]], ()),
    "gray PNG with alpha": (png([bytes([70, 9] * 16)] * 8, 16, 8, 4), [[70]] * 4, ("alpha dropped",)),
    "RGB PNG with alpha": (png([bytes([70, 80, 90, 0] * 16)] * 8, 16, 8, 6), [[70, 80, 90]] * 4, ("alpha dropped",)),
    "CMYK JPEG": (CMYK_JPEG, [[235, 52, 144]] * 4, ()),
    "YCCK JPEG": (YCCK_JPEG, [[1, 1, 120]] * 4, ()),
    "TIFF with zero for white, 8 bits": (tiff(GRAY, 0), 255 - GRAY[0, :4, None], ()),
    "TIFF with zero for white, 16 bits": (tiff(GRAY16, 0), 65535 - GRAY16[0, :4, None], ()),
    "16-bit RGB TIFF": (tiff(RGB16, 2), RGB16[0, :4], ()),
    "CMYK TIFF": (tiff(np.full((8, 8, 4), (0, 255, 255, 0), np.uint8), 5), [[255, 0, 0]] * 4, ()),
    "opaque TIFF with alpha": (tiff(np.dstack([RGB, GRAY | 255]), 2, t338=2), RGB[0, :4], ("alpha dropped",)),
    "text PGM without last line end": (b"P2 8 8 255 " + b" ".join([b"7"] * 64), [[7]] * 4, ()),
    "text PPM, 16 bits": (b"P3 8 8 65535\n" + b"1 2 300 " * 64, [[1, 2, 300]] * 4, ()),
    "bitmap PBM": (b"P4\n# scanned\n16 8\n" + b"\xa5\xa5" * 8, [[0], [255], [0], [255]], ()),
    "PGM of a 12-bit camera": (
        b"P5 8 8 4095\n" + b"\x0f\xff" * 64,
        [[4095]] * 4,
        ("values up to 4095 of 65535, not rescaled",),
    ),
    "JPEG with padding before its end": (
        encoded(".jpg", GRAY)[:-2] + bytes(9) + b"\xff\xd9",
        None,
        ("extra bytes before the end of the JPEG ignored",),
    ),
    "JPEG with more behind its end": (encoded(".jpg", GRAY) + b"more", None, ()),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_odd_files_are_read_as_a_person_sees_them(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, first, notes = ODD_FILES[kind]
    read = image.read(data, "odd")
    if first is not None:
        np.testing.assert_array_equal(read.pixels[0, :4], first)
    assert read.notes == notes
    assert capfd.readouterr().err == ""


STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # how a camera turns the upright picture
    1: lambda up: up,
    2: lambda up: up[:, ::-1],
    3: lambda up: up[::-1, ::-1],
    4: lambda up: up[::-1],
    5: lambda up: np.swapaxes(up, 0, 1),
    6: lambda up: np.rot90(up, 1),
    7: lambda up: np.rot90(np.swapaxes(up, 0, 1), 2),
    8: lambda up: np.rot90(up, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file", ["JPEG", "PNG", "TIFF", "TIFF 16", "WebP"])
def test_exif_orientation_is_applied(file: str, orientation: int) -> None:
    upright = RGB16 if file == "TIFF 16" else RGB
    if file == "JPEG":  # whose blocks blur; so smooth
        upright = np.dstack(
            [np.tile(np.linspace(0, 240, 16), (12, 1)), *[np.tile(np.linspace(0, 200, 12), (16, 1)).T] * 2]
        )
        upright = upright.astype(np.uint8)
    stored = np.ascontiguousarray(STORED[orientation](upright))
    if file == "PNG":
        data = encoded(".png", stored)
        data = data[:33] + chunk(b"eXIf", exif(orientation)) + data[33:]
    elif file == "JPEG":
        note = b"Exif\0\0" + exif(orientation)
        data = encoded(".jpg", stored, cv2.IMWRITE_JPEG_QUALITY, 100)
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(note)) + note + data[2:]
    elif file == "WebP":
        data = webp(stored, 0x08, (b"EXIF", exif(orientation)))
    else:
        data = tiff(stored, 2, t274=orientation)
    read = image.read(data)
    assert read.pixels.shape == upright.shape
    assert np.abs(read.pixels.astype(int) - upright).max() <= (12 if file == "JPEG" else 0)
    assert read.notes == ((f"rotated by EXIF orientation {orientation}",) if orientation > 1 else ())


@pytest.mark.parametrize(
    ("array", "expected", "notes"),
    [
        (GRAY, GRAY[..., None], ()),
        (GRAY16[..., None], GRAY16[..., None], ()),
        (RGB[:, ::-1], RGB[:, ::-1], ()),
        (np.dstack([RGB, GRAY]), RGB, ("alpha dropped",)),
        (GRAY16.astype(">u2"), GRAY16[..., None], ()),
        (GRAY.view(np.matrix), GRAY[..., None], ()),
    ],
)
def test_arrays_are_taken_as_they_are(array: np.ndarray, expected: np.ndarray, notes: tuple[str, ...]) -> None:
    read = image.read(array, "frame 7")
    np.testing.assert_array_equal(read.pixels, expected)
    assert (read.name, read.notes) == ("frame 7", notes)
    assert read.pixels.flags.c_contiguous and read.pixels.dtype.isnative


# ------------------------------------------------------------------------------- refused, with the message a user sees

JPEG = encoded(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
PNG = encoded(".png", GRAY)
ADVICE = "andon reads PNG, JPEG, BMP, TIFF, WebP or PGM/PPM. Convert it, for example to PNG."
CUT = "truncated or damaged: the file ends before the end of the picture. Copy or export it again."
SCALE = "expected 8 or 16 bits, unsigned. Scale it to 16-bit PNG by one fixed range for all images."
CONVERT = "expected gray or RGB. Convert it to 8- or 16-bit PNG."
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file; expected a picture. Copy or export it again."),
    "text": (b"Messung 17\n", "not a picture (starts with 4d 65 73 73 75 6e 67 20); andon reads"),
    "truncated PNG": (PNG[:-20], CUT),
    "PNG without its end": (PNG[:-12], CUT),
    "PNG with a wrong bit": (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "the checksum of its part IDAT is wrong."),
    "PNG with rows missing": (
        png([bytes(16)] * 8, 16, 8, 0, height=64),
        "damaged: its compressed data contains 136 bytes; expected 1088 bytes. Copy",
    ),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], CUT),
    "JPEG without its end": (JPEG[:-2], CUT),
    "JPEG with a hole": (JPEG[:1500] + bytes(500) + JPEG[2000:], "damaged: Corrupt JPEG data: "),
    "truncated BMP": (encoded(".bmp", RGB)[:-5], CUT),
    "truncated TIFF": (encoded(".tif", RGB)[:200], "truncated or damaged: "),
    "TIFF with its pixels missing": (tiff(GRAY, 1, t273=9999), CUT),
    "truncated WebP": (encoded(".webp", RGB)[:-5], CUT),
    "truncated PPM": (encoded(".ppm", RGB)[:-5], CUT),
    "truncated text PGM": (b"P2 8 8 255 1 2 3", CUT),
    "float TIFF": (tiff(GRAY.astype(np.float32), 1, t339=3), f"32-bit floating-point samples; {SCALE}"),
    "signed TIFF": (tiff(GRAY16.astype(np.int16), 1, t339=2), f"16-bit signed integer samples; {SCALE}"),
    "32-bit TIFF": (tiff(GRAY.astype(np.uint32), 1), f"32-bit unsigned integer samples; {SCALE}"),
    "12-bit TIFF": (tiff(GRAY16, 1, bits=12), "12-bit samples; expected 8 or 16 bits. Convert it to"),
    "12-bit JPEG": (JPEG.replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c"), "12-bit samples; expected 8 or"),
    "PGM of few values": (b"P5 8 8 15\n" + bytes(64), "values only up to 15; expected 255 or 65535."),
    "multi-page TIFF": (tiff(GRAY, 1, pages=3), "3 pages; expected one picture. Save each as a separate file."),
    "animated PNG": (
        png([bytes(16)] * 8, 16, 8, 0, chunk(b"acTL", struct.pack(">II", 2, 0))),
        "2 frames; expected one picture. Save each as a separate file.",
    ),
    "animated WebP": (
        webp(RGB, 0x02, *[(b"ANMF", bytes(16))] * 2),
        "2 frames; expected one picture. Save each as a separate file.",
    ),
    "GIF": (b"GIF89a" + bytes(20), f"GIF file; {ADVICE}"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(20), f"HEIC file; {ADVICE}"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="">', f"SVG file; {ADVICE}"),
    "Fuji RAW": (b"FUJIFILMCCD-RAW 0201", f"camera RAW file; {ADVICE}"),
    "DICOM": (bytes(128) + b"DICM", f"DICOM file; {ADVICE}"),
    "digital negative": (tiff(GRAY16, 32803), f"16-bit camera RAW TIFF; {CONVERT}"),
    "CIELAB TIFF": (tiff(RGB, 8), f"8-bit CIELAB TIFF; {CONVERT}"),
    "CMYK JPEG without mark": (CMYK_JPEG[:ADOBE] + CMYK_JPEG[ADOBE + 16 :], "JPEG with CMYK without an Adobe marker"),
    "transparent TIFF": (tiff(np.dstack([RGB, GRAY]), 2, t338=2), "TIFF with transparent pixels, whose colours"),
    "16-bit TIFF in planes": (tiff(RGB16, 2, t284=2), f"TIFF with 16-bit samples in separate planes; {CONVERT}"),
    "16-bit gray TIFF with alpha": (tiff(np.dstack([GRAY16] * 2), 1), f"TIFF with 16-bit gray with alpha; {CONVERT}"),
    "1 pixel wide": (
        png([b"\0"] * 50, 1, 8, 0),
        "1 × 50 pixels; expected at least 8 × 8. Check that the file is a photograph.",
    ),
    "decompression bomb": (
        png([bytes(8)], 60000, 8, 0, height=60000),
        "60000 × 60000 pixels; expected at most 250 megapixels. Cut it into pieces.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_files(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, message = REFUSED[kind]
    path = tmp_path / "teil 7.png"
    path.write_bytes(data)
    with pytest.raises(ImageError) as error:
        image.read(path)
    assert str(error.value).startswith(f"{path.as_posix()}: ")
    assert message in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            GRAY / 255,
            "array of float64; expected (H, W), (H, W, 1), (H, W, 3) in RGB order or (H, W, 4), uint8 or uint16.",
        ),
        (GRAY > 9, "array of bool;"),
        (np.ma.array(GRAY, mask=GRAY > 9), "masked array; expected (H, W), (H, W, 1)"),
        (RGB.transpose(2, 0, 1), "of shape (3, 12, 16); expected (H, W), (H, W, 1)"),
        (RGB.transpose(2, 0, 1), "Channels seem to come first: use array.transpose(1, 2, 0)."),
        (RGB[None], "array of shape (1, 12, 16, 3);"),
        (RGB[:, :, :2], "array of shape (12, 16, 2);"),
        (RGB[:1], "array of 16 × 1 pixels; expected at least 8 × 8."),
    ],
)
def test_refused_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError) as error:
        image.read(array, "camera 2")
    assert str(error.value).startswith("camera 2: ") and message in str(error.value)


def test_an_image_made_by_hand_is_checked_like_its_array() -> None:
    for digest in ("", "0" * 64):
        made = image.read(image.Image(GRAY16.astype(">u2"), "by hand", digest=digest))
        np.testing.assert_array_equal(made.pixels, GRAY16[..., None])
        with pytest.raises(ImageError, match=r"^by hand: array of float64; expected"):
            image.read(image.Image(GRAY / 255, "by hand", digest=digest))


def test_refused_sources(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone.png: no such file; expected a picture. Check the path."):
        image.read(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"a folder; expected one picture. Give the path of a file."):
        image.read(str(tmp_path))
    with pytest.raises(ImageError, match=r"a list; expected a path, the bytes of a file or a NumPy array."):
        image.read([[1, 2]])  # type: ignore[arg-type]


@given(st.sampled_from([*REFUSED, *ODD_FILES]), st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_damage_anywhere_is_an_image_error_or_an_image(kind: str, at: int, junk: bytes) -> None:
    data = (REFUSED | {name: (odd[0], "") for name, odd in ODD_FILES.items()})[kind][0]
    try:
        read = image.read(data[:at] + junk + data[at + len(junk) :], "x")
    except ImageError as error:
        assert str(error).startswith("x: ")
    else:
        assert read.pixels.ndim == 3 and read.pixels.shape[2] in (1, 3)


def test_reading_in_threads_keeps_each_complaint_with_its_file() -> None:
    hole = REFUSED["JPEG with a hole"][0]
    outcomes: list[bool] = []

    def reads(data: bytes, bad: bool) -> None:
        for _ in range(20):
            try:
                image.read(data)
                outcomes.append(not bad)
            except ImageError:
                outcomes.append(bad)

    threads = [threading.Thread(target=reads, args=pair) for pair in ((hole, True), (JPEG, False)) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 80


# -------------------------------------------------------------------------------------------- what a bundle lets in

BOTTLE = Input(channels=3, depth=8, size=(16, 12))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RGB16, "16-bit image; this bundle was trained on 8-bit images. Convert it, or retrain with 16-bit images."),
        (GRAY, "gray image; this bundle was trained on colour images. Convert it, or retrain with gray images."),
        (RGB[:, :9], "9 × 12 pixels; this bundle was trained on images of 16 × 12. Set the camera to this size"),
    ],
)
def test_a_bundle_refuses_other_images(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError) as error:
        image.accept(image.read(pixels, "bottle/017.png"), BOTTLE)
    assert str(error.value).startswith(f"bottle/017.png: {message}")


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([exif(6), exif(1)], 6),
        ([exif(1), exif(6)], 1),
        ([b"damaged ", exif(6)], 6),
        ([exif(6).replace(b"\x01\x12", b"\x01\x0f"), exif(6)], 6),
        ([b"damaged "], 1),
    ],
)
def test_of_several_orientations_of_a_jpeg_the_first_counts(segments: list[bytes], expected: int) -> None:
    """As in OpenCV, so that a picture is the same here and in the programs of others."""
    data = encoded(".jpg", np.zeros((16, 32, 3), np.uint8))
    notes = b"".join(b"\xff\xe1" + struct.pack(">H", 8 + len(each)) + b"Exif\0\0" + each for each in segments)
    data = data[:2] + notes + data[2:]
    shape = image.read(data).pixels.shape
    assert shape == cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape
    assert shape[:2] == ((32, 16) if expected == 6 else (16, 32))


def test_a_bundle_takes_its_own_and_any_size_if_it_says_so() -> None:
    image.accept(image.read(RGB), BOTTLE)
    image.accept(image.read(RGB[:, :9]), BOTTLE.model_copy(update={"size": None}))


def test_training_images_must_agree() -> None:
    gray, colour = Input(channels=1, depth=8, size=(20, 10)), Input(channels=3, depth=8, size=(20, 10))
    assert image.common_input({"a": gray, "b": gray}) == gray
    assert image.common_input({"a": gray, "b": gray.model_copy(update={"size": (9, 9)})}).size is None
    with pytest.raises(ImageError, match=r"^x.png: one of 3 8-bit gray and 1 8-bit colour images; .*remove x.png.$"):
        image.common_input({"a": gray, "x.png": colour, "b": gray, "c": gray})
    with pytest.raises(ImageError, match="no images"):
        image.common_input({})


# --------------------------------------------------------------------------------------------------------- writing


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.png"
    image.write(path, GRAY)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), files.writing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    with (
        monkeypatch.context() as patched,
        pytest.raises(AndonError, match=r"map.png: cannot be written: no space left"),
    ):
        patched.setattr(Path, "replace", _full)
        image.write(path, RGB)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _full(source: Path, target: Path) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("ask", [files.check_writable, lambda path: files.write(path, b"x")])
def test_places_that_cannot_be_written(tmp_path: Path, ask: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for place, message in (
        (tmp_path / "gone" / "a.png", "there is no folder"),
        (tmp_path, "it is a folder. Give the path of a file."),
        (tmp_path / "file" / "a.png", "there is no folder"),
    ):
        with pytest.raises(AndonError, match=message):
            ask(place)
    files.check_writable(tmp_path / "fine.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"'.foo' is no known picture format. Use one of .png"):
        image.write(tmp_path / "a.foo", GRAY)

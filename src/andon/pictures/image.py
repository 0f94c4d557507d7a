"""Bytes ↔ pixels: pictures are read upright, in RGB order, at their stored depth."""

import errno
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict

from andon import files
from andon.errors import ImageError
from andon.inspection import Pixels
from andon.pictures.decoding import decode
from andon.pictures.headers import Header, header
from andon.pictures.light import Light

MIN_SIDE = 8  # pixels
MAX_PIXELS = 250_000_000
MAX_BYTES = 1 << 30  # of a file


class Image(NamedTuple):
    """A picture, upright."""

    pixels: Pixels  # (H, W, c), c is 1 or 3 (RGB), uint8 or uint16
    name: str
    notes: tuple[str, ...] = ()  # conversions of the picture
    digest: str = ""  # SHA-256 of the file's bytes; of an array: see `_from_array`
    maximum: int = 0  # the largest value before `rescale`; 0: not rescaled
    corrected: bool = False  # whether its illumination is corrected
    frame: tuple[int, int] | None = None  # H, W of the file, if it was decoded at reduced scale

    @property
    def full(self) -> tuple[int, int]:
        """Height and width of the picture at full scale."""
        return self.frame or (self.pixels.shape[0], self.pixels.shape[1])


Source = str | Path | bytes | np.ndarray[Any, Any] | Image
"""Path of a file, contents of a file, pixels (H, W), (H, W, 1), (H, W, 3) in RGB order or (H, W, 4) with alpha, or an
`Image`."""


Range = Literal[1023, 4095, 16383]
"""The largest value of cameras with 10, 12 and 14 bits."""


class Input(BaseModel):
    """The kind of images that a bundle accepts: that of its training images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Literal[1, 3]
    depth: Literal[8, 16]  # bits per sample
    size: tuple[int, int] | None = None  # width, height in pixels; None: any
    order: Literal["RGB"] = "RGB"  # of three channels
    maximum: Range | None = None  # largest value of 16-bit samples that use fewer bits; None: 65535
    light: Light | None = None  # for illumination correction
    reduced: Literal[1, 2, 4, 8] = 1  # scale at which a JPEG is decoded: its sides are divided by this

    def __str__(self) -> str:
        size = f" of {_size(self.size)} pixels" if self.size else ""
        values = f" with values up to {self.maximum}" if self.maximum else ""
        light = f", illumination corrected ({self.light.kind})" if self.light else ""
        return f"{self.depth}-bit {_COLOUR[self.channels]} images{size}{values}{light}"


_COLOUR = {1: "gray", 3: "colour"}


def read(source: Source, name: str | None = None, reduced: int = 1, size: tuple[int, int] | None = None) -> Image:
    """Read a picture.

    EXIF orientation is applied. Palettes, 1-bit and CMYK pictures become gray or RGB with 8 bits. 16 bits stay 16.
    Alpha is dropped, with a note. Pixels and digest come from the same bytes, as a file is read once.

    name: the name of the picture in messages; default: its path.
    reduced: see `decode`; `Image.full` is the size of the file.
    size: expected width and height; a file of another size is an error and is not decoded.

    Errors: ImageError, starting with the name, for a picture that is damaged or cannot be read correctly.
    """
    if isinstance(source, Image):
        name = name or source.name
        if source.digest:
            return source._replace(pixels=_plain(_array(source.pixels, name)), name=name)
        array = _from_array(source.pixels, name)
        notes = (*source.notes, *array.notes)
        return array._replace(notes=notes, maximum=source.maximum, corrected=source.corrected)
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "array")
    data, name = contents(source, name)
    head = _checked(data, name)
    full = _upright(head)
    _check_dimensions(size, (full[1], full[0]), name)
    pixels, notes = decode(data, head, name, reduced)
    return Image(pixels, name, notes, files.digest(data), frame=full if pixels.shape[:2] != full else None)


def read_again(path: Path, digest: str, reduced: int = 1) -> Image:
    """Read a file again. ImageError when it has changed, so that its digest is not `digest`."""
    image = read(path, reduced=reduced)
    if image.digest != digest:
        raise ImageError(
            f"{image.name}: the file has changed: SHA-256 {image.digest[:12]}…; expected {digest[:12]}…, as at the "
            "first reading. Run the command again when no program writes to the folder."
        )
    return image


def shape(path: Path) -> tuple[int, int]:
    """Height and width of a picture file, upright, from its header. ImageError as `read`."""
    return _upright(_checked(*contents(path)))


def _upright(head: Header) -> tuple[int, int]:
    return (head.width, head.height) if head.orientation > 4 else (head.height, head.width)


def describe(image: Image) -> Input:
    """Return channels, depth and size of an image."""
    (height, width), channels = image.full, image.pixels.shape[2]
    return Input.model_validate(
        {"channels": channels, "depth": image.pixels.itemsize * 8, "size": (width, height)},
    )


def accept(image: Image, expected: Input) -> Image:
    """Prepare an image for a bundle: `rescale` and `correct_light`.

    Errors: ImageError when it differs from the training images in size, channels or depth.
    """
    actual = describe(image)
    if actual.depth != expected.depth:
        have, want = f"{actual.depth}-bit", f"{expected.depth}-bit"
    elif actual.channels != expected.channels:
        have, want = _COLOUR[actual.channels], _COLOUR[expected.channels]
    else:
        _check_dimensions(expected.size, actual.size, image.name)
        return correct_light(rescale(image, expected.maximum), expected.light)
    raise ImageError(
        f"{image.name}: {have} image; this bundle was trained on {want} images. "
        f"Convert it, or retrain with {have} images."
    )


def _check_dimensions(expected: tuple[int, int] | None, actual: tuple[int, int] | None, name: str) -> None:
    if expected and actual and actual != expected:
        raise ImageError(
            f"{name}: {_size(actual)} pixels; this bundle was trained on images of {_size(expected)}. "
            "Set the camera to this size, or retrain with input size 'any'."
        )


def rescale(image: Image, maximum: int | None) -> Image:
    """Rescale 16-bit samples from 0 … `maximum` to 0 … 65535; None or 65535: no change.

    Errors: ImageError for a sample above the maximum.
    """
    if image.pixels.dtype != np.uint16 or maximum in (None, 65535, image.maximum):
        return image
    highest = int(image.pixels.max())
    if highest > maximum:
        raise ImageError(
            f"{image.name}: values up to {highest}; expected at most {maximum}, as in the training images. "
            f"Set the camera to this range, or retrain with input.maximum = {used_range(highest, 1) or 65535}."
        )
    table = (np.arange(maximum + 1, dtype=np.uint32) * 65535 + maximum // 2) // maximum
    return image._replace(pixels=table.astype(np.uint16)[image.pixels], maximum=maximum)


def correct_light(image: Image, light: Light | None) -> Image:
    """Correct the illumination of an image; None: no change."""
    if light is None or image.corrected:
        return image
    pixels, note = light.correct(image.pixels)
    return image._replace(pixels=pixels, corrected=True, notes=(*image.notes, *([note] if note else [])))


def used_range(highest: int, bits: int) -> Range | None:
    """Return the range that 16-bit samples use, from the highest sample and the bitwise OR of all; None: 16 bits.

    If the two lowest bits of all samples are zero, the camera has shifted its values up, and they use 16 bits.
    """
    return next((top for top in get_args(Range) if highest <= top), None) if bits & 3 else None


def common_input(inputs: Mapping[str, Input]) -> Input:
    """Return the common kind of named images; its size is None if they differ in size.

    Errors: ImageError with counts and names when they differ in channels or depth.
    """
    kinds = Counter((i.depth, i.channels) for i in inputs.values())
    if len(kinds) > 1:
        counts = " and ".join(f"{n} {depth}-bit {_COLOUR[c]}" for (depth, c), n in kinds.most_common())
        rare = kinds.most_common()[-1][0]
        names = [name for name, i in inputs.items() if (i.depth, i.channels) == rare]
        raise ImageError(
            f"{names[0]}: one of {counts} images; all training images must have the same channels and depth. "
            f"Convert or remove {_few(names)}."
        )
    sizes = {i.size for i in inputs.values()}
    first = next(iter(inputs.values()), None)
    if first is None:
        raise ImageError("no images; expected at least one. Give a folder that contains pictures.")
    return first if len(sizes) == 1 else first.model_copy(update={"size": None})


def mixed_sizes(inputs: Mapping[str, Input]) -> list[str]:
    """Return a warning, with counts and names, for named training images of different sizes; none for one size."""
    sizes = Counter(_size(i.size) for i in inputs.values() if i.size).most_common()
    if len(sizes) < 2:
        return []
    rare = [name for name, i in inputs.items() if i.size and _size(i.size) != sizes[0][0]]
    counts = ", ".join(f"{n} of {size}" for size, n in sizes[:3]) + (", …" if len(sizes) > 3 else "")
    return [
        f"good images of different sizes: {counts} pixels; expected one size. So inspection takes any size, "
        "and does not notice a camera that is set to another one. Remove those that are not of the most frequent size "
        f"({_few(rare)}), or set input.size = 'any' if sizes may differ."
    ]


_FORMATS = {  # suffix: bits per sample, channels
    ".png": ((8, 16), (1, 3)),
    ".tif": ((8, 16), (1, 3)),
    ".tiff": ((8, 16), (1, 3)),
    ".pgm": ((8, 16), (1,)),
    ".ppm": ((8, 16), (3,)),
    ".bmp": ((8,), (1, 3)),
    ".jpg": ((8,), (1, 3)),
    ".jpeg": ((8,), (1, 3)),
    ".webp": ((8,), (3,)),
}


def write(path: str | Path, pixels: Pixels) -> None:
    """Write pixels, in any shape that `read` accepts, in the format of the path's suffix, completely or not at all.

    Errors: ImageError for a format that cannot store these pixels; AndonError when the file cannot be written.
    """
    path = Path(path)
    image = _from_array(pixels, str(path))
    kind, suffix = describe(image), path.suffix.lower()
    if suffix not in _FORMATS:
        raise ImageError(f"{path}: '{suffix}' is no known picture format. Use one of {', '.join(_FORMATS)}.")
    depths, channels = _FORMATS[suffix]
    if kind.depth not in depths or kind.channels not in channels:
        raise ImageError(f"{path}: {suffix} cannot store {kind.depth}-bit {_COLOUR[kind.channels]} pixels. Write .png.")
    files.write(path, _encode(image.pixels, suffix))


def png(pixels: Pixels) -> bytes:
    """Encode pixels (H, W, c), RGB, as PNG."""
    return _encode(pixels, ".png")


def _encode(pixels: Pixels, suffix: str) -> bytes:
    ordered = pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, ordered)[1].tobytes()


def contents(source: str | Path | bytes, name: str | None = None) -> tuple[bytes, str]:
    """Return the bytes of a picture file, unchecked, and its name. Errors: ImageError when it cannot be read."""
    if isinstance(source, bytes):
        _check_size(len(source), name or "image")
        return source, name or "image"
    if not isinstance(source, str | Path):
        raise ImageError(
            f"{name or 'image'}: a {type(source).__name__}; expected a path, the bytes of a file or a NumPy array. "
            "Pass one of these."
        )
    path = Path(source)
    name = name or path.as_posix()
    try:
        state = path.stat()
        if stat.S_ISDIR(state.st_mode):
            raise ImageError(f"{name}: a folder; expected one picture. Give the path of a file.")
        if not stat.S_ISREG(state.st_mode):
            raise ImageError(f"{name}: a pipe or device; expected a picture. Save it as a file, or pass its bytes.")
        _check_size(state.st_size, name)
        with path.open("rb") as file:
            return file.read(state.st_size), name  # without data that another program appends now
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; expected a picture. Check the path.") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", 0) == errno.ENOMEM:
            raise MemoryError(f"{name}: {error}") from error
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ImageError(f"{name}: cannot be read: {reason}. Check the path and its permissions.") from error


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise ImageError(
            f"{name}: {size / (1 << 20):,.0f} MiB; expected at most {MAX_BYTES >> 20:,} MiB. Check the file."
        )


def _checked(data: bytes, name: str) -> Header:
    """Read the header. ImageError for a picture that would be decoded wrongly, or that is too small or too large."""
    head = header(data, name)
    what, remedy = "", "Convert it to 8- or 16-bit PNG."
    if head.frames > 1:
        pages = "pages" if head.format == "TIFF" else "frames"
        what, remedy = f"{head.frames} {pages}; expected one picture", "Save each as a separate file."
    elif head.kind != "unsigned" or head.depth > 16:
        kind = "floating-point" if head.kind == "float" else f"{head.kind} integer"
        what = f"{head.depth}-bit {kind} samples; expected 8 or 16 bits, unsigned"
        remedy = "Scale it to 16-bit PNG by one fixed range for all images."
    elif head.samples not in _SAMPLES or (head.samples == "CMYK" and head.depth > 8):
        what = f"{head.depth}-bit {head.samples} {head.format}; expected gray or RGB"
    elif head.problem:
        what = f"{head.format} with {head.problem}" + ("" if "expected" in head.problem else "; expected gray or RGB")
    elif head.depth not in (1, 2, 4, 8, 16):
        what = f"{head.depth}-bit samples; expected 8 or 16 bits"
    elif 0 < head.maximum < 255:
        what = f"values only up to {head.maximum}; expected 255 or 65535"
    elif min(head.width, head.height) < MIN_SIDE:
        what = f"{head.width} × {head.height} pixels; expected at least {MIN_SIDE} × {MIN_SIDE}"
        remedy = "Check that the file is a photograph."
    elif head.width * head.height > MAX_PIXELS:
        what = f"{head.width} × {head.height} pixels; expected at most {MAX_PIXELS // 1_000_000} megapixels"
        remedy = "Cut it into pieces."
    if what:
        raise ImageError(f"{name}: {what}. {remedy}")
    return head


_SAMPLES = {"gray", "RGB", "YCbCr", "palette", "gray palette", "CMYK", "YCCK"}


def _from_array(pixels: np.ndarray[Any, Any], name: str) -> Image:
    """Check an array. Its digest is the SHA-256 of a line with shape and dtype, then of its bytes in C order."""
    pixels = _array(pixels, name)
    notes = ("alpha dropped",) if pixels.ndim == 3 and pixels.shape[2] == 4 else ()
    digest = files.digest(f"{pixels.shape} {pixels.dtype.str}\n".encode(), np.ascontiguousarray(pixels).data)
    return Image(_plain(pixels), name, notes, digest)


def _plain(pixels: np.ndarray[Any, Any]) -> Pixels:
    """Return an array as (H, W, c), without alpha, in native byte order."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :3]
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def _array(pixels: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """Check the type and the shape of an array. ImageError when it is no picture."""
    expected = "(H, W), (H, W, 1), (H, W, 3) in RGB order or (H, W, 4), uint8 or uint16"
    if isinstance(pixels, np.ma.MaskedArray):
        raise ImageError(
            f"{name}: masked array; expected {expected}. Fill it, and set the region of interest in the recipe."
        )
    pixels = np.asarray(pixels)  # np.matrix → array
    if pixels.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        remedy = "Scale to uint8 or uint16 by one fixed range for all images."
        raise ImageError(f"{name}: array of {pixels.dtype}; expected {expected}. {remedy}")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        first = pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4)
        remedy = "Channels seem to come first: use array.transpose(1, 2, 0)." if first else "Pass one image at a time."
        raise ImageError(f"{name}: array of shape {pixels.shape}; expected {expected}. {remedy}")
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"{name}: array of {width} × {height} pixels; expected at least {MIN_SIDE} × {MIN_SIDE}. "
            f"{'Channels seem to come first: use array.transpose(1, 2, 0).' if height in (1, 3, 4) else 'Check it.'}"
        )
    return pixels


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""Bytes ↔ pixels. Whatever comes out of here is what a person sees: upright, RGB, at the depth it was stored in."""

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
    notes: tuple[str, ...] = ()  # what was done to it that one might not expect
    digest: str = ""  # SHA-256 of the file's bytes; of an array: see `_from_array`
    maximum: int = 0  # of the range that its samples were `scaled` from; 0: they are as stored
    evened: bool = False  # whether its light was divided out
    frame: tuple[int, int] | None = None  # H, W of the file, where it was decoded at reduced scale

    @property
    def full(self) -> tuple[int, int]:
        """Height and width of the picture: its pixels, or those of its file."""
        return self.frame or (self.pixels.shape[0], self.pixels.shape[1])


Source = str | Path | bytes | np.ndarray[Any, Any] | Image
"""A file's path, a file's contents, pixels (H, W), (H, W, 1), (H, W, 3) in RGB order or (H, W, 4) with alpha, or an
image that was read already."""


Range = Literal[1023, 4095, 16383]
"""The highest value of cameras with 10, 12 and 14 bits."""


class Input(BaseModel):
    """The images a bundle takes: those it was trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Literal[1, 3]
    depth: Literal[8, 16]  # bits a sample
    size: tuple[int, int] | None = None  # width, height in pixels; None takes any
    order: Literal["RGB"] = "RGB"  # of three channels
    maximum: Range | None = None  # of 16-bit samples that use fewer bits; None: 65535
    light: Light | None = None  # whose difference in light is divided out
    reduced: Literal[1, 2, 4, 8] = 1  # by which a JPEG's sides are divided as it is decoded

    def __str__(self) -> str:
        size = f" of {_size(self.size)} pixels" if self.size else ""
        values = f" with values up to {self.maximum}" if self.maximum else ""
        light = f", their light divided out ({self.light.kind})" if self.light else ""
        return f"{self.depth}-bit {_COLOUR[self.channels]} images{size}{values}{light}"


_COLOUR = {1: "gray", 3: "colour"}


def read(source: Source, name: str | None = None, reduced: int = 1, size: tuple[int, int] | None = None) -> Image:
    """Read a picture.

    EXIF orientation is applied; palettes, 1-bit and CMYK pictures become gray or RGB at 8 bits; 16 bits stay 16;
    alpha is dropped and noted. `name` stands for the picture in messages; a path's is the path. A file is read once:
    pixels and digest come from the same bytes. `reduced`: see `decode`; `Image.full` stays the size of the file.
    `size`: width and height that a file must have; one of another size is not decoded.

    Errors: ImageError, beginning with the name, for all that would otherwise be read in part or wrongly.
    """
    if isinstance(source, Image):
        name = name or source.name
        if source.digest:
            return source._replace(pixels=_plain(_array(source.pixels, name)), name=name)
        made = _from_array(source.pixels, name)
        return made._replace(notes=(*source.notes, *made.notes), maximum=source.maximum, evened=source.evened)
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "array")
    data, name = contents(source, name)
    head = _checked(data, name)
    full = _upright(head)
    _expect_size(size, (full[1], full[0]), name)
    pixels, notes = decode(data, head, name, reduced)
    return Image(pixels, name, notes, files.digest(data), frame=full if pixels.shape[:2] != full else None)


def read_again(path: Path, digest: str, reduced: int = 1) -> Image:
    """Read a file that was read before. ImageError when it is not the same: its digest was `digest` then."""
    image = read(path, reduced=reduced)
    if image.digest != digest:
        raise ImageError(
            f"{image.name}: the file has changed: SHA-256 {image.digest[:12]}…; expected {digest[:12]}…, as when it "
            "was first read. Run the command again when nothing writes to the folder."
        )
    return image


def shape(path: Path) -> tuple[int, int]:
    """Height and width of a picture file, turned by its EXIF orientation, by its header. ImageError as `read`."""
    return _upright(_checked(*contents(path)))


def _upright(head: Header) -> tuple[int, int]:
    return (head.width, head.height) if head.orientation > 4 else (head.height, head.width)


def described(image: Image) -> Input:
    """What this image is, as an input."""
    (height, width), channels = image.full, image.pixels.shape[2]
    return Input.model_validate(
        {"channels": channels, "depth": image.pixels.itemsize * 8, "size": (width, height)},
    )


def accept(image: Image, expected: Input) -> Image:
    """Return an image as the graph takes it, `scaled` and `evened`.

    Errors: ImageError when it differs from the training images in size, channels or depth.
    """
    found = described(image)
    if found.depth != expected.depth:
        have, want = f"{found.depth}-bit", f"{expected.depth}-bit"
    elif found.channels != expected.channels:
        have, want = _COLOUR[found.channels], _COLOUR[expected.channels]
    else:
        _expect_size(expected.size, found.size, image.name)
        return evened(scaled(image, expected.maximum), expected.light)
    raise ImageError(
        f"{image.name}: {have} image; this bundle was trained on {want} images. "
        f"Convert it, or retrain with {have} images."
    )


def _expect_size(expected: tuple[int, int] | None, found: tuple[int, int] | None, name: str) -> None:
    if expected and found and found != expected:
        raise ImageError(
            f"{name}: {_size(found)} pixels; this bundle was trained on images of {_size(expected)}. "
            "Set the camera as it was for them, or retrain with input size 'any'."
        )


def scaled(image: Image, maximum: int | None) -> Image:
    """Spread 16-bit samples from 0 to `maximum` over all 16 bits; None or 65535 leaves them as they are.

    Errors: ImageError for a sample above the maximum.
    """
    if image.pixels.dtype != np.uint16 or maximum in (None, 65535, image.maximum):
        return image
    highest = int(image.pixels.max())
    if highest > maximum:
        raise ImageError(
            f"{image.name}: values up to {highest}; expected at most {maximum}, the range of the training images. "
            f"Set the camera as it was for them, or retrain with input.maximum = {in_use(highest, 1) or 65535}."
        )
    table = (np.arange(maximum + 1, dtype=np.uint32) * 65535 + maximum // 2) // maximum
    return image._replace(pixels=table.astype(np.uint16)[image.pixels], maximum=maximum)


def evened(image: Image, light: Light | None) -> Image:
    """Divide out by how the light of an image differs from that of good ones; None leaves it as it is."""
    if light is None or image.evened:
        return image
    pixels, note = light.divide(image.pixels)
    return image._replace(pixels=pixels, evened=True, notes=(*image.notes, *([note] if note else [])))


def in_use(highest: int, bits: int) -> Range | None:
    """Find the range that 16-bit samples use, from the highest and from all of them combined by OR; None: all.

    Samples whose two low bits are all zero have been shifted up by the camera, and use the whole range.
    """
    return next((top for top in get_args(Range) if highest <= top), None) if bits & 3 else None


def agree(inputs: Mapping[str, Input]) -> Input:
    """Find the one input of named images; its size is None where they differ in size.

    Errors: ImageError with counts and names when they differ in channels or depth.
    """
    kinds = Counter((i.depth, i.channels) for i in inputs.values())
    if len(kinds) > 1:
        counts = " and ".join(f"{n} {depth}-bit {_COLOUR[c]}" for (depth, c), n in kinds.most_common())
        rare = kinds.most_common()[-1][0]
        names = [name for name, i in inputs.items() if (i.depth, i.channels) == rare]
        raise ImageError(
            f"{names[0]}: one of {counts} images; training images must be alike in colour and depth. "
            f"Convert or remove {_few(names)}."
        )
    sizes = {i.size for i in inputs.values()}
    first = next(iter(inputs.values()), None)
    if first is None:
        raise ImageError("no images: expected at least one. Name a folder that holds pictures.")
    return first if len(sizes) == 1 else first.model_copy(update={"size": None})


_HOLDS = {  # suffix: bits a sample, channels
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
    """Write pixels as `read` takes them in the format that the path's suffix names, whole or not at all.

    Errors: ImageError for a suffix that cannot hold these pixels, AndonError when the place cannot be written to.
    """
    path = Path(path)
    image = _from_array(pixels, str(path))
    found, suffix = described(image), path.suffix.lower()
    if suffix not in _HOLDS:
        raise ImageError(f"{path}: no picture format is known by '{suffix}'. Use one of {', '.join(_HOLDS)}.")
    depths, channels = _HOLDS[suffix]
    if found.depth not in depths or found.channels not in channels:
        kind = f"{found.depth}-bit {_COLOUR[found.channels]}"
        raise ImageError(f"{path}: {kind} pixels, which {suffix} cannot hold. Write .png.")
    ordered = image.pixels if found.channels == 1 else cv2.cvtColor(image.pixels, cv2.COLOR_RGB2BGR)
    files.write(path, cv2.imencode(suffix, ordered)[1].tobytes())


def png(pixels: Pixels) -> bytes:
    """Encode pixels (H, W, c), RGB, without loss."""
    ordered = pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", ordered)[1].tobytes()


def contents(source: str | Path | bytes, name: str | None = None) -> tuple[bytes, str]:
    """The bytes of a picture's file, not looked into, and its name. Errors: ImageError when they cannot be read."""
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
            raise ImageError(f"{name}: a folder; expected one picture. Name a file in it.")
        if not stat.S_ISREG(state.st_mode):
            raise ImageError(f"{name}: a pipe or device; expected a picture. Save it as a file, or pass its bytes.")
        _check_size(state.st_size, name)
        with path.open("rb") as file:
            return file.read(state.st_size), name  # not what is written to it meanwhile
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
            f"{name}: {size / (1 << 20):,.0f} MiB; expected at most {MAX_BYTES >> 20:,} MiB. Is it a picture?"
        )


def _checked(data: bytes, name: str) -> Header:
    """Read the header and refuse what would come out wrong."""
    found = header(data, name)
    what, remedy = "", "Convert it to 8- or 16-bit PNG."
    if found.frames > 1:
        pages = "pages" if found.format == "TIFF" else "frames"
        what, remedy = f"{found.frames} {pages}; expected one picture", "Save each as its own file."
    elif found.kind != "unsigned" or found.depth > 16:
        kind = "floating-point" if found.kind == "float" else f"{found.kind} integer"
        what = f"{found.depth}-bit {kind} samples; expected 8 or 16 bits, unsigned"
        remedy = "Scale it to 16-bit PNG by one fixed range for all images."
    elif found.samples not in _SAMPLES or (found.samples == "CMYK" and found.depth > 8):
        what = f"{found.depth}-bit {found.samples} {found.format}; expected gray or RGB"
    elif found.problem:
        what = f"{found.format} with {found.problem}" + (
            "" if "expected" in found.problem else "; expected gray or RGB"
        )
    elif found.depth not in (1, 2, 4, 8, 16):
        what = f"{found.depth}-bit samples; expected 8 or 16 bits"
    elif 0 < found.maximum < 255:
        what = f"values only up to {found.maximum}; expected 255 or 65535"
    elif min(found.width, found.height) < MIN_SIDE:
        what = f"{found.width} × {found.height} pixels; expected at least {MIN_SIDE} × {MIN_SIDE}"
        remedy = "Check the file: this is no photograph."
    elif found.width * found.height > MAX_PIXELS:
        what = f"{found.width} × {found.height} pixels; expected at most {MAX_PIXELS // 1_000_000} megapixels"
        remedy = "Cut it into pieces."
    if what:
        raise ImageError(f"{name}: {what}. {remedy}")
    return found


_SAMPLES = {"gray", "RGB", "YCbCr", "palette", "gray palette", "CMYK", "YCCK"}


def _from_array(pixels: np.ndarray[Any, Any], name: str) -> Image:
    """Check an array. Its digest is the SHA-256 of a line with shape and dtype, then of its bytes in C order."""
    pixels = _array(pixels, name)
    notes = ("alpha dropped",) if pixels.ndim == 3 and pixels.shape[2] == 4 else ()
    digest = files.digest(f"{pixels.shape} {pixels.dtype.str}\n".encode(), np.ascontiguousarray(pixels).data)
    return Image(_plain(pixels), name, notes, digest)


def _plain(pixels: np.ndarray[Any, Any]) -> Pixels:
    """An array as (H, W, c), without alpha, in the byte order of the machine."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :3]
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def _array(pixels: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """Refuse an array that is no picture."""
    expected = "(H, W), (H, W, 1), (H, W, 3) in RGB order or (H, W, 4), uint8 or uint16"
    if isinstance(pixels, np.ma.MaskedArray):
        raise ImageError(f"{name}: masked array; expected {expected}. Fill it, and say where to look in the recipe.")
    pixels = np.asarray(pixels)  # a matrix is an array
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

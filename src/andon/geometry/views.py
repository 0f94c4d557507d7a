"""Settings of the geometry, and image → view.

A *view* is the inspected part of an image: registered to the reference if the recipe says so, then cropped, with all
pixels outside the region of interest set to gray, so that they affect no detector. It becomes either one resized tile
(`tiles = false`) or many tiles at native resolution (`tiles = true`), one at a time to limit memory.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from andon.errors import ImageError
from andon.geometry.registration import Matrix, NotFound, Reference, Register
from andon.inspection import Pixels, Registration
from andon.pictures import image

FAR = 1e6  # pixels: largest coordinate of a polygon
SIZE, LEAST_SIDE, STEP = 256, 64, 32  # pixels: default, minimum and divisor of the sides of the detector's input
AGREE, AGREEING = 0.1, 0.9  # the common aspect: this share of pictures has a logarithm closer than this
BETWEEN = 0.05  # a picture of a region has at most this share of pixels that are neither nearly black nor nearly white
SMALL = 0.01  # share of the picture: a smaller inspected area is probably a mistake
EMBEDDED = "data:image/png;base64,"


def _in_pixels(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Check a polygon. ValueError when all corners are on one line, or are relative to the size of the picture."""
    if all(0 <= value <= 1 for corner in corners for value in corner):
        raise ValueError(
            f"polygon {[list(corner) for corner in corners]} is smaller than one pixel; expected corners in pixels of "
            "the picture. If they are relative, multiply them by its width and height"
        )
    if cv2.contourArea(cv2.convexHull(np.array(corners, np.float32))) <= 0:
        raise ValueError(
            f"polygon {[list(corner) for corner in corners]} has no area; expected corners that are not on one line"
        )
    return corners


Coordinate = Annotated[float, Field(ge=-FAR, le=FAR, allow_inf_nan=False)]
Corner = Annotated[tuple[Coordinate, Coordinate], Field(strict=False)]  # TOML has lists
Polygon = Annotated[list[Corner], Field(min_length=3), AfterValidator(_in_pixels)]
Side = Annotated[int, Field(ge=LEAST_SIDE, le=65536, multiple_of=STEP)]
Mask = NDArray[np.bool_]
Points = NDArray[np.int32]  # (n, 2): x, y


def _polygons(value: Any) -> Any:
    """Check a list of lists of corners. ValueError with one message for the whole value."""
    if isinstance(value, str):
        raise ValueError(
            f"'{value}' is the path of a picture, which is allowed in a recipe file only; here use "
            f"region = embedded('{value}')"
        )
    if not isinstance(value, list):
        return value
    form = "expected a list of polygons, each a list of corners [x, y] in pixels: [[[0, 0], [90, 0], [90, 60]]]"
    if value and all(_is_number(item) for item in value):
        raise ValueError(f"{value[:8]} is a list of numbers; {form}. For a rectangle use crop = [x, y, width, height]")
    if value and all(_is_corner(item) for item in value):
        raise ValueError(f"{value[:4]} is a single polygon; {form}. Add one more pair of brackets")
    for polygon in value:
        if not isinstance(polygon, list) or not all(_is_corner(corner) for corner in polygon):
            raise ValueError(f"{str(polygon)[:80]} is no polygon; {form}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_corner(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(item) for item in value)


def _picture(value: str) -> str:
    """Check an embedded picture of a region. ValueError when it is not readable."""
    try:
        if value:
            _region(value)
    except ImageError as error:
        raise ValueError(str(error)) from None
    return value


def embedded(path: str | Path) -> str:
    """Read a picture of a region, white where images are inspected, and return it as text for `Geometry.region`.

    Errors: ImageError when it cannot be read, has alpha, nothing is white, or much is neither black nor white.
    """
    read = image.read(path)
    if "alpha dropped" in read.notes:
        raise ImageError(
            f"{path}: a region with alpha; expected white where the picture is inspected, on black, without alpha. "
            "Fill what is transparent with black, and save it without alpha."
        )
    pixels = read.pixels.max(axis=2)
    top = int(pixels.max())
    area = pixels > top / 2
    between = float(np.mean((pixels > top / 10) & (pixels < top * 0.9)))
    if between > BETWEEN:
        raise ImageError(
            f"{path}: {between:.0%} of its pixels are neither black nor white, as in a photograph; expected white "
            "where the picture is inspected, on black. Draw the region."
        )
    if not area.any():
        raise ImageError(f"{path}: nothing is white; expected white where the picture is inspected. Draw the region.")
    data = cv2.imencode(".png", area.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()
    return EMBEDDED + base64.b64encode(data).decode()


@lru_cache(maxsize=4)
def _region(text: str) -> Mask:
    """Decode the region (H, W) of an embedded picture. ImageError when it is not readable."""
    try:
        data = base64.b64decode(text.removeprefix(EMBEDDED), validate=text.startswith(EMBEDDED))
    except ValueError:
        raise ImageError("not a PNG picture as base64 text. Set include to the path of the picture") from None
    area: Mask = image.read(data, "picture of the region").pixels.max(axis=2) > 0
    area.flags.writeable = False
    return area


class Geometry(BaseModel):
    """The inspected area of an image, and the resolution.

    Lengths in pixels of the image, or of the reference image if parts are registered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: Annotated[int | None, Field(ge=LEAST_SIDE, le=4096, multiple_of=STEP)] = None
    """The detector's input has about size² pixels. Default: the value of the detector's preset, else 256."""
    aspect: Literal["free", "stretch", "keep"] = "free"
    """"free": the input has the aspect ratio of the pictures; "stretch": the input is square, pictures are stretched;
    "keep": the input is square, pictures keep their aspect ratio, border pixels are repeated."""
    shape: Annotated[tuple[Side, Side] | None, Field(strict=False)] = None
    """Height and width of the detector's input. Default with "free": computed from size and the good pictures."""
    crop: Annotated[tuple[int, int, int, int] | None, Field(strict=False)] = None
    """x, y, width, height."""
    include: Annotated[list[Polygon], BeforeValidator(_polygons)] = []
    """Polygons; only pixels inside one of them are inspected. Empty: all pixels. In a recipe file also the path of a
    picture, white where images are inspected; it is embedded as `region`."""
    region: Annotated[str, AfterValidator(_picture)] = ""
    """This picture as text, the result of `embedded`."""
    ignore: Annotated[list[Polygon], BeforeValidator(_polygons)] = []
    """Polygons; pixels inside one of them are not inspected."""
    small_region: bool = False
    """Allow an inspected area of less than 1 % of the picture."""
    tiles: bool = False
    """Cut tiles of `size` at native resolution instead of resizing the whole view."""
    overlap: Annotated[int, Field(ge=0)] = 32
    """Minimum overlap of neighbouring tiles."""
    registration: Register | None = None
    """Align every part with a reference image before all other steps."""

    @model_validator(mode="after")
    def _consistent(self) -> "Geometry":
        if self.crop is not None and (min(self.crop[:2]) < 0 or min(self.crop[2:]) < 8):
            raise ValueError(f"crop = {list(self.crop)} must be [x, y, width, height], at least 8 pixels per side")
        if self.tiles and self.size and self.overlap > self.size // 2:
            raise ValueError(f"overlap = {self.overlap} must be at most half of size = {self.size}")
        if self.tiles and self.aspect == "keep":
            raise ValueError("aspect = 'keep' has no meaning with tiles = true: tiles are cut at native resolution")
        if self.shape and (self.tiles or self.aspect != "free"):
            raise ValueError(f"shape = {list(self.shape)} needs aspect = 'free' and tiles = false. Remove shape")
        return self

    @property
    def input(self) -> tuple[int, int]:
        """Height and width of the detector's input."""
        side = self.size or SIZE
        return self.shape or (side, side)

    def with_shape(self, frames: Sequence[tuple[int, int]]) -> Self:
        """Return a copy with the shape of the input, computed from the sizes (h, w) of pictures.

        If the pictures have no common aspect ratio, the input is square.
        """
        if self.aspect != "free" or self.tiles or self.shape:
            return self
        if self.crop:
            frames = [(self.crop[3], self.crop[2])]
        size = self.size or SIZE
        longest = (size / LEAST_SIDE) ** 2  # of a picture whose input is LEAST_SIDE wide
        aspects = np.log([np.clip(h / w, 1 / longest, longest) for h, w in frames])
        median = float(np.median(aspects))
        agree = np.mean(np.abs(aspects - median) < AGREE) >= AGREEING
        root = math.exp(median / 2) if agree else 1.0
        height, width = (STEP * round(size * factor / STEP) for factor in (root, 1 / root))
        return self.model_copy(update={"shape": (height, width)})


@dataclass(frozen=True, eq=False)
class Placement:
    """The position of a view in its image."""

    shape: tuple[int, int]  # h, w of the view
    origin: tuple[int, int]  # x, y of its upper left corner in the image
    frame: tuple[int, int]  # H, W of the image
    roi: Mask | None  # (h, w), region of interest; None: all pixels
    share: float = 1.0  # inspected share of the image, or of the reference
    matrix: Matrix | None = None  # (2, 3), from the view to the image, of a registered part
    registration: Registration | None = None


@dataclass(frozen=True, eq=False)
class View(Placement):
    """The inspected part of one image."""

    pixels: Pixels = field(kw_only=True)  # (h, w, c)

    @property
    def placement(self) -> Placement:
        """The position without the pixels."""
        return Placement(**{field.name: getattr(self, field.name) for field in fields(Placement)})


def align(
    pixels: Pixels,
    geometry: Geometry,
    name: str,
    reference: Reference | None = None,
    full: tuple[int, int] | None = None,
) -> View:
    """Return the view of an image (H, W, c), registered to the reference if the geometry has a registration.

    full: size (H, W) of an image that was decoded at reduced scale, see `tiling.reduction`. The pixels of the view are
    then reduced too; its other fields are in pixels of the full image.

    Errors: ImageError when the crop or the region of interest is outside the image; NotFound, a subclass, when the part
    is not found.
    """
    if (reference is None) != (geometry.registration is None):
        raise ValueError("a reference is needed if and only if the geometry has a registration")
    frame = full or (pixels.shape[0], pixels.shape[1])
    matrix, registration, inside = None, None, None
    (height, width), by = frame, frame[0] // pixels.shape[0]
    if reference is not None:
        matrix, registration = reference.find(pixels, name)
        pixels, inside = reference.warp(pixels, matrix)
        name = f"{name}, registered to {reference.name}"
        height, width = pixels.shape[:2]
    x, y, w, h = geometry.crop or (0, 0, width, height)
    if x + w > width or y + h > height:
        raise ImageError(
            f"{name}: {width}×{height} pixels; the recipe's crop [{x}, {y}, {w}, {h}] needs {x + w}×{y + h}. "
            "Use images of at least this size, or change the crop and retrain."
        )
    view = pixels[y // by : (y + h) // by, x // by : (x + w) // by]
    roi = _roi(geometry, (x, y), (h, w), (height, width), name)
    share = (h * w if roi is None else np.count_nonzero(roi)) / (height * width)
    if 0 < share < SMALL and not geometry.small_region:
        raise ImageError(
            f"{name}: only {share:.2%} of its {width}×{height} pixels are in the recipe's crop and region of interest; "
            f"expected at least {SMALL:.0%}. Correct crop, include and ignore, which are in pixels, or set "
            "geometry.small_region = true."
        )
    if roi is not None:
        if not share:
            raise ImageError(
                f"{name}: none of its {width}×{height} pixels is in the recipe's region of interest. "
                "Polygons are in pixels of the whole image: correct include and ignore."
            )
        gray = view.dtype.type(np.iinfo(view.dtype).max // 2)
        view = np.where(roi[..., None], view, gray)
    if matrix is None or registration is None or inside is None:
        return View((h, w), (x, y), frame, roi, share, pixels=view)
    inside = inside[y : y + h, x : x + w]
    if not (inside if roi is None else inside & roi).any():
        raise NotFound(
            f"{name}: the inspected area of the part is outside the picture. Place the part in the middle.",
            registration,
        )
    matrix = np.hstack([matrix[:, :2], matrix @ [[x], [y], [1]]])
    return View((h, w), (x, y), frame, roi, share, matrix, registration, pixels=view)


def outside(geometry: Geometry, frame: tuple[int, int]) -> list[str]:
    """Warnings about polygons that are wholly outside a picture of `frame` (H, W)."""
    (height, width), found = frame, []
    for key in ("include", "ignore"):
        for polygon in getattr(geometry, key):
            (left, top), (right, bottom) = np.min(polygon, axis=0), np.max(polygon, axis=0)
            if right < 0 or bottom < 0 or left >= width or top >= height:
                found.append(
                    f"geometry.{key}: polygon {[list(corner) for corner in polygon[:4]]} is outside the picture of "
                    f"{width} × {height} pixels, so it has no effect; expected corners in the picture. Correct it."
                )
    return found


def _roi(
    geometry: Geometry, origin: tuple[int, int], shape: tuple[int, int], frame: tuple[int, int], name: str
) -> Mask | None:
    """Rasterise the region of interest for a view (h, w) of a frame (H, W); None without one.

    Errors: ImageError when the picture of the region has another size than the frame.
    """
    if not geometry.include and not geometry.ignore and not geometry.region:
        return None
    if geometry.region:
        region = _region(geometry.region)
        if region.shape != frame:
            raise ImageError(
                f"{name}: {frame[1]}×{frame[0]} pixels, but the picture of the region (geometry.include) has "
                f"{region.shape[1]}×{region.shape[0]}; expected the same size. Draw the region on a picture of the "
                "part."
            )
    include, ignore = (tuple(map(tuple, polygons)) for polygons in (geometry.include, geometry.ignore))
    return _rasterise(include, geometry.region, ignore, origin, shape)


@lru_cache(maxsize=4)
def _rasterise(
    include: tuple[tuple[Corner, ...], ...],
    region: str,
    ignore: tuple[tuple[Corner, ...], ...],
    origin: tuple[int, int],
    shape: tuple[int, int],
) -> Mask:
    """Rasterise a region for a view (h, w), once for all pictures of one size."""
    if region:
        (x, y), (h, w) = origin, shape
        roi = _region(region)[y : y + h, x : x + w].astype(np.uint8)
    else:
        roi = np.full(shape, 0 if include else 1, np.uint8)
    for polygons, value in ((include, 1), (ignore, 0)):
        for polygon in polygons:
            points = np.round(np.asarray(polygon) - origin).astype(np.int32)
            cv2.fillPoly(roi, [points], value)
    mask: Mask = roi.view(np.bool_)
    mask.flags.writeable = False
    return mask

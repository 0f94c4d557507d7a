"""Image → view → tiles, and maps back to the frame of the image that came in.

A *view* is the part of the image that is inspected: brought into the frame of the reference where the recipe asks for
registration, then cropped, with everything outside the region of interest painted over, so that no detector can learn
from it or be disturbed by it. It becomes either one tile, resized (`tiles = false`), or many at native resolution
(`tiles = true`), one at a time, so that memory stays bounded.
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

FAR = 1e6  # pixels: no corner of a polygon lies farther out
SIZE, LEAST_SIDE, STEP = 256, 64, 32  # pixels: usual side of the detector's input, its least, what divides all
AGREE, AGREEING = 0.1, 0.9  # pictures agree on an aspect when this share lies within this of its logarithm
SMALL = 0.01  # share of the picture: a smaller inspected part is taken for a mistake
EMBEDDED = "data:image/png;base64,"


def _in_pixels(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Refuse a polygon whose corners lie on one line, or are given in shares of the picture."""
    if all(0 <= value <= 1 for corner in corners for value in corner):
        raise ValueError(
            f"polygon {[list(corner) for corner in corners]} lies inside one pixel: corners are in pixels of the "
            "picture, not in shares of it. Multiply them by its width and height"
        )
    if cv2.contourArea(cv2.convexHull(np.array(corners, np.float32))) <= 0:
        raise ValueError(f"polygon {[list(corner) for corner in corners]} has no area. Give corners around one")
    return corners


Coordinate = Annotated[float, Field(ge=-FAR, le=FAR, allow_inf_nan=False)]
Corner = Annotated[tuple[Coordinate, Coordinate], Field(strict=False)]  # TOML has lists
Polygon = Annotated[list[Corner], Field(min_length=3), AfterValidator(_in_pixels)]
Side = Annotated[int, Field(ge=LEAST_SIDE, le=65536, multiple_of=STEP)]
Mask = NDArray[np.bool_]
Points = NDArray[np.int32]  # (n, 2): x, y


def _polygons(value: Any) -> Any:
    """Refuse what is no list of lists of corners, in one sentence."""
    if isinstance(value, str):
        raise ValueError(
            f"'{value}' names a picture, which a recipe file can do; here give region = embedded('{value}')"
        )
    if not isinstance(value, list):
        return value
    form = "expected a list of polygons, each a list of corners [x, y] in pixels: [[[0, 0], [90, 0], [90, 60]]]"
    if value and all(_is_number(each) for each in value):
        raise ValueError(f"{value[:8]} is a list of numbers; {form}. For a rectangle use crop = [x, y, width, height]")
    if value and all(_is_corner(each) for each in value):
        raise ValueError(f"{value[:4]} is a single polygon; {form}. Put it in one more pair of brackets")
    for polygon in value:
        if not isinstance(polygon, list) or not all(_is_corner(corner) for corner in polygon):
            raise ValueError(f"{str(polygon)[:80]} is no polygon; {form}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_corner(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(each) for each in value)


def _picture(value: str) -> str:
    """Refuse what is no embedded picture of a region."""
    try:
        if value:
            _region(value)
    except ImageError as error:
        raise ValueError(str(error)) from None
    return value


def embedded(path: str | Path) -> str:
    """Read a picture of a region, white where it is to be inspected, as text that a geometry takes for `region`.

    Errors: ImageError when it cannot be read, or nothing is white.
    """
    pixels = image.read(path).pixels.max(axis=2)
    area = pixels > pixels.max() / 2
    if not area.any():
        raise ImageError(f"{path}: nothing is white; expected white where the picture is to be inspected. Draw it.")
    data = cv2.imencode(".png", area.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()
    return EMBEDDED + base64.b64encode(data).decode()


@lru_cache(maxsize=4)
def _region(text: str) -> Mask:
    """The region (H, W) that an embedded picture marks. ImageError when it is none."""
    try:
        data = base64.b64decode(text.removeprefix(EMBEDDED), validate=text.startswith(EMBEDDED))
    except ValueError:
        raise ImageError("not the base64 text of a PNG picture; name the picture's file as include") from None
    area: Mask = image.read(data, "picture of the region").pixels.max(axis=2) > 0
    area.flags.writeable = False
    return area


class Geometry(BaseModel):
    """Which part of an image is inspected, and at what resolution.

    Lengths in pixels of the image; where parts are registered, of the reference image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # the detector's input has size² pixels; if not given, the detector's preset says how many
    size: Annotated[int | None, Field(ge=LEAST_SIDE, le=4096, multiple_of=STEP)] = None
    # free: the input takes the aspect that the pictures share; else it is square. stretch: they are squeezed into it;
    # keep: the longer side fits, the edge is repeated around it
    aspect: Literal["free", "stretch", "keep"] = "free"
    # height and width of the detector's input; found from size and the good pictures where aspect is free
    shape: Annotated[tuple[Side, Side] | None, Field(strict=False)] = None
    crop: Annotated[tuple[int, int, int, int] | None, Field(strict=False)] = None  # x, y, width, height
    # only what lies in one of these is inspected; empty: everything. In a recipe file also the name of a picture, white
    # where it is to be inspected, which becomes `region`
    include: Annotated[list[Polygon], BeforeValidator(_polygons)] = []
    region: Annotated[str, AfterValidator(_picture)] = ""  # that picture as text, made by `embedded`
    ignore: Annotated[list[Polygon], BeforeValidator(_polygons)] = []  # what lies in one of these is not
    small_region: bool = False  # whether less than 1 % of the picture may be inspected
    tiles: bool = False  # cut tiles of `size` at native resolution instead of resizing the whole view
    overlap: Annotated[int, Field(ge=0)] = 32  # by which neighbouring tiles overlap at least
    registration: Register | None = None  # bring every part to where it lies in a reference image, before all else

    @model_validator(mode="after")
    def _consistent(self) -> "Geometry":
        if self.crop is not None and (min(self.crop[:2]) < 0 or min(self.crop[2:]) < 8):
            raise ValueError(f"crop = {list(self.crop)} must be [x, y, width, height], at least 8 pixels a side")
        if self.tiles and self.size and self.overlap > self.size // 2:
            raise ValueError(f"overlap = {self.overlap} must be at most half of size = {self.size}")
        if self.tiles and self.aspect == "keep":
            raise ValueError("aspect = 'keep' has no meaning with tiles = true: tiles are cut at native resolution")
        if self.shape and (self.tiles or self.aspect != "free"):
            raise ValueError(f"shape = {list(self.shape)} needs aspect = 'free' and tiles = false. Leave shape out")
        return self

    @property
    def input(self) -> tuple[int, int]:
        """Height and width of the detector's input."""
        side = self.size or SIZE
        return self.shape or (side, side)

    def shaped(self, frames: Sequence[tuple[int, int]]) -> Self:
        """The geometry with the shape of its input spelled out, for pictures (h, w) of these sizes.

        Where they do not agree on an aspect, the input is square: a few long pictures would squeeze all others. A crop
        has one size.
        """
        if self.aspect != "free" or self.tiles or self.shape:
            return self
        if self.crop:
            frames = [(self.crop[3], self.crop[2])]
        size = self.size or SIZE
        longest = (size / LEAST_SIDE) ** 2  # of a picture whose input is LEAST_SIDE wide
        aspects = np.log([np.clip(h / w, 1 / longest, longest) for h, w in frames])
        middle = float(np.median(aspects))
        agree = np.mean(np.abs(aspects - middle) < AGREE) >= AGREEING
        root = math.exp(middle / 2) if agree else 1.0
        height, width = (STEP * round(size * factor / STEP) for factor in (root, 1 / root))
        return self.model_copy(update={"shape": (height, width)})


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the inspected part of one image lies."""

    shape: tuple[int, int]  # h, w of the view
    origin: tuple[int, int]  # x, y of its corner in the image
    frame: tuple[int, int]  # H, W of the image
    roi: Mask | None  # (h, w), None: all of it
    share: float = 1.0  # of the image, or of the reference, that is inspected
    matrix: Matrix | None = None  # (2, 3), from the view to the image, where the part was registered
    registration: Registration | None = None


@dataclass(frozen=True, eq=False)
class View(Placement):
    """The inspected part of one image."""

    pixels: Pixels = field(kw_only=True)  # (h, w, c)

    @property
    def placement(self) -> Placement:
        """Where it lies, without its pixels."""
        return Placement(**{each.name: getattr(self, each.name) for each in fields(Placement)})


def align(
    pixels: Pixels,
    geometry: Geometry,
    name: str,
    reference: Reference | None = None,
    full: tuple[int, int] | None = None,
) -> View:
    """Cut the view out of an image (H, W, c), registered to the reference where the geometry asks for it.

    Of an image that was decoded at reduced scale, `full` is its size (H, W); the pixels of the view are reduced as
    well, and all else of the view is in pixels of the full image. `tiling.reduction` says where that is allowed.

    Errors: ImageError when the image does not hold the crop or any ROI; NotFound, which is one, when the part is not
    found.
    """
    if (reference is None) != (geometry.registration is None):
        raise ValueError("a reference belongs to a geometry with registration, and only to one")
    frame = full or (pixels.shape[0], pixels.shape[1])
    matrix, found, seen = None, None, None
    (height, width), by = frame, frame[0] // pixels.shape[0]
    if reference is not None:
        matrix, found = reference.find(pixels, name)
        pixels, seen = reference.bring(pixels, matrix)
        name = f"{name}, registered to {reference.name}"
        height, width = pixels.shape[:2]
    x, y, w, h = geometry.crop or (0, 0, width, height)
    if x + w > width or y + h > height:
        raise ImageError(
            f"{name}: {width}×{height} pixels; the recipe's crop [{x}, {y}, {w}, {h}] reaches to {x + w}×{y + h}. "
            "Use images of the size the recipe was written for, or change the crop and retrain."
        )
    view = pixels[y // by : (y + h) // by, x // by : (x + w) // by]
    roi = _roi(geometry, (x, y), (h, w), (height, width), name)
    share = (h * w if roi is None else np.count_nonzero(roi)) / (height * width)
    if 0 < share < SMALL and not geometry.small_region:
        raise ImageError(
            f"{name}: only {share:.2%} of its {width}×{height} pixels lie in the recipe's crop and region of interest; "
            f"expected at least {SMALL:.0%}. Correct crop, include and ignore, which are in pixels, or set "
            "geometry.small_region = true."
        )
    if roi is not None:
        if not share:
            raise ImageError(
                f"{name}: nothing of its {width}×{height} pixels lies in the recipe's region of interest. "
                "Polygons are in pixels of the whole image: correct include and ignore."
            )
        gray = view.dtype.type(np.iinfo(view.dtype).max // 2)
        view = np.where(roi[..., None], view, gray)
    if matrix is None or found is None or seen is None:
        return View((h, w), (x, y), frame, roi, share, pixels=view)
    seen = seen[y : y + h, x : x + w]
    if not (seen if roi is None else seen & roi).any():
        raise NotFound(
            f"{name}: nothing of what is to be inspected lies in the picture. Place the part in the middle.", found
        )
    matrix = np.hstack([matrix[:, :2], matrix @ [[x], [y], [1]]])
    return View((h, w), (x, y), frame, roi, share, matrix, found, pixels=view)


def _roi(
    geometry: Geometry, origin: tuple[int, int], shape: tuple[int, int], frame: tuple[int, int], name: str
) -> Mask | None:
    """Rasterise the region over a view (h, w) of a frame (H, W); None when there is none.

    Errors: ImageError when the picture of the region is of another size than the frame.
    """
    if not geometry.include and not geometry.ignore and not geometry.region:
        return None
    if geometry.region:
        region = _region(geometry.region)
        if region.shape != frame:
            raise ImageError(
                f"{name}: {frame[1]}×{frame[0]} pixels, but the picture of the region (geometry.include) has "
                f"{region.shape[1]}×{region.shape[0]}; expected one size. Draw the region on a picture of the part."
            )
    include, ignore = (tuple(map(tuple, polygons)) for polygons in (geometry.include, geometry.ignore))
    return _drawn(include, geometry.region, ignore, origin, shape)


@lru_cache(maxsize=4)
def _drawn(
    include: tuple[tuple[Corner, ...], ...],
    region: str,
    ignore: tuple[tuple[Corner, ...], ...],
    origin: tuple[int, int],
    shape: tuple[int, int],
) -> Mask:
    """Rasterise a region over a view (h, w); once for all pictures of one size."""
    if region:
        (x, y), (h, w) = origin, shape
        roi = _region(region)[y : y + h, x : x + w].astype(np.uint8)
    else:
        roi = np.full(shape, 0 if include else 1, np.uint8)
    for polygons, value in ((include, 1), (ignore, 0)):
        for polygon in polygons:
            points = np.round(np.asarray(polygon) - origin).astype(np.int32)
            cv2.fillPoly(roi, [points], value)
    drawn: Mask = roi.view(np.bool_)
    drawn.flags.writeable = False
    return drawn

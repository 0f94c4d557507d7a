"""View → tiles, and the anomaly maps of tiles → the anomaly map of the image."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.geometry.registration import Matrix
from andon.geometry.views import Geometry, Placement, View
from andon.inspection import Array, Pixels

T = TypeVar("T")
PIXELS_AT_ONCE = 512 * 1024  # maximum number of pixels in a batch of tiles: it limits the memory of the graph


class Place(NamedTuple):
    """The position of a tile in a view: the inner box of the tile shows this box of the view."""

    box: tuple[int, int, int, int]  # x, y, width, height in the view
    inner: tuple[int, int, int, int]  # x, y, width, height in the tile; the rest is padding


def split(view: View, geometry: Geometry) -> Iterator[tuple[Place, Pixels]]:
    """Yield the tiles (*geometry.input, c) of a view, each with its place, one at a time."""
    for place in places(view, geometry):
        x, y, w, h = place.box
        yield place, _fit(view.pixels[y : y + h, x : x + w], place.inner, geometry.input)


def places(view: Placement, geometry: Geometry) -> Iterator[Place]:
    """Yield the place of each tile of a view; tiles without a pixel of the region of interest are omitted."""
    if not geometry.tiles:
        yield _single(view.shape, geometry)
        return
    t, (height, width) = geometry.input[0], view.shape
    for y in starts(height, t, geometry.overlap):
        for x in starts(width, t, geometry.overlap):
            w, h = min(t, width - x), min(t, height - y)
            if view.roi is None or view.roi[y : y + h, x : x + w].any():
                yield Place((x, y, w, h), (0, 0, w, h))


def area_ratio(frame: tuple[int, int], geometry: Geometry) -> float:
    """Return the number of pixels of an image (H, W), or of the reference of registered parts, per pixel of a tile."""
    if geometry.tiles:
        return 1.0
    w, h = geometry.crop[2:] if geometry.crop else (frame[1], frame[0])
    inner = _single((h, w), geometry).inner
    return h * w / (inner[2] * inner[3])


def reduction(frame: tuple[int, int], geometry: Geometry) -> int:
    """Return the factor by which the sides of a JPEG (H, W) can be reduced in decoding: 1, 2, 4 or 8.

    The reduced view is at least as large as the detector's input, and its edges are at integer pixels. The factor is 1
    for tiles; for registration, which needs the full scale; and for regions of interest, because a reduced pixel at
    their border would mix ignored and inspected pixels.
    """
    if geometry.tiles or geometry.registration or geometry.include or geometry.region or geometry.ignore:
        return 1
    box = geometry.crop or (0, 0, frame[1], frame[0])
    inner = _single((box[3], box[2]), geometry).inner
    factor = min(box[2] / inner[2], box[3] / inner[3])
    return next((by for by in (8, 4, 2) if by <= factor and not any(side % by for side in (*box, *frame))), 1)


def batches(pieces: Iterable[T], shape: tuple[int, int]) -> Iterator[list[T]]:
    """Group tiles of a shape, or items for them, into batches of at most PIXELS_AT_ONCE pixels, at least one tile."""
    pieces = iter(pieces)
    while batch := list(islice(pieces, max(1, PIXELS_AT_ONCE // (shape[0] * shape[1])))):
        yield batch


def starts(length: int, t: int, overlap: int) -> list[int]:
    """Return the start positions of tiles of `t` pixels along `length` pixels: equidistant, overlap ≥ `overlap`."""
    if length <= t:
        return [0]
    count = -(-(length - overlap) // (t - overlap))
    return [round(i * (length - t) / (count - 1)) for i in range(count)]


def _single(shape: tuple[int, int], geometry: Geometry) -> Place:
    """Return the place of a single tile that shows the whole view (h, w)."""
    (h, w), (height, width) = shape, geometry.input
    if geometry.aspect != "keep":
        return Place((0, 0, w, h), (0, 0, width, height))
    scale = height / max(h, w)
    inner_w, inner_h = max(1, round(w * scale)), max(1, round(h * scale))
    return Place((0, 0, w, h), ((width - inner_w) // 2, (height - inner_h) // 2, inner_w, inner_h))


def _fit(pixels: Pixels, inner: tuple[int, int, int, int], shape: tuple[int, int]) -> Pixels:
    """Resize pixels (h, w, c) to the inner box of a tile (*shape, c); pad by repeating border pixels."""
    x, y, w, h = inner
    tile: NDArray[Any] = pixels
    if tile.shape[:2] != (h, w):
        shrinks = h * w < tile.shape[0] * tile.shape[1]
        tile = cv2.resize(tile, (w, h), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if (h, w) != shape:
        height, width = shape
        tile = cv2.copyMakeBorder(tile, y, height - y - h, x, width - x - w, cv2.BORDER_REPLICATE)
    return tile.reshape(*shape, -1)  # OpenCV drops a single channel


@dataclass(frozen=True, eq=False)
class ViewMap:
    """The anomaly map of one view, at the scale of the detector's input or of the view, whichever is coarser."""

    raw: Array  # (h, w); also has values outside the region of interest
    view: Placement

    @cached_property
    def matrix(self) -> Matrix:
        """The transformation (2, 3) from pixels of the map to pixels of the image."""
        (h, w), (height, width) = self.raw.shape, self.view.shape
        x, y = width / w, height / h
        enlarge = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        left, top = self.view.origin
        view = np.array([[1, 0, left], [0, 1, top]]) if self.view.matrix is None else self.view.matrix
        matrix: Matrix = view @ enlarge
        return matrix

    @cached_property
    def values(self) -> Array:
        """(h, w); NaN where no pixel of the region of interest is shown, or the centre is outside the image."""
        (h, w), view = self.raw.shape, self.view
        valid = None
        if view.roi is not None:
            rows, columns = np.arange(h) * view.shape[0] // h, np.arange(w) * view.shape[1] // w
            valid = np.logical_or.reduceat(np.logical_or.reduceat(view.roi, rows, axis=0), columns, axis=1)
        if view.matrix is not None:
            at_x, at_y = (row[0] * np.arange(w) + row[1] * np.arange(h)[:, None] + row[2] for row in self.matrix)
            inside = (at_x >= -0.5) & (at_x < view.frame[1] - 0.5) & (at_y >= -0.5) & (at_y < view.frame[0] - 0.5)
            valid = inside if valid is None else valid & inside
        return self.raw if valid is None else np.where(valid, self.raw, np.float32(np.nan))

    def enlarge(self) -> Array:
        """Return the anomaly map (H, W) of the image; NaN where nothing was inspected."""
        h, w = self.view.shape
        values: Array = self.raw
        if values.shape != (h, w):
            values = np.asarray(cv2.resize(values, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)
        if self.view.roi is not None:
            values = np.where(self.view.roi, values, np.float32(np.nan))
        if self.view.matrix is not None:
            return _warp_back(values, self.view.matrix, self.view.frame)
        if self.view.frame == (h, w):
            return values
        full: Array = np.full(self.view.frame, np.nan, np.float32)
        x, y = self.view.origin
        full[y : y + h, x : x + w] = values
        return full


def empty_map(frame: tuple[int, int]) -> ViewMap:
    """Return the map of an image (H, W) that was not inspected: NaN everywhere."""
    return ViewMap(np.full((1, 1), np.nan, np.float32), Placement(frame, (0, 0), frame, None))


def collect(view: Placement, maps: Iterable[tuple[Place, Array]]) -> ViewMap:
    """Join the maps (h, w) of the tiles of a view.

    Where tiles overlap, their values are averaged, weighted by the distance of the pixel to the border of each tile.
    """
    h, w = view.shape
    values: Array = np.zeros((h, w), np.float32)  # the system allocates zeroed pages at the first write
    total: Array = np.zeros((h, w), np.float32)
    for (x, y, bw, bh), tile in ((place.box, _unpad(tile, place)) for place, tile in maps):
        if (bh, bw) == (h, w):
            return ViewMap(tile, view)
        weight = np.minimum.outer(_tent(bh), _tent(bw))
        values[y : y + bh, x : x + bw] += weight * tile
        total[y : y + bh, x : x + bw] += weight
    np.divide(values, total, out=values, where=total > 0)
    return ViewMap(values, view)


def join(view: Placement, maps: Iterable[tuple[Place, Array]]) -> Array:
    """Join the maps (h, w) of the tiles of a view to the map (H, W) of the image; NaN where nothing was inspected."""
    return collect(view, maps).enlarge()


def _warp_back(values: Array, matrix: Matrix, frame: tuple[int, int]) -> Array:
    """Warp the map (h, w) of a registered view into the frame (H, W) of its image; NaN where it has no value."""
    finite = np.isfinite(values)
    size = (frame[1], frame[0])
    warped: NDArray[Any] = cv2.warpAffine(np.where(finite, values, np.float32(0)), matrix, size)
    weight: NDArray[Any] = cv2.warpAffine(finite.astype(np.float32), matrix, size)
    inner = weight > 0.5
    full: Array = np.full(frame, np.nan, np.float32)
    full[inner] = warped[inner] / weight[inner]
    return full


def _unpad(values: Array, place: Place) -> Array:
    """Remove the padding from a map of a tile; reduce a side to the pixels of the view if it has fewer."""
    x, y, w, h = place.inner
    values = values[y : y + h, x : x + w]
    size = min(w, place.box[2]), min(h, place.box[3])
    if size == (w, h):
        return values
    resized: NDArray[Any] = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
    return resized


def _tent(length: int) -> Array:
    """Distance (length,) to the nearer end, starting at 1."""
    ramp = np.arange(1, length + 1, dtype=np.float32)
    tent: Array = np.minimum(ramp, ramp[::-1])
    return tent

"""View → tiles, and their maps back to the frame of the image that came in."""

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
PIXELS_AT_ONCE = 512 * 1024  # of tiles that a graph is given at once: what it needs for them grows with their pixels


class Place(NamedTuple):
    """Where in a view a tile lies: the tile's inner box shows the view's box."""

    box: tuple[int, int, int, int]  # x, y, width, height in the view
    inner: tuple[int, int, int, int]  # x, y, width, height in the tile; the rest is padding


def split(view: View, geometry: Geometry) -> Iterator[tuple[Place, Pixels]]:
    """Yield the tiles (*geometry.input, c) of a view and where each lies, one at a time."""
    for place in places(view, geometry):
        x, y, w, h = place.box
        yield place, _fit(view.pixels[y : y + h, x : x + w], place.inner, geometry.input)


def places(view: Placement, geometry: Geometry) -> Iterator[Place]:
    """Yield where each tile of a view lies; tiles without a pixel of the region of interest are left out."""
    if not geometry.tiles:
        yield _whole(view.shape, geometry)
        return
    t, (height, width) = geometry.input[0], view.shape
    for y in starts(height, t, geometry.overlap):
        for x in starts(width, t, geometry.overlap):
            w, h = min(t, width - x), min(t, height - y)
            if view.roi is None or view.roi[y : y + h, x : x + w].any():
                yield Place((x, y, w, h), (0, 0, w, h))


def covered(frame: tuple[int, int], geometry: Geometry) -> float:
    """How many pixels of an image (H, W) one pixel of a tile covers; registered parts count as in their reference."""
    if geometry.tiles:
        return 1.0
    w, h = geometry.crop[2:] if geometry.crop else (frame[1], frame[0])
    inner = _whole((h, w), geometry).inner
    return h * w / (inner[2] * inner[3])


def reduction(frame: tuple[int, int], geometry: Geometry) -> int:
    """Find by how much the sides of a JPEG (H, W) may be divided as it is decoded: 1, 2, 4 or 8.

    The view is never made smaller than the detector's input, and every edge of it falls on a whole pixel. 1 for tiles;
    for registered parts, which are found at full scale; and for regions of interest, since a reduced pixel on their
    border would mix what is ignored with what is inspected.
    """
    if geometry.tiles or geometry.registration or geometry.include or geometry.region or geometry.ignore:
        return 1
    box = geometry.crop or (0, 0, frame[1], frame[0])
    inner = _whole((box[3], box[2]), geometry).inner
    shrunk = min(box[2] / inner[2], box[3] / inner[3])
    return next((by for by in (8, 4, 2) if by <= shrunk and not any(side % by for side in (*box, *frame))), 1)


def batches(pieces: Iterable[T], shape: tuple[int, int]) -> Iterator[list[T]]:
    """Put tiles of a shape, or what comes with them, together: at most PIXELS_AT_ONCE pixels, at least one tile."""
    pieces = iter(pieces)
    while batch := list(islice(pieces, max(1, PIXELS_AT_ONCE // (shape[0] * shape[1])))):
        yield batch


def starts(length: int, t: int, overlap: int) -> list[int]:
    """Where tiles of `t` begin along `length` pixels: evenly spread, overlapping by at least `overlap`."""
    if length <= t:
        return [0]
    count = -(-(length - overlap) // (t - overlap))
    return [round(i * (length - t) / (count - 1)) for i in range(count)]


def _whole(shape: tuple[int, int], geometry: Geometry) -> Place:
    """Place a whole view (h, w) in one tile."""
    (h, w), (height, width) = shape, geometry.input
    if geometry.aspect != "keep":
        return Place((0, 0, w, h), (0, 0, width, height))
    scale = height / max(h, w)
    inner_w, inner_h = max(1, round(w * scale)), max(1, round(h * scale))
    return Place((0, 0, w, h), ((width - inner_w) // 2, (height - inner_h) // 2, inner_w, inner_h))


def _fit(pixels: Pixels, inner: tuple[int, int, int, int], shape: tuple[int, int]) -> Pixels:
    """Resize pixels (h, w, c) to the inner box of a tile (*shape, c) and repeat the edge around it."""
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
class Joined:
    """The anomaly map of one view, at the scale of the detector's input or of the view, whichever is coarser."""

    raw: Array  # (h, w); also where nothing was inspected
    view: Placement

    @cached_property
    def matrix(self) -> Matrix:
        """(2, 3): from pixels of the map to pixels of the image."""
        (h, w), (height, width) = self.raw.shape, self.view.shape
        x, y = width / w, height / h
        enlarge = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        left, top = self.view.origin
        placed = np.array([[1, 0, left], [0, 1, top]]) if self.view.matrix is None else self.view.matrix
        matrix: Matrix = placed @ enlarge
        return matrix

    @cached_property
    def values(self) -> Array:
        """(h, w); NaN where a pixel shows nothing of the region of interest, or has its middle outside the image."""
        (h, w), view = self.raw.shape, self.view
        shown = None
        if view.roi is not None:
            rows, columns = np.arange(h) * view.shape[0] // h, np.arange(w) * view.shape[1] // w
            shown = np.logical_or.reduceat(np.logical_or.reduceat(view.roi, rows, axis=0), columns, axis=1)
        if view.matrix is not None:
            at_x, at_y = (row[0] * np.arange(w) + row[1] * np.arange(h)[:, None] + row[2] for row in self.matrix)
            inside = (at_x >= -0.5) & (at_x < view.frame[1] - 0.5) & (at_y >= -0.5) & (at_y < view.frame[0] - 0.5)
            shown = inside if shown is None else shown & inside
        return self.raw if shown is None else np.where(shown, self.raw, np.float32(np.nan))

    def whole(self) -> Array:
        """Enlarge it to the map (H, W) of the image; NaN where nothing was inspected."""
        h, w = self.view.shape
        joined: Array = self.raw
        if joined.shape != (h, w):
            joined = np.asarray(cv2.resize(joined, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)
        if self.view.roi is not None:
            joined = np.where(self.view.roi, joined, np.float32(np.nan))
        if self.view.matrix is not None:
            return _back(joined, self.view.matrix, self.view.frame)
        if self.view.frame == (h, w):
            return joined
        whole: Array = np.full(self.view.frame, np.nan, np.float32)
        x, y = self.view.origin
        whole[y : y + h, x : x + w] = joined
        return whole


def unseen(frame: tuple[int, int]) -> Joined:
    """Return the map of an image (H, W) of which nothing was inspected."""
    return Joined(np.full((1, 1), np.nan, np.float32), Placement(frame, (0, 0), frame, None))


def collect(view: Placement, maps: Iterable[tuple[Place, Array]]) -> Joined:
    """Put the maps (h, w) of a view's tiles together.

    Where tiles overlap, each counts by how far inside it the pixel lies, so that no seam shows.
    """
    h, w = view.shape
    joined: Array = np.zeros((h, w), np.float32)  # zeroed pages take no memory until a tile is written
    total: Array = np.zeros((h, w), np.float32)
    for (x, y, bw, bh), values in ((place.box, _unpadded(values, place)) for place, values in maps):
        if (bh, bw) == (h, w):
            return Joined(values, view)
        weight = np.minimum.outer(_tent(bh), _tent(bw))
        joined[y : y + bh, x : x + bw] += weight * values
        total[y : y + bh, x : x + bw] += weight
    np.divide(joined, total, out=joined, where=total > 0)
    return Joined(joined, view)


def join(view: Placement, maps: Iterable[tuple[Place, Array]]) -> Array:
    """Put the maps (h, w) of a view's tiles together: the map (H, W) of the image, NaN where nothing was inspected."""
    return collect(view, maps).whole()


def _back(joined: Array, matrix: Matrix, frame: tuple[int, int]) -> Array:
    """Bring the map (h, w) of a registered view into the frame (H, W) of its image; NaN where it says nothing."""
    known = np.isfinite(joined)
    size = (frame[1], frame[0])
    values: NDArray[Any] = cv2.warpAffine(np.where(known, joined, np.float32(0)), matrix, size)
    weight: NDArray[Any] = cv2.warpAffine(known.astype(np.float32), matrix, size)
    inner = weight > 0.5
    whole: Array = np.full(frame, np.nan, np.float32)
    whole[inner] = values[inner] / weight[inner]
    return whole


def _unpadded(values: Array, place: Place) -> Array:
    """Take the padding off a map of a tile; along a side on which the view has fewer pixels, shrink to these."""
    x, y, w, h = place.inner
    values = values[y : y + h, x : x + w]
    size = min(w, place.box[2]), min(h, place.box[3])
    if size == (w, h):
        return values
    resized: NDArray[Any] = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
    return resized


def _tent(length: int) -> Array:
    """Distance to the nearer end, from 1: (length,)."""
    ramp = np.arange(1, length + 1, dtype=np.float32)
    tent: Array = np.minimum(ramp, ramp[::-1])
    return tent

"""Pictures for people: heat maps, overlays with regions, contact sheets.

All heat maps of a bundle have the same scale. A scale for each image would show the noise of a good part as a defect.
The middle of the scale is the pixel threshold: orange and yellow are above it. The lightness of the colours (inferno)
increases monotonically, so colour-blind people and prints in gray show the same order.
"""

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.inspection import Array, Inspection, Pixels, Region, Thresholds, Verdict

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
Mask = NDArray[np.bool_]

REGION = (0, 255, 255)  # cyan, which is not a colour of the heat map
TRUTH = (255, 255, 255)
INK = (40, 40, 40)
THRESHOLD_AT = 0.5  # position of the pixel threshold on the scale
OPACITY = 0.45  # of the heat map at and above the threshold; below, it decreases to 0
FONT, LINE = 0.5, 20  # of the strip above an overlay: font size, line spacing in pixels
COLOURS = {
    Verdict.PASS: (47, 125, 79),
    Verdict.REVIEW: (138, 109, 0),
    Verdict.REJECT: (179, 38, 30),
    Verdict.INVALID: (92, 102, 112),
}


class Scale(NamedTuple):
    """Values of the anomaly map at the ends of the colour scale, and the pixel threshold between them."""

    low: float
    high: float
    threshold: float

    @classmethod
    def of(cls, typical: float, threshold: float) -> Self:
        """Return a scale from the typical value of good pixels, with the threshold in the middle.

        If the threshold is not above the typical value, the scale has a very small width.
        """
        width = max(threshold - typical, 1e-6 * max(abs(threshold), abs(typical), 1e-6))
        return cls(threshold - width, threshold + width * (1 - THRESHOLD_AT) / THRESHOLD_AT, threshold)

    def normalize(self, values: Array) -> Array:
        """Return positions of values on the scale: 0 at the low end, 1 at the high end, clipped; NaN stays NaN."""
        positions: Array = np.clip((values - np.float32(self.low)) / np.float32(self.high - self.low), 0, 1)
        return positions

    def level(self, value: float) -> float:
        """Return a value in units of the threshold: 0 at the low end, 1 at the threshold."""
        return (value - self.low) / (self.threshold - self.low)


def levels(score: float, good: Sequence[float], thresholds: Thresholds) -> dict[str, float]:
    """Return a score in units of each threshold: 0 is the median of the held-out `good` scores, 1 the threshold.

    A threshold that is infinite, or not above the median, is omitted.
    """
    middle = median(good)
    limits = {"review": thresholds.review, "reject": thresholds.reject}
    return {name: Scale.of(middle, limit).level(score) for name, limit in limits.items() if middle < limit < math.inf}


def heat_map(anomaly_map: Array, scale: Scale) -> Picture:
    """Colour a map (H, W); NaN, where nothing was inspected, becomes light gray."""
    indices = np.nan_to_num(scale.normalize(anomaly_map) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(indices, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    colours[np.isnan(anomaly_map)] = 200
    return _picture(colours)


def display(pixels: Pixels) -> Picture:
    """Convert an image (H, W, c) to 8-bit RGB for display.

    The range of 16-bit images is the 0.5th to 99.5th percentile of the image. Scores never use this conversion.
    """
    if pixels.dtype == np.uint16:
        low, high = np.percentile(pixels[:: max(1, len(pixels) // 512)], (0.5, 99.5))
        pixels = np.clip((pixels - low) * (255 / max(high - low, 1.0)), 0, 255).astype(np.uint8)
    return _picture(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def fit(picture: Picture, side: int) -> Picture:
    """Scale a picture so that its longer side has `side` pixels; from factor 2 on, by nearest neighbour."""
    return _picture(scaled(picture, side))


def scaled(pixels: Pixels, side: int) -> Pixels:
    """As `fit`, for an image (H, W, c) of any depth and number of channels."""
    h, w = pixels.shape[:2]
    factor = side / max(h, w)
    size = (max(1, round(w * factor)), max(1, round(h * factor)))
    smooth = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC if factor < 2 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(pixels, size, interpolation=smooth), pixels.dtype).reshape(size[1], size[0], -1)


def overlay(
    pixels: Pixels,
    anomaly_map: Array,
    scale: Scale,
    regions: Sequence[Region] = (),
    mask: Mask | None = None,
    side: int = 768,
    bar: bool = True,
) -> Picture:
    """Draw the heat map, the outlines of regions and of the mask (H, W) of true defects over an image (H, W, c).

    The longer side of the image gets `side` pixels. Areas that were not inspected are darkened and hatched. `bar`: add
    a colour bar on the right, with the threshold marked.
    """
    photo = display(scaled(pixels, side))  # scaled first: float copies of a large image would need a gigabyte
    colours, opacity, uninspected = _colours(anomaly_map, scale, (photo.shape[1], photo.shape[0]))
    alpha = OPACITY * opacity[:, :, None]
    picture = _picture(np.round(photo * (1 - alpha) + colours * alpha).astype(np.uint8))
    if uninspected.any():
        _hatch(picture, uninspected)
    if mask is not None:
        outline(picture, mask, TRUTH)
    outline(picture, _area(anomaly_map > scale.threshold, regions), REGION)
    return _picture(np.hstack([picture, colour_bar(scale, picture.shape[0])])) if bar else picture


def _colours(anomaly_map: Array, scale: Scale, size: tuple[int, int]) -> tuple[Picture, Array, Mask]:
    """Colours (h, w, 3), opacity (h, w) from 0 to 1 at the threshold, and what was not inspected (h, w), for a map.

    size: width and height.
    """
    uninspected: Mask = np.isnan(cv2.resize(anomaly_map, size, interpolation=cv2.INTER_NEAREST))
    values = np.asarray(cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR), np.float32)
    positions = np.nan_to_num(scale.normalize(values))
    opacity: Array = np.minimum(positions / THRESHOLD_AT, 1) ** 1.5
    colours = cv2.applyColorMap((positions * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return _picture(cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)), opacity, uninspected


def layer(anomaly_map: Array, scale: Scale, side: int) -> bytes:
    """Draw the heat map (H, W) alone, as PNG with transparency, of at most `side` pixels; the threshold is outlined."""
    height, width = anomaly_map.shape
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    colours, opacity, uninspected = _colours(anomaly_map, scale, size)
    alpha = np.round(255 * opacity).astype(np.uint8)
    if uninspected.any():
        _hatch(colours, uninspected)
        alpha[uninspected] = 150
    outlined = np.zeros((*size[::-1], 3), np.uint8)
    outline(outlined, np.asarray(anomaly_map > scale.threshold), REGION)
    drawn = outlined.any(axis=2)
    colours[drawn], alpha[drawn] = outlined[drawn], 255
    ok, data = cv2.imencode(".png", np.dstack([colours[..., ::-1], alpha]))
    if not ok:
        raise ValueError(f"OpenCV cannot write a heat map of {size}")
    return data.tobytes()


def outline(picture: Picture, area: Mask, colour: tuple[int, int, int]) -> None:
    """Draw the outlines of an area (H, W) of the image into a picture of any size, with a dark edge for contrast."""
    contours, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    factor = np.array([picture.shape[1] / area.shape[1], picture.shape[0] / area.shape[0]])
    lines = [np.round((contour + 0.5) * factor * 8).astype(np.int32) for contour in contours]  # in eighths of a pixel
    width = max(2, round(max(picture.shape) / 400))
    cv2.polylines(picture, lines, True, (0, 0, 0), width + 1, cv2.LINE_AA, shift=3)
    cv2.polylines(picture, lines, True, colour, width, cv2.LINE_AA, shift=3)


def _area(above: Mask, regions: Sequence[Region]) -> Mask:
    """Return the pixels of those connected areas that belong to the regions."""
    area = np.zeros((above.shape[0] + 2, above.shape[1] + 2), np.uint8)  # floodFill needs a border of 1 pixel
    for x, y in (region.peak_at for region in regions):
        if above[y, x]:
            cv2.floodFill(above.view(np.uint8), area, (x, y), 0, flags=8 | cv2.FLOODFILL_MASK_ONLY)
    return area[1:-1, 1:-1] > 0


def _hatch(picture: Picture, where: Mask) -> None:
    rows, columns = np.arange(where.shape[0])[:, None], np.arange(where.shape[1])
    lines = (rows + columns) % 12 < 2
    picture[where] = picture[where] // 3 + 40
    picture[where & lines] = 150


def colour_bar(scale: Scale, height: int) -> Picture:
    """Draw the colours of the scale, `height` pixels tall, with raw values and levels of its ends and the threshold."""
    bar = np.full((height, 96, 3), 255, np.uint8)
    top, bottom = 12, height - 12
    values = np.linspace(scale.high, scale.low, max(bottom - top, 1), dtype=np.float32)
    bar[top:bottom, 10:28] = heat_map(values[:, None], scale)
    for value, below in ((scale.high, 16), (scale.threshold, 16), (scale.low, -9)):
        y = round(top + (bottom - 1 - top) * (scale.high - value) / (scale.high - scale.low))
        marked = value == scale.threshold
        cv2.line(bar, (6 if marked else 28, y), (32, y), INK, 2 if marked else 1)
        text(bar, _short(value), (36, y + 4), 0.42)
        text(bar, f"level {scale.level(value):.3g}", (36, y + below), 0.34)
        if marked:
            text(bar, "threshold", (36, y + 28), 0.34)
    return _picture(bar)


def _short(value: float) -> str:
    """Format a value in at most seven characters."""
    digits = 3 if value == 0 else max(0, 3 - math.ceil(math.log10(abs(value))))
    plain = f"{value:.{min(digits, 5)}f}"
    return plain if len(plain) <= 7 else f"{value:.1e}"


def labelled(picture: Picture, inspection: Inspection, good: Sequence[float]) -> Picture:
    """Add a strip with verdict, score and file name above a picture. `good`: the held-out scores."""
    words = inspection.verdict.value
    if not math.isnan(inspection.score):
        words += f"   score {inspection.score:.4g}" + "".join(
            f"   {name} level {level:.2f}"
            for name, level in levels(inspection.score, good, inspection.thresholds).items()
        )
    width = picture.shape[1]
    lines = [*_wrap(words, width - 20), *_wrap(Path(inspection.source).name, width - 20)]
    strip = np.full((LINE * len(lines) + 10, width, 3), 255, np.uint8)
    strip[:, :6] = COLOURS[inspection.verdict]
    for j, line in enumerate(lines):
        text(strip, line, (14, LINE * (j + 1)), FONT)
    return _picture(np.vstack([strip, picture]))


def _wrap(words: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels, each with at least one letter."""
    lines = [""]
    for letter in _drawable(words):
        if lines[-1] and _width(lines[-1] + letter, FONT) > width:
            lines.append("")
        lines[-1] += letter
    return lines


def text(picture: Picture, words: str, at: tuple[int, int], size: float, colour: tuple[int, int, int] = INK) -> None:
    """Write a line of text; `at`: its lower left corner (x, y). Missing characters of the font are written as codes."""
    cv2.putText(picture, _drawable(words), at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _width(words: str, size: float) -> int:
    return int(cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0])


def _drawable(words: str) -> str:
    """Replace each character that OpenCV cannot draw by its code, as in \\u0e44."""
    letters = unicodedata.normalize("NFC", words)
    return "".join(x if _in_font(x) else x.encode("unicode_escape").decode() for x in letters)


@cache
def _in_font(letter: str) -> bool:
    """Whether OpenCV's font has a letter; it draws others as a question mark, and crashes on invalid Unicode."""
    if letter.isascii() or not letter.isprintable():
        return letter.isprintable()
    canvases = np.zeros((2, 48, 48), np.uint8)
    for canvas, character in zip(canvases, (letter, "?"), strict=True):
        cv2.putText(canvas, character, (8, 32), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 1)
    return bool((canvases[0] != canvases[1]).any())


def contact_sheet(pictures: Sequence[Picture], captions: Sequence[str], columns: int, side: int = 320) -> Picture:
    """Arrange pictures in rows of equal cells, each with a caption below, which is cut to the width of the cell."""
    if not pictures or len(pictures) != len(captions) or columns < 1:
        raise ValueError(f"{len(pictures)} pictures, {len(captions)} captions, {columns} columns")
    fitted = [fit(picture, side) for picture in pictures]
    columns = min(columns, len(fitted))
    rows = [slice(start, start + columns) for start in range(0, len(fitted), columns)]
    gap, line, wide = 12, 24, max(picture.shape[1] for picture in fitted)
    heights = [max(picture.shape[0] for picture in fitted[row]) + line + gap for row in rows]
    sheet = np.full((gap + sum(heights), gap + columns * (wide + gap), 3), 255, np.uint8)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for j, (picture, words) in enumerate(zip(fitted[row], captions[row], strict=True)):
            caption = _drawable(words)
            h, w = picture.shape[:2]
            x = gap + j * (wide + gap)
            sheet[y : y + h, x : x + w] = picture
            while _width(caption, 0.45) > wide:
                caption = caption[:-3].rstrip(".") + ".."
            text(sheet, caption, (x, y + height - line), 0.45)
        y += height
    return _picture(sheet)


def encode(picture: Picture, kind: Literal["png", "jpg"]) -> bytes:
    """Encode a picture as PNG or JPEG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 88] if kind == "jpg" else []
    ok, data = cv2.imencode(f".{kind}", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    if not ok:
        raise ValueError(f"OpenCV cannot write a picture of {picture.shape} as {kind}")
    return data.tobytes()


def _picture(array: NDArray[np.generic] | cv2.typing.MatLike) -> Picture:
    return np.ascontiguousarray(array, dtype=np.uint8)

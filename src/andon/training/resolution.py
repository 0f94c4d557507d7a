"""The smallest defect that a detector resolves at its input size, in pixels of the picture."""

import math
import re
from collections.abc import Sequence

from andon.data.check import Finding
from andon.data.dataset import Sample
from andon.data.whole import with_input_shape
from andon.errors import ImageError, RecipeError
from andon.geometry import tiling
from andon.geometry.views import STEP, Geometry
from andon.pictures import image
from andon.recipe import Recipe

LARGEST = 1024  # largest geometry.size to suggest; for more, tiles are suggested


def smallest_defect(frame: tuple[int, int], geometry: Geometry, stride: int) -> float:
    """Side, in pixels of an image (H, W), of the smallest square that covers four positions of the detector's map.

    `stride`: pixels of the detector's input between neighbouring positions.
    """
    return 2 * stride * math.sqrt(tiling.area_ratio(frame, geometry))


def sentence(frame: tuple[int, int], geometry: Geometry, stride: int) -> str:
    """State the size of the smallest defect."""
    height, width = geometry.input
    how = "in tiles of" if geometry.tiles else "at an input of"
    pixels = math.ceil(smallest_defect(frame, geometry, stride))
    return (
        f"{how} {width} × {height} pixels the smallest defect that covers four positions of the detector is "
        f"{pixels} × {pixels} pixels of your picture"
    )


def advice(frame: tuple[int, int], geometry: Geometry, stride: int, pixels: float) -> str:
    """State whether a defect of `pixels` a side in an image (H, W) is large enough, and what to change if not."""
    smallest, start = smallest_defect(frame, geometry, stride), sentence(frame, geometry, stride)
    if smallest <= pixels:
        return f"{start}; a defect of {pixels:g} is large enough"
    area = (geometry.size or geometry.input[0]) ** 2
    size = STEP * math.ceil(math.sqrt(area) * smallest / pixels / STEP)
    if not geometry.tiles and size <= LARGEST:
        return f"{start}; for a defect of {pixels:g} set size = {size}, which takes {size**2 / area:.1f} times the time"
    if not geometry.tiles and 2 * stride <= pixels:
        return (
            f"{start}; for a defect of {pixels:g} set geometry.tiles = true: tiles have the full resolution of the "
            f"picture, and a defect of {2 * stride} is large enough"
        )
    return (
        f"{start}; a defect of {pixels:g} is too small for this detector even at full resolution, where it needs "
        f"{2 * stride}. Use a camera or lens with a higher resolution, or a detector that compares pixels, such as "
        "variation"
    )


def length(text: str) -> float:
    """Read a length in pixels, such as 6 or 6px. RecipeError for other texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(px)?", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise RecipeError(
            f"smallest defect '{text}': expected a length in pixels of your picture, such as 6px. Correct it."
        )
    return float(match[1])


def findings(recipe: Recipe, good: Sequence[Sample], stride: int, wanted: float | None = None) -> list[Finding]:
    """A note on the smallest defect of a detector on these good images, with advice for a defect of `wanted` pixels.

    Empty if no image can be read.
    """
    for sample in good:
        try:
            frame = image.shape(sample.path)
        except ImageError:
            continue
        settings = with_input_shape(recipe, good).geometry
        text = advice(frame, settings, stride, wanted) if wanted else sentence(frame, settings, stride)
        return [Finding("note", "smallest-defect", f"{text}.")]
    return []

"""Does a detector respond to the defects? Peaks of its maps, and the AUROC of images with hidden defects.

*Hit rate*: the share of defective images whose map peaks inside the annotated defect or within `margin` of it.

*Control*: the image AUROC with every annotated defect painted over by its surroundings. If it is as high as the image
AUROC, the detector responds to something else: light, focus, background.

A detector may respond to the smooth fill. Therefore good images are painted too, in the areas of the masks of defective
images: both classes then have fills with the same sizes and positions. The picture is painted at its original size,
before the geometry of the recipe. The area is the mask dilated by `margin`, to hide the border of the defect too.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.calibration import percent
from andon.errors import ImageError
from andon.evaluate import metrics
from andon.inspection import Array, Inspection, Pixels, Verdict
from andon.pictures.image import Image
from andon.progress import Progress, silent

Json = dict[str, Any]
Area = NDArray[np.bool_]

SHARE = 60  # the margin is the square root of the inspected area divided by this
NEAR_SHARE = 0.5  # (control − 0.5) / (image AUROC − 0.5) from which on a detector is marked
MARK = "†"
RIM = 8  # pixels around a painted area that the fill uses
STAGE = "defects hidden"
NEAR = (
    f"{MARK} The control is close to the image AUROC, so most of the image AUROC does not come from the annotated "
    "defects. The image figures may measure light, focus or background."
)


class Labelled(Protocol):
    """An inspected image and its label."""

    @property
    def good(self) -> bool:
        """Whether it shows a good part."""
        ...

    @property
    def hit(self) -> bool | None:
        """Whether its map peaks inside its mask; None without a usable mask."""
        ...

    @property
    def score(self) -> float:
        """Its score."""
        ...

    def read(self) -> Image:
        """Read the picture. ImageError when its file is missing or has changed."""
        ...

    def truth(self, shape: tuple[int, ...]) -> Area | None:
        """Read its mask; None without a usable mask."""
        ...


class Inspecting(Protocol):
    """An inspector."""

    def inspect(self, source: Image) -> Inspection:
        """Inspect an image."""
        ...


def margin(pixels: int) -> int:
    """Return the margin in pixels for this number of inspected pixels: 1/60 of its square root, at least 1."""
    return max(1, round(math.sqrt(pixels) / SHARE))


def hit(anomaly_map: Array, mask: Area) -> bool | None:
    """Whether a map (H, W) peaks inside the mask, or at most `margin` pixels outside it.

    All pixels with the highest value must be there, so a constant map has no hit. None when the mask marks all
    inspected pixels, because every map would have a hit.
    """
    inspected = np.isfinite(anomaly_map)
    if mask[inspected].all():  # also if nothing is inspected
        return None if inspected.any() else False
    peak = inspected & (anomaly_map == anomaly_map[inspected].max())
    return bool(dilate(mask, margin(int(inspected.sum())))[peak].all())


def dilate(mask: Area, pixels: int) -> Area:
    """Return all pixels (H, W) with a distance of at most `pixels` to the mask."""
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= pixels) if mask.any() else mask


def paint_over(pixels: Pixels, area: Area) -> Pixels:
    """Return the picture (H, W, c) with an area (H, W) filled smoothly from its surroundings.

    The fill is the solution of Laplace's equation, from coarse to fine. ValueError when the area is the whole picture.
    """
    if area.all():
        raise ValueError("the area covers the whole picture; expected pixels around it")
    result = pixels.copy()
    rows, columns = (np.flatnonzero(area.any(axis=axis)) for axis in (1, 0))
    if rows.size:  # only what lies next to the area matters
        near_by = tuple(slice(max(0, int(at[0]) - RIM), int(at[-1]) + 1 + RIM) for at in (rows, columns))
        unknown = area[near_by]
        values = _fill(np.where(unknown[..., None], 0, pixels[near_by]).astype(np.float32), unknown)
        result[near_by][unknown] = np.rint(values[unknown]).astype(pixels.dtype)
    return result


def _fill(values: Array, unknown: Area) -> Array:
    """Fill unknown values (H, W, c) from a picture of half the size, then average neighbouring pixels."""
    if not unknown.any():
        return values
    height, width = unknown.shape
    size = ((width + 1) // 2, (height + 1) // 2)
    weight = _resize((~unknown).astype(np.float32)[..., None], size, cv2.INTER_AREA)
    mean = _resize(values * ~unknown[..., None], size, cv2.INTER_AREA) / np.maximum(weight, 1e-6)
    coarse = _fill(np.asarray(mean, np.float32), np.asarray(weight[..., 0] < 1e-3))
    filled: Array = np.where(unknown[..., None], _resize(coarse, (width, height), cv2.INTER_LINEAR), values)
    kernel = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
    for _ in range(20):
        blurred = cv2.filter2D(filled, -1, kernel, borderType=cv2.BORDER_REPLICATE).reshape(filled.shape)
        filled = np.where(unknown[..., None], blurred, filled)
    return filled


def _resize(values: Array, size: tuple[int, int], how: int) -> Array:
    resized: NDArray[Any] = cv2.resize(values, size, interpolation=how)
    return resized.reshape(size[1], size[0], -1)


class _Scores(NamedTuple):
    defective: list[bool]
    plain: list[float]
    hidden: list[float]


def figures(inspector: Inspecting, rows: Sequence[Labelled], progress: Progress = silent) -> Json:
    """Inspect defective images with a usable mask, and all good images, with areas painted over.

    `auroc`: the control; `plain`: the image AUROC of the same images without paint; `near`: see the function `near`.
    All three are null, with the reason `why`, when no image of one class can be painted.
    """
    masked = [row for row in rows if row.hit is not None]
    good = [row for row in rows if row.good]
    scores, areas, total = _Scores([], [], []), [], len(masked) + len(good)
    for done, row in enumerate(masked):
        progress(STAGE, done, total)
        area = _hide(inspector, row, None, scores)
        areas += [area] if area is not None else []
    for done, row in enumerate(good):
        progress(STAGE, len(masked) + done, total)
        if areas:  # distributed evenly over the masks
            _hide(inspector, row, areas[done * len(areas) // len(good)], scores)
    progress(STAGE, total, total)
    counts = {"good": scores.defective.count(False), "defective": scores.defective.count(True)}
    if not all(counts.values()):
        kind = "defective" if not counts["defective"] else "good"
        empty = dict.fromkeys(("auroc", "auroc_interval", "plain", "near"))
        return {**empty, "images": counts, "why": f"no {kind} image could be painted over"}
    ranked, plain = metrics.auroc(scores.defective, scores.hidden), metrics.auroc(scores.defective, scores.plain)
    interval = list(metrics.auroc_interval(scores.defective, scores.hidden))
    return {
        "auroc": ranked,
        "auroc_interval": interval,
        "plain": plain,
        "near": near(plain, ranked, interval[0]),
        "images": counts,
    }


def near(plain: float, control: float, low: float) -> bool:
    """Whether a control is so close to the image AUROC `plain` that the detector is marked.

    This is so when at least half of the image AUROC above 0.5 (chance) remains with hidden defects, and the lower end
    `low` of the control's 95 % interval is above 0.5: with few images, a control of 0.6 may be chance.
    """
    return low > 0.5 and control - 0.5 >= NEAR_SHARE * (plain - 0.5)


def _hide(inspector: Inspecting, row: Labelled, area: Area | None, scores: _Scores) -> Area | None:
    """Score an image with an area painted over, by default the area of its mask; return the area if it was used."""
    try:
        picture = row.read()
        shape = picture.pixels.shape[:2]
        if area is None:
            mask = row.truth(shape)
            if mask is None:
                return None
            area = dilate(mask, margin(mask.size))
        scaled = _resize(area.astype(np.float32)[..., None], (shape[1], shape[0]), cv2.INTER_AREA)[..., 0] > 0
        if scaled.all():
            return None
        inspection = inspector.inspect(picture._replace(pixels=paint_over(picture.pixels, scaled)))
    except ImageError:  # the file is missing or has changed
        return None
    if inspection.verdict is Verdict.INVALID:
        return None
    scores.defective.append(not row.good)
    scores.plain.append(row.score)
    scores.hidden.append(inspection.score if np.isfinite(inspection.score) else np.inf)
    return area


def mark(figures: Json) -> str:
    """Return the mark after the image AUROC in a table, if the control is close to it; else an empty text."""
    return f" {MARK}" if figures["control"] and figures["control"]["near"] else ""


def sentences(figures: Json) -> list[str]:
    """Sentences for people on the hit rate and the control; none without masks."""
    hits, control = figures["hits"], figures["control"]
    sentences = []
    if hits["n"]:
        low, high = map(percent, hits["interval"])
        sentences.append(
            f"The peak of the heat map is inside the defect in {hits['count']} of {hits['n']} images with a mask "
            f"({percent(hits['rate'])}, 95 % interval {low} to {high})."
        )
    elif figures["pixel"]["auroc"] is not None:
        sentences.append("The hit rate and the control cannot be measured: every mask marks all inspected pixels.")
    if control is None:
        return sentences
    if control["auroc"] is None:
        return [*sentences, f"The control cannot be measured: {control['why']}."]
    low, high = (f"{value:.4f}" for value in control["auroc_interval"])
    sentences.append(
        f"Control: with the annotated defects painted over, the image AUROC is {control['auroc']:.4f} (95 % interval "
        f"{low} to {high}) instead of {control['plain']:.4f}."
    )
    return [*sentences, NEAR] if control["near"] else sentences

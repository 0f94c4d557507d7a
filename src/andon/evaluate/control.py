"""Does a detector see the defects? Where its maps peak, and how well it ranks images whose defects are painted over.

*Hit rate*: the share of defective images whose map peaks inside the annotated defect or within `margin` of it.

*Control*: the image AUROC with every annotated defect painted over by its surroundings. A detector that ranks these
images as well as the real ones ranks them by something else: light, focus, the way they were taken.

Paint is smooth, so a detector may see the paint itself. Therefore good images are painted too, over the areas of the
masks of defective images: paint is then in both classes, with the same sizes and places, and does not tell them apart.
The picture is painted at its own size, before the geometry of the recipe. The area is the mask grown by `margin`, so
that the border of the defect is hidden too.
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

SHARE = 60  # the margin is this part of the square root of the inspected area
LEFT = 0.5  # of what the image AUROC has above one half: as much in the control marks a detector
MARK = "†"
RIM = 8  # pixels around a painted area that the fill looks at
STAGE = "defects hidden"
NEAR = (
    f"{MARK} The control is near the image AUROC: most of it does not come from the annotated defects. "
    "The image figures may measure light, focus or background."
)


class Labelled(Protocol):
    """An inspected image and its label."""

    @property
    def good(self) -> bool:
        """Whether it shows a good part."""
        ...

    @property
    def hit(self) -> bool | None:
        """Whether its map peaks inside its mask; None without a mask that can tell."""
        ...

    @property
    def score(self) -> float:
        """Its score."""
        ...

    def read(self) -> Image:
        """The picture. ImageError when its file is gone, or no longer the same."""
        ...

    def truth(self, shape: tuple[int, ...]) -> Area | None:
        """Its mask, or None where it has none that can be used."""
        ...


class Inspecting(Protocol):
    """What is needed of an inspector."""

    def inspect(self, source: Image) -> Inspection:
        """Inspect an image."""
        ...


def margin(pixels: int) -> int:
    """The margin in pixels of a picture of which so many pixels are inspected: 1/60 of the square root, at least 1."""
    return max(1, round(math.sqrt(pixels) / SHARE))


def hit(anomaly_map: Array, mask: Area) -> bool | None:
    """Whether a map (H, W) peaks inside the mask, or at most `margin` pixels outside it.

    Where several pixels share the highest value all must lie there, so a constant map never hits. None where the mask
    marks every inspected pixel: any map would hit.
    """
    known = np.isfinite(anomaly_map)
    if mask[known].all():  # also where nothing is known
        return None if known.any() else False
    peak = known & (anomaly_map == anomaly_map[known].max())
    return bool(grown(mask, margin(int(known.sum())))[peak].all())


def grown(mask: Area, pixels: int) -> Area:
    """The mask and all that lies at most so many pixels from it."""
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= pixels) if mask.any() else mask


def painted(pixels: Pixels, area: Area) -> Pixels:
    """The picture (H, W, c) with an area (H, W) filled smoothly from what lies around it; the rest stays as it is.

    The fill is the solution of Laplace's equation, found from coarse to fine. ValueError where all of it is to be
    filled.
    """
    if area.all():
        raise ValueError("the area covers the whole picture; expected pixels around it")
    result = pixels.copy()
    rows, columns = (np.flatnonzero(area.any(axis=axis)) for axis in (1, 0))
    if rows.size:  # only what lies next to the area matters
        near_by = tuple(slice(max(0, int(at[0]) - RIM), int(at[-1]) + 1 + RIM) for at in (rows, columns))
        unknown = area[near_by]
        filled = _fill(np.where(unknown[..., None], 0, pixels[near_by]).astype(np.float32), unknown)
        result[near_by][unknown] = np.rint(filled[unknown]).astype(pixels.dtype)
    return result


def _fill(values: Array, unknown: Area) -> Array:
    """Fill unknown values (H, W, c) from a picture of half the size, then average neighbours."""
    if not unknown.any():
        return values
    height, width = unknown.shape
    size = ((width + 1) // 2, (height + 1) // 2)
    weight = _resized((~unknown).astype(np.float32)[..., None], size, cv2.INTER_AREA)
    mean = _resized(values * ~unknown[..., None], size, cv2.INTER_AREA) / np.maximum(weight, 1e-6)
    coarse = _fill(np.asarray(mean, np.float32), np.asarray(weight[..., 0] < 1e-3))
    filled: Array = np.where(unknown[..., None], _resized(coarse, (width, height), cv2.INTER_LINEAR), values)
    kernel = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
    for _ in range(20):
        blurred = cv2.filter2D(filled, -1, kernel, borderType=cv2.BORDER_REPLICATE).reshape(filled.shape)
        filled = np.where(unknown[..., None], blurred, filled)
    return filled


def _resized(values: Array, size: tuple[int, int], how: int) -> Array:
    resized: NDArray[Any] = cv2.resize(values, size, interpolation=how)
    return resized.reshape(size[1], size[0], -1)


class _Scores(NamedTuple):
    defective: list[bool]
    plain: list[float]
    hidden: list[float]


def figures(inspector: Inspecting, rows: Sequence[Labelled], progress: Progress = silent) -> Json:
    """Inspect defective images with a usable mask, and all good ones, with areas painted over.

    `auroc` is the control and `plain` the image AUROC of the same images as they are; `near` says whether the detector
    is marked, see `near`. All three are null, and `why` says why, where no image of one kind can be painted.
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
        if areas:  # spread evenly over the masks, whichever are more
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
    """Whether a control is so near to the image AUROC that the detector is marked.

    It is where at least half of what the figure has above one half (chance) is left with the defects hidden, and the
    control's 95 % interval, which begins at `low`, lies above one half: with few images a control of 0.6 is chance.
    """
    return low > 0.5 and control - 0.5 >= LEFT * (plain - 0.5)


def _hide(inspector: Inspecting, row: Labelled, area: Area | None, scores: _Scores) -> Area | None:
    """Score an image with an area painted over, its own mask's where none is given; returns the area if it was used."""
    try:
        picture = row.read()
        shape = picture.pixels.shape[:2]
        if area is None:
            mask = row.truth(shape)
            if mask is None:
                return None
            area = grown(mask, margin(mask.size))
        fitted = _resized(area.astype(np.float32)[..., None], (shape[1], shape[0]), cv2.INTER_AREA)[..., 0] > 0
        if fitted.all():
            return None
        inspection = inspector.inspect(picture._replace(pixels=painted(picture.pixels, fitted)))
    except ImageError:  # gone or changed since it was inspected
        return None
    if inspection.verdict is Verdict.INVALID:
        return None
    scores.defective.append(not row.good)
    scores.plain.append(row.score)
    scores.hidden.append(inspection.score if np.isfinite(inspection.score) else np.inf)
    return area


def mark(figures: Json) -> str:
    """What stands behind the image AUROC in a table: a sign where the control is near it."""
    return f" {MARK}" if figures["control"] and figures["control"]["near"] else ""


def sentences(figures: Json) -> list[str]:
    """Say for people where the maps peak, and whether the score comes from the defects; nothing without masks."""
    hits, control = figures["hits"], figures["control"]
    told = []
    if hits["n"]:
        low, high = map(percent, hits["interval"])
        told.append(
            f"The heat map's peak lies inside the defect in {hits['count']} of {hits['n']} images with a mask "
            f"({percent(hits['rate'])}, 95 % interval {low} to {high})."
        )
    elif figures["pixel"]["auroc"] is not None:
        told.append("The hit rate and the control cannot be measured: every mask marks all that is inspected.")
    if control is None:
        return told
    if control["auroc"] is None:
        return [*told, f"The control cannot be measured: {control['why']}."]
    low, high = (f"{value:.4f}" for value in control["auroc_interval"])
    told.append(
        f"Control: with the annotated defects painted over, the image AUROC is {control['auroc']:.4f} (95 % interval "
        f"{low} to {high}) instead of {control['plain']:.4f}."
    )
    return [*told, NEAR] if control["near"] else told

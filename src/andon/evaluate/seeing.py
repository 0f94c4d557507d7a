"""Does a detector see the defects? The hit rate of its map, and the control: its figure with the defects painted over.

Scores may rank defective images above good ones by light, focus or anything else that the two have not in common. Two
figures show it, where the defects are annotated:

- **Hit rate**: the share of defective images whose anomaly map peaks inside the annotated defect, or within `MARGIN` of
  it.
- **Control**: the image AUROC when every annotated defect is painted over by its surroundings. The same areas are
  painted over in good images, one for each in turn, so that the paint itself tells the two apart no more. A detector
  that sees the defects cannot rank such images: its control is near 50 %. Where the control keeps half or more of what
  the figure has above 50 %, and is not 50 % by chance, most of the figure does not come from the defects: it is marked.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.data import masks
from andon.errors import ImageError
from andon.evaluate import metrics
from andon.evaluate.rows import Row
from andon.inspection import Array, Inspection, Pixels, Verdict
from andon.pictures.image import Image
from andon.progress import Progress

Json = dict[str, Any]
Mask = NDArray[np.bool_]

MARGIN = 1 / 60  # of the root of the picture's area: how far from the defect a peak still counts as a hit
SURROUNDED = 0.5  # of a picture: a defect that covers more leaves too little to paint from
AROUND = 0.01  # of the root of the picture's area, by which the paint goes beyond the annotation: its edge is rough
MARK = "†"


class Inspecting(Protocol):
    """What is needed of an inspector."""

    def inspect(self, source: Image) -> Inspection:
        """Inspect an image."""
        ...


class Painted(NamedTuple):
    """An image with an area painted over."""

    row: Row
    score: float  # of the painted image


def hit(anomaly_map: Array, area: Mask) -> bool:
    """Whether the peak of a map (H, W), NaN where nothing was inspected, lies in an area (H, W) or near it."""
    if np.isnan(anomaly_map).all():
        return False
    reach = max(1.0, MARGIN * math.sqrt(area.size))
    y, x = np.unravel_index(int(np.nanargmax(anomaly_map)), anomaly_map.shape)
    away: NDArray[Any] = cv2.distanceTransform(
        np.where(area, 0, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return bool(away[y, x] <= reach)


def painted_over(pixels: Pixels, area: Mask) -> Pixels:
    """Fill an area (H, W) of a picture (H, W, c) smoothly from its surroundings.

    Means over ever coarser squares of what is not covered, brought back from coarse to fine ("push-pull", Gortler et
    al., "The Lumigraph", SIGGRAPH 1996). It is fast at any size, and leaves no edge.
    """
    weights = [np.where(area, np.float32(0), np.float32(1))]
    values = [pixels.astype(np.float32) * weights[0][..., None]]
    while weights[-1].min() == 0 and min(weights[-1].shape) > 1:
        weights.append(np.asarray(cv2.pyrDown(weights[-1]), np.float32))
        values.append(np.asarray(cv2.pyrDown(values[-1]), np.float32).reshape(*weights[-1].shape, -1))
    filled = values[-1] / np.maximum(weights[-1], 1e-6)[..., None]
    for value, weight in zip(values[-2::-1], weights[-2::-1], strict=True):
        height, width = weight.shape
        coarse = cv2.pyrUp(filled, dstsize=(width, height)).reshape(height, width, -1)
        share = np.minimum(weight, 1)[..., None]
        filled = value + (1 - share) * coarse
    painted = pixels.copy()
    painted[area] = np.clip(np.rint(filled[area]), 0, np.iinfo(pixels.dtype).max)
    return painted


def control(inspector: Inspecting, rows: Sequence[Row], progress: Progress) -> Json:
    """Inspect the images once more with the annotated defects painted over, and as many good ones painted alike.

    Images without a usable mask, or whose defect covers more than half of them, are left out of both figures. Null, and
    why, where nothing is left.
    """
    good, masked = [row for row in rows if row.good], [row for row in rows if not row.good and row.mask]
    areas: list[Mask] = []
    found: list[Painted] = []
    total = len(good) + len(masked)
    for done, row in enumerate([*masked, *good]):
        progress("control: defects painted over", done, total)
        try:
            read = row.read()
            if not row.good:
                assert row.mask is not None
                area = _wide(masks.read_sized(row.mask, read.pixels.shape[:2]).area)
                if area.mean() > SURROUNDED:
                    continue
                areas.append(area)
            elif areas:  # of all kinds and sizes alike
                number = (done - len(masked)) * len(areas) // len(good)
                area = _resized(areas[number], read.pixels.shape[:2])
            else:
                break
        except ImageError:
            continue  # it is among the errors of the evaluation
        seen = inspector.inspect(read._replace(pixels=painted_over(read.pixels, area)))
        if seen.verdict is not Verdict.INVALID:
            found.append(Painted(row, math.inf if math.isnan(seen.score) else seen.score))
    progress("control: defects painted over", total, total)
    labels = [not each.row.good for each in found]
    names = ("auroc", "auroc_interval", "figure", "marked")
    if len(set(labels)) < 2:
        why = "no defective image has a mask that leaves enough of its surroundings" if good else "no good images"
        return {**dict.fromkeys(names), "n": sum(labels), "why": why}
    scores = [each.score for each in found]
    hidden, interval = metrics.auroc(labels, scores), metrics.auroc_interval(labels, scores)
    figure = metrics.auroc(labels, [each.row.score for each in found])
    return {
        "auroc": hidden,
        "auroc_interval": list(interval),
        "figure": figure,  # of the same images as they are
        "marked": bool(hidden - 0.5 >= (figure - 0.5) / 2 and interval[0] > 0.5),
        "n": sum(labels),
    }


NO_MASKS: Json = {**dict.fromkeys(("auroc", "auroc_interval", "figure", "marked")), "n": 0, "why": "there are no masks"}


def _wide(area: Mask) -> Mask:
    """An area and a little around it."""
    reach = max(1, round(AROUND * math.sqrt(area.size)))
    shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(area.astype(np.uint8), shape) > 0


def _resized(area: Mask, shape: tuple[int, ...]) -> Mask:
    """An area in a picture of another size."""
    if area.shape == shape:
        return area
    return cv2.resize(area.astype(np.uint8), (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST) > 0


def sentences(hits: Json, control: Json) -> list[str]:
    """Say both figures in words; nothing where there are no masks."""
    said = []
    if hits["n"]:
        said.append(
            f"The heat map's peak lies inside the defect, or at most {MARGIN:.1%} of the picture's size beside it, in "
            f"{hits['count']} of {hits['n']} defective images."
        )
    if control["auroc"] is not None:
        low, high = control["auroc_interval"]
        said.append(
            f"With the defects painted over, image AUROC is {control['auroc']:.4f} (95 % interval {low:.4f} to "
            f"{high:.4f}; 0.5 is expected of a detector that sees them), and {control['figure']:.4f} as they are."
        )
    if control["marked"]:
        said.append(
            f"{MARK} Most of this figure does not come from the annotated defects: the detector ranks these images "
            "almost as well without them. Look for light, focus or position in which good and defective images differ."
        )
    return said

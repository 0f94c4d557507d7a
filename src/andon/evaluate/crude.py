"""Does a test set measure defects, or light, focus and file format? Crude statistics of good against defective images.

Where one statistic, such as the mean gray, ranks the defective images above the good ones, a detector may do so too
without seeing a defect. Then its image figures say nothing about defects. For the mean gray an equalised figure is
computed: each image is scaled to the mean gray of good training images, and inspected again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from andon.data.check import Finding
from andon.data.dataset import Dataset
from andon.errors import ImageError
from andon.evaluate import metrics
from andon.inspection import Inspection, Verdict
from andon.pictures import appearance
from andon.pictures.image import Image, Source, read
from andon.progress import Progress, silent

Json = dict[str, Any]

LEAST = 0.85  # AUROC from which a statistic is said to separate good from defective, if its interval excludes one half
MEAN = "mean gray"
MEANING = {  # statistic → what defective images are where it is higher, where it is lower, what is measured then
    MEAN: ("brighter", "darker", "light"),
    "contrast": ("of higher contrast", "of lower contrast", "light"),
    "sharpness": ("sharper or noisier", "less sharp", "focus"),
    "saturated share": ("more often saturated", "less often saturated", "exposure"),
    "size in pixels": ("larger", "smaller", "how the images were cut"),
    "bytes per pixel": ("less compressed", "more compressed", "how the images were saved"),
    "file type": ("of another file type", "of another file type", "how the images were saved"),
}


class Crude(NamedTuple):
    """Crude statistics of one image and its file."""

    values: dict[str, float]  # those of `MEANING` but the last
    file_type: str
    look: appearance.Appearance


class Labelled(Protocol):
    """An image and its label."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def good(self) -> bool:
        """Whether it shows a good part."""
        ...


class Inspecting(Protocol):
    """What is needed of an inspector."""

    @property
    def calibration(self) -> Any:
        """The calibration, with the usual appearance of good images or None."""
        ...

    def read(self, source: Source) -> Image:
        """Read an image that the bundle takes."""
        ...

    def inspect(self, source: Image) -> Inspection:
        """Inspect an image."""
        ...


def of(image: Image, path: Path) -> Crude:
    """Measure an image, and the file it was read from."""
    look, (height, width) = appearance.of(image.pixels), image.full
    size = float(height * width)
    values = (look.mean, look.contrast, look.sharpness, look.saturated, size, path.stat().st_size / size)
    suffix = path.suffix.lower().lstrip(".")
    kind = {"jpeg": "jpg", "tiff": "tif"}.get(suffix, suffix)
    return Crude(dict(zip(MEANING, values, strict=False)), kind, look)


def statistics(measured: Sequence[Crude], defective: Sequence[bool]) -> dict[str, Json]:
    """How well each statistic ranks defective images (n,) above good ones, or below: AUROC from one half upwards.

    Empty where there are no good or no defective images.
    """
    if all(defective) or not any(defective):
        return {}
    found = {name: _ranking([m.values[name] for m in measured], defective) for name in MEANING if name != "file type"}
    kinds = sorted({m.file_type for m in measured})
    of_kinds = [_ranking([float(m.file_type == kind) for m in measured], defective) for kind in kinds]
    found["file type"] = max(of_kinds, key=lambda ranking: float(ranking["auroc"]))
    return found


def _ranking(values: Sequence[float], defective: Sequence[bool]) -> Json:
    area, (low, high) = metrics.auroc(defective, values), metrics.auroc_interval(defective, values)
    higher = area >= 0.5
    return {
        "auroc": area if higher else 1 - area,
        "interval": [low, high] if higher else [1 - high, 1 - low],
        "defective_are_higher": higher,
    }


def sentences(found: dict[str, Json]) -> list[str]:
    """Say which statistics separate the images, and what the figures may measure then."""
    told = []
    for name, ranking in found.items():
        low, high = ranking["interval"]
        if ranking["auroc"] >= LEAST and low > 0.5:
            words = MEANING[name]
            told.append(
                f"The {name} alone separates this test set: AUROC {100 * ranking['auroc']:.1f} (95 % interval "
                f"{100 * low:.1f} to {100 * high:.1f}); defective images are "
                f"{words[0] if ranking['defective_are_higher'] else words[1]}. "
                f"Image figures may measure {words[2]}, not defects."
            )
    return told


def figures(inspector: Inspecting, rows: Sequence[Labelled], plain: float | None, progress: Progress = silent) -> Json:
    """Statistics of inspected images, sentences for people, and the image AUROC with the gain divided out.

    `plain` is the image AUROC as it is. `equalised` is null unless the mean gray separates the images and the bundle
    knows that of good training images.
    """
    measured, defective, used = [], [], []
    for done, row in enumerate(rows):
        progress("crude statistics", done, len(rows))
        try:
            measured.append(of(inspector.read(row.path), row.path))
        except (ImageError, OSError):  # gone since it was inspected
            continue
        defective.append(not row.good)
        used.append(row)
    progress("crude statistics", len(rows), len(rows))
    found = statistics(measured, defective)
    told, equalised, usual = sentences(found), None, inspector.calibration.appearance
    if usual is not None:
        good = [m.look for m, bad in zip(measured, defective, strict=True) if not bad]
        told += [f"Good test images differ from those to calibrate on: {shift}." for shift in usual.shifts(good)]
        if found and sentences({MEAN: found[MEAN]}):
            target = sum(usual.mean.tails) / 2
            equalised = _equalised(inspector, used, target, progress)
    if equalised:
        low, high = equalised["auroc_interval"]
        told.append(
            f"With every image scaled to the mean gray of good training images ({equalised['mean_gray']:.0f}), the "
            f"image AUROC is {equalised['auroc']:.4f} (95 % interval {low:.4f} to {high:.4f})"
            + ("." if plain is None else f" instead of {plain:.4f}.")
        )
    return {"statistics": found, "equalised": equalised, "sentences": told}


def _equalised(inspector: Inspecting, rows: Sequence[Labelled], target: float, progress: Progress) -> Json | None:
    """Inspect images scaled to one mean gray; None where too few are left of one kind."""
    scores, defective = [], []
    for done, row in enumerate(rows):
        progress("inspecting equalised images", done, len(rows))
        try:
            image = inspector.read(row.path)
        except ImageError:
            continue
        top = np.iinfo(image.pixels.dtype).max
        gain = target / max(appearance.of(image.pixels).mean, appearance.DARKEST * top)
        pixels = np.clip(np.rint(image.pixels * gain), 0, top).astype(image.pixels.dtype)
        inspection = inspector.inspect(image._replace(pixels=pixels))
        if inspection.verdict is not Verdict.INVALID:
            scores.append(inspection.score if np.isfinite(inspection.score) else np.inf)
            defective.append(not row.good)
    progress("inspecting equalised images", len(rows), len(rows))
    if all(defective) or not any(defective):
        return None
    return {
        "auroc": metrics.auroc(defective, scores),
        "auroc_interval": list(metrics.auroc_interval(defective, scores)),
        "mean_gray": target,
        "images": len(scores),
    }


def findings(data: Dataset, progress: Progress = silent) -> list[Finding]:
    """Say for the report of a check which statistics separate the labelled test images."""
    chosen = [s for s in data.samples if s.split == "test"] or list(data.samples)
    samples = [s for s in chosen if s.defect]
    measured, defective = [], []
    for done, sample in enumerate(samples):
        progress("crude statistics", done, len(samples))
        try:
            measured.append(of(read(sample.path), sample.path))
        except (ImageError, OSError):  # of which the check tells
            continue
        defective.append(not sample.good)
    progress("crude statistics", len(samples), len(samples))
    return [Finding("warning", "crude", told) for told in sentences(statistics(measured, defective))]

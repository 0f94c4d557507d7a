"""Does a test set measure defects, or light, focus and file format? Simple statistics of good and defective images.

If one statistic, such as the mean gray, separates the defective images from the good ones, a detector can do the same
without detecting a defect, and its image figures do not measure defects. For the mean gray, an equalised figure is
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

LEAST = 0.85  # AUROC from which on a statistic separates good from defective images, if its interval excludes 0.5
MEAN = "mean gray"
MEANING = {  # statistic → words for defective images if it is higher, if it is lower, and for the measured property
    MEAN: ("brighter", "darker", "light"),
    "contrast": ("of higher contrast", "of lower contrast", "light"),
    "sharpness": ("sharper or noisier", "less sharp", "focus"),
    "saturated share": ("more often saturated", "less often saturated", "exposure"),
    "size in pixels": ("larger", "smaller", "the size of the images"),
    "bytes per pixel": ("less compressed", "more compressed", "the compression of the files"),
    "file type": ("of another file type", "of another file type", "the type of the files"),
}


class Crude(NamedTuple):
    """Simple statistics of one image and its file."""

    values: dict[str, float]  # all of `MEANING` except the last
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
    """An inspector."""

    @property
    def calibration(self) -> Any:
        """The calibration, with the appearance of good images or None."""
        ...

    def read(self, source: Source) -> Image:
        """Read an image."""
        ...

    def inspect(self, source: Image) -> Inspection:
        """Inspect an image."""
        ...


def measure(image: Image, path: Path, reduced: int = 1) -> Crude:
    """Measure an image and its file; `reduced`: as `appearance.look`."""
    look, (height, width) = appearance.look(image, reduced), image.full
    size = float(height * width)
    values = (look.mean, look.contrast, look.sharpness, look.saturated, size, path.stat().st_size / size)
    suffix = path.suffix.lower().lstrip(".")
    kind = {"jpeg": "jpg", "tiff": "tif"}.get(suffix, suffix)
    return Crude(dict(zip(MEANING, values, strict=False)), kind, look)


def statistics(measured: Sequence[Crude], defective: Sequence[bool]) -> dict[str, Json]:
    """The AUROC, at least 0.5, of each statistic as a score for or against defective (n,).

    Empty without good or without defective images.
    """
    if all(defective) or not any(defective):
        return {}
    figures = {name: _ranking([m.values[name] for m in measured], defective) for name in MEANING if name != "file type"}
    kinds = sorted({m.file_type for m in measured})
    rankings = [_ranking([float(m.file_type == kind) for m in measured], defective) for kind in kinds]
    figures["file type"] = max(rankings, key=lambda ranking: float(ranking["auroc"]))
    return figures


def _ranking(values: Sequence[float], defective: Sequence[bool]) -> Json:
    area, (low, high) = metrics.auroc(defective, values), metrics.auroc_interval(defective, values)
    higher = area >= 0.5
    return {
        "auroc": area if higher else 1 - area,
        "interval": [low, high] if higher else [1 - high, 1 - low],
        "defective_are_higher": higher,
    }


def sentences(statistics: dict[str, Json]) -> list[str]:
    """Sentences on statistics that separate the images, and on the property that the figures may measure."""
    result = []
    for name, ranking in statistics.items():
        low, high = ranking["interval"]
        if ranking["auroc"] >= LEAST and low > 0.5:
            words = MEANING[name]
            result.append(
                f"The {name} alone separates this test set: AUROC {100 * ranking['auroc']:.1f} (95 % interval "
                f"{100 * low:.1f} to {100 * high:.1f}); defective images are "
                f"{words[0] if ranking['defective_are_higher'] else words[1]}. "
                f"Image figures may measure {words[2]}, not defects."
            )
    return result


def figures(inspector: Inspecting, rows: Sequence[Labelled], plain: float | None, progress: Progress = silent) -> Json:
    """Statistics of inspected images, sentences for people, and the image AUROC with equal mean gray.

    `plain` is the image AUROC without this correction. `equalised` is null unless the mean gray separates the images
    and the bundle has the mean gray of good training images.
    """
    measured, defective, used = [], [], []
    usual = inspector.calibration.appearance
    for done, row in enumerate(rows):
        progress("simple statistics", done, len(rows))
        try:
            measured.append(measure(inspector.read(row.path), row.path, usual.reduced if usual else 1))
        except (ImageError, OSError):  # the file is missing or has changed
            continue
        defective.append(not row.good)
        used.append(row)
    progress("simple statistics", len(rows), len(rows))
    figures = statistics(measured, defective)
    words, equalised = sentences(figures), None
    if usual is not None:
        good = [m.look for m, bad in zip(measured, defective, strict=True) if not bad]
        words += [f"Good test images differ from those of the calibration: {shift}." for shift in usual.shifts(good)]
        if figures and sentences({MEAN: figures[MEAN]}):
            target = sum(usual.mean.tails) / 2
            equalised = _equalise(inspector, used, target, progress)
    if equalised:
        low, high = equalised["auroc_interval"]
        words.append(
            f"With every image scaled to the mean gray of good training images ({equalised['mean_gray']:.0f}), the "
            f"image AUROC is {equalised['auroc']:.4f} (95 % interval {low:.4f} to {high:.4f})"
            + ("." if plain is None else f" instead of {plain:.4f}.")
        )
    return {"statistics": figures, "equalised": equalised, "sentences": words}


def _equalise(inspector: Inspecting, rows: Sequence[Labelled], target: float, progress: Progress) -> Json | None:
    """Inspect images scaled to one mean gray; None if no good or no defective image remains."""
    scores, defective = [], []
    for done, row in enumerate(rows):
        progress("inspecting equalised images", done, len(rows))
        try:
            image = inspector.read(row.path)
        except ImageError:
            continue
        top = np.iinfo(image.pixels.dtype).max
        gain = target / max(appearance.measure(image.pixels).mean, appearance.DARKEST * top)
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
    """Findings for the report of a check: statistics that separate the labelled test images."""
    split = [s for s in data.samples if s.split == "test"] or list(data.samples)
    samples = [s for s in split if s.defect]
    measured, defective = [], []
    for done, sample in enumerate(samples):
        progress("simple statistics", done, len(samples))
        try:
            measured.append(measure(read(sample.path), sample.path))
        except (ImageError, OSError):  # the check reports it
            continue
        defective.append(not sample.good)
    progress("simple statistics", len(samples), len(samples))
    return [Finding("warning", "crude", sentence) for sentence in sentences(statistics(measured, defective))]

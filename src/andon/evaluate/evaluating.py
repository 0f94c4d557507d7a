"""A bundle on labelled images → figures, a table of scores, and the data of the report."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon import files, records
from andon.calibration import percent
from andon.data import masks, saturation
from andon.data.dataset import Dataset, Sample
from andon.data.saturation import Saturation
from andon.errors import DatasetError, ImageError, counted, few
from andon.evaluate import control, crude, metrics, repeated
from andon.evaluate.deciding import ALARMS, decision_figures, escapes, in_words, promised_unit, rate_of
from andon.evaluate.metrics import PixelMetrics
from andon.inspection import Inspection, Verdict
from andon.inspector import Inspector
from andon.pictures import image
from andon.progress import Progress, silent
from andon.streams.line import pictures, workers_of

Json = dict[str, Any]
UNGROUPED = (
    "The rates are promised for parts, and these figures are of single images. Say which images show one part, with "
    "--groups, to compare them with the promise."
)
PIXEL_FIGURES = {
    "Pixel AUROC": "auroc",
    "AUPRO": "aupro_30",
    "AUPIMO": "aupimo",
    "sPRO to 5 %": "spro_05",
    "F1 at the pixel threshold": "seg_f1",
}
"""Names in sentences → keys of the pixel figures."""


@dataclass(frozen=True)
class Row:
    """One labelled image with its result."""

    path: Path
    name: str  # path relative to the root of the data set
    defect: str  # good, or the type of defect
    group: str
    mask: Path | None
    score: float
    p_value: float
    verdict: Verdict
    regions: int
    milliseconds: float
    digest: str  # SHA-256 of the file
    hit: bool | None = None  # whether the map peaks inside the mask; None without a usable mask

    @property
    def good(self) -> bool:
        """Whether the label is good."""
        return self.defect == "good"

    def read(self, reduced: int = 1) -> image.Image:
        """Read the inspected picture. ImageError when its file is missing or has changed."""
        return image.read_again(self.path, self.digest, reduced)

    def truth(self, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Read the mask of the image of `shape` (H, W); None without a usable mask, see `Evaluation.errors`."""
        try:
            return masks.read_sized(self.mask, shape).area if self.mask else None
        except ImageError:
            return None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of an evaluation."""

    inspector: Inspector
    rows: tuple[Row, ...]  # images with a score, in the order of the data set
    metrics: Json  # the contents of `metrics.json`; fractions in [0, 1]
    errors: tuple[str, ...]  # messages on unreadable images and folders, and on unusable masks

    @property
    def warnings(self) -> list[str]:
        """Sentences on images in no figure, known to the bundle or repeated, and on doubtful groups and masks."""
        return list(self.metrics["warnings"])

    def summary(self) -> list[str]:
        """Sentences for people: escapes, false rejects, AUROC, pixel figures, control and simple statistics."""
        sentences = []
        unit, decision = promised_unit(self.metrics)
        for name, figures in decision.items():
            sentences.append(
                f"At the {name} threshold {in_words(figures['escapes'])} defective {unit} escape, "
                f"and {in_words(figures['false_rejects'])} good {unit} are stopped"
                + (f"; {percent(figures['promised_rate'])} was promised." if figures["promised_rate"] else ".")
            )
        ranked = self.metrics["image"]
        if ranked["auroc"] is None:
            sentences.append(f"Image AUROC cannot be measured: {ranked['why']}.")
        else:
            low, high = ranked["auroc_interval"]
            sentences.append(f"Image AUROC {ranked['auroc']:.4f} (95 % interval {low:.4f} to {high:.4f}).")
        pixel = self.metrics["pixel"]
        if pixel["auroc"] is None:
            also = "" if self.metrics["hits"]["n"] else ", the hit rate and the control"
            sentences.append(f"Pixel figures{also} cannot be measured: {pixel['why']}.")
        else:
            figures = [f"{name} {pixel[key]:.4f}" for name, key in PIXEL_FIGURES.items() if pixel[key] is not None]
            sentences.append(f"{', '.join(figures)}.")
        return [*sentences, *control.sentences(self.metrics), *self.metrics["crude"]["sentences"]]

    def json(self) -> bytes:
        """Return the figures as JSON."""
        return (files.strict_json(self.metrics, indent=1) + "\n").encode()

    def csv(self) -> bytes:
        """Return the score of every image as CSV, for other figures; a value that is not finite is an empty cell."""
        lines = [
            records.csv_line(["image", "defect", "group", "score", "p_value", "verdict", "regions", "milliseconds"])
        ]
        for r in self.rows:
            values = [r.name, r.defect, r.group, r.score, r.p_value, r.verdict.value, r.regions]
            lines.append(records.csv_line(files.finite([*values, round(r.milliseconds, 2)])))
        return b"".join(lines)


def evaluate(
    inspector: Inspector, dataset: Dataset, progress: Progress = silent, workers: int = 1, *, hidden: bool = True
) -> Evaluation:
    """Inspect all labelled images of the test split, or of the data set without splits, and compute the figures.

    workers: number of images that are inspected in parallel; 0: default of a line. With several, the time of an image
    includes waiting.
    hidden: if there are masks, compute the control: inspect images again with their defects painted over.

    Unreadable images and unusable masks are listed in `errors`. Errors: DatasetError when no image is labelled, or none
    could be inspected.
    """
    split = [s for s in dataset.samples if s.split == "test"] or list(dataset.samples)
    samples = [s for s in split if s.defect]
    if not samples:
        raise DatasetError(
            f"{dataset.root}: {len(split)} images, none labelled; expected a folder 'good' beside folders of defects. "
            "Sort the images into such folders."
        )
    results = _inspect(inspector, dataset, samples, progress, workers)
    rows, good = results.rows, [row for row in results.rows if row.good]
    if not rows:
        reason = results.errors[0] if results.errors else "The verdict of all is INVALID."
        raise DatasetError(
            f"{dataset.root}: 0 of {len(samples)} images could be inspected; expected images like the training images. "
            f"{reason}"
        )
    ranking, masked = image_figures(rows), any(row.hit is not None for row in rows)
    per, calibration = inspector.decision.per, inspector.calibration
    ungrouped = per == "part" and not dataset.grouped and calibration.images > calibration.parts
    figures: Json = {
        "bundle": {
            "product": inspector.recipe.product,
            "detector": inspector.manifest.detector,
            "digest": inspector.digest,
            "decision": inspector.decision_digest,
            "seed": inspector.manifest.seed,
        },
        "data": {
            "folder": dataset.root.resolve().name,
            "split": "test" if samples[0].split == "test" else "all",
            "images": len(rows),
            "unlabelled": len(split) - len(samples),
            "not_found": results.invalid,  # images with verdict INVALID; they are in no other figure
            "learnt_from": sum(inspector.manifest.learnt_from(row.digest for row in rows)),
            "digest": files.digest_of_all((row.name, row.digest) for row in rows),
        },
        "image": ranking,
        "pixel": {**_pixel_figures(results, inspector), "images": results.images},
        "hits": rate_of([row.hit for row in rows if row.hit is not None]),
        "control": control.figures(inspector, rows, progress) if hidden and masked else None,
        "decision_per": per,
        "decision": decision_figures(inspector, rows, "image" if dataset.grouped or ungrouped else per),
        "groups": None,
        "defects": {},
        "crude": crude.figures(inspector, rows, ranking["auroc"], progress),
        "milliseconds": {
            **{f"p{q}": float(np.percentile([r.milliseconds for r in rows], q)) for q in (50, 95)},
            "at_a_time": workers_of(workers),
        },
        "errors": results.errors,
        "warnings": [
            *_exclusions(results, len(split) - len(samples)),
            *dataset.doubtful_groups,
            *([UNGROUPED] if ungrouped else []),
            *repeated.sentences(inspector, rows),
            *_warnings(dataset, samples, results.masks),
        ],
    }
    if dataset.grouped:
        grouped = by_group(rows)
        ranked = image_figures(grouped)
        figures["groups"] = {
            "image": ranked,
            "decision": decision_figures(inspector, grouped, "part"),
            "images_per_group": {
                kind: figures["image"][f"n_{kind}"] / ranked[f"n_{kind}"] if ranked[f"n_{kind}"] else None
                for kind in ("good", "defective")
            },
        }
    for kind in sorted({row.defect for row in rows} - {"good"}):
        defects = [row for row in rows if row.defect == kind]
        figures["defects"][kind] = {
            "n": len(defects),
            **image_figures(defects + good),
            "hits": rate_of([row.hit for row in defects if row.hit is not None]),
            "escapes": {threshold: escapes(defects, threshold) for threshold in ALARMS},
            "pixel": _pixel_figures(results, inspector, kind),
        }
    return Evaluation(inspector, tuple(rows), figures, tuple(results.errors))


class _Results(NamedTuple):
    rows: list[Row]
    errors: list[str]
    invalid: dict[str, int]  # good, defective → number of images with verdict INVALID
    pixel: PixelMetrics
    images: dict[str, int]  # good, masked (both in the pixel figures), without_mask → number of images
    masks: dict[str, list[str]]  # binary, classes, gray, full → masks of this kind
    saturations: dict[int, Saturation]  # value of a mask → saturation; empty without defects_config.json


def _inspect(
    inspector: Inspector, dataset: Dataset, samples: Sequence[Sample], progress: Progress, workers: int
) -> _Results:
    masked = any(sample.mask for sample in samples)
    images = dict.fromkeys(("good", "masked", "without_mask"), 0)
    results = _Results(
        rows=[],
        errors=list(dataset.unreadable),
        invalid={"good": 0, "defective": 0},
        pixel=PixelMetrics(good_images=sum(sample.defect == "good" for sample in samples)),
        images=images if masked else {},
        masks={},
        saturations=saturation.load(dataset.root),
    )
    with closing(pictures(inspector, (sample.path for sample in samples), workers)) as outcomes:
        for done, (sample, outcome) in enumerate(zip(samples, outcomes, strict=True)):
            progress("inspecting", done, len(samples))
            if outcome.inspection is None:
                results.errors.append(outcome.error)
            elif outcome.verdict is Verdict.INVALID:
                results.invalid["good" if sample.defect == "good" else "defective"] += 1
            else:
                results.rows.append(_row(dataset, sample, outcome.inspection))
                if masked:
                    try:
                        images[_add(results, sample, outcome.inspection)] += 1
                    except ImageError as error:
                        results.errors.append(str(error))
    progress("inspecting", len(samples), len(samples))
    return results


def _row(dataset: Dataset, sample: Sample, inspection: Inspection) -> Row:
    return Row(
        path=sample.path,
        name=dataset.relative(sample),
        defect=sample.defect,
        group=sample.group,
        mask=sample.mask,
        score=math.inf if math.isnan(inspection.score) else inspection.score,  # REJECT, so it ranks highest
        p_value=inspection.p_value,
        verdict=inspection.verdict,
        regions=len(inspection.regions),
        milliseconds=inspection.milliseconds,
        digest=inspection.digest,
    )


def _add(results: _Results, sample: Sample, inspection: Inspection) -> str:
    """Add one image to the pixel figures; return its key in `_Results.images`."""
    if sample.defect == "good":
        results.pixel.add(inspection.anomaly_map)
        return "good"
    if sample.mask is None:
        return "without_mask"
    mask = masks.read_sized(sample.mask, inspection.anomaly_map.shape)
    annotated = results.saturations and sample.mask.is_dir()
    regions = saturation.regions(sample.mask, results.saturations) if annotated else []
    results.masks.setdefault("full" if mask.area.all() else mask.how, []).append(sample.mask.as_posix())
    results.rows[-1] = replace(results.rows[-1], hit=control.hit(inspection.anomaly_map, mask.area))
    results.pixel.add(inspection.anomaly_map, mask.area, sample.defect, regions)
    return "masked"


def _exclusions(results: _Results, unlabelled: int) -> list[str]:
    """Sentences on images that are in no figure."""
    sentences = []
    if any(results.invalid.values()):
        good, defective = results.invalid.values()
        sentences.append(f"INVALID, and in no figure: {good} good and {defective} defective images.")
    if unlabelled:
        sentences.append(f"without a label, and in no figure: {unlabelled} images. Put good ones into a folder 'good'.")
    return sentences


def _warnings(dataset: Dataset, samples: Sequence[Sample], kinds: dict[str, list[str]]) -> list[str]:
    """Sentences on masks that are missing, not used, or not black and white."""
    problems = dataset.mask_problems("test" if samples[0].split == "test" else None)
    sentences = [f"{message} {few(names)}" for severity, _, message, names in problems if severity != "note"]
    for how, words in (
        ("classes", "with class numbers; every value above 0 is a defect:"),
        ("gray", "with gray values; values above half of the largest are a defect:"),
        ("full", "with every pixel marked. Check whether black and white are exchanged:"),
    ):
        if how in kinds:
            names = [Path(name).relative_to(dataset.root).as_posix() for name in kinds[how]]
            sentences.append(f"{counted(len(names), 'mask')} {words} {few(names)}")
    return sentences


def by_group(rows: Sequence[Row]) -> list[Row]:
    """Return one row per group (part, lot or session) and label: the image with the highest score."""
    worst: dict[tuple[str, bool], Row] = {}
    for row in rows:
        key = (row.group, row.good)
        if key not in worst or row.score > worst[key].score:
            worst[key] = row
    return list(worst.values())


def image_figures(rows: Sequence[Row]) -> Json:
    """Ranking figures of image scores; null, with the reason `why`, without good or without defective images."""
    labels, scores = [not row.good for row in rows], [row.score for row in rows]
    counts = {"n_good": labels.count(False), "n_defective": labels.count(True)}
    names = ("auroc", "auroc_interval", "ap", "fpr_at_95_tpr", "f1_max_oracle")
    if not all(counts.values()):
        missing = "good" if not counts["n_good"] else "defective"
        return {**dict.fromkeys(names), **counts, "why": f"no {missing} images"}
    values = (
        metrics.auroc(labels, scores),
        list(metrics.auroc_interval(labels, scores)),
        metrics.average_precision(labels, scores),
        metrics.fpr_at_tpr(labels, scores, 0.95),
        metrics.f1_max(labels, scores),
    )
    return {**dict(zip(names, values, strict=True)), **counts}


def _pixel_figures(results: _Results, inspector: Inspector, kind: str | None = None) -> Json:
    """Pixel figures, of one kind of defect or of all; null, with the reason `why`, if they cannot be computed.

    AUPIMO is null without good images, sPRO without saturations, F1 without a pixel threshold.
    """
    names = ("auroc", "ap", "f1_max_oracle", "aupro_30", "aupro_05", "components")
    further: Json = dict.fromkeys(("aupimo", "seg_f1", "spro_30", "spro_05"))
    pixel = results.pixel
    kinds = {name for name, count in pixel.defects.items() if count and kind in (None, name)}
    if not kinds or not pixel.good:
        no_mask = "no mask could be used" if results.images else "the data set has no masks"
        return {**dict.fromkeys(names), **further, "why": "no good pixels" if kinds else no_mask}
    figures = pixel.figures(kind, limits=(0.30, 0.05))
    values = (figures.auroc, figures.ap, figures.f1_max_oracle, *figures.aupro, figures.components)
    threshold = inspector.thresholds.pixel
    if pixel.good_images:
        further["aupimo"] = fmean(pixel.aupimo(kind))
    if math.isfinite(threshold):
        further["seg_f1"] = pixel.f1(threshold, kind)
    if annotated := sorted(pixel.regions if kind is None else {kind} & pixel.regions.keys()):
        areas = zip(*(pixel.spro(name, limits=(0.30, 0.05)) for name in annotated), strict=True)
        further["spro_30"], further["spro_05"] = map(fmean, areas)  # the authors' mean: over the kinds of defects
    return {**dict(zip(names, values, strict=True)), **further}

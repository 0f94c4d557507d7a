"""A bundle on labelled images → figures, a table of scores, and what the report needs. Sees labels; decides nothing."""

import csv
import io
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon import files
from andon.calibration import percent
from andon.data import masks
from andon.data.dataset import Dataset, Sample
from andon.errors import DatasetError, ImageError, few
from andon.evaluate import control, crude, metrics
from andon.evaluate.deciding import ALARMS, decision_figures, escapes, in_words, promised_unit, rate_of
from andon.evaluate.metrics import PixelMetrics
from andon.inspection import Inspection, Verdict
from andon.inspector import Inspector
from andon.pictures import image
from andon.progress import Progress, silent
from andon.streams.line import pictures, workers_of

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One labelled image, inspected."""

    path: Path
    name: str  # path below the data set's root
    defect: str  # good, or the type of defect
    group: str
    mask: Path | None
    score: float
    p_value: float
    verdict: Verdict
    regions: int
    milliseconds: float
    digest: str  # SHA-256 of the file
    hit: bool | None = None  # whether the map peaks inside the mask; None without a mask that can tell

    @property
    def good(self) -> bool:
        """Whether the label says good."""
        return self.defect == "good"

    def read(self, reduced: int = 1) -> image.Image:
        """The picture that was inspected. ImageError when its file is gone, or no longer the same."""
        return image.read_again(self.path, self.digest, reduced)

    def truth(self, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """The mask of the image of `shape` (H, W), where it has one that can be used; others are among the errors."""
        try:
            return read_mask(self.mask, shape) if self.mask else None
        except ImageError:
            return None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that came of it."""

    inspector: Inspector
    rows: tuple[Row, ...]  # images that were found and read, in the order of the data set
    metrics: Json  # what `metrics.json` holds; fractions in [0, 1]
    errors: tuple[str, ...]  # images and folders that could not be read, and masks that could not be used

    @property
    def warnings(self) -> list[str]:
        """Sentences on images that no figure counts, and on masks that are missing, left over or read otherwise."""
        return list(self.metrics["warnings"])

    def summary(self) -> list[str]:
        """Sentences for people: what slips through and what is stopped for nothing, and how well scores rank."""
        sentences = []
        if known := self.metrics["data"]["learnt_from"]:
            sentences.append(
                f"The bundle learnt from {known} of these {len(self.rows)} images, so the figures are too good. "
                "Evaluate on images it has not seen."
            )
        unit, decision = promised_unit(self.metrics)
        for name, decided in decision.items():
            missed, stopped = decided["escapes"], decided["false_rejects"]
            sentences.append(
                f"At the {name} threshold {in_words(missed)} defective {unit} escape, "
                f"and {in_words(stopped)} good {unit} are stopped"
                + (f"; {percent(decided['promised_rate'])} was promised." if decided["promised_rate"] else ".")
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
            sentences.append(f"Pixel AUROC {pixel['auroc']:.4f}, AUPRO {pixel['aupro_30']:.4f}.")
        return [*sentences, *control.sentences(self.metrics), *self.metrics["crude"]["sentences"]]

    def json(self) -> bytes:
        """The figures, for machines."""
        return (files.strict_json(self.metrics, indent=1) + "\n").encode()

    def csv(self) -> bytes:
        """The score of every image, so that other figures can be worked out elsewhere."""
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(["image", "defect", "group", "score", "p_value", "verdict", "regions", "milliseconds"])
        for r in self.rows:
            values = [r.name, r.defect, r.group, repr(r.score), repr(r.p_value), r.verdict.value, r.regions]
            table.writerow([*values, f"{r.milliseconds:.2f}"])
        return lines.getvalue().encode(errors="backslashreplace")  # a name need not be valid Unicode


def evaluate(
    inspector: Inspector, dataset: Dataset, progress: Progress = silent, workers: int = 1, *, hidden: bool = True
) -> Evaluation:
    """Inspect every labelled image and work out the figures: the test split where there is one, else all.

    Where there are masks, `hidden` adds the control: images are inspected once more with their defects painted over.

    Images that cannot be read, and masks that cannot be used, are listed under `errors`; the run goes on. Several
    `workers` inspect at a time, 0: as many as a line has; then the time of an image holds what it waited for others.
    DatasetError when no image is labelled, or none could be inspected.
    """
    chosen = [s for s in dataset.samples if s.split == "test"] or list(dataset.samples)
    samples = [s for s in chosen if s.defect]
    if not samples:
        raise DatasetError(
            f"{dataset.root}: {len(chosen)} images, none labelled. Expected a folder 'good' beside folders of defects."
        )
    found = _inspect(inspector, dataset, samples, progress, workers)
    rows, good = found.rows, [row for row in found.rows if row.good]
    if not rows:
        raise DatasetError(f"{dataset.root}: none of {len(samples)} images could be inspected. {found.errors[:1]}")
    ranking, masked = image_figures(rows), any(row.hit is not None for row in rows)
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
            "unlabelled": len(chosen) - len(samples),
            "not_found": found.invalid,  # images that got INVALID; they count in no other figure
            "learnt_from": sum(inspector.manifest.learnt_from(row.digest for row in rows)),
            "digest": files.digest_of_all((row.name, row.digest) for row in rows),
        },
        "image": ranking,
        "pixel": {**_pixel_figures(found), "images": found.images},
        "hits": rate_of([row.hit for row in rows if row.hit is not None]),
        "control": control.figures(inspector, rows, progress) if hidden and masked else None,
        "decision_per": inspector.decision.per,
        "decision": decision_figures(inspector, rows, "image" if dataset.grouped else inspector.decision.per),
        "groups": None,
        "defects": {},
        "crude": crude.figures(inspector, rows, ranking["auroc"], progress),
        "milliseconds": {
            **{f"p{q}": float(np.percentile([r.milliseconds for r in rows], q)) for q in (50, 95)},
            "at_a_time": workers_of(workers),
        },
        "errors": found.errors,
        "warnings": [*_left_out(found, len(chosen) - len(samples)), *_warnings(dataset, samples, found.gray)],
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
        those = [row for row in rows if row.defect == kind]
        figures["defects"][kind] = {
            "n": len(those),
            **image_figures(those + good),
            "hits": rate_of([row.hit for row in those if row.hit is not None]),
            "escapes": {threshold: escapes(those, threshold) for threshold in ALARMS},
            "pixel": _pixel_figures(found, kind),
        }
    return Evaluation(inspector, tuple(rows), figures, tuple(found.errors))


class _Found(NamedTuple):
    rows: list[Row]
    errors: list[str]
    invalid: dict[str, int]  # good, defective → images in which the part was not found
    pixel: PixelMetrics
    images: dict[str, int]  # good, masked, without_mask → images in the pixel figures, or left out of them
    gray: dict[str, list[str]]  # binary, classes, gray, full → masks that were read so


def _inspect(
    inspector: Inspector, dataset: Dataset, samples: Sequence[Sample], progress: Progress, workers: int
) -> _Found:
    masked = any(sample.mask for sample in samples)
    images = dict.fromkeys(("good", "masked", "without_mask"), 0)
    found = _Found(
        [], list(dataset.unreadable), {"good": 0, "defective": 0}, PixelMetrics(), images if masked else {}, {}
    )
    with closing(pictures(inspector, (sample.path for sample in samples), workers)) as outcomes:
        for done, (sample, outcome) in enumerate(zip(samples, outcomes, strict=True)):
            progress("inspecting", done, len(samples))
            if outcome.inspection is None:
                found.errors.append(outcome.error)
            elif outcome.verdict is Verdict.INVALID:
                found.invalid["good" if sample.defect == "good" else "defective"] += 1
            else:
                found.rows.append(_row(dataset, sample, outcome.inspection))
                if masked:
                    try:
                        images[_add(found, sample, outcome.inspection)] += 1
                    except ImageError as error:
                        found.errors.append(str(error))
    progress("inspecting", len(samples), len(samples))
    return found


def _row(dataset: Dataset, sample: Sample, found: Inspection) -> Row:
    return Row(
        path=sample.path,
        name=dataset.relative(sample),
        defect=sample.defect,
        group=sample.group,
        mask=sample.mask,
        score=math.inf if math.isnan(found.score) else found.score,  # never passed, so it ranks as the worst
        p_value=found.p_value,
        verdict=found.verdict,
        regions=len(found.regions),
        milliseconds=found.milliseconds,
        digest=found.digest,
    )


def _add(found: _Found, sample: Sample, inspection: Inspection) -> str:
    """Take one image into the pixel figures, and say as what."""
    if sample.defect == "good":
        found.pixel.add(inspection.anomaly_map)
        return "good"
    if sample.mask is None:
        return "without_mask"
    mask = masks.read_sized(sample.mask, inspection.anomaly_map.shape)
    found.gray.setdefault("full" if mask.area.all() else mask.how, []).append(sample.mask.as_posix())
    found.rows[-1] = replace(found.rows[-1], hit=control.hit(inspection.anomaly_map, mask.area))
    found.pixel.add(inspection.anomaly_map, mask.area, kind=sample.defect)
    return "masked"


def _left_out(found: _Found, unlabelled: int) -> list[str]:
    """Sentences on images that no figure counts."""
    said = []
    if any(found.invalid.values()):
        good, defective = found.invalid.values()
        said.append(f"INVALID, and in no figure: {good} good and {defective} defective images.")
    if unlabelled:
        said.append(f"without a label, and in no figure: {unlabelled} images. Put good ones into a folder 'good'.")
    return said


def _warnings(dataset: Dataset, samples: Sequence[Sample], gray: dict[str, list[str]]) -> list[str]:
    """Sentences on masks that are missing, left over, or read otherwise than as black and white."""
    problems = dataset.mask_problems("test" if samples[0].split == "test" else None)
    said = [f"{message} {few(names)}" for severity, _, message, names in problems if severity != "note"]
    for how, words in (
        ("classes", "with numbers of classes; every value above 0 counts as defect:"),
        ("gray", "with values between 0 and the largest; they are cut at half of that:"),
        ("full", "with every pixel marked. Check whether black and white are exchanged:"),
    ):
        if how in gray:
            names = [Path(name).relative_to(dataset.root).as_posix() for name in gray[how]]
            said.append(f"{len(names)} mask{'s' * (len(names) > 1)} {words} {few(names)}")
    return said


def read_mask(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Read the mask of an image of `shape` (H, W) as `masks.read` does.

    Errors: ImageError when it cannot be read, is of another size, marks nothing or is inverted.
    """
    return masks.read_sized(path, shape).area


def by_group(rows: Sequence[Row]) -> list[Row]:
    """One row a group (part, lot or session) and label, its image of the highest score standing for it."""
    worst: dict[tuple[str, bool], Row] = {}
    for row in rows:
        key = (row.group, row.good)
        if key not in worst or row.score > worst[key].score:
            worst[key] = row
    return list(worst.values())


def image_figures(rows: Sequence[Row]) -> Json:
    """How well the scores rank defects above good parts; null, and why, where one of the two is missing."""
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


def _pixel_figures(found: _Found, kind: str | None = None) -> Json:
    """Figures over pixels, of one kind of defect or of all; null, and why, where there is nothing to measure."""
    names = ("auroc", "ap", "f1_max_oracle", "aupro_30", "aupro_05", "components")
    pixel = found.pixel
    seen = pixel.defects if kind is None else {kind} & pixel.defects.keys()
    if not seen or not pixel.good:
        reason = "no good pixels" if seen else "no mask could be used" if found.images else "the data set has no masks"
        return {**dict.fromkeys(names), "why": reason}
    measured = pixel.figures(kind, limits=(0.30, 0.05))
    values = (measured.auroc, measured.ap, measured.f1_max_oracle, *measured.aupro, measured.components)
    return dict(zip(names, values, strict=True))

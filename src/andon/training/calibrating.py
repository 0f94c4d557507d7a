"""Good images → calibration: on held-out images, crossed in folds, or on new images for an existing bundle."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from andon import detectors, files, inspector, render
from andon.binomial import clopper_pearson
from andon.bundle import Bundle
from andon.calibration import HIGHEST, Calibration, HeldOut, judge, percent
from andon.data import dataset, grouping
from andon.data.dataset import Sample
from andon.data.survey import SIDE, Prepared, Tell, prepare
from andon.engines.runtime import Runtime
from andon.errors import BundleError, DatasetError, ImageError, RecipeError, TrainingError
from andon.inspection import Scorer, Verdict
from andon.inspector import Scan
from andon.pictures import image
from andon.pictures.appearance import Appearance, GoodAppearance
from andon.progress import Progress, silent
from andon.recipe import CROSS_BELOW, Decision, Recipe, validate
from andon.render import Picture, Scale

ODD = 0.01  # greatest share of new good images with another appearance than the earlier ones


class Calibrated(NamedTuple):
    """A calibration and its pictures."""

    calibration: Calibration
    sheet: bytes  # JPEG: the held-out images with the highest scores, each beside its heat map
    looks: tuple[Appearance, ...]  # (n,) of the held-out images


class Shown(NamedTuple):
    """A held-out image with one of the highest scores, for the sheet."""

    score: float
    name: str
    pixels: NDArray[Any]  # (h, w, c), reduced
    anomaly_map: NDArray[Any]  # (h, w), reduced


def crosses(recipe: Recipe, samples: Sequence[Sample]) -> bool:
    """Whether the calibration is crossed: by the recipe, or with few parts and a quickly fitted detector."""
    few = len({sample.group for sample in samples}) < CROSS_BELOW
    method, quick = recipe.split.method, detectors.get(recipe.detector.name).quick
    return method == "cross" or (method == "auto" and few and quick)


def calibrate(
    folds: Sequence[tuple[Callable[[], Scorer], Iterable[Prepared]]],
    total: int,
    recipe: Recipe,
    progress: Progress,
) -> Calibrated:
    """Score held-out good images as inspection does, each with the scorer of its fold.

    `folds` are pairs of a function that makes a scorer, and the images that this scorer has not learnt; `total` is the
    number of all images. One pair is a simple split.
    Errors: DatasetError when no image can be used, TrainingError when a score is not a number.
    """
    found: list[HeldOut] = []
    shown: list[Shown] = []
    looks: list[Appearance] = []
    done, shape = 0, recipe.geometry.input
    for fold, (make, pictures) in enumerate(folds):
        progress("calibrating", done, total)
        scorer = make()
        for each in pictures:
            progress("calibrating", done, total)
            done += 1
            scanned = inspector.scan_tiles(each.placement, each.tiles, shape, scorer)
            if not (np.isfinite(scanned.score) and np.isfinite(scanned.map.values).any()):
                raise TrainingError(
                    f"{each.name}: the graph gave a score or map that is not a number. Train with other settings."
                )
            found.append(inspector.held_out(scanned, each.sample.group, each.sample.path.name, each.digest, fold))
            looks.append(each.look)
            shown = sorted([*shown, _shown(scanned, each)], key=lambda one: -one.score)[:HIGHEST]
    progress("calibrating", total, total)
    if not found:
        raise DatasetError(f"none of {total} good images can be used for calibration. Add good images.")
    calibration = Calibration.learn(found, len(folds) > 1, GoodAppearance.of(looks))
    scale = Scale.of(calibration.typical, calibration.thresholds(recipe.decision).pixel)
    return Calibrated(calibration, _sheet(shown, scale), tuple(looks))


def _shown(scanned: Scan, picture: Prepared) -> Shown:
    h, w = picture.thumbnail.shape[:2]
    return Shown(scanned.score, picture.sample.path.name, picture.thumbnail, cv2.resize(scanned.anomaly_map, (w, h)))


def _read(samples: Sequence[Sample], digests: Mapping[Path, str], bundle: Bundle, warn: Tell) -> Iterator[Prepared]:
    """Read and prepare new images for a bundle; `warn` gets a sentence for each unusable image."""
    registered_to, rule, usual = bundle.load_reference(), bundle.manifest.input, bundle.calibration.appearance
    for sample in samples:
        try:
            read = image.accept(image.read_again(sample.path, digests[sample.path], rule.reduced), rule)
            yield prepare(sample, read, bundle.recipe.geometry, registered_to, (usual or rule).reduced)
        except ImageError as error:
            warn(f"left out: {error}")


def _sheet(shown: Sequence[Shown], scale: Scale) -> bytes:
    """Draw each image beside its heat map, all with the same scale."""
    pictures = [_beside(each, scale) for each in shown]
    captions = [f"{each.name}  score {each.score:.4g}" for each in shown]
    return render.encode(render.contact_sheet(pictures, captions, columns=1, side=2 * SIDE), "jpg")


def _beside(each: Shown, scale: Scale) -> Picture:
    heat = render.overlay(each.pixels, each.anomaly_map, scale, side=SIDE, bar=False)
    photo = render.fit(render.display(each.pixels), SIDE)
    return np.hstack([photo, heat])


def recalibrate(
    bundle: Bundle,
    folder: str | Path,
    *,
    groups: str | Path | None = None,
    good: Sequence[str] = (),
    add: bool = False,
    progress: Progress = silent,
    tell: Tell = lambda sentence: None,
    warn: Tell | None = None,
) -> Bundle:
    """Replace the calibration of a bundle by one on new good images, without training.

    `add`: keep the scores of the previous calibration, and add those of the new images. A calibration in folds or
    without digests is replaced, with a warning. Images that the bundle learnt from are left out, because their scores
    are lower than those of new parts. Without `groups`, the pattern of groups of the recipe is used. `tell` and
    `warn`: as in `training.train`.
    """
    warn, trained_by = warn or tell, bundle.recipe.data.groups
    if groups is None and trained_by:
        if grouping.is_table(trained_by):
            raise DatasetError(
                f"the bundle was calibrated with the groups in {trained_by}, a table of other images. Give groups for "
                "the new images (--groups); with '(.*)' each image is a group."
            )
        groups = trained_by
    data = dataset.load(folder, groups=groups, good=good)
    for sentence in data.warnings:
        warn(sentence)
    for sentence in data.sources("calibration"):
        tell(sentence)
    new = data.training_images()
    digests = {sample.path: _digest(sample) for sample in new}
    learnt = bundle.manifest.learnt_from(digests.values())
    fresh = [sample for sample, known in zip(new, learnt, strict=True) if not known]
    if any(learnt):
        warn(f"left out: {sum(learnt)} of {len(new)} good images: the bundle was trained on them")
    if not fresh:
        raise DatasetError(
            f"{folder}: no new good images among {len(data.samples)} images. Calibration needs good images that the "
            "bundle was not trained on, outside a test split."
        )
    samples = united(fresh, [digests[sample.path] for sample in fresh], warn)
    found = calibrate(
        [(lambda: Runtime(bundle.graph), _read(samples, digests, bundle, warn))], len(samples), bundle.recipe, progress
    )
    for sentence in _changes(bundle, found):
        warn(sentence)
    before, calibration, kept = bundle.calibration, found.calibration, ""
    if add and before.extendable:
        calibration, kept = before.extend(calibration), f", {before.images} of them from the previous calibration"
        tell(f"added to the {before.images} good images of the previous calibration; the detector is the same")
    elif add:
        why = "has scores by other detectors, those of its folds" if before.folds else "has no digests of its images"
        warn(f"the previous calibration {why}. The new good images replace it.")
    event = f"{now()} from {bundle.digest()}: calibrated on {calibration.images} good images{kept}"
    return bundle.revise(event, calibration=calibration, sheet=found.sheet)


def before_and_after(before: Bundle, after: Bundle) -> list[str]:
    """Return sentences on the changes by a recalibration: thresholds, and verdicts on the good images that it used.

    Errors: BundleError when the bundles have different graphs, whose scores cannot be compared.
    """
    if before.graph != after.graph:
        raise BundleError(
            "the two bundles have different graphs; expected one bundle before and after a recalibration."
        )
    old, new = (each.calibration.thresholds(each.recipe.decision) for each in (before, after))
    sentences = [
        f"{name} threshold: {was:.4g} before, {now:.4g} after"
        for name, was, now in zip(old._fields, old, new, strict=True)
        if was != now
    ]
    counts = []
    for thresholds in (old, new):
        verdicts = Counter(judge(score, thresholds) for score in after.calibration.scores)
        counts.append(", ".join(f"{verdicts[verdict]} {verdict}" for verdict in Verdict if verdicts[verdict]))
    sentences.append(f"of these {after.calibration.images} good images: {counts[0]} before, {counts[1]} after")
    if new.review > old.review or new.reject > old.reject:
        sentences.append(
            "a higher threshold also passes defects that were stopped before. Inspect the challenge parts before this "
            f"bundle is used. To go back, activate the bundle {before.digest()[:12]}… again."
        )
    return sentences


def _changes(bundle: Bundle, calibrated: Calibrated) -> list[str]:
    """Warnings: differences of the new good images from those of the previous calibration."""
    old, new, warnings = bundle.calibration, calibrated.calibration, []
    usual, advice = old.appearance, "If the product or the camera has changed, train again"
    odd = [
        (name, oddities)
        for name, look in zip(new.names, calibrated.looks, strict=True)
        if usual and (oddities := usual.oddities(look))
    ]
    if clopper_pearson(len(odd), new.images)[0] > ODD:
        name, oddities = odd[0]
        warnings.append(
            f"{len(odd)} of {new.images} images differ from the previous good images ({name}: {oddities[0]}). {advice}."
        )
    decision = bundle.recipe.decision.model_copy(update={"review_threshold": None})
    scores, _ = new.units(new.scores, decision.per)
    above = int((scores > old.thresholds(decision).review).sum())
    rate = max(decision.review_rate, old.supported_rate)
    if clopper_pearson(above, len(scores))[0] > rate:
        warnings.append(
            f"{above} of {len(scores)} good {decision.per}s are above the previous review threshold; {percent(rate)} "
            f"was promised. {advice}. Look at the highest scores: a defective part among them raises the threshold."
        )
    return warnings


def united(samples: Sequence[Sample], digests: Sequence[str], warn: Tell) -> list[Sample]:
    """Count copies of one file (digests (n,)) as one part, and report them."""
    copies = len(digests) - len(set(digests))
    if copies:
        warn(f"{copies} of {len(digests)} good images are copies of another file; copies count as one part")
    return dataset.merge_groups(samples, digests)


def _digest(sample: Sample) -> str:
    """SHA-256 of the file; the path for an unreadable file, which calibration reports and leaves out."""
    try:
        return files.digest(image.contents(sample.path)[0])
    except ImageError:
        return str(sample.path)


def redecide(bundle: Bundle, changes: dict[str, Any]) -> Bundle:
    """Change rates or thresholds of a bundle. A new rate replaces a threshold that was set by hand.

    RecipeError for a rate together with its threshold, and for an impossible value.
    """
    decision = bundle.recipe.decision.model_dump()
    for key in changes:
        threshold = key.replace("_rate", "_threshold")
        if threshold != key:
            if threshold in changes:
                raise RecipeError(f"both {key} and {threshold} are given; expected one of them. Leave one out.")
            decision[threshold] = None
    decided = validate(Decision, {**decision, **changes}, "decision")
    recipe = bundle.recipe.model_copy(update={"decision": decided})
    event = ", ".join(f"{key} = {value}" for key, value in changes.items())
    return bundle.revise(f"{now()} from {bundle.digest()}: decision changed: {event}", recipe=recipe)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Good images → calibration: on images held out, crossed in folds, or on new ones for a finished bundle."""

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
from andon.calibration import HIGHEST, Calibration, HeldOut, percent
from andon.data import dataset
from andon.data.dataset import Sample
from andon.data.survey import SIDE, Prepared, Tell, prepare
from andon.engines.runtime import Runtime
from andon.errors import DatasetError, ImageError, RecipeError, TrainingError
from andon.inspection import Scorer
from andon.inspector import Scan
from andon.pictures import image
from andon.pictures.appearance import Appearance, GoodAppearance
from andon.progress import Progress, silent
from andon.recipe import CROSS_BELOW, Decision, Recipe, validate
from andon.render import Picture, Scale

ODD = 0.01  # share of new good images that may look unlike those of before


class Calibrated(NamedTuple):
    """A calibration and its pictures."""

    calibration: Calibration
    sheet: bytes  # JPEG: the held-out images with the highest scores, each beside its heat map
    looks: tuple[Appearance, ...]  # (n,) of the held-out images


class Shown(NamedTuple):
    """A held-out image with one of the highest scores, as the sheet shows it."""

    score: float
    name: str
    pixels: NDArray[Any]  # (h, w, c), shrunk
    anomaly_map: NDArray[Any]  # (h, w), shrunk


def crosses(recipe: Recipe, samples: Sequence[Sample]) -> bool:
    """Whether the calibration is crossed: asked for, or few parts and a detector that is fitted quickly."""
    few = len({sample.group for sample in samples}) < CROSS_BELOW
    method, quick = recipe.split.method, detectors.get(recipe.detector.name).quick
    return method == "cross" or (method == "auto" and few and quick)


def calibrate(
    folds: Sequence[tuple[Callable[[], Scorer], Iterable[Prepared]]],
    total: int,
    recipe: Recipe,
    progress: Progress,
) -> Calibrated:
    """Score held-out good images on the path that inspection takes, each by the scorer of its fold.

    `folds` pairs a function that makes a scorer with the images that it has not learnt, `total` in all; one pair is a
    plain split.
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
                    f"{each.name}: the graph gave a score or map that is not a number. Train again with other settings."
                )
            found.append(inspector.held_out(scanned, each.sample.group, each.sample.path.name, each.digest, fold))
            looks.append(each.look)
            shown = sorted([*shown, _shown(scanned, each)], key=lambda one: -one.score)[:HIGHEST]
    progress("calibrating", total, total)
    if not found:
        raise DatasetError(f"none of {total} good images could be used to calibrate.")
    calibration = Calibration.learn(found, len(folds) > 1, GoodAppearance.of(looks))
    scale = Scale.of(calibration.typical, calibration.thresholds(recipe.decision).pixel)
    return Calibrated(calibration, _sheet(shown, scale), tuple(looks))


def _shown(scanned: Scan, picture: Prepared) -> Shown:
    h, w = picture.thumbnail.shape[:2]
    return Shown(scanned.score, picture.sample.path.name, picture.thumbnail, cv2.resize(scanned.anomaly_map, (w, h)))


def _read(samples: Sequence[Sample], digests: Mapping[Path, str], bundle: Bundle, warn: Tell) -> Iterator[Prepared]:
    """Read and prepare new images for a bundle; `warn` hears of those that cannot be used."""
    registered_to = bundle.load_reference()
    for sample in samples:
        try:
            rule = bundle.manifest.input
            read = image.accept(image.read_again(sample.path, digests[sample.path], rule.reduced), rule)
            yield prepare(sample, read, bundle.recipe.geometry, registered_to)
        except ImageError as error:
            warn(f"left out: {error}")


def _sheet(shown: Sequence[Shown], scale: Scale) -> bytes:
    """Draw each image beside its heat map, all on one scale."""
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
    progress: Progress = silent,
    tell: Tell = lambda sentence: None,
    warn: Tell | None = None,
) -> Bundle:
    """Replace a bundle's calibration by one on new good images, without retraining.

    Images that the bundle learnt from are left out: their scores are lower than those of new parts. A pattern of
    groups in the recipe holds for the new images too, if no other is given. `tell` and `warn` as in `training.train`.
    """
    warn, trained_by = warn or tell, bundle.recipe.data.groups
    if groups is None and trained_by:
        if dataset.is_table(trained_by):
            raise DatasetError(
                f"the bundle was calibrated by the groups in {trained_by}, which names other images. "
                "Give groups for these (--groups); '(.*)' makes each image its own."
            )
        groups = trained_by
    data = dataset.load(folder, groups=groups, good=good)
    for sentence in data.unreadable:
        warn(f"left out: {sentence}")
    for sentence in data.sources("calibration"):
        tell(sentence)
    new = data.training_images()
    digests = {sample.path: _digest(sample) for sample in new}
    learnt = bundle.manifest.learnt_from(digests.values())
    fresh = [sample for sample, known in zip(new, learnt, strict=True) if not known]
    if any(learnt):
        warn(f"left out: {sum(learnt)} of {len(new)} good images, from which the bundle learnt")
    if not fresh:
        raise DatasetError(
            f"{folder}: no good images that the bundle has not learnt from, among {len(data.samples)}. "
            "Calibration needs new good images, outside a test split."
        )
    samples = united(fresh, [digests[sample.path] for sample in fresh], warn)
    found = calibrate(
        [(lambda: Runtime(bundle.graph), _read(samples, digests, bundle, warn))], len(samples), bundle.recipe, progress
    )
    for sentence in _changes(bundle, found):
        warn(sentence)
    event = f"{now()} calibrated on {found.calibration.images} good images"
    return bundle.revise(event, calibration=found.calibration, sheet=found.sheet)


def _changes(bundle: Bundle, found: Calibrated) -> list[str]:
    """Say in what new good images differ from those of the calibration that they replace."""
    old, new, said = bundle.calibration, found.calibration, []
    usual, advice = old.appearance, "If the product or the camera has changed, train again"
    odd = [
        (name, oddities)
        for name, look in zip(new.names, found.looks, strict=True)
        if usual and (oddities := usual.oddities(look))
    ]
    if clopper_pearson(len(odd), new.images)[0] > ODD:
        name, oddities = odd[0]
        said.append(
            f"{len(odd)} of {new.images} images look unlike the good ones of before ({name}: {oddities[0]}). {advice}."
        )
    decision = bundle.recipe.decision.model_copy(update={"review_threshold": None})
    scores, _ = new.units(new.scores, decision.per)
    above = int((scores > old.thresholds(decision).review).sum())
    rate = max(decision.review_rate, old.supported_rate)
    if clopper_pearson(above, len(scores))[0] > rate:
        said.append(
            f"{above} of {len(scores)} good {decision.per}s are above the review threshold that they replace, of which "
            f"{percent(rate)} was promised. {advice}; look at the highest: a defective part among them hides others."
        )
    return said


def united(samples: Sequence[Sample], digests: Sequence[str], warn: Tell) -> list[Sample]:
    """Let copies of one file (digests (n,)) count as one part, and say so."""
    copies = len(digests) - len(set(digests))
    if copies:
        warn(f"{copies} of {len(digests)} good images are copies of another's file; such copies count as one part")
    return dataset.merge_groups(samples, digests)


def _digest(sample: Sample) -> str:
    """SHA-256 of the file; one that cannot be read is like no other, and calibration says why it is left out."""
    try:
        return files.digest(image.contents(sample.path)[0])
    except ImageError:
        return str(sample.path)


def redecide(bundle: Bundle, changes: dict[str, Any]) -> Bundle:
    """Give a bundle other rates or thresholds. A new rate takes the place of a threshold that was set by hand.

    RecipeError when a rate comes with the threshold that would override it, or a value is impossible.
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
    return bundle.revise(f"{now()} decision changed: {event}", recipe=recipe)


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")

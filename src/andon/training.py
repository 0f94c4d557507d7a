"""Recipe + good images → bundle: split, fit, graph, gate, calibrate, save."""

import importlib.util
import platform
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from andon import dataset, detectors, files, image, inspector, reference, suspects
from andon.bundle import DIGITS, Bundle, Manifest, check_place
from andon.calibration import Calibration
from andon.dataset import Dataset, Sample
from andon.detectors.base import REQUIRED, Detector, Progress, Run, silent
from andon.errors import DatasetError, ImageError, RecipeError, TrainingError, unknown
from andon.image import Input
from andon.inspection import Array, Pixels
from andon.recipe import Decision, Recipe, validate
from andon.registration import Reference
from andon.runtime import Engine, Runtime
from andon.survey import DefectTiles, GoodTiles, Tell, check_sides, look_over, registered

TOLERANCE = 1e-3  # of the score range: how far the graph may be from the fitted detector
GATE_TILES = 8


def compose(
    source: str | Path | Recipe,
    *,
    detector: str | None = None,
    preset: str | None = None,
    settings: dict[str, Any] | None = None,
    size: int | None = None,
    seed: int | None = None,
    groups: str | Path | None = None,
) -> Recipe:
    """Make the recipe for a folder of good images, a recipe file or a recipe, with what is given here replaced."""
    if not isinstance(source, str | Path | Recipe) or source == "":
        found = "an empty name" if source == "" else f"a {type(source).__name__}"
        raise RecipeError(f"the source is {found}; expected a folder of good images, a recipe file or a Recipe.")
    if isinstance(source, Recipe):
        recipe = source
    elif Path(source).suffix.lower() == ".toml":
        recipe = Recipe.load(source)
    else:
        folders = [name for name in Path(source).resolve().parts[1:] if name.lower() not in ("train", "good")]
        recipe = Recipe.model_validate({"product": folders[-1] if folders else "", "data": {"images": str(source)}})
    values = recipe.model_dump()
    for section, given in (
        (values, {"seed": seed}),
        (values["detector"], {"name": detector, "preset": preset, "settings": settings}),
        (values["geometry"], {"size": size}),
        (values["data"], {"groups": None if groups is None else str(groups)}),
    ):
        section.update({key: value for key, value in given.items() if value is not None})
    return validate(Recipe, values, "recipe")


def train(
    source: str | Path | Recipe,
    out: str | Path,
    *,
    detector: str | None = None,
    preset: str | None = None,
    settings: dict[str, Any] | None = None,
    size: int | None = None,
    seed: int | None = None,
    groups: str | Path | None = None,
    device: str = "",
    seconds: float | None = None,
    progress: Progress = silent,
    tell: Tell = lambda sentence: None,
    warn: Tell | None = None,
) -> Bundle:
    """Learn a product from a folder of good images, or by a recipe, and write the bundle `out`.

    `tell` gets sentences for people: the forecast before the fit, what the calibration can promise. `warn` gets those
    on images that were left out or do not count, and is `tell` where none is given. A detector trained by gradient
    runs on `device`, for `seconds` in place of its steps; while it trains its checkpoints lie in `OUT.training`, and
    after a kill the same call goes on from there.
    Raises an AndonError, and writes nothing, when no bundle worth having comes of it.
    """
    began = time.perf_counter()
    out, warn = Path(out), warn or tell
    recipe = compose(source, detector=detector, preset=preset, settings=settings, size=size, seed=seed, groups=groups)
    model, recipe = construct(recipe)
    check_place(out)
    given = reference.given(recipe)
    if not recipe.data.images:
        raise RecipeError("the recipe names no images. Set [data] images to a folder of good images.")
    data = dataset.load(recipe.data.images, groups=recipe.data.groups or None)
    good, defective = data.to_learn(), [sample for sample in data.defective() if sample.split != "test"]
    learnt = _taken(defective, model, data, warn)
    if not good:
        raise DatasetError(f"{recipe.data.images}: no good images to learn from among {len(data.samples)} images.")
    survey = look_over(good, recipe, progress)
    for reason in survey.skipped:
        warn(f"left out: {reason}")
    samples = _united(survey.samples, [survey.digests[sample.path] for sample in survey.samples], warn)
    fit_on, calibrate_on = sides = dataset.split_good(samples, recipe.split.calibrate, recipe.seed)
    skipped = len(survey.skipped)
    if recipe.geometry.registration is not None:
        survey, recipe, fit_on, calibrate_on = registered(survey.rule, fit_on, calibrate_on, recipe, given, progress)
        for reason in survey.skipped:
            warn(f"left out: {reason}")
        skipped += len(survey.skipped)
        said = reference.provenance(survey.reference, survey.found.values())
        tell(f"registered to {said['reference']}: {said['registered']}")
        check_sides(survey, sides, (fit_on, calibrate_on))
    tell(f"{len(fit_on)} good images to learn from, {len(calibrate_on)} held out for calibration")
    if model.defects == "none":
        judged = suspects.judge(survey, recipe.geometry, recipe.seed, progress)
        if suspicion := suspects.warning(judged, recipe.data.images):
            warn(suspicion)
    defects = DefectTiles(learnt, recipe.geometry, survey.rule, warn, survey.reference)
    if defects.digests:
        tell(f"{len(defects.digests)} images of defects to learn from")
    tiles = GoodTiles(fit_on, survey, recipe.geometry, defects if learnt else None)
    timings, clock = {"read": time.perf_counter() - began}, time.perf_counter()

    files_of_all = [sample.path for sample in data.samples]
    checkpoints = out.with_name(out.name + ".training")
    run = Run(progress, tell, recipe.augment, checkpoints, device, seconds, files_of_all)
    forecast = model.forecast(tiles, run)
    tell(f"expected to take about {forecast.seconds:.0f} s and {forecast.megabytes:.0f} MB")
    model.fit(tiles, run)
    timings["fit"], clock = time.perf_counter() - clock, time.perf_counter()
    graph = model.graph().SerializeToString()
    try:
        parity = gate(model, graph, next(iter(tiles))[:GATE_TILES])
    except TrainingError:  # to go on from the checkpoint would lead here again
        shutil.rmtree(checkpoints, ignore_errors=True)
        raise
    timings["export"], clock = time.perf_counter() - clock, time.perf_counter()
    calibration = calibrate(Runtime(graph), recipe, survey.rule, calibrate_on, progress, warn, survey.reference)
    timings["calibrate"] = time.perf_counter() - clock

    manifest = Manifest(
        created=_now(),
        seed=recipe.seed,
        detector=recipe.detector.name,
        input=survey.rule,
        versions=versions(),
        machine=machine(),
        data={
            "images": len(good),
            "left_out": skipped,
            "fit": len(fit_on),
            "calibrate": len(calibrate_on),
            "defects": len(defects.digests),
            "digest": files.digest_of_all((path.name, digest) for path, digest in survey.digests.items()),
            **reference.provenance(survey.reference, survey.found.values()),
        },
        timings={step: round(seconds, 3) for step, seconds in timings.items()},
        parity=parity,
        learnt=sorted({digest[:DIGITS] for digest in [*(survey.digests[s.path] for s in fit_on), *defects.digests]}),
    )
    stored = survey.reference.data if survey.reference else b""
    bundle = Bundle(graph, recipe, calibration, manifest, model.curve, stored)
    bundle.save(out)
    shutil.rmtree(checkpoints, ignore_errors=True)
    for sentence in calibration.describe(recipe.decision):
        tell(sentence)
    return bundle


def _taken(defective: Sequence[Sample], model: Detector, data: Dataset, warn: Tell) -> list[Sample]:
    """Choose the images of defects that the detector learns from. DatasetError when it needs some and has none."""
    need, by_settings = model.defects, "" if model.defects == type(model).defects else " with these settings"
    if defective and need == "none":
        folders = ", ".join(sorted({sample.defect for sample in defective}))
        warn(
            f"left out: {len(defective)} images, taken as defects by their folders: {folders}. {model.name} learns "
            f"from good parts only{by_settings}; if they are good, move them into the folder of good images."
        )
    taken = [s for s in defective if need == "images" or (need != "none" and s.mask)]
    if need in ("masks", "masks if any") and len(taken) < len(defective):
        first = next(sample for sample in defective if not sample.mask)
        warn(
            f"left out: {len(defective) - len(taken)} of {len(defective)} images of defects, which have no mask, such "
            f"as {data.relative(first)}. {model.name} learns where defects are; the mask of an "
            "image DEFECT/NAME.png is ground_truth/DEFECT/NAME_mask.png."
        )
    if data.stray_masks and need != "none":
        warn(
            f"masks that match no image of a defect, and are not learnt from: {len(data.stray_masks)}, such as "
            f"{data.stray_masks[0].relative_to(data.root).as_posix()}. The mask of an image DEFECT/NAME.png is "
            "ground_truth/DEFECT/NAME_mask.png or ground_truth/DEFECT/NAME.png; rename them."
        )
    if not taken and need in REQUIRED:
        with_masks = " with masks in ground_truth" if need == "masks" else ""
        others = [name for name in detectors.names() if detectors.get(name).defects != "images" and name != model.name]
        raise DatasetError(
            f"{data.root}: no images of defects{with_masks} to learn from; {model.name} needs some"
            f"{by_settings}, in train/DEFECT beside train/good. These learn without: {', '.join(others)}."
        )
    return taken


def _united(samples: Sequence[Sample], digests: Sequence[str], warn: Tell) -> list[Sample]:
    """Let copies of one file (digests (n,)) count as one part, and say so."""
    copies = len(digests) - len(set(digests))
    if copies:
        warn(f"{copies} of {len(digests)} good images are copies of another's file; such copies count as one part")
    return dataset.united(samples, digests)


def construct(recipe: Recipe) -> tuple[Detector, Recipe]:
    """Build the recipe's detector, and the recipe with every setting spelled out, for the bundle to keep.

    RecipeError when detector, preset, settings and geometry do not fit together.
    """
    kind = detectors.get(recipe.detector.name)
    if recipe.detector.preset not in kind.presets:
        raise RecipeError(f"recipe: detector.preset: {unknown('preset', recipe.detector.preset, kind.presets)}")
    settings = {**kind.presets[recipe.detector.preset], **recipe.detector.settings}
    config = validate(kind.Config, settings, "recipe: detector.settings")
    model = kind(config, recipe.seed)
    if model.position_aware and recipe.geometry.tiles:
        changed = "" if kind.position_aware else " with these settings"
        raise RecipeError(
            f"recipe: {kind.name} knows where in the image a patch lies{changed}, so it cannot work on tiles cut from "
            "it. Set geometry.tiles = false, or choose another detector (`andon detectors`)."
        )
    chosen = recipe.detector.model_copy(update={"settings": config.model_dump(mode="json", exclude_none=True)})
    return model, recipe.model_copy(update={"detector": chosen})


def gate(model: Detector, graph: bytes, tiles: Pixels) -> dict[str, float]:
    """Hold every engine's scores against the fitted detector's on training tiles (n, t, t, c).

    Every second tile has the values of its middle inverted, for the score range goes from good to defective: what a
    detector says of good tiles alone may be all but flat.
    Returns engine → largest difference as a share of the range: of the map, and for a score that is wider than its
    map, as one not made of the map alone can be, of the scores. TrainingError past the tolerance.
    """
    tiles, quarter = np.repeat(tiles, 2 if len(tiles) == 1 else 1, axis=0), tiles.shape[1] // 4
    middle = tiles[1::2, quarter:-quarter, quarter:-quarter]
    middle[:] = np.iinfo(tiles.dtype).max - middle
    expected = model.score(tiles)
    spread_of_map = float(np.ptp(expected.pixel))
    spread = max(spread_of_map, float(np.ptp(expected.image)))
    engines: list[Engine] = ["onnxruntime"]
    if importlib.util.find_spec("openvino"):
        engines.append("openvino")
    parity: dict[str, float] = {}
    for engine in engines:
        found = Runtime(graph, engine).score(tiles)
        parity[engine] = max(
            _apart(found.image, expected.image, spread), _apart(found.pixel, expected.pixel, spread_of_map)
        )
        if not parity[engine] <= TOLERANCE:
            raise TrainingError(
                f"the graph on {engine} differs from the fitted {model.name} by {parity[engine]:.2g} of the score "
                f"range; at most {TOLERANCE:g} is allowed. No bundle was written. Please report this with the recipe."
            )
    return parity


def _apart(found: Array, expected: Array, spread: float) -> float:
    """Largest difference as a share of a spread; NaN when anything is not finite."""
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("nan")
    return float(np.abs(found - expected).max()) / max(spread, 1e-12)


def calibrate(
    scorer: Runtime,
    recipe: Recipe,
    rule: Input,
    samples: Sequence[Sample],
    progress: Progress,
    warn: Tell,
    registered_to: Reference | None = None,
) -> Calibration:
    """Score held-out good images on the path that inspection takes, and learn the thresholds' scores from them."""
    found = []
    for done, sample in enumerate(samples):
        progress("calibrating", done, len(samples))
        try:
            read = image.read(sample.path)
            image.accept(read, rule)
            scanned = inspector.scan(read.pixels, recipe.geometry, scorer, read.name, registered_to)
        except ImageError as error:
            warn(f"left out: {error}")
            continue
        if not (np.isfinite(scanned.score) and np.isfinite(scanned.anomaly_map).any()):
            raise TrainingError(f"{read.name}: the graph's score is no number. Train again with other settings.")
        found.append(inspector.held_out(scanned, sample.group))
    progress("calibrating", len(samples), len(samples))
    if not found:
        raise DatasetError(f"none of {len(samples)} good images could be used to calibrate.")
    return Calibration.learn(found)


def recalibrate(
    bundle: Bundle,
    folder: str | Path,
    *,
    groups: str | Path | None = None,
    device: str = "",
    seconds: float | None = None,
    progress: Progress = silent,
    tell: Tell = lambda sentence: None,
    warn: Tell | None = None,
) -> Bundle:
    """Replace a bundle's calibration by one on new good images, without retraining.

    Images that the bundle learnt from are left out: their scores are no witness. A pattern of groups in the recipe
    holds for the new images too, if no other is given. `tell` and `warn` as in `train`.
    """
    warn, trained_by = warn or tell, bundle.recipe.data.groups
    if groups is None and trained_by:
        if dataset.is_table(trained_by):
            raise DatasetError(
                f"the bundle was calibrated by the groups in {trained_by}, which names other images. "
                "Give groups for these (--groups); '(.*)' makes each image its own."
            )
        groups = trained_by
    data = dataset.load(folder, groups=groups)
    good = data.to_learn()
    digests = [_digest(sample) for sample in good]
    learnt = bundle.manifest.learnt_from(digests)
    fresh = [i for i in range(len(good)) if not learnt[i]]
    if any(learnt):
        warn(f"left out: {sum(learnt)} of {len(good)} good images, from which the bundle learnt")
    if not fresh:
        raise DatasetError(
            f"{folder}: no good images that the bundle has not learnt from, among {len(data.samples)}. "
            "Calibration needs new good images, outside a test split."
        )
    samples = _united([good[i] for i in fresh], [digests[i] for i in fresh], warn)
    scorer, registered_to = Runtime(bundle.graph), bundle.registered_to()
    found = calibrate(scorer, bundle.recipe, bundle.manifest.input, samples, progress, warn, registered_to)
    return bundle.changed(f"{_now()} calibrated on {found.images} good images", calibration=found)


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
    event = ", ".join(f"{key} = {value:g}" for key, value in changes.items())
    return bundle.changed(f"{_now()} decision changed: {event}", recipe=recipe)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> str:
    """Name the kind of machine and its system."""
    return f"{platform.machine()} {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what comes of a training."""
    packages = ("andon", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "spox")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}

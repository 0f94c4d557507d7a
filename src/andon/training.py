"""Recipe + good images → bundle: split, fit, graph, gate, calibrate, save."""

import importlib.util
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from andon import dataset, detectors, files, reference
from andon.bundle import DIGITS, Bundle, Manifest, check_place
from andon.calibrating import calibrate, crosses, now, united
from andon.dataset import Dataset, Sample
from andon.detectors.base import REQUIRED, Detector, Progress, Run, silent
from andon.errors import DatasetError, RecipeError, TrainingError, unknown
from andon.inspection import Array, Pixels
from andon.progress import Overall
from andon.recipe import Recipe, validate
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
    good: Sequence[str] = (),
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
        (values["data"], {"groups": None if groups is None else str(groups), "good": good or None}),
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
    good: Sequence[str] = (),
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
    out, warn, overall = Path(out), warn or tell, Overall(progress)
    recipe = compose(
        source, detector=detector, preset=preset, settings=settings, size=size, seed=seed, groups=groups, good=good
    )
    model, recipe = construct(recipe)
    check_place(out)
    given = reference.given(recipe)
    if not recipe.data.images:
        raise RecipeError("the recipe names no images. Set [data] images to a folder of good images.")
    data = dataset.load(recipe.data.images, groups=recipe.data.groups or None, good=recipe.data.good)
    to_learn, defective = data.to_learn(), [sample for sample in data.defective() if sample.split != "test"]
    for sentence in data.unreadable:
        warn(f"left out: {sentence}")
    learnt = _taken(defective, model, data, warn)
    if not to_learn:
        raise DatasetError(
            f"{recipe.data.images}: no good images to learn from among {len(data.samples)} images. Taken as defects by "
            f"their folders: {', '.join(sorted({s.defect for s in defective})) or 'none'}. If one of these folders "
            "holds good parts, name it: --good NAME."
        )
    for sentence in data.sources():
        tell(sentence)
    survey = look_over(to_learn, recipe, overall)
    for reason in survey.skipped:
        warn(f"left out: {reason}")
    if survey.rule.maximum:
        recipe = recipe.up_to(survey.rule.maximum)
        tell(
            f"16-bit files with values up to {survey.rule.maximum}, which are scaled to the full range; a picture with "
            "higher values will be refused. If these are only dark, set input.maximum = 65535."
        )
    samples = united(survey.samples, [survey.digests[sample.path] for sample in survey.samples], warn)
    crossed = crosses(recipe, samples)
    fit_on, calibrate_on = sides = (
        (samples, samples) if crossed else dataset.split_good(samples, recipe.split.calibrate, recipe.seed)
    )
    skipped = len(survey.skipped)
    if recipe.geometry.registration is not None:
        survey, recipe, fit_on, calibrate_on = registered(survey, fit_on, calibrate_on, recipe, given, overall)
        for reason in survey.skipped:
            warn(f"left out: {reason}")
        skipped += len(survey.skipped)
        said = reference.provenance(survey.reference, survey.found.values())
        tell(f"registered to {said['reference']}: {said['registered']}")
        check_sides(survey, sides, (fit_on, calibrate_on))
    tell(f"{survey.share:.1%} of each picture is inspected")
    folds = dataset.folds(calibrate_on, recipe.split.folds, recipe.seed) if crossed else [calibrate_on]
    if crossed:
        tell(
            f"{len(fit_on)} good images to learn from; cross-conformal calibration on {len(calibrate_on)} of them in "
            f"{len(folds)} folds"
        )
    else:
        tell(f"{len(fit_on)} good images to learn from, {len(calibrate_on)} held out for calibration")
    defects = DefectTiles(learnt, recipe.geometry, survey.rule, warn, survey.reference)
    if defects.digests:
        tell(f"{len(defects.digests)} images of defects to learn from")

    def tiles_of(samples: Sequence[Sample]) -> GoodTiles:
        return GoodTiles(samples, survey, recipe.geometry, defects if learnt else None)

    tiles = tiles_of(fit_on)
    timings, clock = {"read": time.perf_counter() - began}, time.perf_counter()

    files_of_all = [sample.path for sample in data.samples]
    checkpoints = out.with_name(out.name + ".training")
    run = Run(overall, tell, recipe.augment, checkpoints, device, seconds, files_of_all)
    forecast = model.forecast(tiles, run)
    refits = len(folds) - 1 if crossed else 0  # each of n folds learns from n - 1 shares of n
    tell(f"expected to take about {forecast.seconds * (1 + refits):.0f} s and {forecast.megabytes:.0f} MB")
    # Calibration reads its images as the survey did, and scores them too; so twice the time.
    calibrating = 2 * timings["read"] * len(calibrate_on) / len(to_learn) + refits * forecast.seconds
    overall.plan(forecast.seconds, calibrating)
    model.fit(tiles, run)
    timings["fit"], clock = time.perf_counter() - clock, time.perf_counter()
    graph = model.graph().SerializeToString()
    try:
        parity = gate(model, graph, next(iter(tiles))[:GATE_TILES])
    except TrainingError:  # to go on from the checkpoint would lead here again
        shutil.rmtree(checkpoints, ignore_errors=True)
        raise
    timings["export"], clock = time.perf_counter() - clock, time.perf_counter()
    overall.plan(calibrating)

    def scorer_without(fold: Sequence[Sample], number: int) -> Runtime:
        """Fit another detector on all but the groups of a fold."""
        groups = {sample.group for sample in fold}
        other, _ = construct(recipe)
        quiet = replace(run, progress=silent, tell=lambda sentence: None, folder=checkpoints / f"fold-{number}")
        other.fit(tiles_of([sample for sample in fit_on if sample.group not in groups]), quiet)
        return Runtime(other.graph().SerializeToString())

    scorers: list[Callable[[], Runtime]] = (
        [partial(scorer_without, fold, i) for i, fold in enumerate(folds)] if crossed else [partial(Runtime, graph)]
    )
    found = calibrate(
        list(zip(scorers, folds, strict=True)), survey.digests, recipe, survey.rule, overall, warn, survey.reference
    )
    overall.finish()
    timings["calibrate"] = time.perf_counter() - clock

    manifest = Manifest(
        created=now(),
        seed=recipe.seed,
        detector=recipe.detector.name,
        input=survey.rule,
        versions=versions(),
        machine=machine(),
        data={
            "images": len(to_learn),
            "folders": data.learnt_from(),
            "inspected": f"{survey.share:.1%} of each picture",
            "left_out": skipped,
            "fit": len(fit_on),
            "calibrate": len(calibrate_on),
            "defects": len(defects.digests),
            "digest": files.digest_of_all((path.name, digest) for path, digest in survey.digests.items()),
            **reference.provenance(survey.reference, survey.found.values()),
        },
        timings={step: round(seconds, 3) for step, seconds in timings.items()},
        parity=parity,
        learnt=sorted(
            {digest[:DIGITS] for digest in [*(survey.digests[s.path] for s in fit_on), *defects.digests.values()]}
        ),
    )
    stored = survey.reference.data if survey.reference else b""
    bundle = Bundle(graph, recipe, found.calibration, manifest, model.curve, stored, found.sheet)
    bundle.save(out)
    shutil.rmtree(checkpoints, ignore_errors=True)
    for sentence in found.calibration.describe(recipe.decision):
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


def machine() -> str:
    """Name the kind of machine and its system."""
    return f"{platform.machine()} {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what comes of a training."""
    packages = ("andon", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "simplejpeg", "spox")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}

"""Recipe + good images → bundle: split, fit, graph, gate, calibrate, save."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from andon import detectors, files
from andon.bundle import DIGITS, Bundle, Manifest, check_writable, machine, versions
from andon.data import dataset, reference
from andon.data.dataset import Dataset, Sample
from andon.data.labelling import listing
from andon.data.store import Memo, Store
from andon.data.survey import DefectTiles, GoodTiles, Prepared, Survey, Tell, check_sides, register, survey_images
from andon.data.whole import with_input_shape
from andon.detector import REQUIRED, Detector, Forecast, Run
from andon.engines.runtime import Runtime
from andon.errors import AndonError, DatasetError, RecipeError, TrainingError, counted, unknown
from andon.geometry.views import SIZE
from andon.inspection import Pixels, Scorer
from andon.progress import Overall, Progress, silent
from andon.recipe import Recipe, plain, validate
from andon.training import gate, resolution, suspects, workplace
from andon.training.calibrating import calibrate, crosses, now, united

LAPS = 5  # runs; their median is reported


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
    """Make a recipe from a folder of good images, a recipe file or a recipe; arguments replace its values."""
    if not isinstance(source, str | Path | Recipe) or source == "":
        what = "an empty name" if source == "" else f"a {type(source).__name__}"
        raise RecipeError(f"the source is {what}; expected a folder of good images, a recipe file or a Recipe.")
    if isinstance(source, Recipe):
        recipe = source
    elif Path(source).suffix.lower() == ".toml":
        recipe = Recipe.load(source)
    else:
        folders = [name for name in Path(source).resolve().parts[1:] if name.lower() not in ("train", "good")]
        recipe = Recipe.model_validate({"product": folders[-1] if folders else "", "data": {"images": str(source)}})
    values = recipe.model_dump()
    for section, changes in (
        (values, {"seed": seed}),
        (values["detector"], {"name": detector, "preset": preset, "settings": settings}),
        (values["geometry"], {"size": size}),
        (values["data"], {"groups": None if groups is None else str(groups), "good": good or None}),
    ):
        section.update({key: plain(value) for key, value in changes.items() if value is not None})
    if values["geometry"]["size"] is None:
        recipe = validate(Recipe, values, "recipe")
        kind = detectors.get(recipe.detector.name)
        values["geometry"]["size"] = kind.sizes.get(_preset(kind, recipe), SIZE)
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
    storage_mb: int = files.STORAGE_MB,
    progress: Progress = silent,
    tell: Tell = lambda sentence: None,
    warn: Tell | None = None,
) -> Bundle:
    """Train on a folder of good images, or by a recipe, and write the bundle `out`.

    `tell` gets messages: the forecast before the fit, the rates that the calibration supports. `warn` gets warnings
    about images that are left out or do not count; default: `tell`. A detector trained by gradient uses `device`, and
    trains for `seconds` instead of its number of steps. Its checkpoints are in `OUT.training`; after a kill, the same
    call continues from them. Only one training at a time may write OUT. The tiles of all images are in a temporary file
    of at most `storage_mb` megabytes in `OUT.training`, which is deleted when the process ends.
    Errors: AndonError when the training fails; then no bundle is written.
    """
    recipe = compose(
        source, detector=detector, preset=preset, settings=settings, size=size, seed=seed, groups=groups, good=good
    )
    model, recipe = construct(recipe)
    check_writable(out)
    with workplace.opened(Path(out)) as folder:
        run = Run(Overall(progress), tell, recipe.augment, folder, device, seconds)
        bundle = _train(model, recipe, Path(out), run, Store(storage_mb, folder), warn or tell)
        workplace.clear(run.written)
    for sentence in bundle.calibration.describe(bundle.recipe.decision):
        tell(sentence)
    return bundle


def _train(model: Detector, recipe: Recipe, out: Path, run: Run, store: Store, warn: Tell) -> Bundle:
    began, overall, tell = time.perf_counter(), run.progress, run.tell
    assert isinstance(overall, Overall)
    data, learnt = _images(recipe, model, tell, warn)
    sides = _divided(data, recipe, store, model.defects == "none", overall, tell, warn)
    recipe, survey = sides.recipe, sides.survey
    if model.defects == "none":
        judged = suspects.judge(survey, recipe.geometry, recipe.seed, overall)
        if suspicion := suspects.warning(judged, recipe.data.images):
            warn(suspicion)
    frame = survey.reference.frame if survey.reference else survey.entries[sides.fit[0].path].placement.frame
    tell(resolution.sentence(frame, recipe.geometry, model.stride))
    defects = DefectTiles(learnt, recipe.geometry, survey.rule, store, warn, survey.reference)
    if defects.digests:
        tell(f"{counted(len(defects.digests), 'image of defects')} to learn from")

    def tiles_of(samples: Sequence[Sample]) -> GoodTiles:
        return GoodTiles(samples, survey, recipe.geometry, defects if learnt else None)

    tiles = tiles_of(sides.fit)
    timings, clock = {"read": time.perf_counter() - began}, time.perf_counter()

    run = replace(run, images=[sample.path for sample in data.samples], memo=Memo(store))
    forecast, refits = model.forecast(tiles, run), sides.refits
    tell(f"expected to take about {forecast.seconds * (1 + refits):.0f} s and {forecast.megabytes:.0f} MB")
    held_out = sum(map(len, sides.folds))
    calibrating = timings["read"] * held_out / len(survey.samples) + refits * forecast.seconds
    overall.plan(forecast.seconds, calibrating)
    model.fit(tiles, run)
    timings["fit"], clock = time.perf_counter() - clock, time.perf_counter()
    graph = model.graph().SerializeToString()
    try:
        parity = gate.check(model, graph, tiles)
    except AndonError as error:
        raise TrainingError(f"{error} No bundle was written. {_again(run, out)}") from None
    timings["export"], clock = time.perf_counter() - clock, time.perf_counter()
    tell(_cost(model, recipe, Runtime(graph), tiles[[0]]))

    def scorer_without(fold: Sequence[Sample], number: int) -> Runtime:
        """Fit another detector on all but the groups of a fold."""
        groups, folder = {sample.group for sample in fold}, run.folder
        other, _ = construct(recipe)
        own = folder / f"fold-{number}" if folder else None
        quiet = replace(run, progress=silent, tell=lambda sentence: None, folder=own)
        other.fit(tiles_of([sample for sample in sides.fit if sample.group not in groups]), quiet)
        return Runtime(other.graph().SerializeToString())

    scorers: list[Callable[[], Scorer]] = [partial(Runtime, graph)]
    if sides.crossed:
        scorers = [partial(scorer_without, fold, i) for i, fold in enumerate(sides.folds)]

    def pictures(fold: Sequence[Sample]) -> Iterator[Prepared]:
        return (survey.prepared(sample, recipe.geometry) for sample in fold)

    overall.plan(calibrating)
    found = calibrate(
        [(make, pictures(fold)) for make, fold in zip(scorers, sides.folds, strict=True)], held_out, recipe, overall
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
            "images": len(data.training_images()),
            "left_out": sides.skipped,
            "fit": len(sides.fit),
            "calibrate": held_out,
            "defects": len(defects.digests),
            "folders": listing(data.training_folders(), "{0} ({1})").encode(errors="replace").decode(),
            "inspected": f"{survey.share:.1%} of each picture",
            "smallest_defect": f"{resolution.smallest_defect(frame, recipe.geometry, model.stride):.0f} pixels",
            "digest": files.digest_of_all((path.name, digest) for path, digest in survey.digests.items()),
            **reference.provenance(survey.reference, survey.poses.values()),
        },
        timings={step: round(seconds, 3) for step, seconds in timings.items()},
        parity=parity,
        learnt=sorted(
            {digest[:DIGITS] for digest in [*(survey.digests[s.path] for s in sides.fit), *defects.digests.values()]}
        ),
    )
    stored = survey.reference.data if survey.reference else b""
    bundle = Bundle(graph, recipe, found.calibration, manifest, model.curve, stored, found.sheet)
    bundle.save(out)
    return bundle


def expected(recipe: Recipe, storage_mb: int = files.STORAGE_MB, progress: Progress = silent) -> Forecast:
    """Estimate time and memory of a training from a few timed steps, without training.

    It reads all good images. Errors: as `train`, when the images or the recipe cannot be used.
    """
    began = time.perf_counter()
    model, recipe = construct(compose(recipe))
    data, learnt = _images(recipe, model, _silent, _silent)
    store = Store(storage_mb)
    sides = _divided(data, recipe, store, model.defects == "none", progress, _silent, _silent)
    survey, geometry = sides.survey, sides.recipe.geometry
    defects = DefectTiles(learnt, geometry, survey.rule, store, _silent, survey.reference)
    tiles = GoodTiles(sides.fit, survey, geometry, defects if learnt else None)
    read = time.perf_counter() - began
    found = model.forecast(tiles, Run(progress, augment=recipe.augment, memo=Memo(store)))
    calibrating = read * sum(map(len, sides.folds)) / len(survey.samples)
    return Forecast(read + found.seconds * (1 + sides.refits) + calibrating, found.megabytes)


def _silent(sentence: str) -> None:
    """Ignore a message."""


def _cost(model: Detector, recipe: Recipe, scorer: Runtime, tile: Pixels) -> str:
    """State the time of a tile (1, h, w, c) on this machine, and about that of other presets."""
    laps = []
    for _ in range(LAPS):
        began = time.perf_counter()
        scorer.score(tile)
        laps.append(time.perf_counter() - began)
    took, own = 1000 * float(np.median(laps)), model.times.get(recipe.detector.preset)
    text = f"the detector takes {took:.0f} ms per tile on this machine (preset {recipe.detector.preset})"
    if own is None or recipe.geometry.size != model.sizes[recipe.detector.preset]:
        return text
    others = [f"{preset} about {took * share / own:.0f} ms" for preset, share in model.times.items() if share != own]
    return f"{text}; {', '.join(others)}"


def _images(recipe: Recipe, model: Detector, tell: Tell, warn: Tell) -> tuple[Dataset, list[Sample]]:
    """Find the images: the data set, and the images of defects to learn from. DatasetError when none is good."""
    if not recipe.data.images:
        raise RecipeError("the recipe names no images. Set [data] images to a folder of good images.")
    data = dataset.load(recipe.data.images, groups=recipe.data.groups or None, good=recipe.data.good)
    defective = [sample for sample in data.defective() if sample.split != "test"]
    for sentence in data.warnings:
        warn(sentence)
    learnt = _defective(defective, model, data, warn)
    if not data.training_images():
        raise DatasetError(
            f"{recipe.data.images}: no good images to learn from among {len(data.samples)} images. Defects by the "
            f"names of their folders: {', '.join(sorted({s.defect for s in defective})) or 'none'}. If one of these "
            "folders contains good parts, name it: --good NAME."
        )
    for sentence in data.sources():
        tell(sentence)
    return data, learnt


class _Sides(NamedTuple):
    """The good images, divided between learning and calibration."""

    survey: Survey
    recipe: Recipe  # with the values found for the images
    fit: list[Sample]
    folds: list[list[Sample]]  # images to calibrate on: one held-out fold, or several if `crossed`
    crossed: bool  # each fold is scored by a detector that learnt the others; the final detector learns all
    skipped: int  # images that cannot be used

    @property
    def refits(self) -> int:
        """Fits beside that of the bundle: with n folds n, each on (n - 1) / n of the images, less work for one."""
        return len(self.folds) - 1 if self.crossed else 0


def _divided(
    data: Dataset, recipe: Recipe, store: Store, reduce: bool, progress: Progress, tell: Tell, warn: Tell
) -> _Sides:
    """Survey the good images, divide them, and register them if the recipe says so.

    `reduce`: as `survey_images`.
    """
    given = reference.load(recipe)
    if recipe.geometry.registration is None:
        recipe = with_input_shape(recipe, data.training_images())
    survey = survey_images(data.training_images(), recipe, store, progress, reduce=reduce)
    for reason in survey.skipped:
        warn(f"left out: {reason}")
    if survey.rule.maximum:
        recipe = recipe.with_maximum(survey.rule.maximum)
        tell(
            f"16-bit files with values up to {survey.rule.maximum}: they are scaled to the full range, and pictures "
            "with higher values will be refused. If these pictures are only dark, set input.maximum = 65535."
        )
    samples = united(survey.samples, [survey.digests[sample.path] for sample in survey.samples], warn)
    crossed, skipped = crosses(recipe, samples), len(survey.skipped)
    fit_on, calibrate_on = sides = (
        (samples, samples) if crossed else dataset.split_good(samples, recipe.split.calibrate, recipe.seed)
    )
    if recipe.geometry.registration is not None:
        survey, recipe, fit_on, calibrate_on = register(survey, fit_on, calibrate_on, recipe, given, progress)
        for reason in survey.skipped:
            warn(f"left out: {reason}")
        skipped += len(survey.skipped)
        registration = reference.provenance(survey.reference, survey.poses.values())
        tell(f"registered to {registration['reference']}: {registration['registered']}")
        check_sides(survey, sides, (fit_on, calibrate_on))
    for sentence in survey.warnings:
        warn(sentence)
    tell(f"{survey.share:.1%} of each picture is inspected")
    folds = dataset.folds(calibrate_on, recipe.split.folds, recipe.seed) if crossed else [calibrate_on]
    also, turn = ("; the same", f" in turn, in {len(folds)} folds") if crossed else (",", "")
    tell(f"{counted(len(fit_on), 'good image')} to learn from{also} {len(calibrate_on)} held out for calibration{turn}")
    return _Sides(survey, recipe, fit_on, folds, crossed, skipped)


def _again(run: Run, out: Path) -> str:
    """Say how to repeat the export gate."""
    how = "install another version of onnxruntime or openvino"
    report = "Please report this with the recipe"
    if any(path.is_file() for path in run.written):
        return (
            f"{report}. The trained weights are kept in {run.folder}: {how} and run the same `andon train` with "
            f"`-o {out}` again. It continues from these weights and does not train again."
        )
    return f"{report}, or {how} and run the same `andon train` again."


def _defective(defective: Sequence[Sample], model: Detector, data: Dataset, warn: Tell) -> list[Sample]:
    """Choose the images of defects to learn from. DatasetError when the detector needs some and there are none."""
    need, by_settings = model.defects, "" if model.defects == type(model).defects else " with these settings"
    if defective and need == "none":
        folders = ", ".join(sorted({sample.defect for sample in defective}))
        warn(
            f"left out: {counted(len(defective), 'image')} of defects, by the names of their folders: {folders}. "
            f"{model.name} learns from good parts only{by_settings}. If they are good, move them into the folder of "
            "good images."
        )
    chosen = [s for s in defective if need == "images" or (need != "none" and s.mask)]
    if need in ("masks", "masks if any") and len(chosen) < len(defective):
        first = next(sample for sample in defective if not sample.mask)
        warn(
            f"left out: {len(defective) - len(chosen)} of {len(defective)} images of defects, which have no mask, such "
            f"as {data.relative(first)}. {model.name} needs masks; the mask of an "
            "image DEFECT/NAME.png is ground_truth/DEFECT/NAME_mask.png."
        )
    if data.stray_masks and need != "none":
        warn(
            f"left out: {counted(len(data.stray_masks), 'mask')} that match no image of a defect, such as "
            f"{data.stray_masks[0].relative_to(data.root).as_posix()}. The mask of an image DEFECT/NAME.png is "
            "ground_truth/DEFECT/NAME_mask.png or ground_truth/DEFECT/NAME.png; rename them."
        )
    if not chosen and need in REQUIRED:
        with_masks = " with masks in ground_truth" if need == "masks" else ""
        others = [name for name in detectors.names() if detectors.get(name).defects != "images" and name != model.name]
        raise DatasetError(
            f"{data.root}: no images of defects{with_masks} to learn from; {model.name} needs some"
            f"{by_settings}, in train/DEFECT beside train/good. Detectors that do not need them: {', '.join(others)}."
        )
    return chosen


def construct(recipe: Recipe) -> tuple[Detector, Recipe]:
    """Build the detector of a recipe, and the recipe with all settings, for the bundle.

    RecipeError for an impossible combination of detector, preset, settings and geometry.
    """
    kind = detectors.get(recipe.detector.name)
    preset = _preset(kind, recipe)
    settings = {**kind.presets[preset], **recipe.detector.settings}
    config = validate(kind.Config, settings, "recipe: detector.settings")
    model = kind(config, recipe.seed)
    if model.position_aware and recipe.geometry.tiles:
        changed = "" if kind.position_aware else " with these settings"
        raise RecipeError(
            f"recipe: {kind.name} depends on the position in the image{changed}, so it cannot work on tiles. "
            "Set geometry.tiles = false, or choose another detector (`andon detectors`)."
        )
    chosen = recipe.detector.model_copy(
        update={"preset": preset, "settings": config.model_dump(mode="json", exclude_none=True)}
    )
    geometry = recipe.geometry
    if kind.square:
        if geometry.shape and geometry.shape[0] != geometry.shape[1]:
            raise RecipeError(
                f"recipe: geometry.shape = {list(geometry.shape)}, but {kind.name} takes square input only. Leave "
                "shape out; aspect = 'stretch' resizes pictures to a square, 'keep' repeats their edges to a square."
            )
        if geometry.aspect == "free":
            geometry = geometry.model_copy(update={"aspect": "stretch", "shape": None})
    return model, recipe.model_copy(update={"detector": chosen, "geometry": geometry})


def _preset(kind: type[Detector], recipe: Recipe) -> str:
    """The preset of the recipe, or the first of the detector. RecipeError for an unknown preset."""
    preset = recipe.detector.preset or next(iter(kind.presets))
    if preset not in kind.presets:
        raise RecipeError(f"recipe: detector.preset: {unknown('preset', preset, kind.presets)}")
    return preset

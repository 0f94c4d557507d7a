"""Commands that inspect pictures, measure bundles and tell what is there."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from andon.cli.options import AsJson, BundleFile, EngineName, FailOn, Good, Groups, Quiet, Threads, progress_bars
from andon.errors import DatasetError, counted

if TYPE_CHECKING:
    from andon.bundle import Bundle
    from andon.inspection import Inspection


def inspect(
    bundle: BundleFile,
    sources: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for records.jsonl and records.csv (appended to) and a picture with heat map for every image."
        ),
    ] = None,
    fail_on: FailOn = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "onnxruntime",
    threads: Threads = 0,
) -> None:
    """Say PASS, REVIEW, REJECT or INVALID of each image, with score, p-value and regions.

    The p-value is the share of good parts expected to score this high. A bad file is reported and the rest goes on.
    Several images are inspected at a time; with --threads 1, one after another on one core.
    Exit code 0: every image was inspected; 1: some could not be, or --fail-on found one; 2: mistake in the call.
    """
    from andon import files
    from andon.inspector import Inspector
    from andon.pictures import image
    from andon.records import Records
    from andon.streams import sinks
    from andon.streams.line import pictures

    inspector = Inspector.load(bundle, engine, threads)
    overlays = out / "overlays" if out else None
    failures: list[str] = []
    paths = _images(sources, overlays, failures)
    if len(sources) == 1 and not files.is_folder(sources[0]):
        image.contents(sources[0])  # the only one asked for, and not there: a mistake in the call
    maps = None
    if overlays:
        places = [shown.with_name(shown.name + ".png") for _, shown in paths]
        scale, calibration = inspector.scale, inspector.calibration
        maps = sinks.HeatMaps(overlays, scale, calibration, failures.append, "all", lambda f: places[f.number - 1])
    counts: dict[str, int] = {}
    records = Records(out / "records.jsonl") if out else None
    with (
        progress_bars(quiet or as_json or len(paths) < 3) as progress,
        records or nullcontext(),
        _reporting(failures, as_json),
        closing(pictures(inspector, [path for path, _ in paths], threads, maps.draw if maps else None)) as outcomes,
    ):
        for done, outcome in enumerate(outcomes):
            progress("inspecting", done, len(paths))
            inspection = outcome.inspection
            if inspection is None:
                failures.append(f"could not be inspected: {outcome.error}")
                record = {"source": outcome.frame.label, "error": outcome.error}
            else:
                counts[inspection.verdict] = counts.get(inspection.verdict, 0) + 1
                record = inspection.record()
            if records:
                records.add(record)  # before the picture: what was decided is kept though the disk may be full
            if maps:
                maps(outcome)
            if as_json:
                print(files.strict_json(record))
            elif inspection and not quiet:
                print(line(inspection))
        progress("inspecting", len(paths), len(paths))
    if len(paths) > 1 and not quiet and not as_json:
        summary = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
        also = f"; {len(failures)} failed" if failures else ""
        print(f"{counted(len(paths), 'image')}: {summary or 'none inspected'}{also}")
    if failures or failed(fail_on, counts):
        raise typer.Exit(1)


def evaluate(
    bundle: BundleFile,
    folder: Annotated[Path, typer.Argument(help="Labelled images: test/good, test/<defect>, …", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and report.html.")] = None,
    groups: Groups = None,
    good: Good = None,
    control: Annotated[
        bool, typer.Option(help="Where there are masks, inspect once more with the defects painted over.")
    ] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "onnxruntime",
    threads: Threads = 0,
) -> None:
    """Measure a bundle on labelled images: metrics.json and a report to read.

    Thresholds stay as they were calibrated on good images; what is tuned on labels here is called oracle.
    """
    from andon import files
    from andon.data import dataset
    from andon.evaluate import evaluating, report
    from andon.inspector import Inspector

    inspector = Inspector.load(bundle, engine, threads)
    labelled = dataset.load(folder, groups=groups, good=good or ())
    if out:
        files.prepare(out / "report.html")
    with progress_bars(quiet) as progress:
        evaluation = evaluating.evaluate(inspector, labelled, progress, threads, hidden=control)
    if out:
        report.write(evaluation, out, bundle.name)
    if as_json:
        print(files.strict_json(evaluation.metrics, indent=1))
    elif not quiet:
        print("\n".join(evaluation.summary()))
        if out:
            print(f"report: {out / 'report.html'}")
    for warning in evaluation.warnings:
        print(warning, file=sys.stderr)
    if evaluation.errors:
        for error in evaluation.errors:
            print(f"could not be evaluated: {error}", file=sys.stderr)
        raise typer.Exit(1)


def check(
    folder: Annotated[Path, typer.Argument(help="A folder of images, or a data set.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for suspects.jpg: the strangest good pictures.", show_default=False),
    ] = None,
    smallest_defect: Annotated[
        str | None,
        typer.Option(help="Side of the smallest defect, in pixels, as 6px: what it takes is told.", show_default=False),
    ] = None,
    groups: Groups = None,
    good: Good = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what is in a folder of images and what is wrong with it.

    Good pictures that look like defects are listed; with --out they are drawn, to look at. Exit code 1 when something
    would make figures untrustworthy.
    """
    from andon import files
    from andon.data import check, dataset
    from andon.evaluate import crude
    from andon.training import resolution, suspects
    from andon.training.train import compose, construct

    wanted = resolution.length(smallest_defect) if smallest_defect else None
    if out:
        files.prepare(out / "suspects.jpg")
    data = dataset.load(folder, groups=groups, good=good or ())
    with progress_bars(quiet or as_json) as progress:
        judged = suspects.look(data, progress)
        further = [*suspects.findings(judged, data), *crude.findings(data, progress)]
        model, recipe = construct(compose(folder))
        further += resolution.findings(recipe, data.training_images(), model.stride, wanted)
        checked = check.check(data, progress, further)
    if out and judged:
        files.write(out / "suspects.jpg", suspects.sheet(judged))
    print(files.strict_json(checked.record(), indent=1) if as_json else checked.text())
    if checked.failed:
        raise typer.Exit(1)


def show(bundle: BundleFile, as_json: AsJson = False) -> None:
    """Show a bundle's recipe, calibration, provenance and digests."""
    from andon import files
    from andon.bundle import Bundle

    loaded = Bundle.load(bundle)
    print(files.strict_json(_contents(loaded), indent=1) if as_json else _describe(bundle, loaded))


def detectors(
    name: Annotated[
        str | None, typer.Argument(help="Name of a detector, to show its settings and presets.", show_default=False)
    ] = None,
) -> None:
    """List the detectors, or the settings of one."""
    from andon import detectors

    if name is None:
        width = max(map(len, detectors.names()))
        for each, entry in detectors.DETECTORS.items():
            print(f"{each:<{width}}  {entry.summary}")
        return
    kind = detectors.get(name)
    print(f"{name}: {detectors.DETECTORS[name].summary}\n\nsettings (recipe: [detector.settings]), with defaults:")
    for key, field in kind.Config.model_fields.items():
        print(f"  {key} = {field.default!r}\n      {' '.join((field.description or '').split())}")
    print("\npresets (recipe: detector.preset, or --preset):")
    for preset, values in kind.presets.items():
        print(f"  {preset}: {', '.join(f'{k} = {v!r}' for k, v in values.items()) or 'the defaults'}")


@contextmanager
def _reporting(failures: list[str], as_json: bool) -> Iterator[None]:
    """Name what failed in the block, however it ends."""
    try:
        yield
    finally:
        if not as_json:
            for failure in failures:
                print(failure, file=sys.stderr)


def _images(sources: list[Path], overlays: Path | None, failures: list[str]) -> list[tuple[Path, Path]]:
    """Find the images below files and folders: each with a path of its own to show it by below an output folder.

    Of several folders each shows its images below its own name. What an earlier run drew is no part, nor are masks and
    thumbnails. What cannot be followed is added to `failures`.
    """
    from andon import files
    from andon.data import folders

    drawn = overlays.resolve() if overlays else None
    taken: set[str] = set()
    found: list[tuple[Path, Path]] = []
    for source in sources:
        if files.is_folder(source):
            try:
                contents = folders.scan(source)
            except OSError as error:
                raise DatasetError(f"{source}: cannot be read: {error.strerror}. Allow reading.") from error
            failures += [f"could not be inspected: {sentence}" for sentence in contents.unreadable]
            inside = [path for path in contents.images if drawn not in Path(os.path.realpath(path)).parents]
            skipped = f"; {len(contents.masks)} masks are not inspected" if contents.masks else ""
            if not inside:
                raise DatasetError(f"{source}: no images in this folder{skipped}. Name a folder that holds pictures.")
            if skipped:
                print(f"{source}{skipped.replace(';', ':')}", file=sys.stderr)
            below = _numbered(source.resolve().name, taken) if len(sources) > 1 else ""
            found += [(path, below / path.relative_to(source)) for path in inside]
        else:
            found.append((source, Path(_numbered(source.name, taken))))
    return found


def _numbered(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken already; upper and lower case are one, as on Windows."""
    stem, dot, suffix = name.rpartition(".") if "." in name[1:] else (name, "", "")
    count = 1
    while name.lower() in taken:
        count += 1
        name = f"{stem} {count}{dot}{suffix}"
    taken.add(name.lower())
    return name


def line(found: "Inspection") -> str:
    notes = f"  ({'; '.join(found.notes)})" if found.notes else ""
    if found.verdict == "INVALID":
        return f"INVALID {found.source}{notes}"
    regions = found.regions
    where = f"  {counted(len(regions), 'region')}, worst at {list(regions[0].peak_at)}" if regions else ""
    return f"{found.verdict:<7} score {found.score:<8.4g} p {found.p_value:<7.3g} {found.source}{where}{notes}"


def failed(fail_on: str | None, counts: dict[str, int]) -> bool:
    """Whether some verdict is at `fail_on` or beyond it."""
    beyond = {None: (), "review": ("REVIEW", "REJECT", "INVALID"), "reject": ("REJECT", "INVALID")}[fail_on]
    return any(counts.get(verdict) for verdict in beyond)


def _contents(bundle: "Bundle") -> dict[str, Any]:
    calibration, decision = bundle.calibration, bundle.recipe.decision
    return {
        "digest": bundle.digest(),
        "manifest": bundle.manifest.model_dump(mode="json"),
        "recipe": bundle.recipe.model_dump(mode="json"),
        "calibration": {
            "images": calibration.images,
            "parts": calibration.parts,
            "supported_rate": calibration.supported_rate,
            "folds": calibration.folds,
            "thresholds": calibration.thresholds(decision)._asdict(),
            "sentences": calibration.describe(decision),
            "highest": [each._asdict() for each in calibration.highest()],
            "scores": dict(zip(calibration.digests, calibration.scores, strict=False)),
        },
    }


def _highest(bundle: "Bundle") -> list[str]:
    if not (highest := bundle.calibration.highest()):
        return []
    return [
        "Highest held-out good images, which set the thresholds",
        *(f"  {each.score:<10.6g} {each.name}  SHA-256 {each.digest[:16]}" for each in highest),
        "",
    ]


def _describe(path: Path, bundle: "Bundle") -> str:
    manifest, thresholds = bundle.manifest, bundle.calibration.thresholds(bundle.recipe.decision)
    lines = [
        f"{path}: {bundle.recipe.product or 'a product'}, {manifest.detector}, takes {manifest.input}",
        f"made {manifest.created} by andon {manifest.versions['andon']} on {manifest.machine}, seed {manifest.seed}",
        *manifest.history,
        "",
        "Decision",
        f"  above {thresholds.review:.6g} REVIEW, "
        + (f"above {thresholds.reject:.6g} REJECT" if math.isfinite(thresholds.reject) else "no part gets REJECT")
        + f"; a region is where the map exceeds {thresholds.pixel:.6g}",
        *(f"  {sentence}" for sentence in bundle.calibration.describe(bundle.recipe.decision)),
        "",
        *_highest(bundle),
        "Recipe",
        *(f"  {line}" for line in bundle.recipe.summary().splitlines()),
        "",
        "Provenance",
        *(f"  {key}: {value}" for key, value in manifest.data.items()),
        *(f"  {step}: {seconds:.1f} s" for step, seconds in manifest.timings.items()),
        *(
            f"  {engine} differs from the fitted detector by {d:.1e} of the range"
            for engine, d in manifest.parity.items()
        ),
        *(f"  {package} {number}" for package, number in manifest.versions.items()),
        *(f"  {name} SHA-256 {digest}" for name, digest in manifest.digests.items()),
        f"  bundle {bundle.digest()}",
    ]
    return "\n".join(lines)

"""Commands that check, inspect and evaluate images, and show bundles and detectors."""

import math
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from andon.cli.options import (
    AsJson,
    BundleFile,
    EngineName,
    FailOn,
    Good,
    Groups,
    Quiet,
    Threads,
    progress_bars,
    refuse_among,
)
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
            help="Output folder: records.jsonl and records.csv, which grow with each run, and heat maps of all images."
        ),
    ] = None,
    fail_on: FailOn = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "onnxruntime",
    threads: Threads = 0,
) -> None:
    """Give each image a verdict (PASS, REVIEW, REJECT or INVALID), a score, a p-value and regions.

    The p-value is the share of good parts expected to score as high or higher. An image that cannot be read is
    reported; the others are still inspected. Several images are inspected at a time; with --threads 1, one at a time
    on one core.
    Exit codes: 0: every image was inspected. 1: an image could not be inspected, or has a verdict named by --fail-on.
    2: error in the command or its input.
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
    paths = _images(sources, failures)
    if len(sources) == 1 and not files.is_folder(sources[0]):
        image.contents(sources[0])  # a single image that cannot be read is an error of the call
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
        _reporting(failures),
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
                records.add(record)  # before the heat map: a full disk loses no decision
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
        bool, typer.Option(help="If there are masks, inspect again with the defects painted over.")
    ] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "onnxruntime",
    threads: Threads = 0,
) -> None:
    """Measure a bundle on labelled images, and write metrics.json and report.html.

    Thresholds stay as calibrated on good images. A figure is called oracle if its threshold is tuned on the labels.
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
        typer.Option(
            "--out",
            "-o",
            help="Folder for suspects.jpg, which shows the good images that look most like defects.",
            show_default=False,
        ),
    ] = None,
    smallest_defect: Annotated[
        str | None,
        typer.Option(
            help="Side of the smallest defect in pixels, such as 6px: check says which geometry it needs.",
            show_default=False,
        ),
    ] = None,
    groups: Groups = None,
    good: Good = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Report what a folder of images contains, and its problems.

    Good images that look like defects are listed, and drawn with --out. Exit code 1: an error that makes figures
    unreliable.
    """
    from andon import files
    from andon.data import dataset
    from andon.training import resolution, suspects
    from andon.training.checking import check_images
    from andon.training.train import compose

    wanted = resolution.length(smallest_defect) if smallest_defect else None
    if out:
        refuse_among(folder, out / "suspects.jpg")
        files.prepare(out / "suspects.jpg")
    data = dataset.load(folder, groups=groups, good=good or ())
    with progress_bars(quiet or as_json) as progress:
        report, judged = check_images(data, compose(folder), wanted, progress)
    if out and judged:
        files.write(out / "suspects.jpg", suspects.sheet(judged))
    print(files.strict_json(report.record(), indent=1) if as_json else report.text())
    if report.failed:
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
    from andon.cli import settings

    if name is None:
        width = max(map(len, detectors.names()))
        for each, entry in detectors.DETECTORS.items():
            print(f"{each:<{width}}  {entry.summary}")
        return
    kind = detectors.get(name)
    print(f"{name}: {detectors.DETECTORS[name].summary}\n")
    print("settings (recipe: [detector.settings]), with defaults and allowed values:")
    print("\n".join(settings.describe(kind.Config)))
    print("\npresets (recipe: detector.preset, or --preset):")
    for preset, values in kind.presets.items():
        print(f"  {preset}: {', '.join(f'{k} = {settings.value(v)}' for k, v in values.items()) or 'the defaults'}")


@contextmanager
def _reporting(failures: list[str]) -> Iterator[None]:
    """Print the failures at the end of the block, also after an exception. Some have no record."""
    try:
        yield
    finally:
        for failure in failures:
            print(failure, file=sys.stderr)


def _images(sources: list[Path], failures: list[str]) -> list[tuple[Path, Path]]:
    """Find the images in files and folders, each with a unique relative path for its heat map.

    With several folders, the path of an image begins with the name of its folder. Heat maps of earlier runs, masks
    and thumbnails are left out. A subfolder that cannot be read is added to `failures`.
    """
    from andon import files
    from andon.data import folders
    from andon.data.labelling import listing

    names: set[str] = set()
    images: list[tuple[Path, Path]] = []
    for source in sources:
        if files.is_folder(source):
            try:
                contents = folders.scan(source)
            except OSError as error:
                raise DatasetError(f"{source}: cannot be read: {error.strerror}. Allow reading.") from error
            failures += [f"could not be inspected: {sentence}" for sentence in contents.unreadable]
            if not contents.images:
                found = f", but {listing(contents.others)}" if contents.others else ""
                raise DatasetError(f"{source}: no images in this folder{found}. Name a folder of images.")
            if contents.masks:
                print(f"{source}: {counted(len(contents.masks), 'mask')} not inspected", file=sys.stderr)
            below = _numbered(source.resolve().name, names) if len(sources) > 1 else ""
            images += [(path, below / path.relative_to(source)) for path in contents.images]
        else:
            images.append((source, Path(_numbered(source.name, names))))
    return images


def _numbered(name: str, names: set[str]) -> str:
    """Add a name to those in use, with a number if it is among them; case does not count, as on Windows."""
    stem, dot, suffix = name.rpartition(".") if "." in name[1:] else (name, "", "")
    count = 1
    while name.lower() in names:
        count += 1
        name = f"{stem} {count}{dot}{suffix}"
    names.add(name.lower())
    return name


def line(inspection: "Inspection") -> str:
    """One line for the terminal."""
    notes = f"  ({'; '.join(inspection.notes)})" if inspection.notes else ""
    if inspection.verdict == "INVALID":
        return f"INVALID {inspection.source}{notes}"
    regions = inspection.regions
    where = f"  {counted(len(regions), 'region')}, worst at {list(regions[0].peak_at)}" if regions else ""
    figures = f"score {inspection.score:<8.4g} p {inspection.p_value:<7.3g}"
    return f"{inspection.verdict:<7} {figures} {inspection.source}{where}{notes}"


def failed(fail_on: str | None, counts: dict[str, int]) -> bool:
    """Whether an image has the verdict `fail_on` or a worse one."""
    worse = {None: (), "review": ("REVIEW", "REJECT", "INVALID"), "reject": ("REJECT", "INVALID")}[fail_on]
    return any(counts.get(verdict) for verdict in worse)


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

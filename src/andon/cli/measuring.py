"""Commands that compare trainings and bundles, and measure costs."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from andon.cli.options import AsJson, BundleFile, Good, Groups, Quiet, Threads, printer, progress_bars
from andon.errors import AndonError, counted


class PlanFirst(TyperGroup):
    """`andon bench plan.toml` is short for `andon bench run plan.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `run` if no command is named."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def bench_run(
    plan: Annotated[
        Path, typer.Argument(help="Plan (TOML): detectors, products, sizes and seeds.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results; default: the path of the plan without .toml."),
    ] = None,
    protocol: Annotated[
        Literal["train-test", "one-class"],
        typer.Option(
            help="one-class: the products are data sets of classes (MNIST, Fashion-MNIST, CIFAR-10, COIL-100; BTAD); "
            "each class in turn is the good one."
        ),
    ] = "train-test",
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="A published data set and its folder, in place of the products of the plan; its products on this disk "
            "are used if they are complete. Repeat the option for several. See `andon datasets`.",
            metavar="NAME=FOLDER",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train and measure every cell of a plan. After an interruption, the same command continues.

    Exit code 1: a cell failed; the others are still run.
    """
    from andon.lab.bench import report, run

    pairs = [text.partition("=") for text in dataset or ()]
    if wrong := next((text for text, equals, place in pairs if not (text and equals and place)), None):
        raise AndonError(f"--dataset {wrong}: expected a name and a folder, such as visa=/data/VisA. Correct it.")
    folder = out or plan.with_suffix("")
    with progress_bars(quiet) as progress:
        summary = run.run(plan, folder, progress, printer(quiet), protocol, [(name, place) for name, _, place in pairs])
    page = report.write(folder)
    if not quiet:
        print(f"{summary.done} cells done, {summary.failed} failed; table: {summary.parquet}; report: {page}")
    if summary.failed:
        raise typer.Exit(1)


def bench_report(
    out: Annotated[Path, typer.Argument(help="The folder that `andon bench` wrote.", show_default=False)],
) -> None:
    """Write results.md and results.html of a benchmark, finished or not."""
    from andon.lab.bench import report

    print(f"report: {report.write(out)}")


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Two or more bundles, and a folder of labelled images.", metavar="BUNDLES... FOLDER"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for compare.html.")] = Path("comparison"),
    groups: Groups = None,
    good: Good = None,
    quiet: Quiet = False,
) -> None:
    """Compare bundles on the same labelled images: figures, a paired test, heat maps side by side."""
    from andon import files
    from andon.data import dataset
    from andon.evaluate import compare, compare_page

    *bundles, folder = paths
    if files.is_file(folder):
        raise AndonError(f"{folder}: a file; expected the folder of labelled images as the last argument. Add it.")
    files.prepare(out / "compare.html")
    inspectors = compare.load(bundles)
    with progress_bars(quiet) as progress:
        compared = compare.Comparison(inspectors, dataset.load(folder, groups=groups, good=good or ()), progress)
    page = compare_page.write(compared, out)
    if not quiet:
        print(compare_page.headline(compared, compared.differences()))
        print(f"report: {page}")
    for warning in compared.warnings:
        print(warning, file=sys.stderr)
    for error in compared.errors:
        print(f"could not be evaluated: {error}", file=sys.stderr)
    if compared.errors:
        raise typer.Exit(1)


def cost(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of detectors, or paths of bundles and benchmark plans; default: all detectors.",
            metavar="[DETECTOR|BUNDLE|PLAN]...",
            show_default=False,
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the input in pixels; a bundle has its own.")] = 256,
    preset: Annotated[str, typer.Option(help="Preset of the detectors; default: the first of each.")] = "",
    threads: Threads = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for cost.csv, cost.md and two plots.", show_default=False)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure the cost of detectors: parameters, multiply-adds, sizes, memory, latency and throughput.

    Each graph runs in a separate process, on one tile and on eight, and on a GPU if there is one. A detector is first
    fitted on random tiles; by gradient, for one step. Exit code 1: a detector could not be measured.
    """
    from andon import files
    from andon.lab.cost import run, table

    if out:
        files.prepare(out / "cost.csv")
    with progress_bars(quiet) as progress:
        rows, failures = run.run(subjects or [], size=size, preset=preset, threads=threads, progress=progress)
    if rows:
        print(table.markdown(rows), end="")
        if out:
            table.write(rows, out)
    for failure in failures:
        print(f"could not be measured: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def tune(
    bundle: BundleFile,
    budget: Annotated[
        str,
        typer.Option(help="Greatest p99 time of one tile, such as 20ms; within it, the highest throughput is best."),
    ] = "",
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="Duration of each of the two measurements of a row.")
    ] = 3.0,
    quiet: Quiet = False,
) -> None:
    """Measure engines and numbers of threads on this machine, and write the best beside the bundle.

    Commands use it with `--engine auto`. Without a budget, the best has the lowest median time. Each row is measured
    in a separate process; close other programs first. Exit code 1: no engine is within the budget.
    """
    from andon import files
    from andon.bundle import Bundle
    from andon.engines import tuning

    budget_ms = _milliseconds(budget) if budget else None
    graph = Bundle.load(bundle).graph
    files.prepare(tuning.place(bundle))
    with progress_bars(quiet) as progress:
        tuned = tuning.measure(graph, seconds, progress)
    best = tuned.best(budget_ms)
    print(tuning.table(tuned.settings, best))
    for failure in tuned.failures:
        print(f"could not be measured: {failure}", file=sys.stderr)
    path = tuning.keep(bundle, graph, best)
    printer(quiet)(f"kept in {path}: {best.engine}, {counted(best.threads, 'thread')}; use it with --engine auto")
    if budget_ms is not None and best.p99_ms > budget_ms:
        print(
            f"no engine is within {budget_ms:g} ms: the p99 of the best is {best.p99_ms:.1f} ms. Use the preset fast, "
            "or a smaller geometry.size.",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    value = float(match[1]) * (1000 if match[2] == "s" else 1) if match else 0.0
    if not value:
        raise AndonError(f"--budget {text}: expected a time above 0 with its unit, such as 20ms or 0.5s. Correct it.")
    return value


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the CSV file and the plots.")]


def study_moments(
    source: Annotated[
        str, typer.Argument(help="A folder of good images, or a recipe (.toml).", show_default=False, metavar="RECIPE")
    ],
    out: Out = Path("study"),
    size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels; windows have half of it.", show_default=False)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compute mean and standard deviation of each pixel over sliding windows of good images."""
    from andon import files
    from andon.lab import study
    from andon.training.train import compose

    files.prepare(out / "moments.csv")
    recipe = compose(source, size=size)
    with progress_bars(quiet) as progress:
        moments = study.moments(recipe, progress, printer(False))
    for path in study.write_moments(moments, out):
        print(path)


def study_orthogonality(
    bundle: BundleFile,
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder of good images; default: that of the bundle's recipe.", show_default=False),
    ] = None,
    out: Out = Path("study"),
    draws: Annotated[int, typer.Option(min=2, help="Corrupted images for each width of the patch.")] = 40,
    images: Annotated[int, typer.Option(min=2, help="Greatest number of good images to search for the nearest.")] = 200,
    quiet: Quiet = False,
) -> None:
    """Measure how often a good image is nearest to its copy with a foreign patch, before and after the network."""
    from andon import files
    from andon.bundle import Bundle
    from andon.lab import study

    files.prepare(out / "orthogonality.csv")
    loaded = Bundle.load(bundle)
    with progress_bars(quiet) as progress:
        rows = study.orthogonality(loaded, folder or loaded.recipe.data.images, draws, images, progress, printer(False))
    for path in study.write_orthogonality(rows, out):
        print(path)


class ListFirst(TyperGroup):
    """`andon datasets` lists the data sets."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `list` if nothing is given."""
        return super().parse_args(ctx, args or ["list"])


DatasetName = Annotated[str, typer.Argument(help="Name of the data set, see `andon datasets`.", show_default=False)]
Root = Annotated[Path, typer.Argument(help="The folder that holds its products.", show_default=False)]


def datasets_list(as_json: AsJson = False) -> None:
    """List the published data sets that andon knows, with the sources of their counts."""
    from andon import files
    from andon.lab.datasets.table import DATASETS

    if as_json:
        sets = {
            name: {"title": d.title, "products": {p: dict(c) for p, c in d.products.items()}, "total": dict(d.total)}
            | {"source": d.source, "unchecked": d.unchecked}
            for name, d in DATASETS.items()
        }
        print(files.strict_json(sets, indent=1))
        return
    for name, published in DATASETS.items():
        print(f"{name:15} {published.title}: {counted(len(published.products), 'product')}")
        print(f"{'':15} {published.source}.")
        if published.unchecked:
            print(f"{'':15} not checked: {published.unchecked}.")
    print("Nothing is downloaded. Compare your copy: andon datasets check NAME FOLDER")


def datasets_check(name: DatasetName, root: Root, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Compare a data set on this disk with its published counts, and list what is missing.

    Exit code 1: it is not complete.
    """
    from andon import files
    from andon.lab.datasets import checking

    with progress_bars(quiet or as_json) as progress:
        report = checking.check(name, root, progress)
    print(files.strict_json(report.record(), indent=1) if as_json else report.text())
    if not report.complete:
        raise typer.Exit(1)


def datasets_arrange(
    name: DatasetName,
    root: Root,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the products.", show_default=False)],
    quiet: Quiet = False,
) -> None:
    """Make folders with train and test of the products on this disk, from links to their files, for `andon train`."""
    from andon.lab.datasets import arranging

    with progress_bars(quiet) as progress:
        made = arranging.arrange(name, root, out, progress, printer(quiet))
    for folder in made:
        print(folder.path)


bench = typer.Typer(cls=PlanFirst, no_args_is_help=True, help="Benchmarks: detectors × products × sizes × seeds.")
bench.command("run")(bench_run)
bench.command("report")(bench_report)
study = typer.Typer(no_args_is_help=True, help="Analyses of detectors that reconstruct images, as plots and CSV.")
study.command("moments")(study_moments)
study.command("orthogonality")(study_orthogonality)
datasets = typer.Typer(cls=ListFirst, help="Published data sets on this disk: list, check, arrange. No download.")
datasets.command("list")(datasets_list)
datasets.command("check")(datasets_check)
datasets.command("arrange")(datasets_arrange)

"""Commands that measure many trainings, or several bundles, side by side."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from andon.cli.options import BundleFile, Good, Groups, Quiet, Threads, progress_bars, teller
from andon.errors import AndonError, counted


class PlanFirst(TyperGroup):
    """`andon bench plan.toml` is short for `andon bench run plan.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the command in where there is none."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def bench_run(
    plan: Annotated[Path, typer.Argument(help="Detectors, products, sizes and seeds, as TOML.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results; default: beside the plan, by its name.")
    ] = None,
    protocol: Annotated[
        Literal["train-test", "one-class"],
        typer.Option(
            help="one-class: the products are data sets of classes (MNIST, Fashion-MNIST, CIFAR-10, COIL-100; BTAD), "
            "of which each is normal in turn."
        ),
    ] = "train-test",
    quiet: Quiet = False,
) -> None:
    """Train and measure every cell of a plan; interrupted or killed, the same command goes on from there.

    Exit code 1 when a cell failed; the others are done all the same.
    """
    from andon.lab.bench import report, run

    folder = out or plan.with_suffix("")
    with progress_bars(quiet) as progress:
        found = run.run(plan, folder, progress, teller(quiet), protocol)
    page = report.write(folder)
    if not quiet:
        print(f"{found.done} cells done, {found.failed} failed; table: {found.parquet}; report: {page}")
    if found.failed:
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
    """Set several bundles side by side on the same labelled images: figures, a paired test, the same pictures."""
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
    for error in compared.errors:
        print(f"could not be evaluated: {error}", file=sys.stderr)
    if compared.errors:
        raise typer.Exit(1)


def cost(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            help="Detectors by name; bundles, and benchmark plans for their detectors, by path. None: every detector.",
            metavar="[DETECTOR|BUNDLE|PLAN]...",
            show_default=False,
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Pixels a side; of a bundle, its own.")] = 256,
    preset: Annotated[str, typer.Option(help="Preset of the detectors; each one's first if not given.")] = "",
    threads: Threads = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for cost.csv, cost.md and two plots.", show_default=False)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Tell what detectors cost: parameters, multiply-adds, sizes, memory, latency and throughput.

    Each graph runs in a process of its own, on one tile and on eight; on a GPU too, where there is one. A detector is
    fitted on random tiles first, by gradient for one step. Exit code 1 when one of them could not be measured.
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
        typer.Option(help="Most time for one tile, such as 20ms: the best is then the highest throughput within it."),
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Duration of each measurement, two a row.")] = 3.0,
    quiet: Quiet = False,
) -> None:
    """Measure engines and numbers of threads on this machine, and keep the best beside the bundle.

    Commands use it with `--engine auto`. Without a budget the best has the lowest median. Each row is a process of its
    own; close other programs first. Exit code 1 when no engine keeps the budget.
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
        print(f"not measured: {failure}", file=sys.stderr)
    path = tuning.keep(bundle, graph, best)
    teller(quiet)(f"kept in {path}: {best.engine}, {counted(best.threads, 'thread')}; use it with --engine auto")
    if budget_ms is not None and best.p99_ms > budget_ms:
        print(
            f"no engine keeps {budget_ms:g} ms: the p99 of the best is {best.p99_ms:.1f} ms. Use the preset fast, or a "
            "smaller geometry.size.",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _milliseconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    value = float(found[1]) * (1000 if found[2] == "s" else 1) if found else 0.0
    if not value:
        raise AndonError(f"--budget {text}: expected a time above 0 with its unit, such as 20ms or 0.5s.")
    return value


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the CSV file and the plots.")]


def study_moments(
    source: Annotated[
        str, typer.Argument(help="A folder of good images, or a recipe (.toml).", show_default=False, metavar="RECIPE")
    ],
    out: Out = Path("study"),
    size: Annotated[
        int | None, typer.Option(help="Pixels a side of the picture; its windows have half.", show_default=False)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Mean and deviation of each pixel over sliding windows of good images: is every place like every other?"""
    from andon import files
    from andon.lab import study
    from andon.training.train import compose

    files.prepare(out / "moments.csv")
    recipe = compose(source, size=size)
    with progress_bars(quiet) as progress:
        found = study.moments(recipe, progress, teller(False))
    for path in study.write_moments(found, out):
        print(path)


def study_orthogonality(
    bundle: BundleFile,
    folder: Annotated[
        Path | None, typer.Argument(help="A folder of good images; default: those of its recipe.", show_default=False)
    ] = None,
    out: Out = Path("study"),
    draws: Annotated[int, typer.Option(min=2, help="Corrupted images for each width of the patch.")] = 40,
    images: Annotated[int, typer.Option(min=2, help="Good images among which the nearest is sought, at most.")] = 200,
    quiet: Quiet = False,
) -> None:
    """Put foreign patches into good images: how often is the original still nearest, before and after the network?"""
    from andon import files
    from andon.bundle import Bundle
    from andon.lab import study

    files.prepare(out / "orthogonality.csv")
    loaded = Bundle.load(bundle)
    with progress_bars(quiet) as progress:
        rows = study.orthogonality(loaded, folder or loaded.recipe.data.images, draws, images, progress, teller(False))
    for path in study.write_orthogonality(rows, out):
        print(path)


bench = typer.Typer(cls=PlanFirst, no_args_is_help=True, help="Benchmarks: detectors × products × sizes × seeds.")
bench.command("run")(bench_run)
bench.command("report")(bench_report)
study = typer.Typer(no_args_is_help=True, help="Analyses of detectors that rebuild pictures, as plots and CSV.")
study.command("moments")(study_moments)
study.command("orthogonality")(study_orthogonality)

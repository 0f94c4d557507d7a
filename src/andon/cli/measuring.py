"""Commands that measure many trainings, or several bundles, side by side."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from andon.cli.options import Groups, Quiet, progress_bars, teller


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
    quiet: Quiet = False,
) -> None:
    """Train and measure every cell of a plan; interrupted or killed, the same command goes on from there.

    Exit code 1 when a cell failed; the others are done all the same.
    """
    from andon.bench import report, run

    folder = out or plan.with_suffix("")
    with progress_bars(quiet) as progress:
        found = run.run(plan, folder, progress, teller(quiet))
    page = report.write(folder)
    if not quiet:
        print(f"{found.done} cells done, {found.failed} failed; table: {found.parquet}; report: {page}")
    if found.failed:
        raise typer.Exit(1)


def bench_report(
    out: Annotated[Path, typer.Argument(help="The folder that `andon bench` wrote.", show_default=False)],
) -> None:
    """Write results.md and results.html of a benchmark, finished or not."""
    from andon.bench import report

    print(f"report: {report.write(out)}")


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Two or more bundles, and a folder of labelled images.", metavar="BUNDLES... FOLDER"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for compare.html.")] = Path("comparison"),
    groups: Groups = None,
    quiet: Quiet = False,
) -> None:
    """Set several bundles side by side on the same labelled images: figures, a paired test, the same pictures."""
    from andon import compare, dataset

    *bundles, folder = paths
    inspectors = compare.load(bundles)
    with progress_bars(quiet) as progress:
        compared = compare.Comparison(inspectors, dataset.load(folder, groups=groups), progress)
    page = compare.write(compared, out)
    if not quiet:
        print(compare.headline(compared, compared.differences()))
        print(f"report: {page}")
    errors = sorted({error for found in compared.evaluations.values() for error in found.errors})
    for error in errors:
        print(f"could not be evaluated: {error}", file=sys.stderr)
    if errors:
        raise typer.Exit(1)


bench = typer.Typer(cls=PlanFirst, no_args_is_help=True, help="Benchmarks: detectors × products × sizes × seeds.")
bench.command("run")(bench_run)
bench.command("report")(bench_report)

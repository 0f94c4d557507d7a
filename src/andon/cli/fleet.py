"""Commands for many products, and for archives of pictures."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from andon.cli.options import BundleFile, Quiet, printer, progress_bars
from andon.errors import AndonError, counted, few

if TYPE_CHECKING:
    from andon.fleet.plan import Plant
    from andon.fleet.plant import Run, Summary

PlanFile = Annotated[Path, typer.Argument(help="Plan (TOML) of the products.", show_default=False)]
Results = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the bundles and results; default: the path of the plan without .toml."),
]
Only = Annotated[
    list[str] | None, typer.Option(help="Name of a product; repeat the option for several.", show_default=False)
]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray; the results are the same.")]
Address = Annotated[
    str, typer.Option(help="Address of a running Ray cluster, such as auto; default: one is started on this machine.")
]
Workers = Annotated[int, typer.Option(min=0, max=100_000, help="Processor cores to use; 0: all.")]


def train(
    plan: PlanFile,
    out: Results = None,
    only: Only = None,
    local: Local = False,
    address: Address = "",
    workers: Workers = 0,
    quiet: Quiet = False,
) -> None:
    """Train, calibrate and evaluate all products of a plan. After an interruption, the same command continues.

    \b
    [[products]]
    name = "bottle"
    images = "bottle"        # folder of good images, or a data set with train and test

    Each product has a folder with its bundle, log, result and report; products.csv is the table of all.
    Exit code 1: a product failed; the others are still trained.
    """
    from andon.fleet import plan as plans
    from andon.fleet import plant

    loaded = plans.load(plan, out or plan.with_suffix(""), only or ())
    inputs = [path for job, _ in loaded.jobs for path in job.inputs]
    with _interruptible():
        summary = plant.train(loaded, _run(loaded, inputs, local, address, workers), quiet)
    _end(summary, quiet)


def recalibrate(
    plan: PlanFile,
    folder: Annotated[
        Path, typer.Argument(help="Folder with a subfolder of new good images for each product.", show_default=False)
    ],
    out: Results = None,
    only: Only = None,
    local: Local = False,
    address: Address = "",
    workers: Workers = 0,
    quiet: Quiet = False,
) -> None:
    """Recalibrate the bundles of all products of a plan on new good images; the detectors stay as they are.

    The changes of the thresholds are in the log of each product; recalibrations.csv is the table of all.
    Exit code 1: a product failed; its bundle stays as it was.
    """
    from andon.fleet import plan as plans
    from andon.fleet import plant

    loaded = plans.load(plan, out or plan.with_suffix(""), only or ())
    with _interruptible():
        run = _run(loaded, [str(folder.resolve())], local, address, workers)
        summary = plant.recalibrate(loaded, folder, run, quiet)
    _end(summary, quiet)


def inspect(
    bundle: BundleFile,
    source: Annotated[
        str,
        typer.Argument(help="A folder of images, a Parquet file of paths, or s3://bucket/prefix.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results, Parquet files.", show_default=False)],
    rows: Annotated[int, typer.Option(min=1, help="Images of one file of results: what an interruption loses.")] = 500,
    column: Annotated[str, typer.Option(help="Column of a Parquet file that holds the paths.")] = "path",
    engine: Annotated[Literal["onnxruntime", "openvino"], typer.Option(help="Inference engine.")] = "onnxruntime",
    local: Local = False,
    address: Address = "",
    workers: Workers = 0,
    quiet: Quiet = False,
) -> None:
    """Inspect an archive of images: one row for each image, in Parquet files. The next run inspects what has no row.

    It refuses images that have changed since, except those of an object store: delete the file with their rows.
    An image that cannot be inspected has a row with the verdict INVALID and the error. An object store needs
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role, and AWS_ENDPOINT_URL if it is not Amazon's.
    Exit code 1: an image could not be inspected, in this run or an earlier one.
    """
    from andon.fleet import archive, cluster

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _check_one_place(local, address)
    run = archive.local(workers or cores) if local else cluster.inspecting(address, workers)
    with progress_bars(quiet) as progress:
        summary = archive.inspect(
            bundle, source, out, run, rows=rows, column=column, engine=engine, progress=progress, warn=printer(False)
        )
    if not quiet:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(summary.verdicts.items()))
        earlier = f"; {summary.kept} had a row before" if summary.kept else ""
        print(f"{counted(summary.pictures, 'image')}: {verdicts or 'none to inspect'}{earlier}; results: {out}")
    if summary.errors:
        print(f"{counted(len(summary.errors), 'image')} could not be inspected: {few(summary.errors)}", file=sys.stderr)
        raise typer.Exit(1)


def _run(plant: "Plant", inputs: list[str], local: bool, address: str, workers: int) -> "Run":
    """Return what runs products: this process, or a cluster whose nodes have the inputs and the output folder."""
    from andon.fleet import cluster
    from andon.fleet.plant import local as in_this_process

    _check_one_place(local, address)
    return in_this_process if local else cluster.products([*inputs, str(plant.out)], address, workers)


def _check_one_place(local: bool, address: str) -> None:
    if local and address:
        raise AndonError(f"--local and --address {address}; expected one of them. Leave one out.")


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("andon: interrupted; the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None


def _end(summary: "Summary", quiet: bool) -> None:
    if not quiet:
        counts = f"{summary.done} products done, {summary.kept} kept, {summary.failed} failed"
        print(f"{counts}; table: {summary.table}")
    if summary.failed:
        raise typer.Exit(1)


fleet: Any = typer.Typer(no_args_is_help=True, help="Many products, and archives of images, on a cluster (Ray).")
fleet.command("train")(train)
fleet.command("inspect")(inspect)
fleet.command("recalibrate")(recalibrate)

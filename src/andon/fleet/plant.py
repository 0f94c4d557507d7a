"""All products of a plan: run each, show progress, and write the table. The next run does only the missing work."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TextIO

from andon import files
from andon.errors import AndonError
from andon.fleet import place, product
from andon.fleet.plan import Needs, Plant
from andon.fleet.product import Job, Json
from andon.fleet.table import Table
from andon.records import csv_line

COLUMNS = (
    *("product", "status", "error", "images", "image_auroc", "test_good", "test_defective"),
    *("review_escapes", "review_false_rejects", "seconds", "node", "bundle"),
)
"""Columns of products.csv."""
TRAINED = "products.csv"

Work = Callable[[Job], Json]
Run = Callable[[Work, Sequence[tuple[Job, Needs]]], Iterable[Json]]
"""Called as run(work, jobs); yields the results in any order."""


class Summary(NamedTuple):
    """The counts of a run."""

    done: int
    kept: int
    failed: int
    table: Path


def local(work: Work, jobs: Sequence[tuple[Job, Needs]]) -> Iterator[Json]:
    """Run the products in this process, one after the other."""
    return (work(job) for job, _ in jobs)


def train(plant: Plant, run: Run = local, quiet: bool = False, stream: TextIO | None = None) -> Summary:
    """Train, calibrate and evaluate the products of a plan that are not finished; see `product.train`.

    run: `local` or `cluster.products(…)`. stream: where the table is shown; default: standard error.
    Errors: AndonError when the folder is not that of this plan, and when another run writes there.
    """
    return _all(plant, product.train, plant.jobs, product.RESULT, TRAINED, run, quiet, stream)


def recalibrate(
    plant: Plant, folder: str | Path, run: Run = local, quiet: bool = False, stream: TextIO | None = None
) -> Summary:
    """Recalibrate the bundle of each product on the new good images in `folder`/NAME; see `product.recalibrate`.

    Errors: AndonError, before anything runs, for a product without a bundle or without new images; as `train`.
    """
    jobs = [(job._replace(fresh=str(Path(folder).resolve() / job.name)), needs) for job, needs in plant.jobs]
    for job, _ in jobs:
        if not files.is_folder(job.fresh):
            raise AndonError(
                f"product '{job.name}': there is no folder {job.fresh} of new good images. Add it, or name the other "
                "products with --only."
            )
        if not job.bundle.is_file():
            raise AndonError(f"product '{job.name}': there is no bundle {job.bundle}. Run andon fleet train first.")
    name = "recalibrations.csv"
    return _all(plant, product.recalibrate, jobs, product.RECALIBRATION, name, run, quiet, stream)


def _all(
    plant: Plant,
    work: Work,
    jobs: Sequence[tuple[Job, Needs]],
    result: str,
    table: str,
    run: Run,
    quiet: bool,
    stream: TextIO | None,
) -> Summary:
    """Run the jobs, show them, and write the table of all products of the plan."""
    if not find_spec("threadpoolctl"):
        raise AndonError("threadpoolctl is not installed; a fleet needs it. Run: pip install 'andon[fleet]'.")
    identity, results = {"kind": "training", "plan": plant.name}, {}
    place.own(plant.out, identity)
    with files.lock_folder(plant.out, place.BUSY):
        place.own(plant.out, identity, write=True)
        for each_table in {table, TRAINED}:
            files.check_writable(plant.out / each_table)
        try:
            with Table([job for job, _ in jobs], stream or sys.stderr, quiet) as shown:
                for each in run(work, jobs):
                    results[each["product"]] = each
                    shown.add(each)
        finally:
            _write(plant, result, table, results)
            if files.is_file(plant.out / TRAINED) and table != TRAINED:
                _write(plant, product.RESULT, TRAINED, {})  # a recalibrated product has other results there
    statuses = [each["status"] for each in results.values()]
    return Summary(statuses.count("done"), statuses.count("kept"), statuses.count("failed"), plant.out / table)


def _write(plant: Plant, result: str, table: str, results: Mapping[str, Json]) -> None:
    """Write the table of all products: of these results, or of those in their folders."""
    rows = [
        results.get(name) or product.read(plant.out / name / result) or {"product": name, "status": "missing"}
        for name in plant.products
    ]
    lines = [csv_line([row.get(column) for column in COLUMNS]) for row in rows]
    files.write(plant.out / table, b"".join([csv_line(COLUMNS), *lines]))

"""Run the cells of a plan: each in a separate process, each result one file, written completely or not at all.

After an interruption or a kill, the same command continues with the remaining cells. A cell is run again, with a
message, when its recipe or the contents of its pictures have changed, or when it failed.
"""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from andon import files
from andon.data import dataset, masks
from andon.errors import AndonError, ImageError, RecipeError
from andon.lab.bench import equalised, protocols, table
from andon.lab.bench import plan as plans
from andon.lab.bench.cell import Job, save
from andon.lab.bench.plan import Cell, Plan, Product
from andon.lab.bench.table import Json
from andon.pictures import image
from andon.progress import Progress, silent

Protocol = Literal["train-test", "one-class"]
"""Contents of the folders of a plan: training and test images, or classes, each of which is normal in turn."""

Tell = Callable[[str], None]


class Summary(NamedTuple):
    """The counts of a run."""

    done: int
    failed: int
    kept: int  # cells finished by an earlier run
    parquet: Path


def run(
    path: str | Path,
    out: str | Path,
    progress: Progress = silent,
    tell: Tell = lambda sentence: None,
    protocol: Protocol = "train-test",
    datasets: Sequence[tuple[str, str]] = (),
) -> Summary:
    """Run the plan at `path` into the folder `out`. AndonError, before anything runs, when it is impossible.

    datasets: names and folders of published data sets, in place of the plan's products.

    A cell that fails is a row with the text of its error; the others are still run.
    """
    plan, out = plans.load(path, datasets), Path(out)
    table.check_parquet()
    _check_place(out, plan)
    separate = [product for product in plan.products if not product.dataset]
    classes = next((product for product in separate if protocols.kind(product.folder)), None)
    if classes and protocol != "one-class":
        raise RecipeError(
            f"plan: product '{classes.name}': {classes.folder} holds the classes of {protocols.kind(classes.folder)} "
            "files, not training and test images of one product. Use each class as normal in turn: --protocol "
            "one-class."
        )
    plans.combined(plan)  # an impossible plan is refused before pictures are written
    if protocol == "train-test" and len(separate) == len(plan.products):
        plans.cells(plan)  # and so are impossible folders, where none is made
    with _alone(out):
        plan = protocols.published(plan, out, progress, tell)
        plan = protocols.one_class(plan, out, progress, tell) if protocol == "one-class" else plan
        plan = equalised.equalise(plan, out, progress)
        return _run_all(plan, plans.cells(plan), out, progress, tell)


def _check_place(out: Path, plan: Plan) -> None:
    """Raise RecipeError for a folder with other files than results, and for a folder among the images of a product."""
    with suppress(AndonError):
        table.planned(out)
        return
    for product in plan.products:
        if files.is_folder(product.folder) and out.resolve().is_relative_to(Path(product.folder).resolve()):
            raise RecipeError(
                f"{out}: the results would be in the folder of product '{product.name}', {product.folder}; expected a "
                "separate folder. Choose another with --out."
            )
    with suppress(OSError):  # a file, or unreadable: reported later
        if not files.is_file(out / ".lock") and any(out.iterdir()):
            raise RecipeError(
                f"{out}: this folder contains other files; expected an empty or new folder, or that of an earlier "
                "bench. Choose another with --out."
            )


def _alone(out: Path) -> AbstractContextManager[Path]:
    """Keep a second run away from the folder. Errors: as `files.lock_folder`."""
    busy = "another andon bench is writing its results there. Wait until it has ended, or choose another with --out."
    return files.lock_folder(out, busy)


def _run_all(plan: Plan, cells: Sequence[Cell], out: Path, progress: Progress, tell: Tell) -> Summary:
    for place in (out / "cells", out / "products"):
        files.make_folder(place)
    files.check_writable(out / "results.parquet")
    for written in ("cells/*/*", "bundles/*/*", "products"):
        for half in out.glob(f"{written}/.*????????.part"):
            half.unlink()  # incomplete files of a killed run
    _describe(plan, cells, out)
    digests = {product.name: contents(product, out / "products", progress, tell) for product in plan.products}
    others = {paths: _outside(*paths) for paths in {plans.outside(cell.recipe) for cell in cells}}
    jobs = [_job(cell, plan, _joined(digests[cell.product], others[plans.outside(cell.recipe)]), out) for cell in cells]
    waiting = [j for j, job in enumerate(jobs) if not _finished(job, tell)]
    kept = len(cells) - len(waiting)
    if kept:
        tell(f"{kept} of {len(cells)} cells are already finished")
    try:
        for number, j in enumerate(waiting):
            progress("cells", kept + number, len(cells))
            result = _run_cell(jobs[j])
            left = _time_left([jobs[k] for k in waiting[number + 1 :]], jobs)
            tell(f"[{kept + number + 1}/{len(cells)}] {cells[j]}: {_outcome(result)}{left}")
        progress("cells", len(cells), len(cells))
        shutil.rmtree(out / ".work", ignore_errors=True)  # marks of failed cells
    finally:
        parquet = table.parquet(out)
    failed = sum(row["status"] != "done" for row in table.rows(out))
    return Summary(len(cells) - failed, failed, kept, parquet)


def _describe(plan: Plan, cells: Sequence[Cell], out: Path) -> None:
    """Write the parts of the plan that a report needs beside the results."""
    described = {
        "cells": [{**cell._asdict(), "recipe": cell.recipe.dump(), "place": cell.place.as_posix()} for cell in cells],
        "published": {product.name: product.published for product in plan.products if product.published},
    }
    files.write(out / "plan.json", files.strict_json(described, indent=1, ascii_only=False).encode(errors="replace"))
    if plan.published:
        files.write(out / "published.toml", Path(plan.published).read_bytes())


def contents(product: Product, folder: Path, progress: Progress = silent, tell: Tell = lambda sentence: None) -> str:
    """SHA-256 over names and contents of a product's images and masks, and its groups.

    Only files whose size or time of change differ from the last run are read again.
    """
    cache = folder / f"{product.name}.json"
    try:
        before: dict[str, list[object]] = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    data = dataset.load(product.folder)
    paths = [sample.path for sample in data.samples]
    paths += [path for sample in data.samples if sample.mask for path in masks.parts_of(sample.mask)]
    now: dict[str, list[object]] = {}
    for done, path in enumerate(paths):
        progress(f"reading {product.name}"[:16], done, len(paths))
        name = path.relative_to(data.root).as_posix()
        now[name] = _seen(path, name, before.get(name, []))
    progress(f"reading {product.name}"[:16], len(paths), len(paths))
    lost, new = before.keys() - now.keys(), now.keys() - before.keys()
    changed = [name for name in now.keys() & before.keys() if now[name][2] != before[name][2]]
    if before and (lost or new or changed):
        tell(
            f"{product.name}: since the last run {len(lost)} files were removed, {len(new)} added and {len(changed)} "
            "changed; its cells are run again"
        )
    files.write(cache, files.strict_json(now).encode())
    groups = Path(product.groups).read_text(encoding="utf-8") if files.is_file(product.groups) else product.groups
    lines = [groups, *(f"{name} {now[name][2]}" for name in sorted(now))]
    return files.digest("\n".join(lines).encode(errors="surrogateescape"))


def _seen(path: Path, name: str, known: list[object]) -> list[object]:
    """Size, time of change and digest of a picture, from `known` if unchanged; if unreadable, the error as digest."""
    stamp: list[object] = [None, None]
    with suppress(OSError):
        state = path.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        if known[:2] == stamp:
            return known
    try:
        return [*stamp, files.digest(image.contents(path, name)[0])]
    except ImageError as error:  # training reports it
        return [None, None, str(error)]


def _outside(reference: str, folder: str) -> list[tuple[str, str]]:
    """Names and digests of the pictures that training reads besides those of the product."""
    pictures = [("reference", Path(reference))] if reference else []
    if folder:
        pictures += [(path.relative_to(folder).as_posix(), path) for path in dataset.images(Path(folder))]
    return [(name, str(_seen(path, name, [])[2])) for name, path in pictures]


def _joined(product: str, others: list[tuple[str, str]]) -> str:
    """One digest of a product and of other pictures; that of the product if there are no others."""
    return files.digest_of_all([("product", product), *others]) if others else product


def _job(cell: Cell, plan: Plan, digest: str, out: Path) -> Job:
    return Job(
        product=cell.product,
        detector=cell.detector,
        size=cell.size,
        seed=cell.seed,
        recipe=cell.recipe.dump(),
        data_digest=digest,
        result=out / "cells" / f"{cell.place}.json",
        work=out / ".work" / cell.place,
        keep=out / "bundles" / f"{cell.place}.andon" if plan.keep_bundles else None,
    )


def _finished(job: Job, tell: Tell) -> bool:
    """Whether the result of a cell is valid; if not, report why, and prepare the paths of its files."""
    result, name = table.read(job.result), f"{job.product} · {job.detector} · {job.size}² · seed {job.seed}"
    mark = job.work / "job"
    started = files.digest(f"{_decided(job.recipe)}{job.data_digest}".encode())
    if result is None:
        pass
    elif _decided(result["recipe"]) != _decided(job.recipe):
        tell(f"{name}: its recipe has changed; it is run again")
    elif result["data_digest"] != job.data_digest:
        tell(f"{name}: its images have changed; it is run again")
    elif result["status"] == "failed":
        tell(f"{name}: it failed; it is run again")
    elif job.keep and not files.is_file(job.keep):
        tell(f"{name}: its bundle was not kept; it is run again")
    else:
        return True
    for place in (job.result, job.keep):
        if place:
            files.prepare(place)
    if files.is_folder(job.work) and (not files.is_file(mark) or mark.read_text() != started):
        shutil.rmtree(job.work)  # of another recipe or other images: a training must not continue from it
    files.make_folder(job.work)
    files.write(mark, started.encode())
    return False


def _decided(recipe: str) -> Json:
    """The recipe without paths; the contents of the images are in the digest."""
    values = {**tomllib.loads(recipe), "data": None}
    values["geometry"].get("registration", {}).pop("reference", None)
    values["detector"]["settings"].pop(plans.OCCLUSIONS, None)
    return values


def _run_cell(job: Job) -> Json:
    """Run a cell in a separate process and return its result; a process that dies is a failed cell."""
    job.result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "andon.lab.bench.cell"]
    # A separate session: Ctrl-C reaches only this process, which then ends the other.
    started = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True)
    with suppress(BrokenPipeError), started as process:
        assert process.stdin is not None
        try:
            process.stdin.write(files.strict_json(job.model_dump(mode="json")) + "\n")
            process.stdin.flush()
            process.wait()  # standard input stays open: the cell ends with this process
        except BaseException:
            process.kill()
            raise
    status = started.wait()
    result = table.read(job.result)
    if result is None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        result = {
            **job.head(),
            "status": "failed",
            "error": f"its process {how}; signal 9 often means that memory ran out",
        }
        save(job, result)
    shutil.rmtree(job.work, ignore_errors=True)
    return result


def _outcome(result: Json) -> str:
    if result["status"] == "failed":
        return f"failed: {result['error']}"
    auroc = result["metrics"]["image"]["auroc"]
    return f"image AUROC {auroc:.4f}, {result['total_seconds']:.0f} s, {result['peak_mb'] or 0:.0f} MB"


def _time_left(waiting: Sequence[Job], jobs: Sequence[Job]) -> str:
    """Estimate the remaining time from finished cells of the same detector and size, otherwise from all."""
    seconds: dict[tuple[str, int] | None, list[float]] = {}
    for job in jobs:
        result = table.read(job.result)
        if result and result["status"] == "done":
            for key in ((job.detector, job.size), None):
                seconds.setdefault(key, []).append(result["total_seconds"])
    if not waiting or not seconds:
        return ""
    known = [seconds.get((job.detector, job.size), seconds[None]) for job in waiting]
    left = sum(sum(each) / len(each) for each in known)
    return f"; about {left / 60:.0f} min left" if left > 90 else f"; about {left:.0f} s left"

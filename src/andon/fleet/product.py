"""One product of a plant: trained, calibrated and evaluated, or recalibrated. Its log and its result are files.

A folder of a product holds NAME.andon, the log `log.txt`, `result.json`, and after an evaluation `metrics.json`,
`scores.csv` and `report.html`.
"""

import json
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from andon import files
from andon.bundle import Bundle
from andon.data import dataset, folders
from andon.engines import runtime
from andon.errors import AndonError, BundleError, out_of_memory
from andon.evaluate import evaluating, report
from andon.evaluate.deciding import promised_unit
from andon.fleet import place
from andon.inspector import Inspector
from andon.progress import STAGE
from andon.recipe import Recipe
from andon.training import calibrating
from andon.training.train import train as train_bundle

Json = dict[str, Any]
RESULT, RECALIBRATION = "result.json", "recalibration.json"
FIGURES = ("image_auroc", "test_good", "test_defective", "review_escapes", "review_false_rejects", "not_evaluated")
"""Results of an evaluation: of one bundle, so a recalibrated product has none."""


class Job(NamedTuple):
    """The work for one product."""

    name: str
    recipe: Recipe
    test: str  # folder of labelled images; "": the test split of the images, if they have one
    folder: Path  # of this product alone
    cpus: int  # number of threads
    gpus: float
    fresh: str = ""  # folder of new good images: the product is recalibrated, not trained

    @property
    def bundle(self) -> Path:
        """Path of the bundle."""
        return self.folder / f"{self.name}.andon"

    @property
    def log(self) -> Path:
        """Path of the log."""
        return self.folder / "log.txt"

    @property
    def inputs(self) -> list[str]:
        """Folders that the node must have."""
        return [self.fresh] if self.fresh else [*filter(None, (self.recipe.data.images, self.test))]


class Log:
    """The log of a product: one line for each message and for each stage."""

    def __init__(self, path: Path) -> None:
        """Lines are appended to the file at `path`."""
        self._path, self._stage = path, ""

    def tell(self, sentence: str) -> None:
        """Append a line with the time. AndonError when the file cannot be written."""
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {sentence}\n"
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line)
        except OSError as error:
            raise AndonError(f"{self._path}: cannot be written: {files.reason(error)}. Free space.") from None

    def progress(self, stage: str, done: int, total: int) -> None:
        """Append the name of a stage when it begins."""
        if stage not in (self._stage, STAGE):
            self._stage = stage
            self.tell(f"{stage}…")


def train(job: Job) -> Json:
    """Train, calibrate and evaluate a product; return its result, which is also in `result.json`.

    A product that cannot be trained has a result with status "failed" and its error. A product that an earlier run
    finished, with the same recipe and the same files of images, has the status "kept" if its bundle is the one that was
    trained or recalibrated. After a recalibration it has no figures of an evaluation.
    """

    def kept(before: Json) -> Json:
        digest = _digest(job)
        if digest == before.get("bundle"):
            return before
        return _unmeasured(before, digest) if digest == read(job.folder / RECALIBRATION).get("bundle") else {}

    return _run(job, RESULT, _trained, kept)


def recalibrate(job: Job) -> Json:
    """Recalibrate the bundle of a product on the new good images `job.fresh`; result and errors as `train`.

    The result is also in `recalibration.json`. A bundle that was recalibrated on the same files is kept.
    """
    return _run(
        job, RECALIBRATION, _recalibrated, lambda before: before if _digest(job) == before.get("bundle") else {}
    )


def _digest(job: Job) -> str:
    """Digest of the bundle of a product; "" when it is missing or damaged."""
    try:
        return Bundle.load(job.bundle).digest()
    except BundleError:
        return ""


def _unmeasured(result: Json, bundle: str) -> Json:
    """The result of a training whose bundle was recalibrated since: without the figures of the bundle before."""
    left = {key: value for key, value in result.items() if key not in FIGURES}
    return left | {"bundle": bundle, "recalibrated": True}


def _run(job: Job, result_name: str, work: Callable[[Job, Log], Json], kept: Callable[[Json], Json]) -> Json:
    """Do the work and write log and result; `kept` gives what is still valid of an earlier result, or {}."""
    files.make_folder(job.folder)
    began, log, place = time.perf_counter(), Log(job.log), job.folder / result_name
    head: Json = {"product": job.name, "node": socket.gethostname()}
    try:
        key = _key(job)
        before = read(place)
        if before.get("status") == "done" and before.get("key") == key and (valid := kept(before)):
            return {**valid, "status": "kept"}
        log.tell(f"started on {head['node']}")
        with limited(job.cpus):
            result = {**head, "status": "done", "error": "", "key": key, **work(job, log)}
    except AndonError as error:
        result = {**head, "status": "failed", "error": str(error)}
    except Exception as error:
        log.tell(traceback.format_exc())
        what = "out of memory. Give it more memory_mb, or a smaller geometry.size." if out_of_memory(error) else error
        result = {**head, "status": "failed", "error": f"{type(error).__name__}: {what}"}
    result["seconds"] = round(time.perf_counter() - began, 1)
    log.tell(f"{result['status']} after {result['seconds']} s {result['error']}".rstrip())
    files.write(place, files.strict_json(result, indent=1, ascii_only=False).encode(errors="replace"))
    return result


def _trained(job: Job, log: Log) -> Json:
    bundle = train_bundle(
        job.recipe, job.bundle, device="" if job.gpus else "cpu", progress=log.progress, tell=log.tell
    )
    result: Json = {"bundle": bundle.digest(), "images": bundle.manifest.data["images"]}
    data = job.recipe.data
    labelled = (
        dataset.load(job.test) if job.test else dataset.load(data.images, groups=data.groups or None, good=data.good)
    )
    if not job.test and all(sample.split != "test" for sample in labelled.samples):
        log.tell("not evaluated: no labelled images. Name them with test = 'FOLDER' in the plan")
        return result
    inspector = Inspector.load(job.bundle, threads=job.cpus)
    evaluation = evaluating.evaluate(inspector, labelled, log.progress)
    report.write(evaluation, job.folder, job.bundle.name)
    for sentence in [*evaluation.summary(), *evaluation.warnings, *evaluation.errors]:
        log.tell(sentence)
    image, review = evaluation.metrics["image"], promised_unit(evaluation.metrics)[1]["review"]
    return {
        **result,
        "image_auroc": image["auroc"],
        "test_good": review["false_rejects"]["n"],
        "test_defective": review["escapes"]["n"],
        "review_escapes": review["escapes"]["count"],
        "review_false_rejects": review["false_rejects"]["count"],
        "not_evaluated": len(evaluation.errors),
    }


def _recalibrated(job: Job, log: Log) -> Json:
    before = Bundle.load(job.bundle)
    after = calibrating.recalibrate(before, job.fresh, progress=log.progress, tell=log.tell)
    after.save(job.bundle)
    if trained := read(job.folder / RESULT):
        result = _unmeasured(trained, after.digest())
        files.write(job.folder / RESULT, files.strict_json(result, indent=1, ascii_only=False).encode(errors="replace"))
    sentences = calibrating.before_and_after(before, after)
    for sentence in sentences:
        log.tell(sentence)
    return {"bundle": after.digest(), "images": after.calibration.images, "changes": sentences}


@contextmanager
def limited(cpus: int) -> Iterator[None]:
    """Limit the threads of matrix products, OpenCV and ONNX Runtime.

    Products beside each other then do not slow each other down, and results do not depend on the number of cores.
    """
    from threadpoolctl import threadpool_limits

    before = cv2.getNumThreads()
    cv2.setNumThreads(cpus)
    try:
        with threadpool_limits(cpus), runtime.limited(cpus):
            yield
    finally:
        cv2.setNumThreads(before)


def _key(job: Job) -> str:
    """Digest of the recipe and of names, sizes and times of change of its files. AndonError for a missing folder."""
    if missing := place.lacking(job.inputs):
        raise AndonError(missing)
    data, registration = job.recipe.data, job.recipe.geometry.registration
    beside = [data.groups, *data.good, registration.reference if registration else ""]
    stamps = [f"{name} {size} {changed}" for folder in job.inputs for name, size, changed in _stamps(Path(folder))]
    stamps += [str(Path(each).stat().st_mtime_ns) if files.is_file(each) else each for each in beside]
    return files.digest("\n".join([job.recipe.without_paths().dump(), *stamps]).encode(errors="surrogateescape"))


def _stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    contents = folders.scan(folder)
    for path in (*contents.images, *contents.masks):
        state = path.stat()
        yield path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns


def read(path: Path) -> Json:
    """Read a result; {} when it is missing or damaged, so that the product is run again."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}

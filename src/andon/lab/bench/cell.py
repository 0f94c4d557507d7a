"""One cell of a benchmark, in a separate process: train, evaluate, and write the result as one file.

`andon.lab.bench.run` starts it as `python -m andon.lab.bench.cell`, with a `Job` as one line of JSON on standard input.
The process ends when standard input is closed, so a killed benchmark leaves no process running.
"""

import json
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from andon import files
from andon.bundle import machine, versions
from andon.data import dataset
from andon.engines.clock import peak_mb
from andon.errors import AndonError
from andon.evaluate import evaluating
from andon.inspector import Inspector
from andon.recipe import Recipe
from andon.training.train import train

Json = dict[str, Any]


class Job(BaseModel):
    """A cell, and the paths of its files."""

    product: str
    detector: str
    size: int
    seed: int
    recipe: str  # TOML
    data_digest: str
    result: Path
    work: Path  # folder of this cell alone; a killed training continues from its contents
    keep: Path | None  # path for the bundle; None: it is deleted

    def head(self) -> Json:
        """The entries that every result has, also that of a failed cell."""
        return {
            **self.model_dump(include={"product", "detector", "size", "seed"}),
            "recipe": self.recipe,
            "data_digest": self.data_digest,
            "versions": versions(),
            "machine": f"{machine()}, {os.cpu_count()} cores",
        }


def run(job: Job) -> Json:
    """Train and evaluate. AndonError when detector, settings or images do not allow it."""
    began = time.perf_counter()
    recipe = Recipe.parse(job.recipe, "cell")
    files.make_folder(job.work)
    path = job.work / "part.andon"
    bundle = train(recipe, path)
    inspector = Inspector.load(path)
    metrics = evaluating.evaluate(
        inspector, dataset.load(recipe.data.images, groups=recipe.data.groups or None, good=recipe.data.good)
    ).metrics
    result = {
        **job.head(),
        "status": "done",
        "bundle_digest": bundle.digest(),
        "bundle_bytes": path.stat().st_size,
        "training": bundle.manifest.data,
        "fit_seconds": bundle.manifest.timings["fit"],
        "total_seconds": time.perf_counter() - began,
        "peak_mb": peak_mb(),
        "latency_p50_ms": metrics["milliseconds"].pop("p50"),  # one image at a time, from the file to the verdict
        "latency_p95_ms": metrics["milliseconds"].pop("p95"),
        "metrics": metrics,
    }
    if job.keep:
        files.make_folder(job.keep.parent)
        shutil.move(path, job.keep)
    return result


def save(job: Job, result: Json) -> None:
    """Write a result to its path, completely or not at all. Bytes of a path that are not UTF-8 become "?"."""
    result["made"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    files.write(job.result, files.strict_json(result, indent=1, ascii_only=False).encode(errors="replace"))


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the parent closes the pipe; sys.stdin has a lock that Python needs at exit
    os._exit(1)


def main() -> None:
    """Run the job of standard input, and write its result or its error."""
    job = Job.model_validate(json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = run(job)
    except AndonError as error:
        result = {**job.head(), "status": "failed", "error": str(error)}
    except Exception as error:
        traceback.print_exc()
        result = {**job.head(), "status": "failed", "error": f"{type(error).__name__}: {error}"}
    save(job, result)


if __name__ == "__main__":
    main()

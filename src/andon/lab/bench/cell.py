"""One cell of a benchmark, in a process of its own: train, evaluate, and write what came of it as one file.

Run by `run` as `python -m andon.bench.cell`, with a `Job` as one line of JSON on standard input. The process ends when
its standard input does, so a benchmark that is killed leaves nothing running.
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
    """A cell, and where its files go."""

    product: str
    detector: str
    size: int
    seed: int
    recipe: str  # TOML
    data_digest: str
    result: Path
    work: Path  # a folder of its own; a killed training goes on from what is in it
    keep: Path | None  # where the bundle is to be kept

    def head(self) -> Json:
        """What a result says of its cell, whatever came of it."""
        return {
            **self.model_dump(include={"product", "detector", "size", "seed"}),
            "recipe": self.recipe,
            "data_digest": self.data_digest,
            "versions": versions(),
            "machine": f"{machine()}, {os.cpu_count()} cores",
        }


def run(job: Job) -> Json:
    """Train and measure. AndonError when the detector, the settings or the images do not allow it."""
    began = time.perf_counter()
    recipe = Recipe.parse(job.recipe, "cell")
    files.make_folder(job.work)
    path = job.work / "part.andon"
    bundle = train(recipe, path)
    inspector = Inspector.load(path)
    found = evaluating.evaluate(
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
        "latency_p50_ms": found["milliseconds"].pop("p50"),  # one image at a time, from the file to the verdict
        "latency_p95_ms": found["milliseconds"].pop("p95"),
        "metrics": found,
    }
    if job.keep:
        files.make_folder(job.keep.parent)
        shutil.move(path, job.keep)
    return result


def save(job: Job, result: Json) -> None:
    """Write a result where it belongs, whole or not at all; what is no UTF-8 in a file's name becomes a "?"."""
    result["made"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    files.write(job.result, files.strict_json(result, indent=1, ascii_only=False).encode(errors="replace"))


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the other end is closed; sys.stdin would hold a lock that the end of Python wants
    os._exit(1)


def main() -> None:
    """Run the job that standard input names, and write its result, or why there is none."""
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

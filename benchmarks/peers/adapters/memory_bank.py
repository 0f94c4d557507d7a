"""andon's memory-bank, in andon's own environment.

`andon` is the default with all its own settings, `andon-256` the preset of 256² pixels with the bank of the comparison.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Job, serve

import andon
from andon import Inspector
from andon.training.train import compose, train

PRESETS = {"andon": "standard", "andon-256": "fast"}


class MemoryBank:
    """A bundle, trained as by `andon train`: with calibration and the check of the exported graph."""

    version = andon.__version__

    def __init__(self, job: Job) -> None:
        """Compose the recipe."""
        settings = {} if job.peer == "andon" else {"bank": job.bank}
        recipe = compose(job.train, preset=PRESETS[job.peer], seed=job.seed, settings=settings)
        self.recipe = recipe.model_copy(update={"input": recipe.input.model_copy(update={"size": "any"})})
        self.bundle = Path(job.folder, "part.andon")
        self.threads = job.threads
        self.settings: dict[str, Any] = {"preset": PRESETS[job.peer], "input": recipe.geometry.size, **settings}

    def fit(self) -> dict[str, Any]:
        """Train; the details are the seconds of each step."""
        timings = train(self.recipe, self.bundle).manifest.timings
        self.inspector = Inspector.load(self.bundle)
        return {"timings": timings}

    def score(self, path: str) -> tuple[float, np.ndarray | None]:
        """Inspect a picture."""
        inspection = self.inspector.inspect(path)
        return inspection.score, inspection.anomaly_map

    def engines(self) -> dict[str, Callable[[np.ndarray], object] | str]:
        """ONNX Runtime: array to verdict."""
        inspector = Inspector.load(self.bundle, threads=self.threads)
        gray = inspector.manifest.input.channels == 1
        return {"onnxruntime": lambda array: inspector.inspect(array[..., :1] if gray else array)}


if __name__ == "__main__":
    serve(MemoryBank)

"""vision-anomaly: statistics of the whole picture and of a grid, without a network."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from protocol import Job, serve
from vision_anomaly import Detector


class VisionAnomaly:
    """Its detector with default settings."""

    version = version("vision-anomaly")

    def __init__(self, job: Job) -> None:
        """Make the detector."""
        self.job, self.detector, self.settings = job, Detector(), {}

    def fit(self) -> dict[str, Any]:
        """Keep the statistics of the good pictures."""
        self.detector.fit([str(path) for path in sorted(Path(self.job.train, "train/good").iterdir())])
        return {}

    def score(self, path: str) -> tuple[float, np.ndarray | None]:
        """Score one picture; there is no map."""
        return float(self.detector.score(path)), None

    def engines(self) -> dict[str, Callable[[np.ndarray], object] | str]:
        """NumPy."""
        return {"numpy": self.detector.score}


if __name__ == "__main__":
    serve(VisionAnomaly)

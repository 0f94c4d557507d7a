"""imgad: features of the whole picture and the nearest good picture, with the backbone of andon."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from backbone import LAYERS, NETWORK, features  # first: it makes torchvision importable

# isort: split

import numpy as np
import torch
from imgad import AnomalyDetectionPipeline, build_detector
from imgad.features import FeatureExtractor
from protocol import Job, serve


class Lite0(FeatureExtractor):
    """Means of the two feature maps; imgad's own extractors download their weights."""

    def __init__(self, weights: str, size: int) -> None:
        """Load the backbone."""
        self.net, self.size = features(weights), size

    def _extract_batch(self, images: list[Any]) -> np.ndarray:
        resized = [np.asarray(image.convert("RGB").resize((self.size, self.size))) for image in images]
        inputs = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            return torch.cat([stage.mean((2, 3)) for stage in self.net(inputs)], 1).numpy()

    def get_config(self) -> dict[str, Any]:
        """Describe the extractor."""
        return {"network": NETWORK, "layers": LAYERS, "size": self.size}


class Imgad:
    """imgad's pipeline with its default detector, as in its quick start."""

    version = version("imgad")

    def __init__(self, job: Job) -> None:
        """Make the pipeline."""
        torch.set_num_threads(job.fit_threads)
        self.job = job
        self.settings: dict[str, Any] = {"network": NETWORK, "layers": LAYERS, "detector": "knn", "k": 1}
        detector = build_detector("knn", k=1)
        self.pipeline = AnomalyDetectionPipeline(Lite0(job.weights, job.size), detector, preprocessing=["l2"])

    def fit(self) -> dict[str, Any]:
        """Extract and keep the features."""
        self.pipeline.fit([str(path) for path in sorted(Path(self.job.train, "train/good").iterdir())])
        return {}

    def score(self, path: str) -> tuple[float, np.ndarray | None]:
        """Score one picture; there is no map."""
        return float(self.pipeline.score([path])[0]), None

    def engines(self) -> dict[str, Callable[[np.ndarray], object] | str]:
        """Torch."""
        torch.set_num_threads(self.job.threads)
        return {"torch": lambda array: self.pipeline.score([array])}


if __name__ == "__main__":
    serve(Imgad)

"""The models of anomalib, fitted by its Engine, with the backbone of andon where they have one.

Scores and maps are those of the model before anomalib's post-processing, which clamps them to [0, 1].
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from backbone import LAYERS, NETWORK, use  # first: it makes torchvision importable

# isort: split

import numpy as np
import onnxruntime
import openvino
import torch
from anomalib import models
from anomalib.data import Folder
from anomalib.data.utils.generators import PerlinAnomalyGenerator
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from PIL import Image
from protocol import Job, serve
from torch import Tensor
from torchvision.transforms.v2 import Compose, Normalize, Resize

PATCHES = 64  # an image of size² pixels has (size / 8)² patches
TOLERANCE = 1e-2  # relative difference of an exported map from torch's
BACKBONE = {"backbone": NETWORK, "layers": LAYERS}
# name of the peer → class, settings, batch, epochs (those of its paper or of anomalib's example; 1: no gradient)
MODELS: dict[str, tuple[Callable[..., Any], dict[str, Any], int, int]] = {
    "padim": (models.Padim, {**BACKBONE, "n_features": 100}, 32, 1),
    "patchcore": (models.Patchcore, BACKBONE, 32, 1),
    "mh-patchcore": (models.MHPatchcore, BACKBONE, 32, 3),
    "stfpm": (models.Stfpm, BACKBONE, 32, 100),
    "draem": (models.Draem, {}, 8, 700),
    "ganomaly": (models.Ganomaly, {}, 32, 100),
    "reverse-distillation": (models.ReverseDistillation, BACKBONE, 16, 200),
    "efficient-ad": (models.EfficientAd, {}, 1, 300),
}


class Anomalib:
    """One model of anomalib."""

    version = version("anomalib")

    def __init__(self, job: Job) -> None:
        """Make the model, untrained."""
        use(job.weights)
        torch.set_num_threads(job.fit_threads)
        torch.manual_seed(job.seed)
        self.job = job
        kind, settings, self.batch, self.epochs = MODELS[job.peer]
        self.settings = dict(settings)
        steps: list[Any] = [Resize((job.size, job.size), antialias=True)]
        if job.peer not in ("draem", "efficient-ad"):  # these take pixels in [0, 1]
            steps.append(Normalize([0.5] * 3, [0.5] * 3))  # the backbone was trained with these
        extra: dict[str, Any] = {}
        if job.peer == "patchcore":
            pictures = sum(1 for _ in Path(job.train, "train/good").iterdir())
            extra["coreset_sampling_ratio"] = job.bank / (pictures * job.size**2 / PATCHES)
        if job.peer == "mh-patchcore":
            extra["memory_bank_size"] = job.bank
        if job.peer == "draem":
            extra["dtd_dir"] = job.train
        self.settings.update(extra)
        self.model = kind(
            **settings,
            **extra,
            pre_processor=PreProcessor(transform=Compose(steps)),
            post_processor=False,
            evaluator=False,
            visualizer=False,
        )
        if job.peer == "draem":  # its textures (DTD) would be downloaded; this is its own replacement for them
            self.model.augmenter = PerlinAnomalyGenerator(anomaly_source_path=None, blend_factor=(0.1, 1.0))
            self.settings["dtd_dir"] = "none: Perlin noise"

    def fit(self) -> dict[str, Any]:
        """Fit by the Engine; training by gradient ends after the seconds of the job."""
        data = Folder(
            name="product",
            root=self.job.train,
            normal_dir="train/good",
            train_batch_size=self.batch,
            num_workers=0,
            test_split_mode="none",
            val_split_mode="none",
            seed=self.job.seed,
        )
        engine = Engine(
            default_root_dir=self.job.folder,
            accelerator="cpu",
            devices=1,
            max_epochs=self.epochs,
            max_time={"seconds": int(self.job.seconds)} if self.epochs > 3 else None,
            enable_progress_bar=False,
            limit_val_batches=0,
        )
        engine.fit(self.model, datamodule=data)
        self.model.eval()
        trainer = engine.trainer
        return {"steps": trainer.global_step, "epochs": trainer.current_epoch, "planned_epochs": self.epochs}

    def score(self, path: str) -> tuple[float, np.ndarray | None]:
        """Score one picture."""
        with Image.open(path) as picture:
            score, anomaly_map = self.run(np.asarray(picture.convert("RGB")))
        return float(score), None if anomaly_map is None else anomaly_map.squeeze().numpy()

    def run(self, array: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Array (h, w, 3) → score and map."""
        with torch.inference_mode():
            images = self.model.pre_processor(torch.from_numpy(_images(array)))
            result = self.model.model(images)
        return result.pred_score, result.anomaly_map

    def engines(self) -> dict[str, Callable[[np.ndarray], object] | str]:
        """Torch, and the exported graph on ONNX Runtime and OpenVINO."""
        torch.set_num_threads(self.job.threads)
        engines: dict[str, Callable[[np.ndarray], object] | str] = {"torch": self.run}
        for name, start in (("onnxruntime", self._onnxruntime), ("openvino", self._openvino)):
            try:
                engines[name] = start()
            except Exception as error:  # whatever an export fails with is a result
                engines[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return engines

    def _export(self) -> str:
        folder = Path(self.job.folder)
        if not (path := next(folder.rglob("*.onnx"), None)):
            path = self.model.to_onnx(folder, input_size=(self.job.size, self.job.size))
        return str(path)

    def _onnxruntime(self) -> Callable[[np.ndarray], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.job.threads
        session = onnxruntime.InferenceSession(self._export(), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return self._checked(lambda array: session.run(None, {name: _images(array)}))

    def _openvino(self) -> Callable[[np.ndarray], object]:
        core = openvino.Core()
        hints = {"INFERENCE_NUM_THREADS": self.job.threads, "PERFORMANCE_HINT": "LATENCY"}
        hints["INFERENCE_PRECISION_HINT"] = "f32"  # its default on some processors is bf16, whose map differs by 16 %
        compiled = core.compile_model(self._export(), "CPU", hints)
        request = compiled.create_infer_request()
        return self._checked(lambda array: list(request.infer([_images(array)]).values()))

    def _checked(self, run: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], object]:
        """Compare the largest output with torch's map, or score, of one picture."""
        array = np.load(self.job.arrays)[0]
        score, anomaly_map = self.run(array)
        expected = (score if anomaly_map is None else anomaly_map).numpy().ravel()
        outputs = [np.asarray(output).ravel() for output in run(array)]
        differences = [
            float(np.abs(output - expected).max() / np.abs(expected).max())
            for output in outputs
            if output.size == expected.size
        ]
        if not differences or not min(differences) <= TOLERANCE:
            raise RuntimeError(f"the exported graph differs from torch: {differences}, at most {TOLERANCE:g} expected")
        return run


def _images(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None], dtype=np.float32) / 255


if __name__ == "__main__":
    serve(Anomalib)

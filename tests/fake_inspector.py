"""An inspector that finds bright pixels anomalous: no graph, so evaluation and report are tested fast."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

from andon import calibration
from andon.bundle import Manifest
from andon.calibration import Calibration
from andon.geometry import regions, tiling
from andon.geometry.views import Placement
from andon.inspection import Inspection, Verdict
from andon.pictures import image
from andon.pictures.image import Input
from andon.recipe import Decision, Recipe
from andon.render import Scale


def whole(anomaly_map) -> tiling.ViewMap:
    """A map as large as its image."""
    frame = anomaly_map.shape
    return tiling.ViewMap(anomaly_map, Placement(frame, (0, 0), frame, None))


class FakeInspector:
    """Score: the brightest pixel. Calibrated on 39 good scores from 1 to 39; the left column is not inspected."""

    def __init__(self, decision: Decision | None = None, product: str = "ring"):
        self.decision = decision or Decision(review_rate=0.1, reject_rate=0.05)
        self.recipe = Recipe(product=product, decision=self.decision)
        scores = [float(j) for j in range(1, 40)]
        self.calibration = Calibration(part=list(range(len(scores))), scores=scores, peaks=scores, typical=1.0)
        self.thresholds = self.calibration.thresholds(self.decision)  # review 36, reject 38
        self.scale = Scale.of(self.calibration.typical, self.thresholds.pixel)
        self.digest = "0123456789abcdef" * 4
        self.decision_digest = "fedcba9876543210" * 4
        self.bundle = SimpleNamespace(sheet=b"")
        self.manifest = Manifest(
            created="2026-11-22T07:00:00+00:00",
            seed=3,
            detector="brightness",
            input=Input(channels=1, depth=8),
            versions={"andon": "0.1.0"},
            machine="x86_64 Linux",
            data={"images": 50, "digest": "feed"},
            timings={},
            parity={},
        )

    def promises(self):
        return self.calibration.describe(self.decision)

    def read(self, source, name=None):
        return image.read(source, name)

    def inspect(self, source, name=None):
        read = self.read(source, name)
        anomaly_map = read.pixels[:, :, 0].astype(np.float32)
        anomaly_map[:, 0] = np.nan
        score = float(np.nanmax(anomaly_map))
        listed, unlisted = regions.find(anomaly_map, self.thresholds.pixel, 0)
        return Inspection(
            source=read.name,
            verdict=Verdict.INVALID if score == 255 else calibration.judge(score, self.thresholds),
            score=score,
            p_value=self.calibration.p_value(score),
            thresholds=self.thresholds,
            map=whole(anomaly_map),
            regions=listed,
            removed_regions=unlisted,
            milliseconds=2.0,
            digest=read.digest,
        )


def paint(path: Path, value: int, mask: Path | None = None, side: int = 24):
    """Write a dark gray image with a square of `value`, and its mask."""
    pixels = np.full((side, side), 1, np.uint8)
    pixels[8:12, 8:12] = value
    pixels[0, 0] += mask is not None  # no file of a defect equals one of a good part
    for target, array in ((path, pixels), (mask, np.where(pixels == value, np.uint8(255), np.uint8(0)))):
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(cv2.imencode(target.suffix, array)[1].tobytes())


def paint_set(root: Path) -> Path:
    """A data set in MVTec layout: the value of every test image's square is in its name."""
    paint(root / "train/good/000.png", 200)
    for value in (5, 20, 30, 37, 39):
        paint(root / f"test/good/{value:03}.png", value)
    for value in (10, 37, 60, 80):
        paint(root / f"test/scratch/{value:03}.png", value, root / f"ground_truth/scratch/{value:03}_mask.png")
    for value in (90, 95):
        paint(root / f"test/dent/{value:03}.png", value, root / f"ground_truth/dent/{value:03}_mask.png")
    return root

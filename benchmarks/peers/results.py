"""The results of the comparison: one row of JSON for each product and peer, failures included."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from andon import files
from andon.data import masks
from andon.data.dataset import Sample
from andon.errors import AndonError
from andon.evaluate import metrics

Row = dict[str, Any]
OK = "ok"
FAILURES = ("not installed", "timeout", "out of memory", "crash")
REQUIRED = {"product", "peer", "status", "reason", "plan"}


class Table:
    """The file of rows, JSON lines, written whole after each row; at most one row for a product and a peer."""

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        """Read the rows that exist. AndonError when the file is damaged, or has rows of another plan."""
        self.path, self.plan = path, plan
        self.rows = read(path)
        for row in self.rows:
            if row["plan"] != plan:
                raise AndonError(
                    f"{path}: has rows of another plan ({row['plan']}); expected {plan}. Choose another "
                    "--results, or the options of that plan."
                )

    def has(self, product: str, peer: str) -> bool:
        """Whether there is a row of this product and peer."""
        return any((row["product"], row["peer"]) == (product, peer) for row in self.rows)

    def add(self, row: Row) -> None:
        """Add a row, or replace that of the same product and peer, and write the file."""
        key = row["product"], row["peer"]
        kept = [other for other in self.rows if (other["product"], other["peer"]) != key]
        self.rows = [*kept, {**row, "plan": self.plan}]
        files.write(self.path, "".join(files.strict_json(each) + "\n" for each in self.rows).encode())


def read(path: Path) -> list[Row]:
    """Read a file of rows; none if it does not exist. AndonError when a line is no row."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not row.keys() >= REQUIRED or row["status"] not in (OK, *FAILURES):
            raise AndonError(f"{path}: line {number} is not a row of results. Delete the line; its peer is run again.")
        rows.append(row)
    return rows


class Figures(NamedTuple):
    """Figures of a peer on one product, each in [0, 1]; those of pixels are None without maps."""

    image_auroc: float
    image_auroc_interval: tuple[float, float]  # of 95 %
    image_ap: float
    pixel_auroc: float | None = None
    aupro_30: float | None = None
    aupro_05: float | None = None


def figures(samples: Sequence[Sample], scores: Sequence[float], maps: Path) -> Figures:
    """Measure scores (n,) and the maps NUMBER.npy in a folder, by the metrics of `andon evaluate`.

    Maps are enlarged to the pictures, bilinearly.
    Errors: AndonError when a score or a map is not finite, or when maps are missing.
    """
    labels = [sample.defect != "good" for sample in samples]
    if len(scores) != len(samples) or not np.isfinite(scores).all():
        raise AndonError(
            f"{len(scores)} scores, {np.count_nonzero(~np.isfinite(scores))} of them not finite; expected "
            f"{len(samples)} numbers."
        )
    interval = metrics.auroc_interval(labels, scores)
    ranked = metrics.auroc(labels, scores), interval, metrics.average_precision(labels, scores)
    saved = {int(path.stem): path for path in maps.glob("*.npy")}
    if not saved:
        return Figures(*ranked)
    if len(saved) != len(samples):
        raise AndonError(f"{len(saved)} maps of {len(samples)} pictures; expected all or none.")
    pixel = metrics.PixelMetrics()
    for number, sample in enumerate(samples):
        values = np.load(saved[number]).astype(np.float32)
        if not np.isfinite(values).all():
            raise AndonError(f"the map of {sample.path.name} is not finite; expected numbers.")
        height, width = cv2.imread(str(sample.path), cv2.IMREAD_GRAYSCALE).shape
        enlarged = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
        if sample.defect == "good":
            pixel.add(enlarged)
        elif sample.mask:
            pixel.add(enlarged, masks.read_sized(sample.mask, (height, width)).area)
    measured = pixel.figures()
    return Figures(*ranked, measured.auroc, *measured.aupro)

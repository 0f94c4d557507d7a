"""AUPRO and AUPIMO of anomalib on maps of `aupro.py`: run by the Python of an environment with anomalib, not of andon.

ENVIRONMENT/bin/python benchmarks/aupro_peer.py FOLDER     # maps.npy (n, h, w), masks.npy (n, h, w)
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except (
    RuntimeError
):  # its wheel on PyPI is built for CUDA and does not fit a torch for CPU; no figure needs its operators
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import anomalib
from anomalib.metrics.aupro import _AUPRO
from anomalib.metrics.pimo.functional import aupimo_scores

folder = Path(sys.argv[1])
maps, masks = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("maps", "masks"))
seconds = []
for _ in range(2):
    start = time.perf_counter()
    metric = _AUPRO(fpr_limit=0.3)
    metric.update(maps, masks.int())
    aupro = float(metric.compute())
    seconds.append(time.perf_counter() - start)
start = time.perf_counter()
classes, scores = aupimo_scores(maps, masks)[3:5]
result = {
    "version": anomalib.__version__,
    "aupro": aupro,
    "aupro_seconds": min(seconds),
    "aupimo": scores[classes == 1].tolist(),
    "aupimo_seconds": time.perf_counter() - start,
}
print(json.dumps(result))

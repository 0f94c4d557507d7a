"""AUPRO and AUPIMO of anomalib on maps of `aupro.py`: run by the Python of an environment with anomalib, not of andon.

ENVIRONMENT/bin/python benchmarks/aupro_peer.py FOLDER     # maps.npy (n, h, w), masks.npy (n, h, w)
"""

import json
import sys
import time
from pathlib import Path

import anomalib
import numpy as np
import torch
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

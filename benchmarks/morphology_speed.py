"""All 48 morphological transforms of type 3 in one call, compared with single calls of OpenCV.

    python benchmarks/morphology_speed.py [--rounds 31] [--threads 1] [--device cpu]

16 gray images of 256², float32. Both use the same number of threads and their best layout: OpenCV one picture
(h, w) at a time, andon a batch (n, c, h, w). They alternate, and the medians are compared: processor time with one
thread, which other processes hardly change, otherwise elapsed time. Before that, the results are compared bit by bit.
"""

import argparse
import time
from statistics import median

import cv2
import numpy as np
import torch

from andon.detectors.transform_classification import Settings
from andon.detectors.transform_classification.morphology import transform

OPENCV = {"erosion": cv2.MORPH_ERODE, "dilation": cv2.MORPH_DILATE, "gradient": cv2.MORPH_GRADIENT}


def main() -> None:
    """Print milliseconds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    on_cpu = options.device == "cpu"
    clock = time.process_time if on_cpu and options.threads == 1 else time.perf_counter
    cases = Settings(family="type-3").cases()
    kernels = [np.ones((case.height, case.width), np.uint8) for case in cases]
    pictures = np.random.default_rng(0).integers(0, 256, (16, 256, 256), dtype=np.uint8).astype(np.float32)
    batch = torch.tensor(pictures)[:, None].to(options.device)

    def opencv() -> list[list[np.ndarray]]:
        return [
            [cv2.morphologyEx(picture, OPENCV[case.operation], kernel) for picture in pictures]
            for case, kernel in zip(cases, kernels, strict=True)
        ]

    def andon() -> list[list[torch.Tensor]]:
        # An image at a time on a CPU, as in training: more would not stay in the cache.
        return [transform(part, cases) for part in batch.split(1 if on_cpu else len(batch))]

    computed = torch.cat([torch.stack(part) for part in andon()], dim=1)[:, :, 0]
    np.testing.assert_array_equal(computed.cpu().numpy(), np.array(opencv()))
    spent: dict[str, list[float]] = {"andon": [], "OpenCV": []}
    for _ in range(options.rounds):
        for name, function in (("andon", andon), ("OpenCV", opencv)):
            start = clock()
            function()
            if not on_cpu:
                torch.cuda.synchronize()
            spent[name].append(1000 * (clock() - start))
    mine, theirs = median(spent["andon"]), median(spent["OpenCV"])
    print(f"16 images of 256², {options.threads} thread(s), andon on {options.device}; medians in ms")
    print(f"all {len(cases)} transforms: andon {mine:.0f}, OpenCV {theirs:.0f}; ratio {theirs / mine:.2f}")


if __name__ == "__main__":
    main()

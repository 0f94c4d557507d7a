"""Erosion and dilation: andon against OpenCV and, where it is installed, kornia.

    python benchmarks/morphology_speed.py [--rounds 31] [--threads 1] [--kornia-rounds 5] [--device cpu]

16 images of 256², gray and colour, uint8 and float32, with squares of 3, 8, 28 and 56 pixels. Everybody gets the same
number of threads and the layout that suits them: OpenCV (h, w, c) pictures one at a time, the others one batch
(n, c, h, w). They take turns, and the medians are compared: of processor time with one thread, for what else the
machine does hardly adds to it, else of the clock on the wall. kornia works on float32 alone, and is slow enough to get
fewer turns. Last, all the 48 transforms of type 3 at once, against OpenCV's one by one. Before anything is timed, the
results are compared to the last bit.

kornia need not be installed for good: pip install --no-deps --target DIR kornia kornia_rs, then PYTHONPATH=DIR.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

from andon.detectors.transform_classification import Settings
from andon.detectors.transform_classification.morphology import dilate, erode, transform

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from kornia import morphology as kornia
    except ImportError:
        kornia = None

OPENCV = {"erosion": cv2.MORPH_ERODE, "dilation": cv2.MORPH_DILATE, "gradient": cv2.MORPH_GRADIENT}


def turns(functions: Sequence[Callable[[], Any]], rounds: int, options: argparse.Namespace) -> list[float]:
    """Median milliseconds of each function; they alternate."""
    alone = options.device == "cpu" and options.threads == 1
    clock = time.process_time if alone else time.perf_counter
    spent: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, times in zip(functions, spent, strict=True):
            start = clock()
            function()
            if options.device != "cpu":
                torch.cuda.synchronize()
            times.append(1000 * (clock() - start))
    return [median(times[1:]) for times in spent]  # the first is a warm-up


def main() -> None:
    """Print milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--kornia-rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    rng = np.random.default_rng(0)
    print(f"16 images of 256², {options.threads} thread(s), andon on {options.device}; medians in ms")
    print("operation  type     c  side   andon  OpenCV   kornia   OpenCV/andon  kornia/andon")
    for kind in (np.uint8, np.float32):
        for channels in (1, 3):
            pictures = rng.integers(0, 256, (16, 256, 256, channels), dtype=np.uint8).astype(kind)
            batch = torch.tensor(pictures).permute(0, 3, 1, 2).contiguous().to(options.device)
            for side in (3, 8, 28, 56):
                kernel = np.ones((side, side), np.uint8)
                for name, ours, theirs in (("erosion", erode, cv2.erode), ("dilation", dilate, cv2.dilate)):
                    compare(name, ours, theirs, pictures, batch, kernel, options)
    together(rng, options)


def compare(
    name: str,
    ours: Callable[[torch.Tensor, int, int], torch.Tensor],
    theirs: Callable[[Any, Any], Any],
    pictures: Any,
    batch: torch.Tensor,
    kernel: Any,
    options: argparse.Namespace,
) -> None:
    """Print one line of the table."""
    side = len(kernel)
    expected = np.stack([theirs(picture, kernel).reshape(picture.shape) for picture in pictures])
    np.testing.assert_array_equal(ours(batch, side, side).permute(0, 2, 3, 1).cpu().numpy(), expected)
    functions = [lambda: ours(batch, side, side), lambda: [theirs(picture, kernel) for picture in pictures]]
    found, opencv = turns(functions, options.rounds, options)
    line = f"{name:10} {pictures.dtype!s:8} {pictures.shape[3]} {side:5} {found:7.2f} {opencv:7.2f}"
    if kornia is None or pictures.dtype != np.float32:
        print(f"{line}        –         {opencv / found:6.2f}             –")
        return
    square = torch.ones(side, side, device=batch.device)
    run = getattr(kornia, name)
    slow = turns([lambda: run(batch, square)], options.kornia_rounds, options)[0]
    print(f"{line} {slow:8.0f}         {opencv / found:6.2f}        {slow / found:6.0f}")


def together(rng: np.random.Generator, options: argparse.Namespace) -> None:
    """Time all transforms of type 3 at once."""
    cases = Settings(family="type-3").cases()
    pictures = rng.integers(0, 256, (16, 256, 256), dtype=np.uint8).astype(np.float32)
    batch = torch.tensor(pictures)[:, None].to(options.device)

    def opencv() -> list[Any]:
        kernels = [np.ones((case.height, case.width), np.uint8) for case in cases]
        return [
            [cv2.morphologyEx(picture, OPENCV[case.operation], kernel) for picture in pictures]
            for case, kernel in zip(cases, kernels, strict=True)
        ]

    def ours() -> list[list[torch.Tensor]]:
        # An image at a time on a CPU, as in training: more would not stay in the cache.
        return [transform(part, cases) for part in batch.split(1 if options.device == "cpu" else len(batch))]

    found = torch.cat([torch.stack(part, dim=1) for part in ours()])[:, :, 0]
    np.testing.assert_array_equal(found.cpu().numpy(), np.array(opencv()).swapaxes(0, 1))
    mine, theirs = turns([ours, opencv], max(3, options.rounds // 4), options)
    print(f"all {len(cases)} transforms of type 3, float32, gray: andon {mine:.0f}, OpenCV {theirs:.0f}", end="")
    print(f" ms, ratio {theirs / mine:.2f}")


if __name__ == "__main__":
    main()

"""AUPRO of andon against a plain implementation, or against anomalib's: time, memory and agreement.

    python benchmarks/aupro.py                     # 100 masks of 1024²
    python benchmarks/aupro.py --images 10 --levels 50
    python benchmarks/aupro.py --images 200 --side 256 --peer ENVIRONMENT/bin/python

With `--peer`, the Python of an environment with anomalib computes AUPRO to 30 % and AUPIMO of the same maps, every
second one without a defect, by `aupro_peer.py`; times are the faster of two runs on the same number of threads.

The plain implementation visits every image and every annotated defect at each threshold: O(thresholds × components).
Published implementations do this at about 200 thresholds, and find the defects again at each. The maps are rounded to
`--levels` levels, so that the plain implementation is exact. andon is also timed on the original maps, with one
threshold for each distinct value, for which the plain implementation would need weeks.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.evaluate.metrics import PixelMetrics

LIMITS = (0.30, 0.05)
Image = tuple[NDArray[np.float32], NDArray[np.bool_]]


def images(count: int, side: int, levels: int | None) -> Iterator[Image]:
    """Smooth maps (side, side) that light up around one to five blobs an image, a few per cent of its area."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        mask = np.zeros((side, side), np.uint8)
        for _ in range(rng.integers(1, 6)):
            centre, axes = rng.integers(0, side, 2).tolist(), rng.integers(side // 50, side // 10, 2).tolist()
            cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
        noise = rng.normal(size=(side // 8, side // 8)).astype(np.float32)
        blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), side / 60)
        values = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC) * 0.2 + blurred
        if levels:
            values = np.round(np.clip((values + 0.8) / 2.6, 0, 1) * (levels - 1)).astype(np.float32) / levels
        yield values, mask.astype(bool)


def curve_areas(fpr: list[float], pro: list[float]) -> tuple[float, ...]:
    areas = []
    for limit in LIMITS:
        inside = [x for x in fpr if x < limit]
        height = float(np.interp(limit, fpr, pro))
        areas.append(float(np.trapezoid([*pro[: len(inside)], height], [*inside, limit])) / limit)
    return tuple(areas)


def plain_aupro(data: list[Image], thresholds: list[float]) -> tuple[float, ...]:
    """Every threshold, every image, every defect; the defects are found once."""
    good = sum(int(np.count_nonzero(~mask)) for _, mask in data)
    labels = [cv2.connectedComponents(mask.astype(np.uint8), connectivity=8) for _, mask in data]
    components = [[labelled == j for j in range(1, count)] for count, labelled in labels]
    fpr, pro = [0.0], [0.0]
    for threshold in thresholds:
        alarms, overlaps = 0, []
        for (values, mask), parts in zip(data, components, strict=True):
            binary = values >= threshold
            alarms += int(np.count_nonzero(binary & ~mask))
            overlaps += [float(np.mean(binary[part])) for part in parts]
        fpr.append(alarms / good)
        pro.append(float(np.mean(overlaps)))
    return curve_areas(fpr, pro)


def lean_aupro(data: list[Image], thresholds: list[float]) -> tuple[float, ...]:
    """The same with the pixels of each defect, and the good ones, gathered once: the best a plain one can do."""
    good = [values[~mask] for values, mask in data]
    total = sum(map(len, good))
    components = []
    for values, mask in data:
        count, labelled = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        components += [values[labelled == j] for j in range(1, count)]
    fpr = [0.0] + [sum(int(np.count_nonzero(pixels >= t)) for pixels in good) / total for t in thresholds]
    pro = [0.0] + [float(np.mean([np.count_nonzero(c >= t) / len(c) for c in components])) for t in thresholds]
    return curve_areas(fpr, pro)


def timed_andon(data: list[Image], memory_mb: float) -> tuple[tuple[float, ...], float]:
    """AUPRO and the seconds of the faster of two runs: the first also pays for fresh memory, as no plain one does."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        pixel = PixelMetrics(memory_mb)
        for values, mask in data:
            pixel.add(values, mask)
        areas = pixel.figures(limits=LIMITS).aupro
        seconds.append(time.perf_counter() - start)
    return areas, min(seconds)


def against_peer(data: list[Image], python: str, memory_mb: float) -> None:
    """Compare with anomalib's AUPRO and AUPIMO, computed by the Python of another environment."""
    good = len(data) // 2
    data = [(values, mask & (j % 2 == 1)) for j, (values, mask) in enumerate(data)]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        pixel = PixelMetrics(memory_mb, good_images=len(data))
        for values, mask in data:
            pixel.add(values, mask)
        areas = pixel.figures(limits=(0.30,)).aupro
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    overlaps = np.array(pixel.aupimo())
    rest = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        for name, parts in zip(("maps", "masks"), zip(*data, strict=True), strict=True):
            np.save(Path(folder, f"{name}.npy"), np.stack(parts))
        script = Path(__file__).with_name("aupro_peer.py")
        done = subprocess.run([python, script, folder], stdout=subprocess.PIPE, check=True, text=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    mine, threads = min(seconds), os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{len(data)} maps of {data[0][0].shape[0]}², {good} without a defect; threads: {threads}")
    print(f"AUPRO: andon {areas[0]:.6f} in {mine:.2f} s, with AUROC, AP and F1 of the pixels", end="")
    print(f"; anomalib {theirs['version']} {theirs['aupro']:.6f} in {theirs['aupro_seconds']:.2f} s: ", end="")
    print(f"{theirs['aupro_seconds'] / mine:.1f} times andon's; differs by {abs(areas[0] - theirs['aupro']):.1e}")
    apart = np.abs(overlaps - np.array(theirs["aupimo"]))
    print(
        f"AUPIMO: andon {overlaps.mean():.5f} in {rest:.2f} s more; anomalib {np.mean(theirs['aupimo']):.5f} in ",
        end="",
    )
    print(f"{theirs['aupimo_seconds']:.2f} s; images differ by {apart.mean():.1e}, {apart.max():.1e} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--levels", type=int, default=200, help="distinct values of the rounded maps")
    parser.add_argument("--memory-mb", type=float, default=512, help="budget; beyond it andon uses a temporary file")
    parser.add_argument(
        "--peer", metavar="PYTHON", help="Python of an environment with anomalib; compare with it alone"
    )
    options = parser.parse_args()

    smooth = list(images(options.images, options.side, None))
    if options.peer:
        against_peer(smooth, options.peer, options.memory_mb)
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    areas, seconds = timed_andon(smooth, options.memory_mb)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{options.images} masks of {options.side}²")
    print(f"andon, float32 maps as they are: {seconds:7.2f} s, {grown:.0f} MB more memory at the peak; AUPRO {areas}")
    smooth.clear()

    rounded = list(images(options.images, options.side, options.levels))
    thresholds = np.unique(np.concatenate([np.unique(values) for values, _ in rounded]))[::-1].tolist()
    areas, fast = timed_andon(rounded, options.memory_mb)
    print(f"andon, maps of {len(thresholds)} levels:  {fast:7.2f} s; AUPRO {areas}")
    for name, function in (("plain", plain_aupro), ("lean plain", lean_aupro)):
        start = time.perf_counter()
        plain = function(rounded, thresholds)
        slow = time.perf_counter() - start
        difference = max(abs(a - b) for a, b in zip(areas, plain, strict=True))
        print(f"{name}, the same maps, {len(thresholds)} thresholds: {slow:7.2f} s, ", end="")
        print(f"{slow / fast:.1f} times andon's ({slow / seconds:.1f} times its time without rounding); ", end="")
        print(f"differs by {difference:.1e}")


if __name__ == "__main__":
    main()

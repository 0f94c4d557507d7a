"""From a 12-megapixel JPEG to its verdict, stage by stage: the map at the detector's scale, and enlarged as before.

    python benchmarks/large_pictures.py part.andon [--rounds 15] [--size 4000 3000]

`part.andon` is a bundle of 8-bit colour pictures with `input.size = "any"`. The picture is made here: noise of several
scales. Both ways of making map and regions run in turn in one process, at the pixel threshold of the bundle and at a
low one, the median of the map. Printed are medians, each also as a share of OpenCV's full decode.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import cv2
import numpy as np

from andon import files
from andon.geometry import regions, tiling, views
from andon.inspector import Inspector
from andon.pictures import appearance, image


def picture(width: int, height: int) -> bytes:
    """Encode a colour JPEG with structure at several scales."""
    rng, pixels = np.random.default_rng(0), np.full((height, width, 3), 110, np.float32)
    for step, depth in ((400, 40), (60, 15), (8, 8), (1, 3)):
        coarse = rng.normal(0, depth, (-(-height // step), -(-width // step), 3)).astype(np.float32)
        pixels += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    done, data = cv2.imencode(".jpg", np.clip(pixels, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    return data.tobytes()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 3000), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args()
    inspector, data = Inspector.load(options.bundle), picture(*options.size)
    geometry, encoded = inspector.recipe.geometry, np.frombuffer(data, np.uint8)
    read = inspector.read(data)
    view = views.align(read.pixels, geometry, read.name, inspector.reference)
    pieces = list(tiling.split(view, geometry))
    prepared = inspector.prepare(read)
    found = inspector.score(prepared)
    assert found is not None
    joined, frame = found.map, view.frame
    enlarged, least = joined.whole(), inspector.min_area(frame)
    low = float(np.nanmedian(joined.values))

    def fresh() -> tiling.Joined:
        return tiling.Joined(joined.raw, joined.view)  # nothing of it is kept from the round before

    stages: dict[str, Callable[[], Any]] = {
        "OpenCV's full decode": lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR),
        "decode": lambda: image.read(data),
        "digest of the pixels, where an array comes in": lambda: files.digest(read.pixels.data),
        "appearance": lambda: appearance.of(read.pixels),
        "align": lambda: views.align(read.pixels, geometry, read.name, inspector.reference),
        "shrink, or cut tiles": lambda: list(tiling.split(view, geometry)),
        "graph": lambda: [inspector.scorer.score(tile[None]) for _, tile in pieces],
        "map at the detector's scale": lambda: fresh().values,
        "map enlarged (before)": lambda: fresh().whole(),
        "regions at the detector's scale, low threshold": lambda: regions.find(
            joined.values, low, least, joined.matrix, frame
        ),
        "regions of the enlarged map (before), low threshold": lambda: regions.find(enlarged, low, least),
        "map and regions at the detector's scale": lambda: regions.find(
            fresh().values, inspector.thresholds.pixel, least, joined.matrix, frame
        ),
        "map and regions, enlarged (before)": lambda: regions.find(fresh().whole(), inspector.thresholds.pixel, least),
        "file to verdict": lambda: inspector.inspect(data),
        "file to verdict with the map enlarged": lambda: inspector.inspect(data).anomaly_map,
    }
    times: dict[str, list[float]] = {name: [] for name in stages}
    for stage in stages.values():
        stage()
    for _ in range(options.rounds):
        for name, stage in stages.items():
            began = time.perf_counter()
            stage()
            times[name].append(time.perf_counter() - began)
    whole = median(times["OpenCV's full decode"])
    print(f"{options.size[0]} × {options.size[1]} JPEG, {len(data) / 1e6:.1f} MB; input {geometry.input}")
    print("| stage | ms | ÷ OpenCV's full decode |\n|---|---|---|")
    for name, measured in times.items():
        print(f"| {name} | {1000 * median(measured):.1f} | {median(measured) / whole:.3f} |")


if __name__ == "__main__":
    main()

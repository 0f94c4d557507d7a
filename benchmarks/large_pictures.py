"""From a 12-megapixel JPEG to its verdict, stage by stage, before and after: reduced decoding, maps at their scale.

    python benchmarks/large_pictures.py part.andon [--rounds 15] [--size 4000 3000]

`part.andon` is a bundle of 8-bit colour pictures with `input.size = "any"`. The picture is synthetic: noise of several
scales. Both variants alternate in one process. Regions are found at the pixel threshold of the bundle and at a low one,
the median of the map. The medians are printed, also as shares of a full decode by OpenCV.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
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


def _decoding(inspector: Inspector, by: int) -> Inspector:
    """The same bundle as one that decodes JPEG with its sides divided."""
    rule = inspector.manifest.input.model_copy(update={"reduced": by})
    manifest = inspector.manifest.model_copy(update={"input": rule})
    return replace(inspector, bundle=replace(inspector.bundle, manifest=manifest))


def _view(inspector: Inspector, read: image.Image) -> views.View:
    return views.align(read.pixels, inspector.recipe.geometry, read.name, inspector.reference, read.full)


def _found(inspector: Inspector, data: bytes) -> tiling.ViewMap:
    found = inspector.score(inspector.prepare(inspector.read(data)))
    assert found is not None
    return found.map


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 3000), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args()
    data = picture(*options.size)
    full = _decoding(Inspector.load(options.bundle), 1)
    geometry, encoded = full.recipe.geometry, np.frombuffer(data, np.uint8)
    frame = (options.size[1], options.size[0])
    by = tiling.reduction(frame, geometry)
    reduced = _decoding(full, by)
    pictures = {1: full.read(data), by: reduced.read(data)}
    cut = {each: _view(full, read) for each, read in pictures.items()}
    joined = _found(reduced, data)
    enlarged, least = joined.enlarge(), full.min_area(frame)
    low, usual = float(np.nanmedian(joined.values)), full.thresholds.pixel
    tile = next(tiling.split(cut[by], geometry))[1][None]

    def fresh() -> tiling.ViewMap:
        return tiling.ViewMap(joined.raw, joined.view)  # nothing of it is kept from the round before

    def before() -> Any:
        whole = _found(full, data).enlarge()
        return regions.find(whole, usual, least)

    stages: dict[str, Callable[[], Any]] = {
        "OpenCV's full decode": lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR),
        "decode and digest, full (before)": lambda: image.read(data),
        f"decode and digest, sides ÷ {by}": lambda: image.read(data, reduced=by),
        "digest of the pixels, where an array comes in": lambda: files.digest(pictures[1].pixels.data),
        "appearance, full (before)": lambda: appearance.measure(pictures[1].pixels),
        "appearance": lambda: appearance.measure(pictures[by].pixels),
        "view and tiles, full (before)": lambda: list(tiling.split(_view(full, pictures[1]), geometry)),
        "view and tiles": lambda: list(tiling.split(_view(full, pictures[by]), geometry)),
        "graph, one tile": lambda: full.scorer.score(tile),
        "map enlarged (before)": lambda: fresh().enlarge(),
        "map": lambda: fresh().values,
        "regions of the enlarged map, low threshold (before)": lambda: regions.find(enlarged, low, least),
        "regions, low threshold": lambda: regions.find(joined.values, low, least, joined.matrix, frame),
        "regions of the enlarged map (before)": lambda: regions.find(enlarged, usual, least),
        "regions": lambda: regions.find(joined.values, usual, least, joined.matrix, frame),
        "file to regions (before)": before,
        "file to verdict": lambda: reduced.inspect(data),
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
    print(f"{options.size[0]} × {options.size[1]} JPEG, {len(data) / 1e6:.1f} MB; input {geometry.input}, sides ÷ {by}")
    print("| stage | ms | ÷ OpenCV's full decode |\n|---|---|---|")
    for name, measured in times.items():
        print(f"| {name} | {1000 * median(measured):.1f} | {median(measured) / whole:.3f} |")


if __name__ == "__main__":
    main()

"""Accuracy of `memory-bank` for any settings, on the fit share that training leaves it, and the time of its graph.

    python benchmarks/memory_bank_study.py bottle:256 screw:512 magnetic_tile:256 hazelnut_toy:256 --seeds 0 1
    python benchmarks/memory_bank_study.py screw:256 --set credit=0 --set bank=2000
    python benchmarks/memory_bank_study.py --time

A product is NAME:SIZE, with `:keep` for the kept aspect ratio, of a folder below ../shared/data, or elpv:SIZE (the
package elpv-dataset). Fits on 80 % of the good training images, by group where groups are given; scores the test
images with the exported graph on ONNX Runtime; pixels at the resolution of the masks. Prints Markdown.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from andon.data import dataset
from andon.detectors.memory_bank import MemoryBank, Settings
from andon.engines import runtime
from andon.evaluate import metrics
from andon.geometry import tiling, views
from andon.graphs import features
from andon.inspection import Pixels
from andon.pictures import image

DATA = Path(__file__).parents[2] / "shared" / "data"


class Images:
    """Pictures as whole-view tiles, read once."""

    depth = 8

    def __init__(self, pictures: list[Pixels], size: views.Geometry) -> None:
        self.side, self.channels = size.size, pictures[0].shape[2]
        self.views = [views.align(pixels, size, "") for pixels in pictures]
        cut = [next(tiling.split(view, size)) for view in self.views]
        self.places, self.tiles = [place for place, _ in cut], np.stack([tile for _, tile in cut])

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[Pixels]:
        for start in range(0, len(self), 8):
            yield self.tiles[start : start + 8]


def load(name: str, seed: int) -> tuple[list[Pixels], list[Pixels], list[int], list[Any]]:
    """Return fit pictures, test pictures, their labels, and their masks (None where there is none)."""
    if name == "elpv":
        from elpv_dataset.utils import load_dataset

        cells, probability, _ = load_dataset()
        order = np.random.default_rng(0).permutation(np.flatnonzero(probability == 0))
        fit, good, bad = order[: len(order) // 2], order[len(order) // 2 :], np.flatnonzero(probability == 1)
        labels = [0] * len(good) + [1] * len(bad)
        return (
            [cells[i][..., None] for i in fit],
            [cells[i][..., None] for i in (*good, *bad)],
            labels,
            [None] * len(labels),
        )
    root = next(path for path in (DATA / name, DATA / "mvtec_ad" / name, DATA / "piped_paper" / name) if path.is_dir())
    groups = root / "good_groups.csv"
    found = dataset.load(root)
    train = found.good("train")
    if groups.is_file():
        train = dataset.grouping(root, train, groups)
    fit_samples, _ = dataset.split_good(train, 0.2, seed)
    test = found.good("test") + found.defective("test")
    masks = [dataset.mask(sample.mask) if sample.mask else None for sample in test]
    read = [[image.read(sample.path).pixels for sample in part] for part in (fit_samples, test)]
    return read[0], read[1], [int(not sample.good) for sample in test], masks


def row(product: str, settings: dict[str, Any], seed: int) -> str:
    """Fit, score, measure."""
    name, size, *keep = product.split(":")
    view = views.Geometry(size=int(size), aspect="keep" if keep else "stretch")
    fit, test, labels, masks = load(name, seed)
    detector = MemoryBank(Settings(**settings), seed)
    good = Images(fit, view)
    start = time.perf_counter()
    detector.fit(good)
    seconds = time.perf_counter() - start
    graph = detector.graph()
    session = runtime.session(graph)
    tested, scores, pixels = Images(test, view), [], metrics.PixelMetrics()
    for i, tile in enumerate(tested.tiles):
        score, anomaly = session.run(["score", "map"], {"tiles": tile[None]})
        scores.append(float(score[0]))
        if labels[i] == 0 or masks[i] is not None:
            pixels.add(tiling.join(tested.views[i], [(tested.places[i], anomaly[0])]), masks[i])
    of_image = 100 * metrics.auroc(labels, scores)
    masked = any(mask is not None for mask in masks)
    of_pixels = f"{100 * pixels.figures().auroc:.2f}" if masked else "–"
    changed = ", ".join(f"{key} {value}" for key, value in settings.items()) or "default"
    megabytes = len(graph.SerializeToString()) / 1e6
    return f"| {product} | {changed} | {seed} | {of_image:.2f} | {of_pixels} | {seconds:.0f} | {megabytes:.1f} |"


def timing(settings: dict[str, Any], side: int = 256, rounds: int = 30) -> str:
    """Graph against the bare backbone at batch 1, in turn, in one process with two threads; medians."""
    tiles = np.random.default_rng(0).integers(0, 256, (40, side, side, 3), dtype=np.uint8)
    detector = MemoryBank(Settings(**settings), 0)

    class Noise(Images):
        def __init__(self) -> None:
            self.side, self.channels, self.tiles = side, 3, tiles

    whole = runtime.session(detector.fit(Noise()).graph(), threads=2)
    bare = runtime.session(features.load(detector.config.network, detector.config.stages), threads=2)
    floats = features.images(tiles[:1])
    runs = {"graph": lambda: whole.run(None, {"tiles": tiles[:1]}), "bare": lambda: bare.run(None, {"images": floats})}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 3):
        for name, run in runs.items():
            batch = []
            for _ in range(5):
                start = time.perf_counter()
                run()
                batch.append(time.perf_counter() - start)
            if turn >= 3:
                times[name].append(1e3 * statistics.median(batch))
    ratio = statistics.median(a / b for a, b in zip(times["graph"], times["bare"], strict=True))
    graph, network = (statistics.median(times[name]) for name in runs)
    return f"| {side} | {graph:.1f} | {network:.1f} | {ratio:.2f} |"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("products", nargs="*", help="NAME:SIZE[:keep]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, its value as JSON")
    parser.add_argument("--time", action="store_true", help="time the graph instead")
    given = parser.parse_args()
    settings = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    if given.time:
        print("| side | graph ms | bare backbone ms | ratio |\n|---|---|---|---|")
        print(timing(settings))
        return
    print("| product | settings | seed | image AUROC | pixel AUROC | fit s | graph MB |\n|---|---|---|---|---|---|---|")
    for product in given.products:
        for seed in given.seeds:
            print(row(product, settings, seed), flush=True)


if __name__ == "__main__":
    main()

"""Accuracy of `memory-bank` with any settings, fitted on the training share of the good images, and time of its graph.

    python benchmarks/memory_bank_study.py bottle screw magnetic_tile ball_screw --seeds 0 1 2
    python benchmarks/memory_bank_study.py screw --preset fast --set credit=0 --size 512
    python benchmarks/memory_bank_study.py --time

A product is a folder below ../shared/data, or elpv (the package elpv-dataset). Fits on 80 % of the good training
images, by group if groups are given; scores the others, for the review threshold at a rate of 5 %, and the test
images, with the exported graph on ONNX Runtime; pixels at the resolution of the masks. A hit is a defective image whose
map peaks inside the annotated defect, or within 1/60 of the root of the picture's area of it. Prints Markdown.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from andon.data import dataset
from andon.detector import Run
from andon.detectors.memory_bank import MemoryBank, Settings
from andon.engines import runtime
from andon.evaluate import metrics
from andon.geometry import tiling, views
from andon.graphs import features
from andon.inspection import Array, Pixels
from andon.lab.bench import equalised
from andon.pictures import image
from andon.pictures.light import Light, grid
from andon.recipe import Augment

DATA = Path(__file__).parents[2] / "shared" / "data"
RATE = 0.05  # of good images above the review threshold
MARGIN = 1 / 60  # of the root of the picture's area


class Images:
    """Pictures as whole-view tiles, read once."""

    depth = 8
    defects = None

    def __init__(self, pictures: Sequence[Pixels], geometry: views.Geometry) -> None:
        self.shape, self.channels = geometry.input, pictures[0].shape[2]
        self.side, self.groups = self.shape[0], range(len(pictures))
        self.views = [views.align(pixels, geometry, "") for pixels in pictures]
        cut = [next(tiling.split(view, geometry)) for view in self.views]
        self.places, self.tiles = [place for place, _ in cut], np.stack([tile for _, tile in cut])

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        return self.tiles[list(rows)]

    def __iter__(self) -> Iterator[Pixels]:
        for start in range(0, len(self), 2):
            yield self.tiles[start : start + 2]


def load(name: str, seed: int) -> tuple[list[Pixels], list[Pixels], list[Pixels], list[int], list[Any]]:
    """Return pictures to fit on, held-out good ones, test pictures, their labels, and their masks or None."""
    if name == "elpv":
        from elpv_dataset.utils import load_dataset

        cells, probability, _ = load_dataset()
        order = np.random.default_rng(seed).permutation(np.flatnonzero(probability == 0))
        fit, held, good = np.split(order, [4 * len(order) // 10, len(order) // 2])
        bad = np.flatnonzero(probability == 1)
        labels = [0] * len(good) + [1] * len(bad)
        parts = [[cells[i][..., None] for i in rows] for rows in (fit, held, (*good, *bad))]
        return parts[0], parts[1], parts[2], labels, [None] * len(labels)
    root = next(path for path in (DATA / name, DATA / "mvtec_ad" / name, DATA / "piped_paper" / name) if path.is_dir())
    groups = root / "good_groups.csv"
    data = dataset.load(root, groups=groups if groups.is_file() else None)
    fit_samples, held_samples = dataset.split_good(data.good("train"), 0.2, seed)
    test = data.good("test") + data.defective("test")
    masks = [dataset.mask(sample.mask) if sample.mask else None for sample in test]
    read = [[image.read(sample.path).pixels for sample in part] for part in (fit_samples, held_samples, test)]
    return read[0], read[1], read[2], [int(not sample.good) for sample in test], masks


def hits(anomaly_map: Array, mask: Any) -> bool:
    """Whether the peak of a map (H, W) lies in the mask (H, W), or near it."""
    reach = max(1, round(MARGIN * math.sqrt(mask.size)))
    y, x = np.unravel_index(np.nanargmax(anomaly_map), anomaly_map.shape)
    near = cv2.distanceTransform(1 - mask.astype(np.uint8), cv2.DIST_L2, 5)
    return bool(near[y, x] <= reach)


def row(name: str, options: argparse.Namespace, settings: dict[str, Any], seed: int) -> str:
    """Fit, score, measure."""
    fit, held, test, labels, masks = load(name, seed)
    if options.equalise:
        target = float(np.median([equalised.median(pixels, name) for pixels in (*fit, *held)]))
        test = [equalised.scaled(pixels, target, name) for pixels in test]
    if options.light:
        light = Light.learn(options.light, [grid(pixels) for pixels in fit])
        fit, held, test = ([light.correct(pixels).pixels for pixels in part] for part in (fit, held, test))
    size = options.size or MemoryBank.sizes[options.preset]
    geometry = views.Geometry(size=size, aspect=options.aspect).with_shape([picture.shape[:2] for picture in fit])
    detector = MemoryBank(Settings(**{**MemoryBank.presets[options.preset], **settings}), seed)
    start = time.perf_counter()
    detector.fit(Images(fit, geometry), Run(augment=Augment(flip=options.flip, quarter_turns=options.quarter_turns)))
    seconds = time.perf_counter() - start
    graph = detector.graph()
    run = bfloat16(graph, geometry.input) if options.bfloat16 else partial(runtime.session(graph).run, ["score", "map"])
    kept = sorted(float(run({"tiles": tile[None]})[0][0]) for tile in Images(held, geometry).tiles)
    rank = math.ceil((len(kept) + 1) * (1 - RATE))
    threshold = kept[rank - 1] if rank <= len(kept) else math.inf
    tested, scores, pixels, peaks = Images(test, geometry), [], metrics.PixelMetrics(), []
    for i, tile in enumerate(tested.tiles):
        score, values = run({"tiles": tile[None]})
        scores.append(float(score[0]))
        if labels[i] == 0 or masks[i] is not None:
            whole = tiling.join(tested.views[i], [(tested.places[i], values[0])])
            pixels.add(whole, masks[i])
            if masks[i] is not None and masks[i].any():
                peaks.append(hits(whole, masks[i]))
    inputs = {"light": options.light} if options.light else {}
    inputs |= {"test pictures": "equalised"} if options.equalise else {}
    inputs |= {"on OpenVINO": "bfloat16"} if options.bfloat16 else {}
    found, truth = np.asarray(scores), np.asarray(labels) == 1
    cells = [
        name,
        options.preset + "".join(f", {key} {value}" for key, value in {**inputs, **settings}.items()),
        str(seed),
        "{1} × {0}".format(*geometry.input),
        f"{100 * metrics.auroc(labels, scores):.2f}",
        *(_of_pixels(pixels, peaks) if peaks else ("–", "–", "–")),
        f"{100 * (found[truth] <= threshold).mean():.1f}",
        f"{100 * (found[~truth] > threshold).mean():.1f}",
        f"{seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def bfloat16(graph: Any, shape: tuple[int, int]) -> Callable[[dict[str, Pixels]], list[Array]]:
    """A function that scores one tile of this shape on OpenVINO in bfloat16."""
    import openvino

    model = openvino.Core().read_model(graph.SerializeToString())
    model.reshape([1, *shape, int(model.input("tiles").partial_shape[3].get_length())])
    request = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}).create_infer_request()

    def run(inputs: dict[str, Pixels]) -> list[Array]:
        found = request.infer(inputs)
        return [found["score"].copy(), found["map"].copy()]

    return run


def _of_pixels(pixels: metrics.PixelMetrics, peaks: list[bool]) -> tuple[str, str, str]:
    figures = pixels.figures(limits=(0.05,))
    return f"{100 * np.mean(peaks):.1f}", f"{100 * figures.auroc:.2f}", f"{100 * figures.aupro[0]:.1f}"


def timing(settings: dict[str, Any], rounds: int = 30) -> Iterator[str]:
    """Graphs of the presets and the bare backbone at 256², at batch 1, in turn, in one process with two threads."""
    bare = runtime.session(features.load("efficientnet-lite0", (4, 10)), threads=2)
    noise = np.random.default_rng(0).integers(0, 256, (40, 640, 640, 3), dtype=np.uint8)
    floats = features.images(noise[:1, :256, :256])
    runs: dict[str, Any] = {"bare backbone at 256": lambda: bare.run(None, {"images": floats})}
    for preset, size in MemoryBank.sizes.items():
        tiles = np.ascontiguousarray(noise[:, :size, :size])
        still = np.clip(tiles[:1].astype(int) + noise[:, :size, :size] // 16 - 8, 0, 255).astype(np.uint8)
        detector = MemoryBank(Settings(**{**MemoryBank.presets[preset], **settings}), 0)
        for kind, good in (("", tiles), (", parts that lie alike", still)):
            session = runtime.session(detector.fit(Images(good, views.Geometry(size=size))).graph(), threads=2)
            runs[f"{preset} at {size}{kind}"] = lambda session=session, one=good[:1]: session.run(None, {"tiles": one})
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 3):
        for name, run in runs.items():
            laps = []
            for _ in range(5):
                start = time.perf_counter()
                run()
                laps.append(time.perf_counter() - start)
            if turn >= 3:
                times[name].append(1e3 * statistics.median(laps))
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times["bare backbone at 256"], strict=True))
        yield f"| {name} | {statistics.median(found):.1f} | {ratio:.2f} |"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("products", nargs="*", metavar="PRODUCT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--preset", choices=MemoryBank.presets, default="standard")
    parser.add_argument("--size", type=int, help="geometry.size; default: the preset's")
    parser.add_argument("--aspect", choices=("free", "stretch", "keep"), default="free")
    parser.add_argument("--light", choices=("gain", "field"), help="correct the illumination")
    parser.add_argument("--equalise", action="store_true", help="bring test pictures to the light of the good ones")
    parser.add_argument("--bfloat16", action="store_true", help="score on OpenVINO in this precision")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--quarter-turns", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, its value as JSON")
    parser.add_argument("--time", action="store_true", help="time the graphs instead")
    options = parser.parse_args()
    settings = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    if options.time:
        print("| graph | ms | ÷ bare backbone |\n|---|---|---|")
        print("\n".join(timing(settings)))
        return
    head = ("product", "settings", "seed", "input", "image AUROC", "hit rate", "pixel AUROC", "AUPRO at 5 %")
    print(f"| {' | '.join((*head, 'escapes', 'false alarms', 'fit s'))} |\n|{'---|' * (len(head) + 3)}")
    for product in options.products:
        for seed in options.seeds:
            print(row(product, options, settings, seed), flush=True)


if __name__ == "__main__":
    main()

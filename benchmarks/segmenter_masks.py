"""The five networks of `segmenter`, trained on masks of real defects and on synthetic ones, with the same test images.

    python benchmarks/segmenter_masks.py [--products bottle magnetic_tile] [--seeds 0 1 2] [--steps N]

A random half of the pieces with test defects is used for training, with masks; the other half and the good test images
are the test images of both variants. The halves are links in a temporary folder. Pieces, not images: each
tile of magnetic_tile was photographed up to six times. The data set groups only the good ones; of the defective ones,
photographs whose numbers differ by less than 300 count as one piece. If images were divided instead of pieces, 60 % of
the small test defects would have a training defect with an overlapping mask (IoU above 0.5); with pieces it is 3 %.
Each line of --out is one training; existing ones are not run again.
"""

import argparse
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import numpy as np

from andon.data import dataset
from andon.data.dataset import Sample
from andon.detectors.segmenter import Segmenter
from andon.detectors.segmenter.networks import Name
from andon.evaluate.evaluating import evaluate
from andon.inspector import Inspector
from andon.recipe import Recipe
from andon.training.train import compose, train

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared/data"
PRODUCTS = {
    "bottle": DATA / "mvtec_ad/bottle",
    "screw": DATA / "mvtec_ad/screw",
    "magnetic_tile": DATA / "magnetic_tile",
}
GROUPS = {"magnetic_tile": DATA / "magnetic_tile/good_groups.csv"}
APART = 300  # running numbers between the photographs of two pieces of magnetic_tile, at least
FIGURES = {"image": ("auroc", "ap"), "pixel": ("auroc", "ap", "aupro_30")}


def pieces(product: str, samples: Sequence[Sample]) -> list[list[Sample]]:
    """Divide samples of defects into those of one piece each."""
    if product != "magnetic_tile":
        return [[sample] for sample in samples]

    def number(sample: Sample) -> int:
        return int(re.findall(r"\d+", sample.path.stem)[-1])

    found: list[list[Sample]] = []
    for sample in sorted(samples, key=number):
        if not found or number(sample) - number(found[-1][-1]) > APART:
            found.append([])
        found[-1].append(sample)
    return found


def arrange(product: str, seed: int, out: Path) -> tuple[int, int]:
    """Fill `out` with links; return how many images of defects are learnt from, and how many are tested."""
    data = dataset.load(PRODUCTS[product])
    of = pieces(product, data.defective("test"))
    order = np.random.default_rng(seed).permutation(len(of))
    halves = {"train": [s for i in order[: len(of) // 2] for s in of[i]]}
    halves["test"] = [s for i in order[len(of) // 2 :] for s in of[i]]
    for split, defective in halves.items():
        good = data.training_images() if split == "train" else data.good("test")
        for sample in (*good, *defective):
            link(sample.path, out / split / sample.defect / sample.path.name)
            if sample.mask:
                link(sample.mask, out / "ground_truth" / sample.defect / sample.mask.name)
    return len(halves["train"]), len(halves["test"])


def link(path: Path, place: Path) -> None:
    """Link to a file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(path.resolve())


def measured(folder: Path, recipe: Recipe, device: str) -> dict[str, Any]:
    """Train by a recipe, and measure on the test side of its folder."""
    path = folder.with_suffix(".andon")
    bundle = train(recipe, path, device=device)
    found = evaluate(Inspector.load(path), dataset.load(folder)).metrics
    figures = {f"{level}_{name}": found[level][name] for level, names in FIGURES.items() for name in names}
    timings = bundle.manifest.timings
    return {**figures, "latency_p50_ms": found["milliseconds"]["p50"], "seconds": timings["fit"]}


def kept(path: Path) -> list[Any]:
    """Read the lines of --out; the last one, which a kill may have cut off, goes when it is not whole."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def table(rows: Sequence[Any]) -> str:
    """Mean ± standard deviation over the seeds, in %, as Markdown."""
    cells: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
    for row in rows:
        cells[row["product"], row["network"], row["defects"]].append(row)
    names = [f"{level}_{name}" for level, of in FIGURES.items() for name in of]
    lines = [f"| product | network | taught by | {' | '.join(names)} | seeds |", "|---" * (4 + len(names)) + "|"]
    for key, of in sorted(cells.items()):
        columns = [[row[name] for row in of] for name in names]
        shown = [f"{100 * mean(v):.1f}" + (f" ± {100 * stdev(v):.1f}" if len(v) > 1 else "") for v in columns]
        lines.append(f"| {' | '.join([*key, *shown])} | {len(of)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table of everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=["bottle", "magnetic_tile"])
    parser.add_argument("--networks", nargs="+", choices=get_args(Name), default=list(get_args(Name)))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--preset", choices=Segmenter.presets, default="cpu")
    parser.add_argument("--steps", type=int, help="in place of the preset's")
    parser.add_argument("--size", type=int, default=128, help="pixels a side of the tiles; at 256 four times as long")
    parser.add_argument("--device", default="")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "segmenter_masks.jsonl")
    options = parser.parse_args()
    steps = options.steps or Segmenter.presets[options.preset]["steps"]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = kept(options.out)
    same = (options.preset, steps, options.size)
    rows = [row for row in rows if (row["preset"], row["steps"], row["size"]) == same]
    done = {(row["product"], row["seed"], row["network"], row["defects"]) for row in rows}
    cells = [
        (product, seed, network, defects)
        for product in options.products
        for seed in options.seeds
        for network in options.networks
        for defects in ("labelled", "synthetic")
    ]
    with options.out.open("a") as out:
        for cell in [cell for cell in cells if cell not in done]:
            product, seed, network, defects = cell
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary, product)
                learnt, tested = arrange(product, seed, folder)
                recipe = compose(
                    folder,
                    detector="segmenter",
                    preset=options.preset,
                    settings={"network": network, "defects": defects, "steps": steps},
                    size=options.size,
                    seed=seed,
                    groups=GROUPS.get(product),
                )
                found = measured(folder, recipe, options.device)
            row = {
                **{"product": product, "seed": seed, "network": network, "defects": defects},
                **{"preset": options.preset, "steps": steps, "size": options.size},
                **{"learnt": learnt if defects == "labelled" else 0, "tested": tested},
                **found,
            }
            print(json.dumps(row), flush=True)
            print(json.dumps(row), file=out, flush=True)
            rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()

"""Ten test images as one picture: input, reconstruction, heat map, mask.

    andon train recipes/bottle.toml --detector filtering-autoencoder -o bottle.andon
    python benchmarks/filtering_pictures.py bottle.andon ../shared/data/mvtec_ad/bottle -o docs/images/filtering.jpg

The images are drawn at random with a seed, in turn from each type of defect and the good images, independent of scores.
"""

import argparse
from pathlib import Path

import numpy as np

from andon import files, render
from andon.bundle import Bundle
from andon.data import dataset
from andon.data.dataset import Sample
from andon.engines.runtime import reconstructor
from andon.geometry import tiling, views
from andon.inspector import Inspector


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", "-o", type=Path, default=Path("filtering.jpg"))
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    if bundle.recipe.geometry.tiles:
        parser.error("the bundle cuts tiles; expected one that sees images whole")
    inspector, rebuild = Inspector(bundle), reconstructor(bundle.graph)
    pictures, captions = [], []
    for sample in drawn(dataset.load(options.folder), options.count, options.seed):
        read, found = inspector.scan(sample.path)
        view = views.align(read.pixels, bundle.recipe.geometry, read.name, bundle.load_reference())
        tile = np.stack([tile for _, tile in tiling.split(view, bundle.recipe.geometry)])
        rebuilt = (rebuild(tile)[0] * 255).round().astype(np.uint8)
        mask = np.zeros(read.pixels.shape[:2], bool) if sample.mask is None else dataset.mask(sample.mask)
        pictures += [
            render.display(tile[0]),
            render.display(rebuilt),
            render.heat_map(found.anomaly_map, inspector.scale),
            render.display((mask[..., None] * 255).astype(np.uint8)),
        ]
        captions += [f"{sample.defect} {sample.path.stem}", "reconstruction", f"map, score {found.score:.4g}", "mask"]
    sheet = render.contact_sheet(pictures, captions, columns=8, side=200)
    files.write(options.out, render.encode(sheet, "jpg"))
    print(options.out)


def drawn(data: dataset.Dataset, count: int, seed: int) -> list[Sample]:
    """Draw test images, turn by turn from each label."""
    rng = np.random.default_rng(seed)
    test = [sample for sample in data.samples if sample.split == "test"]
    labels = sorted({sample.defect for sample in test}, key=lambda label: (label == "good", label))
    piles = {label: [sample for sample in test if sample.defect == label] for label in labels}
    for pile in piles.values():
        rng.shuffle(pile)  # type: ignore[arg-type]
    found: list[Sample] = []
    while len(found) < min(count, len(test)):
        found += [pile.pop() for pile in piles.values() if pile]
    return found[:count]


if __name__ == "__main__":
    main()

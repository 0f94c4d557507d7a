"""The error of each transform on good and on defective test images, as a plot.

    python benchmarks/transform_cases.py ../shared/data/mvtec_ad/bottle [--out bottle_cases.svg] [--preset cpu]
        [--set family=type-3 …] [--seed 0] [--size 256] [--keep benchmarks/runs/transform_cases.jsonl]

Trains transform-classification on the product's training images, then prints for every transform the mean error on
good and on defective test images and the AUROC of this error, and draws the AUROCs as bars. It uses test labels, so do
not choose settings by it. --keep adds a line with the settings and all figures to a file.
"""

import argparse
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from andon import files
from andon.data import dataset, survey
from andon.data.store import Store
from andon.detector import Run
from andon.detectors.transform_classification import GEOMETRY, TransformClassification, TransformNetwork
from andon.evaluate import plots
from andon.evaluate.metrics import auroc
from andon.geometry import tiling, views
from andon.inspection import Array
from andon.nn.data import floats
from andon.pictures import image
from andon.recipe import Recipe
from andon.training.train import compose, construct


def main() -> None:
    """Train, measure every case, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    settings = dict(map(setting, options.settings))
    recipe = compose(
        options.folder,
        detector="transform-classification",
        preset=options.preset,
        settings=settings,
        size=options.size,
        seed=options.seed,
    )
    model, recipe = construct(recipe)
    assert isinstance(model, TransformClassification)
    data = dataset.load(options.folder)
    looked = survey.survey_images(data.training_images(), recipe, Store(), lambda stage, done, total: None)
    told: list[str] = []

    def tell(sentence: str) -> None:
        print(sentence, flush=True)
        told.append(sentence)

    model.fit(survey.GoodTiles(looked.samples, looked, recipe.geometry), Run(tell=tell))

    tested = [sample for sample in data.samples if sample.split == "test"]
    errors = np.stack([errors_of(model, sample.path, recipe) for sample in tested])  # (images, N)
    defective = np.array([not sample.good for sample in tested])
    names, rows, aurocs = titles(model), [], {}
    print("transform                   good  defective  AUROC %")
    for number, name in enumerate(names):
        good, bad = errors[~defective, number], errors[defective, number]
        score = 100 * float(auroc(defective, errors[:, number]))
        print(f"{name:24} {good.mean():7.3f}    {bad.mean():7.3f}   {score:6.2f}")
        aurocs[name] = round(score, 2)
        rows.append(plots.Bar(name, [score], f"{score:.1f}   error {good.mean():.2f} → {bad.mean():.2f}"))
    score = 100 * float(auroc(defective, errors.mean(axis=1)))
    print(f"{'all':24} {'':18}   {score:6.2f}")
    out = options.out or Path(f"{options.folder.name}_cases.svg")
    drawn = plots.bars(rows, ["AUROC"], f"image AUROC of one transform's error, %, {options.folder.name}")
    files.write(out, drawn.encode())
    print(f"wrote {out}")
    if options.keep:
        cell = {"product": options.folder.name, "size": options.size, "seed": options.seed, **settings}
        figures = {"cases": len(names), "image_auroc": round(score, 2), "last": told[-1], "case_auroc": aurocs}
        before = options.keep.read_bytes() if options.keep.exists() else b""
        files.write(options.keep, before + files.strict_json(cell | figures, ascii_only=False).encode() + b"\n")


def setting(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; a value is TOML, or else a word."""
    key, _, value = text.partition("=")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def errors_of(model: TransformClassification, path: Path, recipe: Recipe) -> Array:
    """What each transform adds to the score of an image (N,); of several tiles, that with the highest score."""
    network = model._fitted()
    assert isinstance(network, TransformNetwork)
    view = views.align(image.read(path).pixels, recipe.geometry, path.name)
    tiles = np.stack([tile for _, tile in tiling.split(view, recipe.geometry)])
    with torch.no_grad():
        found = torch.cat([network.errors(floats(tile[None])) for tile in tiles]).numpy()
    worst: Array = found[found.mean(axis=1).argmax()]
    return worst


def titles(model: TransformClassification) -> list[str]:
    """Name the transforms, in the network's order."""
    cases = model.config.cases()
    if cases:
        return [f"{operation} {width}×{height}" for operation, width, height in cases]
    return [f"turn {90 * turns}°{' flip' if flip else ''} {right:+} {down:+}" for turns, flip, right, down in GEOMETRY]


if __name__ == "__main__":
    main()

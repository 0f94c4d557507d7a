"""Every score of filtering-autoencoder from one training: squared error and SSIM, corrected or not, sum and maximum.

    python benchmarks/filtering_scores.py ../shared/data/mvtec_ad/bottle [--size 128] [--seed 0] [--set steps=6000 …]
        [--augment quarter_turns=true …] [--work FOLDER] [--out scores.csv]

The loss of equation 1 contains neither the error of the map (`error`), nor the correction of objects
(`object_correction`), nor `score`, so one network has them all. It learns from all training images; the mean map of the
correction is that of the images held out for early stopping. The map is enlarged bilinearly for the pixel figures.
With --work, the same command continues an interrupted training.
"""

import argparse
import csv
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from andon import files
from andon.data import dataset, masks, survey
from andon.data.store import Store
from andon.detector import Run
from andon.detectors.filtering_autoencoder import FilteringAutoencoder, FilteringNetwork
from andon.evaluate import metrics
from andon.geometry import tiling, views
from andon.nn.data import floats
from andon.pictures import image
from andon.recipe import Recipe
from andon.training.train import compose, construct
from transform_cases import setting

HEAD = ("error", "corrected", "mean_map", "auroc_sum", "auroc_max", "pixel_auroc", "aupro_30")


def rows(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Train, then yield a row for each map, figures in %; mean_map is the mean of the mean map of good images."""
    settings = {"object_correction": True, **dict(map(setting, options.settings))}
    recipe = compose(
        options.folder, detector="filtering-autoencoder", settings=settings, size=options.size, seed=options.seed
    )
    augment = {"augment": dict(map(setting, options.augment))}
    recipe = Recipe.model_validate(recipe.model_dump() | augment)
    model, recipe = construct(recipe)
    data = dataset.load(options.folder)
    looked = survey.survey_images(data.training_images(), recipe, Store(), lambda stage, done, total: None)
    tiles = survey.GoodTiles(looked.samples, looked, recipe.geometry)
    model.fit(tiles, Run(tell=print, augment=recipe.augment, folder=options.work))
    assert isinstance(model, FilteringAutoencoder)
    network = model._fitted()
    assert isinstance(network, FilteringNetwork)

    tested = [sample for sample in data.samples if sample.split == "test"]
    defective = [not sample.good for sample in tested]
    pictures = [image.read(sample.path).pixels for sample in tested]
    with torch.no_grad():
        whole = []
        for pixels in pictures:
            ((_, tile),) = tiling.split(views.align(pixels, recipe.geometry, ""), recipe.geometry)
            whole.append(floats(tile[None]))
        rebuilt = [network.rebuild(tile) for tile in whole]
        for error in ("l2", "ssim"):
            network.config = model.config.model_copy(update={"error": error})
            found = [
                network.difference(*pair, model.config.repeats)[0].numpy() for pair in zip(whole, rebuilt, strict=True)
            ]
            network.average.zero_()
            model._learn_average(network, tiles, torch.device("cpu"))
            average = network.average.numpy()
            for corrected in (False, True):
                maps = [each * (1 - average) ** 2 for each in found] if corrected else found  # eq. 14
                pixel = metrics.PixelMetrics()
                for sample, pixels, each in zip(tested, pictures, maps, strict=True):
                    height, width = pixels.shape[:2]
                    enlarged = cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR)
                    pixel.add(enlarged, masks.read_sized(sample.mask, pixels.shape).area if sample.mask else None)
                figures = pixel.figures()
                image_aurocs = [
                    metrics.auroc(defective, [reduce(each) for each in maps]) for reduce in (np.mean, np.max)
                ]
                values = (average.mean(), *image_aurocs, figures.auroc, figures.aupro[0])
                yield error, "yes" if corrected else "no", *(f"{100 * value:.2f}" for value in values)


def main() -> None:
    """Print the table, and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--augment", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEAD)
    for row in rows(options):
        print(*row, flush=True)
        table.writerow(row)
    if options.out:
        files.write(options.out, text.getvalue().encode())


if __name__ == "__main__":
    main()

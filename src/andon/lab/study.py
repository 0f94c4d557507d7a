"""Studies of the filtering autoencoder: its training input, the moments of its pixels, and orthogonality.

Paper: Bauer, Nakajima & Müller, "Self-supervised autoencoders for visual anomaly detection", Mathematics 12(24), 2024:
its figures 8 and 9. Symbols: X image, X̂ image with a foreign patch, F network, S pixels of the patch, N all pixels, D
good images. The studies use only good images outside a test split.

Differs from the paper:
- Windows have half the side of an image at any resolution, as 256 of 512 in the paper; the values are gray values.
- The foreign patch comes from a random position in the other image; the paper does not state the position.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon import files, render
from andon.bundle import Bundle
from andon.data import dataset, reference
from andon.data.dataset import Sample
from andon.data.store import Store
from andon.data.survey import GoodTiles, Tell, survey_images
from andon.detector import Run
from andon.engines.runtime import reconstructor
from andon.errors import DatasetError, ImageError, RecipeError
from andon.evaluate import plots
from andon.evaluate.plots import COLOURS, Line
from andon.geometry import tiling, views
from andon.inspection import Array, Pixels
from andon.pictures import image
from andon.progress import Progress, silent
from andon.recipe import Recipe
from andon.render import Picture
from andon.training.preview import sheet
from andon.training.train import construct

STUDIED = "filtering-autoencoder"
WIDTHS = tuple(round(0.05 + 0.1 * j, 2) for j in range(10))  # of the patch, as shares of the side
HALF = 0.5**0.5  # the width at which |S| = N / 2
POINTS = 1024  # of a plot
AT_ONCE = 4  # tiles that are rebuilt at a time


class Moments(NamedTuple):
    """Figure 8: mean and standard deviation (w, w) of each pixel over images and windows; values in [0, 1]."""

    mean: Array
    deviation: Array


class Orthogonality(NamedTuple):
    """Figure 9, a row for each width of the patch; values in [0, 1]."""

    width: float  # of the patch, as a share of the side
    corrupted: float  # share of X̂ to which X is the nearest good image
    rebuilt: float  # share of F(X̂) to which X is the nearest good image
    distance: float  # mean of ‖F(X̂) − X‖
    deviation: float  # standard deviation of ‖F(X̂) − X‖


def preview(recipe: Recipe, count: int, progress: Progress = silent, warn: Tell = lambda sentence: None) -> bytes:
    """Draw the images of a recipe as training uses them, as PNG: see `andon.training.preview.sheet`.

    For a filtering autoencoder, rows below show original, mask and corrupted input of some tiles. As in the studies,
    `warn` gets a sentence for each image that was left out.
    """
    sentences: set[str] = set()

    def warn_once(sentence: str) -> None:
        if sentence not in sentences:
            warn(sentence)
        sentences.add(sentence)

    picture = sheet(recipe, count, progress, warn_once)
    if recipe.detector.name == STUDIED:
        corruptions = _corruption_sheet(recipe, count, progress, warn_once)
        width = max(picture.shape[1], corruptions.shape[1])
        padded = [
            np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in (picture, corruptions)
        ]
        picture = np.vstack(padded)
    return render.encode(picture, "png")


def _corruption_sheet(recipe: Recipe, count: int, progress: Progress, warn: Tell) -> Picture:
    model, recipe = construct(recipe)
    from andon.detectors.filtering_autoencoder import FilteringAutoencoder

    assert isinstance(model, FilteringAutoencoder)
    data = dataset.load(recipe.data.images, groups=recipe.data.groups or None, good=recipe.data.good)
    training, _ = dataset.split_good(data.training_images(), recipe.split.calibrate, recipe.seed)
    indices = np.random.default_rng(recipe.seed).permutation(len(training))[:count]
    tiles = _tiles([training[i] for i in indices], training, recipe, progress, warn)
    run = Run(progress, augment=recipe.augment, images=[sample.path for sample in data.samples])
    rows = [
        row for batch in model.preview(tiles, run) for row in zip(batch.target, batch.mask, batch.input, strict=True)
    ]
    pictures = [
        (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy() for row in rows[:count] for picture in row
    ]
    captions = ["original", "mask", "corrupted"] * min(count, len(rows))
    return render.contact_sheet([render.display(pixels) for pixels in pictures], captions, columns=6, side=256)


def moments(recipe: Recipe, progress: Progress = silent, warn: Tell = lambda sentence: None) -> Moments:
    """Compute the moments of a recipe's good images, over all windows of half a tile's side, one pixel apart."""
    _require_images(recipe)
    samples = _good(recipe.data.images)
    side = recipe.geometry.input[0]
    window = side // 2
    first, second, count = np.zeros((window, window)), np.zeros((window, window)), 0
    tiles = _tiles(samples, samples, recipe, progress, warn)
    for batch in tiles:
        for tile in batch:
            gray = tile.mean(axis=2) / np.iinfo(tile.dtype).max
            first += _window_means(gray, window)
            second += _window_means(gray**2, window)
            count += 1
        progress("moments", count, len(tiles))
    mean = first / count
    deviation = np.sqrt(np.maximum(second / count - mean**2, 0))
    return Moments(mean.astype(np.float32), deviation.astype(np.float32))


def _window_means(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean (w, w) of the values at each position of a window, over all windows of values (h, h)."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    count = len(values) - window + 1  # windows along each axis
    total = sums[count:, count:] - sums[:-count, count:] - sums[count:, :-count] + sums[:-count, :-count]
    return np.asarray(total / count**2)


def orthogonality(
    bundle: Bundle,
    folder: str | Path,
    draws: int = 40,
    most: int = 200,
    progress: Progress = silent,
    warn: Tell = lambda sentence: None,
) -> list[Orthogonality]:
    """Replace square patches of good images by patches of other images, and find the good images nearest to X̂ and F(X̂).

    Each width has `draws` images. At most `most` good images are used, a random sample.
    """
    rebuild = reconstructor(bundle.graph)
    rng = np.random.default_rng(bundle.recipe.seed)
    samples = _good(folder)
    if len(samples) > most:
        samples = [samples[i] for i in np.sort(rng.permutation(len(samples))[:most])]
    accepted = [tile for tiles in _accepted_tiles(samples, bundle, warn) for tile in tiles]
    if len(accepted) < 2:
        raise DatasetError(
            f"{folder}: {len(accepted)} good tiles of {len(samples)} images; expected at least two, to find the "
            "nearest. Add good images that the bundle accepts."
        )
    tiles = np.stack(accepted)
    full = np.float32(np.iinfo(tiles.dtype).max)
    good = tiles.reshape(len(tiles), -1) / full
    centre = good.mean(axis=0)
    good -= centre  # smaller values have more precise squares
    norms = (good**2).sum(axis=1)

    def nearest(images: Array) -> Array:
        flat = images.reshape(len(images), -1) - centre
        indices: Array = (norms - 2 * flat @ good.T).argmin(axis=1)  # minimises ‖p − Y‖² − ‖p‖²
        return indices

    rows = []
    for j, width in enumerate(WIDTHS):
        hits, rebuilt_hits, distances = 0, 0, []
        for start in range(0, draws, AT_ONCE):
            progress("patches", j * draws + start, draws * len(WIDTHS))
            count = min(AT_ONCE, draws - start)
            truth = rng.integers(len(tiles), size=count)
            corrupted = np.stack([_replace_patch(tiles, i, width, rng) for i in truth])
            rebuilt = rebuild(corrupted)
            hits += int((nearest((corrupted / full).astype(np.float32)) == truth).sum())
            rebuilt_hits += int((nearest(rebuilt) == truth).sum())
            difference = (rebuilt - tiles[truth] / full).reshape(count, -1)
            distances += np.sqrt((difference.astype(np.float64) ** 2).sum(axis=1)).tolist()
        mean, deviation = float(np.mean(distances)), float(np.std(distances))
        rows.append(Orthogonality(width, hits / draws, rebuilt_hits / draws, mean, deviation))
    progress("patches", draws * len(WIDTHS), draws * len(WIDTHS))
    return rows


def _replace_patch(tiles: Pixels, index: int, width: float, rng: np.random.Generator) -> Pixels:
    """Return a tile with a square patch of another tile; both positions are random."""
    side = tiles.shape[1]
    s = max(1, round(width * side))
    other = (index + rng.integers(1, len(tiles))) % len(tiles)
    (y, x), (from_y, from_x) = rng.integers(side - s + 1, size=(2, 2))
    tile: Pixels = tiles[index].copy()
    tile[y : y + s, x : x + s] = tiles[other, from_y : from_y + s, from_x : from_x + s]
    return tile


def _require_images(recipe: Recipe) -> None:
    if not recipe.data.images:
        raise RecipeError("the recipe names no images. Set [data] images to a folder of good images.")


def _good(folder: str | Path) -> list[Sample]:
    samples = dataset.load(folder).training_images()
    if not samples:
        raise DatasetError(f"{folder}: no good images outside a test split; expected at least one. Add good images.")
    return samples


def _tiles(
    samples: Sequence[Sample], training: Sequence[Sample], recipe: Recipe, progress: Progress, warn: Tell
) -> GoodTiles:
    """The tiles of some images as training cuts them; parts are registered to a reference among the training images."""
    settings, store = recipe.geometry.registration, Store()
    registered_to = reference.load(recipe)
    if settings is not None:
        survey = survey_images(training, recipe, store, progress)
        registered_to = registered_to or reference.choose(survey.digests, settings, survey.pictures.read, progress)
        registered_to = reference.match_input(registered_to, survey.rule)
    survey = survey_images(samples, recipe, store, progress, registered_to)
    for reason in survey.skipped:
        warn(f"left out: {reason}")
    return GoodTiles(survey.samples, survey, recipe.geometry)


def _accepted_tiles(samples: Sequence[Sample], bundle: Bundle, warn: Tell) -> Iterator[list[Pixels]]:
    """Yield the tiles (t, t, c) of each image that the bundle accepts, as inspection cuts them."""
    registered_to = bundle.load_reference()
    for sample in samples:
        try:
            accepted = image.accept(
                image.read(sample.path, reduced=bundle.manifest.input.reduced), bundle.manifest.input
            )
            view = views.align(accepted.pixels, bundle.recipe.geometry, accepted.name, registered_to, accepted.full)
            tiles = [tile for _, tile in tiling.split(view, bundle.recipe.geometry)]
        except ImageError as error:
            warn(f"left out: {error}")
        else:
            yield tiles


def write_moments(results: Moments, out: Path) -> list[Path]:
    """Write moments.csv, and the plots of all pixels and of the middle row."""
    mean, deviation = results
    window = len(mean)
    rows = [(y, x, f"{mean[y, x]:.6g}", f"{deviation[y, x]:.6g}") for y, x in np.ndindex(window, window)]
    middle = window // 2
    return _write(
        out,
        {
            "moments.csv": _csv(("y", "x", "mean", "deviation"), rows),
            "moments.svg": _moments_plot(mean.ravel(), deviation.ravel(), "pixel of the window, row by row"),
            "moments_row.svg": _moments_plot(mean[middle], deviation[middle], "pixel of the middle row"),
        },
    )


def _moments_plot(mean: Array, deviation: Array, label: str) -> str:
    x = np.unique(np.linspace(0, len(mean) - 1, POINTS).round().astype(int))
    lines = [
        Line(x, mean[x] + deviation[x], "mean ± sd", COLOURS[5]),
        Line(x, mean[x] - deviation[x], "", COLOURS[5]),
        Line(x, mean[x], "mean", COLOURS[0]),
    ]
    return plots.line_plot(lines, label, "gray value", x_range=(0, len(mean) - 1), size=(620, 300))


def write_orthogonality(rows: Sequence[Orthogonality], out: Path) -> list[Path]:
    """Write orthogonality.csv, and two plots: how often the original is the nearest image, and the distance to it."""
    widths = [row.width for row in rows]
    high = 1.05 * max(row.distance + row.deviation for row in rows) or 1.0
    half = Line([HALF, HALF], [0, 1], "|S| = N / 2", COLOURS[6])
    shares = [
        half,
        Line(widths, [row.corrupted for row in rows], "X̂", COLOURS[1]),
        Line(widths, [row.rebuilt for row in rows], "F(X̂)", COLOURS[0]),
    ]
    distance = [
        half._replace(y=[0, high]),
        Line(widths, [row.distance + row.deviation for row in rows], "mean ± sd", COLOURS[5]),
        Line(widths, [row.distance - row.deviation for row in rows], "", COLOURS[5]),
        Line(widths, [row.distance for row in rows], "mean", COLOURS[0]),
    ]
    label = "width of the patch, share of the side"
    return _write(
        out,
        {
            "orthogonality.csv": _csv(Orthogonality._fields, [[f"{value:.6g}" for value in row] for row in rows]),
            "orthogonality.svg": plots.line_plot(shares, label, "original is the nearest, share"),
            "orthogonality_distance.svg": plots.line_plot(distance, label, "‖F(X̂) − X‖", y_range=(0.0, high)),
        },
    )


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def _write(out: Path, contents: dict[str, str]) -> list[Path]:
    files.make_folder(out)
    for name, text in contents.items():
        files.write(out / name, text.encode())
    return [out / name for name in contents]

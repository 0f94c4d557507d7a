"""Preview of a recipe: registration, crop, region of interest and tiles, drawn into some pictures."""

from collections.abc import Sequence

import cv2
import numpy as np

from andon import render
from andon.data import dataset, reference
from andon.data.dataset import Sample
from andon.data.store import Store
from andon.data.survey import Tell, survey_images
from andon.errors import DatasetError, ImageError, RecipeError, counted
from andon.geometry import tiling, views
from andon.geometry.registration import Reference
from andon.geometry.views import Geometry, View
from andon.inspection import Array
from andon.pictures import image
from andon.progress import Progress, silent
from andon.recipe import Recipe
from andon.render import Picture
from andon.training import calibrating

COLUMNS, SIDE = 5, 320  # pictures in a row, pixels of the longer side of each
VIEW, REGION, TILE = (255, 200, 0), (0, 230, 118), (90, 170, 255)  # RGB of the outlines
Colour = tuple[int, int, int]


def sheet(recipe: Recipe, count: int = 10, progress: Progress = silent, warn: Tell = lambda sentence: None) -> Picture:
    """Draw `count` random good images as a contact sheet, with the seed of the recipe.

    The view (crop and registration) is outlined in yellow, the region of interest in green, tiles in blue; areas that
    are not inspected are dark. `warn` gets a sentence for each unusable image.
    Errors: RecipeError when the recipe names no images, DatasetError when none is good.
    """
    if not recipe.data.images:
        raise RecipeError("the recipe names no images. Set [data] images to a folder of good images.")
    data = dataset.load(recipe.data.images, groups=recipe.data.groups or None, good=recipe.data.good)
    for sentence in data.warnings:
        warn(sentence)
    good = data.training_images()
    if not good:
        raise DatasetError(f"{data.root}: no good images to show among {len(data.samples)} images. Add some.")
    registered_to = reference_of(recipe, good, progress)
    drawn = np.sort(np.random.default_rng(recipe.seed).permutation(len(good))[:count])
    pictures, captions = [], []
    for done, sample in enumerate(good[i] for i in drawn):
        progress("drawing", done, len(drawn))
        picture, caption = _one(sample, recipe.geometry, registered_to, warn)
        pictures.append(picture)
        captions.append(caption)
    progress("drawing", len(drawn), len(drawn))
    contact_sheet = render.contact_sheet(pictures, captions, COLUMNS, SIDE)
    return np.vstack([contact_sheet, _legend(contact_sheet.shape[1], recipe.geometry)])


def reference_of(recipe: Recipe, good: Sequence[Sample], progress: Progress) -> Reference | None:
    """The reference of the recipe, or the one that a training would choose; None without registration."""
    settings = recipe.geometry.registration
    if settings is None:
        return None
    if (given := reference.load(recipe)) is not None:
        return given
    learnt = good
    if not calibrating.crosses(recipe, good):
        learnt, _ = dataset.split_good(good, recipe.split.calibrate, recipe.seed)
    survey = survey_images(learnt, recipe, Store(), progress)
    return reference.choose(survey.digests, settings, survey.pictures.read, progress)


def _one(sample: Sample, settings: Geometry, registered_to: Reference | None, warn: Tell) -> tuple[Picture, str]:
    """Draw one picture, longer side SIDE pixels, and its caption."""
    name = sample.path.name
    try:
        read = image.read(sample.path)
    except ImageError as error:
        warn(f"left out: {error}")
        return np.full((SIDE, SIDE, 3), 60, np.uint8), f"{name}: cannot be read"
    picture = render.fit(render.display(read.pixels), SIDE)
    try:
        view = views.align(read.pixels, settings, read.name, registered_to)
    except ImageError as error:
        warn(f"left out: {error}")
        return picture // 3, f"{name}: cannot be used"
    scale = SIDE / max(read.pixels.shape[:2])
    h, w = view.shape
    inside = np.zeros(picture.shape[:2], np.uint8)
    outlines = _outlines(view.roi, (h, w))
    cv2.fillPoly(inside, [_placed(points, view, scale) for points in outlines], 1)  # holes count as even
    picture[inside == 0] //= 3
    places = list(tiling.places(view, settings))
    if settings.tiles:
        _draw(picture, [_placed(_box(*place.box), view, scale) for place in places], TILE, 1)
    if view.roi is not None:
        _draw(picture, [_placed(points, view, scale) for points in outlines], REGION, 2)
    if settings.crop is not None or view.matrix is not None:
        _draw(picture, [_placed(_box(0, 0, w, h), view, scale)], VIEW, 2)
    pose = view.registration
    where = f", {pose.angle:.1f} deg, quality {pose.quality:.2f}" if pose else ""
    return picture, f"{name}: {view.share:.1%} in {counted(len(places), 'tile')}{where}"


def _box(x: int, y: int, width: int, height: int) -> Array:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float32)


def _outlines(roi: views.Mask | None, shape: tuple[int, int]) -> list[Array]:
    """The outlines (n, 2) of the inspected area of a view (h, w), including those of holes."""
    if roi is None:
        return [_box(0, 0, shape[1], shape[0])]
    contours, _ = cv2.findContours(roi.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.reshape(-1, 2).astype(np.float32) + np.float32(0.5) for contour in contours]


def _placed(points: Array, view: View, scale: float) -> views.Points:
    """Transform points (n, 2) of a view to the drawn picture."""
    if view.matrix is not None:
        placed = points @ view.matrix[:, :2].T + view.matrix[:, 2]
    else:
        placed = points + np.array(view.origin)
    return np.round(placed * scale).astype(np.int32)


def _draw(picture: Picture, lines: Sequence[views.Points], colour: Colour, width: int) -> None:
    cv2.polylines(picture, list(lines), True, (0, 0, 0), width + 1, cv2.LINE_AA)
    cv2.polylines(picture, list(lines), True, colour, width, cv2.LINE_AA)


def _legend(width: int, settings: Geometry) -> Picture:
    """Draw the legend of the colours."""
    strip: Picture = np.full((32, width, 3), 255, np.uint8)
    x = 12
    for colour, words in ((VIEW, "crop and registration"), (REGION, "region of interest"), (TILE, "tiles")):
        cv2.rectangle(strip, (x, 8), (x + 14, 22), colour, -1)
        render.text(strip, words, (x + 20, 20), 0.42)
        x += 40 + 8 * len(words)
    sees = "tiles at native resolution" if settings.tiles else f"resized ({settings.aspect})"
    render.text(
        strip, f"dark: not inspected; the detector sees {settings.size} x {settings.size}, {sees}", (x, 20), 0.42
    )
    return strip

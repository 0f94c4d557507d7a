"""The picture that parts are registered to: the recipe's, or the good image that is most like all others."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from andon.errors import DatasetError, ImageError, RecipeError, TrainingError
from andon.geometry.registration import LEAST, Reference, Register
from andon.inspection import Registration
from andon.pictures import image
from andon.pictures.image import Image, Input
from andon.progress import Progress
from andon.recipe import Recipe

THUMBNAIL = 48  # pixels a side
SHARE, LOW = 0.7, 0.05  # the least quality is this share of what all but so many of the good images reach


def given(recipe: Recipe) -> Reference | None:
    """The reference that the recipe names, if it names one. RecipeError when it cannot be used."""
    settings = recipe.geometry.registration
    if settings is None or not settings.reference:
        return None
    try:
        return Reference.of(image.read(settings.reference), settings)
    except ImageError as error:
        raise RecipeError(f"recipe: geometry.registration.reference: {error}") from None


def choose(
    known: Mapping[Path, str], settings: Register, read: Callable[[Path, str], Image], progress: Progress
) -> Reference:
    """Take the image with the highest sum of correlations with the others, on small gray versions.

    `known`: path → digest of images that were read before; `read` gives them again. ImageError when one has changed
    since; DatasetError when even the image that is chosen shows nothing.
    """
    paths = list(known)
    small = []
    for done, path in enumerate(paths):
        progress("choosing reference", done, len(paths))
        pixels = read(path, known[path]).pixels
        shrunk = cv2.resize(pixels, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        gray = shrunk.reshape(THUMBNAIL**2, -1).astype(np.float32).mean(axis=1)
        gray -= gray.mean()
        small.append(gray / max(float(np.linalg.norm(gray)), 1e-6))
    progress("choosing reference", len(paths), len(paths))
    each = np.stack(small)
    path = paths[int((each @ each.sum(axis=0)).argmax())]
    likest = read(path, known[path])
    try:
        return Reference.of(likest, settings)
    except ImageError:
        raise DatasetError(
            f"the good images show nothing to register by: the one most like the others, {likest.name}, is flat, or "
            "too long and narrow. Take pictures that show the part and its outline, name one that does as "
            "geometry.registration.reference, or leave geometry.registration out."
        ) from None


def fitting(reference: Reference, rule: Input) -> Reference:
    """The reference with its samples scaled as those of the training images; RecipeError when it is of another kind."""
    if (reference.input.channels, reference.input.depth) != (rule.channels, rule.depth):
        raise RecipeError(
            f"recipe: geometry.registration.reference: {reference.name} is one of {reference.input}; the training "
            f"images are {rule}. Name a picture from the same camera."
        )
    if not rule.maximum:
        return reference
    try:
        picture = image.scaled(image.read(reference.data, reference.name), rule.maximum)
    except ImageError as error:
        raise RecipeError(f"recipe: geometry.registration.reference: {error}") from None
    return Reference.of(picture, reference.settings)


def enough(reference: Reference, found: Collection[Registration], reasons: Sequence[str]) -> None:
    """TrainingError when most good images cannot be registered: then it is not they that are wrong."""
    if len(found) < len(reasons):
        raise TrainingError(
            f"only {len(found)} of {len(found) + len(reasons)} good images could be registered to the reference "
            f"{reference.name}. Name a picture of the part as geometry.registration.reference, or widen max_rotation "
            f"and max_shift. The first: {reasons[0]}"
        )


def least_quality(found: Sequence[Registration]) -> float:
    """The quality below which a part counts as not found, from good images, if any: far below what they reach."""
    if not found:
        return LEAST
    return max(LEAST, round(SHARE * float(np.quantile([each.quality for each in found], LOW)), 3))


def below(path: Path, found: Registration, least: float) -> str:
    """Why a good image is left out that fits the reference much worse than the others."""
    return (
        f"{path.as_posix()}: registered with quality {found.quality:.2f}; from the other good images at least "
        f"{least:.2f} is expected. Look at it."
    )


def provenance(reference: Reference | None, found: Collection[Registration]) -> dict[str, str]:
    """What a bundle's manifest says: which picture it was, how well good images fit it, and what finding them costs."""
    if reference is None:
        return {}
    quality, milliseconds = [each.quality for each in found], [each.milliseconds for each in found]
    said = (
        f"{len(found)} good images, quality {np.median(quality):.2f}, at least {min(quality):.2f}, "
        f"{np.median(milliseconds):.0f} ms each"
    )
    return {"reference": Path(reference.name).name, "registered": said}

"""The reference of the registration: the picture of the recipe, or the good image most similar to all others."""

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

THUMBNAIL = 48  # pixels
SHARE, LOW = 0.7, 0.05  # the least quality is SHARE times the LOW quantile of the qualities of good images


def load(recipe: Recipe) -> Reference | None:
    """Load the reference of the recipe; None if it has none. RecipeError when it is not usable."""
    settings = recipe.geometry.registration
    if settings is None or not settings.reference:
        return None
    try:
        return Reference.of(image.read(settings.reference), settings)
    except ImageError as error:
        raise RecipeError(f"recipe: geometry.registration.reference: {error}") from None


def choose(
    digests: Mapping[Path, str], settings: Register, read: Callable[[Path, str], Image], progress: Progress
) -> Reference:
    """Choose the image with the highest sum of correlations with the others, on small gray versions.

    digests: path → digest of images that were read before; read: reads them again. Errors: ImageError when one has
    changed; DatasetError when the chosen image has no structure.
    """
    paths = list(digests)
    thumbnails = []
    for done, path in enumerate(paths):
        progress("choosing reference", done, len(paths))
        pixels = read(path, digests[path]).pixels
        small = cv2.resize(pixels, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        gray = small.reshape(THUMBNAIL**2, -1).astype(np.float32).mean(axis=1)
        gray -= gray.mean()
        thumbnails.append(gray / max(float(np.linalg.norm(gray)), 1e-6))
    progress("choosing reference", len(paths), len(paths))
    rows = np.stack(thumbnails)
    path = paths[int((rows @ rows.sum(axis=0)).argmax())]
    picture = read(path, digests[path])
    try:
        return Reference.of(picture, settings)
    except ImageError:
        raise DatasetError(
            f"the good images are not usable for registration: the one most similar to the others, {picture.name}, is "
            "uniform, or too long and narrow. Use pictures that show the part and its outline, set "
            "geometry.registration.reference to such a picture, or remove geometry.registration."
        ) from None


def match_input(reference: Reference, rule: Input) -> Reference:
    """Rescale a reference, and correct its light, like the training images; it keeps the digest of its file.

    RecipeError when it has other channels or another depth.
    """
    if (reference.input.channels, reference.input.depth) != (rule.channels, rule.depth):
        raise RecipeError(
            f"recipe: geometry.registration.reference: {reference.name} is one of {reference.input}; expected "
            f"{rule}, like the training images. Use a picture from the same camera."
        )
    if not rule.maximum and rule.light is None:
        return reference
    try:
        picture = image.rescale(image.read(reference.data, reference.name), rule.maximum)
        picture = image.correct_light(picture, rule.light)._replace(digest=reference.digest)
        return Reference.of(picture, reference.settings)
    except ImageError as error:
        raise RecipeError(f"recipe: geometry.registration.reference: {error}") from None


def require_majority(reference: Reference, poses: Collection[Registration], failures: Sequence[str]) -> None:
    """TrainingError when most good images cannot be registered: then the reference or the limits are wrong."""
    if len(poses) < len(failures):
        raise TrainingError(
            f"only {len(poses)} of {len(poses) + len(failures)} good images could be registered to the reference "
            f"{reference.name}. Set geometry.registration.reference to a picture of the part, or increase max_rotation "
            f"and max_shift. The first failure: {failures[0]}"
        )


def least_quality(poses: Sequence[Registration]) -> float:
    """Return the least quality of a registration: much lower than the qualities of good images, if there are any."""
    if not poses:
        return LEAST
    return max(LEAST, round(SHARE * float(np.quantile([pose.quality for pose in poses], LOW)), 3))


def low_quality(path: Path, pose: Registration, least: float) -> str:
    """Return the message on a good image that is not used because of the low quality of its registration."""
    return (
        f"{path.as_posix()}: registered with quality {pose.quality:.2f}; expected at least {least:.2f}, from the other "
        "good images. Look at it."
    )


def provenance(reference: Reference | None, poses: Collection[Registration]) -> dict[str, str]:
    """Return entries of the manifest: name of the reference; quality and time of the registration of good images."""
    if reference is None:
        return {}
    quality, milliseconds = [pose.quality for pose in poses], [pose.milliseconds for pose in poses]
    summary = (
        f"{len(poses)} good images, quality {np.median(quality):.2f}, at least {min(quality):.2f}, "
        f"{np.median(milliseconds):.0f} ms each"
    )
    return {"reference": Path(reference.name).name, "registered": summary}

"""Whole pictures of a training before they are cut into tiles: temporary storage, common shape, illumination."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from andon.data.dataset import Sample
from andon.data.store import Slot, Store
from andon.errors import ImageError
from andon.geometry import tiling
from andon.inspection import Array
from andon.pictures import image, light
from andon.pictures.image import Image
from andon.pictures.light import Kind, Light
from andon.recipe import Recipe

LIT = 100  # maximum number of pictures to which the illumination correction is fitted
SIZED = 50  # maximum number of pictures whose sizes determine the shape of the detector's input


class Pictures:
    """Whole pictures by path: in half of the store if there is room, else read from their files again."""

    def __init__(self, store: Store) -> None:
        """Start without pictures."""
        self._store = store
        self._stored: dict[Path, tuple[Image, Slot]] = {}

    def read(self, path: Path, digest: str = "", reduced: int = 1) -> Image:
        """Return a picture; `reduced`: scale of JPEG as in `image.read`.

        Errors: ImageError as `image.read`, and when a file that is read again has another digest than `digest`.
        """
        if path in self._stored:
            bare, slot = self._stored[path]
            return bare._replace(pixels=self._store[slot])
        return image.read_again(path, digest, reduced) if digest else image.read(path, reduced=reduced)

    def keep(self, path: Path, read: Image) -> None:
        """Store a picture if there is room."""
        if path not in self._stored and self._store.room(read.pixels.nbytes, share=0.5):
            # Not a slice, which would keep the pixels in memory.
            nothing = np.empty_like(read.pixels, shape=(0, 0, 0))
            self._stored[path] = read._replace(pixels=nothing), self._store.put(read.pixels)


def with_input_shape(recipe: Recipe, good: Sequence[Sample]) -> Recipe:
    """Return the recipe with the shape of the detector's input, computed from up to `SIZED` good images."""
    frames = list(_frames(_spread(good, SIZED)))
    return recipe.model_copy(update={"geometry": recipe.geometry.with_shape(frames)}) if frames else recipe


def light_of(good: Sequence[Sample], kind: Kind, maximum: int | None, pictures: Pictures) -> Light | None:
    """Fit the illumination correction to up to `LIT` good images; None if none is usable, which the survey reports."""
    grids: list[Array] = []
    for sample in _spread(good, LIT):
        try:
            read = pictures.read(sample.path)
            grids.append(light.grid(image.rescale(read, maximum).pixels))
            pictures.keep(sample.path, read)
        except ImageError:
            continue
    return Light.learn(kind, grids) if grids else None


def reduction(good: Sequence[Sample], recipe: Recipe) -> int:
    """Return the scale at which JPEG is decoded; 1 with illumination correction, or if pictures may differ in size."""
    if recipe.input.size == "any" or recipe.input.light != "as is":
        return 1
    frames = _frames(good)
    first = next(frames, None)
    factor = tiling.reduction(first, recipe.geometry) if first else 1
    return factor if factor > 1 and all(frame == first for frame in frames) else 1


def _spread(good: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most `most` of the images, at equal distances."""
    return [good[i] for i in np.unique(np.linspace(0, len(good) - 1, min(len(good), most)).astype(int))]


def _frames(samples: Iterable[Sample]) -> Iterator[tuple[int, int]]:
    """Yield height and width of the readable images; the survey reports the others."""
    for sample in samples:
        with suppress(ImageError):
            yield image.shape(sample.path)

"""Whole pictures of a training, before they are cut: kept while they are needed, their shape and their light."""

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

LIT = 100  # pictures from which the light is learnt
SIZED = 50  # pictures whose sizes are looked at to shape the detector's input


class Pictures:
    """Whole pictures, by path: kept in half of the store while there is room, else read from their files again."""

    def __init__(self, store: Store) -> None:
        """Keep none yet."""
        self._store = store
        self._kept: dict[Path, tuple[Image, Slot]] = {}

    def read(self, path: Path, digest: str = "", reduced: int = 1) -> Image:
        """Return a picture, JPEG with its sides divided by `reduced`.

        ImageError as `image.read`, and when its file is read again and has changed.
        """
        if path in self._kept:
            bare, slot = self._kept[path]
            return bare._replace(pixels=self._store[slot])
        return image.read_again(path, digest, reduced) if digest else image.read(path, reduced=reduced)

    def keep(self, path: Path, read: Image) -> None:
        """Keep a picture, if there is room."""
        if path not in self._kept and self._store.room(read.pixels.nbytes, share=0.5):
            # Not a slice, which would hold the pixels in memory.
            nothing = np.empty_like(read.pixels, shape=(0, 0, 0))
            self._kept[path] = read._replace(pixels=nothing), self._store.put(read.pixels)


def shaped(recipe: Recipe, good: Sequence[Sample]) -> Recipe:
    """The recipe with the shape of the detector's input spelled out, by the sizes of up to `SIZED` good images."""
    frames = list(_frames(_spread(good, SIZED)))
    return recipe.model_copy(update={"geometry": recipe.geometry.with_shape(frames)}) if frames else recipe


def light_of(good: Sequence[Sample], kind: Kind, maximum: int | None, pictures: Pictures) -> Light | None:
    """Learn the light of up to `LIT` good images; None where none can be used, which the survey says."""
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
    """By how much JPEG is reduced as it is decoded; 1 where light is divided out, or pictures may differ in size."""
    if recipe.input.size == "any" or recipe.input.light != "as is":
        return 1
    frames = _frames(good)
    first = next(frames, None)
    found = tiling.reduction(first, recipe.geometry) if first else 1
    return found if found > 1 and all(frame == first for frame in frames) else 1


def _spread(good: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many of the images, evenly spread."""
    return [good[i] for i in np.unique(np.linspace(0, len(good) - 1, min(len(good), most)).astype(int))]


def _frames(samples: Iterable[Sample]) -> Iterator[tuple[int, int]]:
    """Yield height and width of the images that can be read; the survey says which cannot."""
    for sample in samples:
        with suppress(ImageError):
            yield image.shape(sample.path)

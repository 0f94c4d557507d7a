"""The good images, looked over once before anything is learnt: which can be used, their tiles, where the parts lie."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.data import dataset, reference
from andon.data.dataset import Sample
from andon.data.store import Slot, Store
from andon.data.whole import Pictures, light_of, reduction
from andon.detector import Defects, Labelled
from andon.errors import DatasetError, ImageError, RecipeError, few
from andon.geometry import tiling, views
from andon.geometry.registration import NotFound, Reference
from andon.geometry.tiling import Place
from andon.geometry.views import Geometry, Mask, Placement
from andon.inspection import Pixels, Registration
from andon.pictures import appearance, image
from andon.pictures.appearance import Appearance
from andon.pictures.image import Image, Input
from andon.pictures.light import Light
from andon.progress import Progress
from andon.recipe import InputRule, Recipe

SIDE = 420  # pixels, the longer side of a thumbnail

Tell = Callable[[str], None]


class Prepared(NamedTuple):
    """A picture as it is scored: decoded, aligned and cut."""

    sample: Sample
    name: str
    digest: str  # SHA-256 of its file
    look: Appearance
    thumbnail: Pixels  # (h, w, c)
    placement: Placement
    tiles: list[tuple[Place, Pixels]]  # (t, t, c)


class _Kept(NamedTuple):
    """What the store keeps of a picture."""

    name: str
    look: Appearance
    thumbnail: Slot
    placement: Placement
    tiles: list[Slot]


class Survey(NamedTuple):
    """What one pass over the good images found."""

    samples: list[Sample]  # those that can be used
    rule: Input
    store: Store
    pictures: Pictures
    kept: dict[Path, _Kept]  # image → what is kept of it; none before there is a reference, where parts are registered
    digests: dict[Path, str]  # image → SHA-256 of its file
    skipped: list[str]  # why the others cannot be used
    reference: Reference | None = None  # that the tiles are registered to
    found: Mapping[Path, Registration] = MappingProxyType({})  # image → where its part lies, where it was registered
    share: float = 1.0  # the least of an image, or of the reference, that is inspected

    def tiles(self, path: Path) -> list[Pixels]:
        """Return the tiles (h, w, c) of an image, read-only."""
        return [self.store[slot] for slot in self.kept[path].tiles]

    def prepared(self, sample: Sample, settings: Geometry) -> Prepared:
        """Return an image as it is scored, from the store."""
        name, look, thumbnail, placement, _ = self.kept[sample.path]
        tiles = list(zip(tiling.places(placement, settings), self.tiles(sample.path), strict=True))
        return Prepared(sample, name, self.digests[sample.path], look, self.store[thumbnail], placement, tiles)


def prepare(sample: Sample, read: Image, settings: Geometry, registered_to: Reference | None) -> Prepared:
    """Align and cut a decoded image. Errors: as `views.align`."""
    view = views.align(read.pixels, settings, read.name, registered_to, read.full)
    tiles = list(tiling.split(view, settings))
    look, thumbnail = appearance.measure(read.pixels), _thumbnail(read.pixels)
    return Prepared(sample, read.name, read.digest, look, thumbnail, view.placement, tiles)


def _thumbnail(pixels: Pixels) -> Pixels:
    """Shrink pixels (h, w, c) to `SIDE`."""
    h, w = pixels.shape[:2]
    factor = min(1.0, SIDE / max(h, w))
    size = (max(1, round(w * factor)), max(1, round(h * factor)))
    shrunk: Pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), pixels.dtype)
    return shrunk.reshape(size[1], size[0], -1)


class GoodTiles:
    """The tiles of some of the surveyed images, read from the store."""

    def __init__(
        self, samples: Sequence[Sample], survey: Survey, settings: Geometry, defects: Defects | None = None
    ) -> None:
        """Take the images to learn from."""
        self._store = survey.store
        self._slots = [slot for sample in samples for slot in survey.kept[sample.path].tiles]
        self.shape: tuple[int, int] = settings.input
        self.side: int = self.shape[0]
        self.channels: int = survey.rule.channels
        self.depth: int = survey.rule.depth
        number = _numbers(samples)
        self.groups: Sequence[int] = [number[s.group] for s in samples for _ in survey.kept[s.path].tiles]
        self.defects: Defects | None = defects

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        return np.stack([self._store[self._slots[row]] for row in rows])

    def __iter__(self) -> Iterator[Pixels]:
        return (self[rows] for rows in tiling.batches(range(len(self)), self.shape))


class DefectTiles:
    """The tiles of images of defects, with what their masks mark, read from the store."""

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: Geometry,
        rule: Input,
        store: Store,
        warn: Tell,
        registered_to: Reference | None = None,
    ) -> None:
        """Put the images into the store; `warn` hears of those that are left out: they or their masks are unusable."""
        self._store = store
        self._slots: list[tuple[Slot, Slot]] = []  # of a tile and of its mask
        self._geometry, self._rule, self._reference = settings, rule, registered_to
        groups: list[int] = []
        self.digests: dict[Path, str] = {}  # of the files that are learnt from
        number = _numbers(samples)
        for sample in samples:
            try:
                read = image.read(sample.path)
                pieces = list(self._tiles(sample, read))
            except ImageError as error:
                warn(f"left out: {error}")
                continue
            if not any(mask.any() for _, mask in pieces):
                warn(
                    f"left out: {read.name}: nothing of what its mask marks is left in its tiles; expected a defect "
                    "inside the crop and the region of interest. Correct them or the mask. If the defect is very "
                    "small, raise geometry.size."
                )
                continue
            self._slots += [(store.put(tile), store.put(mask)) for tile, mask in pieces]
            groups += [number[sample.group]] * len(pieces)
            self.digests[sample.path] = read.digest
        self.groups: Sequence[int] = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, rows: Sequence[int]) -> Labelled:
        tiles, masks = zip(*(self._slots[row] for row in rows), strict=True)
        return Labelled(np.stack([self._store[each] for each in tiles]), np.stack([self._store[m] for m in masks]))

    def __iter__(self) -> Iterator[Labelled]:
        return (self[rows] for rows in tiling.batches(range(len(self)), self._geometry.input))

    def _tiles(self, sample: Sample, read: Image) -> Iterator[tuple[Pixels, NDArray[np.bool_]]]:
        """Yield the tiles (t, t, c) of one image and the mask (t, t) of each."""
        read = image.accept(read, self._rule)
        shape = read.pixels.shape[:2]
        marked = np.ones(shape, bool) if sample.mask is None else dataset.mask(sample.mask)
        if marked.shape != shape:
            raise ImageError(
                f"{sample.mask}: a mask of {marked.shape[1]}×{marked.shape[0]} pixels for an image of "
                f"{shape[1]}×{shape[0]}; expected equal sizes. Correct the mask."
            )
        top = np.iinfo(read.pixels.dtype).max
        # As one more channel, so that the mask goes the way of the image whatever the geometry does.
        mask = np.where(marked[..., None], top, 0).astype(read.pixels.dtype)
        both = np.concatenate([read.pixels, mask], axis=2)
        view = views.align(both, self._geometry, read.name, self._reference)
        if view.roi is not None:
            view.pixels[~view.roi, -1] = 0  # what is painted over is no defect
        for _, tile in tiling.split(view, self._geometry):
            # Of a mark thinner than a pixel of the tile, shrinking leaves little; turning leaves a faint rim around it.
            # To learn from, any of it counts: a rim too many does less harm than a defect that is learnt as good.
            # Nothing is measured by these masks.
            yield tile[..., :-1], tile[..., -1] > 0


def _numbers(samples: Sequence[Sample]) -> dict[str, int]:
    """Number the groups of samples."""
    return {group: i for i, group in enumerate(sorted({sample.group for sample in samples}))}


def look_over(
    good: Sequence[Sample],
    recipe: Recipe,
    store: Store,
    progress: Progress,
    registered_to: Reference | None = None,
    known: Mapping[Path, str] = MappingProxyType({}),
    maximum: int | None = None,
    light: Light | None = None,
    pictures: Pictures | None = None,
    reduce: bool = False,
) -> Survey:
    """Decode every good image once, into the store: which can be used, and what they agree on.

    Where parts are to be registered, there are tiles only once there is a reference. `known`: path → digest of images
    that were looked over before; one that has changed since cannot be used. 16-bit samples are scaled from the range up
    to `maximum`, or up to the recipe's; where neither is given there are tiles only once their range is known. Until
    then whole `pictures` are kept, so that none is decoded again as long as there is room. `reduce`: decode JPEG at
    reduced scale where the geometry allows it and all have one size.
    """
    pictures = pictures or Pictures(store)
    reduced = reduction(good, recipe) if reduce else 1
    if maximum is None and recipe.input.maximum != "auto":
        maximum = recipe.input.maximum
    if recipe.input.light != "as is" and light is None:
        light = light_of(good, recipe.input.light, maximum, pictures)
    highest = bits = 0
    early = recipe.geometry.registration is not None and registered_to is None
    found: dict[Path, Registration] = {}
    missed: list[str] = []
    usable: list[Sample] = []
    inputs: dict[str, Input] = {}
    kept: dict[Path, _Kept] = {}
    regions: dict[tuple[int, int], Mask | None] = {}  # of views of one shape, the same region of interest
    digests: dict[Path, str] = {}
    skipped: list[str] = []
    share = 1.0
    for done, sample in enumerate(good):
        progress("reading images", done, len(good))
        try:
            path = sample.path
            read = image.rescale(pictures.read(path, known.get(path, ""), reduced), maximum)
            soon = early or (read.pixels.dtype == np.uint16 and maximum is None)  # its tiles are not cut yet
            if soon:
                pictures.keep(path, read)
            most, used = int(read.pixels.max()), int(np.bitwise_or.reduce(read.pixels, axis=None))
            read = image.correct_light(read, light)
            prepared = None if soon else prepare(sample, read, recipe.geometry, registered_to)
        except ImageError as error:
            skipped.append(str(error))
            if isinstance(error, NotFound):
                missed.append(str(error))
            continue
        if prepared:
            placement = prepared.placement
            share = min(share, placement.share)
            if placement.registration:
                found[sample.path] = placement.registration
            placement = replace(placement, roi=regions.setdefault(placement.shape, placement.roi))
            slots = [store.put(tile, (done + 1) / len(good)) for _, tile in prepared.tiles]
            kept[sample.path] = _Kept(read.name, prepared.look, store.put(prepared.thumbnail), placement, slots)
        usable.append(sample)
        inputs[read.name] = image.describe(read)
        highest, bits = max(highest, most), bits | used
        digests[sample.path] = read.digest
    progress("reading images", len(good), len(good))
    if registered_to is not None:
        reference.require_majority(registered_to, found.values(), missed)
    if not usable:
        raise DatasetError(f"none of {len(good)} images can be used. The first: {skipped[0]}")
    rule = _declared(image.common_input(inputs), recipe.input)
    if rule.depth == 16 and maximum is None:
        maximum = image.used_range(highest, bits) or 65535
        return look_over(good, recipe, store, progress, registered_to, digests, maximum, pictures=pictures)
    if rule.depth == 16 and maximum != 65535:
        rule = rule.model_copy(update={"maximum": maximum})
    rule = rule.model_copy(update={"light": light, "reduced": reduced})
    return Survey(usable, rule, store, pictures, kept, digests, skipped, registered_to, found, share)


def _declared(found: Input, rule: InputRule) -> Input:
    """Hold what the images are against what the recipe declares."""
    for key, value, asked in (("channels", found.channels, rule.channels), ("depth", found.depth, rule.depth)):
        if asked not in ("auto", value):
            raise RecipeError(
                f"input.{key} = {asked}, but the training images have {key} {value}. Correct the recipe or the images."
            )
    if found.depth == 8 and rule.maximum != "auto":
        raise RecipeError(
            f"input.maximum = {rule.maximum}, but the training images have 8 bits. Leave it out, or correct the images."
        )
    return found.model_copy(update={"size": None}) if rule.size == "any" else found


def registered(
    before: Survey,
    fit_on: Sequence[Sample],
    calibrate_on: Sequence[Sample],
    recipe: Recipe,
    given: Reference | None,
    progress: Progress,
) -> tuple[Survey, Recipe, list[Sample], list[Sample]]:
    """Look over the good images again, registered, and spell the recipe's least quality out.

    Images held out for calibration alone have no say in either, and a reference is not held out. Returns the survey,
    the recipe, and what is left of both sides, which may be the same images.
    """
    settings = recipe.geometry.registration
    assert settings is not None
    known = before.digests
    chosen = given or reference.choose(
        {s.path: known[s.path] for s in fit_on}, settings, before.pictures.read, progress
    )
    chosen = reference.match_input(chosen, before.rule)
    recipe = recipe.model_copy(update={"geometry": recipe.geometry.with_shape([chosen.frame])})
    both = list(dict.fromkeys([*fit_on, *calibrate_on]))
    rule = before.rule
    survey = look_over(
        both, recipe, before.store, progress, chosen, known, rule.maximum or 65535, rule.light, before.pictures
    )
    if settings.least_quality is None:
        least = reference.least_quality([survey.found[s.path] for s in fit_on if s.path in survey.found])
        settings = chosen.settings = settings.model_copy(update={"least_quality": least})
        recipe = recipe.with_registration(settings)
        below = {path: found for path, found in survey.found.items() if found.quality < least}
        survey = survey._replace(
            samples=[sample for sample in survey.samples if sample.path not in below],
            digests={path: digest for path, digest in survey.digests.items() if path not in below},
            found={path: found for path, found in survey.found.items() if path not in below},
            skipped=survey.skipped + [reference.low_quality(path, found, least) for path, found in below.items()],
        )
    groups = {sample.group for sample in survey.samples if survey.digests[sample.path] == chosen.digest}
    kept = {sample.path for sample in survey.samples}
    return (
        survey,
        recipe,
        [sample for sample in fit_on if sample.path in kept],
        [sample for sample in calibrate_on if sample.path in kept and sample.group not in groups],
    )


def check_sides(survey: Survey, before: Sequence[Sequence[Sample]], after: Sequence[Sequence[Sample]]) -> None:
    """DatasetError when registration left nothing of a side of the split: to learn from, or to calibrate on."""
    assert survey.reference is not None
    purposes = ("to learn from", "held out for calibration, where the reference itself does not count")
    for purpose, side, left in zip(purposes, before, after, strict=True):
        if not left:
            names = few([sample.path.as_posix() for sample in side])
            raise DatasetError(
                f"{len(survey.found)} of {sum(map(len, before))} good images fit the reference "
                f"{survey.reference.name}, but none of the {len(side)} {purpose}: {names}; expected at least one. "
                "Look at them; then add good images, widen max_rotation and max_shift, or name another picture as "
                "geometry.registration.reference."
            )

"""The first pass over the good images of a training: usable images, their tiles in the store, poses of their parts."""

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

SIDE = 420  # pixels: longer side of a thumbnail

Tell = Callable[[str], None]


class Prepared(NamedTuple):
    """A picture that was decoded, aligned and cut into tiles."""

    sample: Sample
    name: str
    digest: str  # SHA-256 of its file
    look: Appearance
    thumbnail: Pixels  # (h, w, c)
    placement: Placement
    tiles: list[tuple[Place, Pixels]]  # (t, t, c)


class _Entry(NamedTuple):
    """A picture in the store."""

    name: str
    look: Appearance
    thumbnail: Slot
    placement: Placement
    tiles: list[Slot]


class Survey(NamedTuple):
    """The result of a pass over the good images."""

    samples: list[Sample]  # usable images
    rule: Input  # their common kind
    store: Store
    pictures: Pictures
    entries: dict[Path, _Entry]  # image → its tiles; empty if the reference of a registration is not yet chosen
    digests: dict[Path, str]  # image → SHA-256 of its file
    skipped: list[str]  # reasons why other images are not usable
    reference: Reference | None = None  # of the registration
    poses: Mapping[Path, Registration] = MappingProxyType({})  # image → pose of its part, with a registration
    share: float = 1.0  # smallest inspected share of an image, or of the reference
    warnings: Sequence[str] = ()  # sizes that differ against the recipe, polygons outside the picture

    def tiles(self, path: Path) -> list[Pixels]:
        """Return the tiles (h, w, c) of an image, read-only."""
        return [self.store[slot] for slot in self.entries[path].tiles]

    def prepared(self, sample: Sample, settings: Geometry) -> Prepared:
        """Return an image with its tiles from the store."""
        name, look, thumbnail, placement, _ = self.entries[sample.path]
        tiles = list(zip(tiling.places(placement, settings), self.tiles(sample.path), strict=True))
        return Prepared(sample, name, self.digests[sample.path], look, self.store[thumbnail], placement, tiles)


def prepare(
    sample: Sample, read: Image, settings: Geometry, registered_to: Reference | None, reduced: int = 1
) -> Prepared:
    """Align a decoded image and cut it into tiles; `reduced`: as `appearance.look`. Errors: as `views.align`."""
    view = views.align(read.pixels, settings, read.name, registered_to, read.full)
    tiles = list(tiling.split(view, settings))
    look, thumbnail = appearance.look(read, reduced), _thumbnail(read.pixels)
    return Prepared(sample, read.name, read.digest, look, thumbnail, view.placement, tiles)


def _thumbnail(pixels: Pixels) -> Pixels:
    """Reduce pixels (h, w, c) so that the longer side has at most `SIDE` pixels."""
    h, w = pixels.shape[:2]
    factor = min(1.0, SIDE / max(h, w))
    size = (max(1, round(w * factor)), max(1, round(h * factor)))
    small: Pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), pixels.dtype)
    return small.reshape(size[1], size[0], -1)


class GoodTiles:
    """The tiles of some of the surveyed images, read from the store."""

    def __init__(
        self, samples: Sequence[Sample], survey: Survey, settings: Geometry, defects: Defects | None = None
    ) -> None:
        """Select the images."""
        self._store = survey.store
        self._slots = [slot for sample in samples for slot in survey.entries[sample.path].tiles]
        self.shape: tuple[int, int] = settings.input
        self.side: int = self.shape[0]
        self.channels: int = survey.rule.channels
        self.depth: int = survey.rule.depth
        number = _numbers(samples)
        self.groups: Sequence[int] = [number[s.group] for s in samples for _ in survey.entries[s.path].tiles]
        self.defects: Defects | None = defects

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        return np.stack([self._store[self._slots[row]] for row in rows])

    def __iter__(self) -> Iterator[Pixels]:
        return (self[rows] for rows in tiling.batches(range(len(self)), self.shape))


class DefectTiles:
    """The tiles of images of defects and of their masks, read from the store."""

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: Geometry,
        rule: Input,
        store: Store,
        warn: Tell,
        registered_to: Reference | None = None,
    ) -> None:
        """Add the images to the store; `warn` receives messages on images and masks that are not usable."""
        self._store = store
        self._slots: list[tuple[Slot, Slot]] = []  # of a tile and of its mask
        self._geometry, self._rule, self._reference = settings, rule, registered_to
        groups: list[int] = []
        self.digests: dict[Path, str] = {}  # image → SHA-256 of its file, for all that are used
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
                    f"left out: {read.name}: its tiles contain no marked pixel of its mask; expected a defect inside "
                    "the crop and the region of interest. Correct them or the mask. If the defect is very small, "
                    "increase geometry.size."
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
        return Labelled(
            np.stack([self._store[tile] for tile in tiles]), np.stack([self._store[mask] for mask in masks])
        )

    def __iter__(self) -> Iterator[Labelled]:
        return (self[rows] for rows in tiling.batches(range(len(self)), self._geometry.input))

    def _tiles(self, sample: Sample, read: Image) -> Iterator[tuple[Pixels, NDArray[np.bool_]]]:
        """Yield the tiles (t, t, c) of one image, each with its mask (t, t)."""
        read = image.accept(read, self._rule)
        shape = read.pixels.shape[:2]
        area = np.ones(shape, bool) if sample.mask is None else dataset.mask(sample.mask)
        if area.shape != shape:
            raise ImageError(
                f"{sample.mask}: a mask of {area.shape[1]}×{area.shape[0]} pixels for an image of "
                f"{shape[1]}×{shape[0]}; expected equal sizes. Correct the mask."
            )
        top = np.iinfo(read.pixels.dtype).max
        # The mask is an additional channel, so that it has the same geometry as the image.
        mask = np.where(area[..., None], top, 0).astype(read.pixels.dtype)
        both = np.concatenate([read.pixels, mask], axis=2)
        view = views.align(both, self._geometry, read.name, self._reference)
        if view.roi is not None:
            view.pixels[~view.roi, -1] = 0  # pixels outside the region of interest are no defect
        for _, tile in tiling.split(view, self._geometry):
            # Resizing and rotation leave small values at thin marks and around all marks. All values above 0 count: a
            # mask that is too large has less effect than a defect that is used as good. These masks are for training
            # only, not for figures.
            yield tile[..., :-1], tile[..., -1] > 0


def _numbers(samples: Sequence[Sample]) -> dict[str, int]:
    """Return the number of each group of samples."""
    return {group: i for i, group in enumerate(sorted({sample.group for sample in samples}))}


def survey_images(
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
    """Decode every good image once, and add its tiles to the store.

    Tiles are not cut before the reference of a registration and the range of 16-bit samples are known. Until then whole
    `pictures` are stored, so that they are not decoded again if there is room.

    registered_to: reference of the registration.
    known: path → digest of images that were read before; an image that has changed is not usable.
    maximum: largest value of 16-bit samples; default: the recipe's, else computed from all images.
    light: illumination correction; default: fitted to the images, if the recipe has one.
    reduce: decode JPEG at reduced scale if the geometry allows it and all have one size.

    Errors: DatasetError when no image is usable; ImageError when images differ in channels or depth; RecipeError when
    they differ from the recipe; TrainingError as `Store.put` and `reference.require_majority`.
    """
    pictures = pictures or Pictures(store)
    reduced = reduction(good, recipe) if reduce else 1
    if maximum is None and recipe.input.maximum != "auto":
        maximum = recipe.input.maximum
    if recipe.input.light != "as is" and light is None:
        light = light_of(good, recipe.input.light, maximum, pictures)
    highest = bits = 0
    no_reference = recipe.geometry.registration is not None and registered_to is None
    poses: dict[Path, Registration] = {}
    not_found: list[str] = []
    usable: list[Sample] = []
    inputs: dict[str, Input] = {}
    entries: dict[Path, _Entry] = {}
    regions: dict[tuple[int, int], Mask | None] = {}  # shape of a view → region of interest, shared by equal shapes
    digests: dict[Path, str] = {}
    skipped: list[str] = []
    share = 1.0
    for done, sample in enumerate(good):
        progress("reading images", done, len(good))
        try:
            path = sample.path
            raw = pictures.read(path, known.get(path, ""), reduced)
            read = image.rescale(raw, maximum)
            later = no_reference or (read.pixels.dtype == np.uint16 and maximum is None)  # tiles are cut later
            if later:
                pictures.keep(path, raw)
            largest, used_bits = int(read.pixels.max()), int(np.bitwise_or.reduce(read.pixels, axis=None))
            read = image.correct_light(read, light)
            prepared = None if later else prepare(sample, read, recipe.geometry, registered_to, reduced)
        except ImageError as error:
            skipped.append(str(error))
            if isinstance(error, NotFound):
                not_found.append(str(error))
            continue
        if prepared:
            placement = prepared.placement
            share = min(share, placement.share)
            if placement.registration:
                poses[sample.path] = placement.registration
            placement = replace(placement, roi=regions.setdefault(placement.shape, placement.roi))
            slots = [store.put(tile, (done + 1) / len(good)) for _, tile in prepared.tiles]
            entries[sample.path] = _Entry(read.name, prepared.look, store.put(prepared.thumbnail), placement, slots)
        usable.append(sample)
        inputs[read.name] = image.describe(read)
        highest, bits = max(highest, largest), bits | used_bits
        digests[sample.path] = read.digest
    progress("reading images", len(good), len(good))
    if registered_to is not None:
        reference.require_majority(registered_to, poses.values(), not_found)
    if not usable:
        raise DatasetError(
            f"0 of {len(good)} images are usable; expected at least one. The first problem: {skipped[0]}"
        )
    rule = _check_input(image.common_input(inputs), recipe.input)
    if rule.depth == 16 and maximum is None:
        maximum = image.used_range(highest, bits) or 65535
        return survey_images(good, recipe, store, progress, registered_to, digests, maximum, pictures=pictures)
    if rule.depth == 16 and maximum != 65535:
        rule = rule.model_copy(update={"maximum": maximum})
    rule = rule.model_copy(update={"light": light, "reduced": reduced})
    warnings = [] if recipe.input.size == "any" else image.mixed_sizes(inputs)
    if not no_reference:
        widths, heights = zip(*(kind.size for kind in inputs.values() if kind.size), strict=True)
        frame = registered_to.frame if registered_to else (max(heights), max(widths))
        warnings += views.outside(recipe.geometry, frame)
    return Survey(usable, rule, store, pictures, entries, digests, skipped, registered_to, poses, share, warnings)


def _check_input(actual: Input, rule: InputRule) -> Input:
    """Compare the kind of the images with the settings of the recipe. RecipeError when they differ."""
    for key, value, setting in (("channels", actual.channels, rule.channels), ("depth", actual.depth, rule.depth)):
        if setting not in ("auto", value):
            raise RecipeError(
                f"input.{key} = {setting}, but the training images have {key} {value}. Correct the recipe or the "
                "images."
            )
    if actual.depth == 8 and rule.maximum != "auto":
        raise RecipeError(
            f"input.maximum = {rule.maximum}, but the training images have 8 bits. Remove it, or correct the images."
        )
    return actual.model_copy(update={"size": None}) if rule.size == "any" else actual


def register(
    before: Survey,
    fit_on: Sequence[Sample],
    calibrate_on: Sequence[Sample],
    recipe: Recipe,
    given: Reference | None,
    progress: Progress,
) -> tuple[Survey, Recipe, list[Sample], list[Sample]]:
    """Survey the good images again with registration, and set the recipe's least quality, if it has none.

    The reference and the least quality are computed from `fit_on` only. The group of the reference is not used for
    calibration. `given`: the reference of the recipe. Returns the survey, the recipe, and the usable images of both
    sides, which can be the same images.
    """
    settings = recipe.geometry.registration
    assert settings is not None
    digests = before.digests
    chosen = given or reference.choose(
        {s.path: digests[s.path] for s in fit_on}, settings, before.pictures.read, progress
    )
    chosen = reference.match_input(chosen, before.rule)
    recipe = recipe.model_copy(update={"geometry": recipe.geometry.with_shape([chosen.frame])})
    both = list(dict.fromkeys([*fit_on, *calibrate_on]))
    rule = before.rule
    survey = survey_images(
        both, recipe, before.store, progress, chosen, digests, rule.maximum or 65535, rule.light, before.pictures
    )
    if settings.least_quality is None:
        least = reference.least_quality([survey.poses[s.path] for s in fit_on if s.path in survey.poses])
        settings = chosen.settings = settings.model_copy(update={"least_quality": least})
        recipe = recipe.with_registration(settings)
        below = {path: pose for path, pose in survey.poses.items() if pose.quality < least}
        survey = survey._replace(
            samples=[sample for sample in survey.samples if sample.path not in below],
            digests={path: digest for path, digest in survey.digests.items() if path not in below},
            poses={path: pose for path, pose in survey.poses.items() if path not in below},
            skipped=survey.skipped + [reference.low_quality(path, pose, least) for path, pose in below.items()],
        )
    groups = {sample.group for sample in survey.samples if survey.digests[sample.path] == chosen.digest}
    usable = {sample.path for sample in survey.samples}
    return (
        survey,
        recipe,
        [sample for sample in fit_on if sample.path in usable],
        [sample for sample in calibrate_on if sample.path in usable and sample.group not in groups],
    )


def check_sides(survey: Survey, before: Sequence[Sequence[Sample]], after: Sequence[Sequence[Sample]]) -> None:
    """DatasetError when no image of a side of the split, fit or calibration, could be registered."""
    assert survey.reference is not None
    purposes = ("for the fit", "for calibration, not counting the reference")
    for purpose, side, usable in zip(purposes, before, after, strict=True):
        if not usable:
            names = few([sample.path.as_posix() for sample in side])
            raise DatasetError(
                f"{len(survey.poses)} of {sum(map(len, before))} good images could be registered to the reference "
                f"{survey.reference.name}, but none of the {len(side)} {purpose}: {names}; expected at least one. "
                "Look at them; then add good images, increase max_rotation and max_shift, or set "
                "geometry.registration.reference to another picture."
            )

"""The good images, looked over once before anything is learnt: which can be used, their tiles, where the parts lie."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon.data import dataset, reference
from andon.data.dataset import Sample
from andon.detector import Defects, Labelled
from andon.errors import DatasetError, ImageError, RecipeError, few
from andon.geometry import tiling, views
from andon.geometry.registration import NotFound, Reference
from andon.geometry.views import Geometry
from andon.inspection import Pixels, Registration
from andon.pictures import image
from andon.pictures.image import Image, Input
from andon.progress import Progress
from andon.recipe import InputRule, Recipe

KEEP = 512 * 1024**2  # bytes of tiles kept in memory; the rest is decoded anew on each pass

Tell = Callable[[str], None]


class Survey(NamedTuple):
    """What one pass over the good images found."""

    samples: list[Sample]  # those that can be used
    rule: Input
    tiles: dict[Path, list[Pixels]]  # image → its tiles (t, t, c), for as many images as the budget holds
    counts: dict[Path, int]  # image → how many tiles
    digests: dict[Path, str]  # image → SHA-256 of its file
    skipped: list[str]  # why the others cannot be used
    reference: Reference | None = None  # that the tiles are registered to
    found: Mapping[Path, Registration] = MappingProxyType({})  # image → where its part lies, where it was registered
    share: float = 1.0  # the least of an image, or of the reference, that is inspected

    def again(self, path: Path) -> Image:
        """Decode an image again, as the survey did. ImageError when its file has changed since."""
        return image.scaled(image.read_again(path, self.digests[path]), self.rule.maximum)


class GoodTiles:
    """The tiles of some of the surveyed images; what the survey did not keep is decoded anew on each pass."""

    def __init__(
        self, samples: Sequence[Sample], survey: Survey, settings: Geometry, defects: Defects | None = None
    ) -> None:
        """Take the images to learn from."""
        self._samples, self._survey, self._geometry = samples, survey, settings
        self.side: int = settings.size
        self.channels: int = survey.rule.channels
        self.depth: int = survey.rule.depth
        number = _numbers(samples)
        self.groups: Sequence[int] = [number[s.group] for s in samples for _ in range(survey.counts[s.path])]
        self.defects: Defects | None = defects

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Pixels]:
        pieces = (tile for sample in self._samples for tile in self._tiles(sample.path))
        return (np.stack(batch) for batch in tiling.batches(pieces, self.side))

    def _tiles(self, path: Path) -> Iterable[Pixels]:
        kept = self._survey.tiles.get(path)
        return kept or cut(self._survey.again(path), self._geometry, self._survey.reference)


class DefectTiles:
    """The tiles of images of defects, with what their masks mark; decoded anew on each pass."""

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: Geometry,
        rule: Input,
        warn: Tell,
        registered_to: Reference | None = None,
    ) -> None:
        """Look over the images; `warn` hears of those that are left out, for they or their masks cannot be used."""
        self._samples: list[Sample] = []
        self._geometry, self._rule, self._reference = settings, rule, registered_to
        groups: list[int] = []
        self.digests: dict[Path, str] = {}  # of the files that are learnt from
        number = _numbers(samples)
        for sample in samples:
            try:
                read = image.read(sample.path)
                marked = [mask.any() for _, mask in self._tiles(sample, read)]
            except ImageError as error:
                warn(f"left out: {error}")
                continue
            if not any(marked):
                warn(
                    f"left out: {read.name}: nothing of what its mask marks is left in its tiles; expected a defect "
                    "inside the crop and the region of interest. Correct them or the mask; of a speck, raise "
                    "geometry.size."
                )
                continue
            self._samples.append(sample)
            groups += [number[sample.group]] * len(marked)
            self.digests[sample.path] = read.digest
        self.groups: Sequence[int] = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Labelled]:
        again = ((each, image.read_again(each.path, self.digests[each.path])) for each in self._samples)
        pieces = (piece for sample, read in again for piece in self._tiles(sample, read))
        for batch in tiling.batches(pieces, self._geometry.size):
            tiles, masks = zip(*batch, strict=True)
            yield Labelled(np.stack(tiles), np.stack(masks))

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


def cut(read: Image, settings: Geometry, registered_to: Reference | None) -> Iterator[Pixels]:
    """Yield the tiles (t, t, c) of one image."""
    view = views.align(read.pixels, settings, read.name, registered_to)
    return (tile for _, tile in tiling.split(view, settings))


def look_over(
    good: Sequence[Sample],
    recipe: Recipe,
    progress: Progress,
    registered_to: Reference | None = None,
    known: Mapping[Path, str] = MappingProxyType({}),
    maximum: int | None = None,
) -> Survey:
    """Decode every good image once: which can be used, what they agree on, and their tiles as far as memory allows.

    Where parts are to be registered, there are tiles only once there is a reference. `known`: path → digest of images
    that were looked over before; one that has changed since cannot be used. 16-bit samples are scaled from the range up
    to `maximum`, or up to the recipe's. Where neither is given and they turn out to use a smaller range, the images are
    looked over again.
    """
    if maximum is None and recipe.input.maximum != "auto":
        maximum = recipe.input.maximum
    highest = bits = 0
    early = recipe.geometry.registration is not None and registered_to is None
    found: dict[Path, Registration] = {}
    missed: list[str] = []
    usable: list[Sample] = []
    inputs: dict[str, Input] = {}
    tiles: dict[Path, list[Pixels]] = {}
    counts: dict[Path, int] = {}
    digests: dict[Path, str] = {}
    skipped: list[str] = []
    kept, share = 0, 1.0
    for done, sample in enumerate(good):
        progress("reading images", done, len(good))
        try:
            path = sample.path
            read = image.scaled(image.read_again(path, known[path]) if path in known else image.read(path), maximum)
            view = None if early else views.align(read.pixels, recipe.geometry, read.name, registered_to)
            pieces = [tile for _, tile in tiling.split(view, recipe.geometry)] if view else []
        except ImageError as error:
            skipped.append(str(error))
            if isinstance(error, NotFound):
                missed.append(str(error))
            continue
        share = min(share, view.share) if view else share
        if view and view.registration:
            found[sample.path] = view.registration
        usable.append(sample)
        inputs[read.name] = image.described(read)
        highest, bits = max(highest, int(read.pixels.max())), bits | int(np.bitwise_or.reduce(read.pixels, axis=None))
        counts[sample.path] = len(pieces)
        kept += sum(piece.nbytes for piece in pieces)
        if kept <= KEEP:
            tiles[sample.path] = pieces
        digests[sample.path] = read.digest
    progress("reading images", len(good), len(good))
    if registered_to is not None:
        reference.enough(registered_to, found.values(), missed)
    if not usable:
        raise DatasetError(f"none of {len(good)} images can be used. The first: {skipped[0]}")
    rule = _declared(image.agree(inputs), recipe.input)
    if rule.depth == 16 and maximum is None:
        maximum = image.in_use(highest, bits)
        if maximum:
            return look_over(good, recipe, progress, registered_to, digests, maximum)
    if rule.depth == 16 and maximum != 65535:
        rule = rule.model_copy(update={"maximum": maximum})
    return Survey(usable, rule, tiles, counts, digests, skipped, registered_to, found, share)


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
    chosen = given or reference.choose({s.path: known[s.path] for s in fit_on}, settings, progress)
    chosen = reference.fitting(chosen, before.rule)
    both = list(dict.fromkeys([*fit_on, *calibrate_on]))
    survey = look_over(both, recipe, progress, chosen, known, before.rule.maximum or 65535)
    if settings.least_quality is None:
        least = reference.least_quality([survey.found[s.path] for s in fit_on if s.path in survey.found])
        settings = chosen.settings = settings.model_copy(update={"least_quality": least})
        recipe = recipe.registering(settings)
        below = {path: found for path, found in survey.found.items() if found.quality < least}
        survey = survey._replace(
            samples=[sample for sample in survey.samples if sample.path not in below],
            digests={path: digest for path, digest in survey.digests.items() if path not in below},
            found={path: found for path, found in survey.found.items() if path not in below},
            skipped=survey.skipped + [reference.below(path, found, least) for path, found in below.items()],
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

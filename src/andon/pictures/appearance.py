"""Simple statistics of a picture, and whether they are unusual compared with good pictures.

A detector scores any picture, even a black one, one out of focus, or one of another product. These statistics take a
few milliseconds, do not depend on defects, and describe in words how such a picture differs.

A statistic is unusual outside [low − m, high + m], where [low, high] is its range among n good pictures. The margin m
assumes exponential tails: the range of n values is about 2 ln n times the scale of the tail, and a good picture exceeds
the range by m with probability exp(−m / scale) / (n + 1), which is set to `RARE`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from andon.inspection import Pixels
from andon.pictures.image import Image

SIDE = 512  # pixels: maximum of the longer side, after reduction by an integer factor
SCENE = 12  # pixels: side of the thumbnail
BANDS = 5  # octaves of the spectrum, wavelengths from 2 to 64 pixels of 128
FOLDS = 10  # of the good pictures, to estimate the statistics of new pictures
ENOUGH = 10  # minimum number of pictures whose median is compared
PARTS = 16  # maximum number of principal components of the thumbnails
RARE = 1e-4  # probability that a good picture is unusual in one statistic on one side, see above
DARKEST = 1 / 4096  # of full scale: added before a logarithm
LEAST_DEVIATION = 0.05  # octaves, of light, contrast, sharpness and bands
EXTREME = 0.1  # of full scale: a flat picture closer than this to black or white is called black or white
FLAT = 0.25  # of the lowest contrast of good pictures: a picture below it is flat


class Appearance(NamedTuple):
    """Simple statistics of one picture; gray values in levels of the picture's depth."""

    mean: float  # gray value
    contrast: float  # standard deviation of the gray value
    sharpness: float  # mean absolute Laplacian
    saturated: float  # share of pixels above 98 % of full scale
    dark: float  # share of pixels below 2 % of full scale
    balance: float  # mean of (red − blue) / mean of the channels; 0 for gray pictures
    tint: float  # cube root of the mean cube of the same: small areas of strong colour count more
    bands: tuple[float, ...]  # (BANDS,) log2 of standard deviation in each octave / contrast, fine to coarse
    thumbnail: tuple[float, ...]  # (SCENE²,) gray values minus their mean, unit length; zeros if all are equal
    top: int  # full scale: 255 or 65535
    reduced: int = 1  # the sides of the picture were divided by this, see `look`


def look(image: Image, reduced: int) -> Appearance:
    """Measure a picture at the scale at which JPEG is decoded, `reduced` of `Input`, however this picture arrived."""
    (height, width, _), (full, _) = image.pixels.shape, image.full
    by = reduced * height // full  # 1 for a JPEG that was decoded at this scale
    pixels = image.pixels
    if by > 1:
        size = max(width // by, 1), max(height // by, 1)
        pixels = cast(Any, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)).reshape(size[1], size[0], -1)
    return measure(pixels)._replace(reduced=reduced)


def measure(pixels: Pixels) -> Appearance:
    """Measure a picture (H, W, c), uint8 or uint16, c 1 or 3 (RGB)."""
    height, width, channels = pixels.shape
    top, reduced = int(np.iinfo(pixels.dtype).max), cast(Any, pixels)
    by = math.ceil(max(height, width) / SIDE)
    if by > 1:  # an integer factor is several times faster
        size = max(width // by, 1), max(height // by, 1)
        reduced = cv2.resize(pixels[: size[1] * by, : size[0] * by], size, interpolation=cv2.INTER_AREA)
    gray: Any = reduced if channels == 1 else cv2.cvtColor(reduced, cv2.COLOR_RGB2GRAY)
    gray = gray.reshape(gray.shape[:2])
    mean, contrast = (float(value[0, 0]) for value in cv2.meanStdDev(gray))
    small = gray.astype(np.float32)
    sharpness = cv2.norm(cv2.Laplacian(small, cv2.CV_32F), cv2.NORM_L1) / small.size
    balance, tint = _colours(reduced, DARKEST * top) if channels == 3 else (0.0, 0.0)
    square: Any = cv2.resize(small, (128, 128), interpolation=cv2.INTER_AREA)
    return Appearance(
        mean=mean,
        contrast=contrast,
        sharpness=float(sharpness),
        saturated=cv2.countNonZero(cv2.inRange(gray, math.ceil(0.98 * top), top)) / gray.size,
        dark=cv2.countNonZero(cv2.inRange(gray, 0, math.floor(0.02 * top))) / gray.size,
        balance=balance,
        tint=tint,
        bands=_bands(square, max(contrast, DARKEST * top)),
        thumbnail=_thumbnail(square, DARKEST * top),
        top=top,
    )


def _colours(pixels: Pixels, least: float) -> tuple[float, float]:
    """Measure balance and tint of (H, W, 3). Their signs change when red and blue are exchanged."""
    small = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float64)
    difference = (small[:, :, 0] - small[:, :, 2]) / max(float(small.mean()), least)
    return float(difference.mean()), float(np.cbrt((difference * difference * difference).mean()))


def _bands(square: Any, contrast: float) -> tuple[float, ...]:
    """Measure the octaves of a Laplacian pyramid of (128, 128)."""
    bands = []
    for _ in range(BANDS):
        coarser = cv2.pyrDown(square)
        _, deviation = cv2.meanStdDev(square - cv2.pyrUp(coarser, dstsize=square.shape[::-1]))
        bands.append(math.log2(float(deviation[0, 0]) / contrast + DARKEST))
        square = coarser
    return tuple(bands)


def _thumbnail(square: Any, least: float) -> tuple[float, ...]:
    values = cv2.resize(square, (SCENE, SCENE), interpolation=cv2.INTER_AREA).ravel().astype(np.float64)
    values -= values.mean()
    length = float(np.linalg.norm(values))
    return tuple((values / length).tolist()) if length > least * SCENE else (0.0,) * SCENE**2


class Range(BaseModel):
    """The range of one statistic among good pictures, and the limits of usual values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float  # minimum among good pictures
    high: float  # maximum among good pictures
    least: float  # lower limit
    most: float  # upper limit
    tails: tuple[float, float]  # 5 % and 95 % quantiles of good pictures

    @classmethod
    def of(cls, values: Sequence[float], floor: float, zero: float | None = None) -> "Range":
        """Compute range and limits from the values (n,) of good pictures; `floor` is the minimum margin.

        With `zero`, margin and floor are in units of log2(value + zero).
        """
        array = np.asarray(values, np.float64)
        scaled = array if zero is None else np.log2(array + zero)
        n, low, high = len(array), float(scaled.min()), float(scaled.max())
        tail = (high - low) / (2 * math.log(n + 1)) * math.log(1 / (RARE * (n + 1)))
        margin = max(tail, 0.0) + floor * (1 + 20 / n)
        least, most = (low - margin, high + margin)
        if zero is not None:
            least, most = 2**least - zero, 2**most - zero
        tails = (float(np.quantile(array, 0.05)), float(np.quantile(array, 0.95)))
        return cls(low=float(array.min()), high=float(array.max()), least=least, most=most, tails=tails)

    def side(self, value: float) -> int:
        """−1 below the lower limit, 1 above the upper limit, otherwise 0."""
        return int(value > self.most) - int(value < self.least)

    def is_typical(self, value: float) -> bool:
        """Whether a value is within the range of good pictures, widened by a quarter of its width on each side."""
        margin = (self.high - self.low) / 4
        return self.low - margin <= value <= self.high + margin


class GoodAppearance(BaseModel):
    """The distribution of the statistics of good pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pictures: int
    top: int
    reduced: int = 1  # scale at which pictures are measured; 1, as in older bundles: as they arrive
    mean: Range
    contrast: Range
    sharpness: Range
    saturated: Range
    dark: Range
    balance: Range
    tint: Range
    structure: tuple[float, ...]  # (d,) mean of light, contrast, sharpness and bands, see `_structure`
    whiten: tuple[tuple[float, ...], ...]  # (d, d), whitening matrix of the structure
    distance: Range  # Mahalanobis distance of a picture's structure from the mean
    scene: tuple[float, ...]  # (SCENE²,) mean thumbnail
    variations: tuple[tuple[float, ...], ...]  # (k, SCENE²) principal components of the thumbnails, of unit length
    unexplained: Range  # share of a thumbnail's energy that mean and principal components do not explain

    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a scale of 1, so that the digests of older bundles stay."""
        values: dict[str, Any] = dump(self)
        return values if self.reduced > 1 else {key: value for key, value in values.items() if key != "reduced"}

    @classmethod
    def of(cls, appearances: Sequence[Appearance]) -> "GoodAppearance":
        """Fit to the statistics of good pictures of one depth, at least one."""
        if not appearances:
            raise ValueError("no pictures; expected at least one good picture")
        zero = DARKEST * appearances[0].top
        thumbnails = np.array([a.thumbnail for a in appearances])
        structures = np.array([_structure(a) for a in appearances])
        # Cross-validation: the values of each fold come from mean, components and covariance of the other folds. Folds
        # are contiguous, because neighbouring pictures often show the same part.
        n = len(appearances)
        index = np.arange(n) * min(FOLDS, n) // n
        folds = [(index == fold, index != fold) for fold in range(min(FOLDS, n))] if n > 1 else []
        unexplained = [v for own, rest in folds for v in _unexplained(thumbnails[own], *_components(thumbnails[rest]))]
        distances = [v for own, rest in folds for v in _distance(structures[own], *_whitening(structures[rest]))]
        scene, variations = _components(thumbnails)
        structure, whiten = _whitening(structures)
        return cls(
            pictures=n,
            top=appearances[0].top,
            reduced=appearances[0].reduced,
            mean=Range.of([a.mean for a in appearances], 0.03, zero),
            contrast=Range.of([a.contrast for a in appearances], 0.1, zero),
            sharpness=Range.of([a.sharpness for a in appearances], 0.15, zero),
            saturated=Range.of([a.saturated for a in appearances], 0.02),
            dark=Range.of([a.dark for a in appearances], 0.02),
            balance=Range.of([a.balance for a in appearances], 0.005),
            tint=Range.of([a.tint for a in appearances], 0.01),
            structure=_rounded(structure),
            whiten=tuple(_rounded(row) for row in whiten),
            distance=Range.of(distances or [math.sqrt(len(structure))], 1.0),
            scene=_rounded(scene),
            variations=tuple(_rounded(row) for row in variations),
            unexplained=Range.of(unexplained or [1.0], 0.05),
        )

    def look(self, image: Image) -> Appearance:
        """Measure a picture at the scale of the good pictures."""
        return look(image, self.reduced)

    def oddities(self, appearance: Appearance) -> list[str]:
        """Describe the differences of a picture from good pictures; empty for almost every good picture."""
        a, differences = appearance, []
        if a.top != self.top:
            return [f"the picture's full scale is {a.top}; that of good pictures is {self.top}"]
        light = self.mean.side(a.mean)
        gray = f"(mean gray {_level(a.mean)}; good pictures {_levels(self.mean)})"
        flat = a.contrast < FLAT * self.contrast.low
        if flat and light and not EXTREME < a.mean / a.top < 1 - EXTREME:
            return [f"the picture is {'black' if light < 0 else 'white'} {gray}"]
        if flat:
            return [
                f"the picture is almost uniform (contrast {_level(a.contrast)}; good pictures {_levels(self.contrast)})"
            ]
        if light:
            differences.append(f"the picture is {'darker' if light < 0 else 'brighter'} than good pictures {gray}")
        if self.saturated.side(a.saturated) > 0:
            differences.append(
                f"the picture is saturated ({a.saturated:.0%} of its pixels at full scale; "
                f"good pictures {self.saturated.low:.0%} to {self.saturated.high:.0%})"
            )
        if self.dark.side(a.dark) > 0 and light >= 0:
            differences.append(
                f"much of the picture is black ({a.dark:.0%} of its pixels; "
                f"good pictures {self.dark.low:.0%} to {self.dark.high:.0%})"
            )
        if contrast := self.contrast.side(a.contrast):
            differences.append(
                f"the picture's contrast is {'low' if contrast < 0 else 'high'} "
                f"({_level(a.contrast)}; good pictures {_levels(self.contrast)})"
            )
        if focus := self.sharpness.side(a.sharpness):
            differences.append(
                f"the picture is {'blurred' if focus < 0 else 'sharper or noisier than good pictures'} "
                f"(sharpness {_level(a.sharpness)}; good pictures {_levels(self.sharpness)})"
            )
        if self.balance.side(a.balance) or self.tint.side(a.tint):
            exchanged = self.balance.is_typical(-a.balance) and self.tint.is_typical(-a.tint)
            what = (
                "blue and red seem to be exchanged" if exchanged else "the colours differ from those of good pictures"
            )
            value, good = (a.balance, self.balance) if self.balance.side(a.balance) else (a.tint, self.tint)
            differences.append(
                f"{what} (red minus blue {value:+.1%}; good pictures {good.low:+.1%} to {good.high:+.1%})"
            )
        layout = float(_unexplained(np.array([a.thumbnail]), np.array(self.scene), np.array(self.variations))[0])
        structure = float(_distance(np.array([_structure(a)]), np.array(self.structure), np.array(self.whiten))[0])
        if self.unexplained.side(layout) > 0:
            differences.append(
                f"the picture may show another scene ({min(layout, 1):.0%} of its layout differs from good pictures; "
                f"good pictures at most {self.unexplained.high:.0%})"
            )
        elif not differences and self.distance.side(structure) > 0:
            differences.append(
                f"the picture may show another scene (light, contrast and structure {structure:.1f} standard "
                f"deviations from good pictures; good pictures at most {self.distance.high:.1f})"
            )
        return differences

    def shifts(self, appearances: Sequence[Appearance]) -> list[str]:
        """Describe the differences of a set of pictures from good pictures, which single pictures may not show.

        A statistic has shifted when its median is outside the 5 % to 95 % quantiles of good pictures. For ten or more
        pictures from the same distribution, the probability is less than 0.0001. Fewer than ten have no shifts.
        """
        differences = []
        if len(appearances) >= ENOUGH:
            for name, good, low, high in (
                ("mean gray", self.mean, "darker", "brighter"),
                ("contrast", self.contrast, "of lower contrast", "of higher contrast"),
                ("sharpness", self.sharpness, "less sharp", "sharper or noisier"),
            ):
                values = [getattr(a, name.removesuffix(" gray")) for a in appearances]
                median = float(np.median(values))
                if not good.tails[0] <= median <= good.tails[1]:
                    word = low if median < good.tails[0] else high
                    differences.append(
                        f"the {len(appearances)} pictures are {word} than good pictures ({name} {_level(min(values))} "
                        f"to {_level(max(values))}, median {_level(median)}; 90 % of good pictures "
                        f"{_level(good.tails[0])} to {_level(good.tails[1])})"
                    )
        return differences


def _structure(a: Appearance) -> tuple[float, ...]:
    """Return log2 of light, contrast and sharpness, and the bands."""
    least = DARKEST * a.top
    return (*(math.log2(value + least) for value in (a.mean, a.contrast, a.sharpness)), *a.bands)


def _whitening(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows (n, d) → their mean (d,) and whitening matrix (d, d). For few rows, the covariance is regularised."""
    mean = rows.mean(axis=0)
    n, d = rows.shape
    covariance = (rows - mean).T @ (rows - mean) / n
    share = d / (n + d)
    covariance = (1 - share) * covariance + share * np.diag(np.diag(covariance)) + LEAST_DEVIATION**2 * np.eye(d)
    values, vectors = np.linalg.eigh(covariance)
    return mean, vectors / np.sqrt(values)


def _distance(rows: NDArray[np.float64], mean: NDArray[np.float64], whiten: NDArray[np.float64]) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = np.linalg.norm((rows - mean) @ whiten, axis=1)
    return distances


def _components(thumbnails: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Thumbnails (n, d) → their mean (d,) and principal components (k, d), at most one for every four pictures."""
    mean = thumbnails.mean(axis=0)
    count = min(PARTS, len(thumbnails) // 4)
    return mean, np.linalg.svd(thumbnails - mean, full_matrices=False)[2][:count]


def _unexplained(
    thumbnails: NDArray[np.float64], mean: NDArray[np.float64], variations: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Thumbnails (n, d) → the share (n,) of their energy that mean and components (k, d) do not explain."""
    rest = thumbnails - mean
    if len(variations):
        rest = rest - rest @ variations.T @ variations
    share: NDArray[np.float64] = (rest**2).sum(axis=1)  # thumbnails are of unit length
    return share


def _rounded(row: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.round(row, 4).tolist())


def _level(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _levels(good: Range) -> str:
    return f"{_level(good.low)} to {_level(good.high)}"

"""Registration: the pose of the part in a picture relative to a reference picture.

The method works from coarse to fine, on gray values with normalised local contrast. So illumination has little effect,
and an occlusion counts by its area only.

1. Search: pictures with `SEARCH` pixels on the longer side. Correlation by Fourier transform over all shifts, for all
   rotations of the reference in steps of `STEP` degrees (and all `SCALES`, if the scale is free).
2. Choose: the best poses, each refined at `CHOOSE` pixels. If two are equally good, the one with less rotation.
3. Refine: enhanced correlation coefficient (Evangelidis and Psarakis, PAMI 2008; from OpenCV) at `REFINE` pixels, over
   the area where the two pictures correlate locally, so that defects and occlusions have no effect.

The *quality* is the correlation of the two pictures after refinement. Structure of the reference that is outside the
picture counts as zero correlation.
"""

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from andon.errors import ImageError, out_of_memory
from andon.inspection import Array, Pixels, Registration
from andon.pictures import image
from andon.pictures.image import Image

Matrix = NDArray[np.float64]  # (2, 3): a point (x, y, 1) of the reference → its position (x, y) in the picture
Flags = NDArray[np.uint8]  # 1 where a pixel of the reference's frame is inside the picture, else 0

SEARCH, CHOOSE, REFINE = 80, 128, 384  # pixels: longer side of the reference in the three stages
STEP = 5.0  # degrees
SCALES = (1.0, 0.93, 1.07, 0.87, 1.15, 0.81, 1.23)  # if the scale is free
KEEP, RATIO = 4, 0.7  # poses that are refined: at most this number, with at least this ratio to the best correlation
UPRIGHT = 0.02  # quality that a half turn must gain
LOCAL = 0.15  # window of the contrast normalisation, relative to the longer side
AGREE, AREA = 0.5, 0.1  # smallest local correlation for the refinement; its window, relative to the longer side
FEATURE = 2.5  # largest value of the normalised gray
GOOD = 0.9  # quality from which on there is no occlusion
LEAST = 0.3  # default of the least quality: other parts and empty pictures are below
TOLERANCE = 1.02, 1.0  # of the largest shift (a factor) and of the largest rotation (degrees)
LARGEST = 32_000  # pixels: largest side that OpenCV can warp
NARROWEST = 4  # pixels: smallest side in the search
SPECTRA = 4  # number of picture sizes whose spectra are cached, about 10 MB each


class Register(BaseModel):
    """Registration of parts to a reference image, before all other steps. Off if the section is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reference: str = ""
    """Path of an image, relative to the recipe; default: the good image that is most similar to all others."""
    max_rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    """Degrees, in both directions."""
    max_shift: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    """Of the centre, relative to the longer side."""
    scale: bool = False
    """Allow the size of the part in the picture to vary by up to a fifth."""
    least_quality: Annotated[float, Field(ge=0, le=1)] | None = None
    """With a lower quality, the part is not found. Default: computed from the good images."""


class NotFound(ImageError):
    """The part is not in the picture, or its pose is outside the limits."""

    def __init__(self, reason: str, registration: Registration) -> None:
        """Store the best pose."""
        super().__init__(reason)
        self.registration = registration

    def __reduce__(self) -> tuple[type["NotFound"], tuple[str, Registration]]:
        """Make the exception picklable."""
        return type(self), (str(self), self.registration)


class _Match(NamedTuple):
    """The picture, warped into the frame of the reference by one pose, at one resolution."""

    matrix: Matrix  # at that resolution
    warped: Array
    inside: Flags
    quality: float


class Reference:
    """A picture of the part, to which other pictures are registered."""

    def __init__(self, data: bytes, settings: Register, name: str, digest: str = "") -> None:
        """Prepare an encoded picture; `digest`: SHA-256 of its file.

        ImageError when the picture cannot be read, or has no structure.
        """
        self.data, self.settings, self.name, self.digest = data, settings, name, digest
        picture = image.read(data, name)
        self.input, self._pixels = image.describe(picture), picture.pixels
        pixels = picture.pixels
        self.frame: tuple[int, int] = pixels.shape[:2]  # H, W
        self.channels: int = pixels.shape[2]
        self._side = max(self.frame)
        self._weights = _weights(pixels)
        gray, k = self._gray(pixels, name)
        self._levels = {side: _normalize(gray, side / self._side / k) for side in (CHOOSE, REFINE)}
        feature = _normalize(gray, SEARCH / self._side / k)
        window = np.outer(_taper(feature.shape[0]), _taper(feature.shape[1]))
        self._template = ((feature - (feature * window).sum() / window.sum()) * window).astype(np.float32)
        if float(np.abs(self._template).max()) < 1e-3:
            raise ImageError(f"{name}: the reference is uniform; expected a picture of the part. Use another picture.")
        self._spectra = lru_cache(maxsize=SPECTRA)(self._templates)

    def __reduce__(self) -> tuple[type["Reference"], tuple[bytes, Register, str]]:
        """Make the reference picklable."""
        return type(self), (self.data, self.settings, self.name)

    @classmethod
    def of(cls, picture: Image, settings: Register) -> "Reference":
        """Create a reference from a picture. ImageError as the constructor."""
        return cls(image.png(picture.pixels), settings, picture.name, picture.digest)

    def find(self, pixels: Pixels, name: str) -> tuple[Matrix, Registration]:
        """Find the part in a picture (H, W, c): its pose as a matrix in pixels, and as figures.

        Channels that the reference does not have are ignored. Errors: NotFound; ImageError for a picture whose channels
        or size do not allow registration.
        """
        start = time.perf_counter()
        gray, k = self._gray(pixels, name)
        shape = pixels.shape[:2]
        candidates = self._search(_normalize(gray, SEARCH / self._side / k))
        best = self._choose(gray, k, [self._matrix(*pose, shape) for pose in candidates])
        matrix, quality, inside = np.eye(2, 3), 0.0, 0.0
        if best is not None:
            matrix, quality, inside = best
        angle, scale = _rotation(matrix)
        shift = matrix @ (*_centre(self.frame), 1) - _centre(shape)
        pose = Registration(
            quality=quality,
            angle=angle,
            shift=(float(shift[0]), float(shift[1])),
            scale=scale,
            seen=inside,
            milliseconds=1000 * (time.perf_counter() - start),
        )
        limits = self.settings
        least = LEAST if limits.least_quality is None else limits.least_quality
        if not quality >= least:
            raise NotFound(
                f"{name}: the part was not found: the best match with the reference has quality {quality:.2f}, "
                f"rotation {angle:.1f}° and shift {shift[0]:.0f}, {shift[1]:.0f} pixels; expected quality {least:.2f} "
                f"within {limits.max_rotation:g}° and {limits.max_shift * self._side:.0f} pixels. Look at the picture; "
                "if it shows the part, increase the limits in geometry.registration and retrain.",
                pose,
            )
        return matrix, pose

    def warp(self, pixels: Pixels, matrix: Matrix) -> tuple[Pixels, NDArray[np.bool_]]:
        """Warp a picture (H, W, c) into the frame of the reference; also return which pixels are inside the picture.

        Pixels outside are copied from the reference, because repeated border pixels could look like a defect; channels
        that the reference does not have are 0 there.
        """
        size, flags = (self.frame[1], self.frame[0]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped: NDArray[Any] = cv2.warpAffine(pixels, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        warped = warped.reshape(*self.frame, -1)  # OpenCV drops a single channel
        inside = _inside(self.frame, (pixels.shape[0], pixels.shape[1]), matrix) > 0
        warped[~inside, : self.channels] = self._pixels[~inside]
        warped[~inside, self.channels :] = 0
        return warped, inside

    def _gray(self, pixels: Pixels, name: str) -> tuple[Array, float]:
        """Reduce a picture to the resolution of the last stage, and convert it to gray along the main colour axis.

        Returns the gray values (h, w) and the scale factor.
        """
        height, width, channels = pixels.shape
        if channels < self.channels:
            raise ImageError(f"{name}: a gray picture; the reference {self.name} is in colour. Use colour pictures.")
        if max(height, width) > min(LARGEST, 4 * self._side) or min(height, width) * SEARCH / self._side < NARROWEST:
            raise ImageError(
                f"{name}: {width} × {height} pixels cannot be registered to a reference of {self.frame[1]} × "
                f"{self.frame[0]}. Use pictures of similar size and aspect ratio, or no registration."
            )
        k = min(1.0, REFINE / self._side)
        small = np.asarray(pixels[..., : self.channels])
        if k < 1:
            small = np.asarray(cv2.resize(small, None, fx=k, fy=k, interpolation=cv2.INTER_AREA))
        small = small.reshape(*small.shape[:2], -1).astype(np.float32)
        return np.ascontiguousarray(small @ self._weights), k

    def _search(self, feature: Array) -> list[tuple[float, float, NDArray[np.float64]]]:
        """Return the poses (degrees, scale, shift of the centre in pixels) with the highest correlation, best first."""
        h, w = feature.shape
        reach, n, left, top = self._field(h, w)
        field = np.zeros((n, n), np.float32)
        field[top : top + h, left : left + w] = feature * np.outer(_taper(h), _taper(w))
        if not field.any():
            return []
        spectrum = cv2.dft(field)
        poses = []
        for angle, scale, template in self._spectra(h, w):
            surface = cv2.idft(cv2.mulSpectrums(spectrum, template, 0, conjB=True), flags=cv2.DFT_SCALE)
            _, highest, _, at = cv2.minMaxLoc(np.ascontiguousarray(surface[: 2 * reach + 1, : 2 * reach + 1]))
            shift = (np.array(at, np.float64) - reach) * self._side / SEARCH
            poses.append((highest, angle, scale, shift))
        poses.sort(key=lambda pose: -pose[0])
        best: list[tuple[float, float, NDArray[np.float64]]] = []
        for highest, angle, scale, shift in poses:
            if len(best) == KEEP or highest < RATIO * poses[0][0]:
                break
            if all(abs((angle - other + 180) % 360 - 180) > 2 * STEP for other, _, _ in best):
                best.append((angle, scale, shift))
        return best

    def _field(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Return the largest shift, the side n of the search field, and the position of a picture (h, w) in it."""
        reach = math.ceil(self.settings.max_shift * SEARCH)
        n = 1 << (max(h, w) + 2 * reach - 1).bit_length()
        left, top = (round(n / 2 + reach - (length - 1) / 2) for length in (w, h))
        return reach, n, left, top

    def _templates(self, h: int, w: int) -> list[tuple[float, float, Array]]:
        """Return degrees, scale and spectrum (n, n) of the reference in all poses, for pictures (h, w)."""
        reach, n, left, top = self._field(h, w)
        place = np.array([left + (w - 1) / 2 - reach, top + (h - 1) / 2 - reach])
        limit = self.settings.max_rotation
        templates = []
        for angle in np.linspace(-limit, limit, 2 * math.ceil(limit / STEP) + 1).tolist():
            for scale in SCALES if self.settings.scale else SCALES[:1]:
                matrix = _similarity(angle, scale, self._template.shape, place)
                posed: Any = cv2.warpAffine(self._template, matrix, (n, n))
                spectrum: Any = cv2.dft(posed / max(float(np.linalg.norm(posed)), 1e-6))
                templates.append((angle, scale, spectrum))
        return templates

    def _matrix(self, angle: float, scale: float, shift: NDArray[np.float64], shape: tuple[int, int]) -> Matrix:
        return _similarity(angle, scale, self.frame, _centre(shape) + shift)

    def _choose(self, gray: Array, k: float, poses: Sequence[Matrix]) -> tuple[Matrix, float, float] | None:
        """Refine poses; return the matrix of the best one, its quality, and the share of the frame in the picture."""
        if not poses:
            return None
        factor = min(k, CHOOSE / self._side)
        reference, feature = self._levels[CHOOSE], _normalize(gray, factor / k)
        matches = [_match(reference, feature, _rescale(pose, factor)) for pose in poses]
        matches = [self._step(reference, feature, match, 8, 1e-3) for match in matches]
        best = max(matches, key=lambda match: match.quality - UPRIGHT * abs(_rotation(match.matrix)[0]) / 180)
        for _ in range(2 if best.quality < GOOD else 0):
            best = self._step(reference, feature, best, 8, 1e-4, agreeing=True)
        reference, feature = self._levels[REFINE], _normalize(gray, 1.0)
        best = _match(reference, feature, _rescale(_rescale(best.matrix, 1 / factor), k))
        best = self._step(reference, feature, best, 10, 1e-5, agreeing=True)
        return _rescale(best.matrix, 1 / k), best.quality, float(best.inside.mean())

    def _step(
        self, reference: Array, feature: Array, match: _Match, rounds: int, least: float, agreeing: bool = False
    ) -> _Match:
        """Refine a pose by ECC, until a round gains less than `least`; return the old pose if that gives no better one.

        The picture is warped into the reference's frame first, because OpenCV does not support rotations above 90°.
        agreeing: use only the area where both pictures correlate locally.
        """
        area = match.inside & _agreement(reference, match) if agreeing else match.inside
        start = np.eye(2, 3, dtype=np.float32)
        if self.settings.scale:
            motion = cv2.MOTION_AFFINE
        else:
            motion = cv2.MOTION_EUCLIDEAN if self.settings.max_rotation else cv2.MOTION_TRANSLATION
        ends = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, rounds, least)
        try:
            _, change = cv2.findTransformECC(reference, match.warped, start, motion, ends, area, 3)
        except cv2.error as error:  # no convergence: the pictures differ, or their overlap is too small
            if out_of_memory(error):
                raise
            return match
        refined = _compose(match.matrix, np.asarray(change, np.float64))
        if self.settings.scale:  # keep rotation and scale of the affine change
            angle, scale = _rotation(refined)
            centre = refined @ (*_centre(reference.shape), 1)
            scale = min(max(scale, SCALES[-2] - 0.02), SCALES[-1] + 0.02)
            refined = _similarity(angle, scale, reference.shape, centre)
        if not self._within_limits(refined, reference, feature):
            return match
        other = _match(reference, feature, refined)
        return other if agreeing or other.quality >= match.quality else match

    def _within_limits(self, matrix: Matrix, reference: Array, feature: Array) -> bool:
        """Whether a pose is within the largest shift and rotation. Without a limit, the pose of a round part drifts."""
        if not np.isfinite(matrix).all():
            return False
        shift = np.abs(matrix @ (*_centre(reference.shape), 1) - _centre(feature.shape)).max()
        far = shift > max(1.0, TOLERANCE[0] * self.settings.max_shift * max(reference.shape))
        return not far and abs(_rotation(matrix)[0]) <= self.settings.max_rotation + TOLERANCE[1]


def _weights(pixels: Pixels) -> Array:
    """Return the first principal component (c,) of a picture's colours."""
    channels = pixels.shape[2]
    if channels == 1:
        return np.ones(1, np.float32)
    step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // 65_536))
    colours = pixels[::step, ::step].reshape(-1, channels).astype(np.float64)
    axis = np.linalg.eigh(np.cov(colours.T))[1][:, -1]
    return np.asarray(axis, np.float32)


def _normalize(gray: Array, factor: float) -> Array:
    """Scale gray values (h, w) by a factor up to 1 and normalise their local contrast to about ±1, at most ±FEATURE.

    Where the contrast is below the average of the picture, it stays low, so that noise is not amplified.
    """
    if factor < 1:
        gray = np.asarray(cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.float32)
    gray = np.asarray(cv2.GaussianBlur(gray, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE), np.float32)
    window = 2 * max(2, round(LOCAL / 2 * max(gray.shape))) + 1
    above = gray - _mean(gray, window)
    spread = np.sqrt(np.maximum(_mean(above * above, window), 0))
    floor = max(float(spread.mean()), 1e-4 * max(float(np.abs(gray).max()), 1.0))  # above rounding errors
    return np.asarray(np.clip(above / (spread + floor), -FEATURE, FEATURE), np.float32)


def _mean(values: Array, window: int) -> Array:
    """Local means by two box filters, because a single one has strong side lobes."""
    half = (window // 2) | 1
    once = cv2.blur(values, (half, half), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.blur(once, (half, half), borderType=cv2.BORDER_REPLICATE), np.float32)


def _match(reference: Array, feature: Array, matrix: Matrix) -> _Match:
    """Warp a picture into the frame of the reference and compute the correlation."""
    size = (reference.shape[1], reference.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = np.asarray(cv2.warpAffine(feature, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.float32)
    inside = _inside((reference.shape[0], reference.shape[1]), (feature.shape[0], feature.shape[1]), matrix)
    where = inside > 0
    if np.count_nonzero(where) < NARROWEST**2:
        return _Match(matrix, warped, inside, 0.0)
    a, b = reference - reference[where].mean(), (warped - warped[where].mean())[where]
    both = float((a * a).sum()) * float((b * b).sum())
    quality = float((a[where] * b).sum()) / math.sqrt(both) if both > 0 else 0.0
    return _Match(matrix, warped, inside, quality)


def _inside(frame: tuple[int, int], picture: tuple[int, int], matrix: Matrix) -> Flags:
    """Return (h, w): 1 where a pixel of a frame (h, w) is inside a picture (H, W); matrix: from frame to picture."""
    ones = np.ones(picture, np.uint8)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(ones, matrix, (frame[1], frame[0]), flags=flags), np.uint8)


def _agreement(reference: Array, match: _Match) -> Flags:
    """Return (h, w): 1 where a picture correlates with the reference locally."""
    window = 2 * max(2, round(AREA * max(reference.shape))) + 1
    both, first, second = (
        _mean(product, window)
        for product in (reference * match.warped, reference * reference, match.warped * match.warped)
    )
    return np.asarray(both > AGREE * np.sqrt(np.maximum(first * second, 0)) + 1e-6, np.uint8)


def _taper(length: int) -> Array:
    """Weights (length,) that decrease to zero over the outer tenth at each end."""
    ramp = (np.arange(length, dtype=np.float32) + 0.5) / (0.1 * length)
    return np.asarray(np.minimum(1, np.minimum(ramp, ramp[::-1])), np.float32)


def _centre(shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the centre (x, y) of a frame (h, w)."""
    return np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])


def _similarity(angle: float, scale: float, frame: Sequence[int], place: NDArray[np.float64]) -> Matrix:
    """Return the similarity: clockwise rotation in degrees, scale, and the centre of a frame (h, w) → place (x, y)."""
    cosine, sine = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    linear = np.array([[cosine, -sine], [sine, cosine]])
    return np.hstack([linear, (place - linear @ _centre(frame))[:, None]])


def _rotation(matrix: Matrix) -> tuple[float, float]:
    """Return rotation in degrees and scale of a matrix."""
    angle = math.degrees(math.atan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))
    return angle, math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))


def _rescale(matrix: Matrix, factor: float) -> Matrix:
    """Return the same pose for pictures scaled by a factor; coordinates are those of the centres of pixels."""
    shift = (factor - 1) / 2
    rescaled = matrix.copy()
    rescaled[:, 2] = factor * matrix[:, 2] + shift - matrix[:, :2] @ (shift, shift)
    return rescaled


def _compose(outer: Matrix, inner: Matrix) -> Matrix:
    """Return the composition: first `inner`, then `outer`."""
    last = [0.0, 0.0, 1.0]
    return np.asarray((np.vstack([outer, last]) @ np.vstack([inner, last]))[:2])

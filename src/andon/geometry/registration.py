"""Where the part lies in a picture: its pose against a reference picture, so that every part is seen in one place.

Coarse to fine, on gray whose local contrast is evened out, so that light and low texture matter little and a patch that
hides a part of the part is worth no more than its area:

1. Search: pictures whose longer side has `SEARCH` pixels. Correlation by Fourier transform over every shift, for the
   reference turned by every angle in steps of `STEP` degrees (and scaled, if asked): no pose is out of reach.
2. Choose: the best few poses, each refined, at `CHOOSE` pixels. Of equally good ones the less turned is taken.
3. Refine: enhanced correlation coefficient (Evangelidis and Psarakis, PAMI 2008; OpenCV's) at `REFINE` pixels, over the
   area where the two pictures agree locally, so that defects and hidden parts do not pull.

The *quality* is the correlation of the two after that, over what of the reference's frame lies in the picture; what of
its structure does not counts as zero.
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

Matrix = NDArray[np.float64]  # (2, 3): a point (x, y, 1) of the reference → its place (x, y) in the picture
Seen = NDArray[np.uint8]  # 1 where a pixel of the reference's frame lies in the picture

SEARCH, CHOOSE, REFINE = 80, 128, 384  # pixels, the longer side of the reference at the three stages
STEP = 5.0  # degrees
SCALES = (1.0, 0.93, 1.07, 0.87, 1.15, 0.81, 1.23)  # where the scale is free
KEEP, RATIO = 4, 0.7  # so many poses are looked at closer, if they reach this part of the best one's correlation
UPRIGHT = 0.02  # of quality that a half turn must gain
LOCAL = 0.15  # of the longer side: the window in which contrast is evened out
AGREE, AREA = 0.5, 0.1  # local correlation from which two pictures agree, and its window as a part of the longer side
FEATURE = 2.5  # the largest value of the evened-out gray
GOOD = 0.9  # quality from which nothing can be hidden
LEAST = 0.3  # quality: what other parts and empty pictures reach stays below
SLACK = 1.02, 1.0  # by how much a pose may exceed the largest shift (times), the largest rotation (degrees)
LARGEST = 32_000  # pixels a side that OpenCV can warp
NARROWEST = 4  # pixels of the shorter side while searching
SPECTRA = 4  # sizes of pictures whose spectra are kept, about 10 MB each


class Register(BaseModel):
    """Register parts to a reference image before anything else. Off unless the section is there."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reference: str = ""  # an image, relative to the recipe; empty: the good image that is most like all others
    max_rotation: Annotated[float, Field(ge=0, le=180)] = 180.0  # degrees either way
    max_shift: Annotated[float, Field(ge=0, le=0.5)] = 0.25  # of the middle, as a part of the longer side
    scale: bool = False  # the part's size in pixels may vary too, by up to a fifth
    least_quality: Annotated[float, Field(ge=0, le=1)] | None = None  # below, the part was not found; None: as learnt


class NotFound(ImageError):
    """The part is not in the picture, or not where and as it may be."""

    def __init__(self, reason: str, registration: Registration) -> None:
        """Keep the best pose there was."""
        super().__init__(reason)
        self.registration = registration

    def __reduce__(self) -> tuple[type["NotFound"], tuple[str, Registration]]:
        """Survive the way back from another process."""
        return type(self), (str(self), self.registration)


class _Match(NamedTuple):
    """The picture, brought into the frame of the reference by one pose, at one resolution."""

    matrix: Matrix  # at that resolution
    warped: Array
    seen: Seen
    quality: float


class Reference:
    """A picture of the part that others are registered to."""

    def __init__(self, data: bytes, settings: Register, name: str, digest: str = "") -> None:
        """Prepare an encoded picture, made of the file with that digest.

        ImageError when it cannot be read, or shows nothing to hold on to.
        """
        self.data, self.settings, self.name, self.digest = data, settings, name, digest
        picture = image.read(data, name)
        self.input, self._pixels = image.described(picture), picture.pixels
        pixels = picture.pixels
        self.frame: tuple[int, int] = pixels.shape[:2]  # H, W
        self.channels: int = pixels.shape[2]
        self._side = max(self.frame)
        self._weights = _weights(pixels)
        gray, k = self._gray(pixels, name)
        self._levels = {side: _even(gray, side / self._side / k) for side in (CHOOSE, REFINE)}
        feature = _even(gray, SEARCH / self._side / k)
        window = np.outer(_taper(feature.shape[0]), _taper(feature.shape[1]))
        self._template = ((feature - (feature * window).sum() / window.sum()) * window).astype(np.float32)
        if float(np.abs(self._template).max()) < 1e-3:
            raise ImageError(f"{name}: the reference is flat; expected a picture of the part. Name another.")
        self._spectra = lru_cache(maxsize=SPECTRA)(self._templates)

    def __reduce__(self) -> tuple[type["Reference"], tuple[bytes, Register, str]]:
        """Go to another process as what it is made of."""
        return type(self), (self.data, self.settings, self.name)

    @classmethod
    def of(cls, picture: Image, settings: Register) -> "Reference":
        """Make a reference of a picture that was read. ImageError as the constructor."""
        return cls(image.png(picture.pixels), settings, picture.name, picture.digest)

    def find(self, pixels: Pixels, name: str) -> tuple[Matrix, Registration]:
        """Find the part in a picture (H, W, c): its pose as a matrix for whole pixels, and as figures.

        Channels beyond the reference's are not looked at. Errors: NotFound; ImageError for a picture of a kind or size
        that cannot be registered.
        """
        began = time.perf_counter()
        gray, k = self._gray(pixels, name)
        shape = pixels.shape[:2]
        candidates = self._search(_even(gray, SEARCH / self._side / k))
        found = self._choose(gray, k, [self._matrix(*pose, shape) for pose in candidates])
        matrix, quality, seen = np.eye(2, 3), 0.0, 0.0
        if found is not None:
            matrix, quality, seen = found
        turn, scale = _turn(matrix)
        middle = matrix @ (*_middle(self.frame), 1) - _middle(shape)
        pose = Registration(
            quality=quality,
            angle=turn,
            shift=(float(middle[0]), float(middle[1])),
            scale=scale,
            seen=seen,
            milliseconds=1000 * (time.perf_counter() - began),
        )
        allowed = self.settings
        least = LEAST if allowed.least_quality is None else allowed.least_quality
        if not quality >= least:
            raise NotFound(
                f"{name}: the part was not found: the best match with the reference has quality {quality:.2f}, turned "
                f"by {turn:.1f}° and shifted by {middle[0]:.0f}, {middle[1]:.0f} pixels; expected at least "
                f"{least:.2f} within {allowed.max_rotation:g}° and {allowed.max_shift * self._side:.0f} "
                "pixels. Look at the picture; if the part is in it, widen geometry.registration and retrain.",
                pose,
            )
        return matrix, pose

    def bring(self, pixels: Pixels, matrix: Matrix) -> tuple[Pixels, NDArray[np.bool_]]:
        """Bring a picture (H, W, c) into the frame of the reference, and say which pixels of the frame it fills.

        The others are painted as in the reference, for no detector takes that for a defect, as it would streaks of a
        repeated edge; in channels beyond the reference's they are 0.
        """
        size, flags = (self.frame[1], self.frame[0]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped: NDArray[Any] = cv2.warpAffine(pixels, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        warped = warped.reshape(*self.frame, -1)  # OpenCV drops a single channel
        seen = _inside(self.frame, (pixels.shape[0], pixels.shape[1]), matrix) > 0
        warped[~seen, : self.channels] = self._pixels[~seen]
        warped[~seen, self.channels :] = 0
        return warped, seen

    def _gray(self, pixels: Pixels, name: str) -> tuple[Array, float]:
        """Shrink a picture as far as the finest stage allows, and make it gray along the reference's main colour axis.

        Returns the gray values (h, w), and by which factor they are shrunk.
        """
        height, width, channels = pixels.shape
        if channels < self.channels:
            raise ImageError(f"{name}: a gray picture; the reference {self.name} is in colour. Make them alike.")
        if max(height, width) > min(LARGEST, 4 * self._side) or min(height, width) * SEARCH / self._side < NARROWEST:
            raise ImageError(
                f"{name}: {width} × {height} pixels cannot be registered to a reference of {self.frame[1]} × "
                f"{self.frame[0]}. Use pictures of about one size, none much longer than wide, or no registration."
            )
        k = min(1.0, REFINE / self._side)
        small = np.asarray(pixels[..., : self.channels])
        if k < 1:
            small = np.asarray(cv2.resize(small, None, fx=k, fy=k, interpolation=cv2.INTER_AREA))
        small = small.reshape(*small.shape[:2], -1).astype(np.float32)
        return np.ascontiguousarray(small @ self._weights), k

    def _search(self, feature: Array) -> list[tuple[float, float, NDArray[np.float64]]]:
        """Return the poses (degrees, scale, shift of the middle in whole pixels) that correlate best, best first."""
        h, w = feature.shape
        reach, n, left, top = self._field(h, w)
        field = np.zeros((n, n), np.float32)
        field[top : top + h, left : left + w] = feature * np.outer(_taper(h), _taper(w))
        if not field.any():
            return []
        spectrum = cv2.dft(field)
        found = []
        for angle, scale, template in self._spectra(h, w):
            surface = cv2.idft(cv2.mulSpectrums(spectrum, template, 0, conjB=True), flags=cv2.DFT_SCALE)
            _, highest, _, at = cv2.minMaxLoc(np.ascontiguousarray(surface[: 2 * reach + 1, : 2 * reach + 1]))
            shift = (np.array(at, np.float64) - reach) * self._side / SEARCH
            found.append((highest, angle, scale, shift))
        found.sort(key=lambda pose: -pose[0])
        kept: list[tuple[float, float, NDArray[np.float64]]] = []
        for highest, angle, scale, shift in found:
            if len(kept) == KEEP or highest < RATIO * found[0][0]:
                break
            if all(abs((angle - other + 180) % 360 - 180) > 2 * STEP for other, _, _ in kept):
                kept.append((angle, scale, shift))
        return kept

    def _field(self, h: int, w: int) -> tuple[int, int, int, int]:
        """Return the largest shift, the side n of the field that is searched, and where a picture (h, w) lies in it."""
        reach = math.ceil(self.settings.max_shift * SEARCH)
        n = 1 << (max(h, w) + 2 * reach - 1).bit_length()
        left, top = (round(n / 2 + reach - (length - 1) / 2) for length in (w, h))
        return reach, n, left, top

    def _templates(self, h: int, w: int) -> list[tuple[float, float, Array]]:
        """Return degrees, scale and spectrum (n, n) of the reference in every pose, for pictures (h, w)."""
        reach, n, left, top = self._field(h, w)
        place = np.array([left + (w - 1) / 2 - reach, top + (h - 1) / 2 - reach])
        limit = self.settings.max_rotation
        made = []
        for angle in np.linspace(-limit, limit, 2 * math.ceil(limit / STEP) + 1).tolist():
            for scale in SCALES if self.settings.scale else SCALES[:1]:
                posed: Any = cv2.warpAffine(self._template, _similar(angle, scale, self._template.shape, place), (n, n))
                spectrum: Any = cv2.dft(posed / max(float(np.linalg.norm(posed)), 1e-6))
                made.append((angle, scale, spectrum))
        return made

    def _matrix(self, angle: float, scale: float, shift: NDArray[np.float64], shape: tuple[int, int]) -> Matrix:
        return _similar(angle, scale, self.frame, _middle(shape) + shift)

    def _choose(self, gray: Array, k: float, poses: Sequence[Matrix]) -> tuple[Matrix, float, float] | None:
        """Refine poses; return the matrix of the best one, its quality, and the share of the frame that is seen."""
        if not poses:
            return None
        factor = min(k, CHOOSE / self._side)
        reference, feature = self._levels[CHOOSE], _even(gray, factor / k)
        matches = [_match(reference, feature, _at(pose, factor)) for pose in poses]
        matches = [self._step(reference, feature, match, 8, 1e-3) for match in matches]
        best = max(matches, key=lambda match: match.quality - UPRIGHT * abs(_turn(match.matrix)[0]) / 180)
        for _ in range(2 if best.quality < GOOD else 0):
            best = self._step(reference, feature, best, 8, 1e-4, agreeing=True)
        reference, feature = self._levels[REFINE], _even(gray, 1.0)
        best = _match(reference, feature, _at(_at(best.matrix, 1 / factor), k))
        best = self._step(reference, feature, best, 10, 1e-5, agreeing=True)
        return _at(best.matrix, 1 / k), best.quality, float(best.seen.mean())

    def _step(
        self, reference: Array, feature: Array, match: _Match, rounds: int, least: float, agreeing: bool = False
    ) -> _Match:
        """Refine a pose by ECC, until a round gains less than `least`; the old one where that fails or leads astray.

        OpenCV folds rotations beyond 90°, so the picture is brought into the reference's frame before.
        """
        seen = match.seen & _agreeing(reference, match) if agreeing else match.seen
        start = np.eye(2, 3, dtype=np.float32)
        if self.settings.scale:
            motion = cv2.MOTION_AFFINE
        else:
            motion = cv2.MOTION_EUCLIDEAN if self.settings.max_rotation else cv2.MOTION_TRANSLATION
        ends = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, rounds, least)
        try:
            _, change = cv2.findTransformECC(reference, match.warped, start, motion, ends, seen, 3)
        except cv2.error as error:  # it does not converge: nothing alike, or next to nothing seen
            if out_of_memory(error):
                raise
            return match
        moved = _compose(match.matrix, np.asarray(change, np.float64))
        if self.settings.scale:  # of the affine change, what is rotation and scale
            angle, scale = _turn(moved)
            middle = moved @ (*_middle(reference.shape), 1)
            moved = _similar(angle, min(max(scale, SCALES[-2] - 0.02), SCALES[-1] + 0.02), reference.shape, middle)
        if not self._allowed(moved, reference, feature):
            return match
        other = _match(reference, feature, moved)
        return other if agreeing or other.quality >= match.quality else match

    def _allowed(self, matrix: Matrix, reference: Array, feature: Array) -> bool:
        """Whether a pose lies within the largest shift and rotation. Without that a round part drifts ever farther."""
        if not np.isfinite(matrix).all():
            return False
        shift = np.abs(matrix @ (*_middle(reference.shape), 1) - _middle(feature.shape)).max()
        far = shift > max(1.0, SLACK[0] * self.settings.max_shift * max(reference.shape))
        return not far and abs(_turn(matrix)[0]) <= self.settings.max_rotation + SLACK[1]


def _weights(pixels: Pixels) -> Array:
    """The axis (c,) of a picture's colours along which they differ most."""
    channels = pixels.shape[2]
    if channels == 1:
        return np.ones(1, np.float32)
    step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // 65_536))
    colours = pixels[::step, ::step].reshape(-1, channels).astype(np.float64)
    axis = np.linalg.eigh(np.cov(colours.T))[1][:, -1]
    return np.asarray(axis, np.float32)


def _even(gray: Array, factor: float) -> Array:
    """Shrink gray values (h, w) by a factor below 1 and even their contrast out locally: about ±1, at most ±FEATURE.

    Where there is less contrast than on average over the picture, it stays small: noise is not blown up.
    """
    if factor < 1:
        gray = np.asarray(cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.float32)
    gray = np.asarray(cv2.GaussianBlur(gray, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE), np.float32)
    window = 2 * max(2, round(LOCAL / 2 * max(gray.shape))) + 1
    above = gray - _mean(gray, window)
    spread = np.sqrt(np.maximum(_mean(above * above, window), 0))
    floor = max(float(spread.mean()), 1e-4 * max(float(np.abs(gray).max()), 1.0))  # rounding is no structure
    return np.asarray(np.clip(above / (spread + floor), -FEATURE, FEATURE), np.float32)


def _mean(values: Array, window: int) -> Array:
    """Local means; two boxes, for one would ring."""
    half = (window // 2) | 1
    once = cv2.blur(values, (half, half), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.blur(once, (half, half), borderType=cv2.BORDER_REPLICATE), np.float32)


def _match(reference: Array, feature: Array, matrix: Matrix) -> _Match:
    """Bring a picture into the frame of the reference, and say how well they correlate."""
    size = (reference.shape[1], reference.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = np.asarray(cv2.warpAffine(feature, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.float32)
    seen = _inside((reference.shape[0], reference.shape[1]), (feature.shape[0], feature.shape[1]), matrix)
    where = seen > 0
    if np.count_nonzero(where) < NARROWEST**2:
        return _Match(matrix, warped, seen, 0.0)
    a, b = reference - reference[where].mean(), (warped - warped[where].mean())[where]
    both = float((a * a).sum()) * float((b * b).sum())
    quality = float((a[where] * b).sum()) / math.sqrt(both) if both > 0 else 0.0
    return _Match(matrix, warped, seen, quality)


def _inside(frame: tuple[int, int], picture: tuple[int, int], matrix: Matrix) -> Seen:
    """Where pixels of a frame (h, w) lie in a picture (H, W), by a matrix from the one to the other: (h, w) of 0, 1."""
    whole = np.ones(picture, np.uint8)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(whole, matrix, (frame[1], frame[0]), flags=flags), np.uint8)


def _agreeing(reference: Array, match: _Match) -> Seen:
    """Where a picture correlates with the reference locally: (h, w) of 0 and 1."""
    window = 2 * max(2, round(AREA * max(reference.shape))) + 1
    both, first, second = (
        _mean(product, window)
        for product in (reference * match.warped, reference * reference, match.warped * match.warped)
    )
    return np.asarray(both > AGREE * np.sqrt(np.maximum(first * second, 0)) + 1e-6, np.uint8)


def _taper(length: int) -> Array:
    """Weights (length,) that fall to zero over the outer tenth at each end."""
    ramp = (np.arange(length, dtype=np.float32) + 0.5) / (0.1 * length)
    return np.asarray(np.minimum(1, np.minimum(ramp, ramp[::-1])), np.float32)


def _middle(shape: Sequence[int]) -> NDArray[np.float64]:
    """The middle (x, y) of a frame (h, w)."""
    return np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])


def _similar(angle: float, scale: float, frame: Sequence[int], place: NDArray[np.float64]) -> Matrix:
    """Turn by degrees, clockwise as one sees it, scale, and put the middle of a frame (h, w) at a place (x, y)."""
    cosine, sine = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    linear = np.array([[cosine, -sine], [sine, cosine]])
    return np.hstack([linear, (place - linear @ _middle(frame))[:, None]])


def _turn(matrix: Matrix) -> tuple[float, float]:
    """The degrees and the scale of a matrix."""
    angle = math.degrees(math.atan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))
    return angle, math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))


def _at(matrix: Matrix, factor: float) -> Matrix:
    """The same pose in pictures shrunk by a factor; a pixel's place is its middle."""
    shift = (factor - 1) / 2
    moved = matrix.copy()
    moved[:, 2] = factor * matrix[:, 2] + shift - matrix[:, :2] @ (shift, shift)
    return moved


def _compose(outer: Matrix, inner: Matrix) -> Matrix:
    """First the inner, then the outer."""
    last = [0.0, 0.0, 1.0]
    return np.asarray((np.vstack([outer, last]) @ np.vstack([inner, last]))[:2])

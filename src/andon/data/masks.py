"""Masks of defects: which pixels one marks, whatever numbers it holds, and which image it belongs to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.data import folders
from andon.data.folders import Names, plain
from andon.errors import ImageError
from andon.inspection import Pixels
from andon.pictures import image

FEW = 16  # different values, of which none is bright: numbers of classes
CERTAIN = 0.5  # share of the pixels between black and white that lie in even areas: numbers of classes or of defects
INVERTED = (0.5, 0.9)  # more than this share marked, and at least this share of the border


class Empty(ImageError):
    """The mask marks nothing."""


class Inverted(ImageError):
    """Black and white of the mask seem to be exchanged."""


class Mask(NamedTuple):
    """What a mask marks."""

    area: NDArray[np.bool_]  # (H, W)
    how: str  # binary; classes: each value above 0 marks a defect; gray: cut at half of the largest value


def read(path: Path) -> Mask:
    """Read a mask: a file, or a folder of files of which each marks a defect of one image.

    Errors: ImageError when it cannot be read; Empty, Inverted.
    """
    if not path.is_dir():
        return _one(path)
    parts = [_one(each) for each in folders.scan(path).images]
    if len({part.area.shape for part in parts}) != 1:
        raise ImageError(f"{path.as_posix()}: masks of several sizes for one image; expected one size. Correct them.")
    how = [part.how for part in parts]
    return Mask(np.logical_or.reduce([part.area for part in parts]), max(how, key=("binary", "classes", "gray").index))


def read_for(path: Path, shape: tuple[int, ...]) -> Mask:
    """Read the mask of an image of `shape` (H, W). Errors: as `read`; ImageError when it is of another size."""
    mask = read(path)
    if mask.area.shape != shape[:2]:
        height, width = mask.area.shape
        sizes = f"mask of {width} × {height} pixels on an image of {shape[1]} × {shape[0]}"
        raise ImageError(f"{path}: {sizes}. Expected one size; left out of the pixel figures.")
    return mask


def _one(path: Path) -> Mask:
    mask = marked(image.read(path).pixels)
    if not mask.area.any():
        raise Empty(f"{path.as_posix()}: the mask marks nothing; expected the defect in white on black. Draw it.")
    if inverted(mask.area):
        raise Inverted(
            f"{path.as_posix()}: the mask marks {mask.area.mean():.0%} of the image and nearly all of its border: "
            "black and white seem to be exchanged. Expected the defect in white on black; invert it. Left out."
        )
    return mask


def marked(pixels: Pixels) -> Mask:
    """What the pixels (H, W, c) of a mask mark, the brightest channel counting.

    0 and another value: that one. Numbers of classes or defects: all above 0. Otherwise, as along smooth edges or where
    nothing is 0, what is above half of the largest value.
    """
    values: Pixels = pixels.max(axis=2)
    levels = np.unique(values)
    top = int(levels[-1])
    if len(levels) == 1 or (len(levels) == 2 and levels[0] == 0):
        return Mask(values > 0, "binary")
    if levels[0] == 0 and (
        (len(levels) <= FEW and top <= np.iinfo(values.dtype).max // 2) or _even(values, top, len(levels) <= FEW)
    ):
        return Mask(values > 0, "classes")
    return Mask(values > top / 2, "gray")


def _even(values: Pixels, top: int, few: bool) -> bool:
    """Whether most pixels between black and white lie in even areas of 3 × 3; those of a smooth edge do not.

    Of many values, those next to black and white are compression.
    """
    low, high = (0, top) if few else (top / 10, top * 0.9)
    between = (values > low) & (values < high)
    square = np.ones((3, 3), np.uint8)
    flat: NDArray[np.uint8] = np.equal(cv2.erode(values, square), cv2.dilate(values, square)).astype(np.uint8)
    even = np.asarray(cv2.dilate(flat, square)) > 0
    return bool(between.any()) and float(even[between].mean()) > CERTAIN


def inverted(area: NDArray[np.bool_]) -> bool:
    """Whether a marked area (H, W) looks like one with black and white exchanged."""
    border = np.concatenate([area[0], area[-1], area[:, 0], area[:, -1]])
    share, at_border = INVERTED
    return bool(not area.all() and area.mean() > share and border.mean() >= at_border)


class Fitted(NamedTuple):
    """Which masks belong to which images."""

    masks: dict[Path, Path]  # image of a defect → its mask, or the folder of its masks
    of_good: list[Path]  # masks that fit images of good parts only
    strays: list[Path]  # masks that fit no image, or that fit as well as others


def fit(root: Path, defective: Sequence[Path], good: Sequence[Path], masks: Sequence[Path], names: Names) -> Fitted:
    """Find the mask of each image of a defect; one is used only where it is the only one that fits.

    A mask fits an image whose name is its own, with or without `_mask`, `_gt` or the like, and whose path holds the
    folders that the mask's path holds besides that of masks. In a folder that is named like the image, each fits it.
    """
    bad, fine = _by_name(root, defective), _by_name(root, good)
    claims: dict[Path, dict[Path, None]] = {}  # image → masks or folders of masks
    claimed: dict[Path, list[Path]] = {}  # mask or folder of masks → images
    fitted = Fitted({}, [], [])
    place: dict[Path, Path] = {}  # mask → itself, or its folder
    for mask in masks:
        ways = _ways(root, mask, names)
        for known in (bad, fine):
            found = next(((at, images) for at, key, way in ways if (images := _fitting(known, key, way))), None)
            if found and known is bad:
                place[mask] = found[0]
                claimed[found[0]] = found[1]
                for path in found[1]:
                    claims.setdefault(path, {})[found[0]] = None
            if found:
                fitted.of_good.extend([mask] if known is fine else [])
                break
        else:
            fitted.strays.append(mask)
    for path, each in claims.items():
        if len(each) == 1 and len(claimed[(only := next(iter(each)))]) == 1:
            fitted.masks[path] = only
    used = set(fitted.masks.values())
    fitted.strays.extend(mask for mask, at in place.items() if at not in used)
    return fitted._replace(strays=sorted(fitted.strays))


Known = Mapping[str, Sequence[tuple[tuple[str, ...], Path]]]


def _by_name(root: Path, images: Sequence[Path]) -> Known:
    known: dict[str, list[tuple[tuple[str, ...], Path]]] = {}
    for path in images:
        way = tuple(map(plain, path.relative_to(root).parts[:-1]))
        known.setdefault(plain(path.stem), []).append((way, path))
    return known


def _ways(root: Path, mask: Path, names: Names) -> list[tuple[Path, str, tuple[str, ...]]]:
    """The mask or its folder, a name its image may have, the folders that must lead to it; the likeliest first."""
    parts = mask.relative_to(root).parts[:-1]
    depth = folders.mask_folder(parts, names)
    rest = tuple(plain(name) for j, name in enumerate(parts) if j != depth)
    ways = [(mask, key, rest) for key in folders.readings(mask.stem)]
    if rest and depth != len(parts) - 1:
        ways += [(mask.parent, key, rest[:-1]) for key in folders.readings(rest[-1])]
    return ways


def _fitting(known: Known, key: str, way: tuple[str, ...]) -> list[Path]:
    """The images of this name whose folders hold those of `way`, in their order."""
    found = []
    for folders_of, path in known.get(key, ()):
        steps = iter(folders_of)
        if all(step in steps for step in way):
            found.append(path)
    return found

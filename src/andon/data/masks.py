"""Masks of defects: the marked pixels, for all kinds of pixel values, and the image of each mask."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.data import folders
from andon.data.folders import Names, normalize
from andon.errors import ImageError
from andon.inspection import Pixels
from andon.pictures import image

FEW = 16  # at most this number of different values, all dark: class numbers
CERTAIN = 0.5  # share of pixels between black and white in uniform areas, from which on values are class numbers
INVERTED = (0.5, 0.9)  # an inverted mask marks more than this share of all pixels, and at least this of the border


class Empty(ImageError):
    """The mask marks no pixel."""


class Inverted(ImageError):
    """Black and white of the mask seem to be exchanged."""


class Mask(NamedTuple):
    """The area of a mask."""

    area: NDArray[np.bool_]  # (H, W)
    how: str  # binary; classes: each value above 0 marks a defect; gray: threshold at half of the largest value


def read(path: Path) -> Mask:
    """Read a mask: a file, or a folder of files that each mark one defect of an image.

    Errors: ImageError when it cannot be read; Empty, Inverted.
    """
    parts = [_one(part) for part in parts_of(path)]
    if len({part.area.shape for part in parts}) != 1:
        raise ImageError(f"{path.as_posix()}: masks of different sizes for one image; expected one size. Correct them.")
    how = [part.how for part in parts]
    return Mask(np.logical_or.reduce([part.area for part in parts]), max(how, key=("binary", "classes", "gray").index))


def parts_of(path: Path) -> list[Path]:
    """The files of a mask: itself, or those of its folder."""
    return folders.scan(path).images if path.is_dir() else [path]


def read_sized(path: Path, shape: tuple[int, ...]) -> Mask:
    """Read the mask of an image of `shape` (H, W). Errors: as `read`; ImageError when it has another size."""
    mask = read(path)
    if mask.area.shape != shape[:2]:
        height, width = mask.area.shape
        sizes = f"mask of {width} × {height} pixels for an image of {shape[1]} × {shape[0]}"
        raise ImageError(f"{path}: {sizes}; expected the same size. It is not included in the pixel figures.")
    return mask


def _one(path: Path) -> Mask:
    mask = from_pixels(image.read(path).pixels)
    if not mask.area.any():
        raise Empty(f"{path.as_posix()}: the mask marks no pixel; expected the defect in white on black. Draw it.")
    if is_inverted(mask.area):
        raise Inverted(
            f"{path.as_posix()}: the mask marks {mask.area.mean():.0%} of the image and almost all of its border: "
            "black and white seem to be exchanged; expected the defect in white on black. Invert it. It is not used."
        )
    return mask


def from_pixels(pixels: Pixels) -> Mask:
    """Return the area that the pixels (H, W, c) of a mask mark, from the maximum of the channels.

    Two values: the larger one. Class numbers: all above 0. Otherwise, as with smooth edges or without 0: all
    above half of the largest value.
    """
    values: Pixels = pixels.max(axis=2)
    levels = np.unique(values)
    top = int(levels[-1])
    if len(levels) < 3:
        return Mask((values == top) & (values > 0), "binary")
    if levels[0] == 0 and (
        (len(levels) <= FEW and top <= np.iinfo(values.dtype).max // 2) or _uniform(values, top, len(levels) <= FEW)
    ):
        return Mask(values > 0, "classes")
    return Mask(values > top / 2, "gray")


def _uniform(values: Pixels, top: int, few: bool) -> bool:
    """Whether most pixels between black and white are in uniform areas of 3 × 3, unlike those of a smooth edge.

    If there are many values, those close to black and white come from compression.
    """
    low, high = (0, top) if few else (top / 10, top * 0.9)
    between = (values > low) & (values < high)
    square = np.ones((3, 3), np.uint8)
    flat: NDArray[np.uint8] = np.equal(cv2.erode(values, square), cv2.dilate(values, square)).astype(np.uint8)
    uniform = np.asarray(cv2.dilate(flat, square)) > 0
    return bool(between.any()) and float(uniform[between].mean()) > CERTAIN


def is_inverted(area: NDArray[np.bool_]) -> bool:
    """Whether black and white of an area (H, W) are probably exchanged."""
    border = np.concatenate([area[0], area[-1], area[:, 0], area[:, -1]])
    share, at_border = INVERTED
    return bool(not area.all() and area.mean() > share and border.mean() >= at_border)


class Matches(NamedTuple):
    """The assignment of masks to images."""

    masks: dict[Path, Path]  # image of a defect → its mask, or the folder of its masks
    of_good: list[Path]  # masks that match images of good parts only
    strays: list[Path]  # masks that match no image, or match the same image as another mask


def match(root: Path, defective: Sequence[Path], good: Sequence[Path], masks: Sequence[Path], names: Names) -> Matches:
    """Find the mask of each image of a defect. A mask is used only if the match is unique.

    A mask matches an image with the same name, with or without `_mask`, `_gt` or the like, if the folders in the path
    of the mask, without the folder of masks, are in the path of the image. All masks in a folder with the name of the
    image match it.
    """
    bad, fine = _by_name(root, defective), _by_name(root, good)
    candidates: dict[Path, dict[Path, None]] = {}  # image → masks or folders of masks
    images_of: dict[Path, list[Path]] = {}  # mask or folder of masks → images
    matches = Matches({}, [], [])
    place: dict[Path, Path] = {}  # mask → itself, or its folder
    for mask in masks:
        keys = _keys(root, mask, names)
        for index in (bad, fine):
            hit = next(((at, images) for at, name, path in keys if (images := _lookup(index, name, path))), None)
            if hit and index is bad:
                place[mask] = hit[0]
                images_of[hit[0]] = hit[1]
                for image_path in hit[1]:
                    candidates.setdefault(image_path, {})[hit[0]] = None
            if hit:
                matches.of_good.extend([mask] if index is fine else [])
                break
        else:
            matches.strays.append(mask)
    for image_path, places in candidates.items():
        if len(places) == 1 and len(images_of[(only := next(iter(places)))]) == 1:
            matches.masks[image_path] = only
    used = set(matches.masks.values())
    matches.strays.extend(mask for mask, at in place.items() if at not in used)
    return matches._replace(strays=sorted(matches.strays))


Index = Mapping[str, Sequence[tuple[tuple[str, ...], Path]]]
"""Name of an image → its folders and its path, for all images of this name."""


def _by_name(root: Path, images: Sequence[Path]) -> Index:
    index: dict[str, list[tuple[tuple[str, ...], Path]]] = {}
    for path in images:
        parents = tuple(map(normalize, path.relative_to(root).parts[:-1]))
        index.setdefault(normalize(path.stem), []).append((parents, path))
    return index


def _keys(root: Path, mask: Path, names: Names) -> list[tuple[Path, str, tuple[str, ...]]]:
    """Return (mask or its folder, possible name of the image, folders of the image), the most likely first."""
    parts = mask.relative_to(root).parts[:-1]
    depth = folders.mask_folder(parts, names)
    rest = tuple(normalize(name) for j, name in enumerate(parts) if j != depth)
    keys = [(mask, name, rest) for name in folders.image_stems(mask.stem)]
    if rest and depth != len(parts) - 1:
        keys += [(mask.parent, name, rest[:-1]) for name in folders.image_stems(rest[-1])]
    return keys


def _lookup(index: Index, name: str, parents: tuple[str, ...]) -> list[Path]:
    """Return the images of this name whose folders include `parents`, in this order."""
    images = []
    for folders_of, path in index.get(name, ()):
        steps = iter(folders_of)
        if all(parent in steps for parent in parents):
            images.append(path)
    return images

"""The summary of a readable image, for the check of a folder."""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from andon import files
from andon.data.dataset import Sample
from andon.inspection import Array
from andon.pictures import image, light
from andon.pictures.headers import header
from andon.pictures.image import Input

THUMBNAIL = 64  # pixels: fine enough to distinguish two parts, coarse enough to be the same after recompression
FINE = 1.5  # pixels of the thumbnail: standard deviation of the blur that is subtracted before a comparison


class Look(NamedTuple):
    """The summary of a readable image."""

    sample: Sample
    name: str
    input: Input
    format: str
    digest: str
    notes: tuple[str, ...]
    octaves: tuple[float, float]  # log2 of the mean gray value, of the variance of the Laplacian
    light: Array  # see `light.grid`
    thumbnail: Array  # (THUMBNAIL²,) the fine structure of the image


def look(sample: Sample, name: str) -> Look:
    """Read an image and summarise it; `name` stands for it in messages. ImageError as `image.read`."""
    contents, _ = image.contents(sample.path, name)
    read = image.read(contents, name)
    gray = read.pixels if read.pixels.shape[2] == 1 else cv2.cvtColor(read.pixels, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, 512 / max(gray.shape))
    small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
    octaves = (math.log2(small.mean() + 1), math.log2(float(cv2.Laplacian(small, cv2.CV_32F).var()) + 1))
    described, kind = image.describe(read), header(contents, name).format
    return Look(
        sample, name, described, kind, files.digest(contents), read.notes, octaves, light.grid(read.pixels), _fine(gray)
    )


def _fine(gray: NDArray[Any]) -> Array:
    thumbnail = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)
    return (thumbnail - cv2.GaussianBlur(thumbnail, (0, 0), FINE)).ravel()

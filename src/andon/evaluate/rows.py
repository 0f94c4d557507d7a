"""One labelled image, inspected: what figures, report and control are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from andon.data import masks
from andon.errors import ImageError
from andon.inspection import Verdict
from andon.pictures import image


@dataclass(frozen=True)
class Row:
    """One labelled image, inspected."""

    path: Path
    name: str  # path below the data set's root
    defect: str  # good, or the type of defect
    group: str
    mask: Path | None
    score: float
    p_value: float
    verdict: Verdict
    regions: int
    milliseconds: float
    digest: str  # SHA-256 of the file

    @property
    def good(self) -> bool:
        """Whether the label says good."""
        return self.defect == "good"

    def read(self) -> image.Image:
        """The picture that was inspected. ImageError when its file is gone, or no longer the same."""
        return image.read_again(self.path, self.digest)

    def truth(self, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """The mask of the image of `shape` (H, W), where it has one that can be used; others are among the errors."""
        try:
            return read_mask(self.mask, shape) if self.mask else None
        except ImageError:
            return None


def read_mask(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Read the mask of an image of `shape` (H, W) as `masks.read` does.

    Errors: ImageError when it cannot be read, is of another size, marks nothing or is inverted.
    """
    return masks.read_sized(path, shape).area


def by_group(rows: Sequence[Row]) -> list[Row]:
    """One row a group (part, lot or session) and label, its image of the highest score standing for it."""
    worst: dict[tuple[str, bool], Row] = {}
    for row in rows:
        key = (row.group, row.good)
        if key not in worst or row.score > worst[key].score:
            worst[key] = row
    return list(worst.values())

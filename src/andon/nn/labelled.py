"""Good and defective tiles as one stock, for networks that learn from both: the mask travels as one more channel."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from andon.detectors.base import Defects, Tiles
from andon.errors import DatasetError
from andon.inspection import Pixels


class LabelledTiles:
    """Tiles (b, t, t, c + 1): the last channel is 0 where a part is good, and the greatest value where it is not."""

    defects: Defects | None = None

    def __init__(self, tiles: Tiles, need_masks: bool = False, share: float = 0, whole: bool = False) -> None:
        """Take the good tiles and their `defects`; with `need_masks` only those whose mask says where they are.

        Each defect comes as often as it takes for defects to be about `share` of the tiles. One without a mask is
        marked all over, and with `whole` each of them is, for networks that learn which tile is defective and not
        where. DatasetError when no defect is left.
        """
        self._tiles, self._need_masks, self._whole = tiles, need_masks, whole
        self.side, self.depth = tiles.side, tiles.depth
        self.channels = tiles.channels + 1
        self.count = sum(len(batch) for batch in self._defective())
        """Number of tiles of images of defects; in those cut from a large image the mask may be empty."""
        if not self.count and tiles.defects is not None and not len(tiles.defects):
            raise DatasetError(
                "no images of defects to learn from: there are some, and all were left out; expected readable images "
                "with masks that fit them. Correct what was said of each."
            )
        if not self.count:
            which = "with a mask in ground_truth" if need_masks else "in train/DEFECT beside train/good"
            raise DatasetError(f"no images of defects to learn from; expected some {which}. Add them.")
        own = max(tiles.groups, default=-1) + 1
        self.times = max(1, round(share / (1 - share) * len(tiles) / self.count))
        """How often each of them comes, in one group, so that none is both learnt from and held out."""
        self.groups: Sequence[int] = [*tiles.groups, *list(range(own, own + self.count)) * self.times]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Pixels]:
        for good in self._tiles:
            yield np.concatenate([good, np.zeros_like(good[..., :1])], axis=3)
        for _ in range(self.times):
            yield from self._defective()

    def _defective(self) -> Iterator[Pixels]:
        top = 2**self.depth - 1
        for pixels, masks, known in self._tiles.defects or ():
            chosen = known if self._need_masks else np.ones_like(known)
            if chosen.any():
                marks = np.where(masks[..., None] | self._whole, top, 0).astype(pixels.dtype)
                yield np.concatenate([pixels, marks], axis=3)[chosen]


def parted(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Part labelled tiles (b, c + 1, t, t) into tiles (b, c, t, t) and masks (b, t, t), true where defective."""
    # Changes of brightness reach the mask too, and rotation smooths it: what is above a quarter is meant.
    return tiles[:, :-1], tiles[:, -1] > 0.25

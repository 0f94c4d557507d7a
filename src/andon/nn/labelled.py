"""Good and defective tiles as one stock, for networks that learn from both: the mask travels as one more channel."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from andon.detector import Defects, Labelled, Tiles
from andon.errors import DatasetError
from andon.geometry import tiling
from andon.inspection import Pixels


class LabelledTiles:
    """Tiles (b, t, t, c + 1): the last channel is 0 where a part is good, and the greatest value where it is not."""

    defects: Defects | None = None

    def __init__(self, tiles: Tiles, share: float = 0, whole: bool = False) -> None:
        """Take the good tiles, and those of their `defects` that show one.

        Each comes as often as it takes for defects to be about `share` of the tiles, once at least. With `whole` every
        tile is taken and marked all over, for networks that learn which tile is defective and not where.
        DatasetError when there is none.
        """
        self._tiles, self._whole = tiles, whole
        self.shape, self.side, self.depth = tiles.shape, tiles.side, tiles.depth
        self.channels = tiles.channels + 1
        if tiles.defects is None:
            raise DatasetError(
                "no images of defects to learn from; expected some in train/DEFECT beside train/good. Add them."
            )
        shown = np.concatenate([np.zeros(0, np.bool_), *(self._shown(batch) for batch in tiles.defects)])
        self._defective = np.flatnonzero(shown).tolist()  # rows of the defective tiles that show a defect
        self.count = len(self._defective)
        """Number of defective tiles, each counted once."""
        if not self.count:
            raise DatasetError(
                "no images of defects to learn from: there are some, and all were left out; expected readable "
                "images with masks that fit them. Correct what was said of each."
            )
        self.times = max(1, round(share / (1 - share) * len(tiles) / self.count))
        """How often each of them comes, in one group, so that none is both learnt from and held out."""
        groups = [-1 - tiles.defects.groups[row] for row in self._defective]
        self.groups: Sequence[int] = [*tiles.groups, *groups * self.times]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        assert self._tiles.defects is not None
        many, batch = (
            len(self._tiles),
            np.zeros((len(rows), *self.shape, self.channels), np.dtype(f"u{self.depth // 8}")),
        )
        of_good = np.asarray(rows) < many
        if of_good.any():
            batch[of_good, ..., :-1] = self._tiles[[row for row in rows if row < many]]
        if not of_good.all():
            found = self._tiles.defects[[self._defective[(row - many) % self.count] for row in rows if row >= many]]
            batch[~of_good, ..., :-1] = found.pixels
            batch[~of_good, ..., -1] = np.where(found.masks | self._whole, 2**self.depth - 1, 0)
        return batch

    def __iter__(self) -> Iterator[Pixels]:
        return (self[rows] for rows in tiling.batches(range(len(self)), self.shape))

    def _shown(self, batch: Labelled) -> NDArray[np.bool_]:
        """Which tiles of a batch (b,) are learnt from: in those cut from a large image the mask may be empty."""
        return np.logical_or(batch.masks.any(axis=(1, 2)), self._whole)


def parted(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Part labelled tiles (b, c + 1, t, t) into tiles (b, c, t, t) and masks (b, t, t), true where defective."""
    return tiles[:, :-1], tiles[:, -1] > 0.25  # rotation smooths the mask: a quarter of a pixel is enough

"""Good and defective tiles in one sequence, with the mask as an additional channel."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from andon.detector import Defects, Labelled, Tiles
from andon.errors import DatasetError
from andon.geometry import tiling
from andon.inspection import Pixels


class LabelledTiles:
    """Tiles (b, t, t, c + 1): the last channel is 0 where the part is good, and full scale where it is defective."""

    defects: Defects | None = None

    def __init__(self, tiles: Tiles, share: float = 0, whole: bool = False) -> None:
        """Join the good tiles with those of their `defects` that show a defect.

        share: defective tiles are repeated until they are about this share of all tiles; each occurs at least once.
        whole: use every tile of defective parts, marked everywhere, for networks that classify tiles.
        Errors: DatasetError when there are no defective tiles.
        """
        self._tiles, self._whole = tiles, whole
        self.shape, self.side, self.depth = tiles.shape, tiles.side, tiles.depth
        self.channels = tiles.channels + 1
        if tiles.defects is None:
            raise DatasetError(
                "no images of defects for training; expected some in train/DEFECT beside train/good. Add them."
            )
        usable = np.concatenate([np.zeros(0, np.bool_), *(self._usable(batch) for batch in tiles.defects)])
        self._defective = np.flatnonzero(usable).tolist()  # rows of the defective tiles that show a defect
        self.count = len(self._defective)
        """Number of defective tiles, without repetitions."""
        if not self.count:
            raise DatasetError(
                "no images of defects for training: all were rejected; expected readable images with masks of the "
                "same size. Correct the problems in the messages above."
            )
        self.times = max(1, round(share / (1 - share) * len(tiles) / self.count))
        """Number of repetitions of each defective tile. They are one group, which is never divided."""
        groups = [-1 - tiles.defects.groups[row] for row in self._defective]
        self.groups: Sequence[int] = [*tiles.groups, *groups * self.times]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        assert self._tiles.defects is not None
        n_good = len(self._tiles)
        batch = np.zeros((len(rows), *self.shape, self.channels), np.dtype(f"u{self.depth // 8}"))
        good = np.asarray(rows) < n_good
        if good.any():
            batch[good, ..., :-1] = self._tiles[[row for row in rows if row < n_good]]
        if not good.all():
            indices = [self._defective[(row - n_good) % self.count] for row in rows if row >= n_good]
            labelled = self._tiles.defects[indices]
            batch[~good, ..., :-1] = labelled.pixels
            batch[~good, ..., -1] = np.where(labelled.masks | self._whole, 2**self.depth - 1, 0)
        return batch

    def __iter__(self) -> Iterator[Pixels]:
        return (self[rows] for rows in tiling.batches(range(len(self)), self.shape))

    def _usable(self, batch: Labelled) -> NDArray[np.bool_]:
        """Which tiles of a batch (b,) are used: some tiles of a large image have an empty mask."""
        return np.logical_or(batch.masks.any(axis=(1, 2)), self._whole)


def split_labels(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Split labelled tiles (b, c + 1, t, t) into tiles (b, c, t, t) and masks (b, t, t), True where defective."""
    return tiles[:, :-1], tiles[:, -1] > 0.25  # rotation smooths the mask

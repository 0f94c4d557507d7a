"""The one store of a training's pixels: arrays in one file without a name, read by mapping it into memory."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon.errors import TrainingError
from andon.files import Scratch

MEGABYTES = 16_000  # the budget where none is given


class Slot(NamedTuple):
    """Where an array lies in the store."""

    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: str


class Store:
    """Arrays, each put once and read as often as needed; the file is gone when the process is, however that ends.

    >>> store = Store(megabytes=100)
    >>> slot = store.put(np.zeros((256, 256, 3), np.uint8))
    >>> store[slot].shape
    (256, 256, 3)
    """

    def __init__(self, megabytes: int = MEGABYTES, folder: Path | None = None) -> None:
        """Open the file in a folder, or in the system's temporary folder. AndonError when it cannot be written to."""
        self.megabytes, self._folder = megabytes, folder
        self.clear()

    def put(self, array: NDArray[Any]) -> Slot:
        """Add a copy of an array. TrainingError past the budget; AndonError when the disk is full."""
        if self.size + array.nbytes > self.megabytes * 1_000_000:
            raise TrainingError(
                f"the tiles of the training images need more than the {self.megabytes} MB of temporary storage that "
                "this training may use. Raise storage_mb (--storage-mb), or make tiles smaller or fewer with "
                "geometry.size, crop or overlap."
            )
        slot = Slot(self.size, array.shape, array.dtype.str)
        data = array.tobytes()
        padding = -len(data) % 64
        self._file.write(data + bytes(padding))
        self.size += len(data) + padding
        return slot

    def clear(self) -> None:
        """Forget all arrays and start a new file."""
        self._file = Scratch("the tiles of the training images", self._folder)
        self._mapped: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.size = 0  # bytes

    def __getitem__(self, slot: Slot) -> NDArray[Any]:
        """Return an array that was put, read-only; it outlives the store."""
        if len(self._mapped) < self.size:
            self._mapped = self._file.mapped(np.uint8, (self.size,))
        return np.ndarray(slot.shape, slot.dtype, self._mapped, slot.offset)

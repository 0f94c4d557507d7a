"""The one store of a training's pixels: arrays in one file without a name, read by mapping it into memory."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon.errors import TrainingError
from andon.files import STORAGE_MB, Scratch
from andon.inspection import Array, Pixels


class Slot(NamedTuple):
    """The position of an array in the store."""

    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: str


class Store:
    """Arrays in one temporary file; the system removes the file when the process ends, even if it is killed.

    >>> store = Store(megabytes=100)
    >>> slot = store.put(np.zeros((256, 256, 3), np.uint8))
    >>> store[slot].shape
    (256, 256, 3)
    """

    def __init__(self, megabytes: int = STORAGE_MB, folder: Path | None = None) -> None:
        """Open the file in a folder, or in the system's temporary folder. AndonError when it cannot be written."""
        self.megabytes, self._folder = megabytes, folder
        self.clear()

    def room(self, size: int, share: float = 1.0) -> bool:
        """Whether `size` more bytes stay within this share of the budget."""
        return self.size + size <= share * self.megabytes * 1_000_000

    def put(self, array: NDArray[Any], part: float = 1.0) -> Slot:
        """Add a copy of an array.

        part: share of all arrays that will be stored after this one; an error estimates the total from it.
        Errors: TrainingError when the budget is exceeded; AndonError when the disk is full.
        """
        if not self.room(array.nbytes):
            needed = math.ceil(1.05 * (self.size + array.nbytes) / max(part, 1e-3) / 1e6)
            raise TrainingError(
                f"the tiles of the training images need about {needed} MB of temporary storage; this training may use "
                f"{self.megabytes} MB. Increase storage_mb (--storage-mb) to {needed}, or make tiles smaller or fewer "
                "with geometry.size, crop or overlap."
            )
        slot = Slot(self.size, array.shape, array.dtype.str)
        data = array.tobytes()
        padding = -len(data) % 64
        self._file.write(data + bytes(padding))
        self.size += len(data) + padding
        return slot

    def clear(self) -> None:
        """Delete all arrays and start a new file."""
        self._file = Scratch("the tiles of the training images", self._folder)
        self._mapped: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.size = 0  # bytes

    def __getitem__(self, slot: Slot) -> NDArray[Any]:
        """Return an array, read-only; it stays valid after the store is deleted."""
        if len(self._mapped) < self.size:
            self._mapped = self._file.mapped(np.uint8, (self.size,))
        return np.ndarray(slot.shape, slot.dtype, self._mapped, slot.offset)


class Memo:
    """Values computed from tiles, stored for the other fits of a training if there is room.

    The key of a tile is its content, so that fits on different rows share the values.
    """

    def __init__(self, store: Store) -> None:
        """Start without values."""
        self._store = store
        self._slots: dict[tuple[str, bytes], list[Slot]] = {}

    def __call__(self, name: str, tiles: Pixels, compute: Callable[[Pixels], Sequence[Array]]) -> list[Array]:
        """Return the results of `compute` for tiles (n, h, w, c): arrays (n, …). `name` identifies the computation."""
        keys = [(name, hashlib.blake2b(tile.tobytes(), digest_size=16).digest()) for tile in tiles]
        if not all(key in self._slots for key in keys):
            computed = list(compute(tiles))
            for key, *values in zip(keys, *computed, strict=True):
                if key not in self._slots and self._store.room(sum(value.nbytes for value in values)):
                    self._slots[key] = [self._store.put(value) for value in values]
            return computed
        return [
            np.stack([self._store[slot] for slot in column])
            for column in zip(*(self._slots[key] for key in keys), strict=True)
        ]

"""Scores of pixels, sorted in bounded memory: what the pixel figures are computed from.

There are no bins. Between two defect scores only the false-positive rate changes, so all figures follow from the
numbers of good pixels above and at each distinct defect score. The pixels are stored as sorted runs of float32. The
runs are cut at common values into blocks of about half a million pixels, and the blocks are merged in descending order
of scores.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon.files import Scratch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RUN = 4_000_000  # pixels in a sorted run
_BLOCK = 500_000  # pixels that are merged at once
_STRIDE = 1024  # distance of samples in a run, in pixels
_NO_SIZE = np.empty(0, np.uint32)


class Run(NamedTuple):
    """Pixels in ascending order of their scores."""

    score: NDArray[np.float32]  # (n,)
    size: NDArray[np.uint32]  # (n,) pixels of the defect each belongs to, or its saturation; (0,) for good pixels


class Steps(NamedTuple):
    """Numbers of pixels at each distinct defect score, descending; all (k,)."""

    above: Ints  # good pixels above the score, in total
    equal: Ints  # good pixels with this score
    defects: Ints  # defect pixels with this score
    weight: Floats  # sum over these defect pixels of 1 / size


Place = NDArray[np.uint32] | slice  # an array in memory, or its position in the file


class Shelf:
    """Arrays in memory up to a budget of bytes, then in a temporary file."""

    def __init__(self, budget: int) -> None:
        self._free = budget
        self._file: Scratch | None = None
        self._stored = 0  # number of values in the file
        self._mapped: NDArray[np.uint32] = _NO_SIZE  # the file; one mapping, because each needs a file handle

    def put(self, values: NDArray[np.uint32]) -> Place:
        """Store values (n,); return where they are."""
        if values.nbytes <= self._free:
            self._free -= values.nbytes
            return values
        if self._file is None:
            self._file = Scratch("the scores of pixels")
        self._file.write(values.data)
        self._stored += len(values)
        return slice(self._stored - len(values), self._stored)

    def get(self, place: Place) -> NDArray[np.uint32]:
        """Return the values of `put`."""
        if isinstance(place, slice):
            if len(self._mapped) < self._stored and self._file is not None:
                self._mapped = self._file.mapped(np.uint32, (self._stored,))
            return self._mapped[place]
        return place


class Pile:
    """Pixels that are added in any order and stored as sorted runs."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._unsorted: list[tuple[NDArray[np.float32], NDArray[np.uint32]]] = []
        self._runs: list[tuple[Place, Place]] = []

    def add(self, score: NDArray[np.float32], size: NDArray[np.uint32] = _NO_SIZE) -> None:
        """Add pixels: scores (n,), and for defect pixels the size of the region of each (n,)."""
        self._unsorted.append((score, size))
        if sum(len(score) for score, _ in self._unsorted) >= _RUN:
            self._sort()

    def runs(self) -> list[Run]:
        """Return all pixels as sorted runs."""
        self._sort()
        return [Run(self._shelf.get(s).view(np.float32), self._shelf.get(z)) for s, z in self._runs]

    def _sort(self) -> None:
        if self._unsorted:
            score, size = (np.concatenate(parts) for parts in zip(*self._unsorted, strict=True))
            self._unsorted.clear()
            if len(size):
                order = np.argsort(score)
                score, size = score[order], size[order]
            else:
                score.sort()
            self._runs.append((self._shelf.put(score.view(np.uint32)), self._shelf.put(size)))


def count_above(piles: Sequence[Pile], threshold: float) -> int:
    """Return the number of pixels above a threshold, in float32, as regions of an inspection are."""
    limit = np.float32(threshold)
    return sum(len(run.score) - int(np.searchsorted(run.score, limit, "right")) for p in piles for run in p.runs())


def steps(goods: Sequence[Pile], piles: Sequence[Pile]) -> Iterator[Steps]:
    """Yield the steps of all curves of good and of defect pixels, one block of descending scores at a time."""
    good = [run.score for pile in goods for run in pile.runs()]
    defects = [run for pile in piles for run in pile.runs()]
    samples = np.sort(np.concatenate([score[::_STRIDE] for score in [*good, *(run.score for run in defects)]]))
    # There are about _BLOCK pixels between two of these values; a value that more pixels have is one of them.
    values = np.unique(samples[:: _BLOCK // _STRIDE])
    good_at = [_edges(score, values) for score in good]
    defects_at = [_edges(run.score, values) for run in defects]
    above = 0
    for j in reversed(range(2 * len(values) + 1)):  # even: between two values; odd: exactly at one
        scores = [score[at[j] : at[j + 1]] for score, at in zip(good, good_at, strict=True)]
        slices = [(run, slice(at[j], at[j + 1])) for run, at in zip(defects, defects_at, strict=True)]
        pixels = [Run(run.score[part], run.size[part]) for run, part in slices]
        count = sum(map(len, scores))
        if not any(len(run.score) for run in pixels):
            pass
        elif j % 2:
            weight = sum(float(np.sum(1 / run.size)) for run in pixels)
            defect = sum(len(run.score) for run in pixels)
            yield Steps(np.array([above]), np.array([count]), np.array([defect]), np.array([weight]))
        else:
            yield _merge(scores, pixels, above)
        above += count


def _merge(good: list[NDArray[np.float32]], defects: list[Run], above: int) -> Steps:
    """Merge slices of runs with the same range of scores; `above`: number of good pixels with higher scores."""
    score = np.concatenate([run.score for run in defects])
    order = np.argsort(score)[::-1]
    score, size = score[order], np.concatenate([run.size for run in defects])[order]
    first = np.concatenate([[0], np.flatnonzero(score[1:] != score[:-1]) + 1])
    merged = np.sort(np.concatenate(good)) if good else np.empty(0, np.float32)
    left, right = np.searchsorted(merged, score[first], "left"), np.searchsorted(merged, score[first], "right")
    return Steps(
        above=above + len(merged) - right,
        equal=right - left,
        defects=np.diff(first, append=len(score)),
        weight=np.add.reduceat(1 / size, first),
    )


def _edges(score: NDArray[np.float32], values: NDArray[np.float32]) -> list[int]:
    """Return the positions at which a sorted run is cut: below, at, between, …, at and above the `values`."""
    cuts = np.stack([np.searchsorted(score, values, "left"), np.searchsorted(score, values, "right")], axis=1)
    return [0, *cuts.ravel().tolist(), len(score)]

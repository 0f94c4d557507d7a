"""Good pictures that look like defects: each is scored by memory banks that have not seen it.

Defects that were put into the folder of good parts by mistake are learnt as good. A detector that learnt them does not
find them, nor others like them. Here the pictures are dealt into `FOLDS` parts at random; each bank learns from half
of them, so that every picture is scored by the other banks. A picture that all of them find strange is suspect.
It may be a good part of a rare kind: a person has to look.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.dataset import Sample
from andon.detectors.base import Defects, Progress, silent
from andon.detectors.memory_bank import MemoryBank, Settings
from andon.geometry import Geometry
from andon.inspection import Pixels
from andon.runtime import Runtime
from andon.survey import GoodTiles, Survey

FOLDS = 4  # parts of the pictures, and banks; each bank has seen half of the parts
LEAST = 20  # pictures below which nothing is said: a bank of a few knows too little
LEARN = 150  # pictures that a bank learns from, at most
SIDES = (64, 256)  # pixels a side, least and most; tiles are resized to a multiple of STRIDE
STRIDE = 16
FAR = 4.0  # robust standard deviations of the logarithm of the score


class Suspect(NamedTuple):
    """A good picture that looks like a defect."""

    sample: Sample
    deviations: float  # robust standard deviations above the median of all pictures


class _Resized:
    """Tiles for a memory bank: the tiles of some images, resized to a side that its network takes."""

    def __init__(self, tiles: GoodTiles) -> None:
        low, high = SIDES
        self.side = min(max(tiles.side // STRIDE * STRIDE, low), high)
        self.channels, self.depth, self.groups = tiles.channels, tiles.depth, tiles.groups
        self.defects: Defects | None = None
        self._tiles = tiles

    def __len__(self) -> int:
        return len(self._tiles)

    def __iter__(self) -> Iterator[Pixels]:
        size = (self.side, self.side)
        for batch in self._tiles:
            if batch.shape[1] == self.side:
                yield batch
            else:
                small = [cv2.resize(tile, size, interpolation=cv2.INTER_AREA) for tile in batch]
                yield np.stack(small).reshape(len(batch), *size, self.channels)


def suspects(survey: Survey, settings: Geometry, seed: int = 0, progress: Progress = silent) -> list[Suspect]:
    """List the surveyed pictures that look like defects, the strangest first."""
    samples = survey.samples
    deviations = strangeness(samples, survey, settings, seed, progress)
    order = np.argsort(-deviations)
    return [Suspect(samples[i], float(deviations[i])) for i in order if deviations[i] > FAR]


def strangeness(
    samples: Sequence[Sample], survey: Survey, settings: Geometry, seed: int = 0, progress: Progress = silent
) -> NDArray[np.float64]:
    """Return by how many robust standard deviations (n,) each picture lies above the median; zeros where too few.

    Pictures of one group are dealt together, so that no bank has seen another picture of the part it judges.
    """
    rng = np.random.default_rng(seed)
    groups = {group: i for i, group in enumerate(dict.fromkeys(sample.group for sample in samples))}
    if len(groups) < LEAST:
        return np.zeros(len(samples))
    dealt = rng.permutation(len(groups)) % FOLDS
    fold = np.array([dealt[groups[sample.group]] for sample in samples])
    votes = np.full((FOLDS, len(samples)), np.nan)
    for bank in range(FOLDS):
        seen = np.isin(fold, [(bank + i) % FOLDS for i in range(FOLDS // 2)])
        learnt = rng.permutation(np.flatnonzero(seen))[:LEARN]
        model = MemoryBank(Settings(bank=1000, candidates=6000), seed)
        scorer = Runtime(model.fit(_tiles(samples, learnt, survey, settings)).graph().SerializeToString())
        unseen = np.flatnonzero(~seen)
        votes[bank, unseen] = _deviations(_scores(scorer, samples, unseen, survey, settings))
        progress("looking for defects among the good images", bank + 1, FOLDS)
    found: NDArray[np.float64] = np.nanmean(votes, axis=0)
    return found


def _tiles(samples: Sequence[Sample], which: NDArray[np.intp], survey: Survey, settings: Geometry) -> _Resized:
    return _Resized(GoodTiles([samples[i] for i in which], survey, settings))


def _scores(
    scorer: Runtime, samples: Sequence[Sample], which: NDArray[np.intp], survey: Survey, settings: Geometry
) -> NDArray[np.float64]:
    """Score some of the pictures (m,): the highest of each one's tiles."""
    scores = np.concatenate([scorer.score(batch).image for batch in _tiles(samples, which, survey, settings)])
    first = np.cumsum([0, *(survey.counts[samples[i].path] for i in which)])[:-1]
    found: NDArray[np.float64] = np.maximum.reduceat(scores.astype(np.float64), first)
    return found


def _deviations(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Robust standard deviations of the logarithm above the median, by the quarter above it: scores are skewed."""
    logs = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    middle, upper = np.quantile(logs, (0.5, 0.75))
    return (logs - middle) / max(float(upper - middle) / 0.6745, 0.01)

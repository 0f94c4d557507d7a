"""Good pictures that look like defects: each is compared with small memory banks that have not seen it.

Defects that were put into the folder of good parts by mistake are learnt as good. A detector that learnt them does not
find them, nor others like them. Here the pictures are dealt into `FOLDS` banks at random, and each picture is compared
with the banks it is not in. Of each patch the distances to these banks are sorted. The smallest counts for nothing: a
patch is usual only if several banks know one like it, so that a few defects of one kind do not vouch for each other.
What is listed may be a good part of a rare kind: a person has to look.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from andon import render
from andon.data import dataset
from andon.data.check import Finding
from andon.data.dataset import Dataset, Sample
from andon.data.store import Store
from andon.data.survey import GoodTiles, Survey, survey_images
from andon.detectors.memory_bank.alike import average
from andon.detectors.memory_bank.coreset import k_centre, neighbour_distance, whitening
from andon.errors import AndonError
from andon.geometry.views import Geometry
from andon.graphs import features
from andon.inspection import Array
from andon.pictures import image
from andon.progress import Progress, silent
from andon.recipe import Recipe

NETWORK, BLOCK = "efficientnet-lite0", 10  # the coarser of the two stages of `memory-bank`: it finds, the other shows
FOLDS = 10  # banks
VOTES = (1, 3)  # a patch is compared with its second and fourth nearest bank; a picture counts by the worse of the two
MEMORIES = 500  # patches that a bank keeps
LEAST = 20  # pictures below which nothing is said: the banks know too little
SIDES = (64, 256)  # pixels a side, least and most; tiles are resized to a multiple of the network's stride
TILES = 1000  # that are compared with each other at a time: at most 400 MB
LEAST_SPREAD = 0.02  # of the logarithm of the score
SHOWN, MOST_SHOWN = 12, 48  # pictures on the contact sheet
FAR = 4.0  # robust standard deviations of the logarithm of the score


class Judged(NamedTuple):
    """A good picture, and how strange it is to the banks that have not seen it."""

    sample: Sample
    deviations: float  # robust standard deviations above the median of all pictures

    @property
    def suspect(self) -> bool:
        """Whether it looks like a defect."""
        return self.deviations > FAR


def look(data: Dataset, progress: Progress = silent) -> list[Judged]:
    """Judge the good pictures of a folder, those of a test split left out, the strangest first.

    None where they are too few, or cannot be learnt from together.
    """
    good = data.training_images()
    if len(good) < LEAST:
        return []
    try:
        survey = survey_images(good, Recipe(), Store(), progress)
    except AndonError:  # of which the check of the folder tells
        return []
    return judge(survey, Recipe().geometry, 0, progress)


def judge(survey: Survey, settings: Geometry, seed: int, progress: Progress = silent) -> list[Judged]:
    """Judge the surveyed pictures, the strangest first; none where they are too few."""
    samples = dataset.merge_groups(survey.samples, [survey.digests[sample.path] for sample in survey.samples])
    deviations = strangeness(samples, survey, settings, seed, progress)
    return [Judged(samples[i], float(deviations[i])) for i in np.argsort(-deviations)]


def findings(judged: Sequence[Judged], data: Dataset) -> list[Finding]:
    """Say which pictures look like defects, for the report of a check."""
    names = tuple((data.relative(one.sample),) for one in judged if one.suspect)
    if not names:
        return []
    message = (
        f"{len(names)} good image{'s look like defects' if len(names) > 1 else ' looks like a defect'}. Look at "
        "suspects.jpg, which andon check writes with --out, and move those that are defective out of the good folder:"
    )
    return [Finding("warning", "suspect", message, names)]


def warning(judged: Sequence[Judged], folder: str) -> str:
    """Say before a training which pictures look like defects; empty where none does."""
    names = [one.sample.path.name for one in judged if one.suspect]
    if not names:
        return ""
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return (
        f"{len(names)} of {len(judged)} good images look{'s' * (len(names) == 1)} like a defect: {listed}. They are "
        f"learnt as good. Look at them (andon check {folder} --out DIR writes a contact sheet), and move those that "
        "are defective out of the good folder."
    )


def shown(judged: Sequence[Judged]) -> int:
    """How many of the strangest are drawn: the suspects, or `SHOWN` where they are fewer, `MOST_SHOWN` at most."""
    return min(max(sum(one.suspect for one in judged), SHOWN), MOST_SHOWN, len(judged))


def sheet(judged: Sequence[Judged]) -> bytes:
    """Draw the strangest (see `shown`), each with its deviations, as a JPEG; of one picture or more."""
    count = shown(judged)
    pictures = [render.display(image.read(one.sample.path).pixels) for one in judged[:count]]
    captions = [f"{'SUSPECT ' * one.suspect}{one.deviations:.1f} sd  {one.sample.path.name}" for one in judged[:count]]
    return render.encode(render.contact_sheet(pictures, captions, columns=4), "jpg")


def strangeness(
    samples: Sequence[Sample], survey: Survey, settings: Geometry, seed: int = 0, progress: Progress = silent
) -> NDArray[np.float64]:
    """Return by how many robust standard deviations (n,) each picture lies above the median; of too few pictures, (0,).

    Pictures of one group are dealt together, so that none is compared with another of its own part. Very many are
    judged in several lots.
    """
    rng = np.random.default_rng(seed)
    groups = {group: i for i, group in enumerate(dict.fromkeys(sample.group for sample in samples))}
    if len(groups) < LEAST:
        return np.zeros(0)
    group = np.array([groups[sample.group] for sample in samples])
    tiles = sum(len(survey.entries[sample.path].tiles) for sample in samples)
    lots = min(math.ceil(tiles / TILES), len(groups) // LEAST)
    dealt = rng.permutation(len(groups))
    found = np.zeros(len(samples))
    for lot in range(lots):
        chosen = np.flatnonzero(dealt[group] % lots == lot)
        counts = [len(survey.entries[samples[int(i)].path].tiles) for i in chosen]
        fold = np.repeat(dealt[group[chosen]] // lots % FOLDS, counts)
        patches = _features(GoodTiles([samples[int(i)] for i in chosen], survey, settings), progress)
        first = np.cumsum([0, *counts])[:-1]
        scores = _scores(patches, fold, rng, progress)
        found[chosen] = np.max([_deviations(np.maximum.reduceat(of_tiles, first)) for of_tiles in scores], axis=0)
    return found


def _features(tiles: GoodTiles, progress: Progress) -> Array:
    """Locally averaged features (n, g, g, c) of all tiles."""
    (stage,) = features.select(NETWORK, [BLOCK])
    describe = features.Extractor(NETWORK, [BLOCK])
    side = min(max(min(tiles.shape) // stage.stride * stage.stride, SIDES[0]), SIDES[1])
    found = np.empty((len(tiles), side // stage.stride, side // stage.stride, stage.channels), np.float32)
    done = 0
    for batch in tiles:
        small = [cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA) for tile in batch]
        (maps,) = describe(np.stack(small).reshape(len(batch), side, side, tiles.channels))
        found[done : done + len(batch)] = average(maps, 3).transpose(0, 2, 3, 1)
        done += len(batch)
        progress("looking for defects among the good images", done, len(tiles))
    return found


def _scores(
    patches: Array, fold: NDArray[np.intp], rng: np.random.Generator, progress: Progress
) -> list[NDArray[np.float64]]:
    """Score tiles (n,) by their patches (n, g, g, c) against the banks they are not in: one score a vote."""
    n, grid, channels = len(patches), patches.shape[1], patches.shape[3]
    rows = patches.reshape(-1, channels)
    mean, whiten = whitening(rows[rng.permutation(len(rows))[:20_000]], 1e-3)
    white = (rows - mean) @ whiten
    norm = np.einsum("ij,ij->i", white, white)
    distances = np.full((FOLDS, n, grid * grid), np.inf, np.float32)
    for bank in range(FOLDS):
        inside = np.repeat(fold == bank, grid * grid)
        pool = white[rng.permutation(np.flatnonzero(inside))[: 6 * MEMORIES]]
        if not len(pool):
            continue
        memories = pool[k_centre(pool, min(MEMORIES, len(pool)), rng)]
        around = neighbour_distance(memories, pool, 10)
        offset = (memories**2).sum(axis=1) - 0.7 * np.maximum(around, np.median(around))  # as `memory-bank` has it
        nearest = np.concatenate(
            [(part @ (-2 * memories.T) + offset).min(axis=1) for part in np.array_split(white, math.ceil(n / 64))]
        )
        nearest += norm
        nearest[inside] = np.inf
        distances[bank] = nearest.reshape(n, -1)
        progress("comparing the good images", bank + 1, FOLDS)
    distances.sort(axis=0)
    scores = []
    for vote in VOTES:
        maps = distances[vote].reshape(n, 1, grid, grid)
        scores.append((average(maps, 3).max(axis=(1, 2, 3)) - 0.5 * maps.mean(axis=(1, 2, 3))).astype(np.float64))
    return scores


def _deviations(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Robust standard deviations of the logarithm above the median, by the quarter above it: scores are skewed."""
    logs = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    middle, upper = np.quantile(logs, (0.5, 0.75))
    deviations: NDArray[np.float64] = (logs - middle) / max(float(upper - middle) / 0.6745, LEAST_SPREAD)
    return deviations

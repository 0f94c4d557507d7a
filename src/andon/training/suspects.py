"""Good pictures that look like defects: each is compared with small memory banks that do not contain it.

A defective part in the folder of good parts is learnt as good; then the detector finds neither it nor similar defects.
Here, pictures are distributed at random over `FOLDS` banks, and each picture is compared with the banks that do not
contain it. The distances of each patch to these banks are sorted, and the smallest are ignored: a patch is usual only
if it is similar to patches in several banks, so that a few similar defects do not hide each other. A listed picture may
also be a good part of a rare kind: a person must look at it.
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
from andon.errors import AndonError, counted
from andon.geometry.views import Geometry
from andon.graphs import features
from andon.inspection import Array
from andon.pictures import image
from andon.progress import Progress, silent
from andon.recipe import Recipe

NETWORK, BLOCK = (
    "efficientnet-lite0",
    10,
)  # the coarser of the two stages of `memory-bank`
FOLDS = 10  # banks
VOTES = (1, 3)  # ranks: second and fourth nearest bank of a patch; the higher deviation of the two counts
MEMORIES = 500  # patches in a bank
LEAST = 20  # fewest pictures; with fewer, banks are too small
SIDES = (64, 256)  # pixels a side, least and most; tiles are resized to a multiple of the network's stride
TILES = 1000  # tiles compared at a time: at most 400 MB
LEAST_SPREAD = 0.02  # of the logarithm of the score
SHOWN, MOST_SHOWN = 12, 48  # pictures on the contact sheet
FAR = 4.0  # robust standard deviations of the logarithm of the score


class Judged(NamedTuple):
    """A good picture, and its deviation from the banks that do not contain it."""

    sample: Sample
    deviations: float  # robust standard deviations above the median of all pictures

    @property
    def suspect(self) -> bool:
        """Whether it looks like a defect."""
        return self.deviations > FAR


def look(data: Dataset, progress: Progress = silent) -> list[Judged]:
    """Judge the good pictures of a folder, without a test split, highest deviation first.

    Empty if there are too few, or if they cannot be used together.
    """
    good = data.training_images()
    if len(good) < LEAST:
        return []
    try:
        survey = survey_images(good, Recipe(), Store(), progress)
    except AndonError:  # reported by the check of the folder
        return []
    return judge(survey, Recipe().geometry, 0, progress)


def judge(survey: Survey, settings: Geometry, seed: int, progress: Progress = silent) -> list[Judged]:
    """Judge the surveyed pictures, highest deviation first; empty if there are too few."""
    samples = dataset.merge_groups(survey.samples, [survey.digests[sample.path] for sample in survey.samples])
    deviations = strangeness(samples, survey, settings, seed, progress)
    return [Judged(samples[i], float(deviations[i])) for i in np.argsort(-deviations)]


def findings(judged: Sequence[Judged], data: Dataset) -> list[Finding]:
    """The pictures that look like defects, for the report of a check; a note if there are too few to compare."""
    if (count := len(data.training_images())) < LEAST:
        message = (
            f"{counted(count, 'good image')}, too few to compare with each other; from {LEAST} on, check lists those "
            "that look like defects. Look at each."
        )
        return [Finding("note", "too-few-to-compare", message)] if count else []
    names = tuple((data.relative(one.sample),) for one in judged if one.suspect)
    if not names:
        return []
    message = (
        f"{len(names)} good image{'s look like defects' if len(names) > 1 else ' looks like a defect'}. Look at "
        "suspects.jpg, which `andon check --out` writes, and move defective images out of the folder of good images:"
    )
    return [Finding("warning", "suspect", message, names)]


def warning(judged: Sequence[Judged], folder: str) -> str:
    """A warning before a training: the pictures that look like defects; empty if there are none."""
    names = [one.sample.path.name for one in judged if one.suspect]
    if not names:
        return ""
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return (
        f"{len(names)} of {len(judged)} good images look{'s' * (len(names) == 1)} like a defect: {listed}. A defect "
        f"would be learnt as good. Run `andon check {folder} --out DIR`, look at suspects.jpg, and move defective "
        "images out of the folder of good images."
    )


def shown(judged: Sequence[Judged]) -> int:
    """Number of pictures on the contact sheet: all suspects, but at least `SHOWN` and at most `MOST_SHOWN`."""
    return min(max(sum(one.suspect for one in judged), SHOWN), MOST_SHOWN, len(judged))


def sheet(judged: Sequence[Judged]) -> bytes:
    """Draw the pictures with the highest deviations (see `shown`) as a JPEG; at least one picture."""
    count = shown(judged)
    pictures = [render.display(image.read(one.sample.path).pixels) for one in judged[:count]]
    captions = [f"{'SUSPECT ' * one.suspect}{one.deviations:.1f} sd  {one.sample.path.name}" for one in judged[:count]]
    return render.encode(render.contact_sheet(pictures, captions, columns=4), "jpg")


def strangeness(
    samples: Sequence[Sample], survey: Survey, settings: Geometry, seed: int = 0, progress: Progress = silent
) -> NDArray[np.float64]:
    """Robust standard deviations (n,) of each picture above the median; (0,) for too few pictures.

    Pictures of one group are in the same bank, so that no picture is compared with others of its part. Large sets are
    judged in several lots.
    """
    rng = np.random.default_rng(seed)
    groups = {group: i for i, group in enumerate(dict.fromkeys(sample.group for sample in samples))}
    if len(groups) < LEAST:
        return np.zeros(0)
    group = np.array([groups[sample.group] for sample in samples])
    tiles = sum(len(survey.entries[sample.path].tiles) for sample in samples)
    lots = min(math.ceil(tiles / TILES), len(groups) // LEAST)
    order = rng.permutation(len(groups))
    deviations = np.zeros(len(samples))
    for lot in range(lots):
        chosen = np.flatnonzero(order[group] % lots == lot)
        counts = [len(survey.entries[samples[int(i)].path].tiles) for i in chosen]
        fold = np.repeat(order[group[chosen]] // lots % FOLDS, counts)
        patches = _features(GoodTiles([samples[int(i)] for i in chosen], survey, settings), progress)
        first = np.cumsum([0, *counts])[:-1]
        scores = _scores(patches, fold, rng, progress)
        deviations[chosen] = np.max([_deviations(np.maximum.reduceat(of_tiles, first)) for of_tiles in scores], axis=0)
    return deviations


def _features(tiles: GoodTiles, progress: Progress) -> Array:
    """Locally averaged features (n, g, g, c) of all tiles."""
    (stage,) = features.select(NETWORK, [BLOCK])
    describe = features.Extractor(NETWORK, [BLOCK])
    side = min(max(min(tiles.shape) // stage.stride * stage.stride, SIDES[0]), SIDES[1])
    means = np.empty((len(tiles), side // stage.stride, side // stage.stride, stage.channels), np.float32)
    done = 0
    for batch in tiles:
        small = [cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA) for tile in batch]
        (maps,) = describe(np.stack(small).reshape(len(batch), side, side, tiles.channels))
        means[done : done + len(batch)] = average(maps, 3).transpose(0, 2, 3, 1)
        done += len(batch)
        progress("looking for defects among the good images", done, len(tiles))
    return means


def _scores(
    patches: Array, fold: NDArray[np.intp], rng: np.random.Generator, progress: Progress
) -> list[NDArray[np.float64]]:
    """Score tiles (n,) by their patches (n, g, g, c) against the banks that do not contain them: one score for each
    vote.
    """
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
        offset = (memories**2).sum(axis=1) - 0.7 * np.maximum(around, np.median(around))  # as in `memory-bank`
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
    """Robust standard deviations of the logarithm above the median, from the third quartile: scores are skewed."""
    logs = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    middle, upper = np.quantile(logs, (0.5, 0.75))
    deviations: NDArray[np.float64] = (logs - middle) / max(float(upper - middle) / 0.6745, LEAST_SPREAD)
    return deviations

"""Several bundles on the same labelled images: figures side by side, whether they differ, and the same pictures."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from andon.data.dataset import Dataset
from andon.errors import AndonError, DatasetError
from andon.evaluate import evaluating, metrics
from andon.evaluate.evaluating import Evaluation, Row
from andon.inspector import Inspector
from andon.progress import Progress, silent

RESAMPLES = 4000


class Difference(NamedTuple):
    """How far apart two AUROCs are on the same images."""

    first: str
    second: str
    value: float  # AUROC of the first minus that of the second
    interval: tuple[float, float]  # 95 %, percentiles of the resamples
    p_value: float  # two-sided


class Comparison:
    """Bundles on one data set."""

    def __init__(self, inspectors: dict[str, Inspector], dataset: Dataset, progress: Progress = silent) -> None:
        """Evaluate each; only images that all of them inspected enter the curves, the tests and the panels."""
        self.inspectors, self.dataset = inspectors, dataset
        self.evaluations: dict[str, Evaluation] = {}
        for name, inspector in inspectors.items():
            self.evaluations[name] = evaluating.evaluate(inspector, dataset, _under(name, progress))
        by_image = [{row.name: row for row in found.rows} for found in self.evaluations.values()]
        shared = [key for key in by_image[0] if all(key in rows for rows in by_image)]
        self.changed = [key for key in shared if len({rows[key].digest for rows in by_image}) > 1]
        common = [key for key in shared if key not in self.changed]
        if not common:
            raise DatasetError(f"{dataset.root}: no image that every bundle could inspect. Name other bundles.")
        self.rows = dict(zip(inspectors, ([rows[key] for key in common] for rows in by_image), strict=True))
        self.images: list[Row] = next(iter(self.rows.values()))
        self.defective = np.array([not row.good for row in self.images])
        self.scores = np.array([[row.score for row in rows] for rows in self.rows.values()])  # (bundles, images)

    @property
    def ranked(self) -> bool:
        """Whether there are good and defective images, so that scores can be compared."""
        return bool(self.defective.any() and not self.defective.all())

    @property
    def errors(self) -> list[str]:
        """Images that some bundle could not inspect, and those whose file changed from one bundle to the next."""
        found = {error for evaluation in self.evaluations.values() for error in evaluation.errors}
        return sorted(found) + [
            f"{name}: the file changed while the bundles were compared; left out of what is compared image by image. "
            "Compare again when nothing writes to the folder."
            for name in self.changed
        ]

    def differences(self) -> list[Difference]:
        """Every pair of bundles, tested; images of one group (part, lot or session) are drawn together."""
        if not self.ranked:
            return []
        groups = [row.group for row in self.images]
        found = bootstrap(self.defective, self.scores, groups)
        areas = [metrics.auroc(self.defective, scores) for scores in self.scores]
        pairs = itertools.combinations(enumerate(self.rows), 2)
        return [Difference(a, b, areas[i] - areas[j], *_two_sided(found[i] - found[j])) for (i, a), (j, b) in pairs]

    def above(self) -> NDArray[np.float64]:
        """The share of good images that score lower, ties half: (bundles, images). One scale for all detectors."""
        found = []
        for scores in self.scores:
            good = np.sort(scores[~self.defective])
            both = np.searchsorted(good, scores, "left") + np.searchsorted(good, scores, "right")
            found.append(both / (2 * max(len(good), 1)))
        return np.stack(found)


def _under(name: str, progress: Progress) -> Progress:
    """Report a bundle's progress under its own name."""
    return lambda stage, done, total: progress(name[:16], done, total)


def bootstrap(
    defective: NDArray[np.bool_], scores: NDArray[np.float64], groups: Sequence[str], resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """AUROCs (detectors, resamples) on images drawn with replacement, the same ones for every detector.

    Stratified: good and defective groups are drawn apart, so that each resample has as many of each; seeded. Efron and
    Tibshirani, "An introduction to the bootstrap", 1993, chapter 8.
    """
    rng = np.random.default_rng(0)
    weights = []
    for wanted in (False, True):
        names, member = np.unique(
            [g for g, d in zip(groups, defective, strict=True) if d == wanted], return_inverse=True
        )
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        weights.append(drawn[:, member].astype(np.float64))  # (resamples, images of that kind)
    good, bad = weights
    pairs = good.sum(axis=1) * bad.sum(axis=1)
    areas = []
    for each in scores:
        order = np.argsort(each[~defective], kind="stable")
        ascending = each[~defective][order]
        below = np.concatenate([np.zeros((resamples, 1)), np.cumsum(good[:, order], axis=1)], axis=1)
        left = np.searchsorted(ascending, each[defective], "left")
        right = np.searchsorted(ascending, each[defective], "right")
        areas.append(np.sum(bad * (below[:, left] + below[:, right]) / 2, axis=1) / pairs)
    return np.stack(areas)


def _two_sided(differences: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """The 95 % interval of resampled differences, and twice the smaller share of them on either side of nothing."""
    low, high = np.percentile(differences, (2.5, 97.5))
    sides = np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0)
    return (float(low), float(high)), min(1.0, 2 * (1 + int(min(sides))) / (1 + len(differences)))


def load(bundles: Sequence[Path]) -> dict[str, Inspector]:
    """Load bundles under names that tell them apart: the file's, with its folder where two files share one."""
    if len(bundles) < 2:
        raise AndonError(f"{len(bundles)} bundle; expected two or more to compare. For one: andon evaluate.")
    names = [path.stem for path in bundles]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{path.stem}" for path in bundles]
    if len(set(names)) < len(names):
        names = [str(path) for path in bundles]
    twice = next((name for j, name in enumerate(names) if name in names[:j]), None)
    if twice:
        raise AndonError(f"{twice}: named twice. Name each bundle once.")
    return {name: Inspector.load(path) for name, path in zip(names, bundles, strict=True)}

"""Several bundles on the same labelled images: figures, significance of their differences, and pictures."""

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
    """The difference of two AUROCs on the same images."""

    first: str
    second: str
    value: float  # AUROC of the first minus AUROC of the second
    interval: tuple[float, float]  # 95 %, percentiles of the resamples
    p_value: float  # two-sided


class Comparison:
    """Bundles on one data set."""

    def __init__(self, inspectors: dict[str, Inspector], dataset: Dataset, progress: Progress = silent) -> None:
        """Evaluate each bundle. Curves, tests and panels use only images that all bundles could inspect."""
        self.inspectors, self.dataset = inspectors, dataset
        self.evaluations: dict[str, Evaluation] = {}
        for name, inspector in inspectors.items():
            self.evaluations[name] = evaluating.evaluate(inspector, dataset, _under(name, progress))
        by_image = [{row.name: row for row in evaluation.rows} for evaluation in self.evaluations.values()]
        shared = [key for key in by_image[0] if all(key in rows for rows in by_image)]
        self.changed = [key for key in shared if len({rows[key].digest for rows in by_image}) > 1]
        common = [key for key in shared if key not in self.changed]
        if not common:
            raise DatasetError(
                f"{dataset.root}: no image could be inspected by every bundle; expected at least one. Compare bundles "
                "of the same product."
            )
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
        """Messages on images that a bundle could not inspect, and on files that changed during the comparison."""
        errors = {error for evaluation in self.evaluations.values() for error in evaluation.errors}
        return sorted(errors) + [
            f"{name}: the file changed during the comparison; it is not used in curves, tests and pictures. "
            "Compare again when no program writes to the folder."
            for name in self.changed
        ]

    @property
    def warnings(self) -> list[str]:
        """The warnings of the evaluations; with the names of the bundles that they are about, unless about all."""
        about: dict[str, list[str]] = {}
        for name, evaluation in self.evaluations.items():
            for sentence in evaluation.warnings:
                about.setdefault(sentence, []).append(name)
        everyone = len(self.evaluations)
        return [said if len(names) == everyone else f"{', '.join(names)}: {said}" for said, names in about.items()]

    def differences(self) -> list[Difference]:
        """The difference of every pair of bundles, by a paired bootstrap over groups (parts, lots or sessions)."""
        if not self.ranked:
            return []
        groups = [row.group for row in self.images]
        samples = bootstrap(self.defective, self.scores, groups)
        areas = [metrics.auroc(self.defective, scores) for scores in self.scores]
        pairs = itertools.combinations(enumerate(self.rows), 2)
        return [Difference(a, b, areas[i] - areas[j], *_two_sided(samples[i] - samples[j])) for (i, a), (j, b) in pairs]

    def above(self) -> NDArray[np.float64]:
        """The share of good images with a lower score, ties half: (bundles, images). One scale for all detectors."""
        shares = []
        for scores in self.scores:
            good = np.sort(scores[~self.defective])
            both = np.searchsorted(good, scores, "left") + np.searchsorted(good, scores, "right")
            shares.append(both / (2 * max(len(good), 1)))
        return np.stack(shares)


def _under(name: str, progress: Progress) -> Progress:
    """Report progress with the name of the bundle as its stage."""
    return lambda stage, done, total: progress(name[:16], done, total)


def bootstrap(
    defective: NDArray[np.bool_], scores: NDArray[np.float64], groups: Sequence[str], resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """AUROCs (detectors, resamples) on images drawn with replacement, the same images for all detectors.

    Stratified and seeded: each resample has the same numbers of good and of defective groups. Efron and Tibshirani,
    "An introduction to the bootstrap", 1993, chapter 8.
    """
    rng = np.random.default_rng(0)
    weights = []
    for label in (False, True):
        names, member = np.unique(
            [g for g, d in zip(groups, defective, strict=True) if d == label], return_inverse=True
        )
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        weights.append(counts[:, member].astype(np.float64))  # (resamples, images with this label)
    good, bad = weights
    pairs = good.sum(axis=1) * bad.sum(axis=1)
    areas = []
    for row in scores:
        order = np.argsort(row[~defective], kind="stable")
        ascending = row[~defective][order]
        below = np.concatenate([np.zeros((resamples, 1)), np.cumsum(good[:, order], axis=1)], axis=1)
        left = np.searchsorted(ascending, row[defective], "left")
        right = np.searchsorted(ascending, row[defective], "right")
        areas.append(np.sum(bad * (below[:, left] + below[:, right]) / 2, axis=1) / pairs)
    return np.stack(areas)


def _two_sided(differences: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """The 95 % interval of resampled differences, and the two-sided p-value: twice the smaller share beyond 0."""
    low, high = np.percentile(differences, (2.5, 97.5))
    sides = np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0)
    return (float(low), float(high)), min(1.0, 2 * (1 + int(min(sides))) / (1 + len(differences)))


def load(bundles: Sequence[Path]) -> dict[str, Inspector]:
    """Load bundles under distinct names: the name of the file, with its folder if two files have the same name.

    Errors: AndonError for fewer than two bundles, or the same bundle twice; BundleError as `Inspector.load`.
    """
    if len(bundles) < 2:
        raise AndonError(f"{len(bundles)} bundle; expected two or more. To measure one bundle, use andon evaluate.")
    names = [path.stem for path in bundles]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{path.stem}" for path in bundles]
    if len(set(names)) < len(names):
        names = [str(path) for path in bundles]
    repeated = next((name for j, name in enumerate(names) if name in names[:j]), None)
    if repeated:
        raise AndonError(f"{repeated}: given twice; expected different bundles. Give each bundle once.")
    return {name: Inspector.load(path) for name, path in zip(names, bundles, strict=True)}

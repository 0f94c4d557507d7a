"""Accuracy of `objective = "ensemble"`, computed from trained `restore` and `amplify` bundles.

    andon bench run benchmarks/filtering_autoencoder.toml
    python benchmarks/filtering_ensemble.py restore.andon amplify.andon ../shared/data/mvtec_ad/bottle

The plan keeps those bundles under benchmarks/results. The ensemble trains the same two networks from the same seeds
(a test checks it), so its map is the maximum of their maps at each pixel, and no further training is needed.
"""

import argparse
from pathlib import Path

import numpy as np

from andon.data import dataset
from andon.evaluate.evaluating import evaluate
from andon.inspection import Pixels, Scorer, Scores
from andon.inspector import Inspector


class Higher:
    """A scorer whose map is the higher of two at each pixel, and whose score is the mean of that map."""

    def __init__(self, *scorers: Scorer) -> None:
        """Take two scorers of tiles of one size."""
        self.scorers = scorers

    def score(self, tiles: Pixels) -> Scores:
        """Tiles (n, t, t, c) → scores (n,) and maps (n, t, t)."""
        found = np.maximum(*(scorer.score(tiles).pixel for scorer in self.scorers))
        return Scores(found.mean(axis=(1, 2)), found)


def main() -> None:
    """Print image AUROC, pixel AUROC and AUPRO of the ensemble, in %."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("restore", type=Path)
    parser.add_argument("amplify", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    inspector = Inspector.load(options.restore)
    inspector.scorer = Higher(inspector.scorer, Inspector.load(options.amplify).scorer)
    found = evaluate(inspector, dataset.load(options.folder)).metrics
    figures = (found["image"]["auroc"], found["pixel"]["auroc"], found["pixel"]["aupro_30"])
    print("ensemble", " / ".join(f"{100 * figure:.1f}" for figure in figures))


if __name__ == "__main__":
    main()

"""Test of the promised rates of false rejects: simulations of every kind of promise, and real pictures.

    python benchmarks/promises.py [DATA ...] --out docs/images/promises.svg

Synthetic good parts are points; the detector is the distance to the nearest learnt point, as in `memory-bank`, so
a fit takes microseconds and thousands of calibrations can be simulated. DATA are data sets in MVTec layout: from each,
some good pictures are drawn many times to train the default detector on, and the other good pictures are inspected.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from andon import files
from andon.calibration import Calibration, HeldOut, percent
from andon.data import dataset
from andon.evaluate import plots
from andon.inspector import Inspector
from andon.pictures import image
from andon.recipe import Data, Decision, Geometry, Recipe, Split
from andon.training.train import train

RATES = (0.02, 0.05, 0.1, 0.2)
DRAWS = 2_000
Points = NDArray[np.float64]


def distance(learnt: Points, new: Points) -> Points:
    """The distance (m,) of new points (m, d) to the nearest learnt point (n, d)."""
    gaps = ((new[:, None] - learnt[None]) ** 2).sum(axis=2)
    nearest: Points = np.sqrt(gaps.min(axis=1))
    return nearest


def good(rng: np.random.Generator, parts: int) -> tuple[Points, list[str]]:
    """Images of good parts as points (n, 4), and which part each shows: parts differ more than their images."""
    images = rng.integers(1, 6, parts)
    centres = np.repeat(rng.standard_t(5, (parts, 4)), images, axis=0)
    return centres + 0.2 * rng.standard_normal(centres.shape), np.repeat(np.arange(parts), images).astype(str).tolist()


def held_out(scores: Points, parts: list[str], fold: list[int] | None = None) -> Calibration:
    """A calibration of scores (n,)."""
    frames = zip(scores.tolist(), parts, fold or [0] * len(parts), strict=True)
    return Calibration.learn([HeldOut(p, s, s, 0.0, fold=f) for s, p, f in frames], crossed=fold is not None)


def split(rng: np.random.Generator, per: str) -> dict[float, float]:
    """Mean rate of false rejects at each asked rate: 40 parts learnt, 60 held out, per image or per part."""
    stopped = dict.fromkeys(RATES, 0.0)
    for _ in range(DRAWS):
        learnt, _ = good(rng, 40)
        new, part = good(rng, 60)
        found, worst = held_out(distance(learnt, new), part), distance(learnt, good(rng, 1)[0])
        score = worst.max() if per == "part" else worst[0]
        for rate in RATES:
            limits = found.thresholds(Decision(review_rate=rate, reject_rate=rate, per=per))
            stopped[rate] += float(score > limits.review) / DRAWS
    return stopped


def crossed(rng: np.random.Generator, count: int, folds: int = 5) -> dict[float, float]:
    """Mean rate of false rejects of a detector that learnt from all `count` images, calibrated crossed."""
    stopped = dict.fromkeys(RATES, 0.0)
    fold = [i % folds for i in range(count)]
    for _ in range(DRAWS):
        points = rng.standard_t(5, (count, 4))
        scores = np.empty(count)
        for f in range(folds):
            own = np.array(fold) == f
            scores[own] = distance(points[~own], points[own])
        found, new = held_out(scores, [str(i) for i in range(count)], fold), distance(points, rng.standard_t(5, (1, 4)))
        for rate in RATES:
            limits = found.thresholds(Decision(review_rate=rate, reject_rate=rate))
            stopped[rate] += float(new[0] > limits.review) / DRAWS
    return stopped


def long_run(rng: np.random.Generator, count: int = 99) -> dict[float, float]:
    """Share of calibrations on `count` images whose long-run rate lies in the interval that is told; nominal 95 %."""
    inside = dict.fromkeys(RATES, 0.0)
    for _ in range(DRAWS):
        found = held_out(rng.uniform(size=count), [str(i) for i in range(count)])
        for rate in RATES:
            interval = found.long_run(rate, "image")
            true = 1 - found.thresholds(Decision(review_rate=rate, reject_rate=rate)).review
            assert interval is not None
            inside[rate] += (interval[0] <= true <= interval[1]) / DRAWS
    return inside


def real(folder: Path, count: int, method: str, draws: int) -> tuple[str, float, int]:
    """Train on `count` good pictures, drawn `draws` times; what is promised for REVIEW and the rate on all others."""
    data = dataset.load(folder)
    paths = sorted(sample.path for sample in data.good("train"))
    stopped = tried = 0
    promised = 0.0
    for seed in range(draws):
        order = np.random.default_rng(seed).permutation(len(paths))
        with tempfile.TemporaryDirectory() as place:
            for i in order[:count].tolist():
                (Path(place) / "good").mkdir(exist_ok=True)
                (Path(place) / "good" / paths[i].name).symlink_to(paths[i].resolve())
            recipe = Recipe(
                data=Data(images=f"{place}/good"),
                geometry=Geometry(size=128),
                split=Split.model_validate({"method": method}),
                seed=seed,
            )
            train(recipe, Path(place) / "b.andon")
            inspector = Inspector.load(Path(place) / "b.andon")
            others = [paths[i] for i in order[count : count + 60].tolist()]
            promised = max(inspector.decision.review_rate, inspector.calibration.supported_rate)
            stopped += sum(inspector.inspect(image.read(path)).score > inspector.thresholds.review for path in others)
            tried += len(others)
    return percent(promised), stopped / tried, tried


def main() -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draws", type=int, default=6, help="trainings for each row on real pictures")
    given = parser.parse_args()
    kinds: dict[str, Callable[[np.random.Generator], dict[float, float]]] = {
        "per image, 60 parts held out": lambda rng: split(rng, "image"),
        "per part, 60 parts held out": lambda rng: split(rng, "part"),
        "crossed, 20 images in all": lambda rng: crossed(rng, 20),
        "crossed, 40 images in all": lambda rng: crossed(rng, 40),
        "crossed, 100 images in all": lambda rng: crossed(rng, 100),
    }
    print("| promise | " + " | ".join(f"asked {percent(rate)}" for rate in RATES) + " |")
    print("|---|" + "---|" * len(RATES))
    curves = []
    colours = ("#1f6f8b", "#b3541e", "#3c7a3c", "#7a4fa3", "#8a8a2a")
    for (name, simulate), colour in zip(kinds.items(), colours, strict=True):
        found = simulate(np.random.default_rng(0))
        print(f"| {name} | " + " | ".join(percent(value) for value in found.values()) + " |", flush=True)
        curves.append(plots.Line(np.array(RATES), np.array(list(found.values())), name, colour))
    found = long_run(np.random.default_rng(0))
    print("| long-run interval holds, 99 images | " + " | ".join(percent(value) for value in found.values()) + " |")
    if given.out:
        limits = (0.0, 0.25)
        figure = plots.line_plot(
            curves, "asked rate", "rate of false rejects", x_range=limits, y_range=limits, diagonal=True
        )
        files.write(given.out, figure.encode())
    for folder in given.data:
        for count in (20, 40):
            for method in ("split", "cross"):
                promised, rate, tried = real(folder, count, method, given.draws)
                print(f"{folder.name}, {count} good, {method}: promised {promised}, seen {percent(rate)} of {tried}")


if __name__ == "__main__":
    main()

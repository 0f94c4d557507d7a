"""Does `andon.station.drift` keep its rate of false alarms, and how many parts does it need to see a change?

    python benchmarks/drift.py rates     # simulated: fixed and semi-online ranks, defects, size of a change
    python benchmarks/drift.py tiles ../shared/data/magnetic_tile    # changed exposure, blur and dimming

`rates` takes about ten minutes on one core, `tiles` about three.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.inspection import Pixels
from andon.inspector import Inspector
from andon.pictures import appearance, image
from andon.recipe import Data, Decision, Geometry, Recipe, Split
from andon.station.drift import Drift, Ranks
from andon.training.train import train

PARTS, RUNS = 5_000, 400
Floats = NDArray[np.float64]


def fixed(reference: Floats, production: Floats, rng: np.random.Generator) -> Floats:
    """P-values by the reference alone, smoothed."""
    ordered = np.sort(reference)
    above = len(ordered) - np.searchsorted(ordered, production, side="right")
    same = len(ordered) - above - np.searchsorted(ordered, production, side="left") + 1
    return (above + rng.random(len(production)) * same) / (len(ordered) + 1)


def online(reference: Floats, production: Floats, rng: np.random.Generator) -> Floats:
    """P-values by the reference and all earlier production."""
    ranks = Ranks(reference.tolist(), str(rng.integers(1 << 60)))
    return np.array([ranks.add(value) for value in production.tolist()])


def jumper(p_values: Floats, jump: float = 0.01) -> Floats:
    """The highest value (runs,) of the martingale 'simple jumper' on p-values (runs, parts)."""
    slopes = np.array([-1.0, 0.0, 1.0])
    capital, highest = np.full((len(p_values), 3), 1 / 3), np.ones(len(p_values))
    for p in p_values.T:
        capital = (1 - jump) * capital + jump * capital.sum(axis=1, keepdims=True) / 3
        capital *= 1 + slopes * (p[:, None] - 0.5)
        highest = np.maximum(highest, capital.sum(axis=1))
    return highest


def alarm(scores: Sequence[float], production: Floats, **settings: Any) -> int:
    """Parts until the first alarm; 0: none."""
    drift = Drift(scores, **settings)
    return next((n for n, value in enumerate(production.tolist(), 1) if drift.add({"score": value})), 0)


def trap(rng: np.random.Generator) -> Iterator[str]:
    yield f"Alarms within {PARTS} parts while nothing changes, of {RUNS} runs; nominal 1 %"
    yield "| calibration n | martingale, fixed set | martingale, semi-online | `Drift`, 1 in 500,000 parts |"
    for n in (30, 100, 300, 1000):
        draws = [(rng.standard_normal(n), rng.standard_normal(PARTS)) for _ in range(RUNS)]
        shares = [np.mean(jumper(np.array([rank(*draw, rng) for draw in draws])) >= 100) for rank in (fixed, online)]
        found = np.mean([alarm(a, b, parts_per_alarm=5e5 / 4) > 0 for a, b in draws])  # one measure of four
        yield f"| {n} | {shares[0]:.2%} | {shares[1]:.2%} | {found:.2%} |"


def defects(rng: np.random.Generator) -> Iterator[str]:
    yield f"Alarms within {PARTS} parts, 100 runs, calibration of 100 good parts, share of defects in production"
    for share in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2):
        found = 0
        for _ in range(100):
            production = rng.standard_normal(PARTS) + 10 * (rng.random(PARTS) < share)
            found += alarm(rng.standard_normal(100), production) > 0
        yield f"| {share:.0%} | {found} % |"


def delays(rng: np.random.Generator) -> Iterator[str]:
    yield "Parts from a change to the alarm, median (90 %), 100 runs; calibration 100, then 500 parts before the change"
    changes: dict[str, Callable[[Floats], Floats]] = {
        **{f"higher by {by} standard deviations": (lambda x, by=by: x + by) for by in (0.5, 1, 2, 4)},
        **{f"lower by {by} standard deviations": (lambda x, by=by: x - by) for by in (1, 2)},
        "spread doubled": lambda x: 2 * x,
    }
    for name, change in changes.items():
        found = []
        for _ in range(100):
            production = np.concatenate([rng.standard_normal(500), change(rng.standard_normal(2_000))])
            found.append(alarm(rng.standard_normal(100), production))
        later = [n - 500 if n > 500 else np.inf for n in found]
        yield f"| {name} | {summary(later)} |"


def summary(parts: Sequence[float]) -> str:
    """Median and 90 % of the parts until an alarm, and how many runs had none."""
    median, most = np.quantile(parts, (0.5, 0.9), method="higher")
    silent = f"; none in {sum(np.isinf(parts))} of {len(parts)}" if np.isinf(parts).any() else ""
    return f"{median:.0f} ({most:.0f}){silent}"


def tiles(folder: Path, rng: np.random.Generator) -> Iterator[str]:
    """One exposure is learnt; then the exposure changes, or the same pictures are blurred or dimmed."""
    groups = dict(line.split(",")[:2] for line in (folder / "good_groups.csv").read_text().splitlines()[1:])
    pictures: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("good/exp*.*")):
        pictures.setdefault(path.name.split("_")[0], []).append(path)
    usual = pictures.pop("exp3")
    rng.shuffle(usual)  # type: ignore[arg-type]
    learnt, unseen = usual[:100], usual[100:]
    with tempfile.TemporaryDirectory() as place:
        names = Path(place) / "good"
        names.mkdir()
        for path in learnt:
            (names / path.name).symlink_to(path.resolve())
        recipe = Recipe(
            product="tile",
            data=Data(images=place),
            geometry=Geometry(size=128),
            split=Split(method="split", calibrate=0.5),
            decision=Decision(reject_rate=0.03),
        )
        train(recipe, Path(place) / "tile.andon")
        inspector = Inspector.load(Path(place) / "tile.andon")
    seen = {group_of(groups, path) for path in learnt}
    yield f"{len(learnt)} tiles at exposure 3 learnt, {len(unseen)} other tiles are inspected before the change"
    before = [record(inspector, path, lambda x: x) for path in unseen]
    others = {name: [path for path in paths if group_of(groups, path) not in seen] for name, paths in pictures.items()}
    changed = {
        **{name: [record(inspector, path, lambda x: x) for path in paths] for name, paths in sorted(others.items())},
        **{f"exp3, {name}": [record(inspector, path, make) for path in unseen] for name, make in CHANGES.items()},
    }
    for name, after in changed.items():
        if len(after) < 20:
            continue
        found: list[tuple[float, str]] = []
        for _ in range(50):
            drift = Drift.of(inspector.calibration)
            first, then = (list(rng.permutation(np.array(each, object))) for each in (before, after))
            early = [drift.add(each) for each in first]
            assert not any(early), f"{name}: alarm before the change"
            changes = ((n, drift.add(each)) for n, each in enumerate(then, 1))
            n, change = next(((n, change) for n, change in changes if change), (np.inf, None))
            found.append((n, f"{change.measure} {change.kind}" if change else "none"))
        kinds = sorted({kind for _, kind in found}, key=[kind for _, kind in found].count, reverse=True)
        yield f"| {name} | {len(after)} | {summary([n for n, _ in found])} | {', '.join(kinds)} |"


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "not changed": lambda x: x,
    "blur, sigma 1": lambda x: np.asarray(cv2.GaussianBlur(x, (0, 0), 1), np.uint8).reshape(x.shape),
    "blur, sigma 2": lambda x: np.asarray(cv2.GaussianBlur(x, (0, 0), 2), np.uint8).reshape(x.shape),
    "dimmed to 95 %": lambda x: (x * 0.95).astype(np.uint8),
    "dimmed to 90 %": lambda x: (x * 0.9).astype(np.uint8),
    "dimmed to 80 %": lambda x: (x * 0.8).astype(np.uint8),
}


def group_of(groups: dict[str, str], path: Path) -> str:
    return groups.get(path.name) or groups[path.stem]


def record(inspector: Inspector, path: Path, change: Callable[[Pixels], Pixels]) -> dict[str, Any]:
    """What a record of the station says for drift."""
    read = image.read(path)
    pixels = change(read.pixels)
    look = appearance.of(pixels)
    shares = {key: getattr(look, key) / look.top for key in ("mean", "sharpness")}
    return {"score": inspector.inspect(pixels).score, "appearance": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("rates", "tiles"))
    parser.add_argument("folder", type=Path, nargs="?")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    for part in (trap, defects, delays) if given.what == "rates" else ((lambda r: tiles(given.folder, r)),):
        for line in part(rng):
            print(line, flush=True)


if __name__ == "__main__":
    main()

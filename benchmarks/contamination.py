"""Defects among the good pictures: which of them are listed, and what they cost.

    python benchmarks/contamination.py ../shared/data docs/trust_contamination.md

For bottle, screw and magnetic_tile at 256²: at most 200 good training pictures, and as many defective pictures of the
test split, drawn at random, that they are 2, 5 and 10 % of the folder. Figures of memory-bank (20,000 candidates), on
the test pictures that were not mixed in; one seed.
"""

import sys
from pathlib import Path

import numpy as np

from andon import dataset, image, metrics, survey, suspects
from andon.detectors.memory_bank import MemoryBank, Settings
from andon.recipe import Recipe
from andon.runtime import Runtime
from andon.survey import GoodTiles

PRODUCTS = {"bottle": "mvtec_ad/bottle", "screw": "mvtec_ad/screw", "magnetic_tile": "magnetic_tile"}
SHARES = (0.0, 0.02, 0.05, 0.10)
GOOD = 200
HEAD = """| product | mixed in | listed | precision | recall | defects among the sheet | AUROC clean | contaminated | \
listed removed | defects of the sheet removed |
|---|---|---|---|---|---|---|---|---|---|
"""


def auroc(learnt: list[dataset.Sample], test: list[dataset.Sample]) -> float:
    """Image AUROC in % of a memory bank that learns from some pictures, on others."""
    geometry = Recipe().geometry
    seen = survey.look_over(learnt, Recipe(), lambda *step: None)
    model = MemoryBank(Settings(candidates=20_000), 0).fit(GoodTiles(seen.samples, seen, geometry))
    scorer = Runtime(model.graph().SerializeToString())
    scores = []
    for sample in test:
        tiles = np.stack(list(survey.cut(image.read(sample.path), geometry, None)))
        scores.append(float(scorer.score(tiles).image.max()))
    return 100 * metrics.auroc([not sample.good for sample in test], scores)


def rows(name: str, folder: Path) -> list[str]:
    """The lines of one product."""
    rng = np.random.default_rng(0)
    data = dataset.load(folder)
    good = data.good("train")
    good = [good[i] for i in sorted(rng.permutation(len(good))[:GOOD])]
    bad = data.defective("test")
    bad = [bad[i] for i in rng.permutation(len(bad))]
    found = []
    for share in SHARES:
        count = round(len(good) * share / (1 - share))
        mixed = [*good, *bad[:count]]
        defects = {sample.path for sample in bad[:count]}
        test = [*data.good("test"), *bad[count:]]
        seen = survey.look_over(mixed, Recipe(), lambda *step: None)
        judged = suspects.judge(seen, Recipe().geometry, 0)
        listed = {one.sample.path for one in judged if one.suspect}
        sheet = {one.sample.path for one in judged[: suspects.shown(judged)]}
        hits = len(listed & defects)
        figures = [auroc(good, test)]
        if count:
            figures.append(auroc(mixed, test))
            for removed in (listed, sheet & defects):
                rest = [sample for sample in mixed if sample.path not in removed]
                figures.append(auroc(rest, test) if removed else figures[1])
        values = [f"{value:.1f}" for value in figures] + ["–"] * (4 - len(figures))
        precision = f"{hits} of {len(listed)}" if listed else "–"
        recall = f"{hits} of {count}" if count else "–"
        cells = [name, f"{count} ({share:.0%})", str(len(listed)), precision, recall, f"{len(sheet & defects)}"]
        found.append(f"| {' | '.join([*cells, *values])} |\n")
        print(found[-1], end="", flush=True)
    return found


if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    lines = [line for name, folder in PRODUCTS.items() for line in rows(name, root / folder)]
    out.write_text(HEAD + "".join(lines))

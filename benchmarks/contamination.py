"""Defects among the good training pictures: which are listed as suspects, and the loss of accuracy.

    python benchmarks/contamination.py ../shared/data contamination.md [PRODUCT ...]

For bottle, screw, screw with test pictures in the light of its training pictures, and magnetic_tile: at most 200 good
training pictures, and random defective pictures of the test split, 2, 5 and 10 % of the folder. The default detector,
at its own size, learns from that folder, from the folder without the listed pictures, and from the folder without the
defects that a person sees on the contact sheet. Figures on the other test pictures: image AUROC in %, and how many of
the defective ones escape REVIEW. One seed.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from andon.data import dataset
from andon.data.dataset import Dataset, Sample
from andon.evaluate.evaluating import evaluate
from andon.inspector import Inspector
from andon.lab.bench import equalised
from andon.training import suspects
from andon.training.train import train

PRODUCTS = {
    "bottle": "mvtec_ad/bottle",
    "screw": "mvtec_ad/screw",
    "screw-equalised": "mvtec_ad/screw",
    "magnetic_tile": "magnetic_tile",
}
SHARES = (0.0, 0.02, 0.05, 0.10)
GOOD = 200
HEAD = """| product | mixed in | listed | of these defective | defects on the sheet | clean | contaminated | \
listed removed | defects on the sheet removed |
|---|---|---|---|---|---|---|---|---|
"""


def copied(samples: Iterable[Sample], folder: Path) -> Path:
    """Copy pictures into one folder without labels."""
    folder.mkdir()
    for sample in samples:
        shutil.copy(sample.path, folder / f"{sample.defect}_{sample.path.name}")
    return folder


def learnt(folder: Path) -> Inspector:
    """The default detector, trained on a folder."""
    return Inspector(train(folder, folder.with_suffix(".andon")))


def figures(inspector: Inspector, data: Dataset, test: Sequence[Sample]) -> str:
    """Image AUROC, and escapes at REVIEW."""
    found = evaluate(inspector, replace(data, samples=tuple(test))).metrics
    escapes = found["decision"]["review"]["escapes"]
    return f"{100 * found['image']['auroc']:.1f}; {escapes['count']} of {escapes['n']}"


def rows(name: str, data: Dataset, root: Path) -> Iterator[str]:
    """Lines of the table, of one product."""
    rng = np.random.default_rng(0)
    good, bad = data.good("train"), data.defective("test")
    good = [good[int(i)] for i in sorted(rng.permutation(len(good))[:GOOD])]
    bad = [bad[int(i)] for i in rng.permutation(len(bad))]
    clean = learnt(copied(good, root / "clean"))
    for share in SHARES:
        count = round(len(good) * share / (1 - share))
        mixed = copied([*good, *bad[:count]], root / f"mixed{count}")
        judged = suspects.look(dataset.load(mixed))
        listed = {one.sample.path for one in judged if one.suspect}
        sheet = {one.sample.path for one in judged[: suspects.shown(judged)]}
        defects = {path for path in mixed.iterdir() if not path.name.startswith("good_")}
        cells = [
            name,
            f"{count} ({share:.0%})",
            f"{len(listed)}",
            f"{len(listed & defects)}",
            f"{len(sheet & defects)}",
        ]
        if count:
            test = [*data.good("test"), *bad[count:]]
            known = {frozenset(): figures(learnt(mixed), data, test)}
            for removed in map(frozenset, (listed, sheet & defects)):
                if removed not in known:
                    rest = shutil.copytree(mixed, root / f"rest{count}-{len(known)}")
                    for path in removed:
                        (rest / path.name).unlink()
                    known[removed] = figures(learnt(rest), data, test)
            removals = (set(), listed, sheet & defects)
            cells += [figures(clean, data, test), *(known[frozenset(removed)] for removed in removals)]
        else:
            cells += ["–"] * 4
        yield f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    data_root, out, *chosen = sys.argv[1:]
    lines: list[str] = []
    for product in chosen or PRODUCTS:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(data_root, PRODUCTS[product])
            if product == "screw-equalised":
                source = equalised.write(source, Path(scratch, product))
            for line in rows(product, dataset.load(source), Path(scratch)):
                lines.append(line)
                print(line, end="", flush=True)
                Path(out).write_text(HEAD + "".join(lines))

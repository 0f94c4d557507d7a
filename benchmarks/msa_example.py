"""A measurement system analysis on pictures of MVTec's bottle, with simulated presentations: see docs/msa.md.

    python benchmarks/msa_example.py ../shared/data/mvtec_ad/bottle --out msa_example

In a real study, each part is removed from the fixture, put back, and photographed again. Here each presentation is one
picture of the part, shifted by up to 3 pixels each way, in light that varies by 1 % (standard deviation), with
noise of 1.5 gray levels; the conditions are the lamp as it was, aged by 8 %, and warmer. One bundle learns the good
pictures as they are ("still"), another learns one presentation of each ("presented"). It shows the method; the
figures do not hold for a real line.
"""

import argparse
import csv
import io
import math
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from andon import files
from andon.data import dataset
from andon.inspector import Inspector
from andon.pictures import image
from andon.proof import msa, table
from andon.recipe import Data, Geometry, Recipe, Split
from andon.training.train import train

LAMPS = {"lamp as in training": (1.0, 1.0, 1.0), "lamp aged": (0.92, 0.92, 0.92), "lamp warm": (1.03, 1.0, 0.95)}
TRIALS = 3
DEFECTIVE = 10  # parts of each kind
SHIFT, LIGHT, NOISE = 3.0, 0.01, 1.5  # pixels, share, gray levels of 255


def presented(picture: NDArray[np.uint8], lamp: tuple[float, ...], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture (H, W, 3) of a part that was put back and photographed again."""
    dx, dy = rng.uniform(-SHIFT, SHIFT, 2)
    move = np.array([[1, 0, dx], [0, 1, dy]])
    moved = cv2.warpAffine(picture, move, picture.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    lit = moved * (np.array(lamp) * rng.normal(1, LIGHT)) + rng.normal(0, NOISE, picture.shape)
    return np.clip(np.round(lit), 0, 255).astype(np.uint8)


def bundle(data: Path, out: Path, lamps: bool, size: int, rng: np.random.Generator) -> Path:
    """Train on the good pictures as they are, or on one presentation of each under a lamp drawn at random."""
    if out.is_file():
        return out
    pictures = data / "train" / "good"
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "good").mkdir()
        for path in sorted(pictures.iterdir()):
            target = Path(place) / "good" / path.name
            if lamps:
                lamp = list(LAMPS.values())[rng.integers(len(LAMPS))]
                image.write(target, presented(image.read(path).pixels, lamp, rng))
            else:
                target.symlink_to(path.resolve())
        recipe = Recipe(
            data=Data(images=f"{place}/good"),
            geometry=Geometry(size=size),
            split=Split.model_validate({"method": "cross"}),
        )
        train(recipe, out, tell=lambda words: print(words, file=sys.stderr))
    return out


def presentations(data: Path, inspector: Inspector, rng: np.random.Generator) -> bytes:
    """The table: all good parts of the test images and some of each kind of defect, under each lamp, several times."""
    chosen: dict[str, list[Path]] = {}
    for sample in dataset.load(data).samples:
        if sample.split == "test":
            chosen.setdefault(sample.defect, []).append(sample.path)
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([*table.COLUMNS, "review_threshold", "reject_threshold", "bundle"])
    for kind, paths in chosen.items():
        for path in sorted(paths)[: None if kind == "good" else DEFECTIVE]:
            picture = image.read(path).pixels
            for condition, lamp in LAMPS.items():
                for trial in range(1, TRIALS + 1):
                    found = inspector.inspect(presented(picture, lamp, rng), f"{kind}/{path.name}")
                    score = "" if math.isnan(found.score) else repr(found.score)
                    named = (f"{kind} {path.stem}", kind, "bottle station", condition, trial)
                    limits = (found.thresholds.review, found.thresholds.reject)
                    rows.writerow([*named, found.verdict.value, score, found.digest, *limits, found.bundle])
    return text.getvalue().encode()


def main() -> None:
    """Train twice, present all parts to both bundles, write the tables, and analyse them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("msa_example"))
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    for name, lamps in (("still", False), ("presented", True)):
        out = options.out / name
        files.make_folder(out)
        made = bundle(options.data, out / "bottle.andon", lamps, options.size, np.random.default_rng(1))
        files.write(out / "table.csv", presentations(options.data, Inspector.load(made), np.random.default_rng(0)))
        study = msa.study(table.read(out / "table.csv"), by="benchmarks/msa_example.py, a simulation", bundle=made)
        print(f"== {name}\n{study.text()}\n{msa.write(study, out)}")


if __name__ == "__main__":
    main()

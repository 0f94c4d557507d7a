"""Registration: pose errors and time on real pictures, and its effect on detectors of moved parts.

    python benchmarks/registration.py [--data ../shared/data] [--images 20] [--train 80] [--test 60] [--size 256]
        [--detectors variation nearest-image] [--products bottle moved screw screw-equalised]

Poses: each picture is rotated and shifted by a random known pose, with repeated edges. *Itself*: registered to the
unmoved picture. *Another*: registered to the picture of another part; the truth is then the registered pose of the
unmoved picture, so this measures whether a part is always brought to the same place. Rotation about
an axis of symmetry is undetermined between parts, so *another* is measured for parts without one. Found: within 1° and
1 % of the longer side. `hidden`: a square of a fifth of the picture's area is painted over.

Detectors: bottle as it is; `moved`: copies of it, every picture with its mask moved by up to 5 % and turned by up to
10°; screw as it is; and `screw-equalised`, whose test pictures have the light of its training pictures.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from andon.data import dataset
from andon.data.dataset import Sample
from andon.evaluate import evaluating
from andon.geometry.registration import NotFound, Reference, Register
from andon.inspector import Inspector
from andon.lab.bench import equalised
from andon.pictures import image
from andon.pictures.image import Image
from andon.recipe import Recipe
from andon.training.train import train as fit

Matrix = NDArray[np.float64]
SETS = (  # name, degrees either way, shift as a part of the longer side, whether against another part too
    ("mvtec_ad/bottle", 10, 0.05, False),
    ("mvtec_ad/screw", 180, 0.05, True),
    ("hazelnut_toy", 180, 0.1, False),
    ("ball_screw", 10, 0.05, True),
    ("magnetic_tile", 10, 0.05, False),
)
PRODUCTS = {  # name: data set, what tables call it, whether it is moved, and the recipe's max_rotation
    "bottle": ("bottle", "bottle", False, 25.0),
    "moved": ("bottle", "bottle, moved", True, 25.0),
    "screw": ("screw", "screw", False, 180.0),
    "screw-equalised": ("screw", "screw, equalised", False, 180.0),
}
HIDDEN = 0.2
LOOSE = Register(max_shift=0.4, least_quality=0)


def pose(angle: float, shift: NDArray[np.float64], shape: tuple[int, ...]) -> Matrix:
    """Turn about the middle, then shift: (2, 3)."""
    middle = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    radians = np.radians(angle)
    turn = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    return np.hstack([turn, (middle + shift - turn @ middle)[:, None]])


def random_pose(rng: np.random.Generator, rotation: float, shift: float, shape: tuple[int, ...]) -> Matrix:
    """Draw a pose evenly."""
    return pose(rng.uniform(-rotation, rotation), rng.uniform(-shift, shift, 2) * max(shape), shape)


def moved(pixels: Any, matrix: Matrix, flags: int = cv2.INTER_CUBIC) -> Any:
    """Move a picture, repeating its edge."""
    size = (pixels.shape[1], pixels.shape[0])
    warped: Any = cv2.warpAffine(pixels, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return warped.reshape(pixels.shape)


def painted(pixels: Any, rng: np.random.Generator) -> Any:
    """Hide a part of a picture."""
    h, w = (round(length * HIDDEN**0.5) for length in pixels.shape[:2])
    y, x = rng.integers(0, pixels.shape[0] - h), rng.integers(0, pixels.shape[1] - w)
    pixels[y : y + h, x : x + w] = rng.integers(0, 255)
    return pixels


def apart(found: Matrix, wanted: Matrix, shape: tuple[int, ...]) -> tuple[float, float]:
    """Degrees, and pixels at the middle."""
    turns = [np.degrees(np.arctan2(m[1, 0], m[0, 0])) for m in (found, wanted)]
    middle = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2, 1])
    return abs((turns[0] - turns[1] + 180) % 360 - 180), float(np.hypot(*(found @ middle - wanted @ middle)))


def chain(outer: Matrix, inner: Matrix) -> Matrix:
    """First the inner, then the outer."""
    return (np.vstack([outer, [0, 0, 1]]) @ np.vstack([inner, [0, 0, 1]]))[:2]


def poses(folder: Path, count: int) -> Iterator[str]:
    """Measure every set; yield the rows of a table."""
    yield "| pictures | against | turned by | px: median | 95th | degrees: median | 95th | found | quality | CPU ms |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, rotation, shift, others in SETS:
        files = sorted((folder / name / "train/good").iterdir())
        files = files[:: max(1, len(files) // (count + 1))][: count + 1]
        pictures = [image.read(path).pixels for path in files]
        other = Reference.of(Image(pictures[0], name), LOOSE)
        for against, hidden in [("itself", False), ("itself, hidden", True)] + [("another", False)] * others:
            rng = np.random.default_rng(0)
            rows = []
            for pixels in pictures[1:]:
                matrix = random_pose(rng, rotation, shift, pixels.shape)
                picture = moved(pixels, matrix)
                picture = painted(picture, rng) if hidden else picture
                same = against != "another"
                reference = Reference.of(Image(pixels, name), LOOSE) if same else other
                try:
                    wanted = matrix if same else chain(matrix, reference.find(pixels, name)[0])
                    reference.find(picture, name)  # the first search of a shape prepares the reference
                    began = time.process_time()  # one thread, so this does not count what else the machine does
                    found, figures = reference.find(picture, name)
                    spent = 1000 * (time.process_time() - began)
                except NotFound:
                    rows.append((180.0, float(max(pixels.shape)), 0.0, np.nan, False))
                    continue
                degrees, off = apart(found, wanted, reference.frame)
                right = degrees < 1 and off < 0.01 * max(reference.frame)
                rows.append((degrees, off, figures.quality, spent, right))
            degrees, off, quality, milliseconds, right = np.array(rows, float).T
            (d50, d95), (o50, o95) = np.percentile(degrees, (50, 95)), np.percentile(off, (50, 95))
            yield (
                f"| {name.split('/')[-1]} {pictures[1].shape[1]} × {pictures[1].shape[0]} | {against} | {rotation}° | "
                f"{o50:.2f} | {o95:.2f} | {d50:.3f} | {d95:.3f} | {right.mean():.0%} | {np.median(quality):.2f} | "
                f"{np.nanmedian(milliseconds):.0f} |"
            )


def copies(source: Path, target: Path, train: int, test: int, move: bool) -> Path:
    """Write a part of a data set, moved or as it is: as many of its images as asked, evenly drawn."""
    data = dataset.load(source)
    rng = np.random.default_rng(1)

    def evenly(samples: list[Sample], count: int) -> list[Sample]:
        return samples[:: max(1, -(-len(samples) // count))]

    labelled = [s for s in data.samples if s.split == "test"]
    good, bad = ([s for s in labelled if s.good is side] for side in (True, False))
    for sample in [*evenly(data.training_images(), train), *good, *evenly(bad, test)]:
        pixels = image.read(sample.path).pixels
        matrix = random_pose(rng, 10, 0.05, pixels.shape) if move else np.eye(2, 3)
        place = target / sample.split / (sample.defect or "good") / f"{sample.path.stem}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.write(place, moved(pixels, matrix))
        if sample.mask:
            mask = np.where(dataset.mask(sample.mask), np.uint8(255), np.uint8(0))[..., None]
            place = target / "ground_truth" / sample.defect / f"{sample.path.stem}_mask.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.write(place, moved(mask, matrix, cv2.INTER_NEAREST))
    return target


def detectors(options: argparse.Namespace) -> Iterator[str]:
    """Train and evaluate with and without registration; yield the rows of a table."""
    yield "| pictures | detector | registered | image AUROC | pixel AUROC | not found: good, defective |"
    yield "|---|---|---|---|---|---|"
    for product in options.products:
        name, title, move, rotation = PRODUCTS[product]
        with tempfile.TemporaryDirectory() as temporary:
            source, target = options.data / "mvtec_ad" / name, Path(temporary) / name
            if product == "screw-equalised":
                source = equalised.write(source, Path(temporary) / "equalised")
            root = copies(source, target, options.train, options.test, move)
            for detector in options.detectors:
                for registration in (None, {"max_rotation": rotation}):
                    geometry = {"size": options.size, "registration": registration}
                    values = {"data": {"images": str(root)}, "geometry": geometry, "detector": {"name": detector}}
                    values["split"] = {"method": "split"}
                    fit(Recipe.model_validate(values), Path(temporary) / "part.andon")
                    inspector = Inspector.load(Path(temporary) / "part.andon", threads=1)
                    found = evaluating.evaluate(inspector, dataset.load(root)).metrics
                    missed = found["data"]["not_found"]
                    yield (
                        f"| {title} | {detector} | {'yes' if registration else 'no'} | "
                        f"{found['image']['auroc']:.3f} | {found['pixel']['auroc']:.3f} | {missed['good']}, "
                        f"{missed['defective']} |"
                    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--images", type=int, default=20, help="pictures of each set whose pose is measured; 0: none")
    parser.add_argument("--train", type=int, default=80, help="good images that a detector learns from")
    parser.add_argument("--test", type=int, default=60, help="images of defects it is tested on")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--detectors", nargs="*", default=["variation", "nearest-image"], metavar="NAME")
    parser.add_argument("--products", nargs="*", default=list(PRODUCTS), choices=PRODUCTS)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"{platform.machine()} {platform.system()}, one thread, OpenCV {cv2.__version__}\n")
    for row in poses(options.data, options.images) if options.images else ():
        print(row, flush=True)
    print()
    for row in detectors(options):
        print(row, flush=True)


if __name__ == "__main__":
    main()

"""The one-class protocol: a data set of classes → one product for each class, in which only this class is good.

Its training images are `train/good`; the test images of all classes are `test/good` and `test/<class>`. They are
written as PNG files in MVTec layout in the folder of results. These published layouts are read:

- MNIST, Fashion-MNIST and other IDX files (LeCun, Cortes, Burges): `train-images-idx3-ubyte`,
  `train-labels-idx1-ubyte`, `t10k-…` for the test images, plain or `.gz`.
- CIFAR-10 (Krizhevsky 2009), the binary version: `data_batch_1.bin` … `data_batch_5.bin`, `test_batch.bin`.
- COIL-100 (Nene, Nayar, Murase 1996): `obj<number>__<angle>.png`. It has no official split; here the test images
  are a fifth of the angles, drawn with seed 0, the same for every object. Neighbouring views are similar, so this test
  is easy.
- A folder with `train` and `test` is one product, and a folder of such folders (BTAD: 01, 02, 03) is several; these are
  used in place.
"""

import gzip
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from andon import files
from andon.data import dataset, folders
from andon.errors import AndonError, DatasetError
from andon.inspection import Pixels
from andon.lab.bench.plan import Plan, Product
from andon.lab.bench.writing import link, whole
from andon.pictures import image
from andon.progress import Progress, silent
from andon.recipe import validate

Tell = Callable[[str], None]

FORMAT = 1  # of the written folders
MOST_SIDE = 1024  # pixels
MOST_BYTES = 1024**3  # of one file, unpacked
DEFLATED = 1032  # greatest ratio of compression of deflate
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEST_ANGLES = 0.2  # share of COIL-100's angles
SPLIT_SEED = 0
POOL, MARK = ".images", ".written.json"


class Picture(NamedTuple):
    """One picture of a data set of classes."""

    split: str  # train or test
    label: str  # class
    name: str  # of the file
    png: Callable[[], bytes]


class Classes(NamedTuple):
    """A complete data set of classes."""

    kind: str  # layout of the files
    sources: list[Path]
    pictures: list[Picture]

    @property
    def labels(self) -> list[str]:
        """The classes, sorted by name, with numbers in numerical order."""
        labels = {picture.label for picture in self.pictures}
        return sorted(labels, key=lambda label: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", label)])


def one_class(plan: Plan, out: str | Path, progress: Progress = silent, tell: Tell = lambda sentence: None) -> Plan:
    """Replace every product that is a data set of classes by one product for each class, written into `out`/data.

    Files of an earlier run are kept if they and their sources are unchanged. Errors: DatasetError for a folder in none
    of the layouts, and for damaged files; nothing is written then.
    """
    contents = [(product, _folders(product) or _read(product)) for product in plan.products]
    products: list[Product] = []
    for product, content in contents:
        if isinstance(content, Classes):
            products += _written(product, content, Path(out) / "data" / product.name, progress, tell)
        else:
            products += content
    return plan.model_copy(update={"products": products})


def kind(folder: str | Path) -> str:
    """The layout of a data set of classes, by the names of its files; "" for any other folder."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except (OSError, ValueError):  # ValueError: an invalid path
        return ""
    patterns = {"IDX": _IDX, "CIFAR-10": _CIFAR, "COIL-100": _COIL}
    return next((kind for kind, pattern in patterns.items() if any(pattern.fullmatch(name) for name in names)), "")


_IDX = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_CIFAR = re.compile(r"(data_batch_\d|test_batch)(\.bin)?")
_COIL = re.compile(r"obj(\d+)__(\d+)\.png")


def _folders(product: Product) -> list[Product]:
    """The products in a folder: itself, or its subfolders with `train`; empty if there are none."""
    folder = Path(product.folder)
    if files.is_folder(folder / "train"):
        return [product]
    try:
        parts = sorted(entry.name for entry in os.scandir(folder) if files.is_folder(folder / entry.name / "train"))
    except (OSError, ValueError):
        parts = []
    return [_part(product, part, folder / part) for part in parts]


def _part(product: Product, name: str, folder: Path) -> Product:
    published = f"{product.published}/{name}" if product.published else ""
    values = {**product.model_dump(), "name": f"{product.name}-{name}", "folder": str(folder), "published": published}
    return validate(Product, values, f"{folder}: as a separate product")


def _read(product: Product) -> Classes:
    """Read a data set of classes and check that it is complete."""
    folder = Path(product.folder)
    readers = {"IDX": _idx, "CIFAR-10": _cifar10, "COIL-100": _coil100}
    layout = kind(folder)
    if not layout:
        problem = "no data set of classes here" if files.is_folder(folder) else "no such folder"
        raise DatasetError(
            f"{folder}: {problem}; expected for the one-class protocol IDX files (train-images-idx3-ubyte, …), "
            "CIFAR-10's binary version (data_batch_1.bin, …), COIL-100 (obj1__0.png, …), or folders with train and "
            "test. Name the folder with these files."
        )
    classes = readers[layout](folder)
    sides = [{picture.label for picture in classes.pictures if picture.split == side} for side in ("train", "test")]
    one_sided = sorted(sides[0] ^ sides[1])
    if one_sided or len(classes.labels) < 2:
        what = (
            f"class {one_sided[0]} is only in the training or only in the test images"
            if one_sided
            else f"{len(classes.labels)} class"
        )
        raise DatasetError(
            f"{folder}: {what}; expected two classes or more, each in training and test. Use the complete data set."
        )
    return classes


def _idx(folder: Path) -> Classes:
    """Training and test images from four IDX files."""
    pictures: list[Picture] = []
    sources = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        places = [_idx_place(folder, prefix, what, dims) for what, dims in (("images", 3), ("labels", 1))]
        pixels, labels = (_idx_array(path, dims) for path, dims in zip(places, (3, 1), strict=True))
        if len(pixels) != len(labels):
            raise DatasetError(
                f"{places[1]}: {len(labels)} labels for {len(pixels)} images in {places[0].name}; expected equal "
                "numbers. Use both files of one download."
            )
        sources += places
        pictures += _pictures(split, pixels, [str(label) for label in labels.tolist()])
    return Classes("IDX", sources, pictures)


def _idx_place(folder: Path, prefix: str, what: str, dims: int) -> Path:
    names = [f"{prefix}-{what}{dot}idx{dims}-ubyte{end}" for end in ("", ".gz") for dot in "-."]
    found = next((folder / name for name in names if files.is_file(folder / name)), None)
    if found is None:
        raise DatasetError(f"{folder}: there is no {names[0]}, plain or .gz; expected all four files. Add it.")
    return found


def _idx_array(path: Path, dims: int) -> NDArray[np.uint8]:
    """Read the bytes (n, …) of an IDX file. The header is compared with the length before memory is allocated."""
    again = "Download it again."
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4 + 4 * dims)
            if head[:4] != bytes([0, 0, 8, dims]):
                raise DatasetError(
                    f"{path}: begins with {head[:4].hex() or 'nothing'}; expected {bytes([0, 0, 8, dims]).hex()}, an "
                    f"IDX file of bytes in {dims} dimensions. {again}"
                )
            shape = tuple(int.from_bytes(head[at : at + 4], "big") for at in range(4, 4 + 4 * dims, 4))
            header = f"{path}: its header states {' × '.join(str(length) for length in shape)} bytes"
            size, there = math.prod(shape), path.stat().st_size
            fits = all(image.MIN_SIDE <= side <= MOST_SIDE for side in shape[1:]) and 0 < size <= MOST_BYTES
            if len(head) < 4 + 4 * dims or not fits:
                raise DatasetError(
                    f"{header}; expected 1 or more images of {image.MIN_SIDE} to {MOST_SIDE} pixels a side, at most "
                    f"{MOST_BYTES >> 20} MiB. {again}"
                )
            if not packed and there != len(head) + size:
                raise DatasetError(f"{header}, but the file has {there}; expected {len(head) + size}. {again}")
            if packed and size > DEFLATED * there:
                raise DatasetError(f"{header}, which {there} compressed bytes cannot contain. {again}")
            data = file.read(size + 1)  # one byte more than expected, to detect a longer file without unpacking it
    except (OSError, EOFError, zlib.error) as error:  # gzip's own errors are OSErrors
        raise DatasetError(f"{path}: cannot be read: {error}; expected an IDX file. {again}") from None
    if len(data) != size:
        count = "more" if len(data) > size else str(len(data))
        raise DatasetError(f"{header}, but the file contains {count}; expected {size}. {again}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _cifar10(folder: Path) -> Classes:
    """The binary version: records of one byte for the class and 3 × 32 × 32 for the pixels, red, green, blue."""
    sides = {
        "train": [folder / f"data_batch_{number}.bin" for number in range(1, 6)],
        "test": [folder / "test_batch.bin"],
    }
    sources = [path for side in sides.values() for path in side]
    if missing := next((path for path in sources if not files.is_file(path)), None):
        pickled = files.is_file(missing.with_suffix(""))
        what = (
            f"{missing.stem} is CIFAR-10's Python version, a pickle, which andon never loads"
            if pickled
            else "no such file"
        )
        raise DatasetError(
            f"{missing}: {what}; expected CIFAR-10's binary version. Download cifar-10-binary.tar.gz from "
            "https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and name its folder."
        )
    labels_file = folder / "batches.meta.txt"
    try:
        labels = labels_file.read_text(errors="replace").split() if files.is_file(labels_file) else list(CIFAR10)
    except OSError as error:
        raise DatasetError(f"{labels_file}: cannot be read: {error.strerror}. Allow reading.") from None
    fit = all(re.fullmatch(r"[A-Za-z0-9][\w+-]*", n) and folders.Names().kind(n) in ("", "bad") for n in labels)
    if len(labels) != 10 or len(set(labels)) != 10 or not fit:
        raise DatasetError(f"{labels_file}: classes {labels[:3]}, …; expected ten different names. Download it again.")
    pictures: list[Picture] = []
    for split, paths in sides.items():
        records = np.concatenate([_cifar_records(path) for path in paths])
        pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        pictures += _pictures(split, pixels, [labels[number] for number in records[:, 0].tolist()])
    return Classes("CIFAR-10", sources, pictures)


def _cifar_records(path: Path) -> NDArray[np.uint8]:
    record, size = 1 + 3 * 32 * 32, path.stat().st_size
    if not 0 < size <= MOST_BYTES or size % record:
        raise DatasetError(
            f"{path}: {size} bytes; expected records of {record} bytes: a class and 32 × 32 RGB pixels. Download it "
            "again."
        )
    try:
        records = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, record)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}. Allow reading.") from None
    if records[:, 0].max() > 9:
        raise DatasetError(
            f"{path}: class {records[:, 0].max()}; expected 0 to 9. It may be CIFAR-100; name the binary version of "
            "CIFAR-10."
        )
    return records


def _coil100(folder: Path) -> Classes:
    """Objects at the same angles; some angles, the same for all objects, are the test images."""
    views: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if named := _COIL.fullmatch(path.name):
            views.setdefault(int(named[1]), {})[int(named[2])] = path
    angles = sorted({angle for of in views.values() for angle in of})
    lacking = next(
        ((number, sorted(set(angles) - set(of))) for number, of in views.items() if len(of) < len(angles)), None
    )
    if lacking or len(angles) < 2:
        what = f"obj{lacking[0]} has no picture at angle {lacking[1][0]}" if lacking else "only one angle"
        raise DatasetError(
            f"{folder}: {what}; expected every object at every angle (COIL-100 has 72). Unpack the data set again."
        )
    count = max(1, round(TEST_ANGLES * len(angles)))
    test = set(np.random.default_rng(SPLIT_SEED).permutation(angles)[:count].tolist())
    pictures = []
    for number in sorted(views):
        for angle in angles:
            path = views[number][angle]
            image.read(path)
            split = "test" if angle in test else "train"
            pictures.append(Picture(split, f"obj{number}", f"{angle:03}.png", path.read_bytes))
    return Classes("COIL-100", [path for of in views.values() for path in of.values()], pictures)


def _pictures(split: str, pixels: NDArray[np.uint8], labels: Sequence[str]) -> Iterator[Picture]:
    """Pictures (n, h, w) or (n, h, w, 3) with their classes, named by their position in the file."""
    for j, label in enumerate(labels):
        yield Picture(split, label, f"{j:05}.png", partial(_png, pixels[j]))


def _png(pixels: Pixels) -> bytes:
    ordered = pixels if pixels.ndim == 2 else pixels[..., ::-1]
    return cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes()


def _written(product: Product, found: Classes, place: Path, progress: Progress, tell: Tell) -> list[Product]:
    """Write the pictures once, and make the product of each class from links to them."""
    sources = files.digest_of_all((path.name, files.digest(path.read_bytes())) for path in sorted(found.sources))
    expected = {"format": FORMAT, "kind": found.kind, "sources": sources}
    stage = f"writing {product.name}"[:16]
    try:
        for leftover in place.parent.glob(f".{place.name}.part*"):  # of a killed run
            shutil.rmtree(leftover, ignore_errors=True)
        mark = _mark(place)
        if mark is None or {**mark, "images": None} != {**expected, "images": None}:
            why = "" if mark is None else ": its source files have changed"
        elif mark["images"] != _digest(place / POOL):
            why = ": the written pictures have changed"
        else:
            why = None
        if why is not None:
            tell(f"{product.name}: writing {len(found.pictures)} pictures to {place}{why}")
            _write(found, expected, place, stage, progress)
        for done, label in enumerate(found.labels):
            progress(f"laying out {product.name}"[:16], done, len(found.labels))
            _lay_out(found, label, place)
        progress(f"laying out {product.name}"[:16], len(found.labels), len(found.labels))
    except OSError as error:
        raise AndonError(
            f"{place}: cannot be written: {(error.strerror or str(error)).lower()}. Free space or allow writing there, "
            "or choose another output folder."
        ) from error
    return [_part(product, label, place / label) for label in found.labels]


def _mark(place: Path) -> dict[str, object] | None:
    """The mark of an earlier run; None if nothing exists here. AndonError when something else exists here."""
    with suppress(OSError, ValueError):
        found = json.loads((place / MARK).read_text(encoding="utf-8"))
        if isinstance(found, dict) and "images" in found:
            return found
    if place.exists():
        raise AndonError(
            f"{place}: andon did not write this folder; expected nothing here, because the pictures of this product "
            "will be written here. Move it, or choose another output folder."
        )
    return None


def _write(found: Classes, expected: dict[str, object], place: Path, stage: str, progress: Progress) -> None:
    """Write all pictures and the mark into a temporary folder, then rename it."""
    with whole(place.with_name(f".{place.name}.part"), place) as half:
        for split in ("train", "test"):
            for label in found.labels:
                (half / POOL / split / label).mkdir(parents=True)
        for done, picture in enumerate(found.pictures):
            if done % 500 == 0:
                progress(stage, done, len(found.pictures))
            (half / POOL / picture.split / picture.label / picture.name).write_bytes(picture.png())
        progress(stage, len(found.pictures), len(found.pictures))
        files.write(half / MARK, files.strict_json({**expected, "images": _digest(half / POOL)}).encode())


def _digest(pool: Path) -> str:
    paths = dataset.images(pool) if files.is_folder(pool) else []
    return files.digest_of_all((path.relative_to(pool).as_posix(), files.digest(path.read_bytes())) for path in paths)


def _lay_out(found: Classes, label: str, place: Path) -> None:
    """Make the product in which one class is good, from hard links, or copies if the disk has no links."""
    with whole(place / ".class.part", place / label) as half:
        for split in ("train", "test"):
            for other in found.labels if split == "test" else [label]:
                (half / split / ("good" if other == label else other)).mkdir(parents=True)
        for picture in found.pictures:
            good = picture.label == label
            if good or picture.split == "test":
                source = place / POOL / picture.split / picture.label / picture.name
                link(source, half / picture.split / ("good" if good else picture.label) / picture.name)

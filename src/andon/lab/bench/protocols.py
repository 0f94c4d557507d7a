"""The one-class protocol: a data set of classes → one product a class, in which that class is good and no other is.

Each class is normal in turn: its training images are `train/good`, and the test images of all classes are `test/good`
and `test/<class>`. They are written as PNG files in MVTec layout below the folder of results, so that all that follows
is the one path. Read are, in their published layouts:

- MNIST, Fashion-MNIST and what else comes as IDX files (LeCun, Cortes, Burges): `train-images-idx3-ubyte`,
  `train-labels-idx1-ubyte`, `t10k-…` for the test side, plain or `.gz`.
- CIFAR-10 (Krizhevsky 2009), the binary version: `data_batch_1.bin` … `data_batch_5.bin`, `test_batch.bin`.
- COIL-100 (Nene, Nayar, Murase 1996): `obj<number>__<angle>.png`. It has no official split; ours takes a fifth of the
  angles, drawn with seed 0 and the same for every object, as the test side. Neighbouring views are nearly alike, so
  this is an easy test: it asks for the object, not for views that were never seen.
- A folder with `train` and `test` is one product already, and a folder of such folders (BTAD: 01, 02, 03) is several;
  nothing of these is written anew.
"""

import gzip
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from andon.pictures import image
from andon.progress import Progress, silent
from andon.recipe import validate

Tell = Callable[[str], None]

FORMAT = 1  # of what is written
MOST_SIDE = 1024  # pixels
MOST_BYTES = 1024**3  # of one file, unpacked
DEFLATED = 1032  # to one: the most that deflate can shrink anything
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEST_ANGLES = 0.2  # share of COIL-100's angles
SPLIT_SEED = 0
POOL, MARK = ".images", ".written.json"


class Picture(NamedTuple):
    """One picture of a data set of classes."""

    split: str  # train or test
    label: str  # its class
    name: str  # of its file
    png: Callable[[], bytes]


class Classes(NamedTuple):
    """A data set of classes, read and found whole."""

    kind: str  # of its files
    sources: list[Path]
    pictures: list[Picture]

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of their names, numbers by size."""
        found = {picture.label for picture in self.pictures}
        return sorted(found, key=lambda label: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", label)])


def one_class(plan: Plan, out: str | Path, progress: Progress = silent, tell: Tell = lambda sentence: None) -> Plan:
    """Replace every product that is a data set of classes by one product a class, written below `out`/data.

    What was written before is kept as long as its sources and itself are what they were. Errors: DatasetError for a
    folder in none of the layouts, and for files that are damaged; nothing is written then.
    """
    found = [(product, _folders(product) or _read(product)) for product in plan.products]
    products: list[Product] = []
    for product, what in found:
        if isinstance(what, Classes):
            products += _written(product, what, Path(out) / "data" / product.name, progress, tell)
        else:
            products += what
    return plan.model_copy(update={"products": products})


def kind(folder: str | Path) -> str:
    """Name the layout of a data set of classes by the names of its files; "" where it is none."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except (OSError, ValueError):  # ValueError: no path at all
        return ""
    patterns = {"IDX": _IDX, "CIFAR-10": _CIFAR, "COIL-100": _COIL}
    return next((kind for kind, pattern in patterns.items() if any(pattern.fullmatch(name) for name in names)), "")


_IDX = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_CIFAR = re.compile(r"(data_batch_\d|test_batch)(\.bin)?")
_COIL = re.compile(r"obj(\d+)__(\d+)\.png")


def _folders(product: Product) -> list[Product]:
    """The products that a folder holds as folders; none when it holds nothing of the kind."""
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
    return validate(Product, values, f"{folder}: as a product of its own")


def _read(product: Product) -> Classes:
    """Read a data set of classes and make sure that it is whole."""
    folder = Path(product.folder)
    readers = {"IDX": _idx, "CIFAR-10": _cifar10, "COIL-100": _coil100}
    layout = kind(folder)
    if not layout:
        found = "no such files" if files.is_folder(folder) else "nothing"
        raise DatasetError(
            f"{folder}: {found} here; expected for the one-class protocol IDX files (train-images-idx3-ubyte, …), "
            "CIFAR-10's binary version (data_batch_1.bin, …), COIL-100 (obj1__0.png, …), or folders with train and "
            "test. Name the folder that holds them."
        )
    classes = readers[layout](folder)
    sides = [{picture.label for picture in classes.pictures if picture.split == side} for side in ("train", "test")]
    one_sided = sorted(sides[0] ^ sides[1])
    if one_sided or len(classes.labels) < 2:
        what = f"class {one_sided[0]} is on one side only" if one_sided else f"{len(classes.labels)} class"
        raise DatasetError(
            f"{folder}: {what}; expected two classes or more, each in training and test. Use the whole data set."
        )
    return classes


def _idx(folder: Path) -> Classes:
    """Training and test side of four IDX files."""
    pictures: list[Picture] = []
    sources = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        places = [_idx_place(folder, prefix, what, dims) for what, dims in (("images", 3), ("labels", 1))]
        pixels, labels = (_idx_array(path, dims) for path, dims in zip(places, (3, 1), strict=True))
        if len(pixels) != len(labels):
            raise DatasetError(
                f"{places[1]}: {len(labels)} labels for {len(pixels)} images in {places[0].name}; expected as many. "
                "Take both files from one download."
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
    """Read the bytes (n, …) of an IDX file. Its header is held against its length before anything is allocated."""
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
            told = f"{path}: its header says {' × '.join(str(length) for length in shape)} bytes"
            size, there = math.prod(shape), path.stat().st_size
            fits = all(image.MIN_SIDE <= side <= MOST_SIDE for side in shape[1:]) and 0 < size <= MOST_BYTES
            if len(head) < 4 + 4 * dims or not fits:
                raise DatasetError(
                    f"{told}; expected 1 or more of {image.MIN_SIDE} to {MOST_SIDE} pixels a side, at most "
                    f"{MOST_BYTES >> 20} MiB. {again}"
                )
            if not packed and there != len(head) + size:
                raise DatasetError(f"{told}, and the file has {there}; expected {len(head) + size}. {again}")
            if packed and size > DEFLATED * there:
                raise DatasetError(f"{told}, which {there} compressed bytes cannot hold. {again}")
            data = file.read(size + 1)  # a byte more than there should be, so that more is seen and not unpacked
    except (OSError, EOFError, zlib.error) as error:  # gzip's own errors are OSErrors
        raise DatasetError(f"{path}: cannot be read: {error}; expected an IDX file. {again}") from None
    if len(data) != size:
        found = "more" if len(data) > size else str(len(data))
        raise DatasetError(f"{told}, and {found} are there; expected {size}. {again}")
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
            else "it is not there"
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
        raise DatasetError(f"{labels_file}: names {labels[:3]}, …; expected ten classes. Download it again.")
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
            f"{path}: {size} bytes; expected records of {record}, a class and 32 × 32 pixels. Download it again."
        )
    try:
        records = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, record)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}. Allow reading.") from None
    if records[:, 0].max() > 9:
        raise DatasetError(
            f"{path}: a class {records[:, 0].max()}; expected 0 to 9. Is it CIFAR-100? Name CIFAR-10's binary version."
        )
    return records


def _coil100(folder: Path) -> Classes:
    """Objects, each from the same angles; some of the angles, the same for all, are the test side."""
    views: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if named := _COIL.fullmatch(path.name):
            views.setdefault(int(named[1]), {})[int(named[2])] = path
    angles = sorted({angle for of in views.values() for angle in of})
    lacking = next(
        ((number, sorted(set(angles) - set(of))) for number, of in views.items() if len(of) < len(angles)), None
    )
    if lacking or len(angles) < 2:
        what = f"obj{lacking[0]} is not shown at angle {lacking[1][0]}" if lacking else "there is one angle"
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
    """Pictures (n, h, w) or (n, h, w, 3) with their classes, named by their place in the file."""
    for j, label in enumerate(labels):
        yield Picture(split, label, f"{j:05}.png", partial(_png, pixels[j]))


def _png(pixels: Pixels) -> bytes:
    ordered = pixels if pixels.ndim == 2 else pixels[..., ::-1]
    return cv2.imencode(".png", np.ascontiguousarray(ordered))[1].tobytes()


def _written(product: Product, found: Classes, place: Path, progress: Progress, tell: Tell) -> list[Product]:
    """Write the pictures once, and link each class's product to them."""
    sources = files.digest_of_all((path.name, files.digest(path.read_bytes())) for path in sorted(found.sources))
    expected = {"format": FORMAT, "kind": found.kind, "sources": sources}
    stage = f"writing {product.name}"[:16]
    try:
        for left in place.parent.glob(f".{place.name}.part*"):  # by a kill
            shutil.rmtree(left, ignore_errors=True)
        mark = _mark(place)
        if mark is None or {**mark, "images": None} != {**expected, "images": None}:
            why = "" if mark is None else ": the files it was made from have changed"
        elif mark["images"] != _digest(place / POOL):
            why = ": what was written is no longer what it was"
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
    """What was written here; None where there is nothing. AndonError when there is something that is not ours."""
    with suppress(OSError, ValueError):
        found = json.loads((place / MARK).read_text(encoding="utf-8"))
        if isinstance(found, dict) and "images" in found:
            return found
    if place.exists():
        raise AndonError(
            f"{place}: there is something here that andon did not write; expected nothing, for the pictures of this "
            "product go here. Move it away, or choose another output folder."
        )
    return None


def _write(found: Classes, expected: dict[str, object], place: Path, stage: str, progress: Progress) -> None:
    """Write all pictures and the mark beside their place; together they take its name, whole or not at all."""
    with _whole(place.with_name(f".{place.name}.part"), place) as half:
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
    """Make the product in which one class is good, anew: its files are links where the disk knows them, else copies."""
    with _whole(place / ".class.part", place / label) as half:
        for split in ("train", "test"):
            for other in found.labels if split == "test" else [label]:
                (half / split / ("good" if other == label else other)).mkdir(parents=True)
        for picture in found.pictures:
            good = picture.label == label
            if good or picture.split == "test":
                source = place / POOL / picture.split / picture.label / picture.name
                link = half / picture.split / ("good" if good else picture.label) / picture.name
                try:
                    os.link(source, link)
                except OSError:  # a disk without hard links
                    shutil.copy2(source, link)


@contextmanager
def _whole(half: Path, place: Path) -> Iterator[Path]:
    """Fill the folder `half`; it replaces `place` when the block ends well, and goes away when it does not."""
    old = half.with_name(f"{half.name}.old")
    for left in (half, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        yield half
        if place.exists():  # moved first: of a folder that is half removed nobody could tell whose it is
            place.rename(old)
        half.rename(place)
    finally:
        for left in (half, old):
            shutil.rmtree(left, ignore_errors=True)

"""Folders and published layouts → samples; which of them show one part; the seeded split of good images."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from andon import files, image
from andon.errors import DatasetError, ImageError
from andon.headers import SUFFIXES

GOOD_FOLDERS = frozenset({"good", "ok", "normal"})
"""Names of folders that hold good parts, in any case; beside one of them, every other folder is a type of defect."""

BAD_FOLDERS = frozenset(
    {"bad", "defect", "defects", "defective", "ng", "nok", "faulty", "anomaly", "reject", "rejects"}
)
"""Names of folders that hold defective parts even where no good folder stands beside them."""

MASK_FOLDER = "ground_truth"
ENOUGH = 8  # images: below it a calibration promises next to nothing

_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})
_TEXT = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".toml", ".yaml", ".yml", ".html", ".log"})


@dataclass(frozen=True)
class Sample:
    """One image file and what its place says of it."""

    path: Path
    split: str  # train, test, or "" outside a published layout
    defect: str  # good, the type of defect, or "" where nothing says
    mask: Path | None
    group: str  # images of one part, lot or session share it; the image's own relative path where none is given

    @property
    def good(self) -> bool:
        """Whether it counts as good: it is in a good folder, or in a folder without labels outside a test split."""
        return self.defect == "good" or (not self.defect and self.split != "test")


@dataclass(frozen=True)
class Dataset:
    """The images under one folder, in the order of their relative paths."""

    root: Path
    layout: str  # mvtec (train, test, ground_truth) or folder
    samples: tuple[Sample, ...]
    ignored: Counter[str]  # kind → how many files that are no images
    stray_masks: tuple[Path, ...] = ()  # masks whose image is missing
    grouped: bool = False  # whether groups were given

    @property
    def labels(self) -> tuple[str, ...]:
        """The types of defect, and good where something is labelled so."""
        return tuple(sorted({sample.defect for sample in self.samples} - {""}))

    def good(self, split: str | None = None) -> list[Sample]:
        """Images of good parts, of one split or of all."""
        return [s for s in self.samples if s.good and split in (None, s.split)]

    def to_learn(self) -> list[Sample]:
        """Images of good parts outside a test split: what training and calibration may see."""
        return [s for s in self.good() if s.split != "test"]

    def defective(self, split: str | None = None) -> list[Sample]:
        """Images labelled with a defect, of one split or of all."""
        return [s for s in self.samples if s.defect not in ("", "good") and split in (None, s.split)]

    def relative(self, sample: Sample) -> str:
        """Name a sample by its path below the root, with forward slashes."""
        return sample.path.relative_to(self.root).as_posix()


def load(root: str | Path, groups: str | Path | None = None) -> Dataset:
    """Find the images under a folder.

    With `train` or `test` below it, the folder is read in MVTec layout; with a folder `good`, `ok` or `normal`, the
    folders beside that are types of defect; otherwise every image at any depth is one without a label, but for those
    in a folder with a name like `bad`. `groups` is a CSV file or a regular expression on the path: see `grouping`.

    Errors: DatasetError when there is no such folder or no image in it, when it holds several data sets, or when good
    images have no group.
    """
    root = Path(root)
    if not files.is_folder(root):
        found = "a file" if files.is_file(root) else "nothing"
        raise DatasetError(f"{root}: there is {found} here; expected a folder of images. Check the path.")
    ignored: Counter[str] = Counter()
    images, masks = [], []
    for path in _walk(root):
        kind = _kind(path)
        if kind != "image":
            ignored[kind] += 1
        elif _steps(root, path)[0] == MASK_FOLDER:
            masks.append(path)
        else:
            images.append(path)
    mvtec = any(_steps(root, path)[0] in ("train", "test") for path in images)
    if mvtec:
        inside = [path for path in images if _steps(root, path)[0] in ("train", "test")]
        if len(inside) < len(images):
            ignored["image outside train and test"] = len(images) - len(inside)
        images = inside
    elif nested := sorted({p.relative_to(root).parts[0] for p in images if MASK_FOLDER in _steps(root, p)[1:-1]}):
        raise DatasetError(f"{root}: several data sets, {', '.join(nested[:3])}; expected one. Name one of them.")
    if not images:
        rest = f" among {ignored.total()} other files" if ignored else ""
        raise DatasetError(f"{root}: no images{rest}; expected PNG, JPEG, TIFF, BMP, WebP or PGM. Name another folder.")
    samples, strays = _labelled(root, images, masks, mvtec)
    if groups is not None:
        samples = grouping(root, samples, groups)
    layout = "mvtec" if mvtec else "folder"
    return Dataset(root, layout, tuple(samples), ignored, tuple(strays), groups is not None)


def images(folder: Path) -> list[Path]:
    """The image files at any depth below a folder, in the order of their paths."""
    return [path for path in _walk(folder) if _kind(path) == "image"]


def mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask (H, W): true where it is above half of its largest value, be that 1, 255 or 65535.

    Errors: ImageError when it cannot be read, or marks nothing.
    """
    pixels = image.read(path).pixels.max(axis=2)
    if not pixels.any():
        raise ImageError(f"{path}: the mask marks nothing; expected the defect in white on black. Draw it.")
    return np.asarray(pixels > pixels.max() / 2)


def _walk(folder: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder, sorted; a link that leads back to a folder on its own way is not followed."""
    here = folder.resolve()
    if here in seen:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror}. Allow reading, or move it away.") from error
    for entry in entries:
        if entry.is_dir():
            if not entry.name.startswith("."):
                yield from _walk(folder / entry.name, seen | {here})
        else:
            yield folder / entry.name


def _kind(path: Path) -> str:
    if path.name.lower() in _SYSTEM:
        return "system"
    if path.name.startswith("."):
        return "hidden"
    suffix = path.suffix.lower()
    return "image" if suffix in SUFFIXES else "text" if suffix in _TEXT else "other"


def _steps(root: Path, path: Path) -> list[str]:
    """The folders from the root to a file in lower case, "" for the root itself, and the file's name."""
    *folders, name = path.relative_to(root).parts
    return [*(folder.lower() for folder in folders or [""]), name]


def _labelled(root: Path, images: list[Path], masks: list[Path], mvtec: bool) -> tuple[list[Sample], list[Path]]:
    by_place = {(path.relative_to(root).parts[1:-1], _stem(path)): path for path in masks}
    places = []
    for path in images:
        folders = path.relative_to(root).parts[:-1]
        places.append((path, folders[0].lower() if mvtec else "", folders[1:] if mvtec else folders))
    # In MVTec layout every folder below test is a label; elsewhere the presence of a good folder tells.
    labelled = {split for _, split, folders in places if folders and folders[0].lower() in GOOD_FOLDERS} | {"test"}
    samples = []
    for path, split, folders in places:
        first = folders[0].lower() if folders else ""
        if first in GOOD_FOLDERS:
            defect = "good"
        elif first and (split in labelled or first in BAD_FOLDERS):
            defect = folders[0]
        else:
            defect = "good" if split == "train" else ""
        mask = by_place.pop((folders, path.stem), None) if defect not in ("", "good") else None
        samples.append(Sample(path, split, defect, mask, path.relative_to(root).as_posix()))
    return samples, sorted(by_place.values())


def _stem(mask: Path) -> str:
    return re.sub(r"_mask$", "", mask.stem, flags=re.IGNORECASE)


_FILE_COLUMNS = ("path", "file", "filename", "image", "stem")
_GROUP_COLUMNS = ("group", "part", "lot", "session")


def grouping(root: Path, samples: Sequence[Sample], groups: str | Path) -> list[Sample]:
    """Give each sample the group that a CSV file or a regular expression names.

    The CSV has one column for the image (`path` relative to the folder, `file` or `stem`), one for the group (`group`,
    `part`, `lot`, `session`, one that ends in `_group`, or the only other one), and may have `split` where the same
    stem occurs in train and test. The expression is searched in the relative path with forward slashes; its group
    named `group`, or else its first, is the group.

    Errors: DatasetError when good images are left without a group, with their number and three of them.
    """
    if files.is_file(groups):
        named = _from_csv(root, samples, Path(groups))
        source = f"{groups}: no row"
    elif is_table(groups):
        raise DatasetError(f"{groups}: no such file; expected a CSV with the group of each image. Check the path.")
    else:
        named = _from_pattern(root, samples, str(groups))
        source = f"group pattern '{groups}': no match"
    lost = [s.path for s, group in zip(samples, named, strict=True) if s.good and not group]
    if lost:
        few = ", ".join(path.relative_to(root).as_posix() for path in lost[:3]) + (", …" if len(lost) > 3 else "")
        raise DatasetError(
            f"{source} for {len(lost)} of {sum(s.good for s in samples)} good images: {few}; "
            "expected a group for every good image. Add them, or move the images away."
        )
    return [replace(s, group=group or s.group) for s, group in zip(samples, named, strict=True)]


def is_table(groups: str | Path) -> bool:
    """Whether groups are given by a table, there or not, rather than by a regular expression."""
    return files.is_file(groups) or str(groups).lower().endswith(".csv")


def united(samples: Sequence[Sample], digests: Sequence[str]) -> list[Sample]:
    """Give samples with equal contents (n,) one group, along with all that share a group with one of them."""
    leader: dict[str, str] = {}
    first: dict[str, str] = {}

    def lead(group: str) -> str:
        while leader.setdefault(group, group) != group:
            group = leader[group]
        return group

    for sample, digest in zip(samples, digests, strict=True):
        leader[lead(sample.group)] = lead(first.setdefault(digest, sample.group))
    return [replace(sample, group=lead(sample.group)) for sample in samples]


def _from_pattern(root: Path, samples: Sequence[Sample], pattern: str) -> list[str | None]:
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"group pattern '{pattern}': not a regular expression: {error}. Mend it.") from None
    if not search.groups:
        raise DatasetError(
            f"group pattern '{pattern}': nothing in it is in brackets; expected one capture group. "
            r"Put brackets around what names the part, as in 'part(\d+)_'."
        )
    which = "group" if "group" in search.groupindex else 1
    found = (search.search(sample.path.relative_to(root).as_posix()) for sample in samples)
    return [match[which] if match else None for match in found]


def _from_csv(root: Path, samples: Sequence[Sample], path: Path) -> list[str | None]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV: {error}. Save it as CSV in UTF-8.") from error
    if long := [str(row) for row in rows if None in row]:
        raise DatasetError(
            f"{path}: {len(long)} rows have more cells than the {len(columns)} columns {', '.join(columns)}. "
            "Name every column, and put quotes around names with a separator in them."
        )
    key = next((c for name in _FILE_COLUMNS for c in columns if c.lower() == name), None)
    others = [c for c in columns if c != key and c.lower() != "split"]
    group = next((c for name in _GROUP_COLUMNS for c in others if c.lower() == name), None) or next(
        (c for c in others if c.lower().endswith("_group")), others[0] if len(others) == 1 else None
    )
    if key is None or group is None:
        raise DatasetError(
            f"{path}: columns {', '.join(columns) or 'none'}; expected one of {', '.join(_FILE_COLUMNS)} and one of "
            f"{', '.join(_GROUP_COLUMNS)}. Rename the columns."
        )
    split = next((c for c in columns if c.lower() == "split"), None)
    named: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row[group]:
            name = str(row[key]).replace("\\", "/").removeprefix("./")
            for where in {"", row[split] or "" if split else ""}:
                named.setdefault((where, name), set()).add(row[group])

    def find(sample: Sample) -> str | None:
        names = (sample.path.relative_to(root).as_posix(), sample.path.name, sample.path.stem)
        keys = [(where, name) for where in ([sample.split] if split and sample.split else [""]) for name in names]
        found: set[str] = next((named[k] for k in keys if k in named), set())
        if len(found) > 1:
            raise DatasetError(
                f"{path}: {names[0]} has {len(found)} groups: {', '.join(sorted(found)[:3])}; expected one. "
                "Name images by their relative path, in a column 'path'."
            )
        return next(iter(found), None)

    return [find(sample) for sample in samples]


def split_good(samples: Sequence[Sample], calibrate: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Divide good samples into those to fit on and those to calibrate on, seeded, both in the given order.

    `calibrate` is the share of the groups held out, drawn without regard to how many images they have: a choice by size
    would make held-out parts unlike new ones. A group is never on both sides, and each side has at least one.

    Errors: DatasetError with fewer than two groups.
    """
    order = _shuffled(samples, seed)
    held = set(order[: min(max(1, round(calibrate * len(order))), len(order) - 1)])
    fit = [sample for sample in samples if sample.group not in held]
    return fit, [sample for sample in samples if sample.group in held]


def folds(samples: Sequence[Sample], count: int, seed: int) -> list[list[Sample]]:
    """Divide good samples into `count` folds, seeded, each in the given order; fewer where there are fewer groups.

    A group is in one fold, and the folds have as many groups as each other, give or take one. Errors: as `split_good`.
    """
    order = _shuffled(samples, seed)
    count = min(count, len(order))
    fold = {group: i % count for i, group in enumerate(order)}
    return [[sample for sample in samples if fold[sample.group] == i] for i in range(count)]


def _shuffled(samples: Sequence[Sample], seed: int) -> list[str]:
    """The groups of samples in a seeded order. DatasetError when there are fewer than two."""
    groups = sorted({sample.group for sample in samples})
    if len(groups) < 2:
        raise DatasetError(
            f"{len(samples)} good images in {len(groups)} groups; a group to learn from and one to calibrate on are "
            f"the least, and {ENOUGH} images or more are advised. Copies of one file count as one group. "
            "Add images, or give finer groups."
        )
    shuffled: list[str] = np.random.default_rng(seed).permutation(groups).tolist()
    return shuffled

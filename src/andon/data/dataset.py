"""Folders and published layouts → samples; which of them show one part; the seeded split of good images."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from andon import files
from andon.data import folders, labelling, masks
from andon.data.folders import Names, plain
from andon.data.labelling import LISTED, listed
from andon.errors import DatasetError, counted, few

ENOUGH = 8  # images: below it a calibration promises next to nothing


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
    stray_masks: tuple[Path, ...] = ()  # masks that fit no image of a defect, or several
    grouped: bool = False  # whether groups were given
    good_masks: tuple[Path, ...] = ()  # masks that fit images of good parts; they are not used
    unreadable: tuple[str, ...] = ()  # sentences on folders and links that could not be followed
    masks: int = 0  # files of masks

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

    def learnt_from(self) -> dict[str, int]:
        """The folders of the images to learn from, relative to the root, and how many each holds."""
        return dict(Counter(s.path.parent.relative_to(self.root).as_posix() for s in self.to_learn()))

    def sources(self) -> list[str]:
        """Sentences on the folders that are learnt from, and on what is not taken as a picture of a part."""
        folders = {self.root.name if name == "." else name: n for name, n in self.learnt_from().items()}
        sentences = [f"learning from the images in {listed(folders, '{0} ({1})')}"]
        others = {**({"mask": self.masks} if self.masks else {}), **self.ignored}
        return sentences + ([f"no pictures of parts: {listed(others)}"] if others else [])

    def mask_problems(self, split: str | None = None) -> list[tuple[str, str, str, list[str]]]:
        """Masks that are missing, left over or not used: severity, code, sentence and files of each kind of problem."""
        defective = self.defective(split)
        problems: list[tuple[str, str, str, list[str]]] = []
        missing = [self.relative(s) for s in defective if s.mask is None]
        if defective and len(missing) == len(defective):
            problems.append(("note", "no-masks", "no defect has a mask; only image figures can be computed.", []))
        elif missing:
            message = (
                f"{len(missing)} of {len(defective)} images of defects without mask; pixel figures leave them out:"
            )
            problems.append(("warning", "mask-missing", message, missing))
        if strays := [path.relative_to(self.root).as_posix() for path in self.stray_masks]:
            message = (
                f"{counted(len(strays), 'mask')} without an image of a defect, or with several that fit; "
                "not used. Name each like its image, in a folder like its image's, or remove them:"
            )
            problems.append(("warning", "mask-without-image", message, strays))
        return problems

    def relative(self, sample: Sample) -> str:
        """Name a sample by its path below the root, with forward slashes."""
        return sample.path.relative_to(self.root).as_posix()


def load(root: str | Path, groups: str | Path | None = None, good: Sequence[str] = ()) -> Dataset:
    """Find the images under a folder, and what the names of the folders say of them.

    With `train` or `test` below it, the folder is read in MVTec layout; otherwise folders with a known name (`good`,
    `NG`, `gut`, `不良品`, …) say whether their images are good, and beside a good folder every other one is a type of
    defect. `good` names further folders of good parts, or patterns with `*`; "." is what lies directly in the folder.
    `groups` is a CSV file or a regular expression on the path: see `grouping`.

    Errors: DatasetError when there is no such folder or no image in it, when it holds several data sets, when of
    several folders none is known as good, when `good` fits no folder, or when good images have no group.
    """
    root = Path(root)
    if not files.is_folder(root):
        found = "a file" if files.is_file(root) else "nothing"
        raise DatasetError(f"{root}: there is {found} here; expected a folder of images. Check the path.")
    names = Names(good)
    try:
        contents = folders.scan(root, names)
    except OSError as error:
        raise DatasetError(f"{root}: cannot be read: {error.strerror}. Allow reading, or name another.") from error
    images, ignored = contents.images, contents.ignored
    if mvtec := any(_split(root, path) for path in images):
        inside = [path for path in images if _split(root, path)]
        if len(inside) < len(images):
            ignored["image outside train and test"] = len(images) - len(inside)
        images = inside
    elif nested := sorted({p.relative_to(root).parts[0] for p in [*images, *contents.masks] if _in_layout(root, p)}):
        what = f"the data set {nested[0]}" if len(nested) == 1 else f"several data sets, {', '.join(nested[:3])}"
        raise DatasetError(f"{root}: {what}; expected one. Name {'it' if len(nested) == 1 else 'one of them'}.")
    if not images:
        others = {**({"mask": len(contents.masks)} if contents.masks else {}), **ignored}
        rest = f", but {listed(others)}" if others else ""
        raise DatasetError(f"{root}: no images{rest}; expected PNG, JPEG, TIFF, BMP, WebP or PGM. Name another folder.")
    labels: dict[Path, str] = {}
    for split in ("train", "test") if mvtec else ("",):
        inside = [path for path in images if _split(root, path) == split] if mvtec else images
        labels |= (
            labelling.below_test(root, inside, names)
            if split == "test"
            else labelling.outside_test(root, inside, split, names)
        )
    if names.unmatched:
        there = sorted({path.parent.name for path in images if path.parent != root} or {"."})
        raise DatasetError(
            f"{root}: no folder of images fits {', '.join(map(repr, sorted(names.unmatched)))}, named as good; there "
            f"are: {', '.join(there[:LISTED])}. Correct the name."
        )
    if left := len(images) - len(labels):
        ignored["image beside a folder of good ones"] = left
    defective = [path for path, label in labels.items() if label not in ("", "good")]
    fitted = masks.fit(root, defective, [path for path in labels if path not in set(defective)], contents.masks, names)
    samples = [
        Sample(path, _split(root, path), labels[path], fitted.masks.get(path), path.relative_to(root).as_posix())
        for path in images
        if path in labels
    ]
    if groups is not None:
        samples = grouping(root, samples, groups)
    return Dataset(
        root,
        "mvtec" if mvtec else "folder",
        tuple(samples),
        ignored,
        tuple(fitted.strays),
        groups is not None,
        tuple(fitted.of_good),
        tuple(contents.unreadable),
        len(contents.masks),
    )


def images(folder: Path) -> list[Path]:
    """The image files at any depth below a folder, in the order of their paths; masks and thumbnails are none."""
    return folders.scan(folder).images


def mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask (H, W), or a folder of masks of one image: true where it marks a defect. Errors: as `masks.read`."""
    return masks.read(path).area


def _split(root: Path, path: Path) -> str:
    """The split that an image lies in: train, test or ""."""
    *above, _ = path.relative_to(root).parts
    return folders.split_of(above[0]) if above else ""


def _in_layout(root: Path, path: Path) -> bool:
    """Whether a file lies in a data set below the root."""
    inner = [plain(name) for name in path.relative_to(root).parts[1:-1]]
    return "train" in inner or "ground_truth" in inner


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
        names = few([path.relative_to(root).as_posix() for path in lost])
        raise DatasetError(
            f"{source} for {len(lost)} of {sum(s.good for s in samples)} good images: {names}; "
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
        raise DatasetError(f"group pattern '{pattern}': not a regular expression: {error}. Correct it.") from None
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
            f"{counted(len(samples), 'good image')} in {counted(len(groups), 'group')}; a group to learn from and "
            f"one to calibrate on are the least, and {ENOUGH} images or more are advised. Copies of one file count as "
            "one group. Add images, or give finer groups."
        )
    shuffled: list[str] = np.random.default_rng(seed).permutation(groups).tolist()
    return shuffled

"""Folders and published layouts → samples; groups of images of one part; the seeded split of good images."""

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
from andon.data.folders import Names, normalize
from andon.data.labelling import LISTED, listing
from andon.errors import DatasetError, counted, few

ENOUGH = 8  # images: with fewer, a calibration supports only very high rates


@dataclass(frozen=True)
class Sample:
    """One image file with its labels."""

    path: Path
    split: str  # train, test, or "" outside a published layout
    defect: str  # good, the type of defect, or "" if unknown
    mask: Path | None
    group: str  # the same for images of one part, lot or session; default: the relative path of the image

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
    ignored: Counter[str]  # kind → number of files that are no images
    stray_masks: tuple[Path, ...] = ()  # masks that match no image of a defect, or several
    grouped: bool = False  # whether groups were assigned
    good_masks: tuple[Path, ...] = ()  # masks that match images of good parts; they are not used
    unreadable: tuple[str, ...] = ()  # sentences on unreadable folders and links
    masks: int = 0  # number of files of masks

    @property
    def labels(self) -> tuple[str, ...]:
        """The types of defect, and good if there are images with this label."""
        return tuple(sorted({sample.defect for sample in self.samples} - {""}))

    def good(self, split: str | None = None) -> list[Sample]:
        """Images of good parts, of one split or of all."""
        return [s for s in self.samples if s.good and split in (None, s.split)]

    def training_images(self) -> list[Sample]:
        """Images of good parts outside a test split, for training and calibration."""
        return [s for s in self.good() if s.split != "test"]

    def defective(self, split: str | None = None) -> list[Sample]:
        """Images labelled with a defect, of one split or of all."""
        return [s for s in self.samples if s.defect not in ("", "good") and split in (None, s.split)]

    def training_folders(self) -> dict[str, int]:
        """The folders of the training images, relative to the root, and the number of images in each."""
        return dict(Counter(s.path.parent.relative_to(self.root).as_posix() for s in self.training_images()))

    def sources(self, purpose: str = "training") -> list[str]:
        """Sentences on the folders of good images for this purpose, and on files that are no pictures of a part."""
        folders = {self.root.name if name == "." else name: n for name, n in self.training_folders().items()}
        sentences = [f"{purpose} images in {listing(folders, '{0} ({1})')}"]
        others = {**({"mask": self.masks} if self.masks else {}), **self.ignored}
        return sentences + ([f"not used as pictures of parts: {listing(others)}"] if others else [])

    def mask_problems(self, split: str | None = None) -> list[tuple[str, str, str, list[str]]]:
        """Masks that are missing or not used: severity, code, sentence and files of each kind of problem."""
        defective = self.defective(split)
        problems: list[tuple[str, str, str, list[str]]] = []
        missing = [self.relative(s) for s in defective if s.mask is None]
        if defective and len(missing) == len(defective):
            problems.append(("note", "no-masks", "no defect has a mask; only image figures can be computed.", []))
        elif missing:
            message = (
                f"{len(missing)} of {len(defective)} images of defects have no mask; pixel figures do not include them:"
            )
            problems.append(("warning", "mask-missing", message, missing))
        if strays := [path.relative_to(self.root).as_posix() for path in self.stray_masks]:
            message = (
                f"{counted(len(strays), 'mask')} without an image of a defect, or with several matching images; "
                "not used. Give each the name and the folder name of its image, or remove them:"
            )
            problems.append(("warning", "mask-without-image", message, strays))
        return problems

    def relative(self, sample: Sample) -> str:
        """Return the path of a sample relative to the root, with forward slashes."""
        return sample.path.relative_to(self.root).as_posix()


def load(root: str | Path, groups: str | Path | None = None, good: Sequence[str] = ()) -> Dataset:
    """Find the images under a folder, and label them by the names of their folders.

    With `train` or `test` below it, the folder is read in MVTec layout. Otherwise folders with a known name (`good`,
    `NG`, `gut`, `不良品`, …) contain good or defective images, and every other folder beside a good folder is a type of
    defect.

    good: names of further folders of good parts, or patterns with `*`; ".": images directly in the folder.
    groups: a CSV file or a regular expression on the path, see `assign_groups`.

    Errors: DatasetError when there is no such folder or no image in it, when it contains several data sets, when it has
    several folders and none is known as good, when `good` matches no folder, or when good images have no group.
    """
    root = Path(root)
    if not files.is_folder(root):
        what = "a file" if files.is_file(root) else "no such file or folder"
        raise DatasetError(f"{root}: {what}; expected a folder of images. Check the path.")
    names = Names(good)
    try:
        contents = folders.scan(root, names)
    except OSError as error:
        raise DatasetError(
            f"{root}: cannot be read: {error.strerror}. Allow reading, or use another folder."
        ) from error
    images, ignored = contents.images, contents.ignored
    if mvtec := any(_split(root, path) for path in images):
        inside = [path for path in images if _split(root, path)]
        if len(inside) < len(images):
            ignored["image outside train and test"] = len(images) - len(inside)
        images = inside
    elif nested := sorted({p.relative_to(root).parts[0] for p in [*images, *contents.masks] if _in_layout(root, p)}):
        what = f"contains the data set{'s' * (len(nested) > 1)} {', '.join(nested[:3])}"
        raise DatasetError(f"{root}: {what}; expected the folder of one data set. Use {root / nested[0]}.")
    if not images:
        others = {**({"mask": len(contents.masks)} if contents.masks else {}), **ignored}
        rest = f", but {listing(others)}" if others else ""
        raise DatasetError(f"{root}: no images{rest}; expected PNG, JPEG, TIFF, BMP, WebP or PGM. Use another folder.")
    labels: dict[Path, str] = {}
    for split in ("train", "test") if mvtec else ("",):
        inside = [path for path in images if _split(root, path) == split] if mvtec else images
        labels |= (
            labelling.below_test(root, inside, names)
            if split == "test"
            else labelling.outside_test(root, inside, split, names)
        )
    if names.unmatched:
        existing = sorted({path.parent.name for path in images if path.parent != root} or {"."})
        raise DatasetError(
            f"{root}: no folder of images matches {', '.join(map(repr, sorted(names.unmatched)))}, given as good; "
            f"expected one of: {', '.join(existing[:LISTED])}. Correct the name."
        )
    if unlabelled := len(images) - len(labels):
        ignored["image beside a folder of good ones"] = unlabelled
    defective = [path for path, label in labels.items() if label not in ("", "good")]
    matches = masks.match(
        root, defective, [path for path in labels if path not in set(defective)], contents.masks, names
    )
    samples = [
        Sample(path, _split(root, path), labels[path], matches.masks.get(path), path.relative_to(root).as_posix())
        for path in images
        if path in labels
    ]
    if groups is not None:
        samples = assign_groups(root, samples, groups)
    return Dataset(
        root,
        "mvtec" if mvtec else "folder",
        tuple(samples),
        ignored,
        tuple(matches.strays),
        groups is not None,
        tuple(matches.of_good),
        tuple(contents.unreadable),
        len(contents.masks),
    )


def images(folder: Path) -> list[Path]:
    """Return the image files at any depth below a folder, in the order of their paths, without masks and thumbnails."""
    return folders.scan(folder).images


def mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask (H, W), or a folder of masks of one image: True where defective. Errors: as `masks.read`."""
    return masks.read(path).area


def _split(root: Path, path: Path) -> str:
    """Return the split of an image: train, test or ""."""
    *above, _ = path.relative_to(root).parts
    return folders.split_of(above[0]) if above else ""


def _in_layout(root: Path, path: Path) -> bool:
    """Whether a file belongs to a data set below the root."""
    inner = [normalize(name) for name in path.relative_to(root).parts[1:-1]]
    return "train" in inner or "ground_truth" in inner


_FILE_COLUMNS = ("path", "file", "filename", "image", "stem")
_GROUP_COLUMNS = ("group", "part", "lot", "session")


def assign_groups(root: Path, samples: Sequence[Sample], groups: str | Path) -> list[Sample]:
    """Assign each sample to a group by a CSV file or a regular expression.

    The CSV has one column for the image (`path` relative to the folder, `file` or `stem`), one for the group (`group`,
    `part`, `lot`, `session`, one that ends in `_group`, or the only other one), and can have `split` if the same stem
    occurs in train and test. The expression is searched in the relative path with forward slashes; its capture group
    named `group`, or its first one, is the group.

    Errors: DatasetError when good images have no group, with their number and three of them.
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
            "expected a group for every good image. Add the missing groups, or remove the images."
        )
    return [replace(s, group=group or s.group) for s, group in zip(samples, named, strict=True)]


def is_table(groups: str | Path) -> bool:
    """Whether `groups` is the path of a table, existing or not, and no regular expression."""
    return files.is_file(groups) or str(groups).lower().endswith(".csv")


def merge_groups(samples: Sequence[Sample], digests: Sequence[str]) -> list[Sample]:
    """Merge the groups of samples whose files are equal, by their digests (n,)."""
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
            f"group pattern '{pattern}': no capture group; expected one. "
            r"Put parentheses around the name of the part, as in 'part(\d+)_'."
        )
    which = "group" if "group" in search.groupindex else 1
    matches = (search.search(sample.path.relative_to(root).as_posix()) for sample in samples)
    return [match[which] if match else None for match in matches]


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
            "Give every column a name, and put quotes around names that contain a separator."
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
        groups: set[str] = next((named[k] for k in keys if k in named), set())
        if len(groups) > 1:
            raise DatasetError(
                f"{path}: {names[0]} has {len(groups)} groups: {', '.join(sorted(groups)[:3])}; expected one. "
                "Use relative paths of images, in a column 'path'."
            )
        return next(iter(groups), None)

    return [find(sample) for sample in samples]


def split_good(samples: Sequence[Sample], calibrate: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Divide good samples into those for the fit and those for calibration, seeded; the order stays.

    `calibrate` is the share of the groups for calibration. Groups are drawn independently of their size, so that they
    are distributed like new parts. A group is never on both sides, and each side has at least one.

    Errors: DatasetError with fewer than two groups.
    """
    order = _shuffle(samples, seed)
    held_out = set(order[: min(max(1, round(calibrate * len(order))), len(order) - 1)])
    fit = [sample for sample in samples if sample.group not in held_out]
    return fit, [sample for sample in samples if sample.group in held_out]


def folds(samples: Sequence[Sample], count: int, seed: int) -> list[list[Sample]]:
    """Divide good samples into `count` folds, seeded, or into one fold per group if there are fewer; the order stays.

    A group is in one fold, and the numbers of groups differ by at most one. Errors: as `split_good`.
    """
    order = _shuffle(samples, seed)
    count = min(count, len(order))
    fold = {group: i % count for i, group in enumerate(order)}
    return [[sample for sample in samples if fold[sample.group] == i] for i in range(count)]


def _shuffle(samples: Sequence[Sample], seed: int) -> list[str]:
    """Return the groups of samples in a seeded order. DatasetError when there are fewer than two."""
    groups = sorted({sample.group for sample in samples})
    if len(groups) < 2:
        raise DatasetError(
            f"{counted(len(samples), 'good image')} in {counted(len(groups), 'group')}; expected at least two groups, "
            f"one for the fit and one for calibration, and better {ENOUGH} images or more. Copies of one file count as "
            "one group. Add images, or use finer groups."
        )
    shuffled: list[str] = np.random.default_rng(seed).permutation(groups).tolist()
    return shuffled

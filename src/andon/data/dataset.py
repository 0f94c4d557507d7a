"""Folders and published layouts → samples; groups of images of one part; the seeded split of good images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from andon import files
from andon.data import folders, grouping, labelling, masks
from andon.data.folders import Names, normalize
from andon.data.grouping import Groups
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
    groups_from: str = ""  # the column or the pattern that groups were assigned by; "" without groups
    good_masks: tuple[Path, ...] = ()  # masks that match images of good parts; they are not used
    unreadable: tuple[str, ...] = ()  # sentences on unreadable folders and links
    masks: int = 0  # number of files of masks

    @property
    def grouped(self) -> bool:
        """Whether groups were assigned."""
        return bool(self.groups_from)

    @property
    def doubtful_groups(self) -> list[str]:
        """Sentences on groups of good images that may be one."""
        return grouping.alike(s.group for s in self.good()) if self.grouped else []

    @property
    def warnings(self) -> list[str]:
        """Sentences on what is left out because it is unreadable, and on groups that may be one."""
        return [*(f"left out: {sentence}" for sentence in self.unreadable), *self.doubtful_groups]

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
        if self.grouped:
            count = len({sample.group for sample in self.training_images()})
            sentences.append(f"groups from {self.groups_from}: {counted(count, 'group')}")
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
    groups: a CSV file or a regular expression on the path, see `grouping.find`.

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
        rest = f", but {listing(contents.others)}" if contents.others else ""
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
    found = None if groups is None else grouping.find(groups, [(s.group, s.split) for s in samples])
    if found:
        samples = assign_groups(root, samples, found)
    return Dataset(
        root,
        "mvtec" if mvtec else "folder",
        tuple(samples),
        ignored,
        tuple(matches.strays),
        found.source if found else "",
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


def assign_groups(root: Path, samples: Sequence[Sample], groups: Groups) -> list[Sample]:
    """Assign each sample to its group. DatasetError when good images have none, with their number and three of them."""
    lost = [s.path for s, group in zip(samples, groups.names, strict=True) if s.good and not group]
    if lost:
        names = few([path.relative_to(root).as_posix() for path in lost])
        raise DatasetError(
            f"{groups.missing} for {len(lost)} of {sum(s.good for s in samples)} good images: {names}; "
            "expected a group for every good image. Add the missing groups, or remove the images."
        )
    return [replace(s, group=group or s.group) for s, group in zip(samples, groups.names, strict=True)]


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

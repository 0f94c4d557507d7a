"""The layouts in which data sets are distributed: files on disk → pictures with their split, label and mask.

Names of folders and files are compared without regard to upper and lower case, and the suffix of a picture may be any
that andon reads: distributions of one data set differ in both.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from andon import files
from andon.data import folders
from andon.errors import DatasetError, ImageError
from andon.pictures import image

GOOD = frozenset({"good", "ok", "normal"})  # published labels of good pictures
DEFECT = "defect"  # label of a defect whose type is not published
TEST_SHARE = 0.2  # of the good parts of a data set without a split


class Picture(NamedTuple):
    """One picture of a data set."""

    path: Path
    split: str  # train, validation, test, or another name of the data set
    defect: str  # good, the type of defect, or "" if it is not published
    mask: Path | None = None  # a file, or a folder of files


@dataclass
class Content:
    """What is on disk of one product."""

    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # pictures and masks that are listed and not there
    others: list[str] = field(default_factory=list)  # pictures that are not part of the layout
    problems: list[str] = field(default_factory=list)  # sentences on files that cannot be read


class Layout(Protocol):
    """How a data set lies on disk."""

    def folder(self, root: Path, product: str) -> Path | None:
        """Return the folder of a product; None if it is not there."""
        ...

    def read(self, root: Path, product: str) -> Content:
        """Read the pictures of a product that is there. DatasetError for a damaged list of files."""
        ...


class Rule(NamedTuple):
    """Pictures of one split: where they are, and their masks."""

    split: str
    place: str  # path below the product, without suffix: {folder} and {stem} stand for one name
    mask: str = ""  # path of the mask, or of the folder of masks, without suffix; "": there is none
    label: Literal["folder", "mask", "content", ""] = "folder"
    """What tells a defect: {folder}, without which all are good; that a mask exists; that it marks pixels; nothing."""

    def match(self, name: str) -> re.Match[str] | None:
        """Match the path of a picture without suffix. A mask beside its picture is no picture."""
        pattern = re.escape(self.place).replace(r"\{folder\}", "(?P<folder>[^/]+)")
        found = re.fullmatch(pattern.replace(r"\{stem\}", "(?P<stem>[^/]+)"), name, re.IGNORECASE)
        above, _, ending = self.mask.rpartition("{stem}")
        beside = above and self.place == f"{above}{{stem}}"
        return None if found and beside and found["stem"].lower().endswith(ending) else found


@dataclass(frozen=True)
class Tree:
    """Folders: each product is a folder whose pictures lie as the rules say."""

    rules: tuple[Rule, ...]
    ignored: frozenset[str] = frozenset()  # paths without suffix of files that are known not to belong
    single: bool = False  # whether the folder of the data set is the only product

    def folder(self, root: Path, product: str) -> Path | None:
        """Return the folder of a product; None if it is not there."""
        if not self.single:
            return child(root, product)
        return root if files.is_folder(root) and any(map(self._rule, _by_key(root)[0])) else None

    def _rule(self, key: str) -> tuple[Rule, re.Match[str]] | None:
        return next(((rule, match) for rule in self.rules if (match := rule.match(key))), None)

    def read(self, root: Path, product: str) -> Content:
        """Read the pictures of a product that is there."""
        place = self.folder(root, product)
        assert place is not None
        paths, content = _by_key(place)
        known = paths | {key.rpartition("/")[0]: path.parent for key, path in paths.items()}
        for key, path in paths.items():
            if key not in self.ignored and (found := self._rule(key)):
                content.pictures.append(self._picture(place, path, *found, known, content))
        used = {path for picture in content.pictures for path in (picture.path, picture.mask)}
        masks = {known.get(self._mask(*found)) for key in paths if (found := self._rule(key))}
        content.others += [
            path.relative_to(place).as_posix()
            for key, path in paths.items()
            if key not in self.ignored and not {path, path.parent} & (used | masks)
        ]
        return content

    @staticmethod
    def _mask(rule: Rule, match: re.Match[str]) -> str:
        return rule.mask.format(**match.groupdict()).lower()

    def _picture(
        self, place: Path, path: Path, rule: Rule, match: re.Match[str], known: dict[str, Path], content: Content
    ) -> Picture:
        wanted = self._mask(rule, match)
        mask = known.get(wanted) if wanted else None
        defect = match.groupdict().get("folder", "good") if rule.label else ""
        if rule.label == "mask":
            defect = DEFECT if mask else "good"
        elif rule.label == "content":
            defect = DEFECT if mask and _marks(mask, content) else "good"
        defect = "good" if defect in GOOD else defect
        if wanted and not mask and (rule.label == "content" or (rule.label == "folder" and defect != "good")):
            content.missing.append(f"mask {wanted} of {path.relative_to(place).as_posix()}")
        return Picture(path, rule.split, defect, mask if defect != "good" else None)


def _by_key(place: Path) -> tuple[dict[str, Path], Content]:
    """The files of pictures below a folder by their paths without suffix, and what is wrong with them."""
    scanned, content = scan(place), Content()
    content.problems += scanned.unreadable
    paths: dict[str, Path] = {}
    for path in sorted([*scanned.images, *scanned.masks]):
        if paths.setdefault(path.relative_to(place).with_suffix("").as_posix().lower(), path) != path:
            content.others.append(path.relative_to(place).as_posix())
    return paths, content


def scan(place: Path) -> folders.Contents:
    """Find the files below a folder. DatasetError when it cannot be read."""
    try:
        return folders.scan(place)
    except OSError as error:
        raise DatasetError(f"{place}: cannot be read: {files.reason(error)}. Allow reading.") from None


def _marks(mask: Path, content: Content) -> bool:
    """Whether a mask marks a pixel; a file that cannot be read is a problem."""
    try:
        return bool(image.read(mask).pixels.any())
    except ImageError as error:
        content.problems.append(str(error))
        return False


def children(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted; empty if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def child(folder: Path, name: str) -> Path | None:
    """Return the folder of this name in any case; None if there is none."""
    if files.is_folder(folder / name):
        return folder / name
    return next((entry for entry in children(folder) if entry.name.lower() == name.lower() and entry.is_dir()), None)


class Parts:
    """KolektorSDD: a tree without a split, of which ours is by item, so that no item is on both sides."""

    def __init__(self, tree: Tree) -> None:
        """tree: the layout, whose pictures have the split ""."""
        self._tree = tree

    def folder(self, root: Path, product: str) -> Path | None:
        """Return the folder of the product; None if it is not there."""
        return self._tree.folder(root, product)

    def read(self, root: Path, product: str) -> Content:
        """Read the pictures, and split them."""
        content = self._tree.read(root, product)
        content.pictures = split_by_part(content.pictures, lambda picture: picture.path.parent.name)
        return content


def split_by_part(pictures: Iterable[Picture], part: Callable[[Picture], str]) -> list[Picture]:
    """Give a split to pictures that have none: defects are test, and the good ones of the last fifth of the parts."""
    given = list(pictures)
    parts = sorted({part(picture) for picture in given if not picture.split and picture.defect == "good"})
    test = set(parts[len(parts) - max(1, round(TEST_SHARE * len(parts))) :] if len(parts) > 1 else [])

    def side(picture: Picture) -> str:
        return "test" if picture.defect != "good" or part(picture) in test else "train"

    return [picture if picture.split else picture._replace(split=side(picture)) for picture in given]

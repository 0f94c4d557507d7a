"""The layouts in which data sets are distributed: files on disk → pictures with their split, label and mask.

Names of folders and files are compared without regard to upper and lower case, and the suffix of a picture may be any
that andon reads: distributions of one data set differ in both.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, TypeAdapter, ValidationError

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
    scanned, content = folders.scan(place), Content()
    content.problems += scanned.unreadable
    paths: dict[str, Path] = {}
    for path in sorted([*scanned.images, *scanned.masks]):
        if paths.setdefault(path.relative_to(place).with_suffix("").as_posix().lower(), path) != path:
            content.others.append(path.relative_to(place).as_posix())
    return paths, content


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


class Lookup:
    """Paths in a list of files → files on disk, in any case; a path that leaves the folder is an error."""

    def __init__(self, folder: Path, source: Path) -> None:
        """folder: what the paths are relative to; source: the list of files, named in errors."""
        self.folder, self._source = folder, source
        scanned = folders.scan(folder)
        self.unreadable = scanned.unreadable
        self.paths = {path.relative_to(folder).as_posix().lower(): path for path in scanned.images + scanned.masks}

    def find(self, name: str) -> Path | None:
        """Return the file of a path of the list; None if it is not there."""
        parts = Path(name.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise DatasetError(
                f"{self._source}: the path '{name}' leaves the folder of the data set; expected a path below it. "
                "Use the file of the data set's authors."
            )
        return self.paths.get("/".join(part for part in parts if part != ".").lower())

    def picture(self, content: Content, name: str, split: str, defect: str, mask: str | None) -> None:
        """Add a picture of the list to the content, or note that it or its mask is missing."""
        path, marked = self.find(name), self.find(mask) if mask else None
        content.missing += [each for each, there in ((name, path), (mask, marked)) if each and there is None]
        if path:
            content.pictures.append(Picture(path, split, "good" if defect.lower() in GOOD else defect, marked))

    def rest(self, content: Content, below: str = "") -> None:
        """Note unreadable folders, and pictures below a folder that are not in the list."""
        used = {path for picture in content.pictures for path in (picture.path, picture.mask)}
        content.problems += self.unreadable
        content.others += [
            path.relative_to(self.folder).as_posix()
            for key, path in self.paths.items()
            if path not in used and key.startswith(below)
        ]


_COLUMNS = ["object", "split", "label", "image", "mask"]


class SplitCsv:
    """VisA: folders of objects, and `split_csv/1cls.csv` with the split of every picture."""

    FILE = "split_csv/1cls.csv"

    def folder(self, root: Path, product: str) -> Path | None:
        """Return the folder of an object; None if it is not there."""
        return child(root, product)

    def read(self, root: Path, product: str) -> Content:
        """Read the pictures of an object that is there. DatasetError when the CSV is missing or not VisA's."""
        path = root / self.FILE
        place = self.folder(root, product)
        assert place is not None
        rows = [row for row in self._rows(path) if row["object"].lower() == product]
        content, lookup = Content(), Lookup(place, path)
        for row in rows:
            names = {key: row[key].partition("/") for key in ("image", "mask") if row[key]}
            for top, _, _ in names.values():
                if top.lower() != product:
                    raise DatasetError(
                        f"{path}: '{row['image']}' is listed for the object {product}; expected a path below its "
                        "folder. Use the file of the data set's authors."
                    )
            mask = names["mask"][2] if "mask" in names else None
            lookup.picture(content, names["image"][2], row["split"], row["label"], mask)
        lookup.rest(content)
        return content

    def _rows(self, path: Path) -> list[dict[str, str]]:
        reader = csv.DictReader(io.StringIO(text_of(path), newline=""))
        if reader.fieldnames != _COLUMNS:
            found = ", ".join(reader.fieldnames or []) or "nothing"
            raise DatasetError(
                f"{path}: begins with {found[:200]}; expected the columns {', '.join(_COLUMNS)}. Use the file of the "
                "data set's authors."
            )
        rows = []
        for number, row in enumerate(reader, start=2):
            values = [row[column] for column in _COLUMNS]
            whole = None not in values and None not in row and row["image"]
            if not whole or row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
                raise DatasetError(
                    f"{path}: line {number} has {', '.join(str(value) for value in values)[:200]}; expected object, "
                    "train or test, normal or anomaly, and the path of the image. Use the file of the data set's "
                    "authors."
                )
            rows.append(row)
        return rows


class _Listed(BaseModel):
    anomaly_class: str
    image_path: str
    mask_path: str | None = None


class _Splits(BaseModel):
    train: list[_Listed]
    test: list[_Listed]


_SPLITS = TypeAdapter(_Splits)


class SplitJson:
    """Real-IAD: `realiad_1024/<category>/…`, and `realiad_jsons/realiad_jsons/<category>.json` with the split.

    Of several resolutions the highest is used.
    """

    def folder(self, root: Path, product: str) -> Path | None:
        """Return the folder of a category in the highest resolution; None if it is not there."""
        sizes = [(int(m[1]), entry) for entry in children(root) if (m := re.fullmatch(r"realiad_(\d+)", entry.name))]
        return next((place for _, entry in sorted(sizes, reverse=True) if (place := child(entry, product))), None)

    def read(self, root: Path, product: str) -> Content:
        """Read the pictures of a category that is there. DatasetError when its JSON is missing or not Real-IAD's."""
        place = self.folder(root, product)
        assert place is not None
        path = root / "realiad_jsons" / "realiad_jsons" / f"{product}.json"
        try:
            splits = _SPLITS.validate_json(text_of(path))
        except ValidationError as error:
            first = error.errors()[0]
            raise DatasetError(
                f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}; expected lists train and "
                "test with anomaly_class, image_path and mask_path. Use the file of the data set's authors."
            ) from None
        content, lookup = Content(), Lookup(place, path)
        for split, entries in (("train", splits.train), ("test", splits.test)):
            for entry in entries:
                lookup.picture(content, entry.image_path, split, entry.anomaly_class, entry.mask_path)
        lookup.rest(content)
        return content


class Probabilities:
    """elpv: `labels.csv` with the path, defect probability and type of each cell. Good is 0, defective is 1.

    Cells between, about which the experts were not certain, have the split `uncertain` and no label.
    """

    FILE = "labels.csv"

    def folder(self, root: Path, product: str) -> Path | None:
        """Return the folder with the list; None if there is no list."""
        return root if files.is_file(root / self.FILE) else None

    def read(self, root: Path, product: str) -> Content:
        """Read the cells of a type. DatasetError when the list is damaged."""
        path = root / self.FILE
        content, lookup = Content(), Lookup(root, path)
        others = Content()
        for number, line in enumerate(text_of(path).splitlines(), start=1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 3 or not re.fullmatch(r"[01]\.\d+", fields[1]) or fields[2] not in ("mono", "poly"):
                raise DatasetError(
                    f"{path}: line {number} has '{line[:100]}'; expected the path of a cell, its defect probability "
                    "from 0.0 to 1.0, and mono or poly. Use the file of the data set's authors."
                )
            label = {0.0: "good", 1.0: DEFECT}.get(float(fields[1]), "")
            target = content if fields[2] == product else others
            lookup.picture(target, fields[0], "" if label else "uncertain", label, None)
        content.pictures = split_by_part(content.pictures, lambda picture: picture.path.name)
        listed = Content(pictures=content.pictures + others.pictures)
        lookup.rest(listed)
        content.others, content.problems = listed.others, listed.problems
        return content


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


def text_of(path: Path) -> str:
    """Read a list of files. DatasetError when it is missing or cannot be read."""
    if not files.is_file(path):
        raise DatasetError(f"{path}: no such file; expected the list of pictures of the data set. Copy it there.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: not UTF-8 text. Use the file of the data set's authors.") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}. Allow reading.") from None

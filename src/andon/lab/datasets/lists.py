"""Data sets whose pictures and split are in a list: VisA's CSV, Real-IAD's JSON, elpv's labels."""

import csv
import io
import re
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from andon import files
from andon.errors import DatasetError
from andon.lab.datasets.layouts import DEFECT, GOOD, Content, Picture, child, children, scan, split_by_part

MOST_TEXT = 64 << 20  # bytes of a list of pictures


class Lookup:
    """Paths in a list of files → files on disk, in any case; a path that leaves the folder is an error."""

    def __init__(self, folder: Path, source: Path) -> None:
        """folder: what the paths are relative to; source: the list of files, named in errors."""
        self.folder, self._source = folder, source
        scanned = scan(folder)
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
        reader = csv.DictReader(io.StringIO(_text(path), newline=""))
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
            splits = _SPLITS.validate_json(_text(path))
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
        for number, line in enumerate(_text(path).splitlines(), start=1):
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


def _text(path: Path) -> str:
    """Read a list of files. DatasetError when it is missing or cannot be read."""
    if not files.is_file(path):
        raise DatasetError(f"{path}: no such file; expected the list of pictures of the data set. Copy it there.")
    if (size := path.stat().st_size) > MOST_TEXT:
        raise DatasetError(
            f"{path}: {size >> 20} MiB; expected a list of pictures of at most {MOST_TEXT >> 20} MiB. Use the file of "
            "the data set's authors."
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: not UTF-8 text. Use the file of the data set's authors.") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}. Allow reading.") from None

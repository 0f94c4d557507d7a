"""The pictures of a project: taken in, listed, dropped and kept. Names from outside never become paths unchecked."""

import os
import re
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from andon import files
from andon.data import folders
from andon.errors import AndonError, ImageError, StorageError
from andon.pictures import image
from andon.pictures.headers import READABLE, SUFFIXES
from andon.station.events import StationError
from andon.station.teaching.projects import LONGEST, PICTURES

GOOD = "train/good"
LEFT_OUT = "left-out"
MOST_PICTURES = 10_000  # of one project
MOST_PIXELS = 150_000_000  # of one picture
MOST_SAID = 20  # refused pictures of which one request tells
ROOM = 1 << 30  # bytes that stay free on the disk of the records
_NAMING = threading.Lock()  # of two uploads with one name at once, neither replaces the other


class Taken(NamedTuple):
    """What became of pictures that were brought."""

    added: int
    known: int
    """Files that were there already."""
    refused: tuple[str, ...]
    """A sentence for each of the first `MOST_SAID`, and for the number of the others."""


class Pictures:
    """The pictures below the folder of one project. A picture is named by its path, such as `train/good/7.png`."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def listed(self, left_out: bool = False) -> list[str]:
        """All names, in order: those that count, or those that are left out."""
        root = self.place / (LEFT_OUT if left_out else PICTURES)
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)

    def _count(self) -> int:
        """The number of files that count: faster than to list them."""
        return sum(len(names) for _, _, names in os.walk(self.place / PICTURES))

    def path(self, name: str) -> Path:
        """The file of a picture, also of one that is left out. StationError when there is none."""
        for root in (PICTURES, LEFT_OUT):
            path = self.place / root / _inside(name)
            if files.is_file(path):
                return path
        raise StationError(f"no picture '{name[:200]}' in this project: it was removed. Load the page again.")

    def take(self, source: Path, name: str, folder: str, room: int | None = None) -> bool:
        """Move one file in; False when the same file is there. ImageError when it is no picture that can be used.

        folder: `GOOD`, or `defects(kind)`. room: number of pictures that are there, where it is known.
        """
        name = _plain(name)
        height, width = image.shape(source)
        if height * width > MOST_PIXELS:
            raise ImageError(
                f"{name}: {width} × {height} pixels; expected at most {MOST_PIXELS // 1_000_000} megapixels. Crop it, "
                "or set the camera to fewer pixels."
            )
        count = self._count() if room is None else room
        if count >= MOST_PICTURES:
            raise StationError(f"the project has {count} pictures; expected at most {MOST_PICTURES}. Remove some.")
        try:
            target = self.place / PICTURES / folder
            target.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(target).free < ROOM:
                raise StorageError(
                    f"{target}: less than {ROOM >> 30} GiB is free. Free some space; {name} was not kept."
                )
            with _NAMING:
                for each in _candidates(name):
                    there = [path for path in (target / each, self.place / LEFT_OUT / folder / each) if path.exists()]
                    if not there:
                        source.replace(target / each)
                        return True
                    if any(_same(path, source) for path in there):
                        return False
        except OSError as error:
            raise StorageError(f"{self.place}: pictures cannot be kept: {files.reason(error)}. Free space.") from error
        raise StationError(f"{name}: too many pictures of this name. Rename them.")

    def take_all(self, sources: list[tuple[Path, str, str]]) -> Taken:
        """Move files in, each with its name and folder; those that cannot be used are refused, each with a reason."""
        added = known = 0
        refused: list[str] = []
        count = self._count()
        for source, name, folder in sources:
            try:
                if self.take(source, name, folder, count + added):
                    added += 1
                else:
                    known += 1
            except ImageError as error:
                refused.append(str(error).replace(str(source), name))
        more = len(refused) - MOST_SAID
        said = [*refused[:MOST_SAID], *([f"and {more} more"] if more > 0 else [])]
        return Taken(added, known, tuple(said))

    def drop(self, names: list[str]) -> None:
        """Leave pictures out; they can be kept again."""
        self._move(names, PICTURES, LEFT_OUT)

    def keep(self, names: list[str]) -> None:
        """Let pictures count again that were left out."""
        self._move(names, LEFT_OUT, PICTURES)

    def _move(self, names: list[str], source: str, target: str) -> None:
        inside = [_inside(name) for name in names]
        absent = [str(name) for name in inside if not files.is_file(self.place / source / name)]
        if absent:
            raise StationError(f"'{absent[0]}' is not there any more. Load the page again; nothing was changed.")
        try:
            for name in inside:
                place = self.place / target / name
                place.parent.mkdir(parents=True, exist_ok=True)
                (self.place / source / name).replace(place)
        except OSError as error:
            raise StorageError(f"{self.place}: pictures cannot be moved: {files.reason(error)}.") from error


def defects(kind: str) -> str:
    """The folder of pictures of one kind of defect. StationError when it cannot have this name."""
    kind = unicodedata.normalize("NFC", kind).strip()
    wrong = not kind or len(kind) > LONGEST or kind.startswith(".") or re.search(r'[\x00-\x1f/\\:*?"<>|]', kind)
    if wrong or kind.endswith(".") or folders.Names().kind(kind) in ("good", "mask", "system"):
        raise StationError(
            f"kind of defect {kind[:100]!r}: expected up to {LONGEST} characters, such as scratch, that mean "
            'neither good parts nor masks, without any of / \\ : * ? " < > |. Choose another name.'
        )
    return f"test/{kind}"


def _inside(name: str) -> PurePosixPath:
    """A relative path that stays inside. StationError for any other."""
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or "\x00" in name or not path.parts or {".", ".."} & set(path.parts):
        raise StationError(f"picture {name[:200]!r}: expected a name as the page shows it, such as train/good/7.png.")
    return path


def _plain(name: str) -> str:
    """The last part of a name, without characters that a file system may refuse. ImageError: no picture by its name."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    safe = re.sub(r'[\x00-\x1f\x7f:*?"<>|\ud800-\udfff]', "_", last).lstrip(".~@#$ ")
    stem, suffix = os.path.splitext(safe)  # noqa: PTH122 - a name, no path
    if suffix.lower() not in SUFFIXES or not stem:
        raise ImageError(f"{last[:100]!r}: no picture by its name; expected {READABLE}. Rename or convert it.")
    while len(stem.encode()) > 180:
        stem = stem[:-1]
    return stem.rstrip(" .") + suffix


def _candidates(name: str) -> Iterator[str]:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    yield name
    for number in range(2, 1000):
        yield f"{stem}-{number}{suffix}"


def _same(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    return files.digest(one.read_bytes()) == files.digest(other.read_bytes())


def clear(folder: Path) -> None:
    """Remove a folder that can be made again, or say that it is not possible."""
    with suppress(FileNotFoundError):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise AndonError(f"{folder}: cannot be removed: {files.reason(error)}. Allow writing there.") from error

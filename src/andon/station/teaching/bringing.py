"""Many pictures at once: a ZIP archive, a folder of the station's settings, or the archive of its records."""

import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from andon import files
from andon.data import dataset
from andon.data.labelling import listing
from andon.errors import AndonError, StorageError, counted
from andon.pictures import headers
from andon.pictures.headers import SUFFIXES
from andon.station import floor
from andon.station.archive import Archive
from andon.station.config import Config
from andon.station.events import Outcome, StationError
from andon.station.reader import Reader
from andon.station.teaching.pictures import GOOD, MOST_PICTURES, ROOM, Pictures, Taken, defects

MOST_MEMBERS = 2 * MOST_PICTURES  # with masks and other files
MOST_MEMBER = 1 << 28  # bytes of one picture, unpacked
MOST_RATIO = 200  # of unpacked to packed bytes; pictures hardly shrink
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
CHUNK = 1 << 20

Label = str
"""What pictures show: "good", the kind of a defect, or "" for what the names of their folders say."""


def zipped(pictures: Pictures, archive: Path, label: Label) -> Taken:
    """Take the pictures of a ZIP archive. StationError, and nothing is taken, when it cannot be unpacked safely."""
    with _unpacked(pictures.place, archive) as (folder, ignored):
        return _taken(pictures, folder, label, ignored)


def from_folder(pictures: Pictures, source: Path, label: Label) -> Taken:
    """Copy the pictures of a folder, such as one that a camera fills. It is only read."""
    try:
        found = dataset.images(source)[: MOST_PICTURES + 1]
    except OSError as error:
        raise StationError(f"{source}: cannot be read: {files.reason(error)}. Allow reading.") from None
    if len(found) > MOST_PICTURES:
        raise StationError(f"{source}: more than {MOST_PICTURES} pictures; expected fewer. Choose a smaller folder.")
    with workplace(pictures.place) as folder:
        for path in found:
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return _taken(pictures, folder, label, Counter())


def folders_of(config: Config) -> dict[str, Path]:
    """The folders of pictures that the settings of a station name: only these may be read."""
    watched = {str(each.pictures): each.pictures for each in config.folder}
    cameras = {each.camera: Path(each.camera) for each in config.products.values() if files.is_folder(each.camera)}
    return {**watched, **cameras}


def from_archive(
    pictures: Pictures, reader: Reader, archive: Archive, product: str, most: int, confirmed: bool
) -> Taken:
    """Copy good pictures of a product that the station has kept, the newest first.

    confirmed: only those that a person has confirmed as good; otherwise also those that passed and that nobody
    disputed.
    """
    agreed = floor.confirmed(reader, archive, product)
    chosen = dict(list(agreed.pictures.items())[:most])
    if not confirmed:
        disputed = {row.job for row in reader.walk(product=product, kind="decision") if row.verdict != Outcome.PASS}
        after: int | None = None
        while len(chosen) < most:
            rows = reader.history(product=product, verdict=Outcome.PASS, kind="inspection", after=after, limit=500)
            for row in rows:
                digest = row.body.get("kept", {}).get("picture", "")
                if digest and row.job not in disputed and len(chosen) < most:
                    chosen.setdefault(digest, str(row.part))
            if not rows:
                break
            after = rows[-1].sequence
    with workplace(pictures.place) as folder:
        sources = []
        lost: list[str] = []
        absent = 0
        for digest, part in chosen.items():
            try:
                data = archive.open(digest)
            except StationError as error:
                if reader.holds(digest):
                    lost.append(str(error))
                else:
                    absent += 1
                continue
            suffix = headers.suffix(data)
            copy = folder / f"{digest}{suffix}"
            copy.write_bytes(data)
            sources.append((copy, f"{part[:100].replace('/', '_')}-{digest[:8]}{suffix}", GOOD))
        found = pictures.take_all(sources)
    gone = (f"{counted(absent, 'picture')} not kept, or aged out",) if absent else ()
    damaged = (f"{counted(len(lost), 'picture')} missing or damaged: {lost[0]}",) if lost else ()
    if not chosen:
        raise StationError(f"product '{product}': the station has kept no good pictures of it. Bring others.")
    return found._replace(refused=(*found.refused, *damaged, *gone))


def _taken(pictures: Pictures, folder: Path, label: Label, ignored: Counter[str]) -> Taken:
    """Take the pictures of a folder, labelled by `andon`'s own rules."""
    if label not in ("", "good"):
        sources = [(path, path.name, defects(label)) for path in dataset.images(folder)]
    else:
        try:
            data = dataset.load(folder, good=("*",) if label else ())
        except AndonError as error:
            raise StationError(
                f"{str(error).replace(str(folder), 'these pictures')} Here: say what the pictures show, good parts or "
                "one kind of defect, and bring them separately."
            ) from None
        sources = []
        for each in data.samples:
            if each.good and each.split != "test":
                sources.append((each.path, each.path.name, GOOD))
            elif each.defect not in ("", "good"):
                sources.append((each.path, each.path.name, defects(each.defect)))
            else:
                ignored["good or unlabelled picture of a test"] += 1
        ignored = ignored + data.ignored
        if data.masks:
            ignored["mask"] += data.masks
    found = pictures.take_all(sources)
    others = (f"not taken: {listing(ignored)}",) if ignored else ()
    return found._replace(refused=(*found.refused, *others))


@contextmanager
def _unpacked(place: Path, archive: Path) -> Iterator[tuple[Path, Counter[str]]]:
    """A temporary folder with the pictures of an archive, and what else was in it."""
    ignored: Counter[str] = Counter()
    try:
        with zipfile.ZipFile(archive) as content:
            members = _checked(content, archive)
            with workplace(place, sum(each.file_size for each in members)) as folder:
                for each in members:
                    path = PurePosixPath(each.filename)
                    if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                        _unpack(content, each, folder / path)
                    else:
                        ignored["other file"] += 1
                yield folder, ignored
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise StationError(
            f"the file is no ZIP archive that can be read: {error}. Expected pictures, packed without a password. "
            "Pack it again."
        ) from None


def _checked(content: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    """The files of an archive. StationError when a path leaves it, or it would unpack to too much."""
    members = [each for each in content.infolist() if not each.is_dir()]
    for each in members:
        path = PurePosixPath(each.filename)
        kind = stat.S_IFMT(each.external_attr >> 16)
        outside = path.is_absolute() or ".." in path.parts or "\\" in each.filename or ":" in path.parts[0]
        if outside or kind not in (0, stat.S_IFREG):
            raise StationError(
                f"the archive holds {each.filename[:200]!r}, which is a link, or a path that leads out of it; expected "
                "pictures in folders. Nothing was taken. Pack the pictures again."
            )
    packed, total = archive.stat().st_size, sum(each.file_size for each in members)
    large = max(members, key=lambda each: each.file_size, default=None)
    if len(members) > MOST_MEMBERS:
        what = f"{len(members)} files; expected at most {MOST_MEMBERS}"
    elif large and large.file_size > MOST_MEMBER:
        what = f"{large.filename[:200]!r} of {large.file_size >> 20} MiB; expected at most {MOST_MEMBER >> 20} MiB"
    elif total > MOST_RATIO * packed + CHUNK:
        what = f"{total >> 20} MiB in {packed >> 10} KiB; expected pictures, which hardly shrink"
    elif any(each.flag_bits & 1 or each.compress_type not in METHODS for each in members):
        what = "files with a password, or in a rare compression; expected neither"
    else:
        return members
    raise StationError(f"the archive holds {what}. Nothing was taken. Pack fewer pictures, or smaller ones.")


def _unpack(content: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Unpack one member, and no more bytes than it says that it has."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with content.open(member) as packed, target.open("xb") as file:
        while piece := packed.read(CHUNK):
            left -= len(piece)
            if left < 0:
                raise zipfile.BadZipFile(f"{member.filename[:200]!r} is larger than the archive says")
            file.write(piece)


@contextmanager
def workplace(place: Path, needed: int = 0) -> Iterator[Path]:
    """A temporary folder on the disk of a project. StorageError when the disk is full or not writable."""
    try:
        files.make_folder(place)
        free = shutil.disk_usage(place).free
        if free < needed + ROOM:
            raise StorageError(f"{place}: {free >> 20} MiB are free; {(needed + ROOM) >> 20} are needed. Free space.")
        with TemporaryDirectory(prefix=".bring-", dir=place) as folder:
            yield Path(folder)
    except OSError as error:
        raise StorageError(f"{place}: pictures cannot be kept: {files.reason(error)}. Free some space.") from error

"""Back up the records and pictures of a running station, and restore them, with SQLite or PostgreSQL.

A backup is a folder, written completely or not at all: `records.db` (always SQLite), `pictures/` (an archive), `also/`
(further files and folders), `manifest.json` (digests of all files except the pictures, whose names are their digests).
"""

import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

import andon
from andon import files
from andon.errors import AndonError, StorageError, few
from andon.progress import Progress, silent
from andon.station import schema
from andon.station.archive import Archive
from andon.station.entries import Entry, chained, draft, stamp
from andon.station.events import StationError
from andon.station.reader import Reader, names

FORMAT = 1
DATABASE, PICTURES, ALSO, MANIFEST = "records.db", "pictures", "also", "manifest.json"
TABLES = (schema.stations, schema.records, schema.outbox, schema.pictures)
PAGE = 1000
CHUNK = 1 << 20
JOBS_SKIPPED = 1_000_000
"""Number of job ids skipped by a restoration: the station may have used them after the backup."""


class Copied(NamedTuple):
    records: dict[str, int]
    """Station → number of its records."""
    pictures: int
    missing: dict[str, list[str]]
    """Station → digests of its pictures that are damaged, or not in the archive: each station may have its own."""
    breaks: dict[str, list[str]]
    """Station → places where its chain is broken; the records are copied unchanged."""


def backup(
    url: str, out: Path, archive: Path | None = None, also: Sequence[Path] = (), progress: Progress = silent
) -> Copied:
    """Copy a database, an archive and further files to a new folder, while the station runs.

    AndonError when something cannot be read or written; an incomplete backup is removed.
    """
    names = [path.name for path in also]
    for path in also:
        if not path.exists() or names.count(path.name) > 1:
            raise AndonError(f"{path}: does not exist, or its name is used twice. Name another file or folder.")
    if os.path.lexists(out):
        raise AndonError(f"{out}: already exists; expected a new folder. Name another.")
    files.make_folder(out.absolute().parent)
    part = out.absolute().with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        with _storage_errors(out):
            part.mkdir()
            with _connection(url, writes=False) as source, _new(part / DATABASE) as target:
                progress("copying records", 0, 0)
                _copy_tables(source, target)
            copied = _look(part / DATABASE, archive, part / PICTURES, progress)
            copied = _without_aged(copied, url, part / DATABASE)
            for path in also:
                _copy(path, part / ALSO / path.name)
            manifest = {
                "format": FORMAT,
                "software": f"andon {andon.__version__}",
                "time": stamp(time.time()),
                "records": copied.records,
                "files": _digests(part),
            }
            files.write(part / MANIFEST, files.strict_json(manifest, indent=1).encode())
            _sync()
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return copied


def packed(folder: Path) -> Iterator[bytes]:
    """Yield a backup as one TAR file, piece by piece."""
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            info = tarfile.TarInfo(str(path.relative_to(folder.parent)))
            info.size, info.mtime, info.mode = about.st_size, int(about.st_mtime), 0o600
            yield info.tobuf(tarfile.PAX_FORMAT)
            while piece := file.read(CHUNK):
                yield piece
            yield bytes(-about.st_size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def restore(folder: Path, url: str, archive: Path | None = None) -> Copied:
    """Restore a backup into a database that does not contain its stations, and into an archive.

    The files in `also/` are verified and not copied: a person must do this. StationError when the folder is not a
    complete backup, or when the database already contains one of the stations.
    """
    manifest = _manifest(folder)
    with tempfile.TemporaryDirectory() as temporary, _storage_errors(folder):
        copy = Path(temporary) / DATABASE
        shutil.copyfile(folder / DATABASE, copy)
        with _connection(str(copy), writes=True):
            pass  # migrates the copy of an older backup
        copied = _look(copy, folder / PICTURES if archive else None, archive)
        _sync()
        with _connection(str(copy), writes=False) as source, _connection(url, writes=True) as target:
            known = set(target.execute(sa.select(schema.stations.c.name)).scalars()) & copied.records.keys()
            if known:
                raise StationError(
                    f"{schema.place(target.engine.url)}: already contains station {', '.join(sorted(known))}; expected "
                    "a database without it. Name a new database."
                )
            _copy_tables(source, target)
            for name in copied.records:
                with Reader(str(copy), name) as reader:
                    aged = sorted(reader.kept().difference(reader.pictures()))  # while the backup was made
                _restored(target, name, str(manifest["time"]), aged)
    return copied


def _restored(connection: sa.Connection, station: str, time_of_backup: str, aged: list[str]) -> None:
    """Continue the chain with an event that names the backup, and skip job ids that may have been used after it."""
    table = schema.stations
    mine = table.c.name == station
    found = connection.execute(sa.select(table).where(mine)).mappings().one()
    clock = stamp(time.time())
    body = {"event": "restored", "backup of": time_of_backup, **({"pictures": aged} if aged else {})}
    event = draft(Entry("event", body=body))
    (row,) = chained((found["sequence"], found["digest"], found["time"]), station, clock, [event])
    connection.execute(sa.insert(schema.records), [row.values()])
    last = {"sequence": row.sequence, "digest": row.digest, "time": row.time, "clock": clock}
    connection.execute(
        sa.update(table).where(mine).values(**last, holder="", next_job=found["next_job"] + JOBS_SKIPPED)
    )


@contextmanager
def _connection(url: str, writes: bool) -> Iterator[sa.Connection]:
    """Yield a connection in one transaction. When reading, it shows the database at one moment."""
    engine = schema.connect(url, writes)
    try:
        if writes:
            schema.migrate(engine)
        else:
            schema.check(engine)
        moment = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
        with (
            schema.errors(engine),
            engine.connect().execution_options(writes=writes, **moment) as connection,
            connection.begin(),
        ):
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _new(path: Path) -> Iterator[sa.Connection]:
    """Yield a transaction of a new SQLite database, which has no further files when it is closed."""
    with _connection(str(path), writes=True) as connection:
        yield connection
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA journal_mode = DELETE")


def _copy_tables(source: sa.Connection, target: sa.Connection) -> None:
    for table in TABLES:
        key = sa.tuple_(*table.primary_key)
        names = [column.name for column in table.primary_key]
        query = sa.select(table).order_by(*table.primary_key).limit(PAGE)
        rows = source.execute(query).mappings().all()
        while rows:
            target.execute(sa.insert(table), [dict(row) for row in rows])
            last = sa.tuple_(*(rows[-1][name] for name in names))
            rows = source.execute(query.where(key > last)).mappings().all()


def _look(database: Path, source: Path | None, target: Path | None, progress: Progress = silent) -> Copied:
    """Verify the chains of a copy; copy its pictures if both archives are given."""
    records: dict[str, int] = {}
    breaks: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    count = 0
    for name in names(str(database)):
        with Reader(str(database), name) as reader:
            records[name], _ = reader.head()
            breaks[name] = [f"record {each.sequence} {each.what}" for each in reader.verify(progress)]
            if source and target:
                total, lacking = sum(1 for _ in reader.pictures()), []
                for number, digest in enumerate(reader.pictures()):
                    progress("copying pictures", number, total)
                    if not _copy_picture(Archive(source), digest, target):
                        lacking.append(digest)
                count += total - len(lacking)
                missing |= {name: lacking} if lacking else {}
    return Copied(records, count, missing, {name: found for name, found in breaks.items() if found})


def _without_aged(copied: Copied, url: str, database: Path) -> Copied:
    """Forget, in a copy of the database, the pictures that aged out in the original while the copy was made."""
    missing: dict[str, list[str]] = {}
    table = schema.pictures
    for name, digests in copied.missing.items():
        with Reader(url, name) as reader:
            held = [digest for digest in digests if reader.holds(digest)]
        if aged := set(digests).difference(held):
            with _new(database) as connection:
                for digest in aged:
                    connection.execute(sa.delete(table).where(table.c.station == name, table.c.digest == digest))
        missing |= {name: held} if held else {}
    return copied._replace(missing=missing)


def _copy_picture(archive: Archive, digest: str, target: Path) -> bool:
    try:
        place, data = archive.path(digest), archive.open(digest)
    except StationError:
        return False
    copy = target / place.relative_to(archive.folder)
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
    return True


def _sync() -> None:
    if hasattr(os, "sync"):  # not on Windows
        os.sync()


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to, ignore=shutil.ignore_patterns("*.part"))  # files that are being written
    else:
        shutil.copy2(path, to)


def _digests(folder: Path) -> dict[str, str]:
    paths = [folder / DATABASE, *sorted(path for path in (folder / ALSO).rglob("*") if path.is_file())]
    return {str(path.relative_to(folder)): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict[str, object]:
    """Verify a backup and return its manifest."""
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_bytes()))
        if manifest["format"] != FORMAT:
            raise StationError(
                f"{folder}: backup format {manifest['format']}; expected {FORMAT}. Use the andon that wrote it."
            )
        found, expected = _digests(folder), dict(manifest["files"])
    except OSError as error:
        todo = "Name a folder of `andon station backup`, and allow reading it."
        raise StationError(f"{folder}: not a backup: {error}. {todo}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StationError(f"{folder / MANIFEST}: damaged: {error!r}. Use another backup.") from None
    wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    if wrong:
        raise StationError(f"{folder}: damaged: {few(sorted(wrong))} differ from the manifest. Use another backup.")
    return manifest


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, shutil.Error) as error:
        raise StorageError(f"{folder}: cannot be copied: {error}. Free space, or allow reading and writing.") from error

"""Files named by the digest of their contents: the pictures and maps of records."""

import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from andon import files
from andon.errors import AndonError, StorageError
from andon.station.events import StationError

DIGEST = re.compile(r"[0-9a-f]{64}")


class Archive:
    """A folder of files named by SHA-256 of their contents: `ab/cd/abcd….png`. Paths are made from digests only.

    Args:
        folder: is created if it does not exist.
        clock: seconds since 1970.
    """

    def __init__(self, folder: str | Path, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._clock = Path(folder), clock
        self._lock = threading.Lock()
        self._durable: set[Path] = set()  # outer folders whose names are on the disk
        try:
            files.make_folder(self.folder)
        except AndonError as error:
            raise StorageError(str(error)) from None

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """Yield a temporary path for a file to be moved into the archive; what remains there is removed."""
        place = self.folder / f"{secrets.token_hex(8)}.part"
        try:
            yield place
        except OSError as error:
            raise StorageError(f"{error.filename or place}: cannot be copied: {files.reason(error)}.") from error
        finally:
            place.unlink(missing_ok=True)

    def put(self, data: bytes, suffix: str = "") -> str:
        """Store data durably, all or nothing, and return its digest. StorageError when it cannot be stored."""
        digest = files.digest(data)
        self.put_all([(data, suffix, digest)])
        return digest

    def put_all(self, contents: Sequence[tuple[bytes, str, str]]) -> None:
        """Store data, suffix and digest of several files: as `put`, but their folders are synchronised together."""
        new, folders = [], [self._folder(digest) for _, _, digest in contents]
        for data, suffix, digest in contents:
            if not re.fullmatch(r"(\.[a-z0-9]{1,8})?", suffix):
                raise StationError(
                    f"suffix '{suffix}': expected none, or a dot and 1 to 8 of a-z and 0-9, such as .png."
                )
            with self._lock:
                known = self._find(digest)
                if known:
                    with suppress(OSError):
                        os.utime(known, (self._clock(), self._clock()))  # `remove` keeps files that were put recently
            if known is None:
                new.append((self._folder(digest) / f"{digest}{suffix}", data))
        try:
            for place, data in new:
                place.parent.mkdir(parents=True, exist_ok=True)
                files.write(place, data)
            self._settle(folders)  # of known files too: an earlier call may have failed, or not have come so far
        except (AndonError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            why = files.reason(cause) if isinstance(cause, OSError) else str(error)
            raise StorageError(
                f"{self.folder}: the file cannot be written: {why}. Free space or allow writing there."
            ) from error

    def move(self, path: Path, suffix: str = "") -> str:
        """Store a file of the same disk by moving it into the archive. Otherwise as `put`."""
        try:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if self._find(digest):
                path.unlink()
                return digest
            place = self._folder(digest) / f"{digest}{suffix}"
            files.make_folder(place.parent)
            path.replace(place)
            self._settle([place.parent])
        except (AndonError, OSError) as error:
            raise StorageError(f"{self.folder}: {path.name}: cannot be written: {error}") from error
        return digest

    def path(self, digest: str) -> Path:
        """Return the path of the file with a digest. StationError when there is none."""
        found = self._find(digest)
        if found is None:
            raise self._absent(digest)
        return found

    def open(self, digest: str) -> bytes:
        """Return the contents of the file with a digest. StationError when it is missing or damaged."""
        place = self.path(digest)
        try:
            data = place.read_bytes()
        except FileNotFoundError:
            raise self._absent(digest) from None
        except OSError as error:
            raise StorageError(f"{place}: cannot be read: {files.reason(error)}. Allow reading.") from error
        if files.digest(data) != digest:
            raise StationError(f"{place}: its contents differ from the digest in its name. Restore it from a backup.")
        return data

    def remove(self, digest: str, unused_s: float = 0) -> bool:
        """Remove a file, unless it was put in the last `unused_s` seconds. Return whether it no longer exists."""
        with self._lock:
            place = self._find(digest)
            try:
                if place and self._clock() - place.stat().st_mtime < unused_s:
                    return False
                if place:
                    place.unlink()
            except FileNotFoundError:
                return True
            except OSError as error:
                raise StorageError(
                    f"{place}: cannot be removed: {files.reason(error)}. Allow writing there."
                ) from error
        return True

    def walk(self) -> Iterator[Path]:
        """Yield all files, folder by folder, including foreign ones and those that a killed process left incomplete."""
        for outer in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            for inner in sorted(outer.glob("[0-9a-f][0-9a-f]")):
                with suppress(FileNotFoundError):
                    yield from list(inner.iterdir())

    def _settle(self, folders: Sequence[Path]) -> None:
        """Synchronise folders and those that contain them: only then their new files survive a power cut."""
        outer = {folder.parent for folder in folders}
        for folder in (*set(folders), *outer, *([self.folder] if outer - self._durable else [])):
            _sync(folder)
        self._durable |= outer

    def _absent(self, digest: str) -> StationError:
        return StationError(
            f"{self.folder}: no picture {digest}: it was not kept, or has aged out. Expected one that is kept."
        )

    def _folder(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest[2:4]

    def _find(self, digest: str) -> Path | None:
        if not DIGEST.fullmatch(digest):
            raise StationError(f"picture {digest[:80]!r}: expected SHA-256, 64 hexadecimal digits in lower case.")
        try:
            return next(self._folder(digest).glob(f"{digest}*"), None)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be read: {files.reason(error)}. Allow reading.") from error


def _sync(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files written whole or not at all, locked folders, and the digests that name contents.

A file is written through a symbolic link: the file that the link names is replaced and the link stays. Permissions
and group of a file that is replaced are kept. A link that names no file yet makes that file, in a folder that exists.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import stat
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from andon.errors import AndonError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

LOCK = ".lock"  # the file in a locked folder
STORAGE_MB = 16_000  # temporary storage of a training, in megabytes, where no other budget is set
PROBE = 64 * 1024  # bytes: a full disk still takes an empty file


def digest(*data: bytes | memoryview) -> str:
    """SHA-256 of the data, one part after the other, as 64 hexadecimal digits."""
    found = hashlib.sha256()
    for part in data:
        found.update(part)
    return found.hexdigest()


def digest_of_all(named: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the names and digests of several files; a name need not be valid Unicode."""
    return digest("\n".join(f"{name} {each}" for name, each in named).encode(errors="surrogateescape"))


def finite(value: Any) -> Any:
    """Plain data with None in place of each float that JSON cannot hold: NaN and the infinities."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def strict_json(value: Any, indent: int | None = None, ascii_only: bool = True) -> str:
    """Plain data as JSON that every parser takes: null in place of NaN and infinity."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def canonical_json(value: Any) -> str:
    """Plain data as the one JSON text that it has: sorted keys, no spaces, ASCII. What digests are computed of."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError:  # not finite
        return json.dumps(finite(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def is_file(path: str | Path) -> bool:
    """Whether there is a file; what cannot be a path, a long regular expression say, is none."""
    return _kind(path) == "file"


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder; what cannot be a path is none."""
    return _kind(path) == "folder"


def _kind(path: str | Path) -> str:
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return ""
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def make_folder(path: str | Path) -> None:
    """Make a folder, and those above it, where there is none. AndonError when that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise AndonError(f"{path}: the folder cannot be made: {reason}. Choose another output folder.") from None


def write(path: str | Path, data: bytes) -> None:
    """Write the file so that it is there whole, or not at all. Errors: as `writing`."""
    with writing(path) as file:
        file.write(data)


def target(path: str | Path) -> Path:
    """Return the file that is written at this path: itself, or what a symbolic link names, over several links too."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_writable(path: str | Path) -> None:
    """Find out, before long work, whether `writing` will be allowed to. Errors: as `writing`."""
    place = Path(path)
    try:
        place = target(path)
        probe = place.with_name(f".{secrets.token_hex(8)}.part")
        _mode(place)
        try:
            with probe.open("xb") as file:
                file.write(bytes(PROBE))
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
    except OSError as error:
        raise AndonError(_unwritable(path, place, error)) from error


def prepare(path: str | Path) -> None:
    """Make the folder of a file that comes after long work, and find out whether it may be written. Errors: of both."""
    make_folder(target(path).parent)
    check_writable(path)


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name beside `path`; it takes its name when the block ends well.

    Symbolic links, permissions and group are kept. An error in the block, Ctrl-C included, leaves what was at `path` as
    it was. Errors: AndonError when the folder is missing, may not be written to, or is full, or when there is something
    at `path` that is not a file.
    """
    place = Path(path)
    temporary: Path | None = None
    try:
        place = target(path)
        old = _mode(place)
        temporary = place.with_name(f".{place.name[:40]}.{secrets.token_hex(4)}.part")  # 255 bytes, in any script
        with temporary.open("xb") as file:
            if old is not None:
                with suppress(OSError, AttributeError):  # another's group; no groups on Windows
                    os.chown(temporary, -1, old.st_gid)
                temporary.chmod(stat.S_IMODE(old.st_mode) & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except OSError as error:
        raise AndonError(_unwritable(path, place, error)) from error
    finally:
        with suppress(OSError):
            if temporary:
                temporary.unlink(missing_ok=True)


def _mode(place: Path) -> os.stat_result | None:
    """Return what the system says of the file that is replaced; None when there is none. OSError when it is no file."""
    try:
        found = place.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket")
    return found


def _unwritable(path: str | Path, place: Path, error: OSError) -> str:
    link = "" if place == Path(path) else f", a link to {place},"
    if isinstance(error, IsADirectoryError) or is_folder(place):
        return f"{path}{link}: cannot be written: it is a folder. Name a file."
    if not is_folder(place.parent):
        return f"{path}{link}: cannot be written: there is no folder {place.parent}. Create it, or name another."
    return (
        f"{path}{link}: cannot be written: {reason(error)}. Free space or allow writing in {place.parent}, "
        "or name another place."
    )


@contextmanager
def alone(folder: str | Path, busy: str) -> Iterator[Path]:
    """Keep other processes out of a folder, made where there is none, for the time of a block; yield its lock file.

    The lock ends with the process, however that ends: the file that a killed process leaves locks nobody out.
    Errors: AndonError, with the sentence `busy`, when another holds it; as `make_folder`; when the folder cannot lock.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(Path(folder) / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise AndonError(f"{folder}: {busy}") from None
    except (OSError, NotImplementedError) as error:
        why = reason(error) if isinstance(error, OSError) else "this file system knows no locks"
        raise AndonError(f"{folder}: cannot be locked: {why}. Allow writing there, or choose another place.") from error
    try:
        yield Path(folder) / LOCK
    finally:
        lock.release()


def reason(error: OSError) -> str:
    """Say in lower case why the system refused."""
    return (error.strerror or str(error) or type(error).__name__).lower()


class Scratch:
    """A temporary file without a name, gone with the process however that ends: written in order, then mapped.

    It is written and not mapped for writing: a full disk is then an error, and not a signal that ends the process.
    """

    def __init__(self, purpose: str, folder: str | Path | None = None) -> None:
        """Open it in a folder, or in the system's temporary folder.

        `purpose` says in the message what is kept in it, in the plural.
        AndonError, from each method, names the folder when it cannot be written to or is full.
        """
        self._purpose = purpose
        self._folder = folder or "the temporary folder"
        with self._named():
            self._folder = folder or tempfile.gettempdir()
            self._file = tempfile.TemporaryFile(prefix="andon-", dir=self._folder)  # noqa: SIM115 - closed with this object
        weakref.finalize(self, _close, self._file)

    def write(self, data: bytes | memoryview) -> None:
        """Add data at the end."""
        with self._named():
            self._file.write(data)

    def mapped(self, kind: "DTypeLike", shape: tuple[int, ...]) -> "NDArray[Any]":
        """Return all that was written as an array that is read from the file on access; it outlives this object."""
        import numpy as np

        with self._named():
            self._file.flush()
            return np.memmap(self._file, kind, "r", shape=shape)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AndonError(
                f"{self._folder}: {self._purpose} cannot be kept there: {reason(error)}. Free space or allow writing "
                "there, or set the environment variable TMPDIR to a folder with more space."
            ) from error


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # a full disk, already reported, refuses what is still buffered
        file.close()

"""Files that are written completely or not at all, locked folders, and digests of contents.

At a symbolic link, the file that it points to is replaced, or created if its folder exists; the link stays. A replaced
file keeps its permissions and group.
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

LOCK = ".lock"  # name of the lock file in a folder
STORAGE_MB = 16_000  # temporary storage of a training, in megabytes, where no other budget is set
PROBE = 64 * 1024  # bytes of a trial file: even a full disk accepts an empty file


def digest(*data: bytes | memoryview) -> str:
    """SHA-256 of the concatenated data as 64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    for part in data:
        sha256.update(part)
    return sha256.hexdigest()


def digest_of_all(named: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over pairs of file name and digest; names may be invalid Unicode."""
    return digest("\n".join(f"{name} {sha256}" for name, sha256 in named).encode(errors="surrogateescape"))


def finite(value: Any) -> Any:
    """Return plain data with None for each NaN and infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def strict_json(value: Any, indent: int | None = None, ascii_only: bool = True) -> str:
    """Return plain data as standard JSON, with null for NaN and infinity."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def canonical_json(value: Any) -> str:
    """Return plain data as canonical JSON, for digests: sorted keys, no spaces, ASCII."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError:  # not finite
        return json.dumps(finite(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def is_file(path: str | Path) -> bool:
    """Whether the path is an existing regular file; False for an invalid path, such as a long regular expression."""
    return _kind(path) == "file"


def is_folder(path: str | Path) -> bool:
    """Whether the path is an existing folder; False for an invalid path."""
    return _kind(path) == "folder"


def _kind(path: str | Path) -> str:
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return ""
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def make_folder(path: str | Path) -> None:
    """Create a folder and its parents if they do not exist. AndonError when that is not possible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        cause = "a file of this name exists" if in_the_way else reason(error)
        raise AndonError(f"{path}: the folder cannot be created: {cause}. Choose another output folder.") from None


def write(path: str | Path, data: bytes) -> None:
    """Write a file completely or not at all. Errors: as `writing`."""
    with writing(path) as file:
        file.write(data)


def target(path: str | Path) -> Path:
    """Return the path itself, or the path that a symbolic link finally points to."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_writable(path: str | Path) -> None:
    """Check, before long work, that `writing` will be possible. Errors: as `writing`."""
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
    """Create the folder of an output file and check that the file can be written, before long work.

    Errors: as `make_folder` and `check_writable`.
    """
    make_folder(target(path).parent)
    check_writable(path)


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file in the folder of `path`; it is renamed to `path` when the block ends without an error.

    Symbolic links, permissions and group are kept. After an error in the block, Ctrl-C included, `path` is unchanged.
    Errors: AndonError when the folder is missing, not writable or full, or when `path` exists and is no regular file.
    """
    place = Path(path)
    temporary: Path | None = None
    try:
        place = target(path)
        old = _mode(place)
        temporary = place.with_name(f".{place.name[:40]}.{secrets.token_hex(4)}.part")  # 255 bytes, in any script
        with temporary.open("xb") as file:
            if old is not None:
                with suppress(OSError, AttributeError):  # the group of another user; Windows has no groups
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
    """Return the status of the file that will be replaced; None without a file. OSError when it is no regular file."""
    try:
        status = place.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket")
    return status


def _unwritable(path: str | Path, place: Path, error: OSError) -> str:
    link = "" if place == Path(path) else f", a link to {place},"
    if isinstance(error, IsADirectoryError) or is_folder(place):
        return f"{path}{link}: cannot be written: it is a folder. Give the path of a file."
    if not is_folder(place.parent):
        return f"{path}{link}: cannot be written: there is no folder {place.parent}. Create it, or choose another path."
    return (
        f"{path}{link}: cannot be written: {reason(error)}. Free space or allow writing in {place.parent}, "
        "or choose another path."
    )


@contextmanager
def lock_folder(folder: str | Path, busy: str) -> Iterator[Path]:
    """Lock a folder against other processes during a block; create it if it does not exist; yield its lock file.

    The operating system releases the lock when the process ends, even if it is killed.
    Errors: AndonError with the message `busy` when another process has the lock; AndonError as `make_folder`, and when
    the file system has no locks.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(Path(folder) / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise AndonError(f"{folder}: {busy}") from None
    except (OSError, NotImplementedError) as error:
        cause = reason(error) if isinstance(error, OSError) else "this file system has no locks"
        raise AndonError(
            f"{folder}: cannot be locked: {cause}. Allow writing there, or choose another folder."
        ) from error
    try:
        yield Path(folder) / LOCK
    finally:
        lock.release()


def reason(error: OSError) -> str:
    """Return the operating system's explanation of an error in lower case."""
    return (error.strerror or str(error) or type(error).__name__).lower()


class Scratch:
    """A temporary file without a name: written sequentially, then mapped into memory for reading.

    The operating system removes it when the process ends, even if it is killed. It is not mapped for writing, because a
    full disk would then end the process by a signal instead of raising an error.
    """

    def __init__(self, purpose: str, folder: str | Path | None = None) -> None:
        """Open the file in a folder, or in the system's temporary folder.

        `purpose` names its contents in error messages, in the plural.
        Errors, of each method: AndonError when the folder is not writable or full.
        """
        self._purpose = purpose
        self._folder = folder or "the temporary folder"
        with self._named():
            self._folder = folder or tempfile.gettempdir()
            self._file = tempfile.TemporaryFile(prefix="andon-", dir=self._folder)  # noqa: SIM115 - closed with this object
        weakref.finalize(self, _close, self._file)

    def write(self, data: bytes | memoryview) -> None:
        """Append data."""
        with self._named():
            self._file.write(data)

    def mapped(self, kind: "DTypeLike", shape: tuple[int, ...]) -> "NDArray[Any]":
        """Return the contents as a memory-mapped array, read-only; it stays valid after this object is deleted."""
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
                f"{self._folder}: {self._purpose} cannot be stored there: {reason(error)}. Free space or allow writing "
                "there, or set the environment variable TMPDIR to a folder with more space."
            ) from error


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # on a full disk, which is already reported, the last buffer cannot be written
        file.close()

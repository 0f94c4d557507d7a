"""Files written whole or not at all, and the digests that name their contents."""

import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from andon.errors import AndonError

PROBE = 64 * 1024  # bytes: a full disk still takes an empty file


def digest(data: bytes) -> str:
    """SHA-256 of the data, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


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


def check_writable(path: str | Path) -> None:
    """Find out, before long work, whether `writing` will be allowed to. Errors: as `writing`."""
    path = Path(path)
    probe = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        if is_folder(path):
            raise IsADirectoryError
        with suppress(FileNotFoundError):
            path.stat()  # a name may be too long, though the probe's is not
        with probe.open("xb") as file:
            file.write(bytes(PROBE))
    except OSError as error:
        raise AndonError(_unwritable(path, error)) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def prepare(path: str | Path) -> None:
    """Make the folder of a file that comes after long work, and find out whether it may be written. Errors: of both."""
    make_folder(Path(path).parent)
    check_writable(path)


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name beside `path`; it takes its name when the block ends well.

    An error in the block, Ctrl-C included, leaves what was at `path` as it was. Errors: AndonError when the folder
    is missing, may not be written to, or is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")  # 255 bytes at most, in any script
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise AndonError(_unwritable(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> str:
    if not is_folder(path.parent):
        return f"{path}: cannot be written: there is no folder {path.parent}. Create it, or name another."
    if is_folder(path):
        return f"{path}: cannot be written: it is a folder. Name a file."
    reason = (error.strerror or str(error)).lower()
    return f"{path}: cannot be written: {reason}. Free space or allow writing in {path.parent}, or name another place."

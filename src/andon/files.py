"""Files written whole or not at all, and the digests that name their contents."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from andon.errors import AndonError


def digest(data: bytes) -> str:
    """SHA-256 of the data, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write(path: str | Path, data: bytes) -> None:
    """Write the file so that it is there whole, or not at all. Errors: as `writing`."""
    with writing(path) as file:
        file.write(data)


def check_writable(path: str | Path) -> None:
    """Find out, before long work, whether `writing` will be allowed to. Errors: as `writing`."""
    path = Path(path)
    probe = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError
        probe.touch(exist_ok=False)
    except OSError as error:
        raise AndonError(_unwritable(path, error)) from error
    else:
        probe.unlink()


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name beside `path`; it takes its name when the block ends well.

    An error in the block, Ctrl-C included, leaves what was at `path` as it was. Errors: AndonError when the folder
    is missing, may not be written to, or is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
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
    if not path.parent.is_dir():
        return f"{path}: cannot be written: there is no folder {path.parent}. Create it, or name another."
    if path.is_dir():
        return f"{path}: cannot be written: it is a folder. Name a file."
    reason = (error.strerror or str(error)).lower()
    return f"{path}: cannot be written: {reason}. Free space or allow writing in {path.parent}, or name another place."

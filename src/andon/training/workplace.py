"""OUT.training: the folder of the checkpoints of a training, until the bundle OUT is written."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from andon import files


@contextmanager
def opened(out: Path) -> Iterator[Path]:
    """Create and lock the working folder of a bundle; at the end it is removed if it is empty.

    For a symbolic link, it is beside the file that the link names. AndonError when another training uses the folder, or
    when it cannot be created.
    """
    place = files.target(out)
    folder = place.with_name(place.name + ".training")
    busy = f"another training is writing {out}. Wait until it ends, or choose another path for the bundle."
    try:
        with files.lock_folder(folder, busy) as lock:
            try:
                yield folder
            finally:
                with suppress(OSError):  # Windows deletes it when the lock is released
                    lock.unlink()
    finally:
        with suppress(OSError):
            folder.rmdir()


def clear(written: Iterable[Path]) -> None:
    """Delete the files of a training, and its folders if they are empty."""
    for path in sorted(written, reverse=True):  # a file before its folder
        with suppress(OSError):
            if files.is_folder(path):
                path.rmdir()
            else:
                path.unlink()

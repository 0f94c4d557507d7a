"""OUT.training: where one training at a time keeps its checkpoints until the bundle OUT is written."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from andon import files


@contextmanager
def opened(out: Path) -> Iterator[Path]:
    """Make and lock the working folder of a bundle; at the end it is removed if nothing else is in it.

    Of a symbolic link it is the folder beside the file that the link names. AndonError when another training works
    there, or when it cannot be made.
    """
    place = files.target(out)
    folder = place.with_name(place.name + ".training")
    busy = f"another training is going to write {out}. Wait until it has ended, or write the bundle to another place."
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
    """Delete what a training wrote: files, and folders in which nothing else is."""
    for path in sorted(written, reverse=True):  # a file before its folder
        with suppress(OSError):
            if files.is_folder(path):
                path.rmdir()
            else:
                path.unlink()

"""A folder as a source: the pictures in it, and those that come.

The folder is listed again and again. Events of the operating system (inotify and its like) are not used: network shares
send none, Windows and macOS do not say when a file is closed, and a file still has to be looked at twice to know that
it is whole. One way that works everywhere is better than two.
"""

import os
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from andon import files
from andon.errors import AndonError
from andon.files import reason
from andon.pictures.headers import SUFFIXES
from andon.streams.frames import Control, Frame

SKIPPED = tuple(".~@#$")
"""How names begin that are not looked at: hidden and temporary files and folders, and those of network storage."""


class _File(NamedTuple):
    """What tells one version of a file from another; a name is no part of it, so that a rename is no new picture."""

    device: int
    inode: int  # 0 where the share does not say
    size: int
    changed: int  # nanoseconds
    name: str  # where there is no inode, else empty


class Folder:
    """The pictures below a folder, at any depth, in the order of their time; each version of a file once.

    With `watch` it waits for more. A file counts when it is whole: it is not empty, and neither its size nor its time
    has changed for `settle` seconds. A writer that renames a finished file into the folder is safest; names that begin
    with a dot or end otherwise than pictures do are not looked at. A file that is renamed after it was inspected is not
    inspected again; one that is written to again is. One that is deleted before it is whole is told.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        watch: bool = False,
        existing: bool = True,
        settle: float = 0.5,
        look: float = 0.2,
        skip: Path | None = None,
    ) -> None:
        """`existing` False leaves out what is there at the start; `look` seconds lie between two listings.

        `skip` is a folder below it that is not looked at: that of the results. AndonError when it is no folder.
        """
        self._path, self._watch, self._existing = Path(path), watch, existing
        self._settle, self._look = settle, look
        self._skip = os.path.realpath(skip) if skip else ""
        self._unreadable: set[Path] = set()
        if not files.is_folder(path):
            raise AndonError(f"{path}: no such folder. Check the path, or make it.")
        if not (settle >= 0 and look > 0):
            raise AndonError(f"settle = {settle}, look = {look} seconds; expected numbers above 0.")

    def frames(self, control: Control) -> Iterator[Frame]:
        """Yield each file once it is whole. Its name is its part's id.

        Errors: AndonError when the folder cannot be read at the start; later that is told, and tried again.
        """
        present = self._list(control)
        if not self._watch:
            yield from map(_frame, _in_order(present))
            return
        done: set[_File] = set() if self._existing else set(present.values())
        seen: dict[Path, tuple[_File, float]] = {}  # not yet inspected: since when each has been as it is
        pause = self._look
        while True:
            moment, versions = time.monotonic(), set(present.values())
            done &= versions  # what is gone need not be remembered
            for path in [path for path, (file, _) in seen.items() if path not in present and file not in versions]:
                control.tell(f"{path.as_posix()}: deleted before it was whole; it was not inspected")
            seen = {
                path: (file, seen[path][1] if path in seen and seen[path][0] == file else moment)
                for path, file in present.items()
                if file not in done
            }
            whole = {path: file for path, (file, since) in seen.items() if file.size and moment - since >= self._settle}
            for path, file in _in_order(whole):
                if control.stop.is_set():
                    return
                del seen[path]
                done.add(file)
                yield _frame((path, file))
            if control.stop.wait(pause):
                return
            began = time.monotonic()
            present = self._again(control, present)
            pause = max(self._look, 10 * (time.monotonic() - began))  # at most a tenth of one core

    def _again(self, control: Control, before: dict[Path, _File]) -> dict[Path, _File]:
        """List once more; while that cannot be, the share is gone perhaps, wait for it."""
        told = False
        while True:
            try:
                present = self._list(control)
            except AndonError as error:
                if not told:
                    control.tell(f"{error} It is tried again until it can be.")
                told = True
                if control.stop.wait(max(self._look, 1.0)):
                    return before
                continue
            if told:
                control.tell(f"{self._path}: can be read again")
            return present

    def _list(self, control: Control) -> dict[Path, _File]:
        """The pictures below the folder. AndonError when it cannot be read; a folder in it that cannot is told once."""
        found: dict[Path, _File] = {}
        stack = [self._path]
        while stack:
            folder = stack.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith(SKIPPED):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            if not self._skip or os.path.realpath(entry.path) != self._skip:
                                stack.append(Path(entry.path))
                        elif Path(entry.name).suffix.lower() in SUFFIXES:
                            _add(found, Path(entry.path))
            except OSError as error:
                if folder == self._path:
                    raise AndonError(f"{folder}: cannot be read: {reason(error)}. Allow reading.") from error
                if not isinstance(error, FileNotFoundError) and folder not in self._unreadable:
                    self._unreadable.add(folder)
                    control.tell(
                        f"{folder.as_posix()}: cannot be read: {reason(error)}. Its pictures are not inspected."
                    )
        return found


def _add(found: dict[Path, _File], path: Path) -> None:
    """Add a file; one that has gone meanwhile, or leads nowhere, is not there."""
    try:
        state = path.stat()
    except OSError:
        return
    if stat.S_ISREG(state.st_mode):
        name = "" if state.st_ino else str(path)
        found[path] = _File(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, name)


def _in_order(present: dict[Path, _File]) -> list[tuple[Path, _File]]:
    return sorted(present.items(), key=lambda each: (each[1].changed, each[0]))


def _frame(each: tuple[Path, _File]) -> Frame:
    path, file = each
    return Frame(path, part=path.stem, time=datetime.fromtimestamp(file.changed / 1e9, UTC))

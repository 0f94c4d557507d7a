"""A folder as a source: the pictures in it, and new ones.

The folder is listed repeatedly. Events of the operating system (such as inotify) are not used: network shares send
none, Windows and macOS do not report when a file is closed, and a file must still be examined twice to know that it is
complete.
"""

import os
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from andon import files, records
from andon.errors import AndonError
from andon.files import reason
from andon.pictures.headers import SUFFIXES
from andon.streams.frames import Control, Frame

SKIPPED = tuple(".~@#$")
"""First characters of names that are skipped: hidden and temporary files and folders, and those of network storage."""


class _File(NamedTuple):
    """Identity of a version of a file. The name is not part of it, so that a renamed file is not a new picture."""

    device: int
    inode: int  # 0 if the file system has none
    size: int
    changed: int  # nanoseconds
    name: str  # if there is no inode, else empty


class Folder:
    """The pictures in a folder and its subfolders, in the order of their time; each version of a file once.

    With `watch` it waits for new files. A file is complete if it is not empty, and size and time have not changed for
    `settle` seconds. It is safest to write a file elsewhere and rename it into the folder. Names that begin with a dot
    or have no suffix of a picture are skipped. A file that is renamed after its inspection is not inspected again; a
    file that is overwritten is. A file that is deleted before it is complete is reported.
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
        """`existing` False leaves out files that exist at the start; `look` is the time between two listings, seconds.

        `skip` is a subfolder to leave out: that of the results. AndonError when `path` is not a folder.
        """
        self._path, self._watch, self._existing = Path(path), watch, existing
        self._settle, self._look = settle, look
        self._skip = os.path.realpath(skip) if skip else ""
        self._unreadable: set[Path] = set()
        if not files.is_folder(path):
            raise AndonError(f"{path}: no such folder. Check the path, or create the folder.")
        if not (settle >= 0 and look > 0):
            raise AndonError(f"settle = {settle}, look = {look} seconds; expected numbers above 0. Correct them.")

    def frames(self, control: Control) -> Iterator[Frame]:
        """Yield each file when it is complete. The id of the part is the name of the file without suffix.

        Errors: AndonError when the folder cannot be read at the start. Later this is reported, and reading is repeated.
        """
        present = self._list(control)
        if not self._watch:
            yield from map(_frame, _in_order(present))
            return
        done: set[_File] = set() if self._existing else set(present.values())
        before: set[_File] = set()  # in the list before
        seen: dict[Path, tuple[_File, float]] = {}  # not yet inspected, with the time of the last change seen
        pause = self._look
        while True:
            moment, versions = time.monotonic(), set(present.values())
            done &= versions | before  # forget deleted files; a file that is renamed may be missing from one list
            before = versions
            for path in [path for path, (file, _) in seen.items() if path not in present and file not in versions]:
                control.tell(f"{path.as_posix()}: deleted before it was complete; it was not inspected")
            seen = {
                path: (file, seen[path][1] if path in seen and seen[path][0] == file else moment)
                for path, file in present.items()
                if file not in done
            }
            complete = {
                path: file for path, (file, since) in seen.items() if file.size and moment - since >= self._settle
            }
            for path, file in _in_order(complete):
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
        """List the folder again; while it cannot be read, as when a network share is down, wait."""
        reported = False
        while True:
            try:
                present = self._list(control)
            except AndonError as error:
                if not reported:
                    control.tell(f"{error} andon tries again until it can be read.")
                reported = True
                if control.stop.wait(max(self._look, 1.0)):
                    return before
                continue
            if reported:
                control.tell(f"{self._path}: can be read again")
            return present

    def _list(self, control: Control) -> dict[Path, _File]:
        """The pictures in the folder. AndonError when it cannot be read; an unreadable subfolder is reported once."""
        pictures: dict[Path, _File] = {}
        stack = [self._path]
        while stack:
            folder = stack.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith(SKIPPED):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            ours = self._skip and os.path.realpath(entry.path) == self._skip
                            if not ours and not (entry.name == "overlays" and records.heat_maps(Path(entry.path))):
                                stack.append(Path(entry.path))
                        elif Path(entry.name).suffix.lower() in SUFFIXES:
                            _add(pictures, Path(entry.path))
            except OSError as error:
                if folder == self._path:
                    raise AndonError(f"{folder}: cannot be read: {reason(error)}. Allow reading.") from error
                if not isinstance(error, FileNotFoundError) and folder not in self._unreadable:
                    self._unreadable.add(folder)
                    control.tell(
                        f"{folder.as_posix()}: cannot be read: {reason(error)}. Its pictures are not inspected."
                    )
        return pictures


def _add(pictures: dict[Path, _File], path: Path) -> None:
    """Add a file, unless it was deleted meanwhile or is a broken link."""
    try:
        state = path.stat()
    except OSError:
        return
    if stat.S_ISREG(state.st_mode):
        name = "" if state.st_ino else str(path)
        pictures[path] = _File(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, name)


def _in_order(present: dict[Path, _File]) -> list[tuple[Path, _File]]:
    return sorted(present.items(), key=lambda each: (each[1].changed, each[0]))


def _frame(each: tuple[Path, _File]) -> Frame:
    path, file = each
    return Frame(path, part=path.stem, time=datetime.fromtimestamp(file.changed / 1e9, UTC))

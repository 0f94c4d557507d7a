"""Records of inspections as JSON lines: one line an image, kept when the run is interrupted or killed.

Everywhere else a file is written beside its place and renamed. A log is the exception: it grows where it lies, each
record by a single write of one whole line, so earlier records are never copied and never at risk, and two runs that
write to one file interleave whole lines.
"""

import json
import mmap
import os
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from andon import files
from andon.errors import AndonError


class Records:
    """Appends to a JSON Lines file."""

    def __init__(self, path: Path) -> None:
        """Open; earlier records stay, a last line that was torn goes. AndonError when it cannot be written to."""
        self.path = path
        files.make_folder(path.parent)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            _mend(self._file)
        except OSError as error:
            raise AndonError(f"{path}: cannot be written ({error.strerror}). Choose another output folder.") from None

    def add(self, record: dict[str, Any]) -> None:
        """Write one record, stamped with the time, and hand it to the operating system; all of it or nothing."""
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}
        line = json.dumps(stamped).encode() + b"\n"
        try:
            written = os.write(self._file, line)
            if written < len(line):  # the disk is full
                os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_CUR) - written)
                raise OSError(0, "no space left on device")
        except OSError as error:
            raise AndonError(f"{self.path}: cannot be written ({error.strerror}). Free some space.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _mend(file: int) -> None:
    """End the last line of an open file: by a line end when it is a whole record, else by taking it away."""
    if not os.fstat(file).st_size:
        return
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
        end = data.rfind(b"\n") + 1
        last = data[end:]
    try:
        json.loads(last or b"0")
    except ValueError:
        os.ftruncate(file, end)
    else:
        if last:
            os.write(file, b"\n")

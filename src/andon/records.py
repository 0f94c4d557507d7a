"""Records of inspections as JSON lines and as CSV, one line per image.

A log is the exception to the rule that files are written under a temporary name and renamed: each record is appended by
one write of one complete line. Earlier records survive when the run is killed, and two runs that write to the same file
interleave complete lines. A run repairs the last line only if no other one has the file open.
"""

import csv
import io
import json
import mmap
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from andon import files
from andon.errors import AndonError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

COLUMNS = (
    *("time", "source", "digest", "verdict", "score", "p_value"),
    *("review_threshold", "reject_threshold", "pixel_threshold"),
    *("regions", "x", "y", "width", "height", "peak", "milliseconds"),  # x to peak: of the worst region
    *("notes", "error", "bundle", "decision"),
)
"""Columns of the CSV file; x, y, width and height in pixels; bundle and decision are digests."""


class Records:
    """Appends records to a JSON Lines file, and to a CSV file of the same name in the same folder."""

    def __init__(self, path: Path) -> None:
        """Open the files; earlier records stay, an incomplete last line is removed.

        Errors: AndonError when a file is not writable, or is a CSV file with another header.
        """
        files.make_folder(path.parent)
        with ExitStack() as opened:
            self._json = opened.enter_context(_Log(path, _is_json))
            self._table = opened.enter_context(_Log(path.with_suffix(".csv"), _is_row, csv_line(COLUMNS)))
            self._opened = opened.pop_all()

    def add(self, record: dict[str, Any]) -> None:
        """Append one record with the current time, completely or not at all."""
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}
        self._json.add(files.strict_json(stamped).encode() + b"\n")
        self._table.add(csv_line(row(stamped)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


class _Log:
    """A file to which complete lines are appended."""

    def __init__(self, path: Path, complete: Callable[[bytes], bool], header: bytes = b"") -> None:
        """Open the file. `complete`: whether a last line without a line end is complete; otherwise it is removed."""
        self._path, flags = path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            self._file = os.open(path, flags, 0o666)
        except OSError as error:
            raise AndonError(f"{path}: cannot be written ({error.strerror}). Choose another output folder.") from None
        try:
            alone = _lock(self._file, bool(header))
            first = _repair(self._file, complete) if alone else _first_line(self._file)
            if header and not first:
                self.add(header)
            elif header and first != header:
                raise AndonError(
                    f"{path}: its first line differs from the header that andon writes. Move the file away, or choose "
                    "another output folder."
                )
            if alone:
                _share(self._file)
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, OSError):
                raise AndonError(f"{path}: cannot be read ({error.strerror}). Choose another output folder.") from None
            raise

    def add(self, line: bytes) -> None:
        """Append a line by one write, completely or not at all."""
        try:
            written = os.write(self._file, line)
            if written < len(line):  # the disk is full
                os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_CUR) - written)
                raise OSError(0, "no space left on device")
        except OSError as error:
            raise AndonError(f"{self._path}: cannot be written ({error.strerror}). Free some space.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _lock(file: int, headed: bool) -> bool:
    """Lock a file until it is closed; whether no other process writes it, so that an incomplete last line is torn.

    headed: the file gets a header; when another process has it open, wait until that one has written the header.
    """
    while fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file).st_size or not headed:
                return False
            fcntl.flock(file, fcntl.LOCK_UN)
        except OSError:  # a file system without locks
            break
    return True


def _share(file: int) -> None:
    """Let other processes write the file, too."""
    if fcntl:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)


def _first_line(file: int) -> bytes:
    """The first line of a file; empty if it is."""
    if not os.fstat(file).st_size:
        return b""
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
        return data[: data.find(b"\n") + 1]


def _repair(file: int, complete: Callable[[bytes], bool]) -> bytes:
    """Add a missing line end after a complete last line, or remove an incomplete one. Return the first line."""
    first = _first_line(file)
    if not os.fstat(file).st_size:
        return b""
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
        end = data.rfind(b"\n") + 1
        last = data[end:]
    if not last:
        return first
    if complete(last):
        os.write(file, b"\n")
        return first or last + b"\n"
    os.ftruncate(file, end)
    return first


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _is_row(line: bytes) -> bool:
    """Whether the line is a complete row; its last cell is a text, which ends in a quotation mark."""
    try:
        rows = list(csv.reader([line.decode()], strict=True))
    except (csv.Error, UnicodeDecodeError):
        return False
    return len(rows[0]) == len(COLUMNS) and line.endswith(b'"')


def row(record: dict[str, Any]) -> list[object]:
    """Return the values of COLUMNS of a record; None where it has none."""
    cells = {**record, "notes": "; ".join(record.get("notes", []))}
    cells |= {f"{name}_threshold": value for name, value in record.get("thresholds", {}).items()}
    if "regions" in record:
        cells["regions"] = len(record["regions"])
        worst = max(record["regions"], key=lambda region: region["peak"] or 0, default=None)
        if worst:
            cells |= dict(zip(("x", "y", "width", "height"), worst["box"], strict=True), peak=worst["peak"])
    return [cells.get(column) for column in COLUMNS]


def csv_line(values: tuple[object, ...] | list[object]) -> bytes:
    """Return one line of CSV in which each text is quoted, for spreadsheets with any separator."""
    line = io.StringIO()
    cells = ["" if value is None else _text(value) if isinstance(value, str) else value for value in values]
    csv.writer(line, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(cells)
    return line.getvalue().encode(errors="backslashreplace")  # a file name may be invalid Unicode


def _text(value: str) -> str:
    """Return a text on one line. An apostrophe is put before a text that a spreadsheet would read as a formula."""
    plain = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in value)
    return f"'{plain}" if plain.lstrip()[:1] in _FORMULA else plain


_FORMULA = tuple("=+-@＝＋－＠")


def heat_maps(folder: Path) -> bool:
    """Whether a folder contains heat maps of an inspection: it is in a folder `overlays` beside `records.jsonl`."""
    place = Path(os.path.realpath(folder))
    above = (place, *place.parents)
    return any(each.name == "overlays" and files.is_file(each.with_name("records.jsonl")) for each in above)

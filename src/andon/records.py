"""Records of inspections as JSON lines and as CSV: one line an image, kept when the run is interrupted or killed.

Everywhere else a file is written beside its place and renamed. A log is the exception: it grows where it lies, each
record by a single write of one whole line, so earlier records are never copied and never at risk, and two runs that
write to one file interleave whole lines.
"""

import csv
import io
import json
import mmap
import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from andon import files
from andon.errors import AndonError

COLUMNS = (
    *("time", "source", "digest", "verdict", "score", "p_value"),
    *("review_threshold", "reject_threshold", "pixel_threshold"),
    *("regions", "x", "y", "width", "height", "peak", "milliseconds"),  # x to peak: of the worst region
    *("notes", "error", "bundle", "decision"),
)
"""Of the CSV: x, y, width and height in pixels; bundle and decision are digests."""


class Records:
    """Appends to a JSON Lines file, and to a CSV file of the same name beside it."""

    def __init__(self, path: Path) -> None:
        """Open; earlier records stay, a last line that was torn goes. AndonError when they cannot be written to."""
        files.make_folder(path.parent)
        with ExitStack() as opened:
            self._json = opened.enter_context(_Log(path, _is_json))
            self._table = opened.enter_context(_Log(path.with_suffix(".csv"), _is_row, csv_line(COLUMNS)))
            self._opened = opened.pop_all()

    def add(self, record: dict[str, Any]) -> None:
        """Write one record, stamped with the time, and hand it to the operating system; all of it or nothing."""
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}
        self._json.add(files.strict_json(stamped).encode() + b"\n")
        self._table.add(csv_line(_row(stamped)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


class _Log:
    """A file that grows by whole lines."""

    def __init__(self, path: Path, whole: Callable[[bytes], bool], header: bytes = b"") -> None:
        """Open; `whole` tells a last line that lacks its end only from one that was torn, which goes."""
        self._path, flags = path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            self._file = os.open(path, flags, 0o666)
        except OSError as error:
            raise AndonError(f"{path}: cannot be written ({error.strerror}). Choose another output folder.") from None
        try:
            first = _mend(self._file, whole)
            if header and not first:
                self.add(header)
            elif header and first != header:
                raise AndonError(
                    f"{path}: its first line differs from the header that andon writes. Move the file away, or choose "
                    "another output folder."
                )
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, OSError):
                raise AndonError(f"{path}: cannot be read ({error.strerror}). Choose another output folder.") from None
            raise

    def add(self, line: bytes) -> None:
        """Write a line by one write; all of it or nothing."""
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


def _mend(file: int, whole: Callable[[bytes], bool]) -> bytes:
    """End the last line of an open file: by a line end when it is whole, else by removing it. Return the first line."""
    if not os.fstat(file).st_size:
        return b""
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
        end = data.rfind(b"\n") + 1
        first, last = data[: data.find(b"\n") + 1], data[end:]
    if not last:
        return first
    if whole(last):
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
    """Whether the line is a whole row; its last cell is a text, which ends in a quotation mark."""
    try:
        rows = list(csv.reader([line.decode()], strict=True))
    except (csv.Error, UnicodeDecodeError):
        return False
    return len(rows[0]) == len(COLUMNS) and line.endswith(b'"')


def _row(record: dict[str, Any]) -> list[object]:
    known = {**record, "notes": "; ".join(record.get("notes", []))}
    known |= {f"{name}_threshold": value for name, value in record.get("thresholds", {}).items()}
    if "regions" in record:
        known["regions"] = len(record["regions"])
        worst = max(record["regions"], key=lambda region: region["peak"] or 0, default=None)
        if worst:
            known |= dict(zip(("x", "y", "width", "height"), worst["box"], strict=True), peak=worst["peak"])
    return [known.get(column) for column in COLUMNS]


def csv_line(values: tuple[object, ...] | list[object]) -> bytes:
    """One line of CSV in which each text is quoted, so that no separator of a spreadsheet splits it."""
    line = io.StringIO()
    cells = ["" if value is None else _text(value) if isinstance(value, str) else value for value in values]
    csv.writer(line, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(cells)
    return line.getvalue().encode(errors="backslashreplace")  # a name need not be valid Unicode


def _text(value: str) -> str:
    """A text on one line that no spreadsheet takes for a formula: those get an apostrophe in front."""
    plain = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in value)
    return f"'{plain}" if plain.lstrip()[:1] in _FORMULA else plain


_FORMULA = tuple("=+-@＝＋－＠")

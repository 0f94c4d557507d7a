"""The table of a proof: one row for each verdict on one presentation of one part.

CSV in UTF-8 (separated by comma, semicolon or tab), Parquet if pyarrow is installed, or `records.jsonl`. The columns of
`records.csv` are known: with the additional columns part, reference and trial, it is such a table.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from andon import files
from andon.data.folders import Names
from andon.errors import AndonError, DatasetError, unknown
from andon.inspection import Verdict
from andon.records import COLUMNS as RECORDED

NAMED = ("part", "reference", "appraiser", "condition", "trial")  # columns that a person adds to records
COLUMNS = (*NAMED, "verdict", "score", "digest")
LISTED = 3  # rows or parts listed in a message
KNOWN = {*COLUMNS, *RECORDED}
DIGEST = re.compile(r"[0-9a-f]{64}")


class Row(NamedTuple):
    """One verdict on one presentation of one part."""

    part: str
    reference: str  # good, the kind of defect, or "" if unknown
    appraiser: str  # person or machine; for records of andon the bundle's digest, unless a column names another
    condition: str  # deliberate change: lamp, shift, position; "" without one
    trial: str  # number or name of the presentation; "" if there is only one
    verdict: Verdict  # INVALID for a record of a picture that could not be inspected
    score: float  # NaN if there is none
    digest: str  # SHA-256 of the picture; "" if there is none, as for a person who looks at the part
    bundle: str  # digest of the bundle; "" if there is none
    decision: str  # digest of the decision and its thresholds; "" if there is none
    review_threshold: float  # NaN if there is none
    reject_threshold: float  # infinite in a decision without REJECT; NaN if there is none

    @property
    def good(self) -> bool:
        """Whether the reference is good; only valid if there is a reference."""
        return self.reference == "good"


@dataclass(frozen=True)
class Table:
    """Rows (n,) in the order of the file, checked: see `read`."""

    name: str  # path of the file
    digest: str  # SHA-256 of the file
    rows: tuple[Row, ...]

    @cached_property
    def parts(self) -> dict[str, str]:
        """Part → reference, or "" if unknown, in the order of the file."""
        return {row.part: row.reference for row in self.rows}

    @cached_property
    def appraisers(self) -> tuple[str, ...]:
        """All appraisers, in the order of the file."""
        return tuple(dict.fromkeys(row.appraiser for row in self.rows))

    @cached_property
    def bundles(self) -> tuple[str, ...]:
        """Digests of all bundles, in the order of the file."""
        return tuple(dict.fromkeys(row.bundle for row in self.rows if row.bundle))

    @cached_property
    def decisions(self) -> tuple[str, ...]:
        """Digests of all decisions, in the order of the file."""
        return tuple(dict.fromkeys(row.decision for row in self.rows if row.decision))

    @cached_property
    def shared(self) -> int:
        """Number of pictures that several appraisers judged: their agreement does not include the presentation."""
        judges: dict[str, set[str]] = {}
        for row in self.rows:
            if row.digest:
                judges.setdefault(row.digest, set()).add(row.appraiser)
        return sum(len(appraisers) > 1 for appraisers in judges.values())

    @cached_property
    def undigested(self) -> int:
        """Number of rows with a score but no digest of the picture; they may repeat a presentation."""
        return sum(not row.digest and not math.isnan(row.score) for row in self.rows)


def read(path: str | Path, fields: str | None = None) -> Table:
    """Read and check a table.

    `fields` is a regular expression on the source (the path of the picture) of each row, with groups named part,
    reference, appraiser, condition or trial. It fills empty cells.

    One row of a part is enough to name its reference. A part without a reference has "".

    Errors: DatasetError when the file cannot be read or is empty, when a column or a verdict is unknown, when a part
    has no name or two references, when two rows are the same trial, or when a picture was scored again: by the same
    appraiser, or as another part. AndonError when pyarrow is not installed.
    """
    path = Path(path)
    pattern = _pattern(fields)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {files.reason(error)}. Check the path.") from None
    rows = [_row(path, place, cells, pattern) for place, cells in _cells(path, content)]
    if not rows:
        raise DatasetError(f"{path}: no rows; expected one for each presentation of a part. Add them.")
    references = _references(path, rows)
    rows = [row._replace(reference=references[row.part]) for row in rows]
    _distinct(path, rows)
    return Table(str(path), files.digest(content), tuple(rows))


def _pattern(fields: str | None) -> re.Pattern[str] | None:
    if fields is None:
        return None
    try:
        pattern = re.compile(fields)
    except re.error as error:
        raise DatasetError(f"pattern of fields '{fields}': not a regular expression: {error}. Correct it.") from None
    if strange := [name for name in pattern.groupindex if name not in NAMED]:
        raise DatasetError(f"pattern of fields '{fields}': {unknown('group', strange[0], NAMED)}")
    if not pattern.groupindex:
        raise DatasetError(
            f"pattern of fields '{fields}': no named group; expected some of {', '.join(NAMED)}. "
            r"Name the parts of the path, as in '(?P<part>\w+)_(?P<trial>\d+)\.png'."
        )
    return pattern


def _cells(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row, in words, and its cells."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from _json(path, content)
        return
    header, rows = _parquet(path, content) if suffix == ".parquet" else _csv(path, content)
    if strange := [column for column in header if column not in KNOWN]:
        raise DatasetError(
            f"{path}: {unknown('column', strange[0], COLUMNS)} Rename the column, or remove it. "
            "The columns of records.csv are allowed too."
        )
    if twice := [column for column in header if header.count(column) > 1]:
        raise DatasetError(f"{path}: the column {twice[0]} is listed twice; expected it once. Remove one.")
    if "verdict" not in header:
        raise DatasetError(f"{path}: no column verdict; found {', '.join(header) or 'none'}. Add it.")
    yield from rows


def _csv(path: Path, content: bytes) -> tuple[list[str], Iterable[tuple[str, dict[str, Any]]]]:
    try:
        text = content.decode("utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header = [name.strip().lower() for name in next(reader, [])]
        rows = [(f"line {reader.line_num}", cells) for cells in reader if any(cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV: {error}. Save it as CSV in UTF-8.") from None
    for place, cells in rows:
        if len(cells) != len(header):
            raise DatasetError(
                f"{path}: {place} has {len(cells)} cells; expected the {len(header)} columns {', '.join(header)}. "
                "Put names that contain a separator in quotes."
            )
    decimal_comma = separator != ","
    return header, ((place, _comma(dict(zip(header, row, strict=True)), decimal_comma)) for place, row in rows)


def _comma(cells: dict[str, Any], decimal_comma: bool) -> dict[str, Any]:
    """Replace the decimal comma of numbers, which some spreadsheets write, by a point."""
    if decimal_comma:
        for name in ("score", "review_threshold", "reject_threshold"):
            if name in cells:
                cells[name] = cells[name].replace(",", ".")
    return cells


def _parquet(path: Path, content: bytes) -> tuple[list[str], Iterable[tuple[str, dict[str, Any]]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise AndonError(
            f"{path}: Parquet needs pyarrow. Install it: pip install 'andon[bench]'; or write the table as CSV."
        ) from None
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as Parquet: {error}. Write it again.") from None
    header = [name.strip().lower() for name in table.column_names]
    columns = [column.to_pylist() for column in table.columns]
    rows = (dict(zip(header, cells, strict=True)) for cells in zip(*columns, strict=True))
    return header, ((f"row {j}", cells) for j, cells in enumerate(rows, start=1))


def _json(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of `andon inspect`; keys may also be columns of a table."""
    for j, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DatasetError(f"{path}: line {j} is not a JSON object; expected a record. Remove the line.")
        limits = record.get("thresholds")
        if isinstance(limits, dict):  # null means infinity, in a decision without REJECT
            record |= {f"{name}_threshold": limits[name] for name in ("review", "reject") if name in limits}
            if limits.get("reject", 0) is None:
                record["reject_threshold"] = math.inf
        yield f"line {j}", record


def _row(path: Path, place: str, cells: Mapping[str, Any], pattern: re.Pattern[str] | None) -> Row:
    texts = {name: _text(cells.get(name)) for name in (*NAMED, *_TEXTS)}
    if pattern:
        match = pattern.search(texts["source"].replace("\\", "/"))
        if not match:
            raise DatasetError(
                f"{path}: {place}: the pattern of fields '{pattern.pattern}' does not match the source "
                f"'{texts['source']}'; expected a match in every row. Correct the pattern, or remove the row."
            )
        texts |= {name: value for name, value in match.groupdict("").items() if not texts[name]}
    if not texts["part"]:
        raise DatasetError(
            f"{path}: {place} names no part; expected the name of the physical part. Add a column part, or find it "
            "in the source with a pattern of fields (--fields)."
        )
    if not texts["appraiser"]:
        texts["appraiser"] = texts["bundle"]
    failed = bool(texts["error"]) and not texts["verdict"]
    numbers = {name: _number(path, place, name, cells.get(name)) for name in _NUMBERS}
    digest = texts["digest"].lower()
    if digest and not DIGEST.fullmatch(digest):
        raise DatasetError(
            f"{path}: {place}: digest '{digest}'; expected SHA-256, 64 hexadecimal digits, "
            "as andon and sha256sum write it."
        )
    return Row(
        part=texts["part"],
        reference=_reference(path, place, texts["reference"]),
        appraiser=texts["appraiser"],
        condition=texts["condition"],
        trial=texts["trial"],
        verdict=Verdict.INVALID if failed else _verdict(path, place, texts["verdict"]),
        digest=digest,
        bundle=texts["bundle"],
        decision=texts["decision"],
        **numbers,
    )


_TEXTS = ("verdict", "digest", "bundle", "decision", "source", "error")
_NUMBERS = ("score", "review_threshold", "reject_threshold")


def _text(value: Any) -> str:
    """The text of a cell, without spaces at its ends; "" for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():  # integers with gaps, as pandas writes them
        value = int(value)
    return str(value).strip()


def _number(path: Path, place: str, name: str, value: Any) -> float:
    text = _text(value)
    try:
        number = float(text or "nan")
    except ValueError:
        raise DatasetError(f"{path}: {place}: {name} '{text}'; expected a number, or nothing. Correct it.") from None
    if name == "score" and math.isinf(number):
        raise DatasetError(f"{path}: {place}: the score is infinite; expected a finite number. Remove the row.")
    return number


def _verdict(path: Path, place: str, text: str) -> Verdict:
    try:
        return Verdict(text.upper())
    except ValueError:
        raise DatasetError(f"{path}: {place}: {unknown('verdict', text, Verdict)}") from None


def _reference(path: Path, place: str, text: str) -> str:
    """Return good, a kind of defect, or ""; andon knows words for good in several languages."""
    if re.fullmatch(r"[\d.]+|true|false|yes|no", text.lower()):
        raise DatasetError(
            f"{path}: {place}: reference '{text}' does not say whether the part is good. "
            "Expected good, or the kind of defect. Rename it."
        )
    return "good" if Names().kind(text) == "good" else text


def _references(path: Path, rows: list[Row]) -> dict[str, str]:
    """Part → reference; "" if none of its rows has one."""
    found: dict[str, str] = {}
    for row in rows:
        known = found.setdefault(row.part, row.reference)
        if row.reference and known and row.reference != known:
            raise DatasetError(
                f"{path}: part '{row.part}' has two references, {known} and {row.reference}; expected one. "
                "Keep the correct one."
            )
        found[row.part] = known or row.reference
    return found


def _distinct(path: Path, rows: list[Row]) -> None:
    """Refuse duplicate trials, and pictures that were scored again."""
    trials: set[tuple[str, ...]] = set()
    shown: dict[str, str] = {}  # picture → part
    scored: set[tuple[str, str]] = set()
    again: dict[str, None] = {}
    for row in rows:
        trial = (row.part, row.appraiser, row.condition, row.trial)
        if trial in trials:
            raise DatasetError(
                f"{path}: part '{row.part}' has two rows of trial '{row.trial}', appraiser '{row.appraiser}', "
                f"condition '{row.condition}'; expected one. Number the trials, or remove one row."
            )
        trials.add(trial)
        if not row.digest:
            continue
        if shown.setdefault(row.digest, row.part) != row.part:
            raise DatasetError(
                f"{path}: parts '{shown[row.digest]}' and '{row.part}' have the same picture, digest "
                f"{row.digest[:12]}; expected a picture of each part. Correct the names, or photograph the parts."
            )
        if (row.appraiser, row.digest) in scored:
            again[row.part] = None
        scored.add((row.appraiser, row.digest))
    if again:
        few = ", ".join(list(again)[:LISTED]) + (", …" if len(again) > LISTED else "")
        raise DatasetError(
            f"{path}: the same picture was scored again as a new trial, for {len(again)} parts: {few}; expected a new "
            "presentation for each trial. Remove the part, put it back, and take a new picture."
        )

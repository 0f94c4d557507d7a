"""Export records as a table: CSV or Parquet, written completely or not at all."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from andon import files
from andon.errors import AndonError
from andon.records import csv_line
from andon.station.entries import Row

Cell = Callable[[Row], Any]


def _body(*keys: str) -> Cell:
    def cell(row: Row) -> Any:
        value: Any = row.body
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return cell


def _text(*keys: str) -> Cell:
    value = _body(*keys)
    return lambda row: None if value(row) is None else str(value(row))


def _number(*keys: str) -> Cell:
    value = _body(*keys)
    return lambda row: float(value(row)) if isinstance(value(row), int | float) else None


COLUMNS: dict[str, tuple[str, Cell]] = {
    "time": ("timestamp", lambda row: row.time),
    "clock": ("timestamp", lambda row: row.clock),
    "station": ("string", lambda row: row.station),
    "sequence": ("int64", lambda row: row.sequence),
    "kind": ("string", lambda row: row.kind),
    "job": ("int64", lambda row: row.job),
    "product": ("string", lambda row: row.product),
    "part": ("string", lambda row: row.part),
    "lot": ("string", lambda row: row.lot),
    "verdict": ("string", lambda row: row.verdict),
    "score": ("double", lambda row: row.score),
    "p_value": ("double", lambda row: row.p_value),
    "review_threshold": ("double", _number("thresholds", "review")),
    "reject_threshold": ("double", _number("thresholds", "reject")),
    "pixel_threshold": ("double", _number("thresholds", "pixel")),
    "event": ("string", _text("event")),
    "decision_by": ("string", _text("who")),
    "reason": ("string", _text("reason")),
    "picture": ("string", _text("digest")),
    "bundle": ("string", _text("bundle")),
    "decision": ("string", _text("decision")),
    "software": ("string", _text("software")),
    "engine": ("string", _text("engine")),
    "body": ("string", lambda row: row.text),
    "previous": ("string", lambda row: row.previous),
    "digest": ("string", lambda row: row.digest),
}
"""Type and value of each column. `body` contains all other values of a record as JSON."""

CHUNK = 5000


def write(rows: Iterable[Row], out: Path) -> int:
    """Write records to a .csv or .parquet file; return the number of records."""
    writers = {".csv": _csv, ".parquet": _parquet}
    if out.suffix not in writers:
        raise AndonError(f"{out}: expected a name that ends in .csv or .parquet. Rename it.")
    with files.writing(out) as file:
        return writers[out.suffix](iter(rows), file)


def _csv(rows: Iterator[Row], file: BinaryIO) -> int:
    file.write(csv_line(tuple(COLUMNS)))
    count = 0
    for row in rows:
        file.write(csv_line([cell(row) for _, cell in COLUMNS.values()]))
        count += 1
    return count


def _parquet(rows: Iterator[Row], file: BinaryIO) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise AndonError("Parquet needs pyarrow. Install it: pip install 'andon[station]', or write .csv.") from None
    kinds = {
        "timestamp": pyarrow.timestamp("us", "UTC"),
        "string": pyarrow.string(),
        "int64": pyarrow.int64(),
        "double": pyarrow.float64(),
    }
    schema = pyarrow.schema([(name, kinds[kind]) for name, (kind, _) in COLUMNS.items()])
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while chunk := list(islice(rows, CHUNK)):
            columns = {name: [_typed(kind, cell(row)) for row in chunk] for name, (kind, cell) in COLUMNS.items()}
            writer.write_table(pyarrow.table(columns, schema))
            count += len(chunk)
    return count


def _typed(kind: str, value: Any) -> Any:
    return datetime.fromisoformat(value) if kind == "timestamp" else value

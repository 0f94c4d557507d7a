"""Archives of pictures → a folder of Parquet files with exactly one row for each picture.

The pictures are divided into parts. A part is one file, which is written completely or not at all. So the pictures of
an interrupted part have no row, and all others have one. The next run inspects the pictures without a row.

Beside each part lies a file of the sizes and times of its pictures, so that a picture that was exchanged is noticed.
"""

import io
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from andon import files, records
from andon.engines.runtime import Engine
from andon.errors import AndonError, ImageError, counted, few
from andon.fleet import place, sources
from andon.fleet.sources import Tell
from andon.inspection import Verdict
from andon.inspector import Inspector
from andon.progress import Progress, silent

Json = dict[str, Any]
Parts = Mapping[int, Sequence[str]]
A = TypeVar("A")
B = TypeVar("B")
ROWS = 500  # pictures of a part
READERS = 4  # pictures that are read at a time
COLUMNS = {name: "string" for name in records.COLUMNS if name not in ("time", "milliseconds")} | {
    **dict.fromkeys(("score", "p_value", "review_threshold", "reject_threshold", "pixel_threshold", "peak"), "float64"),
    **dict.fromkeys(("regions", "x", "y", "width", "height"), "int64"),
}
"""Columns of the results and their types: those of the records, without times, so that two runs give the same rows."""


class Summary(NamedTuple):
    """The counts of a run."""

    pictures: int  # in the archive
    kept: int  # with a row of an earlier run
    verdicts: dict[str, int]  # of the rows of this run
    errors: list[str]  # of all pictures of the archive that could not be inspected, in this run or earlier


class Scoring:
    """Inspects the pictures of a part. The engine has one thread, so that scores do not depend on `workers`."""

    def __init__(self, inspector: Inspector, workers: int) -> None:
        """workers: number of pictures that are inspected at a time."""
        self._inspector, self._workers = inspector, workers

    def __call__(self, pictures: Sequence[str]) -> bytes:
        """Return the rows of the pictures, in their order, as a Parquet file."""
        contents = ordered(lambda picture: (picture, sources.read(picture)), pictures, READERS)
        return _parquet(list(ordered(self._record, contents, self._workers)))

    def _record(self, picture: tuple[str, bytes | ImageError]) -> Json:
        name, content = picture
        try:
            if isinstance(content, ImageError):
                raise content
            return self._inspector.inspect(content, name).record()
        except ImageError as error:
            return {"source": name, "verdict": Verdict.INVALID.value, "error": str(error)}


Run = Callable[[Inspector, Parts, str], Iterator[tuple[int, bytes]]]
"""Called as run(inspector, parts, root); yields number and rows of each part, in any order."""


def local(workers: int) -> Run:
    """Return a function that inspects the parts in this process, `workers` pictures at a time."""

    def run(inspector: Inspector, parts: Parts, root: str) -> Iterator[tuple[int, bytes]]:
        scoring = Scoring(inspector, workers)
        return ((number, scoring(pictures)) for number, pictures in parts.items())

    return run


def inspect(
    bundle: str | Path,
    source: str,
    out: str | Path,
    run: Run,
    *,
    rows: int = ROWS,
    column: str = "path",
    engine: Engine = "onnxruntime",
    progress: Progress = silent,
    warn: Tell = lambda sentence: None,
) -> Summary:
    """Inspect the pictures of an archive that do not yet have a row in the folder `out`.

    source, column: see `sources.find`; rows name local pictures by their full path.
    run: `local(workers)` or `cluster.inspecting(address, workers)`.
    rows: pictures of a part.
    Errors: AndonError when the archive, the bundle or the folder cannot be used, when the folder has the results of
    another run or of pictures that have changed since, and when a part could not be finished. Finished parts stay.
    """
    out, source = Path(out), sources.full(source)
    _check_pyarrow()
    inspector = Inspector.load(bundle, engine, threads=1)
    identity = {
        "kind": "inspection",
        "source": source,
        "bundle": inspector.digest,
        "decision": inspector.decision_digest,
        "engine": engine,
    }
    archive = sources.find(source, column, warn)
    if archive.root and out.resolve().is_relative_to(archive.root):
        raise AndonError(f"{out}: the results would be among the pictures of {source}. Choose another folder: --out.")
    place.own(out, identity)
    with files.lock_folder(out, place.BUSY):
        place.own(out, identity, write=True)
        for half in out.glob(".part-*.part"):
            half.unlink()  # of a killed run
        done, following = _finished(out, warn)
        missing = [picture for picture in archive.pictures if picture not in done]
        kept, total = len(archive.pictures) - len(missing), len(archive.pictures)
        parts = {
            following + number: missing[start : start + rows]
            for number, start in enumerate(range(0, len(missing), rows))
        }
        for number, pictures in parts.items():  # before they are read: a change in between is noticed next time
            stamps = files.strict_json([sources.stamp(picture) for picture in pictures])
            files.write(out / f"_part-{number:06}.json", stamps.encode())
        verdicts: Counter[str] = Counter()
        errors = [error for picture in archive.pictures if (error := done.get(picture))]
        ready = kept
        progress("pictures", ready, total)
        for number, data in run(inspector, parts, archive.root):
            files.write(out / f"part-{number:06}.parquet", data)
            table = _read(io.BytesIO(data), ["verdict", "error"])
            verdicts.update(table["verdict"])
            errors += filter(None, table["error"])
            ready += len(parts[number])
            progress("pictures", ready, total)
    return Summary(total, kept, dict(verdicts), errors)


def ordered(function: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """Yield function(item) in the order of the items: `threads` at a time, and a bounded number ahead."""
    ahead: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads, "andon-fleet") as pool:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _finished(out: Path, warn: Tell) -> tuple[dict[str, str | None], int]:
    """Return the pictures that have a row, with their errors, and the number of the next part.

    Errors: AndonError when a picture has changed since its row was made.
    """
    done: dict[str, str | None] = {}
    changed: dict[str, str] = {}  # picture → part
    following, unknown = 0, 0
    for path in sorted(out.glob("part-*.parquet")):
        table = _read(path, ["source", "error"])
        done.update(zip(table["source"], table["error"], strict=True))
        following = max(following, int(path.stem.removeprefix("part-")) + 1)
        before = _stamps(out / f"_{path.stem}.json")
        unknown += not before
        for picture, stamp in zip(table["source"], before, strict=False):
            if sources.stamp(picture) not in ("", stamp):
                changed[picture] = path.name
    if changed:
        raise AndonError(
            f"{out}: {counted(len(changed), 'image')} changed after the inspection: {few(list(changed))}; "
            f"expected the same ones. Delete {few(sorted(set(changed.values())))}, and the same command inspects these "
            "again; or choose another --out."
        )
    if unknown:
        warn(f"{out}: {unknown} files of an earlier version; whether their images have changed since is not known")
    return done, following


def _stamps(path: Path) -> list[str]:
    """The sizes and times of the pictures of a part; empty when they are not known."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _parquet(rows: list[Json]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    places = [(records.COLUMNS.index(name), name, kind) for name, kind in COLUMNS.items()]
    values = [records.row(record) for record in rows]
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    columns = [pa.array([row[place] for row in values], schema.field(name).type) for place, name, _ in places]
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_arrays(columns, schema=schema), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _read(file: Path | io.BytesIO, columns: list[str]) -> dict[str, list[Any]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(file) as table:
            found: dict[str, list[Any]] = table.read(columns).to_pydict()
    except (ArrowException, OSError) as error:
        raise AndonError(f"{file}: damaged: {error}. Delete it; the next run inspects its pictures again.") from None
    return found


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise AndonError("pyarrow is not installed; archives need it. Run: pip install 'andon[fleet]'.") from None

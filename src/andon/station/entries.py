"""Records of a station: an entry before it is written, and a row of the chain."""

import json
import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import andon
from andon import files
from andon.station.events import StationError

Kind = Literal["inspection", "decision", "event", "challenge", "change"]
"""decision: by an operator; event: state or alarm; change: release, activation, recalibration, configuration."""

KINDS = get_args(Kind)
LONGEST_NAME = 100
LONGEST_TEXT = 500
LARGEST_BODY = 1 << 20


class Picture(NamedTuple):
    """A file of the archive that belongs to an entry."""

    digest: str
    size: int
    """Bytes."""
    worth: int
    """0: PASS; 1: REVIEW; 2: all others. When space is short, pictures of the lowest worth are removed first."""


@dataclass(frozen=True)
class Entry:
    kind: Kind
    job: int | None = None
    product: str | None = None
    part: str | None = None
    lot: str | None = None
    verdict: str | None = None
    score: float | None = None
    p_value: float | None = None
    body: dict[str, Any] = field(default_factory=dict)
    """All other values, as plain data for JSON."""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Row:
    """One record. `digest` is SHA-256 of `canonical()`, which contains the digest of the previous record."""

    station: str
    sequence: int
    time: str
    """UTC; never earlier than the time of the previous record."""
    clock: str
    """Reading of the clock, UTC; earlier than `time` after the clock went back."""
    kind: str
    job: int | None
    product: str | None
    part: str | None
    lot: str | None
    verdict: str | None
    score: float | None
    p_value: float | None
    text: str
    """The body as canonical JSON."""
    previous: str
    digest: str = ""

    @cached_property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.text))

    @property
    def key(self) -> str:
        """Identifies this record in every delivery; unique, even after a backup is restored."""
        return f"{self.station}:{self.sequence}:{self.digest[:16]}"

    def intact(self) -> bool:
        """Whether the digest matches the contents."""
        try:
            finite = all(number is None or math.isfinite(number) for number in (self.score, self.p_value))
            return finite and files.digest(self.canonical().encode()) == self.digest
        except (TypeError, ValueError):
            return False  # a value was changed to another type, which SQLite permits in every column

    def canonical(self) -> str:
        """Return all columns except the digest as canonical JSON; `body`, the first in order, is unchanged text."""
        rest = {key: value for key, value in self.values().items() if key not in ("body", "digest")}
        return f'{{"body":{self.text},{files.canonical_json(rest)[1:]}'

    def values(self) -> dict[str, Any]:
        """Return the columns of the table; the body is text."""
        values = {**vars(self), "body": self.text}
        del values["text"]
        return values

    def record(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**self.values(), "body": self.body}


def inspected(
    job: int,
    product: str,
    part: str,
    lot: str | None,
    outcome: str,
    record: dict[str, Any],
    engine: str,
    stages_ms: dict[str, float],
    pictures: tuple[Picture, ...] = (),
) -> Entry:
    """Return the entry of an inspection, with everything that makes it traceable.

    Args:
        job, product, part, lot: identify the inspected part.
        outcome: how the job ended; differs from the verdict in `record` if the verdict was late.
        record: `Inspection.record()`; without one, at least `error`, and `digest` and `bundle` if known.
        engine: name and version of the inference engine.
        stages_ms: the duration of each stage.
        pictures: its files in the archive.
    """
    return Entry(
        "inspection",
        job=job,
        product=product,
        part=part,
        lot=lot,
        verdict=outcome,
        score=record.get("score"),
        p_value=record.get("p_value"),
        body={**record, "software": f"andon {andon.__version__}", "engine": engine, "stages_ms": stages_ms},
        pictures=pictures,
    )


DISPUTE = "dispute"
"""The decision that another person must judge the part again."""


def decided(
    row: "Row",
    decision: Literal["confirm", "override", "dispute"],
    who: str,
    verdict: str | None = None,
    reason: str = "",
    *,
    key: str = "",
    defect: str = "",
    box: tuple[int, int, int, int] | None = None,
) -> Entry:
    """Return the entry of a person's decision on an inspection. StationError for missing or contradictory values.

    Args:
        row: record of the inspection.
        decision: `confirm` the verdict; `override` it by `verdict`, with a reason; `dispute` it: the part waits for
            another decision.
        who, key: name and id of the person's key.
        defect: kind of defect, if any.
        box: x, y, width, height of the defect in pixels of the picture.
    """
    check_text("operator", who, LONGEST_TEXT)
    found = f"decision '{decision}' on record {row.sequence}"
    if row.kind != "inspection":
        raise StationError(f"{found}, of kind {row.kind}; expected an inspection. Name the record of one.")
    if decision == "override" and (verdict is None or not reason.strip()):
        raise StationError(f"{found} without verdict or reason; expected both. Add them.")
    if decision != "override" and verdict is not None:
        raise StationError(f"{found} with verdict {verdict}; expected no verdict. To change the verdict, override it.")
    facts: dict[str, Any] = {"decision": decision, "verdict": verdict, "reason": reason}
    marks = {name: value for name, value in (("defect", defect), ("box", box and list(box))) if value}
    body = {**facts, **marks, "record": row.sequence, "was": row.verdict, "who": who, "key": key}
    stands = None if decision == DISPUTE else verdict or row.verdict
    return Entry("decision", row.job, row.product, row.part, row.lot, stands, body=body)


def draft(entry: Entry) -> dict[str, Any]:
    """Return the columns of an entry. StationError when the database cannot store it unchanged."""
    if entry.kind not in KINDS:
        raise StationError(f"record of kind '{entry.kind}': expected {', '.join(KINDS)}. Use one of them.")
    texts = {name: getattr(entry, name) for name in ("product", "part", "lot", "verdict")}
    for name, value in texts.items():
        if value is not None:
            check_text(name, value, LONGEST_TEXT)
    if entry.job is not None:
        check_number("job", entry.job)
    try:
        numbers = {name: _number(getattr(entry, name)) for name in ("score", "p_value")}
        text = files.canonical_json(dict(entry.body))
    except (TypeError, ValueError, RecursionError) as error:
        raise StationError(f"record of kind {entry.kind}: not plain data: {error}. Expected JSON types.") from None
    if len(text) > LARGEST_BODY:
        raise StationError(
            f"record of kind {entry.kind}: {len(text)} bytes; expected at most {LARGEST_BODY}. Put large data into the "
            "archive and its digest into the record."
        )
    return {"kind": entry.kind, "job": entry.job, **texts, **numbers, "text": text}


def check_text(name: str, value: object, longest: int) -> None:
    """Check that every supported database can store and find a text."""
    whole = isinstance(value, str) and 0 < len(value) <= longest and "\0" not in value
    try:
        whole = whole and bool(str(value).encode())
    except UnicodeEncodeError:
        whole = False
    if not whole:
        raise StationError(
            f"{name} {str(value)[:40]!r}: expected 1 to {longest} characters of valid Unicode without NUL. Rename it."
        )


def check_number(name: str, value: object) -> None:
    """Check that every supported database can store a number."""
    if not (type(value) is int and 0 <= value < 1 << 63):
        raise StationError(f"{name} {str(value)[:40]}: expected an integer from 0 to 2^63 − 1. Correct it.")


def stamp(seconds: float) -> str:
    """Return a time in seconds since 1970 as the text used in records."""
    try:
        return stamp_of(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        raise StationError(
            f"time {seconds}: expected seconds since 1970, before the year 10000. Set the clock."
        ) from None


def stamp_of(moment: datetime) -> str:
    """Return a time as the text used in records."""
    if moment.tzinfo is None:
        raise StationError(f"time {moment}: expected a time zone, such as {moment}+00:00. Add it.")
    try:
        return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except OverflowError:
        raise StationError(f"time {moment}: expected a year from 1 to 9999 in UTC. Correct it.") from None


def chained(head: tuple[int, str, str], station: str, clock: str, drafts: list[dict[str, Any]]) -> list[Row]:
    """Return drafts as rows that continue the chain after `head`: sequence, digest and time of the last record."""
    rows: list[Row] = []
    sequence, digest, time = head
    for columns in drafts:
        sequence += 1
        row = Row(station=station, sequence=sequence, time=max(time, clock), clock=clock, previous=digest, **columns)
        digest = files.digest(row.canonical().encode())
        rows.append(replace(row, digest=digest))
    return rows


def _number(value: object) -> float | None:
    if value is None or not math.isfinite(number := float(value)):  # type: ignore[arg-type]  # `draft` reports a TypeError
        return None
    return number + 0.0  # SQLite has no negative zero

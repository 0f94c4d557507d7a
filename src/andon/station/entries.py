"""What a station records: an entry as it is handed in, and a row as it lies in the chain."""

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
"""decision: of an operator; event: state or alarm; change: release, activation, recalibration, configuration."""

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
    """0: of a pass; 1: of a review; 2: of a reject. What is worth less goes first when space is short."""


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
    """All else, as plain data for JSON."""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Row:
    """One record. `digest` is SHA-256 of `canonical()`, which holds the digest of the record before it."""

    station: str
    sequence: int
    time: str
    """UTC; never earlier than that of the record before it."""
    clock: str
    """What the clock showed: earlier than `time` after it went back."""
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
        """The same for every delivery of this record, and for no other record, also after a restored backup."""
        return f"{self.station}:{self.sequence}:{self.digest[:16]}"

    def intact(self) -> bool:
        """Whether the digest is that of the contents."""
        try:
            finite = all(number is None or math.isfinite(number) for number in (self.score, self.p_value))
            return finite and files.digest(self.canonical().encode()) == self.digest
        except (TypeError, ValueError):
            return False  # somebody wrote another type: SQLite lets it into any column

    def canonical(self) -> str:
        """All but the own digest as canonical JSON; `body` sorts first, and lies there as it was written."""
        rest = {key: value for key, value in self.values().items() if key not in ("body", "digest")}
        return f'{{"body":{self.text},{files.canonical_json(rest)[1:]}'

    def values(self) -> dict[str, Any]:
        """The columns of the table; the body as text."""
        values = {**vars(self), "body": self.text}
        del values["text"]
        return values

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
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
    """The record of an inspection, with all that traces it.

    Args:
        job, product, part, lot: what was inspected.
        outcome: how the job ended; it differs from the verdict in `record` when that came late.
        record: `Inspection.record()`; without one, at least `error`, and `digest` and `bundle` where they are known.
        engine: name and version of what ran the graph.
        stages_ms: the time that each stage took.
        pictures: what the archive keeps of it.
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
"""The decision that a person must look at a part again."""


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
    """What a person says of an inspection. StationError when it says too little or too much.

    Args:
        row: of the inspection.
        decision: `confirm` its verdict; `override` it by `verdict`, with a reason; `dispute` it: the part waits for a
            decision.
        who, key: name and id of the person's key.
        defect: its kind, where there is one.
        box: x, y, width, height of the defect, pixels of the picture.
    """
    check_text("operator", who, LONGEST_TEXT)
    found = f"decision '{decision}' on record {row.sequence}"
    if row.kind != "inspection":
        raise StationError(f"{found}, which is of kind {row.kind}; expected an inspection.")
    if decision == "override" and (verdict is None or not reason.strip()):
        raise StationError(f"{found} without verdict or reason; expected both.")
    if decision != "override" and verdict is not None:
        raise StationError(f"{found} with verdict {verdict}; expected none. Override to change it.")
    facts: dict[str, Any] = {"decision": decision, "verdict": verdict, "reason": reason}
    marks = {name: value for name, value in (("defect", defect), ("box", box and list(box))) if value}
    body = {**facts, **marks, "record": row.sequence, "was": row.verdict, "who": who, "key": key}
    stands = None if decision == DISPUTE else verdict or row.verdict
    return Entry("decision", row.job, row.product, row.part, row.lot, stands, body=body)


def draft(entry: Entry) -> dict[str, Any]:
    """The columns that an entry fills. StationError when it cannot be kept as it is."""
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
        raise StationError(f"record of kind {entry.kind}: not plain data: {error}. Expected what JSON holds.") from None
    if len(text) > LARGEST_BODY:
        raise StationError(
            f"record of kind {entry.kind}: {len(text)} bytes, expected at most {LARGEST_BODY}. Put large data into the "
            "archive and its digest into the record."
        )
    return {"kind": entry.kind, "job": entry.job, **texts, **numbers, "text": text}


def check_text(name: str, value: object, longest: int) -> None:
    """Refuse a name that one of the databases could not hold or find."""
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
    """Refuse a number that a database could not hold."""
    if not (type(value) is int and 0 <= value < 1 << 63):
        raise StationError(f"{name} {str(value)[:40]}: expected a whole number from 0 below 2^63. Correct it.")


def stamp(seconds: float) -> str:
    """A reading of the clock in seconds since 1970 as text."""
    try:
        return stamp_of(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        raise StationError(
            f"time {seconds}: expected seconds since 1970, before the year 10000. Set the clock."
        ) from None


def stamp_of(moment: datetime) -> str:
    """A moment as the text that records hold."""
    if moment.tzinfo is None:
        raise StationError(f"time {moment}: expected a time zone, such as {moment}+00:00. Add it.")
    try:
        return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except OverflowError:
        raise StationError(f"time {moment}: expected a moment from year 1 to 9999 in UTC. Correct it.") from None


def chained(head: tuple[int, str, str], station: str, clock: str, drafts: list[dict[str, Any]]) -> list[Row]:
    """Drafts as rows that follow `head`: its sequence, digest and time."""
    rows: list[Row] = []
    sequence, digest, time = head
    for columns in drafts:
        sequence += 1
        row = Row(station=station, sequence=sequence, time=max(time, clock), clock=clock, previous=digest, **columns)
        digest = files.digest(row.canonical().encode())
        rows.append(replace(row, digest=digest))
    return rows


def _number(value: object) -> float | None:
    if value is None or not math.isfinite(number := float(value)):  # type: ignore[arg-type]  # the caller tells
        return None
    return number + 0.0  # SQLite knows no negative zero

"""Statistics of the production of one product, by SQL from the records: yield, p-chart, scores, positions, margins.

Challenge parts are counted in their margins only. A job whose outcome was corrected by a later record (`superseded`) is
counted with the corrected outcome.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, tzinfo
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from andon.binomial import clopper_pearson
from andon.station import runs, schema
from andon.station.drift import measured
from andon.station.entries import stamp_of
from andon.station.events import Outcome, StationError
from andon.station.reader import Reader

JUDGED = (Outcome.PASS, Outcome.REVIEW, Outcome.REJECT)
STEPS = tuple(timedelta(minutes=m) for m in (1, 5, 15, 30, 60, 120, 240, 480, 1440, 10_080, 40_320, 161_280))
"""Lengths of a period: from a minute to 16 weeks."""
MOST_PERIODS = 500
CELLS = 32
"""Number of cells along the longer side of the map of positions."""
MOST_PARTS = 2000
"""Maximum number of parts whose regions are counted."""


def periods(since: datetime, until: datetime, zone: tzinfo, most: int = 60) -> list[datetime]:
    """Divide a time span into at most about `most` periods of equal length; return their edges, ascending.

    Periods begin at midnight in the plant's zone. On a day with a clock change, the last one is shorter or longer.
    """
    if since.tzinfo is None or until.tzinfo is None or not since < until:
        raise StationError(f"from {since} to {until}: expected a start before the end, both with a time zone.")
    step = next((each for each in STEPS if (until - since) / each <= most), STEPS[-1])
    day = since.astimezone(zone).date()
    edges: list[datetime] = []
    while not edges or edges[-1] < until:
        following = day + max(step, timedelta(days=1))
        begin, end = (datetime.combine(each, time(), zone).astimezone(UTC) for each in (day, following))
        count = 1 if step >= timedelta(days=1) else round((end - begin) / step)
        edges += [begin + step * number for number in range(count)] if count > 1 else [begin]
        day = following
    first = max(number for number, edge in enumerate(edges) if edge <= since)
    last = next(number for number, edge in enumerate(edges) if edge >= until)
    return edges[first : last + 1]


@dataclass
class Production:
    """How the jobs of one period ended."""

    ended: Counter[str] = field(default_factory=Counter)
    """Number of jobs by outcome."""
    decided: Counter[str] = field(default_factory=Counter)
    """The same, with the last decision of people in place of the outcome."""

    def __add__(self, other: "Production") -> "Production":
        return Production(self.ended + other.ended, self.decided + other.decided)

    @property
    def parts(self) -> int:
        return self.ended.total()

    @property
    def judged(self) -> int:
        """Number of parts with PASS, REVIEW or REJECT; other outcomes contain no information on the part."""
        return sum(self.ended[outcome] for outcome in JUDGED)

    @property
    def first_yield(self) -> float:
        """Share of PASS among all parts; NaN without parts."""
        return self.ended[Outcome.PASS] / self.parts if self.parts else math.nan

    @property
    def final_yield(self) -> float:
        """Share of PASS among all parts after the decisions of people; NaN without parts."""
        return self.decided[Outcome.PASS] / self.parts if self.parts else math.nan

    def interval(self) -> tuple[float, float]:
        """Return the exact 95 % interval of the first yield."""
        return clopper_pearson(self.ended[Outcome.PASS], self.parts)


def production(reader: Reader, product: str, edges: Sequence[datetime]) -> list[Production]:
    """Count the outcomes of a product in each period from one edge (included) to the next (excluded)."""
    stamps = _stamps(edges)
    found = [Production() for _ in stamps[1:]]
    table, span = schema.records.c, _spans(stamps)
    query = sa.select(span.c.number, table.verdict, sa.func.count()).select_from(span.join(schema.records, sa.true()))
    query = query.where(*_inspections(reader, product), table.time >= span.c.since, table.time < span.c.until)
    with reader.reading() as connection:
        for number, verdict, count in connection.execute(query.group_by(span.c.number, table.verdict)):
            found[number].ended[str(verdict)] += count
            found[number].decided[str(verdict)] += count
        ends, decisions = (_later(connection, reader, product, kind, stamps) for kind in ("event", "decision"))
    for when, before, after in ends.values():
        each = found[bisect_right(stamps, when) - 1]
        for counter in (each.ended, each.decided):
            counter.update({after: 1})
            counter.subtract({before: 1})
    for job, (when, before, after) in decisions.items():
        counter = found[bisect_right(stamps, when) - 1].decided
        counter.update({after: 1})
        counter.subtract({ends[job][2] if job in ends else before: 1})
    for each in found:
        each.ended, each.decided = +each.ended, +each.decided
    return found


class Share(NamedTuple):
    """One point of a p-chart."""

    judged: int
    rejects: int
    share: float
    """NaN without parts."""
    low: float
    high: float

    @property
    def outside(self) -> bool:
        return self.judged > 0 and not self.low <= self.share <= self.high


class PChart(NamedTuple):
    mean: float
    """Share of rejects among all parts; NaN without parts."""
    points: list[Share]


def p_chart(found: Iterable[Production]) -> PChart:
    """Return the share of REJECT among judged parts in each period, with limits at three standard deviations.

    Limits p̄ ± 3 √(p̄ (1 − p̄) / n), clipped to 0 and 1 (Montgomery, "Introduction to Statistical Quality Control"). Each
    period has its own limits, because n differs.
    """
    pairs = [(each.judged, each.ended[Outcome.REJECT]) for each in found]
    total = sum(judged for judged, _ in pairs)
    mean = sum(rejects for _, rejects in pairs) / total if total else math.nan
    points = []
    for judged, rejects in pairs:
        reach = 3 * math.sqrt(mean * (1 - mean) / judged) if judged else math.nan
        share = rejects / judged if judged else math.nan
        points.append(Share(judged, rejects, share, max(mean - reach, 0.0), min(mean + reach, 1.0)))
    return PChart(mean, points)


class Scored(NamedTuple):
    """The scores of one period; NaN if there are none."""

    parts: int
    low: float
    mean: float
    high: float


def scores(reader: Reader, product: str, edges: Sequence[datetime]) -> list[Scored]:
    """Return the lowest, mean and highest score in each period between edges."""
    stamps = _stamps(edges)
    found = [Scored(0, math.nan, math.nan, math.nan)] * (len(stamps) - 1)
    table, span = schema.records.c, _spans(stamps)
    numbers = (sa.func.count(table.score), *(each(table.score) for each in (sa.func.min, sa.func.avg, sa.func.max)))
    query = sa.select(span.c.number, *numbers).select_from(span.join(schema.records, sa.true()))
    query = query.where(*_inspections(reader, product), table.time >= span.c.since, table.time < span.c.until)
    with reader.reading() as connection:
        for number, count, low, mean, high in connection.execute(query.group_by(span.c.number)):
            if count:
                found[number] = Scored(count, low, mean, high)
    return found


class Dot(NamedTuple):
    """One part in a chart of scores."""

    time: str
    score: float
    verdict: str
    record: int


def dots(reader: Reader, product: str, since: datetime, until: datetime, most: int, doubtful: bool) -> list[Dot]:
    """Return the last parts with a score, the oldest first. `doubtful`: only those with REVIEW or REJECT."""
    table = schema.records.c
    query = sa.select(table.time, table.score, table.verdict, table.sequence)
    query = query.where(*_inspections(reader, product), table.score.is_not(None))
    query = query.where(table.time >= stamp_of(since), table.time < stamp_of(until))
    if doubtful:
        query = query.where(table.verdict.in_((Outcome.REVIEW.value, Outcome.REJECT.value)))
    with reader.reading() as connection:
        rows = connection.execute(query.order_by(table.time.desc(), table.sequence.desc()).limit(most)).all()
    return [Dot(*row) for row in reversed(rows)]


class Positions(NamedTuple):
    """Positions of the regions of parts with REVIEW or REJECT."""

    counts: NDArray[np.int64]
    """(rows, columns) number of parts with a region in each cell of the picture."""
    parts: int
    """Number of parts with at least one region."""
    without: int
    """Number of parts with a score above the threshold and no region."""
    frame: tuple[int, int]
    """Width and height of the picture in pixels."""


def positions(
    reader: Reader, product: str, since: datetime, until: datetime, frame: tuple[int, int] | None = None
) -> Positions:
    """Count the last parts with a region in each cell of the picture.

    `frame`: width and height of the pictures; None: the extent of the regions.
    """
    rows = [
        row
        for outcome in (Outcome.REVIEW, Outcome.REJECT)
        for row in reader.history(product, since, until, outcome.value, kind="inspection", limit=MOST_PARTS)
    ]
    boxes = [[each["box"] for each in row.body.get("regions", ())] for row in rows]
    marked = [each for each in boxes if each]
    corners = [(x + w, y + h) for part in marked for x, y, w, h in part]
    width, height = frame or (max((x for x, _ in corners), default=1), max((y for _, y in corners), default=1))
    cell = max(width, height) / CELLS
    shape = (max(math.ceil(height / cell), 1), max(math.ceil(width / cell), 1))
    counts = np.zeros(shape, np.int64)
    for part in marked:
        touched = np.zeros(shape, np.bool_)
        for x, y, w, h in part:
            touched[int(y / cell) : math.ceil((y + h) / cell), int(x / cell) : math.ceil((x + w) / cell)] = True
        counts += touched
    return Positions(counts, len(marked), len(boxes) - len(marked), (width, height))


class Margin(NamedTuple):
    """One presentation of a challenge part."""

    time: str
    margin: float
    """Score − threshold; NaN without a score or threshold."""
    verdict: str


def margins(reader: Reader, product: str, most: int = 1000) -> dict[str, list[Margin]]:
    """Return the last presentations of the challenge parts of a product, by part, the oldest first."""
    found: dict[str, list[Margin]] = {}
    for row in reversed(reader.history(product, kind="challenge", limit=most)):
        answer = runs.answer(Outcome(str(row.verdict)), row)
        found.setdefault(answer.part, []).append(Margin(row.time, answer.margin, answer.outcome.value))
    return found


class Mark(NamedTuple):
    """A time that is marked in charts."""

    time: str
    kind: str
    """activate, roll back or drift."""
    body: dict[str, Any]


def marks(reader: Reader, product: str) -> list[Mark]:
    """Return the times of changes of the active bundle and of detected drifts, the oldest first."""
    changes = [
        Mark(row.time, row.body["change"], row.body)
        for row in reader.walk(product=product, kind="change")
        if row.body.get("change") in ("activate", "roll back")
    ]
    drifts = [
        Mark(row.time, "drift", row.body)
        for row in reader.walk(product=product, kind="event")
        if row.body.get("event") == "drift"
    ]
    return sorted([*changes, *drifts], key=lambda mark: mark.time)


class Measured(NamedTuple):
    """One value of one part, and the exponentially weighted mean including it."""

    time: str
    value: float
    mean: float


def measures(reader: Reader, product: str, bundle: str, most: int, weight: float = 0.1) -> dict[str, list[Measured]]:
    """Return the measures of drift for the last parts inspected by a bundle, the oldest first.

    The weighted mean begins with the first returned value; `weight` is that of a new value.
    """
    found: dict[str, list[Measured]] = {}
    for row in reversed(reader.history(product, kind="inspection", limit=most)):
        body = row.body
        if body.get("bundle") == bundle:
            for name, value in measured({**body, "score": row.score}).items():
                before = found[name][-1].mean if name in found else value
                found.setdefault(name, []).append(Measured(row.time, value, before + weight * (value - before)))
    return found


def _inspections(reader: Reader, product: str) -> tuple[Any, ...]:
    table = schema.records.c
    return table.station == reader.station, table.product == product, table.kind == "inspection"


def _stamps(edges: Sequence[datetime]) -> list[str]:
    if not 1 < len(edges) <= MOST_PERIODS + 1:
        raise StationError(f"{len(edges)} edges of periods: expected 2 to {MOST_PERIODS + 1}. Use longer periods.")
    return [stamp_of(edge) for edge in edges]


def _spans(stamps: Sequence[str]) -> sa.CTE:
    """Return the periods as a table, so that the database uses the index for each."""
    columns = (sa.column("number", sa.Integer), sa.column("since", sa.Text), sa.column("until", sa.Text))
    rows = [(number, *pair) for number, pair in enumerate(pairwise(stamps))]
    return sa.values(*columns, name="periods").data(rows).cte("periods")


def _later(
    connection: sa.Connection, reader: Reader, product: str, kind: str, stamps: Sequence[str]
) -> dict[int, tuple[str, str, str]]:
    """Return, by job, time and verdict of an inspection and the verdict of the last record of `kind` on it."""
    later, table = schema.records.alias("later"), schema.records.c
    same = sa.and_(later.c.station == table.station, later.c.job == table.job, table.kind == "inspection")
    query = sa.select(table.job, table.time, table.verdict, later.c.verdict).join_from(later, schema.records, same)
    query = query.where(
        *(later.c.station == reader.station, later.c.kind == kind, sa.text("later.kind <> 'inspection'")),
        *(later.c.product == product, later.c.verdict.is_not(None)),
        later.c.sequence >= reader.first(connection, table.time >= stamps[0]),
    )
    found = connection.execute(query.order_by(later.c.sequence))
    return {job: (when, *pair) for job, when, *pair in found if stamps[0] <= when < stamps[-1]}

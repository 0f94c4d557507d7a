"""What the charts of a product show, as plain data for uPlot: columns of numbers, times in seconds since 1970."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from andon.station import statistics
from andon.station.catalogue import Product
from andon.station.drift import MEASURES
from andon.station.loaded import Loaded
from andon.station.reader import Reader
from andon.station.statistics import PChart, Production

SPANS = {
    "shift": timedelta(hours=8),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
    "month": timedelta(days=30),
    "quarter": timedelta(days=91),
}
"""Stretches of time that end now."""
FINE = 240
"""Most periods of a score chart."""
SINGLE = 2000
"""So many parts are shown one by one; of more, the range of each period, and those with REVIEW or REJECT."""
LAST = 1000
"""Parts whose measures are shown."""


@dataclass(frozen=True)
class Overview:
    """The production of one product over a stretch of time."""

    edges: list[datetime]
    periods: list[Production]
    total: Production
    chart: PChart

    @property
    def since(self) -> datetime:
        return self.edges[0]

    @property
    def until(self) -> datetime:
        return self.edges[-1]


def edges(span: str, zone: tzinfo, now: datetime) -> list[datetime]:
    """The edges of the periods of a stretch of time. `span`: one of `SPANS`."""
    return statistics.periods(now - SPANS[span], now, zone)


def overview(reader: Reader, product: str, span: str, zone: tzinfo, now: datetime) -> Overview:
    """`span`: one of `SPANS`."""
    found = edges(span, zone, now)
    periods = statistics.production(reader, product, found)
    return Overview(found, periods, sum(periods, Production()), statistics.p_chart(periods))


def charts(reader: Reader, product: Product, seen: Overview, zone: tzinfo) -> dict[str, Any]:
    """p-chart, scores with their thresholds and marks, and margins of challenge parts."""
    name, since, until = product.name, seen.since, seen.until
    fine = statistics.periods(since, until, zone, FINE)
    summary = statistics.scores(reader, name, fine)
    many = sum(each.parts for each in summary) > SINGLE
    dots = statistics.dots(reader, name, since, until, SINGLE, doubtful=many)
    marks = statistics.marks(reader, name)
    points = seen.chart.points
    return {
        "since": since.timestamp(),
        "until": until.timestamp(),
        "p_chart": {
            "times": [edge.timestamp() for edge in seen.edges[:-1]],
            "mean": _finite(seen.chart.mean),
            **{field: _numbers(getattr(point, field) for point in points) for field in points[0]._fields},
            "outside": [point.outside for point in points],
        },
        "scores": {
            "times": [edge.timestamp() for edge in fine[:-1]] if many else [],
            **({field: _numbers(getattr(each, field) for each in summary) for field in ("low", "mean", "high")}),
        },
        "dots": {
            "times": [_seconds(dot.time) for dot in dots],
            "scores": [dot.score for dot in dots],
            "verdicts": [dot.verdict for dot in dots],
            "records": [dot.record for dot in dots],
        },
        "thresholds": _thresholds(product, marks),
        "marks": [
            {"time": _seconds(mark.time), "kind": mark.kind, "text": _said(mark)}
            for mark in marks
            if since.timestamp() <= _seconds(mark.time) <= until.timestamp()
        ],
        "margins": {
            part: {"times": [_seconds(each.time) for each in found], "margins": _numbers(each.margin for each in found)}
            for part, found in statistics.margins(reader, name).items()
        },
    }


def drift(reader: Reader, product: Product, loaded: Loaded | None) -> dict[str, Any]:
    """What drift measures of the last parts of the bundle that inspects, with the limits of its charts."""
    points = loaded.drift.points() if loaded else {}
    found = statistics.measures(reader, product.name, product.active or "", LAST)
    return {
        name: {
            "times": [_seconds(each.time) for each in values],
            "values": [each.value for each in values],
            "means": [each.mean for each in values],
            "low": _finite(points[name].low) if name in points else None,
            "high": _finite(points[name].high) if name in points else None,
        }
        for name in MEASURES
        if (values := found.get(name))
    }


def _thresholds(product: Product, marks: list[statistics.Mark]) -> list[dict[str, Any]]:
    """The thresholds of the score, from when each bundle was active."""
    found = []
    for mark in marks:
        version = product.versions.get(mark.body.get("digest", ""))
        if mark.kind != "drift" and version:
            limits = version.about["thresholds"]
            found.append({"time": _seconds(mark.time), "review": limits["review"], "reject": limits["reject"]})
    return found


def _said(mark: statistics.Mark) -> str:
    """What a mark says in a few words."""
    body = mark.body
    return f"{body['measure']}: {body['kind']}" if mark.kind == "drift" else str(body["digest"])[:12]


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).astimezone(UTC).timestamp()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_finite(float(value)) for value in values]

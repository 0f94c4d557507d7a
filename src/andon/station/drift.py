"""Detect drift of a station's measurements, at a stated rate of false alarms, without assumptions on distributions.

Each value gets a p-value: its smoothed rank among the reference *and* all earlier production (semi-online; Vovk,
Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005). While nothing has changed, these p-values are
independent and uniform. Ranks against the reference alone are not independent: docs/station.md shows their alarms.

The conformal Shiryaev-Roberts procedure tests these p-values by betting (Vovk, Petej, Nouretdinov, Ahlberg, Carlsson &
Gammerman, "Retrain or not retrain: conformal test martingales for change-point detection", COPA 2021): each part starts
one more bet that a change begins with this part. The sum of all bets minus the number of parts is a martingale. While
nothing has changed, a sum of c within N parts therefore has a probability of at most N / c. One part multiplies a bet
by at most 4, so single defects raise no alarm.
"""

import math
import random
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from andon.calibration import Calibration
from andon.station.events import StationError

MEASURES = ("score", "brightness", "sharpness", "registration")

TAIL = 0.1  # share of the p-values in a tail
BETS = {
    "higher": (lambda p: 1.5 - p, lambda p: 2 - 2 * p, lambda p: 4.0 if p < TAIL else (1 - 4 * TAIL) / (1 - TAIL)),
    "lower": (lambda p: 0.5 + p, lambda p: 2 * p, lambda p: 4.0 if p > 1 - TAIL else (1 - 4 * TAIL) / (1 - TAIL)),
    "wider spread": (lambda p: 3.0 if min(p, 1 - p) < TAIL else (1 - 6 * TAIL) / (1 - 2 * TAIL),),
}
"""Factor by which a p-value multiplies a bet; the mean over uniform p-values is 1. A high value has a low p-value."""

KINDS = [(kind, pays) for kind, bets in BETS.items() for pays in bets]


class Ranks:
    """Semi-online p-values of a sequence of values."""

    def __init__(self, reference: Sequence[float], seed: str) -> None:
        """`seed` of the smoothing: with the same seed, the same values give the same p-values."""
        self._values = array("d", sorted(reference))
        self._random = random.Random(seed)

    def add(self, value: float) -> float:
        """Return the p-value of a value among all earlier values; ties are broken at random."""
        above = len(self._values) - bisect_right(self._values, value)
        same = len(self._values) - above - bisect_left(self._values, value) + 1
        insort(self._values, value)
        return (above + self._random.random() * same) / len(self._values)


class Change(NamedTuple):
    """A detected drift."""

    measure: str
    kind: str  # higher, lower, or wider spread
    parts: int  # number inspected since the start of the chart
    since: int  # estimated number of parts since the start of the drift

    def __str__(self) -> str:
        return (
            f"{self.measure}: {self.kind} than before, since about {self.since} parts. Check light, lens, camera and "
            "material. If the parts are good, recalibrate on verified good parts."
        )


class Point(NamedTuple):
    """The last point of an EWMA chart. Its limits are only displayed; no rate of false alarms is stated for them."""

    value: float
    mean: float  # exponentially weighted
    low: float
    high: float
    evidence: float  # for a change; 1 raises the alarm


class Chart:
    """The chart of one measure: semi-online ranks, bets on them, and an EWMA."""

    def __init__(
        self, measure: str, reference: Sequence[float], alarm: float, learn: int, horizon: int, weight: float, seed: str
    ) -> None:
        self.measure, self.reference = measure, list(reference)
        self._alarm, self._horizon, self._weight, self._seed = alarm, horizon, weight, seed
        self._learn = learn  # number of production values that become the reference
        self._given = len(self.reference)
        self._total = self._before = 0  # values added, and those of them before `_given` was counted
        self._centre, self._deviation = _spread(self.reference)
        self.point: Point | None = None
        self._begin()

    def _begin(self) -> None:
        """Forget production, so that memory stays bounded. Probabilities of false alarms add up over the horizons."""
        self._ranks = Ranks(self.reference, f"{self._seed} {self.measure} {self._total}")
        self._parts, self._bets = 0, [0.0] * len(KINDS)
        self._rises, self._since = [1.0] * len(KINDS), [0] * len(KINDS)  # the best single bet, and its start

    def restart(self) -> None:
        self.point = None
        self._given, self._before = len(self.reference), self._total
        self._begin()

    def unlearn(self, parts: int) -> None:
        """Take what the last parts added out of the reference. Nothing must have been learnt after an earlier call."""
        del self.reference[self._given + max(0, self._total - self._before - parts) :]
        self._centre, self._deviation = _spread(self.reference)

    def add(self, value: float, learns: bool) -> Change | None:
        if self._parts == self._horizon:
            self._begin()
        if learns and len(self.reference) < self._learn:
            self.reference.append(value)
            self._centre, self._deviation = _spread(self.reference)
        self._parts += 1
        self._total += 1
        p = self._ranks.add(value)
        for i, (_, pays) in enumerate(KINDS):
            if self._rises[i] <= 1:
                self._rises[i], self._since[i] = 1.0, self._parts
            paid = pays(p)
            self._rises[i] *= paid
            self._bets[i] = (self._bets[i] + 1) * paid
        evidence = sum(self._bets) / len(KINDS) / self._alarm
        self._draw(value, evidence)
        if evidence < 1:
            return None
        best = max(range(len(KINDS)), key=self._bets.__getitem__)
        return Change(self.measure, KINDS[best][0], self._total, self._parts - self._since[best] + 1)

    def _draw(self, value: float, evidence: float) -> None:
        before = self.point.mean if self.point else self._centre
        mean = before + self._weight * (value - before)
        share = self._weight / (2 - self._weight) + 1 / max(len(self.reference), 1)
        reach = 3 * self._deviation * math.sqrt(share)
        self.point = Point(value, mean, self._centre - reach, self._centre + reach, evidence)


def _change(measure: str, kind: str, parts: int, since: int) -> Change:
    """A stored change. StationError when it is damaged."""
    if measure not in MEASURES or kind not in BETS or not all(isinstance(n, int) and n > 0 for n in (parts, since)):
        raise StationError(
            f"change: {measure!r}, {kind!r}, {parts!r}, {since!r}; expected one of {', '.join(MEASURES)}; one of "
            f"{', '.join(BETS)}; and two numbers of parts."
        )
    return Change(measure, kind, parts, since)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; NaN for too few values."""
    n = len(values)
    with np.errstate(over="ignore", invalid="ignore"):  # only the displayed chart can overflow; ranks and bets cannot
        return float(np.mean(values)) if n else math.nan, float(np.std(values, ddof=1)) if n > 1 else math.nan


class Drift:
    """The charts of one product since its last calibration.

    A new calibration needs a new `Drift`. After a restart of the station, `state` restores the references, and the
    change if one was found.
    """

    def __init__(
        self,
        scores: Sequence[float] = (),
        parts_per_alarm: float = 1e6,
        *,
        learn: int = 500,
        horizon: int = 100_000,
        weight: float = 0.1,
        seed: str = "",
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """`scores` of held-out good parts are the reference of the score; that of the others: the first `learn` values.

        A false alarm of any measure within N parts has a probability of at most N / `parts_per_alarm`. After `horizon`
        parts production is forgotten; the reference is kept. `weight` of a new value in the EWMA. `seed` of the ties.
        """
        if not (1 < parts_per_alarm < math.inf and learn > 1 and horizon > 1 and 0 < weight <= 1):
            raise StationError(
                f"parts_per_alarm = {parts_per_alarm}, learn = {learn}, horizon = {horizon}, weight = {weight}; "
                "expected numbers above 1, and a weight above 0 and at most 1."
            )
        learnt = (state or {}).get("references", {})
        known = {**learnt, **({"score": scores} if len(scores) else {})}
        unusable = [name for name, values in known.items() if name not in MEASURES or not np.isfinite(values).all()]
        if unusable:
            raise StationError(
                f"references of drift: {', '.join(unusable)}; expected finite numbers of {', '.join(MEASURES)}."
            )
        alarm = parts_per_alarm * len(MEASURES)
        self._fixed = ("score",) if len(scores) else ()
        self._charts = {
            name: Chart(name, known.get(name, ()), alarm, 0 if name in self._fixed else learn, horizon, weight, seed)
            for name in MEASURES
        }
        found = (state or {}).get("change")
        self.change = None if found is None else _change(**found)

    @classmethod
    def of(cls, calibration: Calibration, **settings: Any) -> "Drift":
        """Return the charts of a bundle.

        Only held-out scores of the bundle's own detector can be compared with production. If the calibration is crossed
        in folds, production is compared with its own beginning. Only one image of each part is used.
        """
        if calibration.folds:
            return cls((), **settings)
        first = dict(reversed(list(zip(calibration.part, calibration.scores, strict=True))))
        return cls(list(first.values()), **settings)

    def add(self, record: Mapping[str, Any]) -> Change | None:
        """Add the record of a production part, never of a challenge part; return the detected change, if any.

        The first change is kept in `change`. From its estimated start until `restart` nothing is learnt.
        """
        found = None
        for name, value in measured(record).items():
            found = self._charts[name].add(value, self.change is None) or found
        if found and self.change is None:
            self.change = found
            for chart in self._charts.values():
                chart.unlearn(found.since)
        return found

    def points(self) -> dict[str, Point]:
        """Return the last point of each chart that has one."""
        return {name: chart.point for name, chart in self._charts.items() if chart.point}

    def restart(self) -> None:
        """Begin the charts again, because the cause of a change was removed. The references stay."""
        for chart in self._charts.values():
            chart.restart()
        self.change = None

    def state(self) -> dict[str, Any]:
        """Return what must survive a restart: the references learnt from production, and the change."""
        references = {
            name: list(chart.reference)
            for name, chart in self._charts.items()
            if chart.reference and name not in self._fixed
        }
        return {"references": references, "change": self.change and self.change._asdict()}


def measured(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures that a record of `Workers` contains."""
    look, pose = record.get("appearance") or {}, record.get("registration") or {}
    values = (record.get("score"), look.get("mean"), look.get("sharpness"), pose.get("quality"))
    return {
        name: float(value)
        for name, value in zip(MEASURES, values, strict=True)
        if value is not None and math.isfinite(value)
    }

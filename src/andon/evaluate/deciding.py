"""Escapes and false rejects at the calibrated thresholds, and the promised false-reject rates."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Protocol

from andon.binomial import clopper_pearson
from andon.calibration import Unit, percent
from andon.inspection import Verdict
from andon.inspector import Inspector

Json = dict[str, Any]
ALARMS = {"review": (Verdict.REVIEW, Verdict.REJECT), "reject": (Verdict.REJECT,)}
"""Verdicts that stop a part, for each threshold."""


class Judged(Protocol):
    """A labelled image and its verdict."""

    @property
    def group(self) -> str:
        """The part, lot or session it shows."""
        ...

    @property
    def verdict(self) -> Verdict:
        """The verdict of the inspection."""
        ...

    @property
    def good(self) -> bool:
        """Whether the label is good."""
        ...


def decision_figures(inspector: Inspector, rows: Sequence[Judged], unit: Unit) -> Json:
    """Escapes and false rejects at the calibrated thresholds, and the promised false-reject rates.

    The promised rate is null when it holds for another unit than that of the rows, or the threshold was set by hand.
    """
    decision, calibration = inspector.decision, inspector.calibration
    thresholds = {
        "review": (inspector.thresholds.review, decision.review_rate, decision.review_threshold),
        "reject": (inspector.thresholds.reject, decision.reject_rate, decision.reject_threshold),
    }
    figures = {}
    for name, (threshold, rate, by_hand) in thresholds.items():
        stated = by_hand is None and unit == decision.per and math.isfinite(threshold)
        promised = max(rate, calibration.supported_rate)
        interval = list(calibration.long_run(promised, unit) or ()) or None if stated else None
        figures[name] = {
            "threshold": threshold if math.isfinite(threshold) else None,
            "promised_rate": promised if stated else None,
            "long_run": interval,
            "by_hand": by_hand is not None,
            "false_rejects": rate_of([row.verdict in ALARMS[name] for row in rows if row.good]),
            "false_rejects_per_part": _share_of_parts(rows, name),
            "escapes": escapes(rows, name),
        }
    return figures


def _share_of_parts(rows: Sequence[Judged], threshold: str) -> Json:
    """The mean over good parts of the share of their images that are stopped, with an interval for parts.

    The interval is conservative, because the count is rounded outwards: Hoeffding, "Probability inequalities for sums
    of bounded random variables", JASA 1963, bounds such a mean by a binomial.
    """
    stopped: dict[str, list[bool]] = {}
    for row in rows:
        if row.good:
            stopped.setdefault(row.group, []).append(row.verdict in ALARMS[threshold])
    total, n = sum(fmean(flags) for flags in stopped.values()), len(stopped)
    interval = [clopper_pearson(math.floor(total + 1e-9), n)[0], clopper_pearson(math.ceil(total - 1e-9), n)[1]]
    return {"count": total, "n": n, "rate": total / n if n else None, "interval": interval}


def promised_unit(figures: Json) -> tuple[str, Json]:
    """The unit of the promised rates, "images" or "parts", and the figures of the decision in this unit."""
    if figures["groups"] and figures["decision_per"] == "part":
        return "parts", figures["groups"]["decision"]
    return "images", figures["decision"]


def escapes(rows: Sequence[Judged], threshold: str) -> Json:
    """The rate of defective images that are not stopped at a threshold, as `rate_of`."""
    return rate_of([row.verdict not in ALARMS[threshold] for row in rows if not row.good])


def rate_of(cases: Sequence[bool]) -> Json:
    """Count, total, rate and exact 95 % interval of the true cases."""
    k, n = sum(cases), len(cases)
    return {"count": k, "n": n, "rate": k / n if n else None, "interval": list(clopper_pearson(k, n))}


def in_words(rate: Json) -> str:
    """Format a rate of `rate_of` for people: count, percentage and interval."""
    if not rate["n"]:
        return "0 of 0"
    low, high = map(percent, rate["interval"])
    return f"{rate['count']} of {rate['n']} ({percent(rate['rate'])}, 95 % interval {low} to {high})"

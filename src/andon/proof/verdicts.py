"""Verdicts of a table → rates and kappas of each rater, with REVIEW counted as stopped and as passed.

A rater is an appraiser in one condition. INVALID always stops the part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from andon.errors import DatasetError, few
from andon.inspection import Verdict
from andon.proof import agreement
from andon.proof.agreement import Counts, Kappa, Rate, Share
from andon.proof.table import Row, Table

MOST_RATERS = 50
MOST_PAIRED = 6  # greatest number of raters whose pairs are compared
TOGETHER = "all together"
REVIEW = ("stopped", "passed")


@dataclass(frozen=True)
class Scope:
    """The verdicts of one rater, or of all together."""

    rater: str
    presentations: int
    effectiveness: Rate | None  # None without references
    miss_rate: Rate | None  # None without defective parts
    false_alarm_rate: Rate | None  # None without good parts
    reference: Kappa | None  # Cohen's, against the reference; None without references
    alike: Share  # parts whose verdicts are all equal, among parts with several
    kappa: Kappa  # Fleiss': repeatability of one rater, reproducibility of all


@dataclass(frozen=True)
class Pair:
    """Two raters; the verdicts of the same trial of the same part are compared."""

    first: str
    second: str
    kappa: Kappa


@dataclass(frozen=True)
class Agreement:
    """All figures for one way to count REVIEW."""

    review: str  # stopped, passed; "" if no verdict is REVIEW
    scopes: tuple[Scope, ...]  # each rater, and all together if there are several
    pairs: tuple[Pair, ...]


def rater(row: Row) -> str:
    """Name of the appraiser, and of the condition if there is one."""
    return " · ".join(name for name in (row.appraiser, row.condition) if name) or "not named"


def raters(table: Table) -> tuple[str, ...]:
    """All raters, in the order of the file. DatasetError for more than MOST_RATERS."""
    names = tuple(dict.fromkeys(map(rater, table.rows)))
    if len(names) > MOST_RATERS:
        raise DatasetError(
            f"{table.name}: {len(names)} appraisers and conditions; expected at most {MOST_RATERS}. "
            "Number the presentations in the column trial; use the column condition only for deliberate changes."
        )
    return names


def compare(table: Table, level: float) -> tuple[Agreement, ...]:
    """Compare verdicts with references and with each other, for each way to count REVIEW.

    Errors: DatasetError when some parts have a reference and others none.
    """
    references = list(table.parts.values())
    missing = [part for part, reference in table.parts.items() if not reference]
    if 0 < len(missing) < len(references):
        raise DatasetError(
            f"{table.name}: {len(missing)} of {len(references)} parts have no reference: {few(missing)}; expected one "
            "for every part, or for none. Let experts judge these parts. If difficult parts are left out, the result "
            "is too good."
        )
    reviewed = any(row.verdict is Verdict.REVIEW for row in table.rows)
    return tuple(_agreement(table, review, level) for review in (REVIEW if reviewed else ("",)))


def _agreement(table: Table, review: str, level: float) -> Agreement:
    passing = {Verdict.PASS, Verdict.REVIEW} if review == "passed" else {Verdict.PASS}
    names, parts = raters(table), {part: j for j, part in enumerate(table.parts)}
    place, who = {name: j for j, name in enumerate(names)}, [rater(row) for row in table.rows]
    counts = np.zeros((len(parts), len(names), 2), np.int64)  # passed, stopped
    stopped = [row.verdict not in passing for row in table.rows]
    for row, name, stop in zip(table.rows, who, stopped, strict=True):
        counts[parts[row.part], place[name], int(stop)] += 1
    good = np.array([reference == "good" for reference in table.parts.values()]) if any(table.parts.values()) else None
    scopes = [_scope(name, counts[:, j], good, level) for j, name in enumerate(names)]
    if len(names) > 1:
        scopes.append(_scope(TOGETHER, counts.sum(axis=1), good, level))
    return Agreement(review, tuple(scopes), _pairs(table, names, who, stopped, level))


def _scope(name: str, counts: Counts, good: NDArray[np.bool_] | None, level: float) -> Scope:
    """Figures of counts (parts, 2) of passed and stopped presentations; `good` (parts,), if there are references."""
    shown = counts.sum(axis=1) > 0
    counts, total = counts[shown], counts[shown].sum(axis=1)
    several = counts[total > 1]
    rates: dict[str, Rate | None] = dict.fromkeys(("effectiveness", "miss_rate", "false_alarm_rate"))
    reference = None
    if good is not None:
        good = good[shown]
        right = np.where(good, counts[:, 0], counts[:, 1])
        rates["effectiveness"] = agreement.rate(right, total, level, wrong=False)
        for key, chosen in (("miss_rate", ~good), ("false_alarm_rate", good)):
            if chosen.any():
                rates[key] = agreement.rate((total - right)[chosen], total[chosen], level)
        cells = np.zeros((len(good), 4), np.int64)
        cells[good, :2], cells[~good, 2:] = counts[good], counts[~good]
        reference = agreement.cohen(cells, level)
    return Scope(
        name,
        int(total.sum()),
        **rates,
        reference=reference,
        alike=agreement.share(int((several.min(axis=1) == 0).sum()), len(several), level),
        kappa=agreement.fleiss(counts, level),
    )


def _pairs(
    table: Table, names: Sequence[str], who: Sequence[str], stopped: Sequence[bool], level: float
) -> tuple[Pair, ...]:
    if not 2 <= len(names) <= MOST_PAIRED:
        return ()
    trials: dict[str, dict[tuple[str, str], bool]] = {name: {} for name in names}
    for row, name, stop in zip(table.rows, who, stopped, strict=True):
        trials[name][row.part, row.trial] = stop
    parts = {part: j for j, part in enumerate(table.parts)}
    pairs = []
    for first, second in combinations(names, 2):
        cells = np.zeros((len(parts), 4), np.int64)
        for trial in trials[first].keys() & trials[second].keys():
            cells[parts[trial[0]], 2 * trials[first][trial] + trials[second][trial]] += 1
        pairs.append(Pair(first, second, agreement.cohen(cells, level)))
    return tuple(pairs)

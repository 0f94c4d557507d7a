"""Acceptance of an inspection: agreed rates, tested on parts whose truth is known. After VDI/VDE/VDMA 2632-3.

A claim is a rate that two parties agreed on: the slip of one kind of defect, or the false rejects. It is
- proved when the one-sided upper bound of the rate is at most the agreed rate,
- refuted when the one-sided lower bound is above it,
- not proved otherwise.
Bounds are Clopper and Pearson's; the unit is the part. A part that was presented several times fails for the upper
bound when any of its presentations fails, and for the lower bound when all of them fail. Both bounds are conservative:
the rate of a single presentation lies between them.

A limit sample is a part chosen by the parties, with the verdict that it must get at each presentation. It is not drawn
at random, so it does not count in any rate.
"""

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

import andon
from andon import files, pages
from andon.bundle import Bundle
from andon.errors import DatasetError, few, unknown
from andon.inspection import Verdict
from andon.proof import bounds, plans
from andon.proof.contract import Agreement, load
from andon.proof.plans import share
from andon.proof.table import Row, Table
from andon.proof.table import read as read_table

LISTED = 5  # parts listed in a message
SHOWN = 200  # failed presentations listed on the page


class Outcome(StrEnum):
    """The result of a claim."""

    PROVED = "proved"
    NOT_PROVED = "not proved"
    REFUTED = "refuted"


@dataclass(frozen=True)
class Claim:
    """An agreed rate, and its result on the parts."""

    name: str  # slip of scratch; false rejects
    failure: str  # of a part: passed, were stopped
    agreed: float
    parts: int
    failed: int  # parts that failed in one presentation or more
    always_failed: int  # parts that failed in every presentation
    upper: float  # bound of the rate
    lower: float
    allowed: int  # greatest number of failed parts that proves the claim with these parts; −1: too few parts
    more: tuple[int, ...]  # parts to add if none, one or two of them fail; empty when proved or refuted

    @property
    def outcome(self) -> Outcome:
        """Proved, refuted or neither."""
        if self.upper <= self.agreed:
            return Outcome.PROVED
        return Outcome.REFUTED if self.lower > self.agreed else Outcome.NOT_PROVED

    def text(self) -> str:
        """The claim and its outcome in words."""
        counts = f"{self.failed} of {self.parts} parts {self.failure}"
        if self.always_failed < self.failed:
            counts += f" at least once, {self.always_failed} in every presentation"
        words = f"{self.name} ≤ {share(self.agreed)}: {self.outcome}. {counts}; "
        if self.outcome is Outcome.REFUTED:
            return words + f"the rate is at least {share(self.lower)}."
        words += f"the rate is at most {share(self.upper)}."
        if not self.more:
            return words
        return words + f" A proof needs more parts: {self.more[0]} if none of them fails, {self.more[1]} if one fails."


class Limit(NamedTuple):
    """A limit sample, and its presentations."""

    part: str
    expected: str
    presentations: int
    wrong: int

    @property
    def outcome(self) -> Outcome:
        """Proved when each presentation had the expected verdict; not proved when there was none."""
        if not self.presentations:
            return Outcome.NOT_PROVED
        return Outcome.REFUTED if self.wrong else Outcome.PROVED

    def text(self) -> str:
        """The limit sample and its outcome in words."""
        words = f"limit sample '{self.part}' must be {self.expected}: "
        if not self.presentations:
            return words + "not shown; it is not in the table."
        return words + f"{self.presentations - self.wrong} of {self.presentations} presentations correct."


@dataclass(frozen=True)
class Acceptance:
    """The result of an agreement on its samples."""

    agreement: Agreement
    source: str  # path of the agreement
    digest: str  # SHA-256 of that file
    table: Table
    appraiser: str
    bundle: str  # digest of the bundle that gave the verdicts, "" if the table has none
    decision: str  # digest of the decision that gave them, "" if the table has none
    made: str  # date and time, UTC
    claims: tuple[Claim, ...]
    limits: tuple[Limit, ...]
    failures: tuple[Row, ...]  # presentations that failed a claim or a limit sample
    open: tuple[str, ...]  # sentences: what the samples do not show

    @property
    def outcome(self) -> Outcome:
        """Proved when all is proved; refuted when anything is refuted."""
        outcomes = {each.outcome for each in self.claims} | {each.outcome for each in self.limits}
        if Outcome.REFUTED in outcomes:
            return Outcome.REFUTED
        return Outcome.NOT_PROVED if Outcome.NOT_PROVED in outcomes else Outcome.PROVED

    def text(self) -> str:
        """The acceptance in words, for a terminal."""
        lines = [claim.text() for claim in self.claims] + [limit.text() for limit in self.limits]
        return "\n".join([f"{self.outcome} at {share(self.agreement.confidence)} confidence", *lines])

    def record(self) -> dict[str, Any]:
        """The acceptance as plain data."""
        return {
            "andon": andon.__version__,
            "made": self.made,
            "outcome": self.outcome.value,
            "agreement": {"file": self.source, "digest": self.digest, **self.agreement.model_dump(mode="json")},
            "samples": {"file": self.table.name, "digest": self.table.digest, "appraiser": self.appraiser},
            "bundle": self.bundle,
            "decision": self.decision,
            "claims": [{**asdict(claim), "outcome": claim.outcome.value} for claim in self.claims],
            "limit_samples": [{**limit._asdict(), "outcome": limit.outcome.value} for limit in self.limits],
            "failures": [row._asdict() for row in self.failures],
            "not_shown": list(self.open),
        }


def accept(path: str | Path) -> Acceptance:
    """Test an agreement on its samples.

    Errors: those of `contract.load`, `table.read` and `Bundle.load`; DatasetError when references are missing, when the
    table contains several appraisers, bundles or decisions, another bundle than agreed or another decision than that of
    this bundle, or pictures that the bundle learnt from.
    """
    agreement, digest = load(path)
    table = read_table(agreement.samples, agreement.fields)
    appraiser, rows = _judged(agreement, table)
    bundle, decision = (_one(table, rows, name) for name in ("bundle", "decision"))
    if agreement.bundle:
        _compare(agreement.bundle, bundle, decision, table, rows)
    presented: dict[str, list[Row]] = {}
    for row in rows:
        presented.setdefault(row.part, []).append(row)
    limits, failures = [], []
    for sample in agreement.limit_samples:
        shown = presented.pop(sample.part, [])
        wrong = [row for row in shown if agreement.stops(row.verdict) != (sample.expected == "stopped")]
        limits.append(Limit(sample.part, sample.expected, len(shown), len(wrong)))
        failures += wrong
    _need_references(table, presented)
    claims = []
    agreed = [(f"slip of {kind}", kind, "passed", rate) for kind, rate in agreement.slip.items()]
    if agreement.false_rejects is not None:
        agreed.append(("false rejects", "good", "were stopped", agreement.false_rejects))
    for name, reference, failure, rate in agreed:
        parts = [shown for shown in presented.values() if shown[0].reference == reference]
        failed = [[row for row in shown if agreement.stops(row.verdict) == shown[0].good] for shown in parts]
        always = sum(len(wrong) == len(shown) for wrong, shown in zip(failed, parts, strict=True))
        claims.append(claim(name, failure, rate, (len(parts), sum(map(bool, failed)), always), agreement.each))
        failures += [row for wrong in failed for row in wrong]
    return Acceptance(
        agreement,
        str(path),
        digest,
        table,
        appraiser,
        bundle,
        decision,
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tuple(claims),
        tuple(limits),
        tuple(failures),
        tuple(_open(agreement, rows, presented)),
    )


def claim(name: str, failure: str, agreed: float, counts: tuple[int, int, int], confidence: float) -> Claim:
    """Judge a claim. `counts`: parts, parts that failed at least once, parts that always failed."""
    parts, failed, always = counts
    upper = bounds.upper_rate(failed, parts, confidence)
    lower = bounds.lower_rate(always, parts, confidence)
    open_ = upper > agreed >= lower
    more = [bounds.smallest_sample(failed + j, agreed, confidence) - parts for j in range(3)] if open_ else []
    allowed = bounds.allowed(parts, agreed, confidence)
    return Claim(name, failure, agreed, parts, failed, always, upper, lower, allowed, tuple(more))


def _judged(agreement: Agreement, table: Table) -> tuple[str, list[Row]]:
    """The appraiser whose verdicts are judged, and these rows."""
    chosen = agreement.appraiser or table.appraisers[0]
    if chosen not in table.appraisers:
        raise DatasetError(f"{table.name}: {unknown('appraiser', chosen, table.appraisers)}")
    if not agreement.appraiser and len(table.appraisers) > 1:
        raise DatasetError(
            f"{table.name}: verdicts of {len(table.appraisers)} appraisers: {few(table.appraisers, LISTED)}; expected "
            "those of one. Name one in the agreement: appraiser = ..."
        )
    return chosen, [row for row in table.rows if row.appraiser == chosen]


def _one(table: Table, rows: list[Row], name: str) -> str:
    """The digest of the bundle or decision that gave the verdicts; "" if none is named."""
    digests = list(dict.fromkeys(digest for row in rows if (digest := getattr(row, name))))
    if len(digests) > 1:
        raise DatasetError(
            f"{table.name}: verdicts of {len(digests)} {name}s: {few([each[:12] for each in digests], LISTED)}; "
            f"expected those of the {name} to accept. Remove the other rows."
        )
    return digests[0] if digests else ""


def _compare(path: str, digest: str, decision: str, table: Table, rows: list[Row]) -> None:
    """Refuse verdicts of another bundle, or of another decision than its own, and pictures that it learnt from."""
    bundle = Bundle.load(path)
    if digest != bundle.digest():
        problem = f"the verdicts are of bundle {digest[:12]}" if digest else "the verdicts name no bundle"
        raise DatasetError(
            f"{table.name}: {problem}; expected bundle {bundle.digest()[:12]}, {path}. Inspect the parts with this "
            "bundle."
        )
    own = bundle.calibration.decision_digest(bundle.recipe.decision)
    if decision not in ("", own):
        raise DatasetError(
            f"{table.name}: the verdicts are of decision {decision[:12]}, with other rates or thresholds than the "
            f"bundle; expected its own, {own[:12]}, {path}. Inspect the parts with the bundle as it is, or store the "
            "decision in it first, with `andon calibrate`."
        )
    learnt = bundle.manifest.learnt_from(row.digest for row in rows)
    if any(learnt):
        raise DatasetError(
            f"{table.name}: the bundle learnt from {sum(learnt)} of these {len(rows)} pictures; expected parts that it "
            "has never seen. Remove those rows."
        )


def _need_references(table: Table, presented: Mapping[str, list[Row]]) -> None:
    without = [part for part, shown in presented.items() if not shown[0].reference]
    if without:
        raise DatasetError(
            f"{table.name}: {len(without)} parts have no reference: {few(without, LISTED)}; expected good or the "
            "kind of defect for each part, except limit samples. Let experts judge these parts, or remove them."
        )


def _open(agreement: Agreement, rows: list[Row], presented: Mapping[str, list[Row]]) -> list[str]:
    """Sentences: what the samples do not show."""
    sentences = []
    kinds = dict.fromkeys(shown[0].reference for shown in presented.values())
    agreed = {*agreement.slip, *(["good"] if agreement.false_rejects is not None else [])}
    for kind in kinds:
        if kind not in agreed:
            count = sum(shown[0].reference == kind for shown in presented.values())
            sentences.append(f"{count} parts with the reference {kind} do not count: no rate is agreed for it.")
    if not agreement.bundle:
        sentences.append("The agreement names no bundle. It is not shown that the bundle did not learn these pictures.")
    if nameless := sum(not row.bundle for row in rows):
        sentences.append(
            f"{nameless} of {len(rows)} verdicts have no digest of a bundle. It is not shown which bundle gave them."
        )
    if undecided := sum(bool(row.bundle) and not row.decision for row in rows):
        sentences.append(
            f"{undecided} of {len(rows)} verdicts have no digest of a decision. It is not shown which thresholds gave "
            "them."
        )
    if undigested := sum(not row.digest for row in rows):
        sentences.append(
            f"{undigested} of {len(rows)} verdicts have no digest of a picture. It is not shown that each is a new "
            "presentation."
        )
    if invalid := sum(row.verdict is Verdict.INVALID for row in rows):
        sentences.append(
            f"{invalid} presentations are INVALID and count as stopped: the part was not found, or the picture not "
            "read."
        )
    missing = [what for what in ("parties", "date", "run_by", "references_by") if not getattr(agreement, what)]
    if missing:
        sentences.append(f"The agreement has no entry for: {', '.join(missing)}.")
    return sentences


def html(acceptance: Acceptance) -> bytes:
    """Make the page. All names are escaped."""
    curves = [
        Markup(plans.characteristic(claim.name, claim.agreed, [(claim.allowed, claim.parts)]))
        if claim.allowed >= 0
        else ""
        for claim in acceptance.claims
    ]
    presentations: dict[str, int] = {}
    for row in acceptance.table.rows:
        if row.appraiser == acceptance.appraiser:
            presentations[row.part] = presentations.get(row.part, 0) + 1
    return pages.render(
        "proof_acceptance.html",
        acceptance=acceptance,
        agreement=acceptance.agreement,
        claims=list(zip(acceptance.claims, curves, strict=True)),
        conditions=sorted({row.condition for row in acceptance.table.rows if row.condition}),
        presentations=(min(presentations.values()), max(presentations.values())),
        parts=len(presentations),
        failures=acceptance.failures[:SHOWN],
        share=share,
        version=andon.__version__,
    )


def write(acceptance: Acceptance, folder: str | Path) -> Path:
    """Write `acceptance.json` and `acceptance.html` into a folder, which is created if missing; return the page."""
    folder = Path(folder)
    files.make_folder(folder)
    page = html(acceptance)
    files.write(folder / "acceptance.json", files.strict_json(acceptance.record(), indent=1).encode())
    files.write(folder / "acceptance.html", page)
    return folder / "acceptance.html"

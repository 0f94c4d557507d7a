"""Measurement system analysis of an inspection: verdicts and scores of a table, compared with limits, as a report."""

import math
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

import andon
from andon import files, pages
from andon.bundle import Bundle
from andon.calibration import percent
from andon.errors import AndonError
from andon.evaluate import plots
from andon.evaluate.plots import Band, Cut
from andon.inspection import Verdict
from andon.proof import bounds, scores, verdicts
from andon.proof import limits as settings
from andon.proof.agreement import Kappa, Rate, Share
from andon.proof.limits import AT_MOST, Limit, Limits
from andon.proof.scores import Scale
from andon.proof.table import Table
from andon.proof.verdicts import Agreement

LISTED = 500  # rows on the page; msa.json has all
NEAREST = 25  # parts on the page with their distance from the threshold
DESIGN = (50, 3, 3)  # parts, appraisers, trials of AIAG's example
NEAR = 3.0  # repeatability sigmas: parts nearer to a threshold are borderline
RATES = {"effectiveness": "correct", "miss_rate": "missed", "false_alarm_rate": "false alarms"}


@dataclass(frozen=True)
class Finding:
    """One figure compared with one limit."""

    quantity: str
    scope: str  # rater, "all together", a pair of raters, a bundle
    review: str  # how REVIEW was counted; "" if that makes no difference
    seen: str  # the estimate, in words
    limit: Limit
    at_most: bool
    grade: str  # acceptable, marginal, unacceptable
    bound: str  # in words
    shown: str  # demonstrated, demonstrated for these parts only, not demonstrated
    takes: str  # parts that a demonstration needs; "" if it is demonstrated, or not acceptable

    def sentence(self) -> str:
        """The finding as one line."""
        counted = f", REVIEW counted as {self.review}" if self.review else ""
        takes = f"; {self.takes}" if self.takes else ""
        held = f"{self.grade} ({'≤' if self.at_most else '≥'} {self.limit.acceptable:g})"
        return f"{self.quantity}, {self.scope}{counted}: {self.seen}: {held}; {self.bound}: {self.shown}{takes}"


@dataclass(frozen=True)
class Study:
    """The results of a measurement system analysis."""

    table: Table
    limits: Limits
    level: float
    agreements: tuple[Agreement, ...]
    scales: tuple[Scale, ...]
    findings: tuple[Finding, ...]
    missing: tuple[str, ...]  # sentences: what was not shown, and why
    by: str
    bundle: Bundle | None
    limits_source: str  # file; "" for the defaults
    made: str  # UTC
    versions: dict[str, str]

    @property
    def failed(self) -> bool:
        """Whether a figure is unacceptable."""
        return any(finding.grade == "unacceptable" for finding in self.findings)

    def headline(self) -> str:
        """How many figures are acceptable, and how many of them are demonstrated."""
        grades = Counter(finding.grade for finding in self.findings)
        shown = sum(finding.shown == "demonstrated" for finding in self.findings)
        if not self.findings:
            return "No figure could be compared with a limit."
        counts = ", ".join(f"{grades[g]} {g}" for g in ("acceptable", "marginal", "unacceptable") if grades[g])
        return f"Of {len(self.findings)} figures: {counts}. Demonstrated at {percent(self.level)}: {shown}."

    def text(self) -> str:
        """The findings, and what was not shown, for a terminal."""
        lines = [self.headline(), *(finding.sentence() for finding in self.findings), "Not shown:", *self.missing]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Everything as plain data, with the digest of each picture."""
        return {
            "made": self.made,
            "by": self.by,
            "versions": self.versions,
            "table": {"name": self.table.name, "digest": self.table.digest, "rows": len(self.table.rows)},
            "bundles": list(self.table.bundles),
            "decisions": list(self.table.decisions),
            "level": self.level,
            "limits": {"source": self.limits_source, **self.limits.model_dump()},
            "headline": self.headline(),
            "findings": [asdict(f) | {"limit": f.limit.model_dump()} for f in self.findings],
            "agreement": [asdict(each) for each in self.agreements],
            "scores": [asdict(each) for each in self.scales],
            "not_shown": list(self.missing),
            "presentations": [row._asdict() for row in self.table.rows],
        }


def study(
    table: Table,
    limits: Path | None = None,
    by: str = "",
    bundle: Path | None = None,
    threshold: float | None = None,
    level: float = 0.95,
) -> Study:
    """Analyse a table.

    Errors: of `limits.load`, `verdicts.compare`, `scores.scales`; AndonError for another bundle, or another decision
    than that of the bundle.
    """
    if not 0.5 <= level < 1:
        raise AndonError(f"level {level}; expected a confidence from 0.5 to below 1, such as 0.95. Correct it.")
    known = settings.load(limits)
    loaded = Bundle.load(bundle) if bundle else None
    if loaded and table.bundles and loaded.digest() not in table.bundles:
        raise AndonError(
            f"{bundle}: digest {loaded.digest()[:12]}; the verdicts of {table.name} come from "
            f"{', '.join(digest[:12] for digest in table.bundles)}. Name the bundle that gave them."
        )
    own = loaded.calibration.decision_digest(loaded.recipe.decision) if loaded else ""
    if loaded and table.decisions and own not in table.decisions:
        raise AndonError(
            f"{bundle}: its decision is {own[:12]}; the verdicts of {table.name} come from "
            f"{', '.join(digest[:12] for digest in table.decisions)}, with other rates or thresholds. Inspect the "
            "parts with the bundle as it is, or store the decision in it first, with `andon calibrate`."
        )
    agreements = verdicts.compare(table, level)
    scales = scores.scales(table, level, threshold)
    findings = (*_of_verdicts(agreements, known, level), *_of_scores(scales, known))
    missing = tuple(_missing(table, agreements, scales, by, loaded))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    source = str(limits) if limits else ""
    versions = {"andon": andon.__version__, "python": platform.python_version(), "numpy": np.__version__}
    return Study(table, known, level, agreements, scales, findings, missing, by, loaded, source, made, versions)


def write(study: Study, folder: Path) -> Path:
    """Write `msa.json` and `msa.html` into a folder, which is created if missing; return the page."""
    page = html(study)
    files.make_folder(folder)
    files.write(folder / "msa.json", files.strict_json(study.record(), indent=1).encode())
    files.write(folder / "msa.html", page)
    return folder / "msa.html"


def html(study: Study) -> bytes:
    """Make the page."""
    return pages.render(
        "proof_msa.html",
        study=study,
        table=study.table,
        references=Counter(reference or "no reference" for reference in study.table.parts.values()),
        pictures=_pictures(study.table),
        scales=[(scale, Markup(_histogram(study.table, scale))) for scale in study.scales],
        rates=RATES,
        rows=study.table.rows[:LISTED],
        raters=[verdicts.rater(row) for row in study.table.rows[:LISTED]],
        at_most=AT_MOST,
        near=NEAR,
        nearest=NEAREST,
        rate=rate_words,
        kappa=kappa_words,
    )


def rate_words(share: Share) -> str:
    """A rate with its counts."""
    return f"{share.cases}/{share.n}" + (f" ({percent(share.value)})" if share.value is not None else "")


def kappa_words(kappa: Kappa) -> str:
    """A kappa, or `undefined`."""
    return f"{kappa.value:.3f}" if kappa.value is not None else "undefined"


def _of_verdicts(agreements: Sequence[Agreement], limits: Limits, level: float) -> Iterator[Finding]:
    for agreement in agreements:
        for scope in agreement.scopes:
            for name in RATES:
                found: Rate | None = getattr(scope, name)
                if found is not None:
                    yield _rate(name, found, scope.rater, agreement.review, getattr(limits, name), level)
            own = "kappa of reproducibility" if scope.rater == verdicts.TOGETHER else "kappa of repeatability"
            for quantity, kappa in (("kappa against the reference", scope.reference), (own, scope.kappa)):
                if kappa and kappa.parts:
                    yield from _kappa(quantity, kappa, scope.rater, agreement.review, limits)
        for pair in agreement.pairs:
            if pair.kappa.parts:
                yield from _kappa("kappa of two", pair.kappa, f"{pair.first} | {pair.second}", agreement.review, limits)


def _rate(name: str, found: Rate, scope: str, review: str, limit: Limit, level: float) -> Finding:
    at_most, share = name in AT_MOST, found.presentations
    these, like = (found.upper, found.upper_like) if at_most else (found.lower, found.lower_like)
    reached = [bound <= limit.acceptable if at_most else bound >= limit.acceptable for bound in (these, like)]
    only = "demonstrated for these parts only"
    shown = "demonstrated" if reached[1] else only if reached[0] else "not demonstrated"
    quality, takes = settings.grade(name, limit, share.value or 0.0), ""
    if shown != "demonstrated" and quality == "acceptable":
        takes = _takes(found, at_most, limit, level)
    side = "at most" if at_most else "at least"
    bound = f"{side} {percent(these)} of presentations of these parts, {percent(like)} of parts like these"
    quantity = name.replace("_", " ")
    seen = f"{rate_words(share)} of presentations, {rate_words(found.parts)} of parts"
    return Finding(quantity, scope, review, seen, limit, at_most, quality, bound, shown, takes)


def _takes(found: Rate, at_most: bool, limit: Limit, level: float) -> str:
    """Say how many parts demonstrate the limit, if no further presentations are wrong."""
    share, parts = found.presentations, found.parts
    wrong = share.cases if at_most else share.n - share.cases
    allowed = limit.acceptable if at_most else 1 - limit.acceptable
    if not 0 < allowed < 1:
        return "no number of parts demonstrates a rate of exactly 0"
    wrong_parts = parts.cases if at_most else parts.n - parts.cases
    these, like = (bounds.smallest_sample(cases, allowed, level) for cases in (wrong, wrong_parts))
    return f"needed: {like} parts with {wrong_parts} wrong; for these parts, {these} presentations with {wrong} wrong"


def _kappa(quantity: str, found: Kappa, scope: str, review: str, limits: Limits) -> Iterator[Finding]:
    for limit in (limits.kappa, limits.kappa_strict):
        if found.value is None:
            continue
        grade = settings.grade("kappa", limit, found.value)
        shown = "demonstrated" if found.lower >= limit.acceptable else "not demonstrated"
        bound = f"at least {found.lower:.3f} of parts like these"
        yield Finding(quantity, scope, review, f"{found.value:.3f}", limit, False, grade, bound, shown, "")


def _of_scores(scales: Sequence[Scale], limits: Limits) -> Iterator[Finding]:
    for scale in scales:
        found = scale.gauge
        if found is None or math.isnan(found.share):
            continue
        scope = f"bundle {scale.bundle[:12]}" if scale.bundle else "scores"
        high, low = found.share_interval[1], found.ndc_interval[0]
        for name, quantity, seen, value, reached, bound in (
            ("grr", "%GRR", percent(found.share), found.share, high, f"at most {percent(high)}"),
            (
                "ndc",
                "distinct categories",
                str(found.ndc or "unbounded"),
                found.ndc or math.inf,
                low,
                f"at least {low:.1f}",
            ),
        ):
            limit: Limit = getattr(limits, name)
            held = reached <= limit.acceptable if name in AT_MOST else reached >= limit.acceptable
            shown = "demonstrated" if held else "not demonstrated"
            grade = settings.grade(name, limit, value)
            yield Finding(quantity, scope, "", seen, limit, name in AT_MOST, grade, bound, shown, "")


def _missing(
    table: Table, agreements: Sequence[Agreement], scales: Sequence[Scale], by: str, bundle: Bundle | None
) -> Iterator[str]:
    """Sentences: what the table does not show."""
    raters, references = verdicts.raters(table), set(table.parts.values())
    if references == {""}:
        yield "Effectiveness, misses and false alarms: no part has a reference."
    elif references == {"good"}:
        yield "Misses: no part is defective, so kappa against the reference has no meaning."
    elif "good" not in references:
        yield "False alarms: no part is good, so kappa against the reference has no meaning."
    per_part = Counter(Counter((row.part, verdicts.rater(row)) for row in table.rows).values())
    if max(per_part) == 1:
        yield "Repeatability: no part was presented twice to one appraiser in one condition."
    if len(raters) == 1:
        yield "Reproducibility: there is one appraiser in one condition."
    if len(per_part) > 1 or sum(per_part.values()) < len(raters) * len(table.parts):
        sizes = ", ".join(f"{n} with {size}" for size, n in sorted(per_part.items()))
        absent = len(raters) * len(table.parts) - sum(per_part.values())
        yield (
            f"The trials are not balanced. Pairs of part and appraiser by their number of presentations: {sizes}; "
            f"{absent} with none. A part with more presentations has more weight in rates of presentations, and is "
            "more often wrong in rates of parts. In intervals of parts like these, all parts have equal weight."
        )
    if any(scope.kappa.value is None and scope.kappa.parts for found in agreements for scope in found.scopes):
        yield "Some kappas are undefined: all verdicts are equal, so the agreement expected by chance is complete."
    if len(table.parts) < DESIGN[0] or len(raters) < DESIGN[1] or max(per_part) < DESIGN[2]:
        yield (
            f"{len(table.parts)} parts, {len(raters)} appraisers or conditions, up to {max(per_part)} trials: fewer "
            f"than the {DESIGN[0]} × {DESIGN[1]} × {DESIGN[2]} of AIAG's example."
        )
    if not scales:
        yield "Gauge R&R and distances from the threshold: no row has a score."
    for scale in scales:
        name = f" (bundle {scale.bundle[:12]})" if len(scales) > 1 else ""
        yield from (f"{sentence[0].upper()}{sentence[1:]}{name}." for sentence in scale.missing)
        if scale.left_out and scale.gauge:
            yield f"Gauge R&R{name}: {scale.left_out} parts with missing scores are left out."
        if scale.distances:
            near = sum(distance.nearest <= NEAR for distance in scale.distances)
            yield (
                f"Borderline parts{name}: {near} of {len(scale.distances)} lie within {NEAR:g} repeatability sigmas of "
                "a threshold; AIAG asks for 30 to 50 % of such parts. With fewer, the agreement looks better than it "
                "is."
            )
    if len(scales) > 1:
        yield f"The scores come from {len(scales)} bundles: their units differ, so each bundle is analysed separately."
    decided: dict[str, set[str]] = {}
    for row in table.rows:
        decided.setdefault(verdicts.rater(row), set()).add(row.decision)
    for rater in (rater for rater, digests in decided.items() if len(digests - {""}) > 1):
        yield (
            f"The verdicts of {rater} come from {len(decided[rater] - {''})} decisions: its rates and its "
            "repeatability include the change of the thresholds. Analyse each decision separately."
        )
    if undecided := sum(bool(row.bundle) and not row.decision for row in table.rows):
        yield f"{undecided} verdicts name a bundle and no decision: it is not shown which thresholds gave them."
    if table.shared:
        yield (
            f"{table.shared} pictures were judged by several appraisers: their agreement does not include the "
            "variation of presentations."
        )
    if table.undigested:
        yield f"{table.undigested} scores have no digest of a picture: it is not shown that each is a new presentation."
    if unseen := sum(not row.digest and math.isnan(row.score) for row in table.rows):
        yield f"{unseen} verdicts have neither picture nor score: it is not shown that each is a new presentation."
    if invalid := sum(row.verdict is Verdict.INVALID for row in table.rows):
        yield f"{invalid} presentations are INVALID or could not be inspected; they count as stopped."
    if bundle:
        learnt = sum(bundle.manifest.learnt_from(row.digest for row in table.rows if row.digest))
        if learnt:
            yield f"{learnt} pictures were used to train the bundle: their scores are too low."
        if not table.bundles:
            yield "The table names no bundle: it is not shown that the verdicts come from the bundle named by --bundle."
    elif not table.bundles:
        yield "The bundle that gave the verdicts: neither the table nor --bundle names one."
    if not by:
        yield "The person who made the study: --by is missing."
    yield "Random order of presentations, and that appraisers did not know earlier verdicts: a table cannot show it."


def _pictures(table: Table) -> tuple[int, str]:
    """Number of pictures, and one digest of their sorted digests."""
    digests = sorted({row.digest for row in table.rows if row.digest})
    return len(digests), files.digest("\n".join(digests).encode()) if digests else ""


def _histogram(table: Table, scale: Scale) -> str:
    kinds: dict[str, list[float]] = {}
    for row in table.rows:
        if row.bundle == scale.bundle and not math.isnan(row.score):
            kind = "no reference" if not row.reference else "good" if row.good else "defective"
            kinds.setdefault(kind, []).append(row.score)
    colours = {"good": plots.GOOD, "defective": plots.DEFECT}
    bands = [Band(kind, values, colours.get(kind, plots.AXIS)) for kind, values in sorted(kinds.items(), reverse=True)]
    cuts = [Cut(value, name, name == "review") for name, value in scale.thresholds.items()]
    return plots.histograms(bands, cuts, "score", unit="presentations")

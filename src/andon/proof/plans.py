"""The number of parts that a proof needs.

A proof shows at a confidence C that a rate is at most p: the one-sided upper bound of Clopper and Pearson is at most p.
With c failures allowed, it needs the smallest n with P(X ≤ c) ≤ 1 − C for X ~ Binomial(n, p). Without failures that is
(1 − p)^n ≤ 1 − C.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

import andon
from andon import files, pages
from andon.binomial import rate_with_tail
from andon.errors import AndonError
from andon.evaluate import plots
from andon.evaluate.plots import Line, Mark
from andon.proof import bounds

SUCCESS = 0.9  # probability of success for which a plan states the true rate
SMALLEST_RATE = 1e-6
MOST_FAILURES = 100
CURVES = (0, 1, 2, 5)  # numbers of allowed failures that get a curve

NOTES = (
    "A part counts once, however often it is presented: presentations of one part are not independent.",
    "The numbers hold for each kind of defect with an agreed rate: collect this number of defective parts of each "
    "kind.",
    "Good parts must be a random sample of the good parts of the line, defective parts a random sample of the defects "
    "of their kind. Parts chosen because they are easy or hard to judge prove nothing about the rate.",
    "Fix the numbers of parts and of allowed failures before the first part is judged. If parts are added after a "
    "failed proof, each look needs the confidence 1 − (1 − C) / looks.",
    "Each single rate is proved at the confidence C. All m rates together hold at a confidence of at least 1 − m (1 − "
    "C).",
)


@dataclass(frozen=True)
class Row:
    """One way to prove a rate."""

    failures: int  # allowed
    parts: int  # needed
    needed_rate: float  # true rate at which the proof succeeds with probability SUCCESS


@dataclass(frozen=True)
class Claim:
    """A rate to prove, and the ways to prove it, fewest failures first."""

    name: str  # slip, false rejects
    parts: str  # kind of parts: defective, good
    rate: float  # proved when it is at most this
    rows: tuple[Row, ...]


def characteristic(name: str, rate: float, tests: Sequence[tuple[int, int]]) -> str:
    """Operating-characteristic curves as SVG: the probability that a proof of `rate` succeeds, against the true rate.

    `tests` holds failures allowed and parts of each curve.
    """
    rates = np.linspace(rate / 200, min(1.5 * rate, 1 - 1e-9), 200)
    lines = [
        Line(100 * rates, bounds.chance(failures, parts, rates), f"{failures} of {parts}", colour)
        for (failures, parts), colour in zip(tests, plots.COLOURS, strict=False)
    ]
    agreed = Mark(100 * rate, float(bounds.chance(*tests[0], rate)[0]), "agreed")
    x_range = (0.0, float(100 * rates[-1]))
    return plots.line_plot(lines, f"true rate of {name} in %", "probability that the proof succeeds", [agreed], x_range)


@dataclass(frozen=True)
class Plan:
    """The plan of one or two proofs."""

    confidence: float
    claims: tuple[Claim, ...]

    def record(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {"andon": andon.__version__, "success": SUCCESS, **asdict(self), "notes": list(NOTES)}

    def text(self) -> str:
        """The plan as tables for a terminal."""
        lines = []
        for claim in self.claims:
            lines += [
                f"{claim.name} ≤ {share(claim.rate)} at {share(self.confidence)} confidence",
                f"{'failures allowed':>16}  {claim.parts + ' parts':>15}  true rate for a probability of "
                f"success of {share(SUCCESS)}",
                *(f"{row.failures:>16}  {row.parts:>15}  {share(row.needed_rate)}" for row in claim.rows),
                "",
            ]
        return "\n".join([*lines, *NOTES])


def share(rate: float) -> str:
    """Write a rate as a percentage with three significant digits; a rate below 100 % stays below it."""
    text = np.format_float_positional(100 * rate, 3, fractional=False, trim="-")
    return f"{100 * rate:.10g} %" if text == "100" and rate < 1 else f"{text} %"


def plan(slip: float | None, false_rejects: float | None, confidence: float, failures: int) -> Plan:
    """Plan the proof of a slip, of a rate of false rejects, or of both, with up to `failures` failures allowed.

    Errors: AndonError for rates outside SMALLEST_RATE to 0.5, a confidence outside 0.5 to 0.999999, and neither rate.
    """
    check_confidence(confidence, "--confidence")
    if not 0 <= failures <= MOST_FAILURES:
        raise AndonError(f"--failures {failures}: expected 0 to {MOST_FAILURES}. Allow fewer failures.")
    asked = [("slip", "defective", slip, "--slip"), ("false rejects", "good", false_rejects, "--false-rejects")]
    claims = []
    for name, parts, rate, option in asked:
        if rate is not None:
            check_rate(rate, option)
            claims.append(Claim(name, parts, rate, tuple(_row(c, rate, confidence) for c in range(failures + 1))))
    if not claims:
        raise AndonError("neither --slip nor --false-rejects; expected a rate to prove. Give one or both.")
    return Plan(confidence, tuple(claims))


def _row(failures: int, rate: float, confidence: float) -> Row:
    parts = bounds.smallest_sample(failures, rate, confidence)
    return Row(failures, parts, rate_with_tail(failures, parts, SUCCESS))


def check_rate(rate: float, name: str) -> None:
    """Raise AndonError for a rate outside SMALLEST_RATE to 0.5, and for NaN."""
    if not SMALLEST_RATE <= rate <= 0.5:
        raise AndonError(
            f"{name} {rate:g}: expected a rate from {SMALLEST_RATE:g} to 0.5, such as 0.01 for 1 %. Correct it."
        )


def check_confidence(confidence: float, name: str) -> None:
    """Raise AndonError for a confidence outside 0.5 to 0.999999, and for NaN."""
    if not 0.5 <= confidence <= 0.999999:
        raise AndonError(
            f"{name} {confidence:g}: expected a confidence from 0.5 to 0.999999, such as 0.95 for 95 %. Correct it."
        )


def html(plan: Plan) -> bytes:
    """Make the page of a plan."""
    return pages.render(
        "proof_plan.html",
        plan=plan,
        curves=[
            Markup(characteristic(c.name, c.rate, [(r.failures, r.parts) for r in c.rows if r.failures in CURVES]))
            for c in plan.claims
        ],
        share=share,
        success=SUCCESS,
        notes=NOTES,
        version=andon.__version__,
    )


def write(plan: Plan, folder: str | Path) -> Path:
    """Write `plan.json` and `plan.html` into a folder, which is created if missing; return the page."""
    folder = Path(folder)
    files.make_folder(folder)
    files.write(folder / "plan.json", files.strict_json(plan.record(), indent=1).encode())
    files.write(folder / "plan.html", html(plan))
    return folder / "plan.html"

"""Challenge parts: physical parts with known verdicts, presented to test the system from the light to the sorter."""

from collections.abc import Sequence
from typing import NamedTuple

from andon.station.events import Challenge, Outcome, StationError

Box = tuple[float, float, float, float]  # x, y, width, height in pixels of the picture


class Part(NamedTuple):
    """One physical part, by its name."""

    name: str
    expected: Outcome
    expires: float
    """Time from which the part is no longer a valid reference."""
    region: Box | None = None
    """Position of its defect; a region of a rejected part must overlap it."""


class Answer(NamedTuple):
    """The station's result for a part."""

    part: str
    outcome: Outcome
    margin: float
    """Score − threshold."""
    regions: tuple[Box, ...] = ()


class Run(NamedTuple):
    at: float
    answers: tuple[Answer, ...]


def check(parts: Sequence[Part]) -> None:
    """Require both verdicts, so that a station that passes or rejects every part fails. StationError otherwise."""
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise StationError(f"challenge parts {', '.join(names)}: expected each name once. Rename one.")
    lacking = {Outcome.PASS, Outcome.REJECT} - {part.expected for part in parts}
    others = {part.expected for part in parts} - {Outcome.PASS, Outcome.REJECT}
    if lacking or others:
        raise StationError(
            f"{len(parts)} challenge parts, expected PASS or REJECT for each and both in the set; "
            f"missing: {', '.join(sorted(lacking)) or 'none'}; other: {', '.join(sorted(others)) or 'none'}. "
            "Add golden good parts and defective parts."
        )


def wrong(parts: Sequence[Part], run: Run) -> list[str]:
    """Return the names of the parts that were not presented exactly once or not judged as expected."""
    return [
        part.name
        for part in parts
        if [_right(part, answer) for answer in run.answers if answer.part == part.name] != [True]
    ]


def stands(parts: Sequence[Part], last: Run | None, now: float, every_s: float) -> Challenge:
    """Return the status of the parts. `last`: the last run since shift start, change-over and restart; None: no run.

    A run is due after `every_s`, when the clock went back, and while a part has expired.
    """
    if not parts:
        return Challenge.NONE
    if last is not None and wrong(parts, last):
        return Challenge.FAILED
    expired = any(now > part.expires for part in parts)
    if last is None or expired or not 0 <= now - last.at <= every_s:
        return Challenge.DUE
    return Challenge.PASSED


def margins(runs: Sequence[Run], part: str) -> list[tuple[float, float]]:
    """Return time and margin of a part in each run. A decreasing margin is an early sign of an ageing light or lens."""
    return [(run.at, answer.margin) for run in runs for answer in run.answers if answer.part == part]


def escape_bound(parts: int) -> float:
    """Return the upper limit (95 %) of the escape rate *of this kind of defect*, if all these parts were rejected."""
    if parts < 1:
        raise StationError(f"{parts} challenge parts: expected at least 1 to compute a limit. Add one.")
    return float(1 - 0.05 ** (1 / parts))


def _right(part: Part, answer: Answer) -> bool:
    if answer.outcome != part.expected:
        return False
    return part.region is None or any(_overlap(part.region, box) for box in answer.regions)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]

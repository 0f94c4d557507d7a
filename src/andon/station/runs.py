"""Runs of challenge parts: the parts of a product, their presentations, and the resulting status."""

import math
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from andon.recipe import validate
from andon.station import challenge
from andon.station.challenge import Answer, Box, Run
from andon.station.entries import Row
from andon.station.events import Challenge, Outcome


class ChallengePart(BaseModel):
    """One physical part, by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f/]+$")]
    expected: Outcome
    """PASS or REJECT."""
    expires: AwareDatetime
    """Time from which the part is no longer a valid reference."""
    kind: str = ""
    """Kind of its defect."""
    region: Annotated[tuple[float, float, float, float] | None, Field(description="x, y, width, height in pixels")] = (
        None
    )
    """Position of its defect: x, y, width, height in pixels of the picture."""

    def part(self) -> challenge.Part:
        return challenge.Part(self.name, self.expected, self.expires.timestamp(), self.region)


class Parts(BaseModel):
    """The challenge parts of a product, and the time between two runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_h: Annotated[float, Field(gt=0, le=10_000)] = 8
    """Hours after which the next run is due."""
    parts: Annotated[list[ChallengePart], Field(max_length=200)]
    """Empty: the product has no challenge parts."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Validate plain data. AndonError for wrong values, and for a set without both verdicts."""
        found = validate(cls, values, "challenge parts")
        if found.parts:
            challenge.check(found.list())
        return found

    def list(self) -> tuple[challenge.Part, ...]:
        """Return the parts for the functions of `andon.station.challenge`."""
        return tuple(each.part() for each in self.parts)


class Runs:
    """The runs of one product. A run ends when each part was presented once, or when one was judged wrongly.

    Args:
        parts: the challenge parts.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.last: Run | None = None
        """The last completed run; None: a run is due."""
        self.open: Run | None = None
        """The run in progress."""

    def due(self) -> None:
        """Discard all runs: a shift begins, or the bundle has changed."""
        self.last = self.open = None

    def expected(self, name: str) -> challenge.Part | None:
        return next((part for part in self.parts.list() if part.name == name), None)

    def right(self, answer: Answer) -> bool:
        """Whether a part was judged as expected, with a region at its defect."""
        part = self.expected(answer.part)
        return part is not None and not challenge.wrong([part], Run(0, (answer,)))

    def add(self, answer: Answer, now: float) -> None:
        """Add the result of a part. A part that was already presented in this run begins a new run."""
        if self.expected(answer.part) is None:
            return
        seen = self.open.answers if self.open else ()
        if any(earlier.part == answer.part for earlier in seen):
            self.open, seen = None, ()
        began = self.open.at if self.open else now
        self.open = Run(began, (*seen, answer))
        if not self.right(answer) or len(self.open.answers) == len(self.parts.parts):
            self.last, self.open = self.open, None

    def stands(self, now: float) -> Challenge:
        return challenge.stands(self.parts.list(), self.last, now, self.parts.every_h * 3600)

    def shown(self, now: float) -> dict[str, Any]:
        """Return plain data for JSON."""
        parts = self.parts.list()
        kinds = Counter(each.kind for each in self.parts.parts if each.expected == Outcome.REJECT)
        missing = {part.name for part in parts} - {answer.part for answer in (self.open.answers if self.open else ())}
        return {
            "stands": self.stands(now),
            **self.parts.model_dump(mode="json"),
            "last": _shown(self.last),
            "wrong": challenge.wrong(parts, self.last) if self.last else [],
            "open": _shown(self.open),
            "missing": sorted(missing),
            "due": _moment(self.last.at + self.parts.every_h * 3600) if self.last else None,
            "escape_bounds": {kind: challenge.escape_bound(count) for kind, count in kinds.items()},
        }


def answer(outcome: Outcome, row: Row) -> Answer:
    """Return the result in the record of a challenge part."""
    limits = row.body.get("thresholds") or {}
    limit = limits.get("reject") if limits.get("reject") is not None else limits.get("review")
    margin = math.nan if row.score is None or limit is None else row.score - float(limit)
    boxes: tuple[Box, ...] = tuple(tuple(map(float, region["box"])) for region in row.body.get("regions", ()))  # type: ignore[misc]
    return Answer(str(row.part), outcome, margin, boxes)


def _shown(run: Run | None) -> dict[str, Any] | None:
    return None if run is None else {"at": _moment(run.at), "answers": [each._asdict() for each in run.answers]}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

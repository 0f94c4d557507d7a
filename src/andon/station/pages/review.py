"""The page where a person decides on doubtful parts."""

import re
from typing import Annotated

from fastapi import APIRouter, Form, Query
from fastapi.responses import RedirectResponse, Response

from andon.errors import AndonError
from andon.station import review
from andon.station.entries import Row, decided
from andon.station.events import Outcome
from andon.station.http.problems import Problem
from andon.station.http.records import Sequence
from andon.station.pages.base import HEADERS, Operator, Page, addressed
from andon.station.pages.live import level, record, seen, size

router = APIRouter(prefix="/review", include_in_schema=False)

Text = Annotated[str, Form(max_length=2000)]
Number = Annotated[int, Query(ge=0, lt=1 << 62)]
SHARES = 10_000
KINDS = 12
"""Most kinds of defects that are offered: those that people used last."""


@router.get("")
def queue(page: Operator, product: str = "", after: Number = 0, again: Number = 0) -> Response:
    """The next part that waits. `after`: the record that was skipped. `again`: a record to decide on once more."""
    return _show(page, product, after, again)


def _show(page: Page, product: str, after: int = 0, again: int = 0, fault: str = "") -> Response:
    known = product if product in page.station.products.catalogue.products else ""
    count, row = review.waiting(page.station.ledger, known or None, after or None)
    row = record(page, again) if again else row
    return page.render(
        "review.html",
        409 if fault else 200,
        row=row,
        count=count,
        product=known,
        after=after,
        products=sorted(page.station.products.catalogue.products),
        pictured=row is not None and seen(page, row),
        mapped=row is not None and seen(page, row, "map"),
        level=level(row) if row else None,
        said=review.decision(page.station.ledger, row) if row else None,
        kinds=_kinds(page),
        fault=fault,
    )


@router.post("/{sequence}")
def decide(
    page: Operator,
    sequence: Sequence,
    do: Text,
    known: Annotated[int, Form(ge=0, lt=1 << 62)],
    defect: Text = "",
    note: Text = "",
    box: Text = "",
    product: Text = "",
    after: Annotated[int, Form(ge=0, lt=1 << 62)] = 0,
) -> Response:
    """Confirm a part as good or as defective; the next one follows."""
    row, _ = record(page, sequence), page.translate
    verdicts = {"good": Outcome.PASS, "defect": Outcome.REJECT}
    if do not in verdicts:
        raise Problem(422, f"'{do[:40]}': expected good or defect.")
    verdict = verdicts[do].value
    try:
        marks = {"defect": defect.strip()[:100], "box": _box(page, row, box)} if do == "defect" else {}
        reason = note.strip() or {"good": "looked at: good", "defect": f"looked at: {defect.strip() or 'defect'}"}[do]
        override = {} if row.verdict == verdict else {"verdict": verdict}
        kind = "override" if override else "confirm"
        entry = decided(row, kind, page.user, reason=reason, key=page.key.id, **override, **marks)  # type: ignore[arg-type]
        page.station.products.decide(row, entry, known)
    except AndonError as error:
        return _show(page, product, after, sequence, str(error))
    # Behind a part that was skipped, the older ones follow.
    following = addressed("/review", product=product, after=sequence if after else 0)
    return RedirectResponse(following, 303, HEADERS)


def _box(page: Page, row: Row, text: str) -> tuple[int, int, int, int] | None:
    """x, y, width and height in pixels, from four shares of the picture in 1/10,000."""
    if not text:
        return None
    if not re.fullmatch(r"(\d{1,5},){3}\d{1,5}", text):
        raise AndonError(f"box '{text[:40]}': expected four numbers. Draw it again.")
    sides = size(page, row) * 2
    x, y, width, height = (
        round(int(share) * side / SHARES) for share, side in zip(text.split(","), sides, strict=True)
    )
    return x, y, width, height


def _kinds(page: Page) -> list[str]:
    """The kinds of defects of the last decisions, the newest first."""
    rows = page.station.ledger.history(kind="decision", limit=200)
    return list(dict.fromkeys(str(row.body["defect"]) for row in rows if row.body.get("defect")))[:KINDS]

"""The pages of the record: what is filtered, the whole story of a part, export."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query
from fastapi.responses import FileResponse, Response
from starlette.background import BackgroundTask

from andon.errors import AndonError
from andon.station import export
from andon.station.entries import LONGEST_TEXT, Row
from andon.station.events import Outcome, StationError
from andon.station.http.problems import Problem
from andon.station.pages.base import HEADERS, Operator, Page, moment
from andon.station.pages.live import seen

router = APIRouter(prefix="/history", include_in_schema=False)

PAGE = 50
SOME = 500  # records whose corrections are read at once
MOST = 1.7e308
Text = Annotated[str, Query(max_length=LONGEST_TEXT)]
TABLES = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}


@dataclass
class Asked:
    """The fields of the form."""

    product: Text = ""
    part: Text = ""
    lot: Text = ""
    verdict: Text = ""
    since: Text = ""
    until: Text = ""
    low: Text = ""
    high: Text = ""

    def query(self) -> str:
        """Those that say something, as the query of an address."""
        return urlencode({name: value for name, value in vars(self).items() if value})


@router.get("")
def history(
    page: Operator,
    asked: Annotated[Asked, Depends()],
    after: Annotated[int | None, Query(ge=1, lt=1 << 62)] = None,
) -> Response:
    """One page of inspections, the newest first."""
    fault, rows = "", list[Row]()
    try:
        rows = page.station.ledger.history(**filters(page, asked), after=after, limit=PAGE + 1)
    except AndonError as error:
        fault = str(error)
    shown, more = rows[:PAGE], len(rows) > PAGE
    ends = page.station.ledger.corrections([row.job for row in shown])
    query = asked.query()
    return page.render(
        "history.html",
        409 if fault else 200,
        rows=[(row, ends.get(row.job, row).verdict, seen(page, row)) for row in shown],
        asked=asked,
        query=query,
        older=f"{query}&after={shown[-1].sequence}" if more else "",
        first=after is None,
        products=sorted(page.station.products.catalogue.products),
        outcomes=[each.value for each in Outcome],
        fault=fault,
    )


@router.get("/export.{kind}")
def download(page: Operator, kind: Literal["csv", "parquet"], asked: Annotated[Asked, Depends()]) -> Response:
    """All inspections that are filtered, the oldest first, each with the record that corrects it, as a table."""
    rows = _corrected(page, page.station.ledger.walk(**filters(page, asked)))
    folder = tempfile.TemporaryDirectory(prefix="andon-")
    try:
        out = Path(folder.name) / f"records.{kind}"
        export.write(rows, out)
    except BaseException:
        folder.cleanup()
        raise
    name = f"{page.station.config.name[:40]}-records.{kind}".encode("ascii", "ignore").decode()
    return FileResponse(out, 200, HEADERS, TABLES[kind], BackgroundTask(folder.cleanup), name)


def _corrected(page: Page, rows: Iterator[Row]) -> Iterator[Row]:
    while some := list(islice(rows, SOME)):
        ends = page.station.ledger.corrections([row.job for row in some])
        for row in some:
            yield row
            if row.job in ends:
                yield ends[row.job]


def filters(page: Page, asked: Asked) -> dict[str, Any]:
    """Arguments of `Reader.history` from the fields of the form. StationError for what is no time or number."""
    found: dict[str, Any] = {"kind": "inspection"}
    given = {name: value.strip() for name, value in vars(asked).items() if value.strip()}
    found.update({name: value for name, value in given.items() if name in ("product", "part", "lot")})
    if "verdict" in given:
        found["outcome"] = given["verdict"]
    found.update({name: moment(page, value) for name, value in given.items() if name in ("since", "until")})
    if "low" in given or "high" in given:
        found["score"] = (_number(given.get("low", ""), -MOST), _number(given.get("high", ""), MOST))
    return found


def _number(text: str, otherwise: float) -> float:
    try:
        return min(max(float(text.replace(",", ".")), -MOST), MOST) if text else otherwise
    except ValueError:
        raise StationError(f"score '{text[:40]}': expected a number such as 12.5. Correct it.") from None


@router.get("/part/{part:path}")
def part(page: Operator, part: str) -> Response:
    """All that happened to a part, the oldest first."""
    rows = page.station.ledger.story(part) if part and "\0" not in part else []
    if not rows:
        raise Problem(404, f"There is no record of part '{part[:100]}'.")
    own = page.station.config.name
    shown = []
    for row in rows:
        here = row.kind == "inspection" and row.station == own
        shown.append((row, row.intact(), here and seen(page, row), here and seen(page, row, "map")))
    return page.render("part.html", part=part, rows=shown)

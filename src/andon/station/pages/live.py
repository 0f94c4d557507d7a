"""The page at the line: the last part, its verdict, the state of the station. And the pictures of all pages."""

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from starlette.responses import StreamingResponse

from andon.errors import AndonError
from andon.station import aside, statistics
from andon.station.entries import LONGEST_TEXT, Row, decided
from andon.station.events import ALARMS, StationError
from andon.station.http.control import call_method, stream_events
from andon.station.http.problems import Problem
from andon.station.http.records import Sequence
from andon.station.pages.base import HEADERS, Operator, Page, addressed

router = APIRouter(include_in_schema=False)

STRIP = 20  # parts
Text = Annotated[str, Form(max_length=LONGEST_TEXT)]
SMALL = 128
"""Pixels of the longer side of a picture in the strip."""
AT_HAND = 100
"""Small pictures of the last parts that are kept in memory, at most 5 MB; they outlast the pictures of passes."""
Side = Annotated[int, Query(ge=32, le=1280, description="Most pixels of the longer side.")]
IMMUTABLE = {"Cache-Control": "private, max-age=86400, immutable"}


@router.get("/live")
def live(page: Operator, product: str = "", disputed: str = "") -> Response:
    """The last part, and the state of the station. `disputed`: the part whose verdict was disputed just now."""
    return page.render("live.html", disputed=disputed, **_now(page, product))


@router.get("/live/now")
def now(page: Operator, product: str = "") -> Response:
    """The same, as a part of the page."""
    return page.render("live_now.html", **_now(page, product))


def _now(page: Page, product: str) -> dict[str, Any]:
    station = page.station
    products = sorted(station.products.catalogue.products)
    shown = product if product in products else None
    rows = station.ledger.history(shown, kind="inspection", limit=STRIP)
    moment = datetime.now(UTC)
    since = station.config.pages.shift(moment)
    counted = [shown] if shown else products
    made = [statistics.production(station.ledger, each, (since, moment))[0] for each in counted]
    row = rows[0] if rows else None
    ends = station.ledger.corrections([each.job for each in rows])
    return {
        "row": row,
        "ended": {each.job: ends.get(each.job, each).verdict for each in rows},
        "strip": [(each, _small(each) in small(page) or seen(page, each)) for each in rows],
        "product": shown or "",
        "products": products,
        "since": since,
        "made": sum(made, statistics.Production()),
        "pictured": row is not None and seen(page, row),
        "level": level(row) if row else None,
        "todo": todo(page),
        "faults": station.products.faults,
        "missed": station.machine.memory.missed,
    }


def level(row: Row) -> dict[str, float | None]:
    """The score of a record in units of its thresholds; None without one."""
    limits = row.body.get("thresholds") or {}
    found = {}
    for name in ("review", "reject"):
        limit = limits.get(name)
        usable = row.score is not None and isinstance(limit, int | float) and math.isfinite(limit) and limit > 0
        found[name] = float(row.score) / float(limit) if usable else None  # type: ignore[arg-type]  # both are numbers
    return found


def todo(page: Page) -> dict[str, Any]:
    """The state of the station in words, what to do about it, and the methods that are of use."""
    _, station = page.translate, page.station
    machine = station.machine
    state = machine.state
    alarms = [_(ALARMS[code]) for code in sorted(machine.memory.errors)]
    due = [name for name, each in machine.memory.products.items() if str(each.challenge) in ("DUE", "FAILED")]
    methods: tuple[str, ...] = ()
    if not station.products.catalogue.products:
        text = _("There is no product yet. Teach one, or put a bundle into the folder of bundles.")
    elif state == "Error":
        text, methods = _("Remove the cause, then press Reset."), ("reset",)
    elif state == "Halted":
        text, methods = _("The station is halted. Press Reset to go on."), ("reset",)
    elif state == "Preoperational":
        text, methods = _("Press Automatic to begin."), ("select_mode_automatic",)
    elif due:
        text = _("Challenge parts are due: present those of %(products)s.") % {"products": ", ".join(due)}
        methods = ("halt",)
    elif not station.ready:
        text = _("The station waits: a product is being prepared, or results were not acknowledged.")
    else:
        text, methods = _("Parts are inspected."), ("halt",)
    drift = [name for name, each in station.watched().items() if each.drift.change]
    return {"state": state, "alarms": alarms, "text": text, "methods": methods, "drift": drift}


@router.post("/live/method")
def method(
    page: Operator, do: Annotated[Literal["halt", "reset", "select_mode_automatic"], Form()], product: Text = ""
) -> Response:
    """Halt or reset the station."""
    call_method(page.station, do, page.user)
    return RedirectResponse(addressed("/live", product=product), 303, HEADERS)


@router.post("/live/{sequence}/dispute")
def dispute(page: Operator, sequence: Sequence, product: Text = "") -> Response:
    """Let somebody look at a part again."""
    row = record(page, sequence)
    try:
        page.station.products.decide(row, decided(row, "dispute", page.user, key=page.key.id))
    except AndonError as error:
        raise Problem(409, str(error)) from None
    return RedirectResponse(addressed("/live", product=product, disputed=row.part), 303, HEADERS)


@router.get("/events")
async def events(request: Request, page: Operator) -> StreamingResponse:
    """What happens, for the page at the line."""
    return stream_events(request, page.station, page.permitted)


# Pictures


@router.get("/records/{sequence}/picture.jpg")
def picture(page: Operator, sequence: Sequence, of: str = "", side: Side = 1280) -> Response:
    """The picture of a record, made smaller. `of`: the begin of its digest; after a restore, numbers are used again."""
    data = small(page).get((sequence, of)) if side == SMALL else None
    if data is None:
        row = record(page, sequence, of)
        data = page.station.products.aside.call(aside.shown, _source(page, row, "picture"), side)
        if side == SMALL:
            small(page)[_small(row)] = data
            for old in sorted(small(page))[:-AT_HAND]:
                small(page).pop(old, None)
    return Response(data, media_type="image/jpeg", headers=IMMUTABLE)


@router.get("/records/{sequence}/layer.png")
def layer(page: Operator, sequence: Sequence, of: str = "", side: Side = 1280) -> Response:
    """The heat map of a record on the scale of its bundle, to be laid over its picture. `of`: as for the picture."""
    row = record(page, sequence, of)
    product = page.station.products.catalogue.products.get(str(row.product))
    bundle = product.versions.get(row.body.get("bundle", "")) if product else None
    threshold = (row.body.get("thresholds") or {}).get("pixel")
    if bundle is None or threshold is None:
        raise Problem(404, "The bundle of this record is not known here, so its heat map has no scale.")
    limits = (float(bundle.about["typical"]), float(threshold))
    data = page.station.products.aside.call(aside.layer, _source(page, row, "map"), *limits, side)
    return Response(data, media_type="image/png", headers=IMMUTABLE)


def small(page: Page) -> dict[tuple[int, str], bytes]:
    """Small pictures that a strip has shown, by the record and the begin of its digest."""
    found: dict[tuple[int, str], bytes] = page.request.app.state.small
    return found


def _small(row: Row) -> tuple[int, str]:
    return row.sequence, row.digest[:12]


def record(page: Page, sequence: int, of: str = "") -> Row:
    """A record, whose digest begins with `of`. Problem when there is none."""
    row = page.station.ledger.record(sequence)
    if row is None or not row.digest.startswith(of):
        raise Problem(404, f"There is no record {sequence}{f' with the digest {of[:12]}…' if of else ''}.")
    return row


def size(page: Page, row: Row) -> tuple[int, int]:
    """Width and height of the picture of a record. Problem when it is not here."""
    return page.station.products.aside.call(aside.size, _source(page, row, "picture"))


def seen(page: Page, row: Row, what: str = "picture") -> bool:
    """Whether the picture of a record, or its map, is still here."""
    try:
        return bool(_source(page, row, what))
    except Problem:
        return False


def _source(page: Page, row: Row, what: str) -> str | bytes:
    """The path of the picture or map of a record, or its bytes while it is the last of its product."""
    kept = row.body.get("kept", {}).get(what)
    try:
        if kept:
            return str(page.station.archive.path(kept))
    except StationError:
        pass
    latest = page.station.latest.get(str(row.product))
    if latest and latest.job == row.job and (data := latest.map if what == "map" else latest.picture):
        return data
    raise Problem(404, "It was not kept, or has aged out. All but passes are kept, and one in some passes.")

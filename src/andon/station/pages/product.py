"""The pages of a product: production, drift with guided recalibration, versions."""

import struct
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Any

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response
from pydantic import AfterValidator

from andon.errors import AndonError
from andon.station import aside, floor, statistics
from andon.station.background import Work
from andon.station.catalogue import Product, Version, differences
from andon.station.events import StationError
from andon.station.http.inspections import Name
from andon.station.http.problems import Json, Problem
from andon.station.pages import figures
from andon.station.pages.base import HEADERS, Operator, Page, Quality, moment

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Form()]
Span = Annotated[str, AfterValidator(lambda name: name if name in figures.SPANS else "day")]
MEASURES = ("score", "brightness", "sharpness", "registration")
WIDTH, HEIGHT = 720, 100
"""Of the strip of scores that a recalibration shows."""
LONGEST = timedelta(days=366)
DOTS = 400
"""Most dots of each kind in the strip of a recalibration."""


@router.get("/products")
def products(page: Operator) -> Response:
    """All products; of a single one, its page."""
    known = page.station.products.catalogue.products
    if len(known) == 1:
        return RedirectResponse(f"/products/{next(iter(known))}", 303, HEADERS)
    now, fault = datetime.now(UTC), page.station.products.fault
    day = (now - figures.SPANS["day"], now)
    listed = [
        (each, statistics.production(page.station.ledger, name, day)[0], _change(page, name), fault(name))
        for name, each in known.items()
    ]
    return page.render("products.html", products=listed)


@router.get("/products/{product}")
def overview(page: Operator, product: Name, span: Span = "day", fault: str = "", status: int = 200) -> Response:
    """Production of a product, where regions lie, margins of challenge parts, versions."""
    return _overview(page, _known(page, product), span)


def _overview(page: Page, product: Product, span: str, fault: str = "") -> Response:
    _ = page.translate
    reader = page.station.ledger
    seen = figures.overview(reader, product.name, span, _zone(page), datetime.now(UTC))
    rows = list(zip(seen.edges, seen.chart.points, strict=False))
    versions = list(product.versions.values())
    return page.render(
        "product.html",
        409 if fault else 200,
        fault=fault,
        product=product,
        span=span,
        spans={"shift": _("8 hours"), "day": _("Day"), "week": _("Week"), "month": _("Month"), "quarter": _("Quarter")},
        source=f"/products/{product.name}/charts.json?span={span}",
        change=_change(page, product.name),
        seen=seen,
        interval=seen.total.interval(),
        outside=sum(point.outside for point in seen.chart.points),
        rows=[row for row in rows if row[1].judged],
        challenged=bool(reader.history(product.name, kind="challenge", limit=1)),
        versions=[
            (version, differences(before, version) if before else None)
            for before, version in zip((None, *versions), versions, strict=False)
        ][::-1],
    )


@router.get("/products/{product}/positions")
def positions(page: Operator, product: Name, span: Span = "day") -> Response:
    """Where regions lie: a part of the page."""
    known = _known(page, product)
    edges = figures.edges(span, _zone(page), datetime.now(UTC))
    found = statistics.positions(page.station.ledger, known.name, edges[0], edges[-1], _frame(page, known))
    return page.render("positions.html", product=known, positions=found, **_cells(found))


@router.get("/products/{product}/charts.json")
def charts(page: Operator, product: Name, span: Span = "day") -> Response:
    """The numbers of the charts."""
    known, zone = _known(page, product), _zone(page)
    seen = figures.overview(page.station.ledger, known.name, span, zone, datetime.now(UTC))
    return _json(figures.charts(page.station.ledger, known, seen, zone))


@router.get("/products/{product}/golden.png")
def golden(page: Operator, product: Name) -> Response:
    """The picture of a good part."""
    known = _known(page, product)
    if known.golden is None:
        raise Problem(404, f"Product '{known.name}' has no golden picture.")
    return Response(
        _golden(page, known), media_type="image/png", headers={**HEADERS, "Cache-Control": "private, max-age=3600"}
    )


@router.post("/products/{product}/rollback")
def roll_back(page: Quality, product: Name, to: Text) -> Response:
    """Let the bundle inspect that was active before."""
    return _done(page, product, lambda: page.station.products.roll_back(product, page.user, to))


@router.post("/products/{product}/versions/{digest}")
def version(page: Quality, product: Name, digest: str, do: Text = "") -> Response:
    """Release or activate a bundle."""
    products = page.station.products
    calls: dict[str, Any] = {"release": products.release, "activate": products.activate}
    if do not in calls:
        raise Problem(422, f"'{do[:40]}': expected release or activate.")
    return _done(page, product, lambda: calls[do](product, digest, page.user))


# Drift


@router.get("/products/{product}/drift")
def drift(page: Operator, product: Name) -> Response:
    """What drift measures, and the guided recalibration."""
    return _drift(page, _known(page, product))


def _drift(page: Page, product: Product, status: int = 200, fault: str = "") -> Response:
    _ = page.translate
    loaded = page.station.watched().get(product.name)
    change = loaded.drift.change if loaded else None
    texts = (_("Score"), _("Brightness"), _("Sharpness"), _("Registration"))
    return page.render(
        "drift.html",
        status,
        fault=fault,
        measures=dict(zip(MEASURES, texts, strict=True)),
        registers=_registers(product),
        points=loaded.drift.points() if loaded else {},
        source=f"/products/{product.name}/drift.json",
        change=change,
        **_recalibration(page, product),
    )


@router.post("/products/{product}/drift")
def end_drift(page: Quality, product: Name) -> Response:
    """End the drift that was found: its cause was removed."""
    known = _known(page, product)
    try:
        page.station.watch_again(product, page.user)
    except AndonError as error:
        return _drift(page, known, 409, str(error))
    return RedirectResponse(f"/products/{product}/drift", 303, HEADERS)


@router.get("/products/{product}/drift.json")
def drift_numbers(page: Operator, product: Name) -> Response:
    """The numbers of the charts of drift."""
    known = _known(page, product)
    return _json(figures.drift(page.station.ledger, known, page.station.watched().get(product)))


@router.get("/products/{product}/confirmed")
def confirmed(page: Operator, product: Name, since: str = "") -> Response:
    """How many parts people confirmed good: a part of the page of drift."""
    begin = moment(page, since) if since else None
    found = floor.confirmed(page.station.ledger, page.station.archive, _known(page, product).name, begin)
    facts: dict[str, Any] = {
        "count": len(found.pictures),
        "absent": found.absent,
        "disputed": found.disputed,
        "since": begin,
    }
    return page.render("confirmed.html", **facts)


@router.get("/products/{product}/recalibration")
def recalibration(page: Operator, product: Name) -> Response:
    """How far a recalibration is, or what it found: a part of the page of drift."""
    return page.render("recalibration.html", **_recalibration(page, _known(page, product)))


@router.post("/products/{product}/recalibration")
def recalibrate(page: Quality, product: Name, do: Text = "", since: Text = "", to: Text = "") -> Response:
    """Begin or dismiss a recalibration; take its bundle over, release, activate it, or go back."""
    known, care, products = _known(page, product), page.station.upkeep, page.station.products
    after = _adopted(page, known)
    calls: dict[str, Any] = {
        "start": lambda: care.recalibrate(product, (moment(page, since) if since else None), page.user),
        "dismiss": lambda: care.dismiss(product),
        "adopt": lambda: care.adopt(product, page.user),
        "release": lambda: products.release(product, after.digest if after else "", page.user),
        "activate": lambda: products.activate(product, after.digest if after else "", page.user),
        "back": lambda: products.roll_back(product, page.user, to),
    }
    if do not in calls:
        raise Problem(422, f"'{do[:40]}': expected one of {', '.join(calls)}.")
    try:
        calls[do]()
    except AndonError as error:
        return _drift(page, _known(page, product), 409, str(error))
    return RedirectResponse(f"/products/{product}/drift#recalibration", 303, HEADERS)


def _recalibration(page: Page, product: Product) -> dict[str, Any]:
    """What the part of the page on recalibration shows."""
    loaded, work = page.station.watched().get(product.name), page.station.upkeep.recalibration(product.name)
    since = _since(page, product)
    local = since.astimezone(page.zone).strftime("%Y-%m-%dT%H:%M") if since else ""
    facts = {
        "product": product,
        "loaded": loaded,
        "idle": product.name in page.station.idle,
        "work": work,
        "since": since,
        "since_local": local,
        "version": _adopted(page, product),
    }
    return {**facts, **(_compared(page, work) if work and work.result else {})}


def _compared(page: Page, work: Work) -> dict[str, Any]:
    """Before and after on the same parts: counts, the strip of scores, parts that change, whether it is looser."""
    found = work.result
    before, after, parts = found["before"], found["after"], found["parts"]
    limits = [(kind, each["review"]) for kind, each in (("before", before), ("after", after))]
    scores, usual = [float(score) for _, score, *_ in parts], [float(score) for score in found["usual"]]
    shown = [*scores, *usual, *(float(x) for _, x in limits)]
    low, high = min(shown), max(shown)

    def place(value: float) -> float:
        return round(20 + (WIDTH - 40) * (value - low) / ((high - low) or 1), 1)

    words = {"before": page.translate("before"), "after": page.translate("after")}
    apart = limits[1][1] >= limits[0][1]
    lines = [
        {"kind": kind, "x": place(x), "text": words[kind], "anchor": "start" if (kind == "after") == apart else "end"}
        for kind, x in limits
    ]
    return {
        "counts": {"before": Counter(b for *_, b, _ in parts), "after": Counter(a for *_, a in parts)},
        "changed": [each for each in parts if each[2] != each[3]][:200],
        "looser": after["review"] > before["review"] or after["reject"] > before["reject"],
        "strip": {
            "width": WIDTH,
            "height": HEIGHT,
            "parts": [place(x) for x in scores[:DOTS]],
            "usual": [place(x) for x in usual[:DOTS]],
            "lines": lines,
        },
    }


def _adopted(page: Page, product: Product) -> Version | None:
    """The version that a recalibration became, once it was taken over."""
    work = page.station.upkeep.recalibration(product.name)
    return product.versions.get(work.result["after"]["digest"]) if work and work.result else None


# Shared


def _known(page: Page, product: str) -> Product:
    try:
        return page.station.products.catalogue.product(product)
    except StationError as error:
        raise Problem(404, str(error)) from None


def _done(page: Page, product: str, call: Any) -> Response:
    """Make a change and show the versions; what refuses it stands on the page."""
    known = _known(page, product)
    try:
        call()
    except AndonError as error:
        return _overview(page, known, "day", str(error))
    return RedirectResponse(f"/products/{product}#versions", 303, HEADERS)


def _change(page: Page, product: str) -> str:
    """The drift that was found; empty: none."""
    loaded = page.station.watched().get(product)
    return str(loaded.drift.change) if loaded and loaded.drift.change else ""


def _registers(product: Product) -> bool:
    """Whether the active bundle registers parts."""
    version = product.versions.get(product.active or "")
    return bool(version and version.about["recipe"]["geometry"]["registration"])


def _since(page: Page, product: Product) -> datetime | None:
    """When the last drift of the active bundle began, by the records; None: there is none."""
    loaded = page.station.watched().get(product.name)
    if loaded is None or loaded.drift.change is None:
        return None
    found, most = datetime.now(UTC), loaded.drift.change.since
    for mark in statistics.marks(page.station.ledger, product.name):
        if mark.kind == "drift" and mark.body["bundle"] == loaded.version.digest:
            found = datetime.fromisoformat(mark.time)
    parts = statistics.dots(page.station.ledger, product.name, found - LONGEST, found, most, doubtful=False)
    return datetime.fromisoformat(parts[0].time) if parts else None


def _zone(page: Page) -> Any:
    return page.zone or datetime.now().astimezone().tzinfo


def _frame(page: Page, product: Product) -> tuple[int, int] | None:
    """Width and height of the pictures: as the bundle declares, or of the golden picture; None: nobody knows."""
    version = product.versions.get(product.active or "")
    size = version.about["input"].get("size") if version else None
    if size:
        return int(size[0]), int(size[1])
    if product.golden:
        width, height = struct.unpack(">II", _golden(page, product)[16:24])
        return int(width), int(height)
    return None


def _golden(page: Page, product: Product) -> bytes:
    archive = page.station.products.archive
    return page.station.products.aside.call(aside.picture, str(archive.path(str(product.golden))))


def _cells(found: statistics.Positions) -> dict[str, Any]:
    """The cells of the map that hold something, equal neighbours of a row as one, and the fullest one."""
    side = max(found.frame) / statistics.CELLS
    most = int(found.counts.max())
    cells = []
    for y, row in enumerate(found.counts.tolist()):
        for count, run in groupby(enumerate(row), key=itemgetter(1)):
            columns = [x for x, _ in run]
            place = {"x": round(columns[0] * side, 2), "y": round(y * side, 2)}
            size = {"width": round(len(columns) * side, 2), "height": round(side, 2)}
            if count:
                cells.append({**place, **size, "count": count, "share": round(0.15 + 0.75 * count / most, 3)})
    top = max(cells, key=lambda cell: cell["count"], default={"x": 0, "y": 0, "count": 0})
    return {"cells": cells, "top": {"count": top["count"], "x": round(top["x"]), "y": round(top["y"])}}


def _json(content: Any) -> Response:
    answer = Json(content)
    answer.headers.update(HEADERS)
    return answer

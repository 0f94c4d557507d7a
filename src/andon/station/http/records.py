"""Routes of records: pages of records, the history of a part, pictures, decisions."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from andon.station import aside
from andon.station.entries import LONGEST_TEXT, Row, decided
from andon.station.events import StationError
from andon.station.http import models, problems
from andon.station.http.access import Operator, The
from andon.station.http.problems import Json, Problem
from andon.station.station import Station

router = APIRouter(tags=["Records"], responses=problems.responses(404))

Sequence = Annotated[int, Path(ge=1, lt=1 << 62, description="Number of the record.")]
Text = Annotated[str | None, Query(min_length=1, max_length=LONGEST_TEXT)]
Number = Annotated[float | None, Query(allow_inf_nan=False)]
MOST = 1.7e308
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


Whole = Annotated[int, Field(ge=0, lt=1 << 31)]


class Decision(BaseModel):
    """A person's decision on an inspection."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"decision": "override", "verdict": "PASS", "reason": "dust, wiped off"}]},
    )

    decision: Literal["confirm", "override", "dispute"]
    """`dispute`: the part waits in the review queue for a decision."""
    verdict: Literal["PASS", "REJECT"] | None = None
    """The new verdict of an override."""
    reason: Annotated[str, Field(max_length=2000)] = ""
    """Required for an override."""
    defect: Annotated[str, Field(max_length=100)] = ""
    """Kind of defect, if any."""
    box: Annotated[tuple[Whole, Whole, Whole, Whole] | None, Field(strict=False)] = None
    """x, y, width, height of the defect, in pixels of the picture."""


@router.get("/v1/records", response_model=models.History)
def history(
    station: The,
    key: Operator,
    product: Text = None,
    part: Text = None,
    lot: Text = None,
    verdict: Text = None,
    kind: Literal["inspection", "decision", "event", "challenge", "change"] | None = None,
    job: Annotated[int | None, Query(ge=0, lt=1 << 62)] = None,
    since: Annotated[AwareDatetime | None, Query(examples=["2026-11-26T06:00:00Z"])] = None,
    until: Annotated[AwareDatetime | None, Query(examples=["2026-11-26T14:00:00Z"])] = None,
    score_min: Number = None,
    score_max: Number = None,
    after: Annotated[int | None, Query(ge=0, lt=1 << 62, description="`next` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Json:
    """One page of records, the newest first."""
    score = None
    if score_min is not None or score_max is not None:
        score = (-MOST if score_min is None else score_min, MOST if score_max is None else score_max)
    rows = station.ledger.history(
        product=product,
        since=since,
        until=until,
        verdict=verdict,
        lot=lot,
        part=part,
        score=score,
        kind=kind,
        job=job,
        after=after,
        limit=limit,
    )
    following = rows[-1].sequence if len(rows) == limit else None
    return Json({"records": [row.record() for row in rows], "next": following})


@router.get("/v1/records/{sequence}", response_model=models.Record)
def record(station: The, key: Operator, sequence: Sequence) -> Json:
    """One record."""
    return Json(_row(station, sequence).record())


@router.get("/v1/parts/{part:path}", response_model=list[models.Record])
def story(station: The, key: Operator, part: Annotated[str, Path(min_length=1, max_length=LONGEST_TEXT)]) -> Json:
    """All records of a part, of every station in the database, the oldest first."""
    if "\0" in part:
        raise Problem(422, "The id of the part contains NUL; expected text without it. Correct it.")
    return Json([row.record() for row in station.ledger.story(part)])


@router.get("/v1/records/{sequence}/picture.png", response_class=Response, responses=PNG)
def picture(station: The, key: Operator, sequence: Sequence) -> Response:
    """The picture, if it was kept."""
    path = _kept(station, _row(station, sequence), "picture")
    return _png(station.products.aside.call(aside.picture, path))


@router.get("/v1/records/{sequence}/map.png", response_class=Response, responses=PNG)
def heat_map(station: The, key: Operator, sequence: Sequence) -> Response:
    """The picture with its heat map, in the scale of the bundle, if both were kept."""
    row = _row(station, sequence)
    body, product = row.body, station.products.catalogue.products.get(str(row.product))
    picture, map = _kept(station, row, "picture"), _kept(station, row, "map")
    bundle = product.versions.get(body["bundle"]) if product else None
    if bundle is None:
        raise Problem(404, "This station does not know the bundle of this record, so its heat map has no scale.")
    limits = (float(bundle.about["typical"]), float(body["thresholds"]["pixel"]))
    return _png(station.products.aside.call(aside.heat_map, picture, map, *limits))


@router.post("/v1/records/{sequence}/decisions", status_code=201, response_model=models.Record)
def decide(station: The, key: Operator, sequence: Sequence, decision: Decision) -> Json:
    """Confirm the verdict of an inspection, override it with a reason, or dispute it. The old record stays."""
    row = _row(station, sequence)
    try:
        entry = decided(row, who=key.name, key=key.id, **decision.model_dump())
    except StationError as error:
        raise Problem(422, str(error)) from None
    kept = station.products.decide(row, entry)
    return Json(kept.record(), 201, {"Location": f"/v1/records/{kept.sequence}"})


def _row(station: Station, sequence: int) -> Row:
    row = station.ledger.record(sequence)
    if row is None:
        raise Problem(404, f"There is no record {sequence}.")
    return row


def _kept(station: Station, row: Row, what: str) -> str:
    digest = row.body.get("kept", {}).get(what)
    try:
        if digest:
            return str(station.archive.path(digest))
    except StationError:
        pass
    raise Problem(404, "It was not kept, or has aged out. All but passes are kept, and one in some passes.")


def _png(data: bytes) -> Response:
    return Response(data, media_type="image/png", headers={"Cache-Control": "private, no-cache"})

"""Routes of products, their bundles and their challenge parts."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.concurrency import run_in_threadpool

from andon.station.catalogue import Product
from andon.station.events import Outcome
from andon.station.http import models, problems
from andon.station.http.access import Engineer, Operator, Quality, The
from andon.station.http.inspections import PICTURE, Name, awake, body, judged, known, picture, received
from andon.station.http.problems import Json, Problem
from andon.station.runs import Parts, answer
from andon.station.station import Station

router = APIRouter(tags=["Products"], responses=problems.responses(404, 409, 503))
challenges = APIRouter(tags=["Challenge parts"], responses=problems.responses(404, 409, 503))

Digest = Annotated[str, Path(pattern="^[0-9a-f]{8,64}$", description="Digest of a bundle, or its first digits.")]
PartName = Annotated[str, Path(min_length=1, max_length=100, description="Name of a challenge part.")]


@router.get("/v1/products", response_model=list[models.Product])
def products(station: The, key: Operator) -> Json:
    """All products and their bundles."""
    return Json([_shown(station, each) for each in station.products.catalogue.products.values()])


@router.get("/v1/products/{product}", response_model=models.Product)
def product(station: The, key: Operator, product: Name) -> Json:
    """One product and its bundles."""
    known(station, product)
    return Json(_shown(station, station.products.catalogue.product(product)))


@router.post(
    "/v1/products/{product}/bundles",
    status_code=201,
    response_model=models.Bundle,
    responses=problems.responses(415),
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": PICTURE}}}},
)
async def upload(request: Request, station: The, key: Engineer, product: Name) -> Json:
    """Upload a bundle as the body. It is verified, not released. A new product is created if necessary."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind != "application/octet-stream":
        raise Problem(415, f"The body is '{kind[:80]}'; expected a bundle as application/octet-stream.")
    with station.products.archive.incoming() as place:
        await received(request, place)
        digest = await run_in_threadpool(station.products.archive.move, place, ".andon")
    version = await run_in_threadpool(station.products.add, product, digest, key.name)
    return Json(vars(version), 201)


@router.post("/v1/products/{product}/bundles/{digest}/release", response_model=models.Bundle)
def release(station: The, key: Quality, product: Name, digest: Digest) -> Json:
    """Release a bundle, if it catches all escapes of the product whose pictures were kept."""
    known(station, product)
    return Json(vars(station.products.release(product, digest, key.name)))


@router.post("/v1/products/{product}/bundles/{digest}/activate", response_model=models.Product)
def activate(station: The, key: Quality, product: Name, digest: Digest) -> Json:
    """Activate a released bundle, after it has passed the golden picture. No request is lost during the exchange."""
    known(station, product)
    return Json(_shown(station, station.products.activate(product, digest, key.name)))


@router.post("/v1/products/{product}/rollback", response_model=models.Product)
def roll_back(station: The, key: Quality, product: Name) -> Json:
    """Activate the previously active bundle."""
    known(station, product)
    return Json(_shown(station, station.products.roll_back(product, key.name)))


@router.put(
    "/v1/products/{product}/golden",
    response_model=models.Product,
    responses=problems.responses(415),
    openapi_extra=body(picture=PICTURE),
)
async def golden(request: Request, station: The, key: Quality, product: Name) -> Json:
    """Set the golden picture: a good part, which each bundle must pass before its activation."""
    known(station, product)
    data, _ = await picture(request)
    return Json(_shown(station, await run_in_threadpool(station.products.golden, product, data, key.name)))


@router.get("/v1/products/{product}/drift")
def drift(station: The, key: Operator, product: Name) -> Json:
    """The charts of the measures since the activation of the bundle, and the detected drift, if any."""
    known(station, product)
    loaded = station.watched().get(product)
    if loaded is None:
        raise Problem(409, f"Product '{product}' is not prepared, so it has no charts. Activate a bundle.")
    points = {name: point._asdict() for name, point in loaded.drift.points().items()}
    return Json({"change": loaded.drift.change and loaded.drift.change._asdict(), "charts": points})


@router.post("/v1/products/{product}/drift/end")
def end_drift(station: The, key: Quality, product: Name) -> Json:
    """End the detected drift, because its cause was removed: the charts begin again."""
    known(station, product)
    station.watch_again(product, key.name)
    return drift(station, key, product)


@challenges.get("/v1/products/{product}/challenge", response_model=models.Challenge)
def standing(station: The, key: Operator, product: Name) -> Json:
    """The challenge parts of a product, their status, the last run, and the proved limits of escape rates."""
    known(station, product)
    return Json(station.products.standing(product))


@challenges.put("/v1/products/{product}/challenge", response_model=models.Product)
def define(station: The, key: Quality, product: Name, parts: Parts) -> Json:
    """Set the challenge parts, good and defective ones, each with its expected verdict. Then a run is due."""
    known(station, product)
    return Json(_shown(station, station.products.define(product, parts.model_dump(mode="json"), key.name)))


@challenges.post("/v1/products/{product}/challenge/due", response_model=models.Challenge)
def due(station: The, key: Operator, product: Name) -> Json:
    """Begin a shift: a run of the challenge parts is due."""
    known(station, product)
    station.products.due(product)
    return Json(station.products.standing(product))


@challenges.post(
    "/v1/products/{product}/challenge/parts/{part}",
    response_model=models.Presented,
    responses=problems.responses(415),
    openapi_extra=body(picture=PICTURE),
)
async def present(request: Request, station: The, key: Operator, product: Name, part: PartName) -> Json:
    """Inspect a challenge part. It is never counted or archived as production."""
    known(station, product)
    data, _ = await picture(request)
    await awake(station, product)
    found = await judged(station, lambda: station.challenge_part(product, part, data))
    return Json({**station.products.judgement(product, found.outcome, found.row), "record": found.row.sequence})


@challenges.get("/v1/products/{product}/challenge/parts/{part}")
def margins(station: The, key: Operator, product: Name, part: PartName) -> Json:
    """The margin (score − threshold) of a part in its last 200 presentations, the newest first."""
    known(station, product)
    rows = station.ledger.history(product=product, part=part, kind="challenge", limit=200)
    answers = [(row, answer(Outcome(str(row.verdict)), row)) for row in rows]
    return Json([{"time": row.time, "verdict": row.verdict, "margin": each.margin} for row, each in answers])


def _shown(station: Station, product: Product) -> dict[str, Any]:
    prepared = station.machine.memory.products.get(product.name)
    facts = {
        "prepared": prepared is not None,
        "challenge": prepared.challenge if prepared else None,
        "deadline_ms": prepared.deadline * 1000 if prepared else None,
        "fault": station.products.fault(product.name),
    }
    return {**product.shown(), **facts}

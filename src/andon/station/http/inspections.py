"""Routes of inspections."""

import asyncio
import pathlib
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from andon import files
from andon.errors import AndonError, StorageError
from andon.station.config import PRODUCT
from andon.station.entries import LONGEST_TEXT
from andon.station.events import StationError
from andon.station.flight import Finished
from andon.station.http import models, problems
from andon.station.http.access import Operator, The
from andon.station.http.problems import Json, Problem
from andon.station.station import Station

router = APIRouter(tags=["Inspections"])

PATIENCE_S = 20
"""Maximum time in seconds after the deadline to wait for a durable record."""
BATCH = 100

Name = Annotated[str, Path(pattern=f"^{PRODUCT}$", description="Name of the product.", examples=["ring"])]
PartId = Annotated[
    str | None,
    Query(min_length=1, max_length=LONGEST_TEXT, description="Id of the part, here or as a field of the form."),
]
Lot = Annotated[str | None, Query(min_length=1, max_length=LONGEST_TEXT, description="Lot of the part.")]

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_TEXT = {"type": "string"}


def body(**fields: Any) -> dict[str, Any]:
    """Return the OpenAPI description of a request with a picture, as the body or as a field of a form."""
    form = {"type": "object", "properties": {**fields}, "required": ["picture"]}
    content = dict.fromkeys(("image/png", "image/jpeg", "image/tiff", "application/octet-stream"), _BYTES)
    return {"requestBody": {"required": True, "content": {**content, "multipart/form-data": {"schema": form}}}}


PICTURE = {"type": "string", "format": "binary"}


@router.post(
    "/v1/products/{product}/inspections",
    status_code=201,
    response_model=models.Inspection,
    responses=problems.responses(404, 409, 415, 503),
    openapi_extra=body(picture=PICTURE, part=_TEXT, lot=_TEXT),
)
async def inspect(
    request: Request, station: The, key: Operator, product: Name, part: PartId = None, lot: Lot = None
) -> Json:
    """Inspect one picture of one part.

    201: the answer contains a verdict, and its record is durable. A picture that cannot be read has the verdict
    INVALID. After any other answer there is no verdict: treat the part as a reject.
    """
    known(station, product)
    data, form = await picture(request)
    name, of = form.get("part", part), form.get("lot", lot)
    if not name:
        raise Problem(422, "The part has no id; expected ?part= or a field 'part', to match results and parts. Add it.")
    await awake(station, product)
    found = await judged(station, lambda: station.inspect(product, name, of or None, data))
    return Json(shown(found), 201, {"Location": f"/v1/records/{found.row.sequence}"})


@router.post(
    "/v1/products/{product}/batch",
    response_model=models.Batch,
    responses=problems.responses(404, 409, 415, 503),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"pictures": {"type": "array", "items": PICTURE}, "lot": _TEXT},
                        "required": ["pictures"],
                    }
                }
            },
        }
    },
)
async def batch(request: Request, station: The, key: Operator, product: Name) -> Json:
    """Inspect several pictures. The name of each file is the id of its part. Each is a job; jobs begin in order."""
    known(station, product)
    async with _form(request, BATCH) as form:
        pictures = [
            (str(each.filename or ""), await each.read())
            for each in form.getlist("pictures")
            if isinstance(each, UploadFile)
        ]
        lot = _text(form, "lot")
    if not pictures or not all(name for name, _ in pictures):
        raise Problem(422, f"A form with {len(pictures)} 'pictures'; expected at least one, each with a file name.")
    await awake(station, product)
    turn = asyncio.Semaphore(max(1, min(station.config.workers.processes + 1, station.config.depth - 1)))
    order = asyncio.Lock()  # a fair lock: jobs begin in the order of the files

    async def one(part: str, data: bytes) -> dict[str, Any]:
        async with turn:
            try:
                async with order:
                    future = await begun(station, lambda: station.inspect(product, part, lot, data))
                found = await ended(station, future)
            except (Problem, AndonError) as error:
                problem = error if isinstance(error, Problem) else problems.of(error)
                return {"part": part, "problem": {"status": problem.status, "detail": problem.detail}}
            return shown(found)

    return Json({"results": await asyncio.gather(*(one(*each) for each in pictures))})


async def awake(station: Station, product: str) -> None:
    """Load a product if it is idle, and wait. Problem 503 when this takes longer than its deadline."""
    idle, patience = station.products.idle, station.products.deadline_s(product)
    if not idle.use(product) and not await run_in_threadpool(idle.awake, product, patience):
        station.miss()
        raise Problem(503, f"Product '{product}' was idle and is being loaded. Send the request again later.")


async def judged(station: Station, begin: "Callable[[], Future[Finished]]") -> Finished:
    """Begin a job and wait until its record is durable. Problem when the job is refused, or this takes too long."""
    return await ended(station, await begun(station, begin))


async def begun(station: Station, begin: "Callable[[], Future[Finished]]") -> "Future[Finished]":
    """Begin a job. Problem when it is refused."""
    try:
        return await run_in_threadpool(begin)
    except StationError as error:
        raise refused(station, error) from None


async def ended(station: Station, future: "Future[Finished]") -> Finished:
    """Wait until the record of a job is durable. Problem when this takes too long."""
    try:
        async with asyncio.timeout(PATIENCE_S + max(station.deadlines(), default=0)):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise Problem(503, "The record cannot be written now, so there is no verdict. See the alarms.") from None


def refused(station: Station, error: StationError) -> Problem:
    """Return the problem of a refused trigger: 503 if it may be accepted soon, 409 if a person must act."""
    machine = station.machine
    soon = (machine.able and not machine.room) or "STORAGE" in machine.memory.errors
    return Problem(503 if soon else 409, str(error), state=machine.state, alarms=sorted(machine.memory.errors))


def known(station: Station, product: str) -> None:
    """Check that a product exists. Problem 404 otherwise."""
    if product not in station.products.catalogue.products:
        raise Problem(404, str(_unknown(station, product)))


def _unknown(station: Station, product: str) -> StationError:
    try:
        station.products.catalogue.product(product)
    except StationError as error:
        return error
    raise AssertionError(product)


async def received(request: Request, place: pathlib.Path) -> None:
    """Write the body of a request into a new file, piece by piece."""
    try:
        with place.open("xb") as file:
            async for piece in request.stream():
                await run_in_threadpool(file.write, piece)
    except TimeoutError:  # of the sender
        raise
    except OSError as error:
        raise StorageError(f"{place.parent}: the file cannot be kept: {files.reason(error)}.") from None


async def picture(request: Request) -> tuple[bytes, dict[str, str]]:
    """Return the picture of a request, and the texts in the same form."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    texts: dict[str, str] = {}
    if kind == "multipart/form-data":
        async with _form(request, 1) as form:
            upload = form.get("picture")
            if not isinstance(upload, UploadFile):
                raise Problem(422, "The form has no file 'picture'; expected one. Add it.")
            data = await upload.read()
            texts = {name: text for name in ("part", "lot") if (text := _text(form, name)) is not None}
    elif kind.startswith("image/") or kind == "application/octet-stream":
        data = await request.body()
    else:
        raise Problem(
            415, f"The body is '{kind[:80]}'; expected image/…, application/octet-stream or multipart/form-data."
        )
    if not data:
        raise Problem(422, "The picture is empty (0 bytes); expected the contents of an image file. Send these.")
    return data, texts


def _form(request: Request, most: int) -> AbstractAsyncContextManager[FormData]:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "The body is not a form; expected multipart/form-data.")
    return request.form(max_files=most, max_fields=10)


def _text(form: FormData, name: str) -> str | None:
    found = form.get(name)
    if found is None or found == "":
        return None
    if not isinstance(found, str) or len(found) > LONGEST_TEXT:
        raise Problem(422, f"'{name}' of the form: expected a text of at most {LONGEST_TEXT} characters.")
    return found


def shown(found: Finished) -> dict[str, Any]:
    """Return an inspection as plain data."""
    row, body = found.row, found.row.body
    link = f"/v1/records/{row.sequence}"
    return {
        "job": row.job,
        "record": row.sequence,
        "time": row.time,
        "product": row.product,
        "part": row.part,
        "lot": row.lot,
        "verdict": found.outcome.value,
        "score": row.score,
        "p_value": row.p_value,
        **{name: body.get(name) for name in ("thresholds", "digest", "bundle", "decision", "stages")},
        "regions": body.get("regions", []),
        "notes": body.get("notes", []),
        "error": body.get("error"),
        "links": {"record": link, **{name: f"{link}/{name}.png" for name in body.get("kept", {})}},
    }

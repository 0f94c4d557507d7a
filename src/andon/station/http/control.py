"""Routes of the station: state, methods, events, keys, health, metrics."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

import andon
from andon import files
from andon.station.catalogue import change
from andon.station.entries import Entry, Row
from andon.station.events import ALARMS, Alarm, Event, Result, Transitioned
from andon.station.flight import Feed
from andon.station.http import models, problems
from andon.station.http.access import Engineer, Operator, The
from andon.station.http.problems import Json, Problem
from andon.station.jobs import STATES_RECORDED
from andon.station.keys import Role
from andon.station.station import Station

router = APIRouter(tags=["Station"], responses=problems.responses(409))
health = APIRouter(tags=["Station"])

POLL_S = 0.04
SILENCE_S = 10
"""Seconds without events after which a stream sends a comment, so that proxies keep it open."""
STREAMS = 32


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "Ada", "role": "quality"}]})

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")]
    """Name of its user, which is noted in records."""
    role: Literal["operator", "quality", "engineer"]


@health.get("/healthz", response_model=models.State)
def alive(station: The) -> Json:
    """Whether the service answers. This does not test the inspection."""
    return Json({"state": station.machine.state, "ready": station.ready})


@health.get("/readyz", response_model=models.State, responses={503: {"description": "A trigger would be refused."}})
def ready(station: The) -> Json:
    """Whether a trigger would be accepted now."""
    return Json(_state(station), 200 if station.ready else 503)


@router.get("/v1/station", response_model=models.State)
def state(station: The, key: Operator) -> Json:
    """State, alarms and counts of the station."""
    memory = station.machine.memory
    return Json(
        {
            **_state(station),
            "name": station.config.name,
            "software": f"andon {andon.__version__}",
            "counts": memory.counts,
            "missed": memory.missed,
            "waiting": len(memory.waiting),
            "latched": [{"job": r.job.id, "part": r.job.part, "outcome": r.outcome} for r in memory.latched],
            "depth": station.machine.depth,
            "output": station.output(),
            "loaded": {
                name: {"megabytes": round(each.memory / 1e6, 1), "load_s": round(each.load_s, 3)}
                for name, each in station.loaded.items()
            },
            "idle": sorted(station.idle),
            "drift": {name: str(each.drift.change) for name, each in station.watched().items() if each.drift.change},
        }
    )


@router.post("/v1/station/{method}", response_model=models.State)
def call(
    station: The,
    key: Operator,
    method: Literal["select_mode_automatic", "halt", "reset", "start_continuous", "stop", "abort"],
) -> Json:
    """Call a method of OPC 40100-1."""
    call_method(station, method, key.name)
    return Json(_state(station))


def call_method(station: Station, method: str, who: str) -> None:
    """Call a method of the state machine, and record the caller."""
    station.call(method)
    station.keep(Entry("event", body={"event": "method", "method": method, "who": who}))


@router.post("/v1/results/{job}/acknowledge", response_model=models.State)
def acknowledge(station: The, key: Operator, job: Annotated[int, Path(ge=0, lt=1 << 62)]) -> Json:
    """Acknowledge the oldest latched result. Only jobs of line protocols have latched results."""
    station.acknowledge(job)
    return Json(_state(station))


@router.get(
    "/v1/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **problems.responses(503)},
)
async def events(request: Request, station: The, key: Operator) -> StreamingResponse:
    """Server-sent events: record, state, alarm, result; lost: number of events left out because of slow reading."""
    return stream_events(request, station, lambda: any(each.id == key.id for each in station.keys))


def stream_events(request: Request, station: Station, permitted: Callable[[], bool]) -> StreamingResponse:
    """Begin a stream of server-sent events. Problem when too many are open.

    permitted: whether the caller may still receive events. Checked before each message; False ends the stream.
    """
    streams = request.app.state.streams
    if len(streams) >= STREAMS:
        raise Problem(503, f"{STREAMS} streams of events are open, the maximum. Close one.")
    feed = station.subscribe()
    streams.add(feed)

    async def stream() -> AsyncIterator[str]:
        try:
            yield _message("state", _state(station))
            async for message in _messages(station, feed):
                if not permitted():
                    return
                if message:
                    yield message
        finally:
            station.unsubscribe(feed)
            streams.discard(feed)

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/v1/keys", response_model=list[models.KeyShown])
def keys(station: The, key: Engineer) -> Json:
    """All keys, without their secrets."""
    return Json([each.shown() for each in station.keys])


@router.post("/v1/keys", status_code=201, response_model=models.KeyMade)
def make_key(station: The, key: Engineer, new: NewKey) -> Json:
    """Create a key. Only this answer contains its text."""
    made, text = station.keys.make(new.name, Role[new.role.upper()])
    station.keep(change("make key", key.name, key=made.shown()))
    return Json({**made.shown(), "key": text}, 201)


@router.delete("/v1/keys/{id}", response_model=models.KeyShown, responses=problems.responses(404))
def revoke_key(station: The, key: Engineer, id: Annotated[str, Path(pattern="^[0-9a-f]{8}$")]) -> Json:
    """Revoke a key immediately."""
    if all(each.id != id for each in station.keys):
        raise Problem(404, f"There is no key {id}. List the keys to see their ids.")
    gone = station.keys.revoke(id)
    station.keep(change("revoke key", key.name, key=gone.shown()))
    return Json(gone.shown())


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
async def metrics(station: The, key: Operator) -> Response:
    """Metrics for Prometheus."""
    text, kind = await run_in_threadpool(station.metrics.text)
    return Response(text, media_type=kind)


def _state(station: Station) -> dict[str, Any]:
    machine = station.machine
    return {
        "state": machine.state,
        "ready": station.ready,
        "alarms": [{"code": code, "text": ALARMS[code]} for code in sorted(machine.memory.errors)],
        "products": {name: each.challenge for name, each in machine.memory.products.items()},
        "faults": station.products.faults,
    }


async def _messages(station: Station, feed: Feed) -> AsyncIterator[str]:
    """Yield the messages of a stream; empty texts while there is none."""
    silent, lost = 0.0, 0
    while not station.closing:
        what = feed.get()
        if what is None:
            silent += POLL_S
            if silent >= SILENCE_S:
                silent = 0
                yield ": nothing happened\n\n"
            else:
                yield ""
            await asyncio.sleep(POLL_S)
            continue
        silent = 0
        if feed.lost > lost:
            lost = feed.lost
            yield _message("lost", {"events": lost})
        if message := _message_of(station, what):
            yield message


def _message_of(station: Station, what: Event | Row) -> str | None:
    match what:
        case Row():
            return _message("record", what.record(), what.sequence)
        case Transitioned(number, source, target) if source in STATES_RECORDED or target in STATES_RECORDED:
            return _message("state", {**_state(station), "transition": number, "from": source, "to": target})
        case Alarm():
            return _message("alarm", what._asdict())
        case Result(job, outcome):
            return _message("result", {"job": job.id, "part": job.part, "product": job.product, "outcome": outcome})
    return None


def _message(event: str, data: dict[str, Any], id: int | None = None) -> str:
    number = "" if id is None else f"id: {id}\n"
    return f"event: {event}\n{number}data: {files.strict_json(data)}\n\n"

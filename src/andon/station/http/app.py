"""The application: routes, limits, problems; and the server that runs it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

import andon
from andon.station.http import control, inspections, problems, products, records
from andon.station.http.access import Access
from andon.station.http.limits import Limits
from andon.station.line.lines import Lines
from andon.station.pages import app as pages
from andon.station.station import Station
from andon.streams.stopping import SIGNALS

ABOUT = """Visual inspection at the line. The answer 201 to an inspection contains a verdict whose record is durable.
After any other answer there is no verdict: treat the part as a reject. Errors are problem details (RFC 9457). All
routes except `/healthz`, `/readyz` and `/openapi.json` need a key: `Authorization: Bearer andon_…`."""
GRACE_S = 10
"""Maximum time in seconds for open requests when the service stops."""


def create(station: Station, lines: Lines | None = None) -> FastAPI:
    """Return the application of a started station; `lines`: its line protocols, for the pages."""
    app = FastAPI(
        title="andon station",
        version=andon.__version__,
        description=ABOUT,
        docs_url=None,  # these pages would load scripts from other servers
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.station, app.state.access, app.state.streams = station, Access(station), set()
    common = problems.responses()
    for router in (inspections.router, records.router, products.router, products.challenges, control.router):
        app.include_router(router, responses=common)
    app.include_router(control.health)
    app.state.lines = lines
    problems.install(app)
    pages.install(app)
    app.add_middleware(Limits, settings=station.config.http)
    _with_details(app)
    return app


def _with_details(app: FastAPI) -> None:
    """Replace the schemas of FastAPI's errors in OpenAPI by the schema of problems."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = made()["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas["Details"] = problems.Details.model_json_schema()
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


class Server(uvicorn.Server):
    """Uvicorn, extended: it reports its addresses, and ends streams before it waits for open requests."""

    def __init__(self, station: Station, tell: Callable[[str], None], lines: Lines | None = None) -> None:
        settings = station.config.http
        config = uvicorn.Config(
            create(station, lines),
            settings.host,
            settings.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=settings.connections,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GRACE_S,
            lifespan="off",
        )
        super().__init__(config)
        self._station, self._tell = station, tell

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in getattr(self, "servers", []):
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                self._tell(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal. Uvicorn would raise the signal again, which ends the process before the station closes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._station.closing = True
        super().handle_exit(sig, frame)

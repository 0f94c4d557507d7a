"""The pages in the application: routes, static files, headers, errors as pages."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from andon.errors import AndonError
from andon.station.http.access import Access
from andon.station.http.problems import Json, Problem
from andon.station.pages import assets, formats, history, languages, live, product, review, sessions, settings, teach
from andon.station.pages.base import Operator, Page, SignInFirst, state, to_sign_in
from andon.station.pages.sessions import Sessions

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
PROGRAMS = ("/v1/", "/openapi.json", "/healthz", "/readyz", "/metrics")
"""Addresses of the view for programs."""
ERRORS = (Problem, AndonError, RequestValidationError, HTTPException)
YEAR_S = 365 * 86_400

router = APIRouter(include_in_schema=False)


@router.get("/")
def start(page: Operator) -> Response:
    """Where a person begins."""
    teach = page.can("quality") and not page.station.products.catalogue.products
    return RedirectResponse("/teach" if teach else "/live", 303)


@router.get("/sign-in")
def sign_in_page(request: Request, back: str = "/") -> Response:
    """Sign in with a key."""
    return Page(request, None).render("sign_in.html", back=_local(back), fault="")


@router.post("/sign-in")
def sign_in(request: Request, key: Annotated[str, Form()] = "", back: Annotated[str, Form()] = "/") -> Response:
    """Begin a session."""
    access: Access = request.app.state.access
    origin = request.headers.get("origin", "")
    scheme, _, site = origin.partition("://")
    try:
        if origin and site != request.headers.get("host"):
            raise Problem(403, "The form comes from another site.")
        found = access.key(request.client.host if request.client else "", key.strip())
    except Problem as problem:
        page = Page(request, None)
        wrong = page.translate("This key is unknown or revoked. Check that it was copied whole.")
        fault = wrong if problem.status == 401 else problem.detail
        return page.render("sign_in.html", problem.status, back=_local(back), fault=fault)
    answer = RedirectResponse(_local(back), 303)
    open_sessions: Sessions = request.app.state.sessions
    secure = "https" in (scheme, request.url.scheme)  # a proxy may have ended TLS
    answer.set_cookie(sessions.COOKIE, open_sessions.begin(found), httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/sign-out")
def sign_out(request: Request, page: Operator) -> Response:
    """End the session."""
    request.app.state.sessions.end(request.cookies.get(sessions.COOKIE, ""))
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(sessions.COOKIE)
    return answer


@router.post("/display")
def display(
    page: Operator,
    language: Annotated[str, Form()] = "",
    theme: Annotated[str, Form()] = "",
    back: Annotated[str, Form()] = "/",
) -> Response:
    """Choose the language, and light or dark."""
    answer = RedirectResponse(_local(back), 303)
    if language in languages.LANGUAGES:
        answer.set_cookie(languages.COOKIE, language, max_age=YEAR_S, samesite="strict", httponly=True)
    if theme in ("light", "dark", "auto"):
        answer.set_cookie("andon_theme", theme, max_age=YEAR_S, samesite="strict", httponly=True)
    return answer


@router.get("/state")
def station_state(page: Operator) -> Json:
    """The state of the station, for the bar above each page."""
    return Json(state(page.station))


@router.get("/static/{name}")
def static(request: Request, name: str, v: str = "") -> Response:
    """A style or script: a browser keeps what the address names by its digest, and asks again for anything else."""
    found = assets.asset(name)
    kept = "max-age=31536000, immutable" if v == found.digest else "no-cache"
    headers = {"Cache-Control": kept, "ETag": f'"{found.digest}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(found.data, media_type=found.kind, headers=headers)


def _local(back: str) -> str:
    """An address of this station, whatever was given."""
    fits = back.startswith("/") and not back.startswith(("//", "/\\")) and back.isprintable()
    return back if fits else "/"


def install(app: FastAPI) -> None:
    """Add the pages to an application whose errors are installed."""
    app.state.sessions = Sessions(app.state.station.keys, app.state.station.config)
    app.state.small = {}
    languages.FILTERS.update(formats.FILTERS, asset=assets.address)
    for each in (live, review, history, product, teach, settings):
        app.include_router(each.router)
    app.include_router(router)
    app.add_exception_handler(SignInFirst, _sign_in_first)
    for kind in ERRORS:
        app.exception_handlers[kind] = _as_page(app.exception_handlers[kind])
    app.add_middleware(Headers)


async def _sign_in_first(request: Request, error: Exception) -> Response:
    return to_sign_in(request)


def _as_page(handler: Any) -> Any:
    """Answer a browser with a page where a program gets problem details."""

    async def handle(request: Request, error: Exception) -> Response:
        answer: Response = await handler(request, error)
        if "text/html" not in request.headers.get("accept", "") or request.url.path.startswith(PROGRAMS):
            return answer
        token = request.cookies.get(sessions.COOKIE, "")
        session = request.app.state.sessions.find(token) if token else None
        detail = json.loads(bytes(answer.body))["detail"]
        return Page(request, session).render("error.html", answer.status_code, detail=detail)

    return handle


class Headers:
    """Adds the headers that keep a page from loading, or being shown in, anything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        page = scope["type"] == "http" and not scope["path"].startswith(PROGRAMS)
        await self._app(scope, receive, sending if page else send)

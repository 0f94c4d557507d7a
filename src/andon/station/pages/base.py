"""What every page stands on: who is signed in, what that permits, and how a template becomes an answer."""

import gettext
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import jinja2
from fastapi import APIRouter, Depends, FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from markupsafe import Markup

from andon.errors import AndonError
from andon.station.events import ALARMS
from andon.station.http import problems
from andon.station.http.access import Access
from andon.station.http.problems import Problem
from andon.station.keys import Key, Role
from andon.station.pages.formats import FILTERS
from andon.station.pages.sessions import Session, Sessions
from andon.station.station import Station

HERE = Path(__file__).parent
COOKIE, LANGUAGE = "andon_session", "andon_language"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SAFE = ("GET", "HEAD")

templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
)
templates.filters.update(FILTERS)


class SignedOut(Exception):
    """Nobody is signed in at this browser, or no longer."""


@dataclass(frozen=True)
class Page:
    """One request of a person."""

    request: Request
    station: Station
    session: Session
    key: Key

    @property
    def user(self) -> str:
        """Who stands in records."""
        return self.key.name

    @property
    def zone(self) -> ZoneInfo | None:
        return zone(self.station)

    @property
    def language(self) -> str:
        return language(self.request)

    def translate(self, text: str) -> str:
        return catalogue(self.language).gettext(text)

    def can(self, role: str) -> bool:
        """Whether this person may do what a role may."""
        return self.key.rank >= Role[role.upper()]

    def needs(self, role: str) -> None:
        """Problem unless this person may do what a role may."""
        if not self.can(role):
            raise Problem(403, f"Your key has the role {self.key.role}; expected {role}. Sign in with another key.")

    def render(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A template as an answer."""
        return render(self.request, template, status, **values)

    def shared(self) -> dict[str, Any]:
        """What each template knows of this person."""
        field = Markup('<input type="hidden" name="csrf" value="{}">').format(self.session.csrf)
        return {"csrf": self.session.csrf, "csrf_field": lambda: field, "can": self.can, "user": self.key}


def render(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A template as an answer, also to a person who is not signed in."""
    station: Station = request.app.state.station
    texts = catalogue(language(request))
    common = {
        "_": texts.gettext,
        "ngettext": texts.ngettext,
        "language": language(request),
        "languages": languages(),
        "station": station,
        "zone": zone(station),
        "alarms": [ALARMS[code] for code in sorted(station.machine.memory.errors)],
        "path": request.url.path,
        "has": request.app.state.places.__contains__,
        "places": [each for each in PLACES if each[0] in request.app.state.places],
    }
    page: Page | None = getattr(request.state, "page", None)
    person = page.shared() if page else {"user": None, "csrf": "", "can": lambda role: False}
    text = templates.get_template(template).render(common | person | values)
    return HTMLResponse(text, status, HEADERS)


PLACES = (
    ("/live", "Live"),
    ("/review", "Review"),
    ("/history", "History"),
    ("/products", "Products"),
    ("/teach", "Teach"),
    ("/settings", "Settings"),
)
"""Where the navigation leads; what has no route yet is left out."""


def zone(station: Station) -> ZoneInfo | None:
    """Of the plant; None: that of this computer."""
    name = station.config.pages.zone
    return ZoneInfo(name) if name else None


def languages() -> list[str]:
    """English, and those with a catalogue."""
    return ["en", *sorted(path.parents[1].name for path in HERE.glob("locale/*/LC_MESSAGES/andon.mo"))]


def language(request: Request) -> str:
    """As the person chose, else as the browser asks, else English."""
    asked = [
        each.partition(";")[0].strip()[:2].lower() for each in request.headers.get("accept-language", "").split(",")
    ]
    known = languages()
    return next((each for each in (request.cookies.get(LANGUAGE, ""), *asked) if each in known), "en")


def catalogue(language: str) -> gettext.NullTranslations:
    return gettext.translation("andon", HERE / "locale", [language], fallback=True)


def _needs(role: Role) -> Callable[..., Coroutine[Any, Any, Page]]:
    async def page(request: Request) -> Page:
        station: Station = request.app.state.station
        sessions: Sessions = request.app.state.sessions
        keys = {key.id: key for key in station.keys}
        by_itself = request.headers.get("x-andon-by-itself") == "yes"
        stays = station.config.pages.stay_signed_in
        session = sessions.find(
            request.cookies.get(COOKIE, ""),
            lambda id: stays and id in keys and keys[id].rank == Role.OPERATOR,
            acts=not by_itself,
        )
        if session is None or session.key not in keys:
            raise SignedOut
        found = request.state.page = Page(request, station, session, keys[session.key])
        if request.method not in SAFE and not session.permits(await _token(request)):
            raise Problem(403, "The form does not belong to this session. Load the page again, then send it again.")
        found.needs(role.name.lower())
        return found

    return page


async def _token(request: Request) -> str:
    """What proves that a request comes from a page of this session."""
    header = request.headers.get("x-csrf-token")
    if header is not None:
        return header
    if request.headers.get("content-type", "").startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        return str((await request.form()).get("csrf", ""))
    return ""


Operator = Annotated[Page, Depends(_needs(Role.OPERATOR))]
Quality = Annotated[Page, Depends(_needs(Role.QUALITY))]
Engineer = Annotated[Page, Depends(_needs(Role.ENGINEER))]


class PageRoute(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handler(request)
            except SignedOut:
                return _to_sign_in(request)
            except Problem as problem:
                return render(request, "error.html", problem.status, detail=problem.detail)
            except AndonError as error:
                return render(request, "error.html", problems.of(error).status, detail=str(error))

        return handled


def _to_sign_in(request: Request) -> Response:
    back = request.url.path if request.method in SAFE else "/"
    if request.headers.get("hx-request"):
        return Response("", 401, {**HEADERS, "HX-Redirect": f"/sign-in?back={quote(back)}"})
    return RedirectResponse(f"/sign-in?back={quote(back)}", 303, HEADERS)


def install(app: FastAPI, station: Station, routers: Sequence[APIRouter]) -> None:
    """Give an application its pages, and what they need: sessions, static files, signing in and out."""
    for router in routers:
        app.include_router(router)
    app.state.places = {route.path for router in routers for route in router.routes if isinstance(route, APIRoute)}
    app.state.sessions = Sessions(60 * station.config.pages.idle_minutes)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.add_exception_handler(SignedOut, _signed_out)
    app.add_api_route("/sign-in", sign_in, include_in_schema=False, response_class=HTMLResponse)
    app.add_api_route("/sign-in", signed_in, methods=["POST"], include_in_schema=False, response_class=HTMLResponse)
    app.add_api_route("/state", state, include_in_schema=False)
    app.add_api_route("/sign-out", sign_out, methods=["POST"], include_in_schema=False)
    app.add_api_route("/language", choose, include_in_schema=False)


async def _signed_out(request: Request, error: Exception) -> Response:
    return _to_sign_in(request)


def sign_in(request: Request, back: str = "/") -> Response:
    """The form that takes a key."""
    return render(request, "sign_in.html", back=back, fault="")


def signed_in(request: Request, key: Annotated[str, Form()] = "", back: Annotated[str, Form()] = "/") -> Response:
    """Take a key."""
    access: Access = request.app.state.access
    try:
        found = access.key(request.client.host if request.client else "", key.strip())
    except Problem as problem:
        _ = catalogue(language(request)).gettext
        wrong = _("This key is unknown or revoked.") if problem.status == 401 else problem.detail
        return render(request, "sign_in.html", problem.status, back=back, fault=wrong)
    session = request.app.state.sessions.open(found.id)
    answer = RedirectResponse(_local(back), 303, HEADERS)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, session.token, httponly=True, samesite="strict", secure=secure, path="/")
    return answer


def _local(place: str) -> str:
    """A place at this station; the first page for any other."""
    return place if place.startswith("/") and not place.startswith(("//", "/\\")) else "/"


def sign_out(page: Operator) -> Response:
    page.request.app.state.sessions.close(page.session.token)
    answer = RedirectResponse("/sign-in", 303, HEADERS)
    answer.delete_cookie(COOKIE, path="/")
    return answer


def state(page: Operator) -> Response:
    """The state of the station: a part of each page."""
    return page.render("state.html")


def choose(request: Request, to: str, back: str = "/") -> Response:
    """Another language, at this browser."""
    answer = RedirectResponse(_local(back), 303, HEADERS)
    if to in languages():
        answer.set_cookie(LANGUAGE, to, samesite="strict", max_age=31_536_000, path="/")
    return answer

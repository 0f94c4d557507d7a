"""What every page needs: who asks, in which language, the token against forged requests, and how a page is drawn."""

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup
from starlette.datastructures import URL

from andon.station.events import ALARMS, StationError
from andon.station.http.problems import Problem
from andon.station.keys import Key, Role
from andon.station.pages import languages, sessions
from andon.station.pages.sessions import Session, Sessions
from andon.station.station import Station

CSRF_HEADER, CSRF_FIELD = "x-csrf-token", "csrf"
FETCHED = "x-fetched-by-page"
"""Header of requests that a page makes by itself; they do not keep a session from being idle."""
PLACES = (
    ("/live", "Live"),
    ("/review", "Review"),
    ("/history", "History"),
    ("/products", "Products"),
    ("/teach", "Teach"),
    ("/settings", "Settings"),
)
"""Address and English name of each part, in the order of the navigation."""
HEADERS = {"Cache-Control": "no-store"}


class SignInFirst(Exception):
    """A page was asked for without a session."""


class Page:
    """One request of a browser.

    Args:
        request: of HTTP.
        session: None on the page that signs in, and on errors.
    """

    def __init__(self, request: Request, session: Session | None) -> None:
        self.request, self.session = request, session
        self.station: Station = request.app.state.station
        header = request.headers.get("accept-language", "")
        self.language = languages.choose(request.cookies.get(languages.COOKIE), header)

    @property
    def user(self) -> str:
        """Who: it stands in the record of each decision and change."""
        return self.session.key.name if self.session else ""

    @property
    def key(self) -> Key:
        """The key that signed in. Problem where nobody is."""
        if self.session is None:
            raise Problem(401, "Nobody is signed in.")
        return self.session.key

    @property
    def zone(self) -> ZoneInfo | None:
        """The zone of the plant; None: that of this computer."""
        return self.station.config.pages.place

    @property
    def offset(self) -> str:
        """The zone for scripts: its name, or the offset of this computer, such as +02:00."""
        return str(self.zone or datetime.now().astimezone().isoformat()[-6:])

    @property
    def place(self) -> str:
        """The address of this page with its query; of a form that was sent, that of the page with the form."""
        own, get = self.request.url, self.request.method == "GET"
        url = own if get else URL(self.request.headers.get("referer", ""))
        if not get and url.netloc != own.netloc:
            return "/"
        return f"{url.path}?{url.query}" if url.query else url.path

    def permitted(self) -> bool:
        """Whether the session stands, long after the request; asking does not keep it from being idle."""
        found: Sessions = self.request.app.state.sessions
        return found.find(self.request.cookies.get(sessions.COOKIE, ""), by_person=False) is self.session

    def can(self, role: str) -> bool:
        """Whether this person may do what a role may."""
        return self.session is not None and self.session.key.rank >= Role[role.upper()]

    def translate(self, text: str) -> str:
        """A message in the language of the browser."""
        return languages.translations(self.language).gettext(text)

    def csrf(self) -> Markup:
        """The field of a form that another site cannot forge."""
        token = self.session.csrf if self.session else ""
        return Markup('<input type="hidden" name="{}" value="{}">').format(CSRF_FIELD, token)

    def render(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Draw a page."""
        common = {
            "page": self,
            "session": self.session,
            "user": self.user,
            "language": self.language,
            "languages": languages.LANGUAGES,
            "theme": self.request.cookies.get("andon_theme", ""),
            "navigation": PLACES,
            "station": self.station,
            "zone": self.zone,
            "can": self.can,
            "offset": self.offset,
            "path": self.request.url.path,
            "here": self.place,
            "csrf": self.csrf,
            "csrf_token": self.session.csrf if self.session else "",
            "state": state(self.station),
        }
        text = languages.environment(self.language).get_template(template).render(**{**common, **values})
        return HTMLResponse(text.encode(errors="replace"), status, HEADERS)


def addressed(path: str, **query: object) -> str:
    """An address with a query of those values that say something."""
    said = urlencode({name: value for name, value in query.items() if value})
    return f"{path}?{said}" if said else path


def moment(page: Page, text: str) -> datetime:
    """A time of a form, in the zone of the plant unless it has one. StationError for what is none."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=page.zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise StationError(f"time '{text[:40]}': expected one such as 2026-11-26T06:00. Correct it.") from None


def state(station: Station) -> dict[str, Any]:
    """Whether the station is ready, and its state, as plain data for JSON."""
    machine = station.machine
    return {
        "ready": station.ready,
        "state": machine.state,
        "products": sorted(machine.memory.products),
        "alarms": [ALARMS[code] for code in sorted(machine.memory.errors)],
    }


def _needs(role: Role) -> Callable[..., Any]:
    async def page(request: Request) -> Page:
        found: Sessions = request.app.state.sessions
        token = request.cookies.get(sessions.COOKIE, "")
        session = found.find(token, FETCHED not in request.headers) if token else None
        if session is None:
            raise SignInFirst
        if session.key.rank < role:
            raise Problem(403, f"{session.key.name} has the role {session.key.role}; expected {role.name.lower()}.")
        if request.method not in ("GET", "HEAD") and not await _own(request, session):
            raise Problem(403, "The form is not of this session. Load the page again, and repeat.")
        return Page(request, session)

    return page


async def _own(request: Request, session: Session) -> bool:
    """Whether a request that changes something comes from a page of this session."""
    given = request.headers.get(CSRF_HEADER)
    kind = request.headers.get("content-type", "")
    if given is None and kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        given = str((await request.form()).get(CSRF_FIELD, ""))
    return given is not None and hmac.compare_digest(given.encode(), session.csrf.encode())


Operator = Annotated[Page, Depends(_needs(Role.OPERATOR))]
Quality = Annotated[Page, Depends(_needs(Role.QUALITY))]
Engineer = Annotated[Page, Depends(_needs(Role.ENGINEER))]


def to_sign_in(request: Request) -> Response:
    """Where a browser without a session goes."""
    place = f"/sign-in?back={quote(Page(request, None).place)}"
    if "hx-request" in request.headers:  # a part of a page: htmx loads the whole page of signing in
        return Response("", 401, {**HEADERS, "HX-Redirect": place})
    if "text/event-stream" in request.headers.get("accept", ""):  # a page is no stream of events
        return Response("", 401, HEADERS)
    return RedirectResponse(place, 303, HEADERS)

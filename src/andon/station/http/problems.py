"""Errors as problem details (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from andon import files
from andon.errors import AndonError, BundleError, ImageError, RecipeError, StorageError

MEDIA = "application/problem+json"
RETRY_S = 1


class Details(BaseModel):
    """An error: what was found, what was expected, what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str = ""


class Problem(Exception):
    """An error that is sent as the answer.

    Args:
        status: HTTP status.
        detail: one or two sentences.
        facts: further members of the answer.
    """

    def __init__(self, status: int, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.facts = status, detail, facts


class Json(Response):
    """Strict JSON: null in place of NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return files.strict_json(content).encode()


def answer(problem: Problem, instance: str = "") -> Response:
    status = HTTPStatus(problem.status)
    body = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": problem.detail}
    headers = {"Retry-After": str(RETRY_S)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (408, 413):
        headers["Connection"] = "close"
    content = files.strict_json({**body, "instance": instance, **problem.facts}).encode()
    return Response(content, status.value, headers, MEDIA)


def of(error: AndonError) -> Problem:
    """Return the problem for an error of andon."""
    if isinstance(error, StorageError):
        return Problem(503, str(error))
    unfit = isinstance(error, ImageError | BundleError | RecipeError)
    return Problem(422 if unfit else 409, str(error))


def install(app: FastAPI) -> None:
    """Answer every error of the application with problem details."""

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return answer(error, request.url.path)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, AndonError)
        return answer(of(error), request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        return answer(Problem(422, "; ".join(faults)), request.url.path)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = answer(Problem(error.status_code, str(error.detail)), request.url.path)
        found.headers.update(error.headers or {})
        return found

    async def bug(request: Request, error: Exception) -> Response:
        return answer(Problem(500, "An error in andon; see the log of the station."), request.url.path)

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(AndonError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, bug)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route for OpenAPI, including those of all routes."""
    known = {
        404: "The product, record or key does not exist.",
        409: "The state of the station or product does not allow this.",
        415: "The body has a wrong media type.",
        503: "Too many requests at once, or the storage fails. Try again after Retry-After.",
    }
    common = {
        400: "The request cannot be read.",
        401: "There is no valid key.",
        403: "The key's role does not allow this.",
        408: "The body took too long.",
        413: "The request is too large.",
        422: "A value is wrong or missing.",
        429: "Too many requests.",
    }
    texts = {**common, **{status: known[status] for status in statuses}}
    schema = {MEDIA: {"schema": {"$ref": "#/components/schemas/Details"}}}
    return {status: {"description": text, "content": schema} for status, text in sorted(texts.items())}

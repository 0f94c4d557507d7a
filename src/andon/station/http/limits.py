"""Limits of requests: size, duration, and total memory of all requests."""

import asyncio
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from andon.station.config import Http
from andon.station.http import problems
from andon.station.http.problems import Problem

STREAMED = re.compile(r"/v1/products/[^/]+/bundles|/teach/[^/]+/upload")


class Limits:
    """Reads the body of a request within limits before the application gets it; a slow or huge request gets no further.

    Uploaded bundles and training pictures are not held in memory; the application gets them piece by piece.
    """

    def __init__(self, app: ASGIApp, settings: Http) -> None:
        self._app, self._settings = app, settings
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = scope["method"] == "POST" and STREAMED.fullmatch(scope["path"])
        most = (self._settings.max_bundle_mb if upload else self._settings.max_request_mb) << 20
        taken = 0
        try:
            if upload:
                await self._app(scope, self._counted(receive, most), send)
                return
            body = bytearray()
            _check(int(dict(scope["headers"]).get(b"content-length", b"0")), most)
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    piece = message.get("body", b"")
                    _check(len(body) + len(piece), most)
                    self._held += len(piece)
                    taken += len(piece)
                    if self._held > self._settings.max_held_mb << 20:
                        raise Problem(503, f"All requests hold {self._held >> 20} MB in memory. Send fewer at a time.")
                    body += piece
                    if not message.get("more_body"):
                        break
            await self._app(scope, _replay(bytes(body), receive), send)
        except TimeoutError:
            late = Problem(408, f"The body took longer than {self._settings.body_timeout_s:g} s. Check the network.")
            await problems.answer(late, scope["path"])(scope, receive, send)
        except Problem as problem:
            await problems.answer(problem, scope["path"])(scope, receive, send)
        finally:
            self._held -= taken

    def _counted(self, receive: Receive, most: int) -> Receive:
        count = 0

        async def counted() -> Message:
            nonlocal count
            async with asyncio.timeout(self._settings.body_timeout_s):
                message = await receive()
            count += len(message.get("body", b""))
            _check(count, most)
            return message

        return counted


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was already read, then passes on later messages."""
    first: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def message() -> Message:
        return first.pop() if first else await receive()

    return message


def _check(size: int, most: int) -> None:
    if size > most:
        raise Problem(413, f"The request has {size} bytes or more; expected at most {most}. Send less at a time.")

"""Styles, scripts and the icon of the pages. Their address names their digest, so that a browser asks once for each."""

from functools import cache
from importlib import resources
from typing import NamedTuple

from andon import files
from andon.station.http.problems import Problem

KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Asset(NamedTuple):
    """A file that pages load."""

    data: bytes
    digest: str
    kind: str


@cache
def asset(name: str) -> Asset:
    """Return a file by its name. Problem when there is none."""
    file = resources.files("andon") / "station" / "pages" / "static" / name
    kind = KINDS.get(name[name.rfind(".") :])
    if "/" in name or "\\" in name or kind is None or not file.is_file():
        raise Problem(404, f"No file '{name[:80]}'.")
    data = file.read_bytes()
    return Asset(data, files.digest(data)[:16], kind)


def address(name: str) -> str:
    """Return the address of a file, for the templates."""
    return f"/static/{name}?v={asset(name).digest}"

"""Templates → self-contained HTML pages with embedded styles, plots and pictures, without scripts."""

import base64
from typing import Any

import jinja2

from andon.calibration import percent

FOLDERS = ("templates", "station/pages/templates")


def render(template: str, **values: Any) -> bytes:
    """Render a page. All names and messages in it are escaped."""
    pages = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("andon", each) for each in FOLDERS]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(percent=percent, figure=figure)
    return pages.get_template(template).render(**values).encode(errors="backslashreplace")


def data(content: bytes, kind: str) -> str:
    """Return an encoded picture of this kind ("png", "jpeg") as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def figure(value: float | None) -> str:
    """Format a figure in [0, 1], or a dash for None."""
    return "–" if value is None else f"{value:.4f}"

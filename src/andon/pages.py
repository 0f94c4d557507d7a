"""Templates → HTML pages that need nothing else: styles, plots and pictures are inside, and no script."""

import base64
from typing import Any

import jinja2

from andon.calibration import percent


def render(template: str, **values: Any) -> bytes:
    """Make a page. Every name and message in it is escaped: files may be called anything."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("andon", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(percent=percent, figure=figure)
    return pages.get_template(template).render(**values).encode(errors="backslashreplace")


def data(content: bytes, kind: str) -> str:
    """Write a picture of the given kind (png, jpeg) as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def figure(value: float | None) -> str:
    """Write a figure in [0, 1], or a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"

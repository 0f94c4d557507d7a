"""Numbers and times as people of a language read them, in the zone of the plant."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from jinja2 import pass_context
from jinja2.runtime import Context
from markupsafe import Markup

NONE = "–"
COMMA = ("de", "fr")


@pass_context
def moment(context: Context, value: str | datetime) -> str:
    """A time, such as 2026-11-26 19:04:57."""
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except ValueError:
        return str(value)
    return _in_zone(context, found).strftime("%Y-%m-%d %H:%M:%S")


@pass_context
def clock(context: Context, value: datetime) -> str:
    """A time of day, such as 19:04."""
    return _in_zone(context, value).strftime("%H:%M")


def _in_zone(context: Context, value: datetime) -> datetime:
    zone: ZoneInfo | None = context["zone"]
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(zone)


@pass_context
def number(context: Context, value: float | None, digits: int = 4) -> str:
    """A number of so many significant digits."""
    if value is None or not math.isfinite(value):
        return NONE if value is None or math.isnan(value) else "∞"
    return _local(context, f"{value:.{digits}g}")


@pass_context
def whole(context: Context, value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


@pass_context
def percent(context: Context, value: float) -> str:
    """A share, as a percentage."""
    if not math.isfinite(value):
        return NONE
    digits = f"{100 * value:.1f}" if value >= 0.001 or not value else f"{100 * value:.2g}"
    return _local(context, digits) + "\u00a0%"


@pass_context
def size(context: Context, value: float) -> str:
    """Bytes."""
    units = ("o", "ko", "Mo", "Go", "To") if context["language"] == "fr" else ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(value) // 3), len(units) - 1) if value >= 1 else 0
    if float(f"{value / 1000**power:.3g}") >= 1000 and power + 1 < len(units):  # 999.6 kB is 1 MB
        power += 1
    return _local(context, f"{value / 1000**power:.3g}") + f"\u00a0{units[power]}"


@pass_context
def plain(context: Context, value: Any) -> str:
    """Plain data of a bundle."""
    if value is None:
        return NONE
    return number(context, value) if isinstance(value, float) else str(value)


def english(text: object) -> Markup:
    """A sentence that the station made of values: it is English on all pages, and screen readers are told so."""
    return Markup('<span lang="en">{}</span>').format(text)


def decimal(language: str, text: str) -> str:
    """A number as people of a language write it."""
    return text.replace(".", ",") if language in COMMA else text


def _local(context: Context, text: str) -> str:
    return decimal(context["language"], text)


FILTERS: dict[str, Callable[..., Any]] = {
    "moment": moment,
    "clock": clock,
    "number": number,
    "whole": whole,
    "percent": percent,
    "bytes": size,
    "plain": plain,
    "english": english,
}

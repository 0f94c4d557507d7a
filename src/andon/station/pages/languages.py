"""The languages of the pages: gettext catalogues, one Jinja environment for each."""

import gettext
import re
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import jinja2

COOKIE = "andon_language"
LANGUAGES = {"en": "English", "de": "Deutsch", "fr": "Français"}
FILTERS: dict[str, Callable[..., Any]] = {}
"""Filters of the templates, by name."""


@cache
def translations(language: str) -> gettext.NullTranslations:
    """The catalogue of a language; English has none."""
    with resources.as_file(resources.files("andon") / "station" / "pages" / "locale") as folder:
        return gettext.translation("andon", folder, [language], fallback=True)


@cache
def environment(language: str) -> jinja2.Environment:
    """Templates in a language: `_` and `ngettext` translate."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("andon", "station/pages/templates"),
        extensions=["jinja2.ext.i18n"],
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.install_gettext_translations(translations(language))  # type: ignore[attr-defined]
    made.filters.update(FILTERS)
    return made


def choose(cookie: str | None, accepted: str) -> str:
    """The language of a request: that of the cookie, else the first of Accept-Language that there is, else English."""
    if cookie in LANGUAGES:
        return str(cookie)
    weighted = []
    for place, each in enumerate(accepted.split(",")[:50]):
        found = re.fullmatch(r"\s*([A-Za-z]{1,8})[^;]*(?:;\s*q=([01](?:\.\d{0,3})?))?\s*", each)
        if found and found[1].lower() in LANGUAGES:
            weighted.append((-float(found[2] or 1), place, found[1].lower()))
    return min(weighted)[2] if weighted else "en"

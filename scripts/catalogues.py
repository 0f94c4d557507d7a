"""Update the catalogues of the station's pages from their templates and modules, and compile them.

    python scripts/catalogues.py

Run it after a change of a text; then translate what is new in `locale/*/LC_MESSAGES/andon.po`, and run it again.
"""

import re
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

PAGES = Path(__file__).parents[1] / "src" / "andon" / "station" / "pages"
KEYWORDS = {"_": None, "translate": None, "ngettext": (1, 2)}
SOFTWARE = ("system", "version of the records")  # what Settings, Software names itself
OPTIONS = {"trimmed": "true", "extensions": "jinja2.ext.i18n"}


def extracted() -> Catalog:
    """All messages: of templates and modules, and the words that templates translate by their value."""
    from andon.station.events import ALARMS, Outcome
    from andon.station.keys import Role
    from andon.station.pages.base import PLACES
    from andon.station.table import STATES

    found = Catalog(project="andon", charset="utf-8", fuzzy=False)
    for path in sorted(PAGES.rglob("*")):
        method = {".py": "python", ".html": "jinja2"}.get(path.suffix)
        if method:
            for _, message, _, _ in extract_from_file(method, path, KEYWORDS, options=OPTIONS):
                found.add(message)
    words = (*(each.value for each in Outcome), *STATES, *(role.name.lower() for role in Role), *ALARMS.values())
    for word in (*words, *(name for _, name in PLACES), "higher", "lower", "wider spread", *SOFTWARE):
        found.add(word)
    return found


def file(language: str) -> Path:
    """The catalogue of a language."""
    return PAGES / "locale" / language / "LC_MESSAGES" / "andon.po"


def updated(language: str, messages: Catalog) -> Catalog:
    """The catalogue of a language with these messages; those that are new have no translation."""
    path = file(language)
    known = read_po(BytesIO(path.read_bytes()), locale=language) if path.exists() else Catalog(locale=language)
    known.update(messages, no_fuzzy_matching=True)
    known.obsolete.clear()
    return known


def compiled(catalogue: Catalog) -> bytes:
    """A catalogue as gettext reads it."""
    out = BytesIO()
    catalogue.creation_date = catalogue.revision_date = datetime(2026, 1, 1, tzinfo=UTC)  # the same file each time
    write_mo(out, catalogue)
    return out.getvalue()


def text(catalogue: Catalog) -> bytes:
    """A catalogue as people edit it."""
    out = BytesIO()
    write_po(out, catalogue, width=120, sort_output=True, no_location=True, omit_header=False)
    return re.sub(rb'"(POT-|PO-|Last-|Language-Team|Generated)[^\n]*\n', b"", out.getvalue())


def untranslated(catalogue: Catalog) -> list[object]:
    """The messages without a translation."""
    strings = {each.id: each.string for each in catalogue if each.id}
    return [id for id, string in strings.items() if not string or (isinstance(string, tuple) and not all(string))]


def main() -> None:
    """Update and compile all catalogues; print what is not translated."""
    messages = extracted()
    for language in ("de", "fr"):
        catalogue, path = updated(language, messages), file(language)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text(catalogue))
        path.with_suffix(".mo").write_bytes(compiled(read_po(BytesIO(path.read_bytes()), locale=language)))
        missing = untranslated(catalogue)
        print(f"{language}: {len(catalogue)} messages, {len(missing)} not translated")
        for each in missing:
            print(f"  {each!r}")


if __name__ == "__main__":
    main()

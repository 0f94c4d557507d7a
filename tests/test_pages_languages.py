"""The pages in German and French: every message is translated, and the compiled catalogues are those of the texts."""

import re
import sys
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("babel", reason="babel is not installed")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from babel.messages.pofile import read_po

import catalogues
from andon.station.pages import languages

PLACEHOLDERS = re.compile(r"%\(\w+\)s|\{\w+\}|%%")


@pytest.mark.parametrize("language", ["de", "fr"])
def test_every_message_is_translated_with_its_placeholders(language: str) -> None:
    content = catalogues.file(language).read_bytes()
    catalogue = read_po(BytesIO(content), locale=language)
    assert {each.id for each in catalogue} - {""} == {each.id for each in catalogues.extracted()} - {""}
    assert catalogues.untranslated(catalogue) == []
    for each in catalogue:
        if each.id:
            originals = [each.id] if isinstance(each.id, str) else list(each.id)
            for text in [each.string] if isinstance(each.string, str) else each.string:
                assert sorted(PLACEHOLDERS.findall(text)) == sorted(PLACEHOLDERS.findall(originals[-1])), text
    assert catalogues.file(language).with_suffix(".mo").read_bytes() == catalogues.compiled(catalogue)


def test_no_sentence_is_the_same_in_two_languages() -> None:
    """A translation that stands in the catalogue of another language."""
    sentences = []
    for language in ("de", "fr"):
        catalogue = read_po(BytesIO(catalogues.file(language).read_bytes()), locale=language)
        sentences.append({each.id: each.string for each in catalogue if isinstance(each.id, str) and " " in each.id})
    german, french = sentences
    assert [id for id in german if len(id) > 20 and german[id] in (french[id], id)] == []
    assert [id for id in french if len(id) > 20 and french[id] == id] == []


def test_a_page_is_in_the_language_that_a_browser_asks_for() -> None:
    assert languages.choose(None, "de-AT,de;q=0.9,en;q=0.5") == "de"
    assert languages.choose(None, "pt, fr;q=0.2, en;q=0.1") == "fr"
    assert languages.choose("en", "de") == "en" and languages.choose(None, "pt") == "en"
    found = languages.environment("de").from_string('{{ _("REJECT") }}: {{ ngettext("%(n)s day", "%(n)s days", 2) }}')
    assert found.render() == "AUSSCHUSS: %(n)s Tage"

"""The documentation builds as a site: every page in its navigation, every link valid, nothing loaded from elsewhere."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADED = re.compile(r"""<(?:script|img|iframe|link(?=[^>]*rel="?stylesheet))[^>]*(?:src|href)=["']?(?:https?:)?//""")


@pytest.mark.skipif(
    find_spec("mkdocs") is None or find_spec("mkdocstrings_handlers") is None,
    reason="needs the packages of locks/docs.txt: pip install -e '.[docs]'",
)
def test_site_builds_strictly_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert [name for name, page in pages.items() if LOADED.search(page)] == []
    assert "The held-out scores of the bundle" in pages["api/inspecting.html"]  # a docstring
    assert "Allowed share of good parts that get REJECT" in pages["api/training.html"]  # a field's docstring
    assert "Expected share of good parts with at least this score" in pages["api/inspecting.html"]  # a field's comment


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if page not in navigation} == set()

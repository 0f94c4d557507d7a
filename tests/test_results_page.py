"""The tables that benchmarks/results_page.py writes into the pages are those of the figures in benchmarks/runs."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")  # plans name detectors that need it

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("plan", "page"), [("sources", "results"), ("sources_short", "results")])
def test_a_page_shows_the_kept_figures(plan: str, page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from results_page import main

    written, copy = ROOT / f"docs/{page}.md", tmp_path / "page.md"
    before, begin, rest = written.read_text().partition(f"<!-- begin {plan} -->")
    copy.write_text(before + begin + rest[rest.index(f"<!-- end {plan} -->") :])
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(ROOT / f"benchmarks/{plan}.toml"), str(copy)])
    main()
    assert copy.read_text() == written.read_text()

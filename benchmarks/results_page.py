"""Write the tables of a plan into a page, from the figures that `runs.py` keeps, between two markers:

    python benchmarks/results_page.py benchmarks/sources.toml docs/results.md

The page has the markers `<!-- begin NAME -->` and `<!-- end NAME -->`, with the name of the plan. Figures of other
settings than the plan's are left out, and named. Tables of published figures keep the rows of our detectors only. Cells
that were not run are counted; columns and rows without any figure, and means that a column lacks, are left out.
"""

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from andon import files
from andon.lab.bench import plan as plans
from andon.lab.bench import report, table
from andon.lab.bench.plan import Plan
from runs import CELL, detector, kept

TABLES = ("Image AUROC", "Image AP", "Pixel AUROC", "AUPRO to 30 % FPR")
NONE = "–"


def results(plan: Plan, lines: list[dict[str, Any]], out: Path) -> None:
    """Write a folder of results as `andon bench run` does, with the lines that are cells of the plan."""
    known = {tuple(line[key] for key in CELL): line for line in lines}
    cells = plans.combined(plan)
    described = []
    for cell in cells:
        recipe, line = cell.recipe.dump(), known.get(cell[:4])
        described.append({**cell._asdict(), "recipe": recipe, "place": cell.place.as_posix()})
        if line and line["settings"] != detector(recipe):
            print(f"{cell}: left out, its settings are not those of the plan")
        elif line:
            path = out / "cells" / f"{cell.place}.json"
            files.make_folder(path.parent)
            files.write(path, files.strict_json({**nested(line), "status": "done", "recipe": recipe}).encode())
    published = {product.name: product.published for product in plan.products if product.published}
    files.write(out / "plan.json", files.strict_json({"cells": described, "published": published}).encode())
    if plan.published:
        files.write(out / "published.toml", Path(plan.published).read_bytes())


def nested(line: dict[str, Any]) -> dict[str, Any]:
    """The result of a cell, from its columns in the table."""
    result: dict[str, Any] = {}
    for column, value in line.items():
        *parents, last = table.COLUMNS.get(column, ("", column))[1].split(".")
        inner = result
        for name in parents:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return result


def by_class(plan: Plan, lines: list[dict[str, Any]]) -> Plan:
    """The plan with the classes of its data sets as products (`--protocol one-class`): digits-0 to digits-9."""
    names = [product.name for product in plan.products]
    products = []
    for product in plan.products:
        found = {line["product"] for line in lines if line["product"] not in names}
        classes = sorted(name for name in found if re.fullmatch(f"{product.name}-\\d+", name))
        products += [product.model_copy(update={"name": name}) for name in classes or [product.name]]
    return plan.model_copy(update={"products": products})


def tables(text: str) -> list[str]:
    """The chosen tables of a report, as Markdown with headings of level 3."""
    made = []
    for section in text.split("\n## ")[1:]:
        title = section.split("\n")[0]
        name, _, published = title.partition(": published")
        rows = [line.strip("| ").split(" | ") for line in section.split("\n") if line.startswith("| ")]
        if name not in TABLES or (not published and title not in TABLES):
            continue
        labels = 3 if published else 1
        head, body = rows[0], [row for row in rows[1:] if any(re.search(r"\(\d", cell) for cell in row[labels:])]
        shown = [i for i in range(len(head)) if i < labels or any(row[i] != NONE for row in body)]
        body = [row for row in body if row[0] != "mean" or not any(row[i].startswith(NONE) for i in shown)]
        lines = [head, ["---"] * labels + ["--:"] * (len(head) - labels), *body]
        if body:
            made.append(f"### {title}\n\n" + "\n".join(f"| {' | '.join(row[i] for i in shown)} |" for row in lines))
    return made


def main() -> None:
    """Make the report of the plan and write its tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    lines = kept(given.plan.stem)
    with tempfile.TemporaryDirectory() as folder:
        results(by_class(plans.load(given.plan), lines), lines, Path(folder))
        report.write(folder)
        text = (Path(folder) / "results.md").read_text()
    counts = re.search(r"\n(\d+ of \d+ cells finished[^\n]*)", text)
    assert counts
    begin, end = (f"<!-- {word} {given.plan.stem} -->" for word in ("begin", "end"))
    before, found, rest = given.page.read_text().partition(begin)
    assert found and end in rest, f"{given.page} lacks {begin} or {end}. Add both"
    made = "\n\n".join([begin, counts[1], *tables(text), end])
    files.write(given.page, (before + made + rest.split(end, 1)[1]).encode())


if __name__ == "__main__":
    main()

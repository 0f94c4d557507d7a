"""Copy tables of a benchmark's report into a page between two markers:

    andon bench report benchmarks/sources
    python benchmarks/results_page.py benchmarks/sources docs/results.md

The page has the markers `<!-- begin FOLDER -->` and `<!-- end FOLDER -->`, with the name of the folder. Tables of
published figures keep the rows of our detectors only. Cells that were not run are counted, and columns and rows
without any figure are left out.
"""

import argparse
import re
from pathlib import Path

TABLES = ("Image AUROC", "Image AP", "Pixel AUROC", "AUPRO to 30 % FPR")
NONE = "–"


def tables(report: str) -> list[str]:
    """The chosen tables of a report, as Markdown with headings of level 3."""
    made = []
    for section in report.split("\n## ")[1:]:
        title = section.split("\n")[0]
        name, _, published = title.partition(": published")
        rows = [line.strip("| ").split(" | ") for line in section.split("\n") if line.startswith("| ")]
        if name not in TABLES or (not published and title not in TABLES):
            continue
        labels = 3 if published else 1
        head, body = rows[0], [row for row in rows[1:] if any(re.search(r"\(\d", cell) for cell in row[labels:])]
        kept = [i for i in range(len(head)) if i < labels or any(row[i] != NONE for row in body)]
        lines = [head, ["---"] * labels + ["--:"] * (len(head) - labels), *body]
        if body:
            made.append(f"### {title}\n\n" + "\n".join(f"| {' | '.join(row[i] for i in kept)} |" for row in lines))
    return made


def main() -> None:
    """Read the report and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    report, page = (given.folder / "results.md").read_text(), given.page.read_text()
    counts = re.search(r"\n(\d+ of \d+ cells finished[^\n]*)", report)
    assert counts, f"{given.folder}/results.md has no count of cells; expected a report of andon bench"
    begin, end = (f"<!-- {word} {given.folder.name} -->" for word in ("begin", "end"))
    before, found, rest = page.partition(begin)
    assert found and end in rest, f"{given.page} lacks {begin} or {end}. Add both"
    text = "\n\n".join([begin, counts[1], *tables(report), end])
    given.page.write_text(before + text + rest.split(end, 1)[1])


if __name__ == "__main__":
    main()

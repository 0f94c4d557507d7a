"""Keep the figures of benchmarks in the repository: benchmarks/runs/NAME.jsonl, a line for each finished cell.

    python benchmarks/runs.py benchmarks/sources [other folders of results]

`andon bench` writes into folders that git ignores. A line has the cell, its detector with all settings, the figures,
the times and the machine; cells of the file that the folder lacks stay.
"""

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from andon import files
from andon.lab.bench import table
from andon.lab.bench.plan import OCCLUSIONS

CELL = ("product", "detector", "size", "seed")
FIGURES = ("image_auroc", "image_auroc_low", "image_auroc_high", "image_ap", "pixel_auroc", "aupro_30", "hit_rate")
OTHERS = (
    "control_auroc",
    "control_near",
    "test_good",
    "test_defective",
    "fit_seconds",
    "total_seconds",
    "made",
    "machine",
)

HERE = Path(__file__).resolve().parent / "runs"


def kept(name: str) -> list[dict[str, Any]]:
    """The lines of a file."""
    path = HERE / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def detector(recipe: str) -> dict[str, Any]:
    """The detector of a recipe with its settings, paths relative to the folder of the plans."""
    chosen: dict[str, Any] = tomllib.loads(recipe)["detector"]
    if folder := chosen["settings"].get(OCCLUSIONS):
        chosen["settings"][OCCLUSIONS] = os.path.relpath(folder, HERE.parent)
    return chosen


def keep(folder: Path) -> Path:
    """Add the finished cells of a folder of results to its file."""
    path = HERE / f"{folder.name}.jsonl"
    lines = {tuple(line[key] for key in CELL): line for line in kept(folder.name)}
    for row in table.rows(folder):
        if row["status"] == "done":
            chosen = {key: row[key] for key in (*CELL, *FIGURES, *OTHERS)}
            lines[tuple(row[key] for key in CELL)] = {**chosen, "settings": detector(row["recipe"])}
    files.make_folder(path.parent)
    files.write(path, "".join(files.strict_json(lines[key]) + "\n" for key in sorted(lines)).encode())
    return path


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(keep(Path(name).resolve()))

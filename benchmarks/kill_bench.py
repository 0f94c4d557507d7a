"""Kill a benchmark at ten random times with kill -9, and check that its table equals that of an undisturbed run.

    python benchmarks/kill_bench.py [--kills 10] [--seed 0]

Two small products of synthetic rings, two detectors, three seeds: twelve cells. Times, memory and the size of the
bundle file are left out of the comparison; all figures, digests and thresholds are compared.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from andon.lab.bench import run, table

PLAN = """
sizes = [64]
seeds = [0, 1, 2]
[[detectors]]
name = "variation"
[[detectors]]
name = "nearest-image"
[[products]]
name = "ring"
folder = "ring"
[[products]]
name = "hoop"
folder = "hoop"
"""


def paint(path: Path, rng: np.random.Generator, scratched: bool) -> None:
    """Write a bright ring with noise, with a dark scratch where asked for."""
    y, x = np.mgrid[:64, :64] / 64 - 0.5
    value = 90 + 90 * ((np.hypot(x, y) > 0.2) & (np.hypot(x, y) < 0.4)) + 5 * rng.standard_normal((64, 64))
    picture = np.clip(value, 0, 255).astype(np.uint8)
    if scratched:
        start = rng.integers(10, 40, 2)
        cv2.line(picture, start.tolist(), (start + 12).tolist(), 0, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


def fixed(out: Path) -> list[table.Json]:
    """The table without what two runs cannot have in common."""
    return [{key: value for key, value in row.items() if key not in table.MEASURED} for row in table.rows(out)]


def main() -> None:
    """Run once whole, then killed again and again, and compare."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    rng, chance = np.random.default_rng(given.seed), random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for product in ("ring", "hoop"):
            for kind, count in (("train/good", 12), ("test/good", 4), ("test/scratch", 4)):
                for j in range(count):
                    paint(here / product / kind / f"{j:02}.png", rng, kind == "test/scratch")
        plan = here / "plan.toml"
        plan.write_text(PLAN)
        began = time.perf_counter()
        run.run(plan, here / "whole")
        whole = time.perf_counter() - began
        code = f"from andon.lab.bench import run; run.run({str(plan)!r}, {str(here / 'killed')!r})"
        for kill in range(1, given.kills + 1):
            wait = chance.uniform(0.5, 2.5 * whole / given.kills + 2)
            with subprocess.Popen([sys.executable, "-c", code]) as process:
                try:
                    process.wait(wait)
                    end = "had finished"
                except subprocess.TimeoutExpired:
                    process.kill()
                    end = f"killed after {wait:.2f} s"
            described = (here / "killed/plan.json").exists()
            done = sum(row["status"] == "done" for row in table.rows(here / "killed")) if described else 0
            print(f"{kill:2}: {end}, {done} of 12 cells done", flush=True)
        found = run.run(plan, here / "killed")
        same = fixed(here / "whole") == fixed(here / "killed")
        left = [path.name for path in (here / "killed").rglob("*.part")]
        print(
            f"resumed: {found.done} done, {found.failed} failed; table identical: {same}; leftovers: {left or 'none'}"
        )
        if not same:
            sys.exit(1)


if __name__ == "__main__":
    main()

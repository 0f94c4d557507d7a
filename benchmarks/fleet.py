"""Efficiency of a fleet on one machine: products and an archive on two workers.

    python benchmarks/fleet.py [--small] [--write docs/scale.md]

1. Products: 12 small products, trained, calibrated and evaluated on a Ray cluster of one CPU, then of two.
2. Archive: 5,000 pictures through Ray Data on two workers, and with `--local` on two threads.

Every worker has one thread, so both sides use two cores at most. Times are those of the user: from the call to the last
file, on a cluster that is running; the processes of the workers start within them. Close other programs first: the
figures are useless on a busy machine. All pictures are made here. `--write` puts the table into the section "Measured"
of a page.
"""

import argparse
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from andon.bundle import machine
from andon.errors import few
from andon.fleet import archive, cluster, plan, plant
from andon.training.train import train

SIDE, SMALL_SIDE = 256, 128  # pixels of a picture and of the input; of the small products
WORKERS = 2


def picture(path: Path, seed: int, side: int = SIDE, defect: bool = False) -> None:
    """Write a ring with a pattern and noise; a defect is a dark line."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    ring = 0.35 + 0.4 * ((np.hypot(x, y) > 0.2) & (np.hypot(x, y) < 0.4)) + 0.1 * np.sin(40 * x)
    pixels = np.clip(ring[..., None] + 0.02 * rng.standard_normal((side, side, 3)), 0, 1) * 255
    if defect:
        cv2.line(pixels, (side // 4, side // 2), (side // 2, side // 4), (0, 0, 0), 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels.astype(np.uint8))


def plant_of(root: Path, products: int, good: int) -> Path:
    """Write products and their plan; return the plan."""
    lines = [f"[recipe]\ngeometry.size = {SMALL_SIDE}\n"]
    for number in range(products):
        folder = root / f"product{number}"
        for seed in range(good):
            picture(folder / "train/good" / f"{seed}.png", 1000 * number + seed, SMALL_SIDE)
        for seed in range(4):
            picture(folder / "test/good" / f"{seed}.png", 1000 * number + 900 + seed, SMALL_SIDE)
            picture(folder / "test/line" / f"{seed}.png", 1000 * number + 950 + seed, SMALL_SIDE, defect=True)
        lines.append(f'[[products]]\nname = "{folder.name}"\nimages = "{folder.name}"\n')
    path = root / "plant.toml"
    path.write_text("\n".join(lines))
    return path


@contextmanager
def running(cpus: int) -> Iterator[str]:
    """Yield the address of a Ray cluster on this machine."""
    os.environ.update(cluster.QUIET | cluster.LOOPBACK)
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": cpus, "object_store_memory": cluster.STORE_MB * cluster.MB, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=settings)
    try:
        yield started.address
    finally:
        started.shutdown()


def products(root: Path, path: Path, workers: int) -> float:
    """Train the plan on a cluster of so many CPUs; return the seconds."""
    loaded = plan.load(path, root / f"trained{workers}")
    with running(workers) as address:
        began = time.perf_counter()
        summary = plant.train(loaded, cluster.products([str(root)], address), quiet=True)
        seconds = time.perf_counter() - began
    if summary.done != len(loaded.jobs):
        raise SystemExit(f"{summary.failed} products failed; see {summary.table}")
    return seconds


def inspected(bundle: Path, pictures: Path, out: Path, run: archive.Run, rows: int) -> tuple[float, float]:
    """Inspect the archive; return the seconds to the first rows and to the last."""
    first: list[float] = []
    began = time.perf_counter()

    def noted(stage: str, done: int, total: int) -> None:
        if done and not first:
            first.append(time.perf_counter() - began)

    summary = archive.inspect(bundle, str(pictures), out, run, rows=rows, progress=noted)
    if summary.errors:
        raise SystemExit(f"{len(summary.errors)} pictures could not be inspected: {few(summary.errors)}")
    return first[0], time.perf_counter() - began


def main() -> None:
    """Print the section, and write it into a page if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="4 products and 200 pictures: does it run?")
    parser.add_argument("--write", type=Path, help="page with a section 'Measured'")
    options = parser.parse_args()
    if options.write and not options.write.is_file():
        parser.error(f"{options.write}: no such page")
    count, good, many, rows = (4, 12, 200, 20) if options.small else (12, 40, 5000, 100)
    with tempfile.TemporaryDirectory(prefix="andon-fleet-") as temporary:
        root = Path(temporary)
        path = plant_of(root, count, good)
        one, two = products(root, path, 1), products(root, path, WORKERS)

        for seed in range(many):
            picture(root / "archive" / f"{seed % 50:02}" / f"{seed:05}.png", seed)
        bundle = root / "part.andon"
        for seed in range(good):
            picture(root / "part/good" / f"{seed}.png", many + seed)
        train(root / "part", bundle, size=SIDE)
        first, local = inspected(bundle, root / "archive", root / "local", archive.local(WORKERS), rows)
        with running(WORKERS) as address:
            run = cluster.inspecting(address, WORKERS)
            start, spread = inspected(bundle, root / "archive", root / "ray", run, rows)
        parts = sorted((root / "local").glob("part-*"))
        if [part.read_bytes() for part in parts] != [(root / "ray" / part.name).read_bytes() for part in parts]:
            raise SystemExit("the rows differ between Ray and --local")
        row_bytes = sum(part.stat().st_size for part in parts) / many

    command = f"python benchmarks/fleet.py{' --small' if options.small else ''}"
    lines = [
        (f"{count} products, 1 worker", one, f"{one / count:.1f} s a product"),
        (f"{count} products, {WORKERS} workers", two, f"{one / two:.2f} × faster"),
        (f"{many:,} pictures, `--local` on {WORKERS}", local, f"{many / local:.1f} pictures/s, from {first:.1f} s on"),
        (
            f"{many:,} pictures, Ray Data on {WORKERS}",
            spread,
            f"{local / spread:.2f} × the rate, from {start:.1f} s on",
        ),
    ]
    table = "\n".join(f"| {what} | {seconds:.1f} | {result} |" for what, seconds, result in lines)
    section = f"""## Measured

`{command}` on {machine()}, {os.cpu_count()} cores,
{time.strftime("%d %B %Y")}. `memory-bank`, products of {SMALL_SIDE}²,
archive of {SIDE}² in parts of {rows}; one thread a worker. Ray's workers start within the times.

| | seconds | |
|---|---|---|
{table}

All rows of the two archives are equal, byte for byte: {row_bytes:.0f} bytes a picture. At these rates

- a billion such pictures take {1e9 * WORKERS * spread / many / 3600:,.0f} core-hours, their rows {row_bytes:.0f} GB;
- a thousand such products take {1000 * WORKERS * two / count / 3600:,.1f} core-hours.
"""
    print(section)
    if options.write:
        page = re.sub(r"## Measured\n.*?(?=\n## |\Z)", "", options.write.read_text(), flags=re.DOTALL)
        before, mark, after = page.partition("## A billion pictures")
        options.write.write_text(f"{before.rstrip()}\n\n{section}\n{mark}{after}" if mark else f"{page}\n{section}")


if __name__ == "__main__":
    main()

"""The search of `memory-bank` in cells beside that of the whole bank: time, and what it misses.

    python benchmarks/search.py bottle --banks 1000 2000 5000 20000 100000

Fits preset `fast` with each bank on the good pictures of a product below ../shared/data and searches for the patches of
its test pictures, on ONNX Runtime. *Found*: share of patches whose nearest memory is found; *excess*: mean distance to
what is found above that to the nearest, credit included, as a share of the mean distance. Prints Markdown.
"""

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
from spox import Tensor, argument, build

from andon.detectors.memory_bank import MemoryBank, Settings
from andon.detectors.memory_bank.search import Memories
from andon.engines import runtime
from andon.geometry import views
from andon.inspection import Array
from memory_bank_study import Images, load

PICTURES = 30  # test pictures whose patches are searched for
TURNS = 3


def session(memories: Memories, threads: int) -> Any:
    """The graph of a search alone."""
    q = argument(Tensor(np.float32, ("n", memories.rows.shape[1] + 1)))
    return runtime.session(build({"q": q}, {"near": memories.search(q)}), threads)


def row(bank: int, detector: MemoryBank, maps: list[list[Array]], threads: int) -> str:
    """Search both ways, in turn."""
    laps: dict[str, list[float]] = {"whole": [], "cells": []}
    near: dict[str, list[Array]] = {"whole": [], "cells": []}
    sides = [
        {
            "whole": session(each.memories._replace(starts=np.array([0, len(each.memories.rows)])), threads),
            "cells": session(each.memories, threads),
        }
        for each in detector._banks
    ]
    for turn in range(TURNS):
        for picture in maps:
            for name in laps:
                start = time.perf_counter()
                found = [side[name].run(None, {"q": q})[0] for side, q in zip(sides, picture, strict=True)]
                laps[name].append(1000 * (time.perf_counter() - start))
                if turn == 0:
                    near[name] += found
    whole, cells = (np.concatenate(near[name]) for name in ("whole", "cells"))
    numbers = [
        f"{', '.join(f'{len(each.memories.rows):,}' for each in detector._banks)}",
        f"{', '.join(str(len(each.memories.starts) - 1) for each in detector._banks)}",
        *(f"{median(laps[name]):.2f}" for name in laps),
        f"{100 * np.isclose(whole, cells, rtol=1e-4, atol=1e-3).mean():.1f}",
        f"{100 * (cells.mean(dtype=np.float64) - whole.mean(dtype=np.float64)) / np.abs(whole).mean():.2f}",
    ]
    return f"| {bank:,} | {' | '.join(numbers)} |"


def main() -> None:
    """Fit and search with each bank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("product")
    parser.add_argument("--banks", nargs="+", type=int, default=[1000, 2000, 5000, 20_000, 100_000])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    fit, _, test, _, _ = load(given.product, 0)
    geometry = views.Geometry(size=MemoryBank.sizes["fast"]).with_shape([picture.shape[:2] for picture in fit])
    good, shown = Images(fit, geometry), Images(test[:: max(1, len(test) // PICTURES)], geometry)
    print("| bank | memories of each stage | cells | whole, ms | cells, ms | found, % | excess, % |")
    print("|---|---|---|--:|--:|--:|--:|", flush=True)
    for bank in given.banks:
        settings = Settings(**{**MemoryBank.presets["fast"], "bank": bank, "candidates": max(60_000, 2 * bank)})
        detector = MemoryBank(settings, 0).fit(good)
        describe, maps = detector._describing(), []
        for tile in shown.tiles:
            picture = []
            for each, x in zip(detector._banks, describe(tile[None]), strict=True):
                white = (x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1]) - each.mean) @ each.whiten
                picture.append(np.pad(white, ((0, 0), (0, 1)), constant_values=1).astype(np.float32))
            maps.append(picture)
        print(row(bank, detector, maps, given.threads), flush=True)


if __name__ == "__main__":
    main()

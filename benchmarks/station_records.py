"""The records of a station: durable rows per second with group commit, and the time of one page of history.

    python benchmarks/station_records.py [URL]

Without a URL: SQLite in a temporary folder. This measures the disk of that folder: set TMPDIR to the disk of the
station.
"""

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from andon.station.entries import Entry
from andon.station.ledger import Ledger

ROWS = 100_000
GROUPS = (1, 4, 16, 64)
PAGES = {
    "newest": {},
    "part": {"part": "part 4711"},
    "rare verdict": {"verdict": "REJECT"},
    "common verdict": {"verdict": "PASS"},
    "lot": {"lot": "lot 3"},
    "product": {"product": "bolt"},
    "product that is rare": {"product": "nut"},
    "high scores": {"score": (3.5, 1e9)},
    "half of the scores": {"score": (0.0, 1e9)},
    "product and half of the scores": {"product": "nut", "score": (0.0, 1e9)},
    "no such score": {"score": (100, 1e9)},
    "product, verdict and lot": {"product": "bolt", "verdict": "REVIEW", "lot": "lot 70"},
    "product, verdict and scores": {"product": "bolt", "verdict": "REVIEW", "score": (0.0, 0.1)},
    "inspections, verdict and scores": {"kind": "inspection", "verdict": "REVIEW", "score": (0.0, 0.1)},
    "product and lot": {"product": "bolt", "lot": "lot 70"},
    "product, verdict, lot, many of each": {"product": "bolt", "verdict": "PASS", "lot": "lot 70"},
    "product and rare verdict": {"product": "screw", "verdict": "REJECT"},
    "changes (none)": {"kind": "change"},
    "verdict and lot that never meet": {"verdict": "REVIEW", "lot": "lot 50"},
    "middle of the record": {"after": ROWS // 2},
}


def entry(number: int, draw: random.Random) -> Entry:
    verdict = "REJECT" if number % 997 == 0 else "REVIEW" if number % 20 == 0 and number // 1000 != 50 else "PASS"
    return Entry(
        "inspection",
        job=number,
        product="nut" if number < 300 else "bolt" if number % 2 else "screw",
        part=f"part {number}",
        lot=f"lot {number // 1000}",
        verdict=verdict,
        score=draw.gauss(),
        p_value=draw.random(),
        body={"digest": draw.randbytes(32).hex(), "regions": [{"box": [1, 2, 3, 4], "peak": draw.random()}] * 8},
    )


def main(url: str) -> None:
    draw = random.Random(0)
    with Ledger(url, "benchmark") as ledger:
        done = 0
        for group in GROUPS:
            start, count = time.perf_counter(), 100 * group
            for _ in range(100):
                ledger.append([entry(done + each, draw) for each in range(group)])
                done += group
            print(f"group of {group:3}: {count / (time.perf_counter() - start):8.0f} durable rows/s")
        while done < ROWS:
            ledger.append([entry(done + each, draw) for each in range(500)])
            done += 500
        print(f"{done} records")
        for name, filters in PAGES.items():
            times = []
            for _ in range(21):
                start = time.perf_counter()
                rows = ledger.history(**filters)
                times.append(1000 * (time.perf_counter() - start))
            print(f"{name:35} {len(rows):3} rows  p50 {statistics.median(times):7.2f} ms  max {max(times):7.2f} ms")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(str(Path(folder) / "ledger.db"))

"""Work for the tests of work beside the line; little is imported, because each process imports it anew."""

import time
from pathlib import Path

from andon.errors import AndonError
from andon.station.background import Report


def steps(report: Report, count: int, left: str) -> int:
    """Tell of steps; with a file, write it and wait to be ended."""
    report.progress("counting", count, 4)
    report.tell(f"counted {count}")
    report.warn("nearly done")
    if count < 0:
        raise AndonError("expected a number from 0")
    if left:
        try:
            Path(left).write_text("half")
            while True:
                time.sleep(0.01)
        finally:
            Path(left).unlink()
    return 2 * count

"""The live table of a fleet on a terminal: products that run, products that failed, and counts of the others."""

import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from andon.fleet.product import Job, Json

SECONDS = 1.0  # between two drawings
TAIL = 4096  # bytes of a log that hold its last line


class Table:
    """Shows products on a stream: redrawn in place on a terminal, otherwise one line for each result."""

    def __init__(self, jobs: Sequence[Job], stream: TextIO, quiet: bool = False) -> None:
        """Products whose logs grow from now on are shown as running."""
        self._jobs = {job.name: job for job in jobs}
        self._sizes = {job.name: _size(job) for job in jobs}
        self._results: dict[str, Json] = {}
        self._stream, self._quiet = stream, quiet
        self._height = 0
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._redraw, name="andon-table", daemon=True)
        self._live = stream.isatty() and not quiet

    def add(self, result: Json) -> None:
        """Take the result of a product."""
        with self._lock:
            self._results[result["product"]] = result
        if not self._live and not self._quiet:
            print(f"[{len(self._results)}/{len(self._jobs)}] {line(result)}", file=self._stream, flush=True)

    def lines(self, width: int, height: int) -> list[str]:
        """Return the table, at most `height` lines of at most `width` characters."""
        with self._lock:
            results = dict(self._results)
        failed = [line(result) for result in results.values() if result["status"] == "failed"]
        other = [line(result) for result in reversed(results.values()) if result["status"] != "failed"]
        running = [
            f"{job.name:<20} running  {_last_line(job)}"
            for name, job in self._jobs.items()
            if name not in results and _size(job) > self._sizes[name]
        ]
        counts = Counter(result["status"] for result in results.values())
        counts["running"], counts["waiting"] = len(running), len(self._jobs) - len(results) - len(running)
        head = f"{len(self._jobs)} products: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return [text[:width] for text in [head, *running, *failed, *other][:height]]

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._live:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Draw a last time."""
        if self._live:
            self._ended.set()
            self._thread.join()
            self._draw()

    def _redraw(self) -> None:
        while not self._ended.wait(SECONDS):
            self._draw()

    def _draw(self) -> None:
        width, height = shutil.get_terminal_size()
        lines = self.lines(width - 1, height - 2)
        up = f"\x1b[{self._height}A" if self._height else ""
        self._stream.write(up + "".join(f"\x1b[2K{text}\n" for text in lines) + "\x1b[J")
        self._stream.flush()
        self._height = len(lines)


def line(result: Json) -> str:
    """Return one line on the result of a product."""
    text = f"{result['product']:<20} {result['status']:<8}"
    if result["status"] == "failed":
        return f"{text} {result['error']}"
    figures = [f"{result.get('seconds', 0):.0f} s on {result.get('node', '?')}", f"{result.get('images', 0)} images"]
    if result.get("image_auroc") is not None:
        figures.append(f"image AUROC {result['image_auroc']:.4f}")
        figures.append(f"{result['review_escapes']} of {result['test_defective']} defects escape")
    if result.get("recalibrated"):
        figures.append("recalibrated, not evaluated since")
    return f"{text} {', '.join(figures)}"


def _size(job: Job) -> int:
    try:
        return job.log.stat().st_size
    except OSError:
        return 0


def _last_line(job: Job) -> str:
    try:
        with job.log.open("rb") as file:
            file.seek(max(0, _size(job) - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = text.splitlines() or [""]
    return lines[-1].partition(" ")[2]

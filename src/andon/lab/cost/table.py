"""The costs of detectors as a table, and as figures 5 and 6 of source [4]. Columns:

- parameters: constants of the graph that are weights or biases of convolutions, transposed convolutions and matrix
  products; stored features of good parts are included if the graph multiplies with them.
- multiply-adds: those of convolutions, transposed convolutions and matrix products, for one tile.
- forward: memory of all values that the graph computes for one tile, without those that only change a shape.
- backward: peak memory that automatic differentiation saves in a training step on one tile, without the weights.
- model: the fitted detector: for networks all weights, as they are trained, else all constants.
- ONNX: size of the file of the graph.
- peak: peak memory of the process that runs the graph on one tile at a time, with Python and ONNX Runtime; on a GPU,
  the memory that torch allocates there.
- p50, p95: time from one tile in memory to its score and map, median and 95th percentile of the runs.
- tiles/s at 8: throughput with eight tiles at a time.

MB are 10⁶ bytes.
"""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from andon import files
from andon.bundle import machine, versions
from andon.evaluate import plots


class Row(NamedTuple):
    """One row of the table; None if a value does not exist or cannot be measured."""

    detector: str
    device: str
    shape: tuple[int, int]  # of a tile, pixels
    parameters: int
    multiply_adds: int | None
    forward_mb: float | None
    backward_mb: float | None
    model_mb: float
    onnx_mb: float
    peak_mb: float | None  # of the process that runs the graph, or of the GPU
    p50_ms: float
    p95_ms: float
    throughput: float  # tiles a second, with 8 tiles at a time


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    cells = [
        [
            row.detector,
            row.device,
            " × ".join(map(str, dict.fromkeys(row.shape))),  # one number for a square
            _figure(row.parameters / 1e6),
            _figure(None if row.multiply_adds is None else row.multiply_adds / 1e9),
            *(_figure(value) for value in row[5:]),
        ]
        for row in rows
    ]
    lines = [list(HEAD), *cells]
    widths = [max(len(line[j]) for line in lines) for j in range(len(HEAD))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


HEAD = (
    *("detector", "device", "side", "parameters, 10⁶", "multiply-adds, 10⁹", "forward, MB", "backward, MB"),
    *("model, MB", "ONNX, MB", "peak, MB", "p50, ms", "p95, ms", "tiles/s at 8"),
)


def _figure(value: float | None) -> str:
    """Format with three significant digits; numbers above 100 as integers."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def write(rows: Sequence[Row], out: Path) -> None:
    """Write cost.csv, cost.md, and figures 5 and 6 of [4]: latency.svg and sizes.svg, with a bar a detector."""
    files.make_folder(out)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Row._fields)
    writer.writerows(rows)
    provenance = f"{machine()}, {os.cpu_count()} cores; " + ", ".join(f"{k} {v}" for k, v in versions().items())
    words = __doc__.partition("Columns:")[2].strip()
    times = [plots.Bar(_label(row), [row.p50_ms], f"{_figure(row.p50_ms)} ms") for row in rows]
    sizes = [
        plots.Bar(row.detector, parts, f"{_figure(sum(parts))} MB")
        for row in rows
        if row.device == "cpu"
        for parts in [[row.forward_mb or 0.0, row.backward_mb or 0.0, row.model_mb, row.onnx_mb]]
    ]
    labels = ["forward", "backward", "full model", "ONNX file"]
    for name, content in (
        ("cost.csv", text.getvalue()),
        ("cost.md", f"# Cost of detectors\n\n{markdown(rows)}\n{provenance}\n\n{words}\n"),
        ("latency.svg", plots.bars(times, ["p50"], "milliseconds for one tile, p50")),
        ("sizes.svg", plots.bars(sizes, labels, "MB, for one tile")),
    ):
        files.write(out / name, content.encode(errors="replace"))  # the name of a bundle may not be valid UTF-8


def _label(row: Row) -> str:
    return row.detector if row.device == "cpu" else f"{row.detector}, {row.device}"

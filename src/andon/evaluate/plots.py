"""Plots as SVG text for HTML pages, without scripts.

Good parts are blue and defects vermilion (colours by Okabe and Ito, which colour-blind people can distinguish).
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

GOOD, DEFECT = "#0072b2", "#d55e00"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
AXIS, GRID, INK = "#888", "#e4e4e4", "#333"


class Line(NamedTuple):
    """A curve; with a name it is in the legend."""

    x: ArrayLike
    y: ArrayLike
    name: str = ""
    colour: str = GOOD


class Mark(NamedTuple):
    """A point with a label beside it."""

    x: float
    y: float
    label: str
    colour: str = INK


class Band(NamedTuple):
    """One row of histograms."""

    name: str
    values: ArrayLike
    colour: str


class Cut(NamedTuple):
    """A vertical line through all rows of histograms."""

    value: float
    label: str
    dashed: bool = False


class Bar(NamedTuple):
    """One stacked bar, with a text at its end."""

    name: str
    values: Sequence[float]  # of its parts
    words: str


class Axis:
    """Values ↔ pixels on one axis, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, stop: float, log: bool = False) -> None:
        """Map the values from `low` to `high` to the pixels from `start` to `stop`."""
        self.low, self.high, self.start, self.stop, self.log = low, high, start, stop, log

    def at(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the positions of values in pixels; values outside the range are clipped."""
        bounds = np.array([self.low, self.high])
        inside = np.clip(np.asarray(values, dtype=np.float64), *bounds)
        if self.log:
            inside, bounds = np.log(inside), np.log(bounds)
        share = (inside - bounds[0]) / (bounds[1] - bounds[0])
        return np.asarray(self.start + (self.stop - self.start) * share)

    def ticks(self) -> list[float]:
        """Return about five round values along the axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 4 else (1,)
            values = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            values = [step * j for j in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [value for value in values if self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)]


def line_plot(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    x_range: tuple[float, float] = (0.0, 1.0),
    y_range: tuple[float, float] = (0.0, 1.0),
    diagonal: bool = False,
    size: tuple[int, int] = (440, 400),
) -> str:
    """Draw curves on one pair of axes; `diagonal` adds the diagonal of a ROC plot."""
    width, height = size
    x, y = Axis(*x_range, 56, width - 14), Axis(*y_range, height - 46, 12)
    parts = [_grid_x(x, 12, height - 46), _grid_y(y, 56, width - 14)]
    if diagonal:
        parts.append(_path(x.at([0, 1]), y.at([0, 1]), AXIS, 'stroke-dasharray="3 4"'))
    parts += [_path(x.at(line.x), y.at(line.y), line.colour, 'stroke-width="2"') for line in lines]
    for j, mark in enumerate(marks):
        px, py = float(x.at(mark.x)), float(y.at(mark.y))
        left = px > width / 2
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" fill="{mark.colour}" stroke="#fff"/>')
        parts.append(_text(mark.label, px + (-9 if left else 9), py + 15 + 15 * j, "end" if left else "start"))
    named = [line for line in lines if line.name]
    for j, line in enumerate(named):
        top = height - 62 - 18 * (len(named) - 1 - j)
        parts.append(f'<rect x="{width - 32}" y="{top - 9}" width="14" height="4" fill="{line.colour}"/>')
        parts.append(_text(line.name, width - 38, top - 3, "end"))
    parts.append(_text(x_label, (56 + width - 14) / 2, height - 10, "middle"))
    parts.append(_text(y_label, 14, (height - 34) / 2, "middle", f'transform="rotate(-90 14 {(height - 34) / 2:.0f})"'))
    return _svg(width, height, f"{y_label} against {x_label}", parts)


def histograms(
    bands: Sequence[Band],
    cuts: Sequence[Cut],
    x_label: str,
    bins: int = 60,
    width: int = 620,
    row: int = 64,
    unit: str = "images",
) -> str:
    """Draw histograms below each other on a common axis, each scaled to its maximum, with lines at one or two values.

    The axis is logarithmic if all values are positive and the largest is more than 20 times the smallest. Infinite
    values are drawn at its ends.
    """
    finite = np.concatenate([np.asarray(band.values, np.float64).ravel() for band in bands] + [[c.value for c in cuts]])
    finite = finite[np.isfinite(finite)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    log = low > 0 and high > 20 * low
    if log:
        low, high = low * 0.9, high * 1.1
    else:
        margin = 0.03 * (high - low) or max(abs(high), 1.0) * 0.5
        low, high = low - margin, high + margin
    left, top = 130, 34
    bottom = top + row * len(bands)
    x = Axis(low, high, left, width - 14, log)
    parts = [_grid_x(x, top, bottom)]
    for j, band in enumerate(bands):
        base = top + row * (j + 1)
        values = np.asarray(band.values, np.float64)
        counts, edges = np.histogram(x.at(values), bins=bins, range=(x.start, x.stop))
        scale = (row - 16) / max(int(counts.max(initial=0)), 1)
        bars = "".join(
            f"M{start:.1f} {base}v{-count * scale:.1f}h{stop - start - 0.6:.1f}V{base}z"
            for start, stop, count in zip(edges[:-1], edges[1:], counts, strict=True)
            if count
        )
        parts.append(f'<path d="{bars}" fill="{band.colour}"/>')
        parts.append(f'<path d="M{left} {base}H{width - 14}" stroke="{AXIS}"/>')
        parts.append(_text(_truncate(band.name, 18), left - 10, base - row / 2 + 8, "end", 'font-weight="600"'))
        parts.append(_text(f"{values.size} {unit}", left - 10, base - row / 2 + 23, "end"))
    for j, cut in enumerate(sorted(cuts, key=lambda cut: cut.value)):
        at = float(x.at(cut.value))
        dash = 'stroke-dasharray="5 4"' if cut.dashed else ""
        parts.append(f'<path d="M{at:.1f} {top - 8}V{bottom}" stroke="{INK}" stroke-width="1.5" {dash}/>')
        leftwards = j < len(cuts) - 1 if len(cuts) > 1 else at > width / 2
        parts.append(_text(cut.label, at + (-4 if leftwards else 4), top - 12, "end" if leftwards else "start"))
    parts.append(_text(x_label + (" (logarithmic)" if log else ""), (left + width - 14) / 2, bottom + 38, "middle"))
    return _svg(width, bottom + 46, f"histograms of {x_label}", parts)


def scatter(
    points: Sequence[Mark],
    x_label: str,
    y_label: str,
    y_limit: float = math.inf,
    size: tuple[int, int] = (620, 400),
) -> str:
    """Draw labelled points. The x axis, of positive values, is logarithmic if their range is more than a factor of 10.

    y_limit: maximum of the y axis, for values that cannot exceed it.
    """
    width, height = size
    log = max(point.x for point in points) > 10 * min(point.x for point in points)
    x = Axis(*_range([point.x for point in points], log), 56, width - 14, log)
    low, high = _range([point.y for point in points], False)
    y = Axis(low, min(high, y_limit), height - 46, 12)
    parts = [_grid_x(x, 12, height - 46), _grid_y(y, 56, width - 14)]
    labels: list[tuple[float, float, float]] = []  # y, left and right end of the labels so far
    for point in sorted(points, key=lambda point: -point.y):
        px, py = float(x.at(point.x)), float(y.at(point.y))
        length = 7.0 * len(point.label)
        leftwards = px + 9 + length > width
        left_end = px - 9 - length if leftwards else px + 9
        line = py + 4
        while any(
            abs(line - other) < 14 and left_end < right and left_end + length > left for other, left, right in labels
        ):
            line += 14
        labels.append((line, left_end, left_end + length))
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" fill="{point.colour}" stroke="#fff"/>')
        parts.append(_text(point.label, px - 9 if leftwards else px + 9, line, "end" if leftwards else "start"))
    parts.append(_text(x_label + (" (logarithmic)" if log else ""), (56 + width - 14) / 2, height - 10, "middle"))
    parts.append(_text(y_label, 14, (height - 34) / 2, "middle", f'transform="rotate(-90 14 {(height - 34) / 2:.0f})"'))
    return _svg(width, height, f"{y_label} against {x_label}", parts)


def bars(rows: Sequence[Bar], parts: Sequence[str], x_label: str, width: int = 760) -> str:
    """Draw stacked bars below each other; if they have several parts, a legend above names them."""
    named = parts if len(parts) > 1 else ()
    left, right, top, row = 160, width - 20 - 7 * max(len(bar.words) for bar in rows), 34 if named else 12, 26
    bottom = top + row * len(rows)
    x = Axis(0, max(sum(bar.values) for bar in rows) or 1, left, right)
    elements, at = [_grid_x(x, top, bottom)], float(left)
    for name, colour in zip(named, COLOURS, strict=False):
        elements.append(f'<rect x="{at:.0f}" y="10" width="10" height="10" fill="{colour}"/>')
        elements.append(_text(name, at + 15, 19, "start"))
        at += 34 + 7 * len(name)
    for j, bar in enumerate(rows):
        ends = x.at(np.cumsum([0, *bar.values])).tolist()
        line = top + row * j + 5
        elements += [
            f'<rect x="{start:.1f}" y="{line}" width="{stop - start:.1f}" height="{row - 9}" fill="{colour}"/>'
            for start, stop, colour in zip(ends, ends[1:], COLOURS, strict=False)
        ]
        elements.append(_text(_truncate(bar.name, 21), left - 8, line + 13, "end"))
        elements.append(_text(bar.words, ends[-1] + 6, line + 13, "start"))
    elements.append(_text(x_label, (left + right) / 2, bottom + 36, "middle"))
    return _svg(width, bottom + 44, f"bars of {x_label}", elements)


def cloud(points: ArrayLike, defective: ArrayLike, side: int = 300) -> str:
    """Draw points (n, 2) of good and of defective (n,) images with equal scales, without axes."""
    at, bad = np.asarray(points, np.float64), np.asarray(defective, bool)
    low, high = at.min(axis=0), at.max(axis=0)
    scale = (side - 24) / max(float((high - low).max()), 1e-12)
    pixels = side / 2 + (at - (low + high) / 2) * scale
    parts = [f'<rect x="0.5" y="0.5" width="{side - 1}" height="{side - 1}" fill="none" stroke="{GRID}"/>']
    for kind, colour in ((~bad, GOOD), (bad, DEFECT)):
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}" fill-opacity="0.75"/>' for x, y in pixels[kind]
        ]
    parts.append(f'<rect x="0" y="{side + 8}" width="10" height="10" fill="{GOOD}"/>')
    parts.append(_text(f"{np.count_nonzero(~bad)} good", 15, side + 17, "start"))
    parts.append(f'<rect x="90" y="{side + 8}" width="10" height="10" fill="{DEFECT}"/>')
    parts.append(_text(f"{np.count_nonzero(bad)} defective", 105, side + 17, "start"))
    return _svg(side, side + 24, "images as points of a plane", parts)


def critical_difference(
    names: Sequence[str], ranks: Sequence[float], difference: float, groups: Sequence[tuple[int, int]], width: int = 640
) -> str:
    """Draw mean ranks, in ascending order, on one axis; a bar joins groups whose differences are not significant."""
    k = len(names)
    rows, bars_at = (k + 1) // 2, 64
    first_row = bars_at + 12 * len(groups) + 14
    height = first_row + 20 * rows
    x = Axis(1, max(k, 1 + difference), 170, width - 170)
    at = x.at(ranks)
    parts = [f'<path d="M{x.start} 48H{x.stop}" stroke="{INK}"/>']
    for tick in range(1, int(x.high) + 1):
        parts.append(f'<path d="M{x.at(tick):.1f} 43v5" stroke="{INK}"/>')
        parts.append(_text(str(tick), float(x.at(tick)), 38, "middle"))
    parts.append(f'<path d="M{x.start} 12v8m0-4H{x.at(1 + difference):.1f}m0-4v8" stroke="{INK}" fill="none"/>')
    parts.append(_text(f"critical difference {difference:.2f}", float(x.at(1 + difference)) + 6, 20, "start"))
    for j, (name, mean, px) in enumerate(zip(names, ranks, at, strict=True)):
        left = j < rows
        line = first_row + 20 * (j if left else k - 1 - j)
        end = x.start - 8 if left else x.stop + 8
        parts.append(f'<path d="M{px:.1f} 48V{line}H{end}" stroke="{AXIS}" fill="none"/>')
        words = f"{_truncate(name, 22)} {mean:.2f}" if left else f"{mean:.2f} {_truncate(name, 20)}"
        parts.append(_text(words, end + (-4 if left else 4), line + 4, "end" if left else "start"))
    for j, (first, last) in enumerate(groups):
        parts.append(
            f'<path d="M{at[first] - 4:.1f} {bars_at + 12 * j}H{at[last] + 4:.1f}" stroke="{INK}" stroke-width="5"/>'
        )
    return _svg(width, height, "mean ranks with the critical difference", parts)


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Return the range of values with a margin on both sides."""
    low, high = min(values), max(values)
    if log:
        return low / 1.3, high * 1.6
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _svg(width: int, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _path(x: NDArray[np.float64], y: NDArray[np.float64], colour: str, extra: str) -> str:
    """Return a line through points in pixels; points that are equal to 0.1 pixels are drawn once."""
    points = np.round(np.stack([x, y], axis=1), 1)
    points = points[np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))]
    path = " ".join(f"{px:g},{py:g}" for px, py in points.tolist())
    return f'<polyline points="{path}" fill="none" stroke="{colour}" {extra}/>'


def _grid_x(axis: Axis, top: float, bottom: float) -> str:
    parts = []
    for tick in axis.ticks():
        at = float(axis.at(tick))
        parts.append(f'<path d="M{at:.1f} {top}V{bottom}" stroke="{GRID}"/>')
        parts.append(_text(f"{tick:g}", at, bottom + 17, "middle"))
    return "".join(parts)


def _grid_y(axis: Axis, left: float, right: float) -> str:
    parts = []
    for tick in axis.ticks():
        at = float(axis.at(tick))
        parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="{GRID}"/>')
        parts.append(_text(f"{tick:g}", left - 7, at + 4, "end"))
    return "".join(parts)


def _text(words: str, x: float, y: float, anchor: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}" {extra}>{escape(words)}</text>'


def _truncate(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"

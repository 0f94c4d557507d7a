"""Erosion, dilation and morphological gradient with flat rectangles: separable, and logarithmic in the side.

A running maximum of width 2m is the maximum of two running maxima of width m, so a width k takes ⌈log₂ k⌉ pairwise
maxima and passes every smaller power of two on its way; a list of widths takes little more than its largest. Rectangles
are separable: one running maximum of a width serves all heights. Doubling and not van Herk's three comparisons a pixel
(van Herk 1992; Gil & Werman 1993): those run one after the other along a line, doubling takes whole images at a time.

Anchor: the rectangle covers [x − ⌊k/2⌋, x + ⌊(k − 1)/2⌋], as OpenCV's default anchor does, so an even one reaches a
pixel further to the left and up; erosion and dilation alike. Border: what lies outside the image never wins, as
with OpenCV's default border value. Repeating the edge pixel comes to the same, since the part of the rectangle that
lies inside always holds that pixel.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Operation = Literal["erosion", "dilation", "gradient"]
OPERATIONS: tuple[Operation, ...] = ("erosion", "dilation", "gradient")
Pick = Callable[..., Tensor]  # torch.maximum or torch.minimum


class Case(NamedTuple):
    """One morphological transform."""

    operation: Operation
    width: int  # pixels
    height: int


def transform(images: Tensor, cases: Sequence[Case]) -> list[Tensor]:
    """Apply every case to images (n, c, h, w) of any type; a gradient of unsigned integers is one of them too.

    Built of slices and pairwise maxima alone, so that it runs on every device and torch.onnx exports it.
    """
    highest = _extremes(images, [case[1:] for case in cases if case.operation != "erosion"], torch.maximum)
    lowest = _extremes(images, [case[1:] for case in cases if case.operation != "dilation"], torch.minimum)
    found = []
    for operation, *sides in cases:
        size = (sides[0], sides[1])
        if operation == "gradient":
            found.append(highest[size] - lowest[size])
        else:
            found.append(highest[size] if operation == "dilation" else lowest[size])
    return found


def _extremes(images: Tensor, sizes: Iterable[tuple[int, int]], pick: Pick) -> dict[tuple[int, int], Tensor]:
    """Maxima or minima over rectangles: (width, height) → (n, c, h, w)."""
    wanted = list(sizes)
    widths, heights = (sorted({size[axis] for size in wanted}) for axis in (0, 1))
    if not wanted:
        return {}
    rows = _running(images, widths, -1, pick)
    # Every width in one go, for few passes over much are what devices, caches and exporters like.
    both = _running(torch.stack(list(rows.values())), heights, -2, pick)
    return {(width, height): both[height][widths.index(width)] for width, height in wanted}


def _running(x: Tensor, sizes: Sequence[int], axis: int, pick: Pick) -> dict[int, Tensor]:
    """Running maxima or minima of several sizes along an axis, each of the shape of x."""
    length, largest = x.shape[axis], max(sizes)
    before = largest // 2
    x = _padded(x, before, (largest - 1) // 2, axis)
    found, size = {}, 1
    for wanted in sorted(set(sizes)):
        for step in _steps(wanted, size):
            kept = x.shape[axis] - step
            x = pick(x.narrow(axis, 0, kept), x.narrow(axis, step, kept))
        size = wanted
        found[wanted] = x.narrow(axis, before - wanted // 2, length)
    return found


def _padded(x: Tensor, before: int, after: int, axis: int) -> Tensor:
    """Repeat the edge along an axis."""
    shape = [-1] * x.ndim
    parts = [x]
    for count, at in ((before, 0), (after, x.shape[axis] - 1)):
        shape[axis] = count
        edge = x.narrow(axis, at, 1).expand(shape)
        parts = [edge, *parts] if at == 0 else [*parts, edge]
    return torch.cat([part for part in parts if part.shape[axis]], dim=axis) if before + after else x


def _steps(size: int, reached: int) -> list[int]:
    """By how much to shift so that windows of `reached` grow to `size`."""
    steps = []
    while reached < size:
        steps.append(min(reached, size - reached))
        reached += steps[-1]
    return steps

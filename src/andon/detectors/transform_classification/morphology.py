"""Erosion, dilation and morphological gradient with flat rectangles: separable, and logarithmic in the side.

A running maximum of width 2m is the maximum of two running maxima of width m. So a width k needs ⌈log₂ k⌉ pairwise
maxima, which include every smaller power of two, and a list of widths costs little more than its largest width.
Rectangles are separable: all heights share the running maximum of a width. Van Herk's algorithm (van Herk 1992; Gil &
Werman 1993) needs only three comparisons a pixel, but it is sequential along a line; doubling works on whole images.

Anchor: the rectangle covers [x − ⌊k/2⌋, x + ⌊(k − 1)/2⌋], as OpenCV's default anchor does, so an even one reaches one
pixel further to the left and up, in erosion and dilation. Border: values outside the image have no effect, as with
OpenCV's default border value. The edge pixel is repeated, which has the same result, because the part of the rectangle
inside the image always contains the edge pixel.
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
    """Apply every case to images (n, c, h, w) of any type; a gradient has the type of the images.

    It uses only slices and pairwise maxima, so it runs on every device and torch.onnx can export it.
    """
    highest = _extremes(images, [case[1:] for case in cases if case.operation != "erosion"], torch.maximum)
    lowest = _extremes(images, [case[1:] for case in cases if case.operation != "dilation"], torch.minimum)
    results = []
    for operation, width, height in cases:
        size = (width, height)
        if operation == "gradient":
            results.append(highest[size] - lowest[size])
        else:
            results.append(highest[size] if operation == "dilation" else lowest[size])
    return results


def _extremes(images: Tensor, sizes: Iterable[tuple[int, int]], pick: Pick) -> dict[tuple[int, int], Tensor]:
    """Maxima or minima over rectangles: (width, height) → (n, c, h, w)."""
    sizes = list(sizes)
    widths, heights = (sorted({size[axis] for size in sizes}) for axis in (0, 1))
    if not sizes:
        return {}
    rows = _running(images, widths, -1, pick)
    # All widths in one tensor: a few passes over much data are faster, and the exported graph is smaller.
    both = _running(torch.stack(list(rows.values())), heights, -2, pick)
    return {(width, height): both[height][widths.index(width)] for width, height in sizes}


def _running(x: Tensor, sizes: Sequence[int], axis: int, pick: Pick) -> dict[int, Tensor]:
    """Running maxima or minima of several sizes along an axis, each of the shape of x."""
    length, largest = x.shape[axis], max(sizes)
    before = largest // 2
    x = _padded(x, before, (largest - 1) // 2, axis)
    extremes, reached = {}, 1
    for size in sorted(set(sizes)):
        for step in _steps(size, reached):
            rest = x.shape[axis] - step
            x = pick(x.narrow(axis, 0, rest), x.narrow(axis, step, rest))
        reached = size
        extremes[size] = x.narrow(axis, before - size // 2, length)
    return extremes


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
    """Shifts by which windows of size `reached` grow to `size`."""
    steps = []
    while reached < size:
        steps.append(min(reached, size - reached))
        reached += steps[-1]
    return steps

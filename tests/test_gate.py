"""The export gate: a graph that says anything else than the fitted detector gets into no bundle."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from andon.detectors.memory_bank import MemoryBank
from andon.errors import TrainingError
from andon.inspection import Pixels, Scores
from andon.training import gate
from conftest import Stack, noise

Change = Callable[[Scores], Scores]


def level(tiles: Pixels) -> Scores:
    """A detector whose map is the gray value and whose score is the map's mean."""
    pixel = tiles.mean(axis=3, dtype=np.float32) / np.float32(np.iinfo(tiles.dtype).max)
    return Scores(pixel.mean(axis=(1, 2)), pixel)


def shallow(tiles: Pixels) -> Scores:
    """As `level`, and the scores differ far less than the map's values do."""
    scores = level(tiles)
    return Scores(np.float32(0.5) + np.float32(1e-4) * scores.image, scores.pixel)


def constant(tiles: Pixels) -> Scores:
    return Scores(np.full(len(tiles), 7, np.float32), np.full(tiles.shape[:3], 3, np.float32))


def held(
    monkeypatch: pytest.MonkeyPatch, fitted: Callable[[Pixels], Scores], change: Change, tiles: Pixels | None = None
) -> dict[str, float]:
    """Hold a graph that changes what a detector says against that detector."""

    class Fitted(MemoryBank):
        def score(self, tiles: Pixels) -> Scores:
            return fitted(tiles)

    class Graph:
        def __init__(self, *_: Any) -> None: ...

        def score(self, tiles: Pixels) -> Scores:
            return change(fitted(tiles))

    monkeypatch.setattr(gate, "Runtime", Graph)
    return gate.check(Fitted(Fitted.Config(), 0), b"", Stack(noise(12, 16) if tiles is None else tiles))


def plus(score: float = 0.0, pixel: float = 0.0) -> Change:
    return lambda found: Scores(found.image + np.float32(score), found.pixel + np.float32(pixel))


def corner(side: int, by: float) -> Change:
    """Change the map in one corner of the first tile."""

    def change(found: Scores) -> Scores:
        pixel = found.pixel.copy()
        pixel[0, :side, :side] += np.float32(by)
        return Scores(found.image, pixel)

    return change


def reversed_order(found: Scores) -> Scores:
    return Scores(found.image.max() + found.image.min() - found.image, found.pixel)


def spoiled(found: Scores, value: float) -> Scores:
    image = found.image.copy()
    image[-1] = value
    return Scores(image, found.pixel)


def by_batch(found: Scores) -> Scores:
    return plus(0.1 * (len(found.image) == 1))(found)


@pytest.mark.parametrize("fitted", [level, shallow])
def test_the_same_passes_and_reversed_scores_do_not(
    fitted: Callable[[Pixels], Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert held(monkeypatch, fitted, plus())["onnxruntime"] == 0
    with pytest.raises(TrainingError, match=r"the graph on onnxruntime differs from the fitted memory-bank: the score"):
        held(monkeypatch, fitted, reversed_order)


@pytest.mark.parametrize(
    ("fitted", "change", "message"),
    [
        (level, plus(score=0.01), "the score by"),
        (level, plus(pixel=0.01), "the map by 0.0"),
        (level, plus(pixel=0.004), "the map by 0.0"),  # everywhere
        (level, corner(8, 0.004), "the map by 0.0"),  # a quarter of a single tile
        (level, corner(1, 0.04), "the map by 0.0"),
        (shallow, plus(score=1e-5), "the score by"),  # a hundred thousandth of the map's range
        (level, by_batch, "in a batch of 1;"),
        (level, lambda found: spoiled(found, np.nan), "the score by nan"),
        (level, lambda found: spoiled(found, np.inf), "the score by nan"),
        (level, lambda found: Scores(found.image[:, None], found.pixel), "the score by nan"),
        (level, lambda found: Scores(found.image, found.pixel[:, :-1]), "the map by nan"),
        (constant, plus(score=1e-3), "the score by"),
        (constant, plus(pixel=1e-3), "the map by"),
    ],
)
def test_each_output_is_held_against_its_own_range(
    fitted: Callable[[Pixels], Scores], change: Change, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError) as caught:
        held(monkeypatch, fitted, change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fitted", "change"),
    [
        (level, plus(score=1e-5, pixel=1e-4)),
        (constant, plus(score=2e-6, pixel=1e-6)),  # rounding of float32
        (lambda tiles: Scores(*(0 * values for values in level(tiles))), plus()),
    ],
)
def test_rounding_is_no_difference(
    fitted: Callable[[Pixels], Scores], change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 <= held(monkeypatch, fitted, change)["onnxruntime"] <= gate.TOLERANCE


def test_a_small_part_of_a_map_may_differ_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate.TOLERANCE < held(monkeypatch, level, corner(3, 0.004))["onnxruntime"] < gate.MORE


def test_scores_that_differ_by_more_than_the_tolerance_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted(tiles: Pixels) -> Scores:  # the first two differ by 1.5 tolerances of a range of 1
        scores = level(tiles)
        image = np.zeros(len(tiles), np.float32)
        image[-1] = 1
        if len(tiles) > 1:
            image[1] = 1.5e-3
        return Scores(image, scores.pixel)

    def swapped(found: Scores) -> Scores:
        image = found.image.copy()
        if len(image) > 2:
            image[:2] += np.float32([0.8e-3, -0.8e-3])
        return Scores(image, found.pixel)

    with pytest.raises(TrainingError, match="its scores of tiles have another order"):
        held(monkeypatch, fitted, swapped)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_probes_are_good_tiles_of_several_parts_and_corrupted_ones(count: int, kind: Any) -> None:
    top = np.iinfo(kind).max
    tiles = np.broadcast_to(np.linspace(0, top, count).astype(kind)[:, None, None, None], (count, 32, 32, 3)).copy()
    stack = Stack(tiles, batch=3)
    probes = gate.probes(stack)
    good = min(count, gate.GOOD)
    assert len(probes) == good + len(gate.CORRUPTIONS) and probes.dtype == kind
    assert all(any(np.array_equal(probe, tile) for tile in tiles) for probe in probes[:good])
    assert len({probe.tobytes() for probe in probes[:good]}) == good
    for number, probe in enumerate(probes[good:]):
        assert np.abs(probe.astype(int) - probes[number % good]).max() >= 0.05 * top
    np.testing.assert_array_equal(stack.tiles, tiles)  # the training tiles stay as they are


def test_probes_are_of_as_many_parts_as_there_are() -> None:
    tiles = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((40, 8, 8, 1), np.uint8)
    stack = Stack(tiles, batch=7)
    stack.groups = [number // 5 for number in range(40)]
    assert gate.probes(stack)[: gate.GOOD, 0, 0, 0].tolist() == list(range(0, 40, 5))

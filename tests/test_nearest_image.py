"""The equations of `nearest-image`; what every detector promises is in test_detectors_contract.py."""

import numpy as np
import pytest

from andon.detectors.nearest_image import NearestImage, Settings, shrunk
from andon.engines import runtime
from andon.inspection import Pixels, Scores
from conftest import Stack


def noise(count: int, side: int = 64, channels: int = 3, kind: type = np.uint8, seed: int = 0) -> Pixels:
    top = np.iinfo(kind).max
    return np.random.default_rng(seed).integers(0, top + 1, (count, side, side, channels)).astype(kind)


def run(detector: NearestImage, tiles: Pixels) -> Scores:
    return Scores(*runtime.session(detector.graph(), 1).run(["score", "map"], {"tiles": tiles}))


@pytest.mark.parametrize(("side", "small"), [(64, 64), (96, 48), (256, 64), (160, 40)])
def test_shrinking_halves_until_it_fits(side: int, small: int) -> None:
    tiles = noise(1, side)
    block = side // small
    means = tiles.reshape(1, small, block, small, block, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(shrunk(tiles, 64), means.astype(np.float32))


def test_score_is_the_distance_to_the_most_similar_image() -> None:
    good, tile = noise(9), noise(1, seed=1)
    tile[0] = tile[0] // 8 + good[4] - good[4] // 8  # most like the fifth
    difference = (tile[0].astype(float) - good[4]) / 255
    found = NearestImage(Settings(), 0).fit(Stack(good, 2)).score(tile)
    assert found.image[0] == pytest.approx(np.linalg.norm(difference) / np.sqrt(difference.size))
    np.testing.assert_allclose(found.pixel[0], np.sqrt((difference**2).mean(axis=2)), rtol=1e-5)


@pytest.mark.parametrize(("side", "kind"), [(64, np.uint8), (128, np.uint8), (128, np.uint16)])
def test_distance_of_an_image_to_itself_is_nothing_on_every_route(side: int, kind: type) -> None:
    good = noise(20, side, kind=kind)
    detector = NearestImage(Settings(), 0).fit(Stack(good, 2))
    for found in (detector.score(good[:8]), run(detector, good[:8])):
        assert not found.image.any()
        assert not found.pixel.any()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_small_distances_agree_between_the_routes(kind: type) -> None:
    good = noise(20, 128, kind=kind)
    tiles = good[:6].copy()
    tiles[:, 10, 10] ^= 1  # one pixel by one gray level
    detector = NearestImage(Settings(), 0).fit(Stack(good, 2))
    expected, found = detector.score(tiles), run(detector, tiles)
    assert expected.image.min() > 0
    np.testing.assert_allclose(found.image, expected.image, rtol=1e-4)
    np.testing.assert_allclose(found.pixel, expected.pixel, rtol=1e-4, atol=1e-4 * expected.pixel.max())


def test_memory_is_bounded_by_a_seeded_sample() -> None:
    good = noise(60)  # 49,152 bytes each as float32: 20 fit into a megabyte
    graphs = [NearestImage(Settings(memory_mb=1), seed).fit(Stack(good, 2)).score(good).image for seed in (0, 0, 1)]
    assert [np.count_nonzero(scores == 0) for scores in graphs] == [20, 20, 20]
    np.testing.assert_array_equal(graphs[0], graphs[1])
    assert (graphs[0] != graphs[2]).any()

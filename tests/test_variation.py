"""The equations of `variation`; what every detector promises is in test_detectors_contract.py."""

import numpy as np
import pytest

from andon.detectors.variation import Settings, Variation
from andon.engines import runtime
from conftest import Stack


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_map_is_the_squared_deviation_and_score_its_mean(kind: type) -> None:
    top = np.iinfo(kind).max
    rng = np.random.default_rng(0)
    good = rng.integers(0, top + 1, (7, 32, 32, 3)).astype(kind)
    tile = rng.integers(0, top + 1, (1, 32, 32, 3)).astype(kind)
    z = (tile[0] - good.mean(axis=0)) / np.maximum(good.std(axis=0), 0.01 * top)
    found = Variation(Settings(), 0).fit(Stack(good, 2)).score(tile)
    np.testing.assert_allclose(found.pixel[0], (z**2).mean(axis=2), rtol=1e-5)
    np.testing.assert_allclose(found.image[0], (z**2).mean(), rtol=1e-5)


def test_a_pixel_that_never_varied_has_the_floor_as_its_deviation() -> None:
    good = np.full((5, 32, 32, 1), 200, np.uint8)
    tile = good[:1].copy()
    tile[0, 3, 4] = 205
    detector = Variation(Settings(floor=0.02), 0).fit(Stack(good, 2))
    found = detector.score(tile)
    assert found.pixel[0, 3, 4] == pytest.approx((5 / (0.02 * 255)) ** 2)
    assert np.count_nonzero(found.pixel) == 1
    score, pixel = runtime.session(detector.graph(), 1).run(["score", "map"], {"tiles": tile})
    np.testing.assert_allclose(pixel, found.pixel, rtol=1e-6)
    np.testing.assert_allclose(score, found.image, rtol=1e-6)


def test_16_bit_sums_stay_exact() -> None:
    # Deviations of one level in 60,000: float32 sums, or squares of them, would lose it.
    good = np.full((400, 32, 32, 1), 60_000, np.uint16)
    good[::2] += 1
    detector = Variation(Settings(floor=1e-9), 0).fit(Stack(good, 2))
    tile = np.full((1, 32, 32, 1), 60_001, np.uint16)
    np.testing.assert_allclose(detector.score(tile).pixel, 1.0, rtol=1e-6)

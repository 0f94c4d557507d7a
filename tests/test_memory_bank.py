"""The equations of `memory-bank`: whitening, coreset, credit, sampling, and its bounds."""

import numpy as np
import pytest
from pydantic import ValidationError

from andon.detectors.memory_bank import MemoryBank, Settings
from andon.detectors.memory_bank.coreset import k_centre, neighbour_distance, whitening
from andon.errors import TrainingError
from andon.graphs import features
from andon.inspection import Array
from conftest import Stack


class Noise(Stack):
    """Tiles of coarse noise."""

    def __init__(self, count: int, side: int = 64, seed: int = 0) -> None:
        coarse = np.random.default_rng(seed).integers(60, 200, (count, side // 8, side // 8, 3), dtype=np.uint8)
        super().__init__(coarse.repeat(8, axis=1).repeat(8, axis=2), batch=3)


def rows(count: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def test_whitening_gives_unit_covariance_above_the_floor() -> None:
    mixed = rows(4000, 6) @ rows(6, 6, seed=1) + 3
    mean, matrix = whitening(mixed, floor=1e-9)
    white = (mixed - mean) @ matrix
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=1e-3)


def test_whitening_does_not_blow_up_what_good_parts_never_use() -> None:
    flat = np.hstack([rows(500, 3), np.zeros((500, 2), np.float32)])
    _, matrix = whitening(flat, floor=1e-2)
    assert np.isfinite(matrix).all()
    assert np.abs(matrix).max() < 12  # 1 / sqrt(floor · largest eigenvalue), and a little


def test_k_centre_takes_the_farthest_each_time() -> None:
    points = rows(300, 4)
    chosen = k_centre(points, 40, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 40
    for step in range(1, 40):
        nearest = ((points[:, None] - points[chosen[:step]][None]) ** 2).sum(axis=2).min(axis=1)
        assert nearest[chosen[step]] == pytest.approx(nearest.max(), rel=1e-4)


def test_neighbour_distance_leaves_the_memory_itself_out() -> None:
    good = rows(200, 5)
    square = np.sort(((good[:7, None] - good[None]) ** 2).sum(axis=2), axis=1)
    np.testing.assert_allclose(neighbour_distance(good[:7], good, 4, block=3), square[:, 1:5].mean(axis=1), rtol=1e-3)
    assert neighbour_distance(good[:1], good[:1], 4).tolist() == [0]


def test_credit_lowers_scores_and_only_scores() -> None:
    tiles = Noise(6)
    plain = MemoryBank(Settings(bank=50, credit=0), 0).fit(tiles)
    lenient = MemoryBank(Settings(bank=50, credit=0.7), 0).fit(tiles)
    for a, b in zip(plain._banks, lenient._banks, strict=True):
        np.testing.assert_array_equal(a.memories, b.memories)
    assert (lenient.score(tiles.tiles).pixel < plain.score(tiles.tiles).pixel).all()


def test_without_credit_remembered_patches_are_at_distance_zero() -> None:
    tiles = Noise(1)
    settings = Settings(bank=64, credit=0, average=1, stages=(4,), scales=1)  # 64 patches, all remembered
    pixel = MemoryBank(settings, 0).fit(tiles).score(tiles.tiles).pixel
    assert np.abs(pixel).max() < 1e-3


def test_memory_stays_within_its_bound_and_the_sample_is_uniform() -> None:
    tiles = Noise(30)
    detector = MemoryBank(Settings(candidates=200, bank=20, scales=1), 0)
    assert detector._rows(tiles) == [200, 200]
    detector._take(tiles)
    (sample, owners), _ = detector._sample(tiles, np.random.default_rng(0), lambda *_: None)
    assert sample.shape == (200, 40)
    assert len(set(owners.tolist())) == 30
    extractor = features.Extractor("efficientnet-lite0", [4], threads=1)
    firsts = [extractor(tile[None])[0].mean() for tile in tiles.tiles]
    assert abs(sample.mean() - np.mean(firsts)) < 0.3
    assert MemoryBank(Settings(memory_mb=16, candidates=10**9, scales=1), 0)._rows(Noise(300)) == [8771, 4800]


def test_seeds_differ() -> None:
    tiles = Noise(4)
    a, b = (MemoryBank(Settings(bank=20), seed).fit(tiles).score(tiles.tiles).image for seed in (0, 1))
    assert not np.array_equal(a, b)


def test_bad_settings_and_sides_are_refused() -> None:
    with pytest.raises(ValidationError, match="odd"):
        Settings(average=4)
    with pytest.raises(TrainingError, match="multiple of 32"):
        MemoryBank(Settings(), 0).fit(Noise(2, side=72))
    with pytest.raises(TrainingError, match="no training tiles"):
        MemoryBank(Settings(), 0).fit(Noise(0))

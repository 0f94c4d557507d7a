"""The equations of `memory-bank`: whitening, coreset, credit, sampling, and its bounds."""

import numpy as np
import pytest
from pydantic import ValidationError
from spox import Tensor, argument, build

from andon.detector import QUIET, Run
from andon.detectors.memory_bank import MemoryBank, Settings, coreset, search
from andon.detectors.memory_bank.coreset import copies, k_centre, neighbour_distance, whitening
from andon.detectors.memory_bank.search import FAR, Memories
from andon.engines import runtime
from andon.errors import TrainingError
from andon.graphs import features
from andon.inspection import Array
from andon.recipe import Augment
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


def test_neighbour_distance_leaves_the_memory_itself_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreset, "BLOCK", 3)
    good = rows(200, 5)
    square = np.sort(((good[:7, None] - good[None]) ** 2).sum(axis=2), axis=1)
    np.testing.assert_allclose(neighbour_distance(good[:7], good, 4), square[:, 1:5].mean(axis=1), rtol=1e-3)
    assert neighbour_distance(good[:1], good[:1], 4).tolist() == [0]


def clustered(count: int, seed: int) -> Array:
    """Rows around thirty centres, as patches of parts are."""
    centres, which = 4 * rows(30, 8), np.random.default_rng(seed).integers(30, size=count)
    return np.asarray(centres[which] + rows(count, 8, seed), np.float32)


def whole(memories: Memories, patches: Array) -> Array:
    """The distances to all memories, (n, k)."""
    square: Array = ((patches[:, None].astype(np.float64) - memories.rows[None]) ** 2).sum(axis=2)
    return square - memories.credit


def test_a_large_bank_is_searched_in_cells_and_loses_little() -> None:
    credit = np.random.default_rng(2).uniform(0, 0.5, 2000).astype(np.float32)
    memories = Memories.of(clustered(2000, 1), credit, np.arange(2000))
    assert len(memories.starts) - 1 == pytest.approx(16, abs=4)
    assert (memories.starts[0], memories.starts[-1]) == (0, 2000) and (np.diff(memories.starts) > 0).all()
    assert np.array_equal(np.sort(memories.groups), np.arange(2000))  # each memory once
    patches = clustered(300, 3)
    exact, found = whole(memories, patches).min(axis=1), memories.distance(patches)
    assert (found > exact - 1e-4).all()
    assert np.isclose(found, exact, atol=1e-4).mean() > 0.8
    assert found.mean() < 1.1 * exact.mean()


def test_the_graph_of_a_search_is_its_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    memories = Memories.of(clustered(2000, 1), rows(2000, 1)[:, 0] ** 2, np.arange(2000) % 2)
    patches, apart = clustered(300, 3), np.zeros(2000, np.float32)
    q, away = argument(Tensor(np.float32, ("n", 9))), argument(Tensor(np.float32, (2000,)))
    ones = np.hstack([patches, np.ones((300, 1), np.float32)])
    found = runtime.session(build({"q": q}, {"near": memories.search(q)})).run(None, {"q": ones})[0][:, 0]
    # A patch between two cells may be compared with another cell by another rounding.
    assert np.isclose(found, memories.distance(patches), atol=1e-3).mean() > 0.98
    monkeypatch.setattr(search, "PROBED", 15)
    assert memories.distance(patches) == pytest.approx(whole(memories, patches).min(axis=1), abs=1e-3)
    monkeypatch.undo()
    session = runtime.session(build({"q": q, "apart": away}, {"near": memories.search(q, away)}))
    assert session.run(None, {"q": ones, "apart": apart})[0][:, 0] == pytest.approx(found, abs=1e-3)
    # Where all memories of the probed cells are apart, those of other cells remain.
    apart[: memories.starts[-2]] = FAR
    last = session.run(None, {"q": ones, "apart": apart})[0][:, 0]
    assert last == pytest.approx(whole(memories, patches)[:, memories.starts[-2] :].min(axis=1), abs=1e-2)


def test_credit_lowers_scores_and_only_scores() -> None:
    tiles = Noise(6)
    plain = MemoryBank(Settings(bank=50, credit=0), 0).fit(tiles)
    lenient = MemoryBank(Settings(bank=50, credit=0.7), 0).fit(tiles)
    for a, b in zip(plain._banks, lenient._banks, strict=True):
        np.testing.assert_array_equal(a.memories.rows, b.memories.rows)
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
    (sample, owners), _ = detector._sample(tiles, QUIET, np.random.default_rng(0))
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


@pytest.mark.parametrize(
    ("augment", "shape", "count"),
    [
        (Augment(), (64, 64), 1),
        (Augment(flip=True), (64, 64), 4),
        (Augment(quarter_turns=True), (64, 64), 4),
        (Augment(quarter_turns=True), (64, 96), 2),
        (Augment(flip=True, quarter_turns=True), (64, 64), 8),
        (Augment(flip=True, quarter_turns=True), (64, 96), 4),
    ],
)
def test_copies_are_the_distinct_turns_and_flips(augment: Augment, shape: tuple[int, int], count: int) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (1, *shape, 1), dtype=np.uint8)
    found = [turn(tile) for turn in copies(augment, shape)]
    assert all(one.shape == tile.shape for one in found) and np.array_equal(found[0], tile)
    assert len({one.tobytes() for one in found}) == len(found) == count


def test_turned_copies_of_good_tiles_are_remembered() -> None:
    good, settings = Noise(6), Settings(bank=400, scales=1)
    turned = np.ascontiguousarray(np.rot90(good.tiles, 1, (1, 2)))
    plain = MemoryBank(settings, 0).fit(good).score(turned).image
    symmetric = MemoryBank(settings, 0).fit(good, Run(augment=Augment(quarter_turns=True))).score(turned).image
    assert symmetric.mean() < plain.mean() - 1


def test_parts_that_lie_alike_are_compared_with_their_position_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    still = np.repeat(Noise(1, side=128).tiles, 20, axis=0)
    still = np.clip(still + rng.normal(0, 3, still.shape), 0, 255).astype(np.uint8)
    fitted = MemoryBank(Settings(bank=100), 0).fit(Stack(still))
    assert all(usual is not None for usual in fitted._usual)
    moving = MemoryBank(Settings(bank=100), 0).fit(Noise(20, side=128))
    assert all(usual is None for usual in moving._usual)
    assert all(np.ptp(good.offset) == 0 and np.ptp(good.factor) == 0 for good in moving._calibrated.values())
    swapped = still[:1].copy()  # both patches are good ones, at each other's place
    swapped[:, 16:48, 16:48], swapped[:, 64:96, 64:96] = still[:1, 64:96, 64:96], still[:1, 16:48, 16:48]
    without = MemoryBank(Settings(bank=100, alike=0), 0).fit(Stack(still))
    good = still[:8]
    with_position, by_bank = (
        (each.score(swapped).image[0] - each.score(good).image.mean()) / each.score(good).image.std()
        for each in (fitted, without)
    )
    assert with_position > 3 * max(by_bank, 1)


@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_few_good_tiles_are_enough(count: int) -> None:
    fitted = MemoryBank(Settings(bank=50), 0).fit(Noise(count, side=64))
    found = fitted.score(Noise(3, side=64, seed=5).tiles)
    assert np.isfinite(found.image).all() and np.isfinite(found.pixel).all()


def test_equal_good_tiles_are_no_division_by_zero() -> None:
    fitted = MemoryBank(Settings(bank=50), 0).fit(Stack(np.full((12, 64, 64, 3), 90, np.uint8)))
    found = fitted.score(np.full((1, 64, 64, 3), 200, np.uint8))
    assert np.isfinite(found.image).all() and np.isfinite(found.pixel).all()


def test_tiles_that_are_not_square_score_in_the_graph_as_in_numpy() -> None:
    good = Stack(np.random.default_rng(0).integers(60, 200, (8, 64, 160, 3), dtype=np.uint8))
    fitted = MemoryBank(Settings(bank=80), 0).fit(good)
    expected, session = fitted.score(good.tiles), runtime.session(fitted.graph(), threads=1)
    score, pixel = session.run(["score", "map"], {"tiles": good.tiles})
    assert pixel.shape == (8, 64, 160)
    np.testing.assert_allclose(score, expected.image, atol=1e-3 * np.ptp(expected.image) + 1e-4)
    np.testing.assert_allclose(pixel, expected.pixel, atol=1e-3 * np.ptp(expected.pixel))


def test_the_network_is_stored_once_though_it_runs_twice() -> None:
    one, two = (
        len(MemoryBank(Settings(bank=10, scales=scales), 0).fit(Noise(3, side=64)).graph().SerializeToString())
        for scales in (1, 2)
    )
    assert two < 1.3 * one

"""The equations of `deep-knn` and of the k-NN it shares; what every detector promises is in the contract test."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from spox import Tensor, argument, build

from andon.detectors.deep_knn import DeepKnn, Settings
from andon.engines import runtime
from andon.errors import AndonError, TrainingError
from andon.graphs import features
from andon.graphs.neighbours import Neighbours
from andon.inspection import Pixels
from conftest import Stack


def noise(count: int, side: int = 64, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def pooled(tiles: Pixels, stages: tuple[int, ...]) -> np.ndarray:
    maps = features.Extractor("efficientnet-lite0", stages, threads=1)(tiles)
    return np.concatenate([x.max(axis=(2, 3)) for x in maps], axis=1)


@pytest.mark.parametrize("stages", [(10,), (4, 10)])
def test_score_is_the_mean_distance_to_the_nearest_of_scikit_learn(stages: tuple[int, ...]) -> None:
    good, tiles = noise(9), noise(3, seed=1)
    detector = DeepKnn(Settings(stages=stages, neighbours=4), 0).fit(Stack(good, 2))
    scaler = StandardScaler().fit(pooled(good, stages))
    search = NearestNeighbors(n_neighbors=4).fit(scaler.transform(pooled(good, stages)))
    f = scaler.transform(pooled(tiles, stages))
    expected = search.kneighbors(f)[0].mean(axis=1)
    np.testing.assert_allclose(detector.score(tiles).image, expected, rtol=1e-4)
    session = runtime.session(detector.graph(), threads=1)
    score, embedding = session.run(["score", "embedding"], {"tiles": tiles})
    np.testing.assert_allclose(score, expected, rtol=1e-4)
    np.testing.assert_allclose(embedding, f, rtol=1e-3, atol=1e-4)


def test_map_is_what_a_place_has_beyond_the_neighbours() -> None:
    good, tile = noise(6), noise(1, seed=1)
    detector = DeepKnn(Settings(neighbours=6), 0).fit(Stack(good, 2))
    raw = pooled(good, (10,))
    (x,) = features.Extractor("efficientnet-lite0", (10,), threads=1)(tile)
    excess = (x[0] - raw.mean(axis=0)[:, None, None]) / raw.std(axis=0)[:, None, None]
    squares = (np.maximum(excess, 0) ** 2).mean(axis=0)  # (4, 4)
    at, centres = np.arange(64) + 0.5, 16 * (np.arange(4) + 0.5)
    across = np.array([np.interp(at, centres, row) for row in squares])
    expected = np.sqrt([np.interp(at, centres, column) for column in across.T]).T  # (64, 64)
    np.testing.assert_allclose(detector.score(tile).pixel[0], expected, rtol=1e-3)


def test_of_an_image_it_has_seen_only_the_other_neighbours_count() -> None:
    good = noise(5)
    detector = DeepKnn(Settings(neighbours=1), 0).fit(Stack(good, 2))
    assert detector.score(good).image.max() < 1e-3
    assert runtime.session(detector.graph(), 1).run(["score"], {"tiles": good})[0].max() < 1e-2


def test_fewer_images_than_neighbours_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"14 training tiles for 15 neighbours.*neighbours = 14"):
        DeepKnn(Settings(), 0).fit(Stack(noise(14), 2))
    with pytest.raises(TrainingError, match="15 neighbours"):
        DeepKnn(Settings(), 0).forecast(Stack(noise(14), 2))
    with pytest.raises(TrainingError, match="multiple of 16"):
        DeepKnn(Settings(neighbours=2), 0).fit(Stack(noise(3, side=40), 2))
    with pytest.raises(AndonError, match="Did you mean 'efficientnet-lite0'"):
        DeepKnn(Settings(network="efficientnet_lite0"), 0)


def test_flat_images_give_finite_scores() -> None:
    good = np.full((6, 64, 64, 3), 90, np.uint8)  # equal: no feature varies
    detector = DeepKnn(Settings(neighbours=3), 0).fit(Stack(good, 2))
    session = runtime.session(detector.graph(), threads=1)
    score, pixel = session.run(["score", "map"], {"tiles": np.concatenate([good[:1], noise(1)])})
    assert np.isfinite(score).all() and np.isfinite(pixel).all()
    assert score[0] < 1e-3 < score[1]


def test_a_constant_feature_does_not_outweigh_the_others() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    rows[:, 2] = 7
    good = Neighbours.learn(rows, 3, floor=0.1)
    deviations = rows.std(axis=0)
    np.testing.assert_allclose(good.deviation[[0, 1, 3]], deviations[[0, 1, 3]], rtol=1e-5)
    assert good.deviation[2] == pytest.approx(0.1 * deviations.mean())
    assert (good.rows[:, 2] == 0).all()


def test_graph_of_the_search_agrees_with_numpy_where_distances_are_small() -> None:
    rng = np.random.default_rng(0)
    rows = 100 + rng.normal(size=(40, 8)).astype(np.float32)
    good = Neighbours.learn(rows, 5, floor=0.01)
    queries = rows[:6] + np.float32(1e-3)
    f = argument(Tensor(np.float32, ("n", 8)))
    standard = good.standardise(f)
    score, near = good.search(standard)
    session = runtime.session(build({"f": f}, {"score": score, "near": near}), threads=1)
    found, rows_found = session.run(["score", "near"], {"f": queries})
    expected, rows_expected = good.nearest(queries)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(rows_found.mean(axis=1), rows_expected.mean(axis=1), atol=1e-5)

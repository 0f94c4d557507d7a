"""One contract for every detector of the list: what the rest of the house relies on."""

import tomllib
from collections.abc import Iterator

import numpy as np
import pytest
import tomli_w
from pydantic import ValidationError

from andon import detectors, features
from andon.detectors.base import Detector
from andon.errors import AndonError, RecipeError
from andon.inspection import Pixels, Scores

SIDE = 64
SMALL: dict[str, dict[str, object]] = {  # settings that keep this test to seconds
    "memory-bank": {"bank": 100},
    "autoencoder": {
        "width": 8,
        "widest": 32,
        "latent": 4,
        "score": "max",
        "smooth": 9,
        "steps": 150,
        "batch": 4,
        "learning_rate": 4e-3,
        "hold_out": 0,
    },
}


class Textures:
    """Good tiles: stripes of a fixed period with a phase, a brightness and a noise of their own."""

    def __init__(self, seed: int, count: int = 12, channels: int = 3, depth: int = 8, aligned: bool = False) -> None:
        self.side, self.channels, self.depth = SIDE, channels, depth
        self.groups, self.defects = range(count), None
        rng = np.random.default_rng(seed)
        x = np.arange(SIDE)[None, :] + np.zeros((SIDE, 1))
        tiles = []
        for _ in range(count):
            stripes = np.sin(2 * np.pi * (x / 8 + rng.random() * (0.02 if aligned else 1)))[..., None]
            tile = (
                0.5 + 0.2 * stripes + 0.02 * rng.standard_normal() + 0.02 * rng.standard_normal((SIDE, SIDE, channels))
            )
            tiles.append(tile)
        top, kind = (255, np.uint8) if depth == 8 else (65535, np.uint16)
        self.tiles: Pixels = (np.clip(tiles, 0, 1) * top).astype(kind)

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[Pixels]:
        for start in range(0, len(self.tiles), 5):
            yield self.tiles[start : start + 5]


def painted(tile: Pixels) -> Pixels:
    """Give a tile a defect: a 12-pixel square at (30, 20) whose stripes run the other way."""
    out = tile.copy()
    out[20:32, 30:42] = out[20:32, 30:42].transpose(1, 0, 2)
    return out


def good_tiles(name: str, seed: int, **options: int) -> Textures:
    """Good tiles for a detector: those that know where a patch lies are promised that parts lie still."""
    return Textures(seed, aligned=detectors.get(name).position_aware, **options)


def new(name: str, seed: int = 0) -> Detector:
    kind = detectors.get(name)
    return kind(kind.Config(**SMALL.get(name, {})), seed)


def run(detector: Detector, tiles: Pixels) -> Scores:
    session = features.session(detector.graph(), threads=1)
    return Scores(*session.run(["score", "map"], {"tiles": tiles}))


def worst(a: Scores, b: Scores) -> float:
    """Largest difference as a share of the range of scores."""
    image = np.abs(a.image - b.image).max() / np.abs(a.image).max()
    return float(max(image, np.abs(a.pixel - b.pixel).max() / np.abs(a.pixel).max()))


@pytest.fixture(scope="module", params=detectors.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def fitted(name: str) -> Detector:
    return new(name).fit(good_tiles(name, seed=1))


@pytest.fixture(scope="module")
def tiles(name: str) -> Pixels:
    good = good_tiles(name, seed=2, count=6).tiles
    return np.concatenate([good, painted(good[0])[None]])


def test_list_agrees_with_the_class(name: str) -> None:
    kind = detectors.get(name)
    assert kind.name == name
    assert kind.summary == detectors.DETECTORS[name].summary
    assert "\n" not in kind.summary


def test_defaults_and_presets_construct(name: str) -> None:
    kind = detectors.get(name)
    kind(kind.Config(), 0)
    for settings in kind.presets.values():
        kind(kind.Config(**settings), 0)


def test_config_refuses_what_it_does_not_know_and_survives_toml(name: str) -> None:
    config = detectors.get(name).Config
    with pytest.raises(ValidationError):
        config(no_such_setting=1)
    defaults = config()
    assert config(**tomllib.loads(tomli_w.dumps(defaults.model_dump(mode="json", exclude_none=True)))) == defaults


def test_unfitted_is_an_error(name: str) -> None:
    with pytest.raises(AndonError, match="fit"):
        new(name).graph()
    with pytest.raises(AndonError, match="fit"):
        new(name).score(Textures(seed=1).tiles)


def test_forecast_is_positive_and_finite(name: str) -> None:
    forecast = new(name).forecast(Textures(seed=1))
    assert 0 < forecast.seconds < 1000
    assert 0 < forecast.megabytes < 10_000


def test_finite_and_shaped(fitted: Detector, tiles: Pixels) -> None:
    scores = run(fitted, tiles)
    assert scores.image.shape == (len(tiles),)
    assert scores.pixel.shape == tiles.shape[:3]
    assert scores.image.dtype == scores.pixel.dtype == np.float32
    assert all(np.isfinite(s).all() for s in scores)


def test_defect_scores_above_every_good_part_and_is_found(fitted: Detector, tiles: Pixels) -> None:
    scores = run(fitted, tiles)
    assert scores.image[-1] > scores.image[:-1].max()
    y, x = np.unravel_index(scores.pixel[-1].argmax(), (SIDE, SIDE))
    assert 20 <= y < 32 and 30 <= x < 42


def test_same_seed_same_scores_and_refit_forgets(name: str, fitted: Detector, tiles: Pixels) -> None:
    first = run(fitted, tiles)
    again = new(name).fit(good_tiles(name, seed=7)).fit(good_tiles(name, seed=1))
    np.testing.assert_array_equal(run(again, tiles).image, first.image)


def test_tile_scores_the_same_alone_and_in_a_batch(fitted: Detector, tiles: Pixels) -> None:
    together, session = run(fitted, tiles), features.session(fitted.graph(), threads=1)
    alone = [Scores(*session.run(["score", "map"], {"tiles": tile[None]})) for tile in tiles]
    merged = Scores(*(np.concatenate(part) for part in zip(*alone, strict=True)))
    assert worst(together, merged) < 1e-5


@pytest.mark.parametrize(("channels", "depth"), [(3, 8), (1, 8), (1, 16), (3, 16)])
def test_graph_agrees_with_the_fitted_object(name: str, channels: int, depth: int) -> None:
    detector = new(name).fit(good_tiles(name, seed=1, channels=channels, depth=depth))
    good = good_tiles(name, seed=2, count=2, channels=channels, depth=depth).tiles
    tiles = np.concatenate([good, painted(good[0])[None]])
    assert worst(detector.score(tiles), run(detector, tiles)) < 1e-4


def test_unknown_detector_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'memory-bank'"):
        detectors.get("memory_bank")

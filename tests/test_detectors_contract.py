"""One contract for every detector of the list: what the rest of the house relies on."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tomli_w
from pydantic import ValidationError

from andon import detectors
from andon.bundle import Bundle
from andon.detector import REQUIRED, Detector, Run
from andon.engines import runtime
from andon.errors import AndonError, RecipeError
from andon.export.exporting import export
from andon.geometry.views import Geometry
from andon.inspection import Pixels, Scores
from andon.pictures.image import Input
from conftest import Marked, Stack

SIDE = 64
DEFECT = np.s_[16:40, 24:48]  # so large that a score that is a mean over the tile rises well above those of good tiles
AGREE = 1e-4  # of the range of scores
OWN_FRONT = ("memory-bank", "variation", "nearest-image", "deep-knn", "patch-autoencoder", "autoencoder")
"""They write the way from 16-bit gray into the graph; autoencoder stands for all that share one (nn.learned)."""
SMALL: dict[str, dict[str, object]] = {  # settings that keep this test to seconds
    "memory-bank": {"bank": 100},
    "transform-classification": {
        "family": "morphology",
        "operations": ("gradient",),
        "widths": (2, 5),
        "heights": (2, 5),
        "channels": 8,
        "steps": 80,
        "batch": 4,
        "learning_rate": 1e-2,
        "hold_out": 0,
    },
    "deep-knn": {"neighbours": 3},
    "oc-svm": {"neighbours": 3},
    "fcdd": {
        "width": 16,
        "kinds": ("cut-paste",),
        "most": 0.2,
        "steps": 80,
        "batch": 4,
        "learning_rate": 4e-3,
        "hold_out": 0,
    },
    "draem": {
        "width": 4,
        "kinds": ("cut-paste",),
        "share": 0.8,
        "smooth": 9,
        "steps": 80,
        "batch": 4,
        "learning_rate": 1e-2,
        "hold_out": 0,
    },
    "cutpaste": {
        "side": 64,
        "channels": 4,
        "widen": 1,
        "steps": 60,
        "batch": 4,
        "learning_rate": 1e-2,
        "hold_out": 0,
    },
    "riad": {
        "width": 8,
        "squares": (4,),
        "smooth": 15,
        "steps": 60,
        "batch": 4,
        "learning_rate": 1e-2,
        "hold_out": 0,
    },
    "anogan": {
        "side": 32,
        "width": 8,
        "widest": 32,
        "latent": 8,
        "searches": 10,
        "critic_steps": 2,
        "steps": 200,
        "batch": 4,
        "learning_rate": 1e-2,
        "clip": 1.0,
    },
    "patch-autoencoder": {
        "shrink": 1,
        "patch": 32,
        "step": 16,
        "width": 8,
        "widest": 32,
        "latent": 4,
        "neighbours": 3,
        "steps": 60,
        "batch": 4,
        "learning_rate": 4e-3,
        "hold_out": 0,
    },
    "capsule": {
        "side": 64,
        "width": 16,
        "types": 4,
        "decoder": (32, 64),
        "steps": 200,
        "batch": 4,
        "learning_rate": 4e-3,
    },
    "pyramid-autoencoder": {
        "side": 64,
        "score": "max",
        "width": 8,
        "widest": 32,
        "latent": 4,
        "stages": (2,),
        "steps": 60,
        "batch": 4,
        "learning_rate": 4e-3,
        "hold_out": 0,
    },
    "piade": {
        "width": 8,
        "blocks": 1,
        "stages": (2,),
        "steps": 30,
        "batch": 4,
        "learning_rate": 4e-3,
        "hold_out": 0,
    },
    "vt-adl": {
        "patch": 8,
        "dim": 32,
        "depth": 2,
        "heads": 2,
        "mlp": 64,
        "gaussians": 3,
        "width": 16,
        "smooth": 2.0,
        "steps": 120,
        "learning_rate": 3e-3,
        "hold_out": 0,
    },
    "segmenter": {  # taught by what is like the painted defect: a square that is turned
        "width": 8,
        "kinds": ("cut-paste",),
        "least": 0.03,
        "share": 0.9,
        "focal": 1.0,
        "steps": 80,
        "batch": 4,
        "learning_rate": 1e-2,
        "hold_out": 0,
    },
    "vae": {
        "side": 32,
        "width": 8,
        "widest": 32,
        "latent": 4,
        "score": "max",
        "smooth": 9,
        "steps": 120,
        "batch": 4,
        "learning_rate": 4e-3,
        "hold_out": 0,
    },
    "ganomaly": {
        "width": 8,
        "widest": 32,
        "latent": 16,
        "steps": 250,
        "batch": 4,
        "learning_rate": 4e-3,
        "hold_out": 0,
    },
    "f-anogan": {
        "gan_steps": 200,
        "gan_learning_rate": 1e-2,
        "critic_steps": 2,
        "features": 0.01,
        "side": 32,
        "width": 8,
        "widest": 32,
        "latent": 8,
        "steps": 100,
        "batch": 4,
        "learning_rate": 4e-3,
        "clip": 1.0,
        "hold_out": 0,
    },
    "filtering-autoencoder": {
        "width": 0.125,
        "grow_from": 1.0,
        "object_correction": True,
        "steps": 60,
        "batch": 4,
        "learning_rate": 1e-2,
        "hold_out": 0,
    },
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


class Textures(Stack):
    """Good tiles: stripes of a fixed period with a phase, a brightness and a noise of their own."""

    def __init__(self, seed: int, count: int = 12, channels: int = 3, depth: int = 8, aligned: bool = False) -> None:
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
        super().__init__((np.clip(tiles, 0, 1) * top).astype(kind), batch=5)


def painted(tile: Pixels) -> Pixels:
    """Give a tile a defect: a square whose stripes run the other way."""
    out = tile.copy()
    out[DEFECT] = out[DEFECT].transpose(1, 0, 2)
    return out


def marked(good: Textures) -> Marked:
    """Defective tiles: good ones, painted, with a mask."""
    tiles = np.stack([painted(tile) for tile in good.tiles])
    masks = np.zeros(tiles.shape[:3], np.bool_)
    masks[:, *DEFECT] = True
    return Marked(tiles, masks)


def good_tiles(name: str, seed: int, **options: int) -> Textures:
    """Good tiles for a detector: those that know where a patch lies are promised that parts lie still.

    Those that cannot do without images of defects get some.
    """
    model = new(name)
    tiles = Textures(seed, aligned=model.position_aware, **options)
    if model.defects in REQUIRED:
        tiles.defects = marked(Textures(seed + 100, aligned=model.position_aware, **{**options, "count": 3}))
    return tiles


def new(name: str, **settings: object) -> Detector:
    kind = detectors.get(name)
    return kind(kind.Config(**SMALL.get(name, {}) | settings), 0)


def brief(name: str) -> Detector:
    """A detector that takes three steps where `new` takes as many as it needs to find something."""
    return new(name, **{setting: 3 for setting in SMALL.get(name, {}) if setting in ("steps", "gan_steps")})


def run(detector: Detector, tiles: Pixels) -> Scores:
    session = runtime.session(detector.graph(), threads=1)
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
    assert kind.__name__ == detectors.DETECTORS[name].kind
    assert "\n" not in detectors.DETECTORS[name].summary


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


def test_every_setting_is_described(name: str) -> None:
    """The descriptions are the docstrings under the fields; `andon detectors NAME` prints them."""
    fields = detectors.get(name).Config.model_fields
    assert [key for key, field in fields.items() if not (field.description or "").strip()] == []


def test_unfitted_is_an_error(name: str) -> None:
    with pytest.raises(AndonError, match="fit"):
        new(name).graph()
    with pytest.raises(AndonError, match="fit"):
        new(name).score(Textures(seed=1).tiles)


def test_forecast_is_positive_and_finite(name: str) -> None:
    forecast = new(name).forecast(good_tiles(name, seed=1))
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
    outside = np.ones((SIDE, SIDE), np.bool_)
    outside[DEFECT] = False
    assert scores.pixel[-1][DEFECT].max() > scores.pixel[-1][outside].max()


def test_same_seed_same_scores_and_refit_forgets(name: str, tiles: Pixels) -> None:
    first = brief(name).fit(good_tiles(name, seed=1)).score(tiles)
    again = brief(name).fit(good_tiles(name, seed=7)).fit(good_tiles(name, seed=1)).score(tiles)
    np.testing.assert_array_equal(again.image, first.image)
    np.testing.assert_array_equal(again.pixel, first.pixel)


def test_tile_scores_the_same_alone_and_in_a_batch(fitted: Detector, tiles: Pixels) -> None:
    together, session = run(fitted, tiles), runtime.session(fitted.graph(), threads=1)
    alone = [Scores(*session.run(["score", "map"], {"tiles": tile[None]})) for tile in tiles]
    merged = Scores(*(np.concatenate(part) for part in zip(*alone, strict=True)))
    assert worst(together, merged) < 1e-5


def test_graph_agrees_with_the_fitted_object(fitted: Detector, tiles: Pixels) -> None:
    assert worst(fitted.score(tiles), run(fitted, tiles)) < AGREE


def test_graph_fits_behind_the_picture_of_a_camera(fitted: Detector, bundle_file: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(bundle_file)
    recipe = bundle.recipe.model_copy(update={"geometry": Geometry(size=SIDE)})
    manifest = bundle.manifest.model_copy(update={"input": Input(channels=3, depth=8)})
    graph = fitted.graph().SerializeToString()
    export(replace(bundle, graph=graph, recipe=recipe, manifest=manifest), tmp_path, (150, 110))  # compares the scores
    session = runtime.session((tmp_path / "graph.onnx").read_bytes())
    assert [output.name for output in session.get_outputs()] == ["score", "p_value", "verdict", "map"]


OTHERS: dict[str, object] = {  # values of settings that are said to change no weights
    "checkpoint": 0.0,
    "smooth": 3,
    "stages": (2,),
    "pooling": "max",
    "window": 2,
    "neighbours": 2,
    "floor": 0.1,
    "at_once": 2,
    "top": 0.1,
    "error": "ssim",
    "repeats": 1,
    "object_correction": False,
    "correction_repeats": 1,
    "ridge": 0.1,
    "features": 0.5,
    "searches": 2,
    "step": 0.1,
}
FILES = {"network", "objective", "occlusion_images"}  # choose among files: another one has another checkpoint, or none


def test_settings_that_are_reported_to_change_no_weights_change_none(name: str, tmp_path: Path) -> None:
    kind = detectors.get(name)
    unlearnt = getattr(kind.Config, "unlearnt", set()) - FILES
    if not unlearnt:
        return
    before = brief(name).config  # type: ignore[attr-defined]
    others = {setting: OTHERS[setting] for setting in unlearnt - {"score"}}
    if "score" in unlearnt:
        others["score"] = next(v for v in get_args(kind.Config.model_fields["score"].annotation) if v != before.score)
    steps = {setting: 3 for setting in ("steps", "gan_steps") if setting in kind.Config.model_fields}
    tiles, told = good_tiles(name, seed=1), list[str]()
    for folder, settings in (("a", steps), ("b", steps | others)):
        new(name, **settings).fit(tiles, Run(folder=tmp_path / folder))
    found = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.npz")]
    assert found
    for path in found:
        with np.load(tmp_path / "a" / path) as one, np.load(tmp_path / "b" / path) as other:
            assert set(one.files) == set(other.files)
            for array in set(one.files) - {"facts"}:
                np.testing.assert_array_equal(one[array], other[array])
    new(name, **steps | others).fit(tiles, Run(folder=tmp_path / "a", tell=told.append))
    assert sum("continuing from step 3" in sentence for sentence in told) == len(found)


def test_gray_of_16_bits(name: str) -> None:
    detector = brief(name).fit(good_tiles(name, seed=1, channels=1, depth=16))
    good = good_tiles(name, seed=2, count=2, channels=1, depth=16).tiles
    tiles = np.concatenate([good, painted(good[0])[None]])
    found = detector.score(tiles)
    assert np.isfinite(found.image).all() and np.isfinite(found.pixel).all()
    if name in OWN_FRONT:
        assert worst(found, run(detector, tiles)) < AGREE


def test_unknown_detector_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'memory-bank'"):
        detectors.get("memory_bank")

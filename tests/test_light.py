"""Light that is divided out: gain and field, whatever the part does, and what is told when it cannot be."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from andon.inspection import Pixels
from andon.inspector import Inspector
from andon.pictures import light
from andon.pictures.light import GRID, Light
from andon.training import train as training
from conftest import part, save, scratched


def gradient(height: int, width: int) -> NDArray[np.float64]:
    """A field of light from 0.7 at the left to 1.3 at the right."""
    return np.broadcast_to(np.linspace(0.7, 1.3, width)[None, :, None], (height, width, 1))


def lit(pixels: Pixels, factor: float | NDArray[np.float64]) -> Pixels:
    top = np.iinfo(pixels.dtype).max
    return np.clip(np.rint(pixels * factor), 0, top).astype(pixels.dtype)


def dim(seed: int, depth: int = 8) -> Pixels:
    return lit(part(seed, 120, depth=depth), 0.6)


@pytest.fixture(scope="module", params=[8, 16])
def depth(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def away(found: Pixels, expected: Pixels) -> float:
    """Mean difference as a share of full scale."""
    return float(np.abs(found.astype(float) - expected).mean()) / np.iinfo(found.dtype).max


def test_a_factor_is_divided_out(depth: int) -> None:
    learnt = Light.learn("gain", [light.grid(dim(seed, depth)) for seed in range(8)])
    plain = dim(20, depth)
    for factor in (0.6, 1.4):
        found = learnt.correct(lit(plain, factor))
        assert found.note == "" and found.pixels.dtype == plain.dtype and found.pixels.shape == plain.shape
        assert away(found.pixels, plain) < 0.03 < away(lit(plain, factor), plain)


def test_a_smooth_field_is_divided_out_and_a_factor_is_not_enough(depth: int) -> None:
    grids = [light.grid(dim(seed, depth)) for seed in range(8)]
    plain = dim(20, depth)
    lopsided = lit(plain, gradient(120, 120))
    by_field, by_gain = (Light.learn(kind, grids).correct(lopsided).pixels for kind in ("field", "gain"))
    of_field, of_gain, wanted = (pixels / pixels.mean() for pixels in (by_field, by_gain, plain))
    assert np.abs(of_field - wanted).mean() < 0.03 < 0.12 < np.abs(of_gain - wanted).mean()


def test_a_defect_stays_a_defect() -> None:
    learnt = Light.learn("field", [light.grid(dim(seed)) for seed in range(8)])
    pixels, mask = scratched(30, 120)
    found = learnt.correct(lit(pixels, 0.6)).pixels
    expected = lit(part(30, 120), 0.6)
    inside = mask > 0
    assert np.abs(found.astype(float) - expected)[inside].mean() > 40
    assert np.abs(found.astype(float) - expected)[~inside].mean() < 5


def test_a_half_covered_picture_keeps_the_light_of_the_rest() -> None:
    learnt = Light.learn("gain", [light.grid(dim(seed)) for seed in range(8)])
    covered = dim(40)
    covered[:50] = 10
    found = learnt.correct(covered).pixels
    assert away(found[60:], dim(40)[60:]) < 0.03


@pytest.mark.parametrize("level", [0, 255])
def test_light_that_saturates_is_reported(level: int) -> None:
    learnt = Light.learn("field", [light.grid(dim(seed)) for seed in range(8)])
    pixels = np.full((120, 120, 3), level, np.uint8)
    found = learnt.correct(pixels)
    assert "too dark or too bright" in found.note
    np.testing.assert_array_equal(found.pixels, pixels)


def test_a_factor_beyond_reason_is_limited_and_reported() -> None:
    learnt = Light.learn("gain", [light.grid(part(seed, 120)) for seed in range(8)])
    found = learnt.correct(lit(part(9, 120), 0.15))
    assert "by more than a factor of 4" in found.note
    assert found.pixels.mean() == pytest.approx(4 * lit(part(9, 120), 0.15).mean(), rel=0.02)


def test_the_variation_of_the_light_is_measured() -> None:
    rng = np.random.default_rng(0)
    still = [light.grid(dim(seed)) for seed in range(12)]
    assert max(light.variation(still)) < light.NOTICED
    brighter = [light.grid(lit(dim(seed), rng.uniform(0.6, 1.4))) for seed in range(12)]
    factor, field = light.variation(brighter)
    assert factor > 0.15 and field < light.NOTICED
    tilted = [light.grid(lit(dim(seed), gradient(120, 120)[:, :: rng.choice([-1, 1])])) for seed in range(12)]
    assert light.variation(tilted)[1] > 0.1


@pytest.mark.parametrize("text", ["", "no base64", "AAAA"])
def test_a_reference_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"reference|base64|padding"):
        Light(kind="gain", reference=text)


def test_a_bundle_divides_the_light_out_as_its_training_did(tmp_path: Path) -> None:
    for seed in range(24):
        save(tmp_path / "good" / f"{seed:02}.png", lit(part(seed), 0.6 + 0.01 * (seed % 3)))
    recipe = training.compose(tmp_path / "good", size=96, settings={"bank": 100})
    plain, even = (
        training.train(
            recipe.model_copy(update={"input": recipe.input.model_copy(update={"light": kind})}),
            tmp_path / f"{kind}.andon",
        )
        for kind in ("as is", "field")
    )
    assert plain.manifest.input.light is None
    learnt = even.manifest.input.light
    assert learnt is not None and light._decode(learnt.reference).shape == (GRID, GRID)
    dark, good = lit(part(77), 0.42 * gradient(96, 96)), lit(part(77), 0.6)
    scores = [
        [Inspector.load(tmp_path / f"{kind}.andon").inspect(pixels).score for pixels in (dark, good)]
        for kind in ("as is", "field")
    ]
    (plain_dark, plain_good), (even_dark, even_good) = scores
    assert abs(even_dark - even_good) < 0.3 * (plain_dark - plain_good)
    inspector = Inspector.load(tmp_path / "field.andon")
    read = inspector.read(dark)
    assert inspector.inspect(read).score == inspector.inspect(dark).score  # divided out once, not twice

"""Crude statistics: which pictures are told to be no pictures of the part, and that good ones are not."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from andon.inspection import Pixels
from andon.pictures import appearance, image
from andon.pictures.appearance import GoodAppearance
from conftest import part


def coloured(seed: int, depth: int = 8) -> Pixels:
    """A good part with more red than blue, its light varied by a few per cent."""
    gain = np.array([1.0, 0.8, 0.6]) * (1 + 0.03 * np.random.default_rng(seed).standard_normal())
    pixels = part(seed, 128, 3, depth)
    return np.clip(pixels * gain, 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def gray(seed: int, depth: int = 8) -> Pixels:
    return part(seed, 128, 1, depth)


def blurred(pixels: Pixels) -> Pixels:
    return cv2.GaussianBlur(pixels, (0, 0), 5).reshape(pixels.shape)


def noisy(pixels: Pixels) -> Pixels:
    top = np.iinfo(pixels.dtype).max
    return np.clip(pixels + np.random.default_rng(0).normal(0, 0.2 * top, pixels.shape), 0, top).astype(pixels.dtype)


def brighter(pixels: Pixels) -> Pixels:
    return np.minimum(pixels.astype(float) * 3, np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def learnt(kind: Callable[[int, int], Pixels], depth: int, count: int = 40) -> GoodAppearance:
    return GoodAppearance.of([appearance.measure(kind(seed, depth)) for seed in range(count)])


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", [gray, coloured])
def test_good_pictures_are_not_odd_and_others_are(kind: Callable[[int, int], Pixels], depth: int) -> None:
    usual = learnt(kind, depth)
    fresh = [kind(seed, depth) for seed in range(100, 130)]
    assert sum(bool(usual.oddities(appearance.measure(pixels))) for pixels in fresh) <= 1
    top = np.iinfo(fresh[0].dtype).max
    for change, word in (
        (np.zeros_like, "black"),
        (lambda p: np.full_like(p, top), "white"),
        (lambda p: np.full_like(p, p.mean()), "almost uniform"),
        (lambda p: (p * 0.4).astype(p.dtype), "darker"),
        (brighter, "saturated"),
        (blurred, "blurred"),
        (noisy, "sharper or noisier"),
    ):
        for pixels in fresh[:5]:
            told = usual.oddities(appearance.measure(change(pixels)))
            assert any(word in sentence for sentence in told), (word, told)


def test_numbers_stand_beside_those_of_good_pictures() -> None:
    (sentence,) = learnt(gray, 8).oddities(appearance.measure(np.zeros((128, 128, 1), np.uint8)))
    assert sentence.startswith("the picture is black (mean gray 0.0; good pictures ")


def test_blue_and_red_exchanged_is_distinguished_from_another_light() -> None:
    usual, good = learnt(coloured, 8), coloured(200)
    (sentence,) = usual.oddities(appearance.measure(good[:, :, ::-1].copy()))
    assert "blue and red seem to be exchanged" in sentence
    warm = np.clip(good * np.array([1.2, 1.0, 0.5]), 0, 255).astype(np.uint8)
    assert any("the colours differ" in told for told in usual.oddities(appearance.measure(warm)))


def test_blue_and_red_exchanged_is_reported_where_they_are_equal_on_average() -> None:
    def cables(seed: int) -> Pixels:  # a small strong red and a large faint blue
        pixels = np.full((128, 128, 3), 90, np.float64) + np.random.default_rng(seed).normal(0, 3, (128, 128, 3))
        pixels[:16, :, 0] += 105
        pixels[16:, :, 2] += 15
        return np.clip(pixels, 0, 255).astype(np.uint8)

    usual = GoodAppearance.of([appearance.measure(cables(seed)) for seed in range(30)])
    assert abs(appearance.measure(cables(99)).balance) < 0.02
    assert not usual.oddities(appearance.measure(cables(99)))
    assert any("exchanged" in told for told in usual.oddities(appearance.measure(cables(99)[:, :, ::-1].copy())))


def test_another_scene_of_the_same_light_is_reported() -> None:
    usual = learnt(gray, 8)
    shuffled = [gray(seed).reshape(4, 32, 4, 32, 1)[::-1, :, [2, 0, 3, 1]].reshape(128, 128, 1) for seed in (201, 202)]
    for pixels in shuffled:
        assert any("another scene" in told for told in usual.oddities(appearance.measure(pixels)))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_few_pictures_make_wide_ranges_and_finite_numbers(count: int) -> None:
    usual = learnt(gray, 8, count)
    json.loads(usual.model_dump_json(), parse_constant=pytest.fail)
    assert GoodAppearance.model_validate_json(usual.model_dump_json()) == usual
    assert not [told for seed in range(100, 120) for told in usual.oddities(appearance.measure(gray(seed)))]
    assert usual.oddities(appearance.measure(np.zeros((128, 128, 1), np.uint8)))


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 700, 3), (1300, 9, 1)])
def test_flat_pictures_of_any_shape_have_finite_statistics(shape: tuple[int, ...], value: int) -> None:
    found = appearance.measure(np.full(shape, value, np.uint8))
    assert np.isfinite([*found[:7], *found.bands, *found.thumbnail]).all()
    usual = GoodAppearance.of([found] * 4)
    assert not usual.oddities(found)


def test_a_picture_of_another_depth_is_told() -> None:
    assert "full scale" in learnt(gray, 8).oddities(appearance.measure(gray(0, 16)))[0]


def test_a_shift_of_a_set_is_reported_though_each_picture_is_usual() -> None:
    light = np.linspace(0.8, 1.2, 60)
    good = [appearance.measure((gray(seed) * gain / 1.3).astype(np.uint8)) for seed, gain in enumerate(light)]
    usual = GoodAppearance.of(good)
    dark = [appearance.measure((gray(seed) * 0.8 / 1.3).astype(np.uint8)) for seed in range(100, 115)]
    assert not any(usual.oddities(a) for a in dark)
    assert any("darker" in told for told in usual.shifts(dark))
    assert not usual.shifts(good[::4])
    assert not usual.shifts(dark[:9])  # too few to say


@pytest.mark.parametrize("product", ["mvtec_ad/bottle", "mvtec_ad/screw", "magnetic_tile"])
def test_real_good_pictures_are_not_odd_and_other_products_are(shared_data: Path, product: str) -> None:
    def of(folder: str, count: int) -> list[Pixels]:
        return [image.read(path).pixels for path in sorted((shared_data / folder).iterdir())[:count]]

    usual = GoodAppearance.of([appearance.measure(pixels) for pixels in of(f"{product}/train/good", 120)])
    fresh = of(f"{product}/test/good", 40)
    assert sum(bool(usual.oddities(appearance.measure(pixels))) for pixels in fresh) <= len(fresh) // 20
    assert all(usual.oddities(appearance.measure(blurred(pixels))) for pixels in fresh)
    if fresh[0].shape[2] == 3:
        exchanged = [usual.oddities(appearance.measure(p[:, :, ::-1].copy())) for p in fresh]
        assert all("exchanged" in " ".join(told) for told in exchanged)
    for other in {"mvtec_ad/bottle", "mvtec_ad/screw", "magnetic_tile"} - {product}:
        strange = [bool(usual.oddities(appearance.measure(pixels))) for pixels in of(f"{other}/test/good", 20)]
        assert sum(strange) >= 0.9 * len(strange)
    if product.endswith("screw"):  # its good test pictures are darker than those to learn from
        assert any("darker" in told for told in usual.shifts([appearance.measure(pixels) for pixels in fresh]))


def test_the_scale_of_the_statistics_is_kept_and_older_bundles_keep_their_digest() -> None:
    read = image.read(gray(1, 8))
    assert "reduced" not in GoodAppearance.of([appearance.look(read, 1)]).model_dump_json()
    reduced = GoodAppearance.of([appearance.look(read, 2)])
    assert reduced.reduced == 2 and GoodAppearance.model_validate_json(reduced.model_dump_json()) == reduced

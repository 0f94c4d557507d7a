"""Corruptions: the formula of the patches, each kind, areas that must not change, and outside images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import save

torch = pytest.importorskip("torch")

from andon.detectors.filtering_autoencoder.corruption import Corrupted, Corruption, outside_images  # noqa: E402
from andon.errors import DatasetError  # noqa: E402

KINDS = ("elastic", "occlusion", "cutout", "swap", "brightness", "rotation")


def pictures(count: int = 4, side: int = 64, channels: int = 3) -> Any:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


def corrupt(tiles: Any, *kinds: Any, seed: int = 0, **settings: Any) -> Corrupted:
    defaults = {
        "patch": (0.2, 0.5),
        "shapes": 3,
        "displacement": 0.5,
        "brightness": 0.5,
        "rotation": 90.0,
        "noise": 0.0,
    }
    corruption = Corruption(kinds, **{**defaults, **settings})
    return corruption(tiles, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "channels"), [(1, 3), (4, 1), (5, 3)])
def test_every_kind_changes_only_the_masked_area(kind: str, count: int, channels: int) -> None:
    tiles = pictures(count, channels=channels)
    result = corrupt(tiles, kind)
    assert result.input.shape == result.mask.shape == result.target.shape == tiles.shape
    assert all(torch.isfinite(part).all() for part in result)
    assert result.mask.min() >= 0 and result.mask.max() == 1
    assert torch.equal(result.target, tiles)
    assert torch.equal(result.input[result.mask == 0], tiles[result.mask == 0])
    assert result.input.min() >= 0 and result.input.max() <= 1
    assert torch.equal(result.mask[:, :1].expand_as(tiles), result.mask)
    changed = (result.input - tiles).abs().amax(dim=(1, 2, 3))
    assert (changed > 0.02).all()


def test_corruptions_depend_on_the_seed_and_differ_between_tiles() -> None:
    tiles = pictures(1).expand(4, -1, -1, -1)
    first, again, other = (corrupt(tiles, "elastic", "occlusion", seed=seed).input for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_cutout_follows_the_formula_of_the_patches() -> None:
    tiles = pictures()
    result = corrupt(tiles, "cutout")
    # Figure 5: X4 = X2 ⊙ X3 + (1 − X2) ⊙ X1, with X3 = 0
    torch.testing.assert_close(result.input, (1 - result.mask) * tiles)
    soft = (result.mask > 0) & (result.mask < 1)
    assert soft.any()  # real-valued, not binary


def test_brightness_scales_the_patch_alone_or_in_addition_to_another_kind() -> None:
    flat = torch.full((4, 3, 64, 64), 0.5)
    for kinds in (("brightness",), ("elastic", "brightness")):
        result = corrupt(flat, *kinds)  # elastic does not change a flat image
        for x, mask in zip(result.input, result.mask, strict=True):
            inside = x[mask == 1]
            torch.testing.assert_close(inside, inside[0].expand_as(inside))
            assert 0.25 <= float(inside[0]) <= 0.75 and float(inside[0]) != 0.5
    torch.testing.assert_close(corrupt(flat, "elastic").input, flat)


def test_shapes_have_the_size_of_the_settings() -> None:
    tiles = pictures(64)
    small, large = (corrupt(tiles, "cutout", patch=(d, d)).mask[:, 0].mean() for d in (0.1, 0.4))
    assert 0.3 * 0.1**2 * np.pi / 4 < small < 1.2 * 0.1**2 * np.pi / 4
    assert 10 < large / small < 17  # 16 without the area beyond the border
    single, several = (corrupt(tiles, "occlusion", shapes=n).mask.mean() for n in (1, 8))
    assert several > 1.5 * single


def test_rotation_applies_to_all_tiles_alone_and_to_some_in_addition() -> None:
    tiles = pictures(32, side=32)
    assert (corrupt(tiles, "rotation").mask == 1).all()
    mixed = corrupt(tiles, "cutout", "rotation").mask.flatten(1).amin(dim=1)
    assert set(mixed.tolist()) == {0.0, 1.0}


def test_each_tile_has_one_of_the_kinds() -> None:
    tiles = pictures(64, side=32) + 0.1
    result = corrupt(tiles, "cutout", "swap")
    black = (result.input == 0).any(dim=1).any(dim=1).any(dim=1)
    assert 10 < int(black.sum()) < 54


def test_noise_is_in_input_and_target() -> None:
    tiles = pictures()
    plain, noisy = (corrupt(tiles, "elastic", noise=noise) for noise in (0.0, 0.1))
    torch.testing.assert_close(noisy.input - noisy.target, plain.input - plain.target, atol=1e-6, rtol=0)
    noise = noisy.target - tiles
    assert float(noise.std()) == pytest.approx(0.1, rel=0.05) and abs(float(noise.mean())) < 0.005


def test_outside_images_fill_occlusions() -> None:
    tiles = pictures() * 0.5
    outside = torch.full((2, 3, 20, 30), 255, dtype=torch.uint8)
    result = corrupt(tiles, "occlusion", outside=outside)
    torch.testing.assert_close(result.input[result.mask == 1], torch.ones(int((result.mask == 1).sum())))
    assert (corrupt(tiles, "occlusion").input[result.mask == 1] < 0.999).any()


def test_outside_images_must_not_be_in_the_data_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for j in range(3):
        save(tmp_path / f"out/{j}.png", rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    own = save(tmp_path / "mine/a.png", rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    images = outside_images(str(tmp_path / "out"), 32, 3, [own], 0)
    assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
    assert outside_images(str(tmp_path / "out"), 32, 1, [], 0).shape == (3, 32, 32, 1)
    (tmp_path / "out/copy.png").write_bytes(own.read_bytes())
    with pytest.raises(DatasetError, match=r"copy\.png is .*a\.png of the data set"):
        outside_images(str(tmp_path / "out"), 32, 3, [own], 0)
    with pytest.raises(DatasetError, match="of the data set"):
        outside_images(str(tmp_path / "mine"), 32, 3, [own], 0)
    with pytest.raises(DatasetError, match="no such folder"):
        outside_images(str(tmp_path / "nothing"), 32, 3, [], 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        outside_images(str(tmp_path / "empty"), 32, 3, [], 0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"occlusion_images = .*none of 1 images can be read.*x\.png"):
        outside_images(str(tmp_path / "bad"), 32, 3, [], 0)


def test_unreadable_outside_images_are_left_out_and_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "c"):
        save(tmp_path / f"out/{name}.png", rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    expected = outside_images(str(tmp_path / "out"), 32, 3, [], 0)
    (tmp_path / "out/b.png").write_bytes((tmp_path / "out/a.png").read_bytes()[:900])
    (tmp_path / "out/link.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(tmp_path / "out/pipe.png")
    messages: list[str] = []
    images = outside_images(str(tmp_path / "out"), 32, 3, [tmp_path / "out/link.png"], 0, messages.append)
    np.testing.assert_array_equal(images, expected)
    assert len(messages) == 3 and all("occlusion_images: left out: " in message for message in messages)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_corruptions_run_on_the_gpu() -> None:
    tiles = pictures().cuda()
    corruption = Corruption(KINDS, (0.1, 0.4), 3, 0.3, 0.4, 45.0, 0.05)
    result = corruption(tiles, torch.Generator("cuda").manual_seed(0))
    assert all(part.device == tiles.device and torch.isfinite(part).all() for part in result)

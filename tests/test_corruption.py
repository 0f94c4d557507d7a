"""Corruptions: the formula of the patches, each kind, where nothing may change, and images from elsewhere."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import save

torch = pytest.importorskip("torch")

from andon.detectors.filtering_autoencoder.corruption import Corrupted, Corruption, elsewhere  # noqa: E402
from andon.errors import DatasetError  # noqa: E402

KINDS = ("elastic", "occlusion", "cutout", "swap", "brightness", "rotation")


def pictures(count: int = 4, side: int = 64, channels: int = 3) -> Any:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


def corrupt(tiles: Any, *kinds: Any, seed: int = 0, **settings: Any) -> Corrupted:
    known = {"patch": (0.2, 0.5), "shapes": 3, "displacement": 0.5, "brightness": 0.5, "rotation": 90.0, "noise": 0.0}
    corruption = Corruption(kinds, **{**known, **settings})
    return corruption(tiles, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "channels"), [(1, 3), (4, 1), (5, 3)])
def test_every_kind_changes_what_its_mask_says_and_nothing_else(kind: str, count: int, channels: int) -> None:
    tiles = pictures(count, channels=channels)
    seen = corrupt(tiles, kind)
    assert seen.input.shape == seen.mask.shape == seen.target.shape == tiles.shape
    assert all(torch.isfinite(part).all() for part in seen)
    assert seen.mask.min() >= 0 and seen.mask.max() == 1
    assert torch.equal(seen.target, tiles)
    assert torch.equal(seen.input[seen.mask == 0], tiles[seen.mask == 0])
    assert seen.input.min() >= 0 and seen.input.max() <= 1
    assert torch.equal(seen.mask[:, :1].expand_as(tiles), seen.mask)
    changed = (seen.input - tiles).abs().amax(dim=(1, 2, 3))
    assert (changed > 0.02).all()


def test_same_generator_same_damage_and_each_tile_its_own() -> None:
    tiles = pictures(1).expand(4, -1, -1, -1)
    first, again, other = (corrupt(tiles, "elastic", "occlusion", seed=seed).input for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_cutout_is_the_formula_of_the_patches() -> None:
    tiles = pictures()
    seen = corrupt(tiles, "cutout")
    # Figure 5: X4 = X2 ⊙ X3 + (1 − X2) ⊙ X1, with X3 = 0
    torch.testing.assert_close(seen.input, (1 - seen.mask) * tiles)
    soft = (seen.mask > 0) & (seen.mask < 1)
    assert soft.any()  # real-valued, not binary


def test_brightness_scales_the_patch_and_comes_on_top_of_another_kind() -> None:
    flat = torch.full((4, 3, 64, 64), 0.5)
    for kinds in (("brightness",), ("elastic", "brightness")):
        seen = corrupt(flat, *kinds)  # elastic alone changes nothing that is flat
        for x, mask in zip(seen.input, seen.mask, strict=True):
            inside = x[mask == 1]
            torch.testing.assert_close(inside, inside[0].expand_as(inside))
            assert 0.25 <= float(inside[0]) <= 0.75 and float(inside[0]) != 0.5
    torch.testing.assert_close(corrupt(flat, "elastic").input, flat)


def test_shapes_have_the_size_that_is_asked_for() -> None:
    tiles = pictures(64)
    small, large = (corrupt(tiles, "cutout", patch=(d, d)).mask[:, 0].mean() for d in (0.1, 0.4))
    assert 0.3 * 0.1**2 * np.pi / 4 < small < 1.2 * 0.1**2 * np.pi / 4
    assert 10 < large / small < 17  # 16, less what lies beyond the border
    one, many = (corrupt(tiles, "occlusion", shapes=n).mask.mean() for n in (1, 8))
    assert many > 1.5 * one


def test_rotation_turns_the_whole_tile_alone_and_some_of_them_on_top() -> None:
    tiles = pictures(32, side=32)
    assert (corrupt(tiles, "rotation").mask == 1).all()
    mixed = corrupt(tiles, "cutout", "rotation").mask.flatten(1).amin(dim=1)
    assert set(mixed.tolist()) == {0.0, 1.0}


def test_kinds_alternate() -> None:
    tiles = pictures(64, side=32) + 0.1
    seen = corrupt(tiles, "cutout", "swap")
    black = (seen.input == 0).any(dim=1).any(dim=1).any(dim=1)
    assert 10 < int(black.sum()) < 54


def test_noise_is_kept_in_what_is_asked_for() -> None:
    tiles = pictures()
    plain, noisy = (corrupt(tiles, "elastic", noise=noise) for noise in (0.0, 0.1))
    torch.testing.assert_close(noisy.input - noisy.target, plain.input - plain.target, atol=1e-6, rtol=0)
    noise = noisy.target - tiles
    assert float(noise.std()) == pytest.approx(0.1, rel=0.05) and abs(float(noise.mean())) < 0.005


def test_occlusions_are_filled_from_elsewhere_where_there_are_images() -> None:
    tiles = pictures() * 0.5
    outside = torch.full((2, 3, 20, 30), 255, dtype=torch.uint8)
    seen = corrupt(tiles, "occlusion", outside=outside)
    torch.testing.assert_close(seen.input[seen.mask == 1], torch.ones(int((seen.mask == 1).sum())))
    assert (corrupt(tiles, "occlusion").input[seen.mask == 1] < 0.999).any()


def test_images_from_elsewhere_are_read_and_are_not_those_of_the_data_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for j in range(3):
        save(tmp_path / f"out/{j}.png", rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    mine = save(tmp_path / "mine/a.png", rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    found = elsewhere(str(tmp_path / "out"), 32, 3, [mine], 0)
    assert found.shape == (3, 32, 32, 3) and found.dtype == np.uint8
    assert elsewhere(str(tmp_path / "out"), 32, 1, [], 0).shape == (3, 32, 32, 1)
    (tmp_path / "out/copy.png").write_bytes(mine.read_bytes())
    with pytest.raises(DatasetError, match=r"copy\.png is .*a\.png of the data set"):
        elsewhere(str(tmp_path / "out"), 32, 3, [mine], 0)
    with pytest.raises(DatasetError, match="of the data set"):
        elsewhere(str(tmp_path / "mine"), 32, 3, [mine], 0)
    with pytest.raises(DatasetError, match="no such folder"):
        elsewhere(str(tmp_path / "nothing"), 32, 3, [], 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images"):
        elsewhere(str(tmp_path / "empty"), 32, 3, [], 0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"occlusion_images = .*none of 1 images can be read.*x\.png"):
        elsewhere(str(tmp_path / "bad"), 32, 3, [], 0)


def test_images_from_elsewhere_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "c"):
        save(tmp_path / f"out/{name}.png", rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    whole = elsewhere(str(tmp_path / "out"), 32, 3, [], 0)
    (tmp_path / "out/b.png").write_bytes((tmp_path / "out/a.png").read_bytes()[:900])
    (tmp_path / "out/link.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(tmp_path / "out/pipe.png")
    told: list[str] = []
    found = elsewhere(str(tmp_path / "out"), 32, 3, [tmp_path / "out/link.png"], 0, told.append)
    np.testing.assert_array_equal(found, whole)
    assert len(told) == 3 and all("occlusion_images: left out: " in line for line in told)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_damage_is_done_on_the_device() -> None:
    tiles = pictures().cuda()
    known = Corruption(KINDS, (0.1, 0.4), 3, 0.3, 0.4, 45.0, 0.05)
    seen = known(tiles, torch.Generator("cuda").manual_seed(0))
    assert all(part.device == tiles.device and torch.isfinite(part).all() for part in seen)

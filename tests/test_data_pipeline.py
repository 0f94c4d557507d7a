"""Training tiles: read once, drawn so that each comes as often, varied as the recipe allows."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from andon import files  # noqa: E402
from andon.detector import Run  # noqa: E402
from andon.errors import AndonError, TrainingError  # noqa: E402
from andon.inspection import Pixels  # noqa: E402
from andon.nn import data  # noqa: E402
from andon.recipe import Augment  # noqa: E402


class Counted:
    """Tiles that count how often they are read."""

    def __init__(self, count: int = 10, depth: int = 8, side: int = 16) -> None:
        self.shape = (side, side)
        self.side, self.channels, self.depth, self.passes = side, 3, depth, 0
        self.groups, self.defects = range(count), None
        top, kind = (256, np.uint8) if depth == 8 else (65536, np.uint16)
        self.tiles: Pixels = np.random.default_rng(0).integers(0, top, (count, side, side, 3), dtype=kind)

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[Pixels]:
        self.passes += 1
        for start in range(0, len(self.tiles), 4):
            yield self.tiles[start : start + 4]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("megabytes", [1, 0])
def test_tiles_are_read_once_into_memory_or_a_file(depth: int, megabytes: int, tmp_path: Path) -> None:
    tiles = Counted(depth=depth)
    stock = data.gather(tiles, megabytes, Run(folder=tmp_path))
    assert tiles.passes == 1
    assert isinstance(stock.pixels, np.memmap) == (megabytes == 0)
    assert stock.pixels.dtype == tiles.tiles.dtype
    np.testing.assert_array_equal(stock.pixels, tiles.tiles)
    assert stock.digest == data.gather(tiles, 1, Run()).digest
    assert list(tmp_path.iterdir()) == []  # the file has no name: a kill leaves nothing behind


def test_a_folder_that_cannot_hold_the_tiles_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AndonError, match=r"0 MB, cannot be kept there.*cache_mb = 1"):
        data.gather(Counted(), 0, Run(folder=tmp_path / "missing"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(files.tempfile, "TemporaryFile", lambda **_: full)
        with pytest.raises(AndonError, match=r"no space left on device.*Free space"):
            data.gather(Counted(), 0, Run())


def test_no_tiles_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no training tiles"):
        data.gather(Counted(0), 1, Run())


def test_held_out_tiles_are_a_seeded_share() -> None:
    learn, held = data.split(range(40), 0.1, seed=1)
    assert len(held) == 4
    assert sorted([*learn, *held]) == list(range(40))
    assert not np.array_equal(held, data.split(range(40), 0.1, seed=2)[1])
    assert len(data.split(range(9), 0.1, seed=1)[1]) == 0
    assert len(data.split(range(40), 0.0, seed=1)[1]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_of_defective_parts_the_same_share_is_held_out(seed: int) -> None:
    groups = np.array([*range(100), *[-1 - part for part in range(10)] * 3])
    learn, held = data.split(groups, 0.2, seed=seed)
    assert (groups[held] >= 0).sum() == 20 and (groups[held] < 0).sum() == 2 * 3
    assert not set(groups[learn]) & set(groups[held])
    np.testing.assert_array_equal(held[:20], data.split(range(100), 0.2, seed=seed)[1])
    few = np.array([*range(100), *[-1 - part for part in range(9)]])  # of which none can be spared
    assert len(data.split(few, 0.2, seed=seed)[1]) == 0


def test_tiles_of_one_part_are_held_out_together() -> None:
    groups = np.repeat(np.arange(20), 6)
    learn, held = data.split(groups, 0.1, seed=3)
    assert len(held) == 12
    assert not set(groups[learn]) & set(groups[held])
    assert len(data.split(np.repeat(np.arange(9), 6), 0.1, seed=3)[1]) == 0


@pytest.mark.parametrize("batch", [1, 3, 7, 10, 99])
def test_every_tile_comes_once_an_epoch(batch: int) -> None:
    tiles, rows = Counted(12), np.arange(2, 12)
    feed = data.Feed(tiles.tiles, rows, batch, 0, Augment())
    drawn = np.concatenate([feed.rows(step) for step in range(40)])
    epochs = drawn[: len(drawn) // 10 * 10].reshape(-1, 10)
    assert all(np.array_equal(np.sort(epoch), rows) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(feed.rows(3), data.Feed(tiles.tiles, rows, batch, 0, Augment()).rows(3))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_batch_is_the_tiles_in_zero_to_one(depth: int) -> None:
    tiles = Counted(depth=depth)
    feed = data.Feed(tiles.tiles, np.arange(10), 4, 0, Augment())
    expected = tiles.tiles[feed.rows(1)].transpose(0, 3, 1, 2) / (2**depth - 1)
    np.testing.assert_allclose(feed(1, torch.Generator()).numpy(), expected, rtol=1e-6)


def varied(pixels: Pixels, augment: Augment, seed: int = 0) -> torch.Tensor:
    return data.vary(pixels, augment, torch.Generator().manual_seed(seed))


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_flips_and_turns_are_those_of_the_square() -> None:
    tile = noise(6, 6, 2)
    plain = data.floats(tile[None])[0]
    square = [torch.rot90(t, k, (1, 2)) for t in (plain, plain.flip(2)) for k in range(4)]

    def seen(augment: Augment) -> set[int]:
        tiles = varied(np.stack([tile] * 200), augment)
        return {next(i for i, s in enumerate(square) if torch.equal(s, v)) for v in tiles}

    assert seen(Augment()) == {0}
    assert seen(Augment(quarter_turns=True)) == {0, 1, 2, 3}
    assert seen(Augment(flip=True)) == {0, 2, 4, 6}
    assert seen(Augment(flip=True, quarter_turns=True)) == set(range(8))


def test_a_rotation_turns_and_repeats_the_edge() -> None:
    tile = torch.rand(1, 3, 9, 9)
    quarter = data.rotated(tile, torch.tensor([90.0]))
    torch.testing.assert_close(quarter, torch.rot90(tile, 1, (2, 3)), rtol=0, atol=1e-5)
    flat = torch.full((2, 3, 9, 9), 0.7)
    torch.testing.assert_close(data.rotated(flat, torch.tensor([10.0, -33.0])), flat)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_stored_tiles_move_as_floats_do(channels: int, kind: type) -> None:
    smooth = cv2.GaussianBlur(noise(5, 40, 40, channels)[0], (0, 0), 3).reshape(40, 40, channels)
    tile = (smooth.astype(np.float64) * (np.iinfo(kind).max / 255)).astype(kind)
    flip = data._flips(torch.tensor([[0, 1]]))
    move = data._quarter_turns(torch.tensor([3])) @ flip @ data._rotations(torch.tensor([17.0]))
    stored = data.floats(data._moved(tile, move[0].double().numpy())[None])
    floated = data._sampled(data.floats(tile[None]), move)
    assert (stored - floated).abs().max() < 0.01  # OpenCV's positions are whole 32nds of a pixel


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_leaves_a_mask_alone(channels: int) -> None:
    tiles = np.full((50, 8, 8, channels + 1), 100, np.uint8)
    tiles[..., -1] = 255
    found = varied(tiles, Augment(brightness=0.99))
    assert (found[:, -1] == 1).all() and found[:, :-1].min() < 0.05 < 0.7 < found[:, :-1].max()


def test_brightness_is_a_factor_of_each_tile() -> None:
    tiles = np.full((100, 2, 2, 1), 127, np.uint8)
    found = varied(tiles, Augment(brightness=0.2))
    assert 0.39 <= found.min() < 0.42 and 0.58 < found.max() <= 0.6
    assert (found.flatten(1) == found[:, 0, :1, 0]).all()
    assert varied(tiles + 128, Augment(brightness=0.2)).max() == 1


def test_variation_is_a_function_of_the_seed() -> None:
    tiles, all_of_it = noise(4, 8, 8, 3), Augment(flip=True, quarter_turns=True, rotate=9, brightness=0.1)
    first, second, other = (varied(tiles, all_of_it, seed) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)

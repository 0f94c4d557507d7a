"""Training tiles: drawn so that each comes as often, varied as the recipe allows."""

import threading
from collections.abc import Sequence

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from andon.errors import AndonError, TrainingError  # noqa: E402
from andon.inspection import Pixels  # noqa: E402
from andon.nn import data  # noqa: E402
from andon.recipe import Augment  # noqa: E402
from conftest import Stack  # noqa: E402

CPU = torch.device("cpu")


def tiles_of(count: int = 10, depth: int = 8, side: int = 16) -> Stack:
    top, kind = (256, np.uint8) if depth == 8 else (65536, np.uint16)
    return Stack(np.random.default_rng(0).integers(0, top, (count, side, side, 3), dtype=kind), batch=4)


def test_the_digest_is_that_of_all_pixels_however_they_come() -> None:
    one = data.contents(tiles_of())
    assert one == data.contents(Stack(tiles_of().tiles, batch=3))
    other = tiles_of()
    other.tiles[9, 15, 15, 2] ^= 1
    assert data.contents(other) != one


def test_no_tiles_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no training tiles"):
        data.contents(tiles_of(0))


def test_tiles_of_some_rows_come_in_batches() -> None:
    tiles = tiles_of(12, side=256)
    found = list(data.batches_of(tiles, np.array([11, 0, 1, 2, 3, 4, 5, 6, 7])))
    assert [len(batch) for batch in found] == [8, 1]
    np.testing.assert_array_equal(np.concatenate(found), tiles.tiles[[11, 0, 1, 2, 3, 4, 5, 6, 7]])


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
    tiles, rows = tiles_of(12), np.arange(2, 12)
    feed = data.Feed(tiles, rows, batch, 0, Augment(), CPU)
    drawn = np.concatenate([feed.rows(step) for step in range(40)])
    epochs = drawn[: len(drawn) // 10 * 10].reshape(-1, 10)
    assert all(np.array_equal(np.sort(epoch), rows) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(feed.rows(3), data.Feed(tiles, rows, batch, 0, Augment(), CPU).rows(3))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_batch_is_the_tiles_in_zero_to_one(depth: int) -> None:
    tiles = tiles_of(depth=depth)
    feed = data.Feed(tiles, np.arange(10), 4, 0, Augment(), CPU)
    expected = tiles.tiles[feed.rows(1)].transpose(0, 3, 1, 2) / (2**depth - 1)
    np.testing.assert_allclose(feed(1).numpy(), expected, rtol=1e-6)


def test_a_batch_is_the_same_prepared_ahead_and_not() -> None:
    tiles = tiles_of()
    plain = data.Feed(tiles, np.arange(10), 4, 3, Augment(flip=True, rotate=9), CPU)
    with data.Feed(tiles, np.arange(10), 4, 3, Augment(flip=True, rotate=9), CPU) as ahead:
        for step in (0, 1, 2, 2, 7, 8, 3):  # a step is taken again when memory ran out
            assert torch.equal(ahead(step), plain(step))


def test_the_next_batch_is_read_while_one_is_trained_on() -> None:
    read = threading.Event()

    class Slow(Stack):
        def __getitem__(self, rows: Sequence[int]) -> Pixels:
            read.set()
            return super().__getitem__(rows)

    before = threading.active_count()
    with data.Feed(Slow(tiles_of().tiles), np.arange(10), 4, 0, Augment(), CPU) as feed:
        feed(0)
        read.clear()
        feed(1)
        assert read.wait(20)  # for step 2
    assert threading.active_count() == before


def test_an_error_of_the_thread_is_raised_at_its_step() -> None:
    class Torn(Stack):
        reads = 0

        def __getitem__(self, rows: Sequence[int]) -> Pixels:
            self.reads += 1
            if self.reads == 2:
                raise AndonError("the store is gone")
            return super().__getitem__(rows)

    with data.Feed(Torn(tiles_of().tiles), np.arange(10), 4, 0, Augment(), CPU) as feed:
        feed(0)
        with pytest.raises(AndonError, match="the store is gone"):
            feed(1)


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
    quarter = data.rotate(tile, torch.tensor([90.0]))
    torch.testing.assert_close(quarter, torch.rot90(tile, 1, (2, 3)), rtol=0, atol=1e-5)
    flat = torch.full((2, 3, 9, 9), 0.7)
    torch.testing.assert_close(data.rotate(flat, torch.tensor([10.0, -33.0])), flat)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_stored_tiles_move_as_floats_do(channels: int, kind: type) -> None:
    smooth = cv2.GaussianBlur(noise(5, 40, 40, channels)[0], (0, 0), 3).reshape(40, 40, channels)
    tile = (smooth.astype(np.float64) * (np.iinfo(kind).max / 255)).astype(kind)
    flip = data._flips(torch.tensor([[0, 1]]))
    move = data._quarter_turns(torch.tensor([3])) @ flip @ data._rotations(torch.tensor([17.0]))
    stored = data.floats(data._warp(tile, move[0].double().numpy())[None])
    floated = data._sample(data.floats(tile[None]), move)
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

"""Synthetic defects: how much they cover, that the rest stays as it is, and that a generator gives the same again."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from andon.nn.synthetic import (  # noqa: E402
    CELLS,
    KINDS,
    VISIBLE,
    Draw,
    Kind,
    add_defects,
    perlin,
    perlin_region,
    rectangle,
    scratch,
    soft,
)

SIDE = 64


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(count: int, seed: int = 0) -> Draw:
    return Draw(count, torch.device("cpu"), random(seed))


def good(count: int = 24, channels: int = 3) -> Tensor:
    return 0.3 + 0.4 * torch.rand(count, channels, SIDE, SIDE, generator=random(9))


@pytest.mark.parametrize("kinds", [KINDS, *((kind,) for kind in KINDS)])
@pytest.mark.parametrize("channels", [1, 3])
def test_outside_the_mask_nothing_changes(kinds: tuple[Kind, ...], channels: int) -> None:
    tiles = good(channels=channels)
    before = tiles.clone()
    found, masks = add_defects(tiles, random(), kinds)
    assert torch.equal(tiles, before)
    assert found.shape == tiles.shape and masks.shape == (24, SIDE, SIDE) and masks.dtype == torch.bool
    kept = ~masks[:, None].expand_as(tiles)
    assert torch.equal(found[kept], tiles[kept])
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert masks.flatten(1).any(dim=1).all()
    assert float((found - tiles).abs()[~kept].mean()) > 0.05  # inside it something does


def test_same_generator_same_defects_and_another_other_ones() -> None:
    first, again, other = (add_defects(good(), random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize(("least", "most"), [(0.01, 0.02), (0.05, 0.2)])
def test_regions_cover_the_share_that_is_asked_for(least: float, most: float) -> None:
    # The noisy tiles change everywhere in the region, so that the mask is all of it.
    share = add_defects(good(60), random(), ("perlin", "cut-paste"), least, most)[1].float().mean(dim=(1, 2))
    assert least * 0.75 <= float(share.min()) and float(share.max()) <= most * 1.25  # whole pixels of a rectangle
    assert float(share.max()) > 1.5 * float(share.min())


def test_a_perlin_region_has_its_share_to_the_pixel() -> None:
    share = torch.tensor([0.004, 0.05, 0.5])
    found = perlin_region(SIDE, share, draw(3)).flatten(1).sum(dim=1)
    assert found.tolist() == (share * SIDE**2).round().long().tolist()


def test_rectangles_are_whole_and_scratches_are_thin() -> None:
    boxes = rectangle(SIDE, torch.full((40,), 0.04), draw(40))
    for box in boxes:
        rows, columns = box.any(dim=1), box.any(dim=0)
        assert int(box.sum()) == int(rows.sum() * columns.sum())
        assert int(rows.sum()) <= 4.5 * int(columns.sum()) and int(columns.sum()) <= 4.5 * int(rows.sum())
    lines = scratch(SIDE, draw(40)).float().mean(dim=(1, 2))
    assert float(lines.min()) > 0 and float(lines.max()) < 0.03


def test_soft_blobs_have_about_their_share_no_edge_and_both_signs() -> None:
    share = torch.full((60,), 0.03)
    change = soft(256, share, draw(60))
    area = (change != 0).float().mean(dim=(1, 2))
    assert 0.015 < float(area.median()) < 0.06
    assert {float(one.sum().sign()) for one in change} == {-1.0, 1.0}
    assert 0.15 * 0.5 < float(change.abs().amax(dim=(1, 2)).median()) <= 0.5
    steps = torch.cat([change.diff(dim=1).flatten(), change.diff(dim=2).flatten()]).abs()
    assert float(steps.max()) < 0.1 and float(change[change != 0].abs().min()) > VISIBLE
    hard = add_defects(torch.full((60, 1, 256, 256), 0.5), random(), ("scratch",))[0][:, 0]
    assert float(hard.diff(dim=1).abs().max()) > 0.14


def test_perlin_noise_is_that_of_the_paper() -> None:
    cells = torch.tensor([4.0, 7.3])
    found = perlin(SIDE, cells, draw(2)).numpy()
    source = draw(2)  # the same draws
    angle, offset = source.between(0, 2 * np.pi, (CELLS + 2) ** 2).numpy(), source.between(0, 1, 1).numpy()
    for n, row, column in [(0, 0, 0), (0, 13, 50), (1, 63, 63), (1, 40, 7)]:
        y, x = ((at + 0.5) / SIDE * float(cells[n]) + offset[n, 0] for at in (row, column))
        dots = np.empty((2, 2))
        for i, j in np.ndindex(2, 2):
            corner = angle[n, (int(y) + i) * (CELLS + 2) + int(x) + j]
            dots[i, j] = np.cos(corner) * (y % 1 - i) + np.sin(corner) * (x % 1 - j)
        v, u = (6 * t**5 - 15 * t**4 + 10 * t**3 for t in (y % 1, x % 1))
        expected = (1 - v) * ((1 - u) * dots[0, 0] + u * dots[0, 1]) + v * ((1 - u) * dots[1, 0] + u * dots[1, 1])
        assert found[n, row, column] == pytest.approx(expected, abs=1e-5)


def test_a_grey_picture_gets_grey_defects() -> None:
    grey = good(24, channels=1).expand(-1, 3, -1, -1)
    found, _ = add_defects(grey, random())
    assert float((found.amax(dim=1) - found.amin(dim=1)).max()) < 1e-6
    assert float((add_defects(good(), random())[0] - good()).std(dim=1).max()) > 0.05


def test_what_cannot_be_seen_is_in_no_mask() -> None:
    # Cut from a blank picture and put down there, all that is left to see is the shift of its colour.
    tiles = torch.full((40, 1, SIDE, SIDE), 0.5)
    found, masks = add_defects(tiles, random(), ("cut-paste",))
    change = (found - tiles).abs().amax(dim=(1, 2, 3))
    assert torch.equal(masks.flatten(1).any(dim=1), change > 0)
    assert float(change[change > 0].min()) > 8 / 255
    assert not bool((change > 0).all())


def test_a_batch_of_one_and_an_odd_side() -> None:
    found, masks = add_defects(torch.rand(1, 1, 33, 33, generator=random()), random())
    assert found.shape == (1, 1, 33, 33) and masks.shape == (1, 33, 33)

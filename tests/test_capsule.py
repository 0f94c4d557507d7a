"""Capsule: its loss and shapes against a plain computation, labels, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from andon.detector import Run  # noqa: E402
from andon.detectors.capsule import Capsule, CapsuleNetwork, Encoder, Settings  # noqa: E402
from andon.errors import DatasetError  # noqa: E402
from andon.inspection import Pixels  # noqa: E402
from andon.inspector import Inspector  # noqa: E402
from andon.training import train as training  # noqa: E402
from conftest import Marked, Stack, part, save  # noqa: E402

TINY: dict[str, Any] = {"side": 28, "width": 4, "types": 2, "capsule": 4, "decoder": (8, 8), "batch": 4}
CPU = Run(device="cpu")


class Spots(Stack):
    """Dark tiles, and beside them `count` tiles with a bright square, one in two of them marked all over."""

    def __init__(self, count: int, side: int = 40) -> None:
        rng = np.random.default_rng(0)
        super().__init__(rng.integers(60, 80, (12, side, side, 3), dtype=np.uint8))
        pixels: Pixels = rng.integers(60, 80, (count, side, side, 3), dtype=np.uint8)
        pixels[:, 12:24, 12:24] = 220
        masks, known = np.zeros((count, side, side), np.bool_), np.arange(count) % 2 == 0
        masks[known, 12:24, 12:24], masks[~known] = True, True
        self.defects: Any = Marked(pixels, masks)


def network(side: int = 40, **settings: Any) -> CapsuleNetwork:
    torch.manual_seed(0)
    return CapsuleNetwork(side, 3, Settings(**{**TINY, **settings}))


@pytest.mark.parametrize(("side", "stride", "grid"), [(28, 1, 6), (64, 3, 6), (128, 6, 7), (180, 9, 7), (96, 4, 8)])
def test_primary_capsules_do_not_explode_with_the_side(side: int, stride: int, grid: int) -> None:
    encoder = Encoder(1, Settings(side=side, width=1, types=1))
    assert encoder.stem.stride == (stride, stride) and encoder.grid == grid
    assert encoder(torch.zeros(1, 1, side, side)).shape == (1, 8, grid, grid)


def test_the_network_is_the_published_one_at_the_published_side() -> None:
    net = network(28, width=256, types=32)
    assert net.capsules.weights.shape == (1152, 8, 2 * 4)  # 32 · 6 · 6 capsules of 8


@pytest.mark.parametrize("side", range(28, 181, 4))
def test_every_pixel_but_the_last_row_and_column_reaches_the_primary_capsules(side: int) -> None:
    encoder = Encoder(1, Settings(side=side, width=1, types=1))
    for convolution in (encoder.stem, encoder.primary):
        torch.nn.init.ones_(convolution.weight)
    image = torch.rand(1, 1, side, side, requires_grad=True)
    encoder(image).sum().backward()
    assert image.grad is not None and bool((image.grad[0, 0, :-1, :-1] > 0).all())
    assert 4 <= encoder.grid <= 10


def test_primary_capsules_are_cut_by_type() -> None:
    net, image = network(28), torch.rand(2, 3, 28, 28)
    features_ = net.encoder(image)
    taken: list[torch.Tensor] = []
    net.capsules.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    net.encode(image)
    s = features_[1, 8:16, 2, 3]  # of type 1 at (2, 3)
    square = s.square().sum()
    torch.testing.assert_close(taken[0][1, 36 + 2 * 6 + 3], s * square / (1 + square) / square.sqrt())


@torch.no_grad()
@pytest.mark.parametrize("score", ["lengths", "reconstruction"])
def test_loss_and_scores_are_those_of_the_paper(score: str) -> None:
    net = network(28, score=score, reconstruction=0.5)
    tiles = torch.rand(3, 4, 28, 28)
    tiles[:, 3] = 0
    tiles[1, 3, 5, 5] = 1  # one defective pixel makes the tile defective
    images, labels = tiles[:, :3], [0, 1, 0]
    v = net.encode(images)
    expected = 0.0
    for n, label in enumerate(labels):
        for k in range(2):
            length = float(v[n, k].norm())
            present, absent = max(0.0, 0.9 - length) ** 2, max(0.0, length - 0.1) ** 2
            expected += present if k == label else 0.5 * absent
        asked = torch.zeros(8)
        asked[4 * label : 4 * label + 4] = v[n, label]
        expected += 0.5 * float(((net.decoder(asked[None])[0] - images[n]) ** 2).mean())
    assert float(net.loss(tiles, torch.Generator())) == pytest.approx(expected / 3, rel=1e-4)
    found, pixel, rebuilt = net(images)
    asked = torch.cat([v[:, 0], torch.zeros(3, 4)], dim=1)
    torch.testing.assert_close(rebuilt, net.decoder(asked))
    torch.testing.assert_close(pixel, ((images - rebuilt) ** 2).mean(dim=1))
    by_length = v[:, 1].norm(dim=1) - v[:, 0].norm(dim=1)
    torch.testing.assert_close(found, by_length if score == "lengths" else pixel.mean(dim=(1, 2)))


def test_learns_from_three_defects() -> None:
    tiles = Spots(3)
    detector = Capsule(Settings(**TINY, steps=200, learning_rate=2e-3), 0).fit(
        tiles, CPU
    )  # at 5e-3 one seed in 4 fails
    found = detector.score(np.concatenate([tiles.tiles, Spots(4).defects.tiles]))
    assert found.image[12:].min() > found.image[:12].max() + 0.5
    y, x = np.unravel_index(found.pixel[-1].argmax(), (40, 40))
    assert 12 <= y < 24 and 12 <= x < 24  # what the capsule of good parts cannot rebuild


def test_a_folder_of_parts_and_three_defects_becomes_a_bundle(tmp_path: Path) -> None:
    for seed in range(16):
        save(tmp_path / "ring/train/good" / f"{seed}.png", part(seed))
    recipe = {"detector": "capsule", "size": 96, "settings": {**TINY, "steps": 60, "learning_rate": 5e-3}}
    with pytest.raises(DatasetError, match=r"train/DEFECT.*memory-bank"):
        training.train(tmp_path / "ring", tmp_path / "ring.andon", device="cpu", **recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["ring"]
    for seed in range(3):
        save(tmp_path / "ring/train/scratch" / f"{seed}.png", blot(seed))
    training.train(tmp_path / "ring", tmp_path / "ring.andon", device="cpu", **recipe)
    inspector = Inspector.load(tmp_path / "ring.andon")
    good = [inspector.inspect(part(seed)).score for seed in range(20, 24)]
    bad = [inspector.inspect(blot(seed)).score for seed in range(20, 24)]
    assert min(bad) > max(good)


def blot(seed: int) -> Pixels:
    pixels = part(seed)
    pixels[30:60, 30:60] = 0
    return pixels


def test_no_defects_is_an_error() -> None:
    tiles = Spots(0)
    with pytest.raises(DatasetError, match="no images of defects"):
        Capsule(Settings(**TINY), 0).fit(tiles, CPU)
    tiles.defects = None
    with pytest.raises(DatasetError, match="no images of defects"):
        Capsule(Settings(**TINY), 0).forecast(tiles, CPU)


def test_presets_are_those_of_the_house() -> None:
    assert set(Capsule.presets) == {"cpu", "full"}
    for settings in Capsule.presets.values():
        Settings(**settings)

"""Segmenter: its five networks, its losses compared with plain computations, and its sources of defects."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from andon.detector import Run  # noqa: E402
from andon.detectors.segmenter import Segmenter, SegmenterNetwork, Settings, dice_loss, focal_loss  # noqa: E402
from andon.detectors.segmenter.networks import NETWORKS, Name, pool, unpool  # noqa: E402
from andon.engines import runtime  # noqa: E402
from andon.errors import DatasetError  # noqa: E402
from andon.inspection import Pixels  # noqa: E402
from andon.nn.learned import Network, export_network  # noqa: E402
from conftest import Marked, Stack  # noqa: E402

SIDE = 64
TINY: dict[str, Any] = {"network": "unet", "width": 2, "batch": 4, "steps": 2, "hold_out": 0}


class Spots(Stack):
    """Twelve dark tiles, and `count` tiles with a bright square; the first `masked` of them have a mask."""

    def __init__(self, count: int = 0, masked: int = 0) -> None:
        rng = np.random.default_rng(0)
        super().__init__(rng.integers(60, 80, (12, SIDE, SIDE, 3), dtype=np.uint8))
        pixels: Pixels = rng.integers(60, 80, (count, SIDE, SIDE, 3), dtype=np.uint8)
        pixels[:, 12:24, 12:24] = 220
        masks = np.zeros((count, SIDE, SIDE), np.bool_)
        masks[:masked, 12:24, 12:24] = True
        self.defects: Any = Marked(pixels, masks) if count else None


def messages_of_fit(tiles: Spots, **settings: Any) -> list[str]:
    sentences: list[str] = []
    Segmenter(Settings(**{**TINY, **settings}), 0).fit(tiles, Run(device="cpu", tell=sentences.append))
    return sentences


@pytest.mark.parametrize(
    ("name", "width", "outputs", "millions"),
    [
        ("fcn32", 64, 1, 134.3),  # VGG-16 without its last layer has 134.3
        ("unet", 64, 1, 31.0),  # the usual count of its paper's layers
        ("unet++", 32, 4, 9.16),  # 9.04 in its paper
        ("u2net", 64, 7, 44.0),  # 176.3 MB in its paper
        ("segnet", 64, 1, 29.5),  # the usual count of its paper's layers
    ],
)
def test_networks_have_the_size_of_their_papers(name: Name, width: int, outputs: int, millions: float) -> None:
    with torch.device("meta"):
        full = NETWORKS[name](3, width)
    assert sum(p.numel() for p in full.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
    small = NETWORKS[name](1, 4).eval()
    with torch.no_grad():
        assert small(torch.rand(2, 1, 96, 96)).shape == (2, outputs, 96, 96)


def test_unpooling_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 4, 6, 4).argsort(dim=-1).view(2, 3, 4, 6, 2, 2).transpose(3, 4).reshape(2, 3, 8, 12).float()
    maxima, weights = pool(x)
    expected, index = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(maxima, expected)
    assert torch.equal(unpool(maxima, weights), F.max_unpool2d(expected, index, 2))


def test_rounding_does_not_move_a_maximum() -> None:
    one, other = (torch.tensor([[[[0.5, 0.5 + up], [0.0, 0.1]]]]) for up in (1e-6, -1e-6))
    torch.testing.assert_close(unpool(*pool(one)), unpool(*pool(other)), rtol=0, atol=5e-4)
    assert torch.equal(unpool(*pool(torch.zeros(1, 1, 4, 4))), torch.zeros(1, 1, 4, 4))


def test_dice_and_focal_loss_equal_those_of_the_papers() -> None:
    rng = np.random.default_rng(0)
    logits, masks = rng.normal(size=(3, 2, 8, 8)), rng.random((3, 2, 8, 8)) < 0.2
    p = 1 / (1 + np.exp(-logits))
    dice = [(2 * p[:, k][masks[:, k]].sum() + 1) / (p[:, k].sum() + masks[:, k].sum() + 1) for k in range(2)]
    loss = dice_loss(torch.tensor(logits), torch.tensor(masks).double())
    assert float(loss) == pytest.approx(1 - np.mean(dice))
    right = np.where(masks, p, 1 - p)
    for focus in (0, 2):
        expected = np.mean(-((1 - right) ** focus) * np.log(right))
        assert float(focal_loss(torch.tensor(logits), torch.tensor(masks).double(), focus)) == pytest.approx(expected)
    none = torch.zeros(2, 1, 8, 8)
    assert float(dice_loss(none - 20, none)) == pytest.approx(0, abs=1e-5)  # a good tile without false positives
    assert float(dice_loss(none + 20, none)) == pytest.approx(1, abs=0.01)


def test_loss_uses_masks_of_the_last_channel_or_synthetic_defects() -> None:
    net = SegmenterNetwork(3, Settings(**TINY, share=0.5)).eval()
    tiles = torch.rand(40, 3, SIDE, SIDE)
    defective, masks = net.with_defects(tiles, torch.Generator().manual_seed(0))
    changed = (defective != tiles).flatten(1).any(dim=1)
    assert torch.equal(changed, masks.flatten(1).any(dim=1))
    assert 10 < int(changed.sum()) < 30
    with torch.no_grad():
        labelled = net.loss(torch.cat([defective, masks[:, None]], dim=1), torch.Generator())
        synthetic = net.loss(tiles, torch.Generator().manual_seed(0))
    assert float(labelled) == pytest.approx(float(synthetic), rel=1e-6)
    none, every = (SegmenterNetwork(3, Settings(**TINY, share=share)) for share in (0.0, 0.9))
    assert not none.with_defects(tiles, torch.Generator())[1].any()
    assert int(every.with_defects(tiles, torch.Generator())[1].flatten(1).any(dim=1).sum()) > 30


@pytest.mark.parametrize("name", NETWORKS)
def test_untrained_networks_rate_pixels_as_good(name: Name) -> None:
    torch.manual_seed(0)
    network = SegmenterNetwork(3, Settings(network=name, width=4)).eval()
    with torch.no_grad():
        logits = network.logits(torch.rand(2, 3, 64, 64))
    assert torch.allclose(logits.sigmoid(), torch.tensor(0.01), atol=0.02)


@torch.no_grad()
def test_score_is_the_mean_of_the_highest_logits() -> None:
    tiles = torch.rand(2, 3, SIDE, SIDE)
    for top, count in ((0, 1), (0.01, 41), (1, 4096)):
        torch.manual_seed(0)
        net = SegmenterNetwork(3, Settings(**TINY, top=top)).eval()
        score, logits = net(tiles)
        expected = np.sort(logits.flatten(1).numpy(), axis=1)[:, -count:].mean(axis=1)
        np.testing.assert_allclose(score.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_training_uses_labelled_defects_if_there_are_masks_else_synthetic_ones() -> None:
    assert "synthetic" in messages_of_fit(Spots())[0]
    assert "synthetic" in messages_of_fit(Spots(4, masked=4), defects="synthetic")[0]
    assert (
        "2 tiles of labelled defects; a defect is used 6 times as often" in messages_of_fit(Spots(4, masked=2))[0]
    )  # 2 · 6 and 12 good tiles
    assert "a defect is used 1 times as often" in messages_of_fit(Spots(4, masked=2), share=0.0)[0]
    for defects, tiles in (("labelled", Spots()), ("auto", Spots(4, masked=0)), ("labelled", Spots(4, masked=0))):
        with pytest.raises(DatasetError, match="no images of defects for training"):
            messages_of_fit(tiles, defects=defects)


def test_repeats_of_a_defect_have_the_same_group() -> None:
    stock = Segmenter(Settings(**TINY), 0).stock(Spots(4, masked=3))
    assert len(stock) == len(stock.groups) == 12 + 3 * 4 == sum(len(batch) for batch in stock)
    assert sorted(stock.groups) == sorted([*range(12), *[-1, -2, -3] * 4])
    pixels = np.concatenate(list(stock))
    for group in (-1, -2, -3):
        same = pixels[[i for i, g in enumerate(stock.groups) if g == group]]
        assert (same == same[0]).all() and same[0, 20, 20, 3] == 255 and same[0, 0, 0, 3] == 0


def test_tiles_without_a_defect_in_the_mask_are_not_defects() -> None:
    tiles = Spots(40, masked=2)  # as if images of defects were cut into 20 tiles each
    stock = Segmenter(Settings(**TINY), 0).stock(tiles)
    shown = np.concatenate(list(stock))[..., 3].any(axis=(1, 2))
    assert shown.mean() == 0.5 and shown.tolist() == [group < 0 for group in stock.groups]


def test_labelled_defects_have_higher_scores_and_maps() -> None:
    tiles = Spots(4, masked=4)
    settings = {**TINY, "width": 4, "steps": 25, "learning_rate": 1e-2}
    scores = (
        Segmenter(Settings(**settings), 0)
        .fit(tiles, Run(device="cpu"))
        .score(np.concatenate([tiles.tiles[:4], tiles.defects.tiles]))
    )
    assert scores.image[4:].min() > scores.image[:4].max()
    inside = scores.pixel[4:, 14:22, 14:22]
    assert inside.mean() > scores.pixel[4:, 40:, 40:].max()


def test_unpooling_can_be_exported() -> None:
    class Pooling(Network):
        def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
            unpooled = unpool(*pool(tiles))[:, 0]
            return unpooled.amax(dim=(1, 2)), unpooled

    tiles = torch.relu(torch.rand(3, 1, 16, 16) - 0.7)  # as after a ReLU: many windows are all 0
    session = runtime.session(export_network(Pooling(), 16, 1), threads=1)
    exported_map = session.run(["map"], {"tiles": tiles.numpy()})[0]
    np.testing.assert_array_equal(exported_map, Pooling()(tiles)[1].numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn32", "unet++", "u2net", "segnet"])  # test_detectors_contract.py tests unet
def test_graphs_of_the_other_networks_agree_with_torch(name: Name) -> None:
    tiles = Spots()
    detector = Segmenter(Settings(**{**TINY, "network": name, "steps": 1}), 0).fit(tiles, Run(device="cpu"))
    score, pixel = runtime.session(detector.graph(), threads=1).run(["score", "map"], {"tiles": tiles.tiles[:3]})
    expected = detector.score(tiles.tiles[:3])
    np.testing.assert_allclose(score, expected.image, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pixel, expected.pixel, rtol=1e-3, atol=1e-4)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must not exceed most"):
        Settings(least=0.3, most=0.2)
    with pytest.raises(ValueError, match="kinds"):
        Settings(kinds=())

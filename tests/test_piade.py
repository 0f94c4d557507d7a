"""Piade: squeeze-and-excitation, pooling and terms compared with plain computations; ranges of held-out tiles."""

from typing import Any

import numpy as np
import pytest

from conftest import Stack, noise

torch = pytest.importorskip("torch")

from andon.detector import Run  # noqa: E402
from andon.detectors.piade import Excitation, Piade, PiadeNetwork, Settings  # noqa: E402
from andon.nn.data import floats, split  # noqa: E402
from andon.nn.losses import ssim  # noqa: E402
from andon.nn.trunk import Trunk  # noqa: E402

TINY: dict[str, Any] = {"width": 8, "blocks": 1, "stages": (1,), "steps": 1, "batch": 2}


class Noise(Stack):
    """Tiles of noise."""

    def __init__(self, count: int, side: int = 64) -> None:
        super().__init__(noise(count, side), batch=3)


def network(**settings: Any) -> PiadeNetwork:
    torch.manual_seed(0)
    return PiadeNetwork(128, 3, Settings(**{**TINY, **settings})).eval()


def test_excitation_scales_channels_by_their_means() -> None:
    torch.manual_seed(0)
    layer, x = Excitation(8, 4), torch.randn(2, 8, 3, 5)
    first, second = layer.weigh[0], layer.weigh[2]
    hidden = torch.relu(x.mean(dim=(2, 3)) @ first.weight.T + first.bias)
    assert hidden.shape == (2, 2)
    weights = torch.sigmoid(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(layer(x)[1, 3], x[1, 3] * weights[1, 3])


@torch.no_grad()
def test_all_values_of_a_capsule_belong_to_one_position() -> None:
    net, features = network(), torch.randn(2, 64, 8, 8)
    inputs: list[torch.Tensor] = []
    net.capsules.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    assert net.route(features).shape == (2, 2, 64)
    assert inputs[0].shape == (2, 15 * 64 // 8, 8)  # 64 + 4 · 32 + 16 · 16 + 64 · 8 values, 8 of each capsule
    narrow = net.pools[1]  # the grid of 2 with half of the channels follows the grid of 1, which has 8 capsules
    pooled = torch.relu(narrow(features[:, :, :4, 4:].mean(dim=(2, 3), keepdim=True)))[:, :, 0, 0]
    torch.testing.assert_close(inputs[0][:, 8 + 4 : 8 + 8].flatten(1), pooled, atol=1e-5, rtol=1e-4)
    fine = net.pools[3](features)  # the grid of 8 has the resolution of the features
    torch.testing.assert_close(inputs[0][0, -1], torch.relu(fine)[0, :, 7, 7], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_longer_vector_is_decoded() -> None:
    net, images = network(), torch.rand(2, 3, 128, 128)
    vectors = torch.zeros(2, 2, 64)
    vectors[0, 1, 3], vectors[1, 0, 5], vectors[1, 1, 6] = 0.5, 0.9, 0.8
    net.route = lambda features: vectors  # type: ignore[method-assign]
    inputs: list[torch.Tensor] = []
    net.unfold.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    net.rebuild(images)
    torch.testing.assert_close(inputs[0], torch.stack([vectors[0, 1], vectors[1, 0]]))


@torch.no_grad()
def test_loss_and_score_are_sums_of_the_three_terms() -> None:
    net, images = network(), torch.rand(3, 3, 128, 128)
    rebuilt = net.rebuild(images)
    trunk = Trunk("efficientnet-lite0", (1,))
    unit = [maps[0] / maps[0].square().sum(1, keepdim=True).sqrt() for maps in (trunk(images), trunk(rebuilt))]
    deep = (unit[0] - unit[1]).square().sum(1).mean((1, 2))
    terms = torch.stack(
        [(images - rebuilt).square().mean((1, 2, 3)), 1 - ssim(images, rebuilt).mean((1, 2, 3)), deep], dim=1
    )
    assert float(net.loss(images, torch.Generator())) == pytest.approx(float(terms.mean(0).sum()), rel=1e-4)
    net.learn_ranges(iter([images[:2], images[2:]]))
    torch.testing.assert_close(net.least, terms.amin(0), rtol=1e-4, atol=1e-6)
    spread = torch.maximum(terms.amax(0) - terms.amin(0), 0.01 * terms.amax(0))
    torch.testing.assert_close(net.range, spread, rtol=1e-2, atol=1e-6)
    score, pixel, reconstruction = net(images)
    expected = ((terms - net.least) / net.range).sum(1)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pixel.mean((1, 2)), score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reconstruction, rebuilt)


@pytest.mark.parametrize(("hold_out", "count"), [(0.2, 2), (0.1, 1), (0.0, 0)])
def test_ranges_come_from_held_out_tiles_if_there_are_two(hold_out: float, count: int) -> None:
    tiles, messages = Noise(11), list[str]()
    detector = Piade(Settings(**TINY, hold_out=hold_out), 0).fit(tiles, Run(device="cpu", tell=messages.append))
    net = detector._fitted()
    assert isinstance(net, PiadeNetwork)
    held = split(tiles.groups, hold_out, 0)[1]
    rows = held if count > 1 else np.arange(11)  # one tile has no range
    assert len(held) == count
    least, spread = net.least.clone(), net.range.clone()
    net.learn_ranges(iter([floats(tiles.tiles[rows])]))
    torch.testing.assert_close(net.least, least, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(net.range, spread, rtol=1e-2, atol=1e-5)
    assert any("ranges" in message for message in messages) is (count < 2)


def test_training_with_one_tile_has_finite_scores() -> None:
    detector = Piade(Settings(**{**TINY, "batch": 1}, hold_out=0.0), 0).fit(Noise(1), Run(device="cpu"))
    assert np.isfinite(detector.score(Noise(1).tiles).image).all()


def test_presets() -> None:
    assert set(Piade.presets) == {"cpu", "full"}
    for settings in Piade.presets.values():
        Settings(**settings)

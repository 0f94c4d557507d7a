"""Pyramid autoencoder: its levels, its loss and its map, compared with a plain computation."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from andon.detectors.pyramid_autoencoder import PyramidAutoencoder, PyramidNetwork, Settings  # noqa: E402
from andon.nn.losses import perceptual_map  # noqa: E402
from andon.nn.trunk import Trunk  # noqa: E402

TINY: dict[str, Any] = {"side": 64, "width": 4, "widest": 8, "latent": 4, "stages": (1,)}


def network(tile: int = 64, **settings: Any) -> PyramidNetwork:
    torch.manual_seed(0)
    return PyramidNetwork(tile, 3, Settings(**{**TINY, **settings}))


@torch.no_grad()
@pytest.mark.parametrize(("side", "levels"), [(32, 4), (64, 1), (96, 3), (160, 2), (352, 4)])
def test_every_side_and_number_of_levels_is_possible(side: int, levels: int) -> None:
    net = network(96, side=side, levels=levels)
    assert len(net.encoders) == levels
    score, error, reconstruction = net(torch.rand(2, 3, 96, 96))
    assert score.shape == (2,) and error.shape == (2, 96, 96) and reconstruction.shape == (2, 3, 96, 96)


@torch.no_grad()
def test_levels_encode_averaged_features_and_their_latents_are_concatenated() -> None:
    net, images = network(), torch.rand(2, 3, 64, 64)
    latents: list[torch.Tensor] = []
    net.decoder.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    net.rebuild(images)
    features = net.stem(images)  # (2, 4, 32, 32)
    quarter = features.reshape(2, 4, 8, 4, 8, 4).mean(dim=(3, 5))
    torch.testing.assert_close(latents[0][:, :4], net.encoders[0](features))
    torch.testing.assert_close(latents[0][:, 8:], net.encoders[2](quarter), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_loss_score_and_map_are_the_errors_of_pixels_and_features() -> None:
    net, images = network(perceptual=0.5), torch.rand(2, 3, 64, 64)
    rebuilt = net.rebuild(images)
    trunk = Trunk("efficientnet-lite0", (1,))
    expected = (images - rebuilt).square().mean(1) + 0.5 * perceptual_map(trunk(images), trunk(rebuilt), 64)
    score, error, _ = net(images)
    torch.testing.assert_close(error, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(score, expected.mean((1, 2)), atol=1e-5, rtol=1e-4)
    assert float(net.loss(images, torch.Generator())) == pytest.approx(float(expected.mean()), rel=1e-4)
    highest = network(perceptual=0.5, score="max")(images)[0]
    torch.testing.assert_close(highest, expected.amax((1, 2)), atol=1e-5, rtol=1e-4)


def test_feature_network_is_not_trained() -> None:
    net = network()
    net.loss(torch.rand(1, 3, 64, 64), torch.Generator()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert not any(name.startswith("trunk") for name, _ in net.named_parameters())
    assert not any(name.startswith("trunk") for name in net.state_dict())


def test_presets() -> None:
    assert set(PyramidAutoencoder.presets) == {"cpu", "full"}
    for settings in PyramidAutoencoder.presets.values():
        Settings(**settings)

"""Autoencoder: its equations, its shapes, and SSIM against a plain implementation."""

from typing import Any

import numpy as np
import pytest

from conftest import Stack, flat

torch = pytest.importorskip("torch")

from andon.detector import Run  # noqa: E402
from andon.detectors.autoencoder import Autoencoder, AutoencoderNetwork, Settings  # noqa: E402
from andon.engines import runtime  # noqa: E402
from andon.nn.losses import ssim  # noqa: E402

TINY: dict[str, Any] = {"width": 4, "widest": 8, "latent": 4, "steps": 3, "hold_out": 0}


class Flat(Stack):
    """Tiles of one brightness each, at a side that is no power of two."""

    def __init__(self, side: int = 96) -> None:
        super().__init__(flat(6, side, 3))


def network(side: int = 64, channels: int = 3, **settings: Any) -> AutoencoderNetwork:
    torch.manual_seed(0)
    return AutoencoderNetwork(side, channels, Settings(**{**TINY, **settings}))


@pytest.mark.parametrize(("side", "layers"), [(64, 4), (96, 4), (100, 4), (128, 5), (256, 6), (288, 6), (512, 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_layers_follow_the_side(side: int, layers: int, channels: int) -> None:
    net = network(side, channels, width=1)
    down = [m for m in net.encoder if isinstance(m, torch.nn.Conv2d)]
    up = [m for m in net.decoder if isinstance(m, torch.nn.ConvTranspose2d)]
    assert len(down) == len(up) == layers
    assert all(m.stride == (2, 2) for m in down + up)
    assert not any("Pool" in type(m).__name__ for m in net.modules())
    rebuilt, latent = net.rebuild(torch.rand(2, channels, side, side))
    assert rebuilt.shape == (2, channels, side, side)
    assert latent.shape == (2, 4)
    score, error, shown, latent = net(torch.rand(2, channels, side, side))
    assert latent.shape == (2, 4)
    assert score.shape == (2,) and error.shape == (2, side, side) and shown.shape == rebuilt.shape


def test_score_and_map_are_the_squared_error() -> None:
    net, tiles = network(), torch.rand(3, 3, 64, 64)
    rebuilt = net.rebuild(tiles)[0].detach().numpy()
    error = ((tiles.numpy() - rebuilt) ** 2).mean(axis=1)  # Eq. 2
    score, pixel, shown, _ = (x.detach().numpy() for x in net(tiles))
    np.testing.assert_allclose(pixel, error, rtol=1e-5)
    np.testing.assert_allclose(score, error.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(shown, rebuilt)


def test_score_and_map_are_one_minus_ssim() -> None:
    net, tiles = network(objective="ssim", score="max"), torch.rand(1, 1, 64, 64).expand(1, 3, 64, 64)
    rebuilt = net.rebuild(tiles)[0].detach().numpy()
    expected = 1 - ssim(tiles, torch.tensor(rebuilt))[0].mean(dim=0).numpy()
    score, pixel, *_ = (x.detach().numpy() for x in net(tiles))
    np.testing.assert_allclose(pixel[0], expected, atol=1e-4)
    assert score[0] == pixel.max()


def test_smoothing_averages_the_map_over_what_there_is() -> None:
    sharp, smooth, tiles = network(), network(smooth=3, score="max"), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        error, (score, found, *_) = sharp(tiles)[1][0], smooth(tiles)
    assert float(found[0, 10, 20]) == pytest.approx(float(error[9:12, 19:22].mean()))
    assert float(found[0, 0, 0]) == pytest.approx(float(error[:2, :2].mean()))
    assert float(score) == float(found.max())
    with pytest.raises(ValueError, match="odd"):
        Settings(smooth=4)


@torch.no_grad()
def test_loss_is_the_error_and_the_sparsity() -> None:
    tiles, generator = torch.rand(2, 3, 64, 64), torch.Generator()
    plain, sparse = network(sparsity=0), network(sparsity=0.5)
    rebuilt, latent = plain.rebuild(tiles)
    error = float(((tiles - rebuilt) ** 2).mean())
    assert float(plain.loss(tiles, generator)) == pytest.approx(error)
    # Eq. 3: L(x, x̂) + λ Σ |a|
    assert float(sparse.loss(tiles, generator)) == pytest.approx(error + 0.5 * float(latent.abs().mean()))
    structure = float(network(sparsity=0, objective="ssim").loss(tiles, generator))
    assert structure == pytest.approx(float(1 - ssim(tiles, rebuilt).mean()))


def test_sparsity_makes_activations_small() -> None:
    def activations(sparsity: float) -> float:
        tiles = Flat(64)
        settings = Settings(**{**TINY, "sparsity": sparsity, "steps": 60, "learning_rate": 1e-2})
        detector = Autoencoder(settings, 0).fit(tiles, Run(device="cpu"))
        net = detector._network
        assert isinstance(net, AutoencoderNetwork)
        values = torch.tensor(tiles.tiles).permute(0, 3, 1, 2) / 255
        return float(net.rebuild(values)[1].detach().abs().mean())

    assert activations(1.0) < 0.2 * activations(0.0)


def test_graph_gives_score_map_and_reconstruction_at_an_odd_size() -> None:
    tiles = Flat()
    detector = Autoencoder(Settings(**TINY, score="max", smooth=3), 0).fit(tiles, Run(device="cpu"))
    session = runtime.session(detector.graph(), threads=1)
    score, pixel, shown = session.run(["score", "map", "reconstruction"], {"tiles": tiles.tiles})
    expected = detector.score(tiles.tiles)
    np.testing.assert_allclose(score, expected.image, rtol=1e-4)
    np.testing.assert_allclose(pixel, expected.pixel, rtol=1e-3, atol=1e-6)
    assert shown.shape == tiles.tiles.shape and shown.min() >= 0 and shown.max() <= 1
    assert b".py" not in detector.graph().SerializeToString()  # nothing of where it was exported


def test_presets_are_those_of_the_house() -> None:
    assert set(Autoencoder.presets) == {"cpu", "full"}
    for settings in Autoencoder.presets.values():
        Settings(**settings)

"""vae: its bound against torch.distributions and a sample, its scores, and its settings."""

from typing import Any

import numpy as np
import pytest

from conftest import Stack, flat

torch = pytest.importorskip("torch")

from torch import distributions  # noqa: E402

from andon.detector import Run  # noqa: E402
from andon.detectors.vae import Settings, Vae, VaeNetwork, divergence  # noqa: E402
from andon.engines import runtime  # noqa: E402
from andon.nn.resize import Resize  # noqa: E402

TINY: dict[str, Any] = {"side": 32, "width": 4, "widest": 8, "latent": 4, "steps": 3, "hold_out": 0.0}


class Flat(Stack):
    """Tiles of one brightness each, larger than what the network sees and no multiple of it."""

    def __init__(self, side: int = 96, channels: int = 3) -> None:
        super().__init__(flat(6, side, channels))


def network(side: int = 64, channels: int = 3, **settings: Any) -> VaeNetwork:
    torch.manual_seed(0)
    return VaeNetwork(side, channels, Settings(**{**TINY, **settings})).eval()


def test_divergence_is_that_of_normal_distributions() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    posterior = distributions.Normal(mean, (log_variance / 2).exp())
    prior = distributions.Normal(torch.zeros(7), torch.ones(7))
    expected = distributions.kl_divergence(posterior, prior).sum(dim=1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)
    z = posterior.sample((20_000,))
    sampled = (posterior.log_prob(z) - prior.log_prob(z)).sum(dim=2).mean(dim=0)
    torch.testing.assert_close(divergence(mean, log_variance), sampled, rtol=0.03, atol=0.03)
    assert float(divergence(torch.zeros(1, 7), torch.zeros(1, 7))) == 0


def test_bound_is_the_log_likelihood_and_the_divergence_without_constants() -> None:
    net, x = network(noise=0.3), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        mean, log_variance = net.encode(x)
        rebuilt = net.decoder(mean)
        found = net.bound(x, rebuilt, mean, log_variance)
    decoded = distributions.Normal(rebuilt, 0.3)
    constant = decoded.log_prob(rebuilt).sum(dim=(1, 2, 3))
    evidence = decoded.log_prob(x).sum(dim=(1, 2, 3)) - constant - divergence(mean, log_variance)
    torch.testing.assert_close(found, -evidence / (3 * 32 * 32), rtol=1e-4, atol=1e-6)


def test_loss_draws_z_about_its_mean_as_the_generator_says() -> None:
    net, tiles = network(32), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        found = net.loss(tiles, torch.Generator().manual_seed(7))
        mean, log_variance = net.encode(tiles)
        drawn = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
        rebuilt = net.decoder(mean + torch.exp(log_variance) ** 0.5 * drawn)
        again = net.loss(tiles, torch.Generator().manual_seed(8))
    torch.testing.assert_close(found, net.bound(tiles, rebuilt, mean, log_variance).mean())
    assert float(found) != float(again)


def test_scores_are_of_the_mean_and_draw_nothing() -> None:
    tiles = torch.rand(2, 3, 64, 64)
    small = Resize(64, 32)(tiles)
    with torch.no_grad():
        found = {score: network(score=score)(tiles) for score in ("mean", "max", "elbo")}
        again = network()(tiles)
        net = network()
        mean, log_variance = net.encode(small)
        rebuilt = net.decoder(mean)
    error = ((small - rebuilt) ** 2).mean(dim=1)
    for score, pixel, shown in found.values():
        assert score.shape == (2,) and pixel.shape == (2, 64, 64) and shown.shape == tiles.shape
        torch.testing.assert_close(pixel, again[1], rtol=0, atol=0)
    torch.testing.assert_close(found["mean"][1][:, 1:-1:2, 1:-1:2][0, 0, 0], weighted(error[0]), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found["mean"][0], found["mean"][1].mean(dim=(1, 2)))
    torch.testing.assert_close(found["max"][0], found["max"][1].amax(dim=(1, 2)))
    torch.testing.assert_close(found["elbo"][0], net.bound(small, rebuilt, mean, log_variance), rtol=1e-4, atol=1e-6)


def weighted(error: Any) -> Any:
    """Value of the enlarged map at (1, 1): a quarter of the way from the first pixel of `error` to the next ones."""
    a, b = torch.tensor([0.75, 0.25]), torch.tensor([0.75, 0.25])
    return a @ error[:2, :2] @ b


def test_graph_gives_score_map_and_reconstruction_of_larger_tiles() -> None:
    tiles = Flat(channels=1)
    detector = Vae(Settings(**TINY, score="elbo", smooth=3), 0).fit(tiles, Run(device="cpu"))
    session = runtime.session(detector.graph(), threads=1)
    score, pixel, shown = session.run(["score", "map", "reconstruction"], {"tiles": tiles.tiles})
    expected = detector.score(tiles.tiles)
    np.testing.assert_allclose(score, expected.image, rtol=1e-4)
    np.testing.assert_allclose(pixel, expected.pixel, rtol=1e-3, atol=1e-6)
    assert shown.shape == tiles.tiles.shape and shown.min() >= 0 and shown.max() <= 1


def test_a_smaller_noise_rebuilds_better_and_strays_further_from_the_prior() -> None:
    def fitted(noise: float) -> tuple[float, float]:
        tiles = Flat(64)
        settings = Settings(**{**TINY, "noise": noise, "steps": 60, "learning_rate": 1e-2})
        net = Vae(settings, 0).fit(tiles, Run(device="cpu"))._network
        assert isinstance(net, VaeNetwork)
        values = torch.tensor(tiles.tiles).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            return float(net(values)[1].mean()), float(divergence(*net.encode(values[..., ::2, ::2])).mean())

    (error, kl), (blurred, near) = fitted(0.05), fitted(5.0)
    assert error < 0.5 * blurred and near < 0.5 * kl


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"noise": 0.0}, {"side": 8}, {"smooth": 2}, {"latent": 0}, {"score": "min"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)

"""vt-adl: likelihood compared with scikit-learn, attention and scores with plain computations, and bad sizes."""

import math
from typing import Any

import numpy as np
import pytest

from conftest import Stack, noise

torch = pytest.importorskip("torch")
mixture = pytest.importorskip("sklearn.mixture")

from torch.nn import functional as F  # noqa: E402

from andon.detector import Run  # noqa: E402
from andon.detectors.vt_adl import VTADL, Layer, Mixture, Settings, VTADLNetwork, log_likelihood  # noqa: E402
from andon.errors import RecipeError, TrainingError  # noqa: E402
from andon.nn.losses import ssim  # noqa: E402

TINY: dict[str, Any] = {
    "patch": 16,
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "mlp": 16,
    "gaussians": 3,
    "width": 8,
    "steps": 2,
    "hold_out": 0,
}


class Noise(Stack):
    """Six noisy tiles."""

    def __init__(self, side: int = 64) -> None:
        super().__init__(noise(6, side))


def network(side: int = 64, **settings: Any) -> VTADLNetwork:
    torch.manual_seed(0)
    return VTADLNetwork(side, 3, Settings(**{**TINY, **settings})).eval()


@pytest.mark.parametrize(("gaussians", "dim"), [(1, 4), (5, 16), (150, 3)])
def test_likelihood_equals_that_of_scikit_learn(gaussians: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.dirichlet(np.ones(gaussians))
    mean, variance = rng.normal(size=(gaussians, dim)), rng.uniform(0.01, 2, gaussians)
    y = np.concatenate(
        [rng.normal(size=(20, dim)), 30 + rng.normal(size=(20, dim))]
    )  # at the far points exp underflows
    model = mixture.GaussianMixture(gaussians, covariance_type="spherical")
    model.weights_, model.means_, model.covariances_ = weight, mean, variance
    model.precisions_cholesky_ = 1 / np.sqrt(variance)
    double = log_likelihood(*(torch.tensor(v) for v in (y, np.log(weight), mean, variance)))
    np.testing.assert_allclose(double.numpy(), model.score_samples(y), rtol=1e-9)
    single = log_likelihood(*(torch.tensor(v).float() for v in (y, np.log(weight), mean, variance)))
    assert bool(torch.isfinite(single).all())
    np.testing.assert_allclose(single.numpy(), model.score_samples(y), rtol=1e-4)


def test_the_floor_keeps_a_collapsed_mixture_finite() -> None:
    net = Mixture(8, 2, floor=0.01)
    torch.nn.init.constant_(net.variance.bias, -1e4)  # the end of a likelihood without bound
    y = torch.randn(5, 8)
    log_weight, mean, variance = net(y)
    assert torch.equal(variance, torch.full((5, 2), 0.01))
    assert log_weight.exp().sum(dim=-1).tolist() == pytest.approx([1] * 5)
    highest = log_likelihood(mean[:, 0], log_weight, mean, variance)
    assert bool((highest <= -4 * math.log(2 * math.pi * 0.01) + 1e-4).all())
    highest.sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@torch.no_grad()
def test_attention_equals_that_of_torch() -> None:
    layer = Layer(16, 4, 8)
    plain = torch.nn.TransformerEncoderLayer(16, 4, 8, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    names = {
        "before": "norm1",
        "between": "norm2",
        "join": "self_attn.out_proj",
        "think.0": "linear1",
        "think.2": "linear2",
    }
    state = {
        f"{theirs}.{part}": layer.get_submodule(ours).get_parameter(part)
        for ours, theirs in names.items()
        for part in ("weight", "bias")
    }
    state |= {f"self_attn.in_proj_{part}": layer.query_key_value.get_parameter(part) for part in ("weight", "bias")}
    plain.load_state_dict(state)
    y = torch.randn(2, 9, 16)
    torch.testing.assert_close(layer(y), plain(y), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tokens_are_standardised_and_depend_on_their_position() -> None:
    net = network()
    tokens = net.encode(torch.rand(2, 3, 64, 64))
    assert tokens.shape == (2, 16, 16)
    torch.testing.assert_close(tokens.mean(dim=-1), torch.zeros(2, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.var(dim=-1, unbiased=False), torch.ones(2, 16), rtol=0, atol=1e-3)
    uniform = net.encode(torch.full((1, 3, 64, 64), 0.5))[0]
    assert float((uniform[0] - uniform[1]).abs().max()) > 1e-3


@torch.no_grad()
def test_score_map_and_loss_equal_their_equations() -> None:
    tiles = torch.rand(3, 3, 64, 64)
    nets = {kind: network(score=kind, smooth=0.0) for kind in ("sum", "reconstruction", "likelihood")}
    net = nets["sum"]
    tokens = net.encode(tiles)
    nll = -log_likelihood(tokens, *net.mixture(tokens)) / 16
    score, pixel, rebuilt = net(tiles)
    assert rebuilt.shape == tiles.shape and float(rebuilt.min()) >= 0 and float(rebuilt.max()) <= 1
    square = ((tiles - rebuilt) ** 2).numpy().mean(axis=(1, 2, 3))
    error = 5 * square + 0.5 * (1 - ssim(tiles, rebuilt).numpy().mean(axis=(1, 2, 3)))
    worst = nll.numpy().max(axis=1)
    np.testing.assert_allclose(score.numpy(), error + worst, rtol=1e-5)
    np.testing.assert_allclose(nets["reconstruction"](tiles)[0].numpy(), error, rtol=1e-5)
    np.testing.assert_allclose(nets["likelihood"](tiles)[0].numpy(), worst, rtol=1e-5)
    large = F.interpolate(nll.view(3, 1, 4, 4), size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(pixel, large)
    smooth = network(smooth=3.0)(tiles)[1]
    assert float(smooth.std()) < float(pixel.std())
    assert float(smooth.mean()) == pytest.approx(float(pixel.mean()), rel=0.02)
    noiseless = network(noise=0.0)
    assert float(noiseless.loss(tiles, torch.Generator())) == pytest.approx(float(np.mean(error + nll.mean(1).numpy())))


@torch.no_grad()
def test_noise_comes_from_the_generator_and_is_not_in_the_graph() -> None:
    net, tiles = network(), torch.rand(2, 3, 64, 64)
    first, again, other = (float(net.loss(tiles, torch.Generator().manual_seed(seed))) for seed in (0, 0, 1))
    assert first == again != other
    torch.testing.assert_close(net(tiles)[0], net(tiles)[0])


@pytest.mark.parametrize("side", [96, 100, 256])
def test_reconstructions_have_the_size_of_the_tile(side: int) -> None:
    net = network(side, patch=side // 2)
    with torch.no_grad():
        assert net(torch.rand(1, 3, side, side))[2].shape == (1, 3, side, side)


@pytest.mark.parametrize(("side", "patch"), [(64, 24), (64, 64), (96, 64)])
def test_patches_that_do_not_fit_are_refused_before_training(side: int, patch: int) -> None:
    detector = VTADL(Settings(**{**TINY, "patch": patch}), 0)
    with pytest.raises(RecipeError, match=rf"{side} pixels a side do not divide into patches of {patch}; .* \[8, 16,"):
        detector.forecast(Noise(side))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        Settings(dim=30, heads=4)
    with pytest.raises(ValueError, match="floor"):
        Settings(floor=0.0)


def test_a_diverging_loss_is_an_error() -> None:
    with pytest.raises(TrainingError, match="the loss became"):
        detector = VTADL(Settings(**{**TINY, "steps": 60, "learning_rate": 1e8, "clip": 1e9, "warmup": 0.0}), 0)
        detector.fit(Noise(), Run(device="cpu"))

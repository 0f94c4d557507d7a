"""Layers and losses that detectors share, against plain computations."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from andon.inspection import Array  # noqa: E402
from andon.nn.convolutional import Critic, decoder, encoder, halvings  # noqa: E402
from andon.nn.losses import gaussian, perceptual_loss, perceptual_map, ssim  # noqa: E402
from andon.nn.resize import Resize  # noqa: E402


def plain_ssim(x: Array, y: Array, window: int, sigma: float) -> Array:
    """SSIM of two pictures (h, w), pixel by pixel as in the paper; the edge is repeated."""
    reach = window // 2
    at = np.arange(-reach, reach + 1)
    weights = np.exp(-(at[:, None] ** 2 + at**2) / (2 * sigma**2))
    weights /= weights.sum()
    x, y = (np.pad(a.astype(np.float64), reach, mode="edge") for a in (x, y))
    out = np.empty((x.shape[0] - 2 * reach, x.shape[1] - 2 * reach))
    for i, j in np.ndindex(*out.shape):
        a, b = (v[i : i + window, j : j + window] for v in (x, y))
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        both = (weights * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = 0.01**2, 0.03**2
        out[i, j] = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        out[i, j] /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return out.astype(np.float32)


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (7, 1.0)])
def test_ssim_is_that_of_the_paper(window: int, sigma: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((2, 3, 20, 24), dtype=np.float32)
    y = np.clip(x + 0.2 * rng.standard_normal(x.shape), 0, 1).astype(np.float32)
    found = ssim(torch.tensor(x), torch.tensor(y), window, sigma).numpy()
    for n, c in np.ndindex(2, 3):
        np.testing.assert_allclose(found[n, c], plain_ssim(x[n, c], y[n, c], window, sigma), atol=2e-5)
    assert float(gaussian(window, sigma).sum()) == pytest.approx(1)
    assert float(ssim(torch.tensor(x), torch.tensor(x)).mean()) == pytest.approx(1, abs=1e-5)


def test_perceptual_loss_is_the_mean_of_its_map_and_knows_no_scale() -> None:
    torch.manual_seed(0)
    maps, others = ([torch.randn(2, 6, 8, 8), torch.randn(2, 9, 4, 4)] for _ in range(2))
    loss = float(perceptual_loss(maps, others))
    assert float(perceptual_map(maps, others, 32).mean()) == pytest.approx(loss, rel=1e-5)
    assert float(perceptual_loss([7 * m for m in maps], others)) == pytest.approx(loss, rel=1e-5)
    assert float(perceptual_loss(maps, maps)) == 0
    assert float(perceptual_loss(maps, [-m for m in maps])) == pytest.approx(4)


@pytest.mark.parametrize("sides", [(40, 16), (16, 40), (30, 7), (24, 24)])
def test_resize_keeps_means_and_flat_images(sides: tuple[int, int]) -> None:
    before, after = sides
    resize = Resize(before, after)
    torch.testing.assert_close(resize(torch.full((1, 2, before, before), 0.3)), torch.full((1, 2, after, after), 0.3))
    ramp = torch.linspace(0, 1, before).expand(1, 1, before, before)
    assert float(resize(ramp).mean()) == pytest.approx(0.5, abs=1e-4)
    image = torch.rand(1, 3, before, before)
    expected = torch.nn.functional.interpolate(image, size=(after, after), mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(image), expected, atol=1e-5, rtol=1e-4)


def test_ssim_and_resize_are_exact_in_a_training_that_rounds() -> None:
    torch.manual_seed(0)
    x, resize = torch.rand(1, 3, 32, 32), Resize(32, 20)
    y = x + 0.01 * torch.randn_like(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = ssim(x, y), resize(x)
    assert torch.equal(found[0], ssim(x, y)) and torch.equal(found[1], resize(x))


@pytest.mark.parametrize(("side", "halved"), [(32, 3), (48, 3), (63, 3), (64, 4), (100, 4), (256, 6)])
@pytest.mark.parametrize("norm", [False, True])
def test_shared_layers_follow_the_side(side: int, halved: int, norm: bool) -> None:
    grids = halvings(side, 3, 4, 8)
    assert grids.widths == [3, 4, *[8] * (halved - 1)] and len(grids.sides) == halved + 1
    down, up, critic = encoder(grids, 5, norm), decoder(grids, 5, torch.nn.Sigmoid(), norm), Critic(grids, norm)
    pictures = torch.rand(2, 3, side, side)
    assert up(down(pictures)).shape == pictures.shape
    normed = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) for net in (down, up, critic)]
    assert normed == ([halved - 1, halved, halved - 1] if norm else [0, 0, 0])
    found, verdict = critic(pictures)
    assert found.shape == (2, grids.size) and verdict.shape == (2,)

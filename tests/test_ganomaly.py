"""ganomaly: its equations term by term, gradients of each network, and settings."""

from typing import Any

import numpy as np
import pytest

from conftest import Stack, noise

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from andon.detector import Run  # noqa: E402
from andon.detectors.ganomaly import Ganomaly, GanomalyNetwork, Settings  # noqa: E402
from andon.engines import runtime  # noqa: E402
from andon.nn.resize import Resize  # noqa: E402

TINY: dict[str, Any] = {"side": 32, "width": 4, "widest": 8, "latent": 4, "batch": 4, "steps": 3, "hold_out": 0.0}


class Noise(Stack):
    """Tiles of noise."""

    def __init__(self, count: int = 12, side: int = 64, channels: int = 3) -> None:
        super().__init__(noise(count, side, channels))


def network(side: int = 32, channels: int = 3, **settings: Any) -> GanomalyNetwork:
    torch.manual_seed(0)
    return GanomalyNetwork(side, channels, Settings(**{**TINY, **settings}))


def terms(net: GanomalyNetwork, tiles: Any) -> dict[str, Any]:
    """The terms of the loss as in the paper, computed with the networks of `net`."""
    x = 2 * tiles - 1
    z = net.encoder(x)
    rebuilt = net.decoder(z)
    again = net.again(rebuilt)
    (f_real, real), (f_fake, fake) = net.critic(x), net.critic(rebuilt)
    count = len(x)
    return {
        "contextual": F.l1_loss(rebuilt, x),
        "encoding": F.mse_loss(again, z),
        "adversarial": F.mse_loss(f_fake, f_real),
        "discriminator": F.binary_cross_entropy_with_logits(real, torch.ones(count))
        + F.binary_cross_entropy_with_logits(fake, torch.zeros(count)),
    }


def test_loss_is_the_sum_of_the_terms_of_the_paper() -> None:
    net, tiles = network(adversarial=2.0, contextual=30.0, encoding=3.0), torch.rand(4, 3, 32, 32)
    expected = terms(net, tiles)
    loss = net.loss(tiles, torch.Generator())
    total = (
        expected["discriminator"] + 2 * expected["adversarial"] + 30 * expected["contextual"] + 3 * expected["encoding"]
    )
    torch.testing.assert_close(loss, total)
    net.eval()
    expected = terms(net, tiles)
    torch.testing.assert_close(
        net.loss(tiles, torch.Generator()), 30 * expected["contextual"] + 3 * expected["encoding"]
    )
    assert Settings().adversarial == 1 and Settings().contextual == 50 and Settings().encoding == 1  # as in the paper


def test_generator_and_discriminator_have_gradients_of_their_own_terms_only() -> None:
    net, tiles = network(), torch.rand(4, 3, 32, 32)
    net.loss(tiles, torch.Generator()).backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    expected = terms(net, tiles)
    critic = [p for name, p in net.named_parameters() if name.startswith("critic.")]
    other = [p for name, p in net.named_parameters() if not name.startswith("critic.")]
    expected_gradients = torch.autograd.grad(expected["discriminator"], critic, retain_graph=True)
    generator = expected["adversarial"] + 50 * expected["contextual"] + expected["encoding"]
    expected_gradients += torch.autograd.grad(generator, other)
    names = sorted(gradients, key=lambda name: not name.startswith("critic."))
    for name, gradient in zip(names, expected_gradients, strict=True):
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_score_and_map_are_the_distances_of_latent_vectors_and_pixels() -> None:
    net, tiles = network(64).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        score, pixel, reconstruction = net(tiles)
        x = 2 * Resize(64, 32)(tiles) - 1
        z = net.encoder(x)
        rebuilt = net.decoder(z)
        difference = z - net.again(rebuilt)
    np.testing.assert_allclose(score, np.linalg.norm(difference.numpy(), 1, axis=1) / 4, rtol=1e-4)  # eq. 5
    error = ((x - rebuilt).abs() / 2).mean(dim=1, keepdim=True)
    large = F.interpolate(error, scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(pixel, large)
    assert reconstruction.shape == tiles.shape
    assert float(reconstruction.min()) >= 0 and float(reconstruction.max()) <= 1


def test_graph_agrees_with_torch_and_has_no_critic() -> None:
    tiles = Noise(side=96, channels=1)
    detector = Ganomaly(Settings(**TINY), 0).fit(tiles, Run(device="cpu"))
    session = runtime.session(detector.graph(), threads=1)
    score, pixel, reconstruction = session.run(["score", "map", "reconstruction"], {"tiles": tiles.tiles})
    expected = detector.score(tiles.tiles)
    np.testing.assert_allclose(score, expected.image, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(pixel, expected.pixel, rtol=1e-3, atol=1e-6)
    assert reconstruction.shape == tiles.tiles.shape and reconstruction.min() >= 0 and reconstruction.max() <= 1
    assert not any("critic" in weight.name for weight in detector.graph().graph.initializer)


def test_held_out_loss_does_not_depend_on_the_discriminator() -> None:
    settings = Settings(**{**TINY, "hold_out": 0.2, "steps": 4, "evaluate": 2})
    curve = Ganomaly(settings, 0).fit(Noise(), Run(device="cpu")).curve.splitlines()
    losses = [float(value) for line in curve[1:] for value in line.split(",")[2:4]]
    assert len(losses) == 4 and all(np.isfinite(losses))


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"batch": 1}, {"side": 16}, {"contextual": -1.0}, {"latent": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)

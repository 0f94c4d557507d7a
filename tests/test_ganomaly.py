"""ganomaly: its equations term by term, who learns from which, and its settings."""

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
    """The terms of the loss, each as the paper has it, from the networks as they are."""
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
        "judging": F.binary_cross_entropy_with_logits(real, torch.ones(count))
        + F.binary_cross_entropy_with_logits(fake, torch.zeros(count)),
    }


def test_loss_is_the_sum_of_the_terms_of_the_paper() -> None:
    net, tiles = network(adversarial=2.0, contextual=30.0, encoding=3.0), torch.rand(4, 3, 32, 32)
    expected = terms(net, tiles)
    found = net.loss(tiles, torch.Generator())
    total = expected["judging"] + 2 * expected["adversarial"] + 30 * expected["contextual"] + 3 * expected["encoding"]
    torch.testing.assert_close(found, total)
    net.eval()
    expected = terms(net, tiles)
    torch.testing.assert_close(
        net.loss(tiles, torch.Generator()), 30 * expected["contextual"] + 3 * expected["encoding"]
    )
    assert Settings().adversarial == 1 and Settings().contextual == 50 and Settings().encoding == 1  # as in the paper


def test_each_side_learns_from_its_own_terms_only() -> None:
    net, tiles = network(), torch.rand(4, 3, 32, 32)
    net.loss(tiles, torch.Generator()).backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    expected = terms(net, tiles)
    judge = [p for name, p in net.named_parameters() if name.startswith("critic.")]
    other = [p for name, p in net.named_parameters() if not name.startswith("critic.")]
    wanted = torch.autograd.grad(expected["judging"], judge, retain_graph=True)
    generator = expected["adversarial"] + 50 * expected["contextual"] + expected["encoding"]
    wanted += torch.autograd.grad(generator, other)
    names = [n for n in found if n.startswith("critic.")] + [n for n in found if not n.startswith("critic.")]
    for name, gradient in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_score_and_map_are_the_distances_of_codes_and_of_pixels() -> None:
    net, tiles = network(64).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        score, pixel, shown = net(tiles)
        x = 2 * Resize(64, 32)(tiles) - 1
        z = net.encoder(x)
        rebuilt = net.decoder(z)
        apart = z - net.again(rebuilt)
    np.testing.assert_allclose(score, np.linalg.norm(apart.numpy(), 1, axis=1) / 4, rtol=1e-4)  # eq. 5
    error = ((x - rebuilt).abs() / 2).mean(dim=1, keepdim=True)
    large = F.interpolate(error, scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(pixel, large)
    assert shown.shape == tiles.shape and float(shown.min()) >= 0 and float(shown.max()) <= 1


def test_graph_agrees_and_holds_no_critic() -> None:
    tiles = Noise(side=96, channels=1)
    detector = Ganomaly(Settings(**TINY), 0).fit(tiles, Run(device="cpu"))
    session = runtime.session(detector.graph(), threads=1)
    score, pixel, shown = session.run(["score", "map", "reconstruction"], {"tiles": tiles.tiles})
    expected = detector.score(tiles.tiles)
    np.testing.assert_allclose(score, expected.image, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(pixel, expected.pixel, rtol=1e-3, atol=1e-6)
    assert shown.shape == tiles.tiles.shape and shown.min() >= 0 and shown.max() <= 1
    assert not any("critic" in weight.name for weight in detector.graph().graph.initializer)


def test_held_out_tiles_are_judged_without_an_adversary() -> None:
    settings = Settings(**{**TINY, "hold_out": 0.2, "steps": 4, "evaluate": 2})
    curve = Ganomaly(settings, 0).fit(Noise(), Run(device="cpu")).curve.splitlines()
    losses = [float(value) for line in curve[1:] for value in line.split(",")[2:4]]
    assert len(losses) == 4 and all(np.isfinite(losses))


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"batch": 1}, {"side": 16}, {"contextual": -1.0}, {"latent": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)

"""f-anogan: gradient penalty, both losses, the order of updates, and resumption of both stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Stack, noise

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from andon.detector import Run  # noqa: E402
from andon.detectors.f_anogan import FAnogan, FAnoganNetwork, Gan, Settings  # noqa: E402
from andon.errors import TrainingError  # noqa: E402
from andon.inspector import Inspector  # noqa: E402
from andon.nn import checkpoint  # noqa: E402
from andon.nn.resize import Resize  # noqa: E402
from andon.training import train as training  # noqa: E402

TINY: dict[str, Any] = {
    "side": 32,
    "width": 4,
    "widest": 8,
    "latent": 4,
    "batch": 4,
    "gan_steps": 6,
    "steps": 4,
    "evaluate": 2,
    "checkpoint": 0.0,
    "hold_out": 0.2,
}


class Noise(Stack):
    """Tiles of noise."""

    def __init__(self, count: int = 12, side: int = 64, channels: int = 3) -> None:
        super().__init__(noise(count, side, channels))


def gan(**settings: Any) -> Gan:
    torch.manual_seed(0)
    return Gan(32, 3, Settings(**{**TINY, **settings}))


def test_gradient_penalty_equals_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    net, points = Gan(32, 1, Settings(**TINY)).double(), torch.rand(2, 1, 32, 32, dtype=torch.float64)
    penalty = float(net.gradient_penalty(points.clone()).detach())
    expected, shift = [], 1e-6 * torch.eye(32 * 32, dtype=torch.float64).view(-1, 1, 32, 32)
    with torch.no_grad():
        for point in points:
            gradient = (net.critic(point + shift)[1] - net.critic(point - shift)[1]) / 2e-6
            expected.append((float(gradient.norm()) - 1) ** 2)
    assert penalty == pytest.approx(np.mean(expected), rel=1e-5)


def test_gan_loss_equals_that_of_wgan_gp() -> None:
    net, tiles = gan(penalty=3.0), torch.rand(4, 3, 32, 32)
    loss = net.loss(tiles, torch.Generator().manual_seed(1), both=False)
    draws = torch.Generator().manual_seed(1)
    z, between = torch.randn(4, 4, generator=draws), torch.rand(4, 1, 1, 1, generator=draws)
    x, generated = 2 * tiles - 1, net.generator(z).detach()
    penalty = net.gradient_penalty(between * x + (1 - between) * generated)
    expected = net.critic(generated)[1].mean() - net.critic(x)[1].mean() + 3 * penalty
    torch.testing.assert_close(loss, expected)
    # The term of the generator has a gradient, but the value 0.
    torch.testing.assert_close(net.loss(tiles, torch.Generator().manual_seed(1), both=True), loss)


def test_generator_and_critic_have_gradients_of_their_own_loss_only() -> None:
    net, tiles = gan(), torch.rand(4, 3, 32, 32)

    def gradients(both: bool) -> dict[str, Any]:
        net.zero_grad()
        net.loss(tiles, torch.Generator().manual_seed(1), both).backward()
        return {name: p.grad for name, p in net.named_parameters()}

    alone, together = gradients(False), gradients(True)
    for name, gradient in together.items():
        if name.startswith("critic."):
            torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-6)
        else:
            assert alone[name] is None
    z = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    weights = list(net.generator.parameters())
    expected = torch.autograd.grad(-net.critic(net.generator(z))[1].mean(), weights)
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_generator_is_updated_in_every_nth_step() -> None:
    detector = FAnogan(Settings(**{**TINY, "critic_steps": 3, "decay": "constant"}), 0)
    network = detector._untrained(Noise())
    _, loop = next(detector._stages(network, Run(device="cpu")))
    weight, updates = network.gan.generator[0].weight, []
    batch = torch.rand(4, 3, 64, 64)
    for step in range(6):
        before = weight.detach().clone()
        loop._step(lambda step: batch)
        loop.state.step = step + 1
        updates.append(not torch.equal(before, weight))
    assert updates == [False, False, True, False, False, True]


def test_score_is_the_error_of_pixels_and_features() -> None:
    torch.manual_seed(0)
    net = FAnoganNetwork(64, 3, Settings(**{**TINY, "features": 0.5})).eval()
    tiles = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        score, pixel, reconstruction = net(tiles)
        x = 2 * Resize(64, 32)(tiles) - 1
        rebuilt = net.gan.generator(net.encoder(x))
        real, fake = net.gan.critic(x)[0], net.gan.critic(rebuilt)[0]
        loss = net.loss(tiles, torch.Generator())
    image = [F.mse_loss(rebuilt[i], x[i]) for i in range(2)]
    deep = [F.mse_loss(fake[i], real[i]) for i in range(2)]
    expected = torch.stack([a + 0.5 * b for a, b in zip(image, deep, strict=True)])  # A = A_R + κ A_D
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-6)
    error = ((x - rebuilt).abs() / 2).mean(dim=1, keepdim=True)
    torch.testing.assert_close(pixel, F.interpolate(error, scale_factor=2, mode="bilinear", align_corners=False)[:, 0])
    assert reconstruction.shape == tiles.shape
    assert float(reconstruction.min()) >= 0 and float(reconstruction.max()) <= 1


def test_the_second_stage_trains_the_encoder_only() -> None:
    detector = FAnogan(Settings(**TINY), 0)
    network = detector._untrained(Noise())
    stages = detector._stages(network, Run(device="cpu"))
    _, first = next(stages)
    first.fit(Noise(), "first")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    _, second = next(stages)
    second.fit(Noise(), "second")
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("encoder.") for name in changed)


def test_curve_and_forecast_cover_both_stages() -> None:
    detector, messages = FAnogan(Settings(**TINY), 0), []
    detector.fit(Noise(), Run(tell=messages.append, device="cpu"))
    lines = [line.split(",") for line in detector.curve.splitlines()]
    assert lines[0] == ["stage", "step", "learning_rate", "loss", "held_out_loss", "seconds"]
    assert [line[:2] for line in lines[1:]] == [
        *[["gan", str(step)] for step in (2, 4, 6)],
        *[["encoder", str(step)] for step in (2, 4)],
    ]
    assert {line[4] == "" for line in lines[1:4]} == {True} and all(line[4] for line in lines[4:])
    assert [m for m in messages if m.startswith("training")] == ["training the gan", "training the encoder"]
    longer = Settings(**{**TINY, "gan_steps": 6000, "steps": 4000})
    assert FAnogan(longer, 0).forecast(Noise()).seconds > 100 * detector.forecast(Noise()).seconds
    assert detector.forecast(Noise(), Run(seconds=60)).seconds == 60


class Killed(Exception):
    """Simulates the end of the process."""


def kill_at(stage: int, step: int) -> Callable[[str, int, int], None]:
    ended = [0]

    def progress(name: str, done: int, total: int) -> None:
        if name == "training":
            if ended[0] == stage and done == step:
                raise Killed
            ended[0] += done == total

    return progress


@pytest.mark.parametrize(("stage", "step"), [(0, 3), (0, 5), (1, 3)])
def test_a_killed_training_resumes_in_its_stage(stage: int, step: int, tmp_path: Path) -> None:
    tiles = Noise()
    whole = FAnogan(Settings(**TINY), 0).fit(tiles, Run(device="cpu"))
    with pytest.raises(Killed):
        FAnogan(Settings(**TINY), 0).fit(tiles, Run(kill_at(stage, step), device="cpu", folder=tmp_path))
    messages: list[str] = []
    resumed = FAnogan(Settings(**TINY), 0).fit(tiles, Run(tell=messages.append, device="cpu", folder=tmp_path))
    assert any(f"continuing from step {step}" in sentence for sentence in messages)
    np.testing.assert_array_equal(resumed.score(tiles.tiles).image, whole.score(tiles.tiles).image)
    assert len(resumed.curve.splitlines()) == len(whole.curve.splitlines())
    assert {path.parent.name for path in tmp_path.rglob(checkpoint.NAME)} == {"gan", "encoder"}


def test_bundle_has_both_curves_and_no_checkpoints(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "ring.andon"
    bundle = training.train(parts, out, detector="f-anogan", settings=TINY, size=96, device="cpu")
    assert [line.partition(",")[0] for line in bundle.curve.splitlines()] == ["stage", *["gan"] * 3, *["encoder"] * 2]
    assert all(difference < 1e-3 for difference in bundle.manifest.parity.values())
    assert [path.name for path in tmp_path.iterdir()] == ["ring.andon"]
    inspection = Inspector.load(out).inspect(parts / "test/scratch/200.png")
    assert np.isfinite(inspection.score) and inspection.anomaly_map.shape == (96, 96)


def test_a_diverging_training_is_stopped() -> None:
    settings = Settings(**{**TINY, "gan_steps": 200, "gan_learning_rate": 30.0, "clip": 1e9, "warmup": 0.0})
    with pytest.raises(TrainingError, match="the loss diverged"):
        FAnogan(settings, 0).fit(Noise(), Run(device="cpu"))


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"batch": 1}, {"side": 16}, {"critic_steps": 0}, {"penalty": -1.0}, {"gan_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)

"""transform-classification: families, margins, Dirichlet fits and scores, compared with independent computations."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from conftest import Stack, noise

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from andon.detector import Run  # noqa: E402
from andon.detectors.transform_classification import (  # noqa: E402
    GEOMETRY,
    Head,
    Settings,
    TransformClassification,
    TransformNetwork,
    dirichlet,
    geometric,
    monotonic_cosine,
)
from andon.engines import runtime  # noqa: E402
from andon.errors import RecipeError, TrainingError  # noqa: E402
from andon.nn.wide_resnet import WideResNet  # noqa: E402
from andon.recipe import Augment, validate  # noqa: E402
from andon.training import train as training  # noqa: E402

TINY: dict[str, Any] = {
    "family": "morphology",
    "operations": ("erosion", "gradient"),
    "widths": (1, 4),
    "heights": (1, 4, 9),
    "channels": 4,
    "side": 16,
    "steps": 2,
    "batch": 2,
    "hold_out": 0,
}
CPU = Run(device="cpu")


class Noise(Stack):
    """Tiles of noise."""

    def __init__(self, count: int = 12, side: int = 16) -> None:
        super().__init__(noise(count, side, 1), batch=5)


def network(side: int = 16, **settings: Any) -> TransformNetwork:
    torch.manual_seed(0)
    return TransformNetwork(side, 1, Settings(**{**TINY, **settings})).eval()


def test_families_equal_those_of_the_sources() -> None:
    for family, count, classes in (("type-1", 27, (3, 3, 3)), ("type-2", 27, (3, 3, 3)), ("type-3", 48, (3, 4, 4))):
        labels = Settings(family=family).labels()
        assert labels == list(product(*map(range, classes)))
        assert len(set(Settings(family=family).cases())) == count
        assert Settings(family=family, heads="single").labels() == [(i,) for i in range(count)]
    assert {case.width for case in Settings(family="type-1").cases()} == {1, 28, 56}
    assert {case.height for case in Settings(family="type-2").cases()} == {8, 28, 56}
    assert len(Settings(family="geometry").labels()) == len(set(GEOMETRY)) == 72
    large = Settings(family="morphology", widths=tuple(range(1, 11)), heights=tuple(range(1, 11)))
    assert len(large.labels()) == 300
    # A factor with only one value has no head.
    assert Settings(family="morphology", widths=(3,), heights=(3, 5)).labels() == list(product(range(3), range(2)))


def test_geometric_transforms_flip_shift_and_rotate() -> None:
    tiles = np.random.default_rng(0).random((2, 3, 12, 12), dtype=np.float32)
    views = geometric(torch.tensor(tiles), range(72))
    for (turns, flip, right, down), view in zip(GEOMETRY, views.unbind(1), strict=True):
        expected = tiles[..., ::-1] if flip else tiles
        padded = np.pad(expected, ((0, 0), (0, 0), (3, 3), (3, 3)), mode="reflect")
        rolled = np.roll(padded, (3 * down, 3 * right), (2, 3))[:, :, 3:-3, 3:-3]
        np.testing.assert_array_equal(view.numpy(), np.rot90(rolled, turns, (2, 3)))
    assert len({view.numpy().tobytes() for view in views.unbind(1)}) == 72


def test_wide_resnet_has_the_size_of_the_paper() -> None:
    # Table 4 of Zagoruyko & Komodakis: WRN-16-8 has 11.0 M parameters, with a softmax over 10 classes.
    trunk = WideResNet(3, 16, 8, 16, 1)
    count = sum(p.numel() for p in trunk.parameters()) + 10 * (trunk.features + 1)
    assert trunk.features == 512 and round(count / 1e6, 1) == 11.0
    for depth in (10, 16, 22):
        trunk = WideResNet(1, 2, 2, depth, 1)
        assert sum(isinstance(m, nn.Conv2d) for m in trunk.modules()) == depth
    for stem, grid in ((1, 16), (2, 8), (4, 4)):
        assert WideResNet(1, 2, 1, 10, stem)(torch.rand(1, 1, 64, 64)).shape == (1, 8, grid, grid)


def angular(objective: str, **settings: Any) -> tuple[Head, "torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    torch.manual_seed(1)
    head = Head(6, 4, Settings(objective=objective, scale=7.0, **settings)).double()
    f, labels = torch.randn(50, 6, dtype=torch.float64), torch.randint(4, (50,))
    w = head.linear.weight.detach()
    cosines = (f / f.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T
    return head, f, labels, cosines


def plain(cosines: "torch.Tensor", labels: "torch.Tensor", target: "torch.Tensor") -> float:
    """Mean cross-entropy of scaled cosines computed row by row, with the label's cosine replaced."""
    losses = []
    for row, label, cosine in zip(cosines.numpy(), labels.tolist(), target.numpy(), strict=True):
        logits = 7.0 * row
        logits[label] = 7.0 * cosine
        losses.append(math.log(np.exp(logits).sum()) - logits[label])
    return float(np.mean(losses))


def test_additive_cosine_is_cosface() -> None:
    head, f, labels, cosines = angular("additive-cosine", margin=0.2)
    target = cosines[range(50), labels] - 0.2
    assert head.loss(f, labels).item() == pytest.approx(plain(cosines, labels, target))
    np.testing.assert_allclose(head(f).detach(), 7.0 * cosines, rtol=1e-6, atol=1e-9)  # inference has no margin
    np.testing.assert_allclose(head(f.view(5, 10, 6)).detach().flatten(0, 1), 7.0 * cosines, rtol=1e-6)


def test_additive_angle_is_arcface() -> None:
    head, f, labels, cosines = angular("additive-angle")
    c = cosines[range(50), labels]
    expected = c * math.cos(0.5) - (1 - c**2).sqrt() * math.sin(0.5)  # cos(θ + m), the addition theorem
    expected = torch.where(torch.acos(c) + 0.5 <= math.pi, expected, -2 - expected)
    assert head.loss(f, labels).item() == pytest.approx(plain(cosines, labels, expected))


@pytest.mark.parametrize("blend", [0.0, 5.0])
def test_multiplicative_angle_is_sphereface(blend: float) -> None:
    head, f, labels, cosines = angular("multiplicative-angle", blend=blend)
    c = cosines[range(50), labels]
    k = torch.floor(torch.acos(c) / (math.pi / 4))
    psi = (-1) ** k * (8 * c**4 - 8 * c**2 + 1) - 2 * k  # cos 4θ as a polynomial
    expected = (blend * c + psi) / (1 + blend)
    assert head.loss(f, labels).item() == pytest.approx(plain(cosines, labels, expected))


def test_monotonic_cosine_falls_and_has_finite_gradients() -> None:
    angles = torch.linspace(0, 4 * math.pi, 4001, dtype=torch.float64)
    values = monotonic_cosine(angles)
    assert (values.diff() <= 0).all() and values.diff().abs().max() < 0.01
    for objective in ("multiplicative-angle", "additive-angle", "additive-cosine"):
        head = Head(3, 2, Settings(objective=objective))
        same = torch.nn.functional.normalize(head.linear.weight.detach()[:1], dim=1).requires_grad_()
        head.loss(same, torch.tensor([0])).backward()
        assert torch.isfinite(head.linear.weight.grad).all() and torch.isfinite(same.grad).all()


def views_of(net: TransformNetwork, tiles: "torch.Tensor") -> list["torch.Tensor"]:
    return [net.views(tiles, [number])[:, 0] for number in range(len(net.labels))]


def test_loss_is_the_sum_of_the_heads_over_all_transforms() -> None:
    net, tiles = network(), torch.rand(2, 1, 16, 16)
    losses = []
    for view, labels in zip(views_of(net, tiles), net.labels.tolist(), strict=True):
        pooled = net.trunk(view).mean(dim=(2, 3))
        for head, label in zip(net._heads(), labels, strict=True):
            losses.append(-head.linear(pooled).softmax(dim=1)[:, label].log().mean())
    assert len(losses) == 3 * 12
    expected = torch.stack(losses).sum().item() / 12
    assert net.loss(tiles, torch.Generator()).item() == pytest.approx(expected, rel=1e-5)


def test_random_transforms_have_their_labels_and_equal_frequencies() -> None:
    net, tiles = network(draw=5), torch.rand(2, 1, 16, 16)
    subsets: list[tuple[int, ...]] = []
    views = net.views

    def recording(tile: "torch.Tensor", numbers: Any) -> "torch.Tensor":
        subsets.append(tuple(numbers))
        return views(tile, numbers)

    net.views = recording  # type: ignore[method-assign]
    loss = net.loss(tiles, torch.Generator().manual_seed(3)).item()
    net.views = views  # type: ignore[method-assign]
    assert len(subsets) == 2 and subsets[0] != subsets[1] and all(len(set(numbers)) == 5 for numbers in subsets)
    total = 0.0
    for tile, numbers in zip(tiles.split(1), subsets, strict=True):
        logs = net.logarithms(tile)
        total -= sum(log[0, n, net.labels[n, j]].item() for n in numbers for j, log in enumerate(logs))
    assert loss == pytest.approx(total / 10, rel=1e-4)
    assert net.loss(tiles, torch.Generator().manual_seed(3)).item() == loss
    subsets.clear()
    net.views = recording  # type: ignore[method-assign]
    for seed in range(200):
        net.loss(tiles[:1], torch.Generator().manual_seed(seed))
    counts = np.bincount(np.concatenate(subsets), minlength=12)
    assert counts.min() > 50 and counts.max() < 120  # 83 expected


@pytest.mark.parametrize("heads", ["product", "single"])
@pytest.mark.parametrize("objective", ["cross-entropy", "additive-cosine"])
def test_score_and_map_are_the_mean_error(heads: str, objective: str) -> None:
    net, tiles = network(32, heads=heads, objective=objective, at_once=5), torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        score, pixel = net(tiles)
        image, grid = torch.zeros(3), torch.zeros(3, 4, 4)
        for view, labels in zip(views_of(net, tiles), net.labels.tolist(), strict=True):
            maps = net.trunk(view)
            for head, label in zip(net._heads(), labels, strict=True):
                image -= head(maps.mean(dim=(2, 3))).softmax(dim=1)[:, label].log() / 12
                for y, x in np.ndindex(4, 4):
                    grid[:, y, x] -= head(maps[:, :, y, x]).softmax(dim=1)[:, label].log() / 12
        np.testing.assert_allclose(score, image, rtol=1e-4)
        expected = F.interpolate(grid[:, None], size=(32, 32), mode="bilinear", align_corners=False)[:, 0]
        np.testing.assert_allclose(pixel, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(net.errors(tiles).mean(dim=1), score, rtol=1e-5)


def test_identical_transforms_do_not_count_in_the_score() -> None:
    for family, left_out in (("type-1", [0, 9]), ("type-2", []), ("type-3", [0, 16]), ("geometry", [])):
        assert [i for i, counted in enumerate(Settings(family=family).counted()) if not counted] == left_out
    net, tiles = network(operations=("erosion", "dilation"), widths=(1, 4), heights=(1,)), torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        errors, (score, _) = net.errors(tiles), net(tiles)
    assert not errors[:, [0, 2]].any() and (errors[:, [1, 3]] > 0).all()
    torch.testing.assert_close(score, errors[:, [1, 3]].mean(dim=1))
    with pytest.raises(ValueError, match="are identical"):
        Settings(family="morphology", operations=("erosion", "dilation"), widths=(1,), heights=(1,))


def test_transforms_are_applied_before_the_tile_is_reduced() -> None:
    tile = torch.ones(1, 1, 64, 64)
    tile[0, 0, 32, 32] = 0
    net = network(64, widths=(8,), heights=(1, 8), operations=("erosion",))
    assert net.views(tile, [1]).shape == (1, 1, 1, 16, 16)
    assert float(net.views(tile, [1]).min()) < -1.7  # black is -2; the erosion made the pixel eight pixels wide


def test_inverse_digamma() -> None:
    x = torch.tensor([1e-3, 0.1, 0.5, 1.0, 2.0, 30.0, 1e4], dtype=torch.float64)
    np.testing.assert_allclose(dirichlet.inverse_digamma(torch.digamma(x)), x, rtol=1e-9)


def moments(y: "torch.Tensor") -> dirichlet.Moments:
    result = dirichlet.Moments()
    for part in y.log().split(700):
        result.add(part)
    return result


def test_dirichlet_fit_recovers_the_concentrations_of_samples() -> None:
    alpha = torch.tensor([[0.3, 0.3, 0.3, 0.3], [8.0, 0.5, 1.0, 2.0], [200.0, 3.0, 10.0, 40.0]], dtype=torch.float64)
    rng = np.random.default_rng(0)
    samples = torch.tensor(np.stack([rng.dirichlet(a, 20_000) for a in alpha.numpy()], axis=1)).clamp_min(1e-300)
    estimate = dirichlet.fit(moments(samples))
    np.testing.assert_allclose(estimate, alpha, rtol=0.04)
    # The gradient of the likelihood is 0 there.
    leaf = estimate.clone().requires_grad_()
    torch.distributions.Dirichlet(leaf).log_prob(samples).mean(dim=0).sum().backward()
    assert float((leaf.grad * estimate).abs().max()) < 1e-3


def test_dirichlet_of_equal_vectors_stays_finite() -> None:
    estimate = dirichlet.fit(moments(torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).expand(20, 3)))
    assert torch.isfinite(estimate).all() and float(estimate.max()) <= dirichlet.LARGEST
    corner = torch.tensor([1 - 2e-30, 1e-30, 1e-30], dtype=torch.float64).expand(20, 3)
    assert torch.isfinite(dirichlet.fit(moments(corner))).all()


def test_dirichlet_score_is_the_negative_log_density() -> None:
    tiles = Noise()
    detector = TransformClassification(Settings(**{**TINY, "score": "dirichlet", "at_once": 7}), 0).fit(tiles, CPU)
    net = detector._network
    assert isinstance(net, TransformNetwork)
    images = torch.tensor(tiles.tiles).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = torch.zeros(12, dtype=torch.float64)
        for log in net.logarithms(images):
            alpha = dirichlet.fit(moments(log.double().exp()))
            assert alpha.shape == log.shape[1:]
            y = log.double().exp()
            y = y / y.sum(dim=-1, keepdim=True)
            expected -= torch.distributions.Dirichlet(alpha).log_prob(y).mean(dim=1)
    np.testing.assert_allclose(detector.score(tiles.tiles).image, expected, rtol=1e-3)


def test_graph_with_geometry_one_angular_head_and_dirichlets() -> None:
    settings = {"family": "geometry", "heads": "single", "objective": "additive-angle", "score": "dirichlet"}
    config = Settings(**settings, channels=2, side=16, at_once=72, draw=4, steps=2, batch=2, hold_out=0)
    detector, tiles = TransformClassification(config, 0).fit(Noise(), CPU), Noise(3).tiles
    score, pixel = runtime.session(detector.graph(), threads=1).run(["score", "map"], {"tiles": tiles})
    expected = detector.score(tiles)
    assert np.abs(score - expected.image).max() < 1e-4 * np.ptp(expected.pixel)
    assert np.abs(pixel - expected.pixel).max() < 1e-4 * np.ptp(expected.pixel)


def test_training_ends_in_a_bundle(parts: Any, tmp_path: Any) -> None:
    settings = {**TINY, "score": "dirichlet", "draw": 3}
    bundle = training.train(
        parts, tmp_path / "part.andon", detector="transform-classification", settings=settings, size=64, device="cpu"
    )
    assert bundle.manifest.parity["onnxruntime"] < 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "morphology", "widths": [3]}, "one of them is empty"),
        ({"family": "morphology", "widths": [3, 5, 3], "heights": [1]}, "duplicates"),
        ({"family": "morphology", "widths": [3], "heights": [3], "operations": []}, "at least 1 item"),
        ({"family": "morphology", "widths": [3], "heights": [3], "operations": ["erosion"]}, "one transform"),
        ({"family": "morphology", "widths": [0, 3], "heights": [3]}, "greater than or equal to 1"),
        ({"family": "morphology", "widths": [3], "heights": [3], "operations": ["erosion", "opening"]}, "'erosion'"),
        ({"family": "type-1", "widths": [3]}, "'type-1' has its own"),
        ({"family": "geometry", "operations": ["erosion"]}, "'geometry' has its own"),
        ({"depth": 12}, "6 b"),
        ({"widht": [3]}, "Did you mean 'width"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate(Settings, settings, "recipe: detector.settings")


def test_settings_that_do_not_fit_the_images_are_refused_before_training() -> None:
    def forecast(tiles: Noise, run: Run = CPU, **settings: Any) -> None:
        TransformClassification(Settings(**{**TINY, **settings}), 0).forecast(tiles, run)

    with pytest.raises(RecipeError, match="rectangle of 17 pixels is larger than the tile of 16"):
        forecast(Noise(), heights=(2, 17))
    forecast(Noise(), heights=(2, 16))
    with pytest.raises(RecipeError, match="too small for a stem of stride 4"):
        forecast(Noise(), stem=4)
    with pytest.raises(RecipeError, match="9 training tiles; expected 10 or more"):
        forecast(Noise(9), score="dirichlet")
    geometry = {"family": "geometry", "operations": ("erosion", "dilation", "gradient"), "widths": (), "heights": ()}
    with pytest.raises(RecipeError, match="flips and quarter turns"):
        forecast(Noise(), Run(device="cpu", augment=Augment(flip=True)), **geometry)


def test_a_loss_of_nan_is_an_error() -> None:
    config = Settings(**{**TINY, "learning_rate": 1e30, "steps": 50, "warmup": 0.0})
    with pytest.raises(TrainingError, match="the loss became"):
        TransformClassification(config, 0).fit(Noise(), CPU)


def test_presets() -> None:
    assert set(TransformClassification.presets) == {"cpu", "full"}
    full = Settings(**TransformClassification.presets["full"])
    assert (full.depth, full.widen, full.draw) == (16, 8, 0)  # all transforms of each image, as in the source

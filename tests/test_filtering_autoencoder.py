"""filtering-autoencoder: table 1, equations 1 to 4, 13 and 14, growing crops, resumption, bad input, studies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from conftest import part, save
from test_detectors_contract import Textures

torch = pytest.importorskip("torch")

from andon import cli  # noqa: E402
from andon.bundle import Bundle  # noqa: E402
from andon.data import dataset  # noqa: E402
from andon.detector import Run  # noqa: E402
from andon.detectors.filtering_autoencoder import (  # noqa: E402
    Ensemble,
    FilteringAutoencoder,
    FilteringNetwork,
    Settings,
    cost,
    layers,
    weighted_error,
)
from andon.detectors.filtering_autoencoder.corruption import Corrupted  # noqa: E402
from andon.engines.runtime import reconstructor  # noqa: E402
from andon.errors import BundleError, DatasetError, RecipeError, TrainingError  # noqa: E402
from andon.inspection import Array  # noqa: E402
from andon.lab import study  # noqa: E402
from andon.nn.data import split  # noqa: E402
from andon.nn.losses import ssim  # noqa: E402
from andon.pictures import image  # noqa: E402
from andon.recipe import Recipe  # noqa: E402
from andon.training import train as training  # noqa: E402

TINY: dict[str, Any] = {"width": 0.03, "steps": 4, "batch": 2, "evaluate": 2, "hold_out": 0}


def detector(**settings: Any) -> FilteringAutoencoder:
    return FilteringAutoencoder(Settings(**{**TINY, **settings}), 0)


def network(side: int = 64, channels: int = 3, **settings: Any) -> FilteringNetwork:
    torch.manual_seed(0)
    net = detector(**settings).network(side, channels).eval()
    assert isinstance(net, FilteringNetwork)
    return net


def tiles(count: int = 2, side: int = 64) -> Any:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("f", [3, 5])
def test_parameters_and_multiply_adds_equal_those_of_table_1(f: int) -> None:
    # Table 1, line by line: weights of the convolutions, and the side of the grid they are applied to.
    lines = [
        (3 * 64 * 9, 512),
        (64 * 64 * 9, 512),
        (64 * 128 * 9, 256),
        (128 * 128 * 9, 256),
        (128 * 256 * 9, 128),
        (256 * 256 * 9, 128),
        (256 * 64 * 6 * f * f, 64),  # six dilated convolutions …
        (384 * 384 * 9, 64),  # … and the one after the stack
        *[(384 * 64 * 6 * f * f, 64), (384 * 384 * 9, 64)] * 3,
        (384 * 256 * 9, 64),  # transposed: each weight is used at each position of the coarse grid
        *[(256 * 256 * 9, 128)] * 2,
        (256 * 128 * 9, 128),
        *[(128 * 128 * 9, 256)] * 2,
        (128 * 64 * 9, 256),
        *[(64 * 64 * 9, 512)] * 2,
        (64 * 3, 512),
    ]
    normed = [64, 64, 128, 128, 256, 256, *[384] * 8, 256, 256, 256, 128, 128, 128, 64, 64, 64]
    counts = cost(512, 3, 1.0, f)
    assert counts.parameters == sum(weights for weights, _ in lines) + 2 * sum(normed) + 3
    assert counts.multiply_adds == sum(weights * side**2 for weights, side in lines)


def test_sdc_has_an_eighth_of_the_resolution_and_channels_scale_with_width() -> None:
    net = layers(3, 0.125, 5)
    shapes: list[tuple[int, ...]] = []
    stacks = [module for module in net if type(module).__name__ == "StackedDilated"]
    for stack in stacks:
        stack.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    out = net(tiles())
    assert shapes == [(2, 6 * 8, 8, 8)] * 4
    dilated = stacks[1].parallel
    assert [c.dilation[0] for c in dilated] == [1, 2, 4, 8, 16, 32]
    assert all(c.kernel_size == (5, 5) and c.out_channels == 8 for c in dilated)
    assert out.shape == (2, 3, 64, 64) and out.min() >= 0 and out.max() <= 1
    last = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    assert last.kernel_size == (1, 1) and isinstance(net[-1], torch.nn.Sigmoid) and net[-2] is last


def fix_corruption(net: FilteringNetwork, corrupted: Corrupted) -> None:
    net.corruption = lambda tiles, generator: corrupted  # type: ignore[assignment]


def inverted(x: Any, mask: Any) -> Corrupted:
    return Corrupted(torch.where(mask > 0, 1 - x, x), mask, x)


@torch.no_grad()
def test_losses_equal_equations_1_and_4() -> None:
    x, mask = tiles(), torch.zeros(2, 3, 64, 64)
    mask[0, :, 5:20, 8:30], mask[1, :, 40:50, 3:9] = 0.7, 1.0
    corrupted = inverted(x, mask)
    for objective, balance in (("restore", 0.5), ("restore", 0.2), ("amplify", 0.3)):
        net = network(objective=objective, balance=balance)
        fix_corruption(net, corrupted)
        expected = []
        for i in range(2):
            f, target, changed, m = (
                v[i].numpy().astype(np.float64) for v in (net.rebuild(corrupted.input), x, corrupted.input, mask)
            )
            first = (1 - balance) / (1 - m).sum() * np.linalg.norm((1 - m) * (f - target)) ** 2
            m = np.abs(changed - target) if objective == "amplify" else m
            second = balance / m.sum() * np.linalg.norm(m * (f - target)) ** 2
            expected.append(first + second if objective == "restore" else first - second + balance)
        assert float(net.loss(x, torch.Generator())) == pytest.approx(np.mean(expected), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("objective", ["restore", "amplify"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_masks_leave_one_term(objective: str, value: float) -> None:
    x, net = tiles(), network(objective=objective)
    fix_corruption(net, inverted(x, torch.full_like(x, value)))
    loss = float(net.loss(x, torch.Generator()))
    assert np.isfinite(loss) and 0 < loss < 1
    error = torch.rand(2, 3, 64, 64)
    assert weighted_error(error, torch.zeros_like(error)).tolist() == [0, 0]
    torch.testing.assert_close(weighted_error(error, torch.ones_like(error)), error.mean(dim=(1, 2, 3)))


def plain_mean(values: Array, k: int) -> Array:
    reach, out = k // 2, np.empty_like(values)
    for y, x in np.ndindex(*values.shape):
        out[y, x] = values[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].mean()
    return out


@torch.no_grad()
@pytest.mark.parametrize("error", ["l2", "ssim"])
def test_map_and_score_equal_equations_2_3_and_14(error: str) -> None:
    net, x = network(32, error=error, smooth=3, repeats=2, object_correction=True), tiles(side=32)
    net.average.copy_(torch.rand(32, 32, generator=torch.Generator().manual_seed(1)))
    score, error_map, rebuilt = net(x)
    torch.testing.assert_close(rebuilt, net.rebuild(x))
    difference = (1 - ssim(x, rebuilt) if error == "ssim" else (x - rebuilt) ** 2).mean(dim=1).numpy()
    for i in range(2):
        expected = plain_mean(plain_mean(difference[i], 3), 3) * (1 - net.average.numpy()) ** 2
        np.testing.assert_allclose(error_map[i], expected, rtol=1e-4, atol=1e-6)
        assert float(score[i]) == pytest.approx(float(expected.sum()) / 32**2, rel=1e-4)


def test_mean_map_is_the_mean_over_held_out_tiles() -> None:
    good = Textures(1, count=20)
    model = detector(hold_out=0.2, object_correction=True, correction_repeats=1).fit(good, Run(device="cpu"))
    net = model._network
    assert isinstance(net, FilteringNetwork)
    held = split(good.groups, 0.2, 0)[1]
    assert len(held) == 4
    x = torch.tensor(good.tiles[held]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = net.difference(x, net.rebuild(x), 1).mean(dim=0)
    torch.testing.assert_close(net.average, expected)
    assert model.position_aware and not detector().position_aware


@torch.no_grad()
def test_map_of_the_ensemble_is_the_maximum_of_both_maps() -> None:
    net = detector(objective="ensemble").network(64, 3).eval()
    assert isinstance(net, Ensemble)
    x = tiles()
    score, maximum, rebuilt = net(x)
    (_, restore_map, expected), (_, amplify_map, _) = net.restore(x), net.amplify(x)
    assert not torch.equal(restore_map, amplify_map)
    assert torch.equal(maximum, torch.maximum(restore_map, amplify_map)) and torch.equal(rebuilt, expected)
    torch.testing.assert_close(score, maximum.sum(dim=(1, 2)) / 64**2)


@pytest.mark.parametrize("objective", ["restore", "ensemble"])
def test_the_score_can_be_the_highest_value_of_the_map(objective: str) -> None:
    torch.manual_seed(0)
    net = detector(objective=objective, score="max").network(64, 3).eval()
    with torch.no_grad():
        score, error, _ = net(tiles())
    assert torch.equal(score, error.flatten(1).max(dim=1).values)


def test_ensemble_trains_two_networks_separately(tmp_path: Path) -> None:
    run = Run(device="cpu", folder=tmp_path)
    model = detector(objective="ensemble", checkpoint=0).fit(Textures(1), run)
    assert sorted(path.parent.name for path in tmp_path.rglob("checkpoint.npz")) == ["amplify", "restore"]
    assert [line.split(",")[0] for line in model.curve.splitlines()] == ["step", "2", "4", "2", "4"]
    again = detector(objective="ensemble", checkpoint=0).fit(
        Textures(1), run
    )  # both continue from their last checkpoints
    other = Textures(2).tiles
    np.testing.assert_array_equal(again.score(other).image, model.score(other).image)
    alone = [detector(objective=name).fit(Textures(1)).score(other).pixel for name in ("restore", "amplify")]
    np.testing.assert_array_equal(
        model.score(other).pixel, np.maximum(*alone)
    )  # the same as when each is trained alone


def test_crops_grow_at_constant_resolution() -> None:
    net = network(256, steps=100, grow_from=0.5, grow_until=0.5).train()
    sides = [net.crop(step / 100) for step in range(100)]
    assert sides[0] == 128 and sides[50:] == [256] * 50
    assert sorted(set(sides)) == [128, 160, 192, 224, 256] and sides == sorted(sides)
    assert network(256, grow_from=1.0).crop(0.0) == 256
    net, crops = network(steps=10).train(), []
    net.share = lambda: 0.0

    def recording(x: Any, generator: Any) -> Corrupted:
        crops.append(x)
        return inverted(x, torch.zeros_like(x))

    net.corruption = recording  # type: ignore[assignment]
    x = tiles()
    net.loss(x, torch.Generator())
    net.eval().loss(x, torch.Generator())
    assert crops[0].shape == (2, 3, 32, 32) and crops[1].shape == x.shape
    windows = x.unfold(2, 32, 1).unfold(3, 32, 1)  # (n, c, 33, 33, 32, 32)
    same = (windows == crops[0][:, :, None, None]).all(dim=-1).all(dim=-1).all(dim=1).all(dim=0)
    assert int(same.sum()) == 1


@pytest.mark.parametrize(("batch", "hold_out"), [(4, 0.0), (4, 0.2), (1, 0.2)])
def test_crops_grow_with_steps_and_not_with_calls(batch: int, hold_out: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[tuple[int, int]] = []
    original = FilteringNetwork.loss

    def loss(self: FilteringNetwork, batch: Any, generator: Any) -> Any:
        if len(batch) > 2:
            raise MemoryError
        if self.training:
            sides.append((round(self.share() * 20), self.crop(self.share())))
        return original(self, batch, generator)

    monkeypatch.setattr(FilteringNetwork, "loss", loss)
    options = {"steps": 20, "batch": batch, "evaluate": 5, "hold_out": hold_out, "grow_from": 0.25, "grow_until": 1.0}
    detector(**options).fit(Textures(1))
    pieces = 2 if batch == 4 else 1
    expected = network(**options)
    assert sides == [(step, expected.crop(step / 20)) for step in range(20) for _ in range(pieces)]


def test_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    good, settings = Textures(1), {"steps": 8, "checkpoint": 0.0, "hold_out": 0.2, "noise": 0.02}

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector(**settings).fit(good, Run(progress=stop, device="cpu", folder=tmp_path))
    resumed = detector(**settings).fit(good, Run(device="cpu", folder=tmp_path))
    whole = detector(**settings).fit(good, Run(device="cpu"))
    np.testing.assert_array_equal(resumed.score(good.tiles).pixel, whole.score(good.tiles).pixel)


def test_bad_input_is_refused_before_any_training(tmp_path: Path) -> None:
    good = Textures(1)
    with pytest.raises(RecipeError, match=r"geometry\.size = 100.*multiple of 8\. Set size = 96"):
        detector().network(100, 3)
    for settings, message in (
        ({"kernel": 4}, "kernel"),
        ({"patch": (0.5, 0.1)}, "expected the least diameter first"),
        ({"corruptions": ()}, "corruptions"),
        ({"corruptions": ("elastic", "elastic")}, "a value is listed twice"),
        ({"smooth": 4}, "odd"),
        ({"balance": 1.5}, "balance"),
        ({"occlusion_images": "x", "corruptions": ("elastic",)}, "not among the corruptions"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**settings)
    for action in ("forecast", "fit"):
        with pytest.raises(DatasetError, match="no such folder"):
            getattr(detector(occlusion_images=str(tmp_path / "none")), action)(good, Run(device="cpu"))
    recipe = {"geometry": {"tiles": True}, "detector": {"name": FilteringAutoencoder.name}}
    assert not training.construct(Recipe.model_validate(recipe))[0].position_aware
    recipe["detector"]["settings"] = {"objective": "ensemble", "object_correction": True}  # type: ignore[index]
    with pytest.raises(RecipeError, match="with these settings"):
        training.construct(Recipe.model_validate(recipe))


def test_divergence_is_an_error() -> None:
    with pytest.raises(TrainingError, match="the loss became nan"):
        detector(learning_rate=1e30, warmup=0.0).fit(Textures(1), Run(device="cpu"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set of good parts, and a bundle trained on it."""
    root = tmp_path_factory.mktemp("filtering")
    for seed in range(14):
        save(root / "data/train/good" / f"{seed:03}.png", part(seed))
    save(root / "data/test/good/100.png", part(100))
    settings = {**TINY, "objective": "ensemble", "object_correction": True}
    training.train(
        root / "data", root / "b.andon", detector="filtering-autoencoder", settings=settings, size=96, device="cpu"
    )
    return root / "data", root / "b.andon"


def test_bundle_rebuilds_images_and_occlusions_must_not_be_test_images(
    bundle: tuple[Path, Path], tmp_path: Path
) -> None:
    data, path = bundle
    loaded = Bundle.load(path)
    one = image.read(data / "test/good/100.png").pixels[None]
    rebuilt = reconstructor(loaded.graph)(one)
    assert rebuilt.shape == (1, 96, 96, 3) and rebuilt.min() >= 0 and rebuilt.max() <= 1
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x.png").write_bytes((data / "test/good/100.png").read_bytes())
    messages: list[str] = []
    settings = {**TINY, "occlusion_images": str(tmp_path / "outside")}
    with pytest.raises(DatasetError, match=r"100\.png of the data set"):
        training.train(
            data,
            tmp_path / "b.andon",
            detector="filtering-autoencoder",
            settings=settings,
            size=96,
            device="cpu",
            tell=messages.append,
        )
    assert not (tmp_path / "b.andon").exists() and not any("parameters" in message for message in messages)


def test_window_means_equal_the_mean_of_all_windows() -> None:
    values = np.random.default_rng(0).random((12, 12))
    means = study._window_means(values, 6)
    windows = np.lib.stride_tricks.sliding_window_view(values, (6, 6)).reshape(-1, 6, 6)
    np.testing.assert_allclose(means, windows.mean(axis=0))


def test_moments_are_written(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["study", "moments", str(bundle[0]), "-o", str(tmp_path), "--size", "64", "-q"]
    )
    assert result.exit_code == 0, result.output
    rows = np.genfromtxt(tmp_path / "moments.csv", delimiter=",", names=True)
    assert len(rows) == 32 * 32 and (rows["deviation"] > 0).all() and 0.4 < rows["mean"].mean() < 0.7
    assert {path.name for path in tmp_path.glob("*.svg")} == {"moments.svg", "moments_row.svg"}


def test_orthogonality_counts_the_nearest(bundle: tuple[Path, Path], tmp_path: Path, bundle_file: Path) -> None:
    data, path = bundle
    command = ["study", "orthogonality", str(path), str(data), "-o", str(tmp_path), "--draws", "6", "-q"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    rows = np.genfromtxt(tmp_path / "orthogonality.csv", delimiter=",", names=True)
    assert rows["width"].tolist() == list(study.WIDTHS)
    assert rows["corrupted"][0] == 1 and (rows["distance"] > 0).all()
    assert len(list(tmp_path.glob("*.svg"))) == 2
    with pytest.raises(BundleError, match="has no output 'reconstruction'"):
        study.orthogonality(Bundle.load(bundle_file), data)


def test_studies_report_images_that_they_leave_out(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    for path in (bundle[0] / "train/good").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    cut = dataset.split_good(dataset.load(tmp_path).training_images(), 0.2, 0)[0][3].path
    cut.write_bytes(cut.read_bytes()[:900])
    values = {"data": {"images": str(tmp_path)}, "geometry": {"size": 64}}
    registering = {**values, "geometry": {"size": 64, "registration": {"max_rotation": 0.0}}}
    previewing = {**registering, "detector": {"name": "filtering-autoencoder"}}
    messages: list[str] = []
    study.moments(Recipe.model_validate(values), warn=messages.append)
    study.moments(Recipe.model_validate(registering), warn=messages.append)
    study.preview(Recipe.model_validate(previewing), 14, warn=messages.append)
    study.orthogonality(Bundle.load(bundle[1]), tmp_path, draws=2, warn=messages.append)
    assert len(messages) == 4
    assert all(sentence.startswith(f"left out: {cut.as_posix()}: ") for sentence in messages)
    for path in sorted(tmp_path.iterdir())[1:]:
        path.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="1 good tiles of 14 images; expected at least two"):
        study.orthogonality(Bundle.load(bundle[1]), tmp_path)


def test_preview_shows_three_images_for_each_tile(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    settings = '[detector]\nname = "filtering-autoencoder"\n[augment]\nquarter_turns = true\n'
    recipe.write_text(f'[data]\nimages = "{bundle[0]}"\n[geometry]\nsize = 64\n{settings}')
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(cli.app, ["preview", str(recipe), "-o", str(out), "--count", "3", "-q"])
    assert result.exit_code == 0, result.output
    height, width, _ = image.read(out).pixels.shape
    assert width > 6 * 256 and 320 + 256 < height < 320 + 3 * 256  # the images, and rows of tiles below them


def test_presets() -> None:
    assert set(FilteringAutoencoder.presets) == {"cpu", "full"}
    full = Settings(**FilteringAutoencoder.presets["full"])
    assert (full.width, full.kernel, full.learning_rate, full.balance, full.hold_out) == (1.0, 3, 1e-4, 0.5, 0.05)

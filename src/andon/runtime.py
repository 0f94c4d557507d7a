"""The graph on ONNX Runtime, or on OpenVINO where it is installed."""

from typing import Any, Literal

import numpy as np
import onnxruntime

from andon.errors import AndonError, BundleError
from andon.inspection import Pixels, Scores

Engine = Literal["onnxruntime", "openvino"]


class Runtime:
    """A `Scorer` that runs a detector's graph: tiles (n, t, t, c) → score (n,), map (n, t, t)."""

    def __init__(self, graph: bytes, engine: Engine = "onnxruntime", threads: int = 0) -> None:
        """Load a serialised graph; `threads` 0 lets the engine decide. BundleError when it is not one of ours."""
        self.engine = engine
        self._run = _openvino(graph, threads) if engine == "openvino" else _onnxruntime(graph, threads)

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, t, t, c)."""
        image, pixel = self._run(np.ascontiguousarray(tiles))
        return Scores(image, pixel)


def _onnxruntime(graph: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a class of its own for every kind of bad model
        raise BundleError(f"the graph is not one ONNX Runtime can load: {error}") from None
    names = [i.name for i in session.get_inputs()], sorted(o.name for o in session.get_outputs())
    if names != (["tiles"], ["map", "score"]):
        raise BundleError(
            f"a graph from {names[0]} to {names[1]}; expected tiles → score, map. Was it made by `andon train`?"
        )
    return lambda tiles: session.run(["score", "map"], {"tiles": tiles})


def _openvino(graph: bytes, threads: int) -> Any:
    try:
        import openvino
    except ImportError:
        raise AndonError(
            "the engine OpenVINO is not installed. Use ONNX Runtime, or: pip install 'andon[openvino]'"
        ) from None
    core = openvino.Core()
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(core.read_model(graph), "CPU", config).create_infer_request()

    def run(tiles: Pixels) -> tuple[Any, Any]:
        results = request.infer({"tiles": tiles})
        return results["score"].copy(), results["map"].copy()

    return run

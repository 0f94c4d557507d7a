"""The graph on ONNX Runtime, or on OpenVINO where it is installed."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import onnxruntime

from andon.engines import wire
from andon.errors import AndonError, BundleError, out_of_memory, unknown
from andon.inspection import Array, Pixels, Scores

if TYPE_CHECKING:
    import onnx

Engine = Literal["onnxruntime", "openvino"]
MOST_THREADS = 64
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SHOWN = ("reconstruction", "latent", "embedding")
"""What a graph may give besides: a picture (n, t, t, c) and vectors (n, d), for people; no verdict rests on them."""


class Runtime:
    """A `Scorer` that runs a detector's graph: tiles (n, t, t, c) → score (n,), map (n, t, t).

    Threads can share it. It can be pickled, for pools of processes; those must be spawned, not forked.
    """

    def __init__(self, graph: bytes, engine: Engine = "onnxruntime", threads: int = 0) -> None:
        """Load a serialised graph; `threads` 0 lets the engine decide. BundleError when it is not one of ours."""
        if engine not in get_args(Engine):
            raise AndonError(unknown("engine", str(engine), get_args(Engine)))
        if not 0 <= threads <= MOST_THREADS:
            raise AndonError(f"threads = {threads}; expected 0, which lets the engine decide, to {MOST_THREADS}.")
        self.engine, self._graph, self._threads = engine, graph, threads
        start = _openvino if engine == "openvino" else _onnxruntime
        self._run, self.takes = start(graph, threads)

    def __reduce__(self) -> tuple[type["Runtime"], tuple[bytes, Engine, int]]:
        """Go to another process as what it is made of; the engine starts again there."""
        return type(self), (self._graph, self.engine, self._threads)

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, t, t, c)."""
        image, pixel = self._run(np.ascontiguousarray(tiles))
        return Scores(image, pixel)

    def expect(self, shape: tuple[int, int], channels: int, depth: int) -> None:
        """BundleError when the graph was made for other tiles than these; a length it leaves open fits any."""
        expected = (*shape, channels, depth)
        found = tuple(want if have is None else have for have, want in zip(self.takes, expected, strict=True))
        if found != expected:
            told = "{} × {} pixels, {} channels, {} bits"
            raise BundleError(
                f"the graph takes tiles of {told.format(*found)}; recipe and manifest say {told.format(*expected)}. "
                "Use the original bundle, or train again."
            )


Takes = tuple[int | None, int | None, int | None, int | None]
"""Height, width, channels and bits of the tiles a graph takes; None is any."""


def rebuilder(graph: bytes, threads: int = 0) -> Callable[[Pixels], Array]:
    """Return what makes reconstructions (n, t, t, c), float32 in [0, 1], of tiles (n, t, t, c), on ONNX Runtime.

    BundleError when the graph has no such output.
    """
    loaded = session(graph, threads)
    if "reconstruction" not in {output.name for output in loaded.get_outputs()}:
        raise BundleError(
            "the graph rebuilds no pictures; expected one with the output 'reconstruction'. Use a bundle of a detector "
            "that rebuilds what it sees, such as filtering-autoencoder."
        )

    def rebuild(tiles: Pixels) -> Array:
        found: Array = loaded.run(["reconstruction"], {"tiles": np.ascontiguousarray(tiles)})[0]
        return found

    return rebuild


def session(
    graph: "bytes | onnx.ModelProto", threads: int = 0, device: Literal["cpu", "cuda"] = "cpu"
) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime. The only place that does: what runs a graph runs it by these options.

    Errors: BundleError when ONNX Runtime cannot load it, or when it refers to other files.
    """
    if not isinstance(graph, bytes):
        graph = graph.SerializeToString()
    wire.check(graph)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[PROVIDERS[device]])
    except Exception as error:  # ONNX Runtime raises a class of its own for every kind of bad model
        if out_of_memory(error):
            raise
        raise BundleError(f"the graph is not one ONNX Runtime can load: {error}") from None


def _onnxruntime(graph: bytes, threads: int) -> tuple[Any, Takes]:
    loaded = session(graph, threads)
    inputs, outputs = [i.name for i in loaded.get_inputs()], {o.name for o in loaded.get_outputs()}
    if inputs != ["tiles"] or outputs - set(SHOWN) != {"map", "score"}:
        raise BundleError(
            f"a graph from {inputs} to {sorted(outputs)}; expected tiles → score, map. Was it made by `andon train`?"
        )
    entry = loaded.get_inputs()[0]
    sizes = [size if isinstance(size, int) else None for size in entry.shape]
    bits = {"tensor(uint8)": 8, "tensor(uint16)": 16}.get(entry.type)
    if len(sizes) != 4 or bits is None:
        raise BundleError(f"a graph of {entry.type} {entry.shape}; expected tiles (n, t, t, c) of 8 or 16 bits.")
    return lambda tiles: loaded.run(["score", "map"], {"tiles": tiles}), (sizes[1], sizes[2], sizes[3], bits)


def _openvino(graph: bytes, threads: int) -> tuple[Any, Takes]:
    try:
        import openvino
    except ImportError:
        raise AndonError(
            "the engine OpenVINO is not installed. Use ONNX Runtime, or: pip install 'andon[openvino]'"
        ) from None
    wire.check(graph)
    core = openvino.Core()
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    model = core.read_model(graph)
    entry = model.input("tiles")
    sizes = [size.get_length() if size.is_static else None for size in entry.partial_shape]
    compiled, local = core.compile_model(model, "CPU", config), threading.local()

    def run(tiles: Pixels) -> tuple[Any, Any]:
        if not hasattr(local, "request"):  # a request is for one thread at a time
            local.request = compiled.create_infer_request()
        results = local.request.infer({"tiles": tiles})
        return results["score"].copy(), results["map"].copy()

    return run, (sizes[1], sizes[2], sizes[3], 8 * entry.element_type.size)

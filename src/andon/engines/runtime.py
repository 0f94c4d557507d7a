"""Runs a graph on ONNX Runtime, or on OpenVINO if it is installed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import onnxruntime

from andon.engines import wire
from andon.errors import AndonError, BundleError, out_of_memory, unknown
from andon.inspection import Array, Pixels, Scores

if TYPE_CHECKING:
    import onnx

Engine = Literal["onnxruntime", "openvino"]
MAX_THREADS = 64
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
EXTRA_OUTPUTS = ("reconstruction", "latent", "embedding")
"""Optional outputs of a graph: pictures (n, h, w, c) and vectors (n, d), for display only; no verdict uses them."""


class Runtime:
    """A `Scorer` that runs a detector's graph: tiles (n, h, w, c) → score (n,), map (n, h, w).

    It is thread-safe. A call that is alone uses all threads. Calls that overlap with it use one thread each: that gives
    the highest throughput, and the same scores. It can be pickled for pools of processes, which must be spawned, not
    forked.
    """

    def __init__(self, graph: bytes, engine: Engine = "onnxruntime", threads: int = 0) -> None:
        """Load a serialised graph.

        threads: number of threads, at most MAX_THREADS; 0: default of the engine.
        Errors: BundleError when it is no graph of andon; AndonError for an unknown or missing engine.
        """
        if engine not in get_args(Engine):
            raise AndonError(unknown("engine", str(engine), get_args(Engine)))
        given: Any = threads
        if not isinstance(given, Integral) or not 0 <= threads <= MAX_THREADS:
            raise AndonError(
                f"threads = {threads!r}; expected a whole number from 0 (the engine's default) to {MAX_THREADS}."
            )
        threads = int(threads)
        self.engine, self._graph, self._threads = engine, graph, threads
        start = _openvino if engine == "openvino" else _onnxruntime
        self._run, self.tiles = start(graph, threads)
        self._alone = threading.Lock()

    def __reduce__(self) -> tuple[type["Runtime"], tuple[bytes, Engine, int]]:
        """Make the runtime picklable; the engine starts again in the other process."""
        return type(self), (self._graph, self.engine, self._threads)

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, h, w, c)."""
        tiles = np.ascontiguousarray(tiles)
        if self._alone.acquire(blocking=False):
            try:
                return Scores(*self._run(tiles))
            finally:
                self._alone.release()
        return Scores(*self._beside(tiles))

    @cached_property
    def _beside(self) -> Any:
        """The graph on one thread; the first overlapping call loads it."""
        if self.engine == "openvino" or self._threads == 1:
            return self._run
        run, _ = _onnxruntime(self._graph, 1)
        return run

    def check_tiles(self, shape: tuple[int, int], channels: int, depth: int) -> None:
        """BundleError when the graph needs tiles of another shape (h, w), number of channels or depth in bits."""
        expected = (*shape, channels, depth)
        actual = tuple(want if have is None else have for have, want in zip(self.tiles, expected, strict=True))
        if actual != expected:
            text = "{} × {} pixels, {} channels, {} bits"
            raise BundleError(
                f"the graph needs tiles of {text.format(*actual)}; recipe and manifest have {text.format(*expected)}. "
                "Use the original bundle, or train again."
            )


TileKind = tuple[int | None, int | None, int | None, int | None]
"""Height, width, channels and bits of the input tiles of a graph; None: any."""


def reconstructor(graph: bytes, threads: int = 0) -> Callable[[Pixels], Array]:
    """Return a function from tiles (n, h, w, c) to reconstructions (n, h, w, c), float32 in [0, 1], on ONNX Runtime.

    BundleError when the graph has no such output.
    """
    loaded = session(graph, threads)
    if "reconstruction" not in {output.name for output in loaded.get_outputs()}:
        raise BundleError(
            "the graph has no output 'reconstruction'. Use a bundle of a detector that reconstructs pictures, such as "
            "filtering-autoencoder."
        )

    def reconstruct(tiles: Pixels) -> Array:
        reconstruction: Array = loaded.run(["reconstruction"], {"tiles": np.ascontiguousarray(tiles)})[0]
        return reconstruction

    return reconstruct


def session(
    graph: "bytes | onnx.ModelProto", threads: int = 0, device: Literal["cpu", "cuda"] = "cpu"
) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime. All sessions are created here, with the same options.

    graph: a serialised graph, which is checked, or one that andon built itself.
    Errors: BundleError when ONNX Runtime cannot load it, or when a serialised graph refers to other files.
    """
    if isinstance(graph, bytes):
        wire.check(graph)
    else:
        graph = graph.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _threads
    options.log_severity_level = 3
    # Threads that wait actively take the cores from decoding and from other sessions: docs/speed.md has the figures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[PROVIDERS[device]])
    except Exception as error:  # ONNX Runtime has many exception classes for invalid models
        if out_of_memory(error):
            raise
        raise BundleError(f"ONNX Runtime cannot load the graph: {error}. Use the original bundle.") from None


_threads = 0


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Give `threads` threads to each session of ONNX Runtime that this process makes without a number in the block."""
    global _threads
    before, _threads = _threads, threads
    try:
        yield
    finally:
        _threads = before


def _onnxruntime(graph: bytes, threads: int) -> tuple[Any, TileKind]:
    loaded = session(graph, threads)
    inputs, outputs = [i.name for i in loaded.get_inputs()], {o.name for o in loaded.get_outputs()}
    if inputs != ["tiles"] or outputs - set(EXTRA_OUTPUTS) != {"map", "score"}:
        raise BundleError(
            f"a graph with inputs {', '.join(inputs)} and outputs {', '.join(sorted(outputs))}; expected input tiles "
            "and outputs score, map. Use a bundle made by `andon train`."
        )
    entry = loaded.get_inputs()[0]
    sizes = [size if isinstance(size, int) else None for size in entry.shape]
    bits = {"tensor(uint8)": 8, "tensor(uint16)": 16}.get(entry.type)
    if len(sizes) != 4 or bits is None:
        raise BundleError(
            f"a graph with input {entry.type} {entry.shape}; expected tiles (n, h, w, c) of 8 or 16 bits. "
            "Use a bundle made by `andon train`."
        )
    return lambda tiles: loaded.run(["score", "map"], {"tiles": tiles}), (sizes[1], sizes[2], sizes[3], bits)


def _openvino(graph: bytes, threads: int) -> tuple[Any, TileKind]:
    try:
        import openvino
    except ImportError:
        raise AndonError(
            "the engine OpenVINO is not installed. Use ONNX Runtime, or install it: pip install 'andon[openvino]'"
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
        if not hasattr(local, "request"):  # a request is not thread-safe
            local.request = compiled.create_infer_request()
        results = local.request.infer({"tiles": tiles})
        return results["score"].copy(), results["map"].copy()

    return run, (sizes[1], sizes[2], sizes[3], 8 * entry.element_type.size)

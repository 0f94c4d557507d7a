"""The ImageNet feature graphs: list, stages, loading and running. No torch.

A feature graph has float images (n, 3, h, w) in [-1, 1] as input, h and w multiples of its largest stride, and one
feature map per block as output. `load` removes all layers that the selected blocks do not need.

efficientnet-lite0 is package data. The larger ones are built on a machine with torch (`andon features build`) into the
cache folder, or into the folder of the environment variable ANDON_FEATURES. They can be copied from there to an offline
machine. Other networks are built there from a file of weights; a sidecar `<network>.json` beside such a graph has the
data that the table NETWORKS has for the others. A file `NAME.onnx` is a user's graph; its outputs are its stages.

Source of the weights: `weights/PROVENANCE.md`. They were trained in TensorFlow with the scale [-1, 1] (mean and
deviation 0.5) instead of ImageNet's statistics.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from spox import Var, inline

from andon import files
from andon.engines import runtime
from andon.errors import AndonError, BundleError, TrainingError, unknown
from andon.inspection import Array, Pixels

PROBE = 128  # pixels: side of the picture that determines the strides of a user's graph


class Stage(NamedTuple):
    """One output of a feature graph."""

    name: str  # of the output
    channels: int
    stride: int  # pixels of the image between neighbouring positions


class Sidecar(BaseModel):
    """The description of a feature graph that was built from a file of weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: str  # result of `digest` for the graph
    stages: Annotated[list[tuple[int, int]], Field(min_length=1)]  # channels and stride of each block
    weights: str  # SHA-256 of the file of weights
    made_with: str  # package and version that built the network


class Network(NamedTuple):
    """One feature graph."""

    stages: dict[int, Stage]  # block → its output
    sha256: str  # result of `digest`


def _stages(*runs: tuple[int, int, int]) -> dict[int, Stage]:
    """Number the blocks of runs of (number of blocks, channels, stride)."""
    blocks = [(channels, stride) for count, channels, stride in runs for _ in range(count)]
    return {i: Stage(f"block{i}", *block) for i, block in enumerate(blocks)}


NETWORKS = {
    # Up to stride 16: deeper blocks are larger than all others together and too coarse for small defects.
    "efficientnet-lite0": Network(
        _stages((1, 16, 2), (2, 24, 4), (2, 40, 8), (3, 80, 16), (3, 112, 16)),
        "2afd8e38fe1bec31f6c2a439e59beb13d69127033571487e24a14492d6d7d70f",
    ),
    "efficientnet-lite1": Network(
        _stages((1, 16, 2), (3, 24, 4), (3, 40, 8), (4, 80, 16), (4, 112, 16)),
        "c981b9bcaa1914b0bb3d0c26b0723776a11b5762bd2bce4b177ba553b6a3cf93",
    ),
    "efficientnet-lite2": Network(
        _stages((1, 16, 2), (3, 24, 4), (3, 48, 8), (4, 88, 16), (4, 120, 16)),
        "3b21554bb492abc70a1aaa14ea43e5a236d859a25a2ed36e4424581cc4d5f5c6",
    ),
}


def names() -> list[str]:
    """Return the names of all networks: those of NETWORKS, and those with a sidecar in the cache folder."""
    return [*NETWORKS, *(path.stem for path in sorted(cache_folder().glob("*.json")) if path.stem not in NETWORKS)]


def lookup(network: str) -> Network:
    """Return stages and digest of a network. AndonError for an unknown one, with the nearest name."""
    if network in NETWORKS:
        return NETWORKS[network]
    if network.endswith(".onnx"):
        return _user_graph(network, Path(network).stat().st_mtime_ns if files.is_file(network) else 0)
    if network not in names():
        raise AndonError(unknown("feature network", network, names()))
    path = cache_folder() / f"{network}.json"
    try:
        sidecar = Sidecar.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise AndonError(
            f"{path}: {reason}; expected the sidecar of the feature graph of {network}. "
            f"Build it again: {_build(network)}"
        ) from None
    return Network(_stages(*((1, channels, stride) for channels, stride in sidecar.stages)), sidecar.sha256)


@lru_cache(maxsize=4)
def _user_graph(path: str, modified: int) -> Network:
    """Return the stages of a user's graph: its outputs, numbered in order, for a picture of PROBE pixels.

    modified: time of the last change of the file, as a key of the cache.
    Errors: AndonError when the file cannot be read, or is no graph from images (n, 3, h, w) to feature maps.
    """
    expected = (
        "expected an ONNX graph from float images (n, 3, h, w) in [-1, 1], h and w free, to feature maps "
        "(n, channels, h / stride, w / stride), each a named output. `stages` are the numbers of its outputs, from 0"
    )
    try:
        data = Path(path).read_bytes()
        model = onnx.load_model_from_string(data)
        session = runtime.session(data)
        (images,) = session.get_inputs()
        names = [output.name for output in session.get_outputs()]
        shape = [size if isinstance(size, int) else None for size in images.shape]
        if images.type != "tensor(float)" or len(shape) != 4 or shape[1] not in (3, None) or shape[2:] != [None, None]:
            raise ValueError(f"its input '{images.name}' is {images.type} {images.shape}")
        maps = session.run(names, {images.name: np.zeros((1, 3, PROBE, PROBE), np.float32)})
        sizes = [x.shape for x in maps]
        for name, size in zip(names, sizes, strict=True):
            if len(size) != 4 or size[2] != size[3] or not size[2] or PROBE % size[2]:
                raise ValueError(f"its output '{name}' has the shape {list(size)} for a picture of {PROBE} × {PROBE}")
    except (OSError, DecodeError, ValueError, BundleError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error).partition("\n")[0]
        raise AndonError(f"{path}: {reason}; {expected}.") from None
    stages = {
        i: Stage(name, size[1], PROBE // size[2]) for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    return Network(stages, digest(model))


def stages(network: str) -> dict[int, Stage]:
    """Return the stages of a network by block number."""
    return lookup(network).stages


def _build(network: str) -> str:
    """Return the command that builds the graph of a network."""
    return f"andon features build {network}" + ("" if network in NETWORKS else " --weights FILE")


def file_name(network: str) -> str:
    """Return the name of the file of a network's graph."""
    return (network.replace("-", "_") if network in NETWORKS else network) + ".onnx"


def select(network: str, blocks: Sequence[int]) -> list[Stage]:
    """Return the stages of these blocks, in this order. AndonError for an unknown block, or if `blocks` is empty."""
    available = stages(network)
    for block in blocks:
        if block not in available:
            raise AndonError(
                f"{network} has no block {block}; expected blocks from 0 to {max(available)}. Change `stages`."
            )
    if not blocks:
        raise AndonError(f"`stages` of {network} is empty; expected at least one block from 0 to {max(available)}.")
    return [available[block] for block in blocks]


def require_multiple(sides: Iterable[int], selected: Sequence[Stage], shrink: int = 1) -> None:
    """TrainingError when sides of tiles are not multiples of the largest stride of these stages, times `shrink`."""
    stride = shrink * max(stage.stride for stage in selected)
    for side in sides:
        if side % stride:
            raise TrainingError(f"tiles of {side} px; expected a multiple of {stride}. Change the recipe's size.")


def cache_folder() -> Path:
    """Return the folder of the feature graphs that are not package data: ANDON_FEATURES, or the user's cache."""
    if folder := os.environ.get("ANDON_FEATURES"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "andon" / "features"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "andon" / "features"


def find(network: str) -> Path:
    """Return the path of a network's graph, in the package or the cache folder. AndonError when there is none."""
    lookup(network)
    if network.endswith(".onnx"):
        return Path(network)
    name = file_name(network)
    places = [Path(__file__).parents[1] / "weights" / name, cache_folder() / name]
    for place in places:
        if place.is_file():
            return place
    raise AndonError(
        f"the feature graph of {network} is not on this machine; expected {places[1]}. "
        f"Build it on a machine with torch: {_build(network)}"
    )


def load(network: str, blocks: Sequence[int]) -> onnx.ModelProto:
    """Return the feature graph for these blocks only: `images` → `block<i>` for each, in this order.

    Errors: AndonError when the file is missing, damaged or another graph.
    """
    selected, path = select(network, blocks), find(network)
    state = path.stat()
    return _prune(_read(network, path, lookup(network).sha256, state.st_mtime_ns, state.st_size), selected)


@lru_cache(maxsize=2)
def _read(network: str, path: Path, expected: str, modified: int, size: int) -> onnx.ModelProto:
    """Read a feature graph and verify its digest; time of change and size of the file are keys of the cache."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        actual = digest(model)
    except (DecodeError, ValueError) as error:
        raise AndonError(
            f"{path}: {error}; expected the feature graph of {network}. Delete it and run: {_build(network)}"
        ) from error
    if actual != expected:
        raise AndonError(
            f"{path}: digest {actual[:12]}…, expected {expected[:12]}…; the file is damaged or another graph. "
            f"Delete it and run: {_build(network)}"
        )
    return model


def digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of the operators, attributes, weights and connections of a graph, without names and versions.

    The digest of the file would change with the version of spox or onnx that wrote it.
    """
    sha = hashlib.sha256()
    number: dict[str, int] = {}  # value → index of its first occurrence
    for value in model.graph.input:
        number.setdefault(value.name, len(number))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in node.input:
            if tensor := weights.pop(name, None):
                array = onnx.numpy_helper.to_array(tensor)
                sha.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        wiring = [number.setdefault(name, len(number)) for name in (*node.input, *node.output)]
        sha.update(f"{node.op_type} {wiring}".encode())
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            sha.update(attribute.name.encode())
            if attribute.HasField("t"):
                array = onnx.numpy_helper.to_array(attribute.t)
                sha.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
            else:
                sha.update(f"{attribute.i} {attribute.f} {list(attribute.ints)} {attribute.s!r}".encode())
    for value in model.graph.output:
        sha.update(f"{value.name} {number[value.name]}".encode())
    return sha.hexdigest()


def _prune(model: onnx.ModelProto, selected: Sequence[Stage]) -> onnx.ModelProto:
    """Remove all nodes and weights that these stages do not need; declare the shapes of the outputs."""
    graph = model.graph
    values, nodes = {stage.name for stage in selected}, []
    for node in reversed(graph.node):
        if values.intersection(node.output):
            values.update(node.input)
            nodes.append(node)
    outputs = [
        onnx.helper.make_tensor_value_info(stage.name, onnx.TensorProto.FLOAT, ("n", stage.channels, None, None))
        for stage in selected
    ]
    pruned = onnx.helper.make_graph(
        nodes[::-1],
        graph.name,
        list(graph.input),
        outputs,
        [tensor for tensor in graph.initializer if tensor.name in values],
    )
    return onnx.helper.make_model(pruned, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def describe(tiles: Var, depth: int, channels: int, network: str, blocks: Sequence[int], shrink: int = 1) -> list[Var]:
    """Add to a graph: tiles (n, h, w, c), uint8 or uint16 → the feature maps of these blocks.

    shrink: factor by which height and width are reduced first, by averaging.
    """
    middle = np.float32((2**depth - 1) / 2)
    pixels = op.transpose(tiles, perm=[0, 3, 1, 2])  # (n, c, h, w); before the cast, while they are small
    images = op.sub(op.div(op.cast(pixels, to=np.float32), op.const(middle)), op.const(np.float32(1)))
    if shrink > 1:
        images = op.average_pool(images, kernel_shape=(shrink, shrink), strides=(shrink, shrink))
    if channels == 1:
        images = op.concat([images, images, images], axis=1)
    graph = load(network, blocks)
    outputs = inline(graph)(**{graph.graph.input[0].name: images})
    return [outputs[stage.name] for stage in select(network, blocks)]


class Extractor:
    """The feature maps of tiles, computed on ONNX Runtime."""

    def __init__(self, network: str, blocks: Sequence[int], threads: int = 0) -> None:
        """Load and prune the graph; `threads` 0: default of ONNX Runtime."""
        self._names = [stage.name for stage in select(network, blocks)]
        self._session = runtime.session(load(network, blocks), threads)

    def __call__(self, tiles: Pixels, shrink: int = 1) -> list[Array]:
        """Tiles (n, h, w, c), reduced by `shrink` → (n, channels, h / stride, w / stride) for each block."""
        name = self._session.get_inputs()[0].name
        maps: list[Array] = self._session.run(self._names, {name: images(tiles, shrink)})
        return maps


def images(tiles: Pixels, shrink: int = 1) -> Array:
    """Tiles (n, h, w, c), uint8 or uint16 → (n, 3, h, w) float32 in [-1, 1]; gray is repeated."""
    middle = np.float32(np.iinfo(tiles.dtype).max / 2)
    scaled = tiles.astype(np.float32).transpose(0, 3, 1, 2) / middle - np.float32(1)
    n, c, h, w = scaled.shape
    if shrink > 1:
        scaled = scaled.reshape(n, c, h // shrink, shrink, w // shrink, shrink).mean(axis=(3, 5))
    return np.ascontiguousarray(np.broadcast_to(scaled, (n, 3, *scaled.shape[2:])))

"""Base of detectors with a torch network: trained by the loop, scored by torch, exported as ONNX."""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np
import onnx
import spox
import spox.opset.ai.onnx.v17 as op
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from andon.detector import QUIET, Forecast, Need, Run, Tiles, unfitted
from andon.engines.runtime import EXTRA_OUTPUTS
from andon.graphs.parts import input_tiles
from andon.inspection import Pixels, Scores
from andon.nn.data import floats, mix
from andon.nn.loop import Loop

OUTPUTS = ("score", "map", *EXTRA_OUTPUTS)
TILES_AT_ONCE = 8


class Network(nn.Module):
    """The network of a learned detector: training minimises `loss`, and `forward` is exported as the graph."""

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Mean loss of tiles (n, c, t, t) in [0, 1]."""
        raise NotImplementedError

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) in [0, 1] → score (n,), map (n, t, t).

        Optional further outputs, in this order: reconstruction (n, c, t, t), latent vector (n, d), embedding (n, d).

        It must use operations that torch.onnx can export, and no control flow that depends on values.
        """
        raise NotImplementedError


class LearnedDetector(ABC):
    """A detector with a `Network`. A subclass defines name, position_aware, Config and presets, and its network."""

    name: ClassVar[str]
    position_aware: ClassVar[bool]
    square: ClassVar[bool] = True
    sizes: ClassVar[dict[str, int]] = {}
    times: ClassVar[dict[str, float]] = {}
    defects: ClassVar[Need] = "none"
    quick: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]]  # inherits nn.loop.Schedule
    presets: ClassVar[dict[str, dict[str, Any]]]  # "cpu": minutes on two cores; "full": the settings of the source

    def __init__(self, config: Any, seed: int) -> None:
        """Store the settings."""
        self.config = config
        self.seed = seed
        self.curve = ""  # of the last fit, CSV
        self.stride = 2  # of networks that compare pixels and smooth their maps
        self._network: Network | None = None
        self._graph: onnx.ModelProto | None = None

    @abstractmethod
    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""

    def stock(self, tiles: Tiles, run: Run = QUIET) -> Tiles:
        """Return the training tiles of the loop; a detector that needs images of defects returns `LabelledTiles`."""
        return tiles

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate time and memory of `fit` from a few timed steps."""
        with torch.random.fork_rng(devices=[]):
            return self._loop(tiles, run)[1].forecast(self.stock(tiles))

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Train on good tiles; a second call starts again."""
        with torch.random.fork_rng(devices=[]):
            network, loop = self._loop(tiles, run)
            self.curve = loop.fit(self.stock(tiles, run), self.name)
        return self._keep(network, tiles)

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, t, t, c) with torch."""
        network, parts = self._fitted(), range(0, len(tiles), TILES_AT_ONCE)
        with torch.no_grad():
            results = [network(floats(tiles[start : start + TILES_AT_ONCE])) for start in parts]
        image, pixel = (torch.cat([result[i] for result in results]).numpy() for i in (0, 1))
        return Scores(image, pixel)

    def graph(self) -> onnx.ModelProto:
        """tiles (n, t, t, c) uint8 or uint16 → score (n,), map (n, t, t) and the optional outputs.

        A reconstruction (n, t, t, c) is float32 in [0, 1], for display.
        """
        network = self._fitted()
        if self._graph is None:
            side, channels, depth = self._shape
            tiles = input_tiles((side, side), channels, depth)
            scale = op.const(np.float32(1 / (2**depth - 1)))
            values = op.mul(op.cast(tiles, to=np.float32), scale)
            outputs = self._outputs(network, op.transpose(values, perm=[0, 3, 1, 2]))
            if "reconstruction" in outputs:
                picture = op.clip(outputs["reconstruction"], op.const(np.float32(0)), op.const(np.float32(1)))
                outputs["reconstruction"] = op.transpose(picture, perm=[0, 2, 3, 1])
            self._graph = spox.build({"tiles": tiles}, outputs)
        return self._graph

    def _outputs(self, network: Network, tiles: spox.Var) -> dict[str, spox.Var]:
        """What the network gives for tiles (n, channels, side, side) in [0, 1]."""
        return dict(spox.inline(export_network(network, *self._shape[:2]))(tiles=tiles))

    def _loop(self, tiles: Tiles, run: Run) -> tuple[Network, Loop]:
        torch.manual_seed(mix(self.seed, "weights"))
        network = self.network(tiles.side, tiles.channels)
        return network, Loop(network, network.loss, self.config, self.seed, run)

    def _keep(self, network: Network, tiles: Tiles) -> Self:
        """Store the trained network and the shape of its tiles; delete the graph of an earlier fit."""
        self._network, self._graph = network.cpu(), None
        self._shape = (tiles.side, tiles.channels, tiles.depth)
        return self

    def _fitted(self) -> Network:
        if self._network is None:
            raise unfitted(self.name)
        return self._network


def export_network(network: Network, side: int, channels: int) -> onnx.ModelProto:
    """Export `forward` for tiles (n, channels, side, side), n free."""
    example = torch.zeros(2, channels, side, side)
    with torch.no_grad():
        names = OUTPUTS[: len(network(example))]
    return export(network, example, {0: torch.export.Dim("n")}, "tiles", names)


def export(
    module: nn.Module,
    example: Tensor,
    sizes: dict[int, Any],
    name: str,
    outputs: Sequence[str],
    opset: int | None = None,
) -> onnx.ModelProto:
    """Export a module with one input `name`, dynamic in the axes of `sizes`, without metadata such as source paths."""
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=(sizes,),
            input_names=[name],
            output_names=list(outputs),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node):  # stack traces with paths
        del part.metadata_props[:]
        part.doc_string = ""
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages of torch's exporter about its internals, and about torchvision, which andon does not use."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)

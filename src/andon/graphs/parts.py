"""What several graphs have in common."""

from collections.abc import Sequence

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from spox import Tensor, Var, argument


def input_tiles(shape: Sequence[int], channels: int, depth: int) -> Var:
    """Begin a graph with its input: tiles (n, *shape, channels) of 8 or 16 bits."""
    return argument(Tensor(np.uint8 if depth == 8 else np.uint16, ("n", *shape, channels)))


def ints(*values: int) -> Var:
    """A constant of int64, as axes and shapes are."""
    return op.const(np.array(values, np.int64))


def shared_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store equal weights once, in place: a network that a graph runs twice brings its weights twice."""
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for tensor in model.graph.initializer:
        bare = onnx.TensorProto()
        bare.CopyFrom(tensor)
        bare.name = ""
        same[tensor.name] = first.setdefault(bare.SerializeToString(deterministic=True), tensor.name)
    kept = [tensor for tensor in model.graph.initializer if same[tensor.name] == tensor.name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
    return model

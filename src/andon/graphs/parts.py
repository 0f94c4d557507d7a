"""Parts of graphs that several detectors use."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Tensor, Var, argument


def input_tiles(shape: Sequence[int], channels: int, depth: int) -> Var:
    """Return the input of a graph: tiles (n, *shape, channels) of 8 or 16 bits."""
    return argument(Tensor(np.uint8 if depth == 8 else np.uint16, ("n", *shape, channels)))


def ints(*values: int) -> Var:
    """Return an int64 constant (n,), for axes and shapes."""
    return op.const(np.array(values, np.int64))


def floats(value: NDArray[Any] | np.float32 | float) -> Var:
    """Return a float32 constant, for weights."""
    return op.const(np.asarray(value, np.float32, order="C"))


def shared_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Merge equal constants, in place: a network that occurs twice in a graph has its weights twice."""
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}  # output of a constant → output of the first equal constant
    remaining = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            content = b"".join(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
            (name,) = node.output
            same[name] = first.setdefault(content, name)
            if same[name] != name:
                continue
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
        remaining.append(node)
    nodes = onnx.GraphProto(node=remaining).node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model

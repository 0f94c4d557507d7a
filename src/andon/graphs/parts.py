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
    """Keep equal constants once, in place: a network that a graph runs twice brings its weights twice."""
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}  # output of a constant → that of the first that is equal
    kept = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            content = b"".join(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
            (name,) = node.output
            same[name] = first.setdefault(content, name)
            if same[name] != name:
                continue
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
        kept.append(node)
    nodes = onnx.GraphProto(node=kept).node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model

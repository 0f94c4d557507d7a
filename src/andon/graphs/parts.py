"""What several graphs have in common."""

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Tensor, Var, argument


def input_tiles(side: int, channels: int, depth: int) -> Var:
    """Begin a graph with its input: tiles (n, side, side, channels) of 8 or 16 bits."""
    return argument(Tensor(np.uint8 if depth == 8 else np.uint16, ("n", side, side, channels)))


def ints(*values: int) -> Var:
    """A constant of int64, as axes and shapes are."""
    return op.const(np.array(values, np.int64))

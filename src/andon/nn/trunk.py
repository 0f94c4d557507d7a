"""An ImageNet feature network as a frozen torch module, built from its feature graph: gradients flow through it.

The module executes the graph of `graphs.features` node by node, with its weights as buffers. So training uses the same
features as NumPy detectors and exported graphs.
"""

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from andon.graphs import features


class Trunk(nn.Module):
    """Feature maps of some blocks of a network, without trainable parameters."""

    def __init__(self, network: str, blocks: Sequence[int]) -> None:
        """Load the graph of these blocks. AndonError when network or block is unknown."""
        super().__init__()
        model = features.load(network, blocks)
        self.stages = features.select(network, blocks)
        self._weights: dict[str, str] = {}  # value of the graph → name of the buffer
        self._steps: list[tuple[str, str, list[str], dict[str, Any]]] = []  # operator, output, inputs, attributes
        for tensor in model.graph.initializer:
            self._keep(tensor.name, tensor)
        for node in model.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                self._keep(node.output[0], attributes["value"])
            else:
                self._steps.append((node.op_type, node.output[0], list(node.input), attributes))

    def _keep(self, name: str, tensor: onnx.TensorProto) -> None:
        buffer = f"weight{len(self._weights)}"
        self._weights[name] = buffer
        # Not persistent, because the package contains these weights.
        self.register_buffer(buffer, torch.tensor(onnx.numpy_helper.to_array(tensor)), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (n, 1 or 3, h, w) in [0, 1] → one map (n, channels, h / stride, w / stride) for each block.

        h and w are multiples of the largest stride; gray is repeated.
        """
        values = {name: getattr(self, buffer) for name, buffer in self._weights.items()}
        values["images"] = (2 * images - 1).expand(-1, 3, -1, -1)
        for operator, output, inputs, attributes in self._steps:
            values[output] = _apply(operator, [values[name] for name in inputs], attributes)
        return [values[stage.name] for stage in self.stages]

    def pair(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps of two batches of the same shape in one pass, which halves the exported graph.

        In training call `forward` twice instead: in one pass, both batches need the memory of gradients.
        """
        both = [stage.unflatten(0, (2, -1)) for stage in self(torch.cat([x, y]))]
        return [stage[0] for stage in both], [stage[1] for stage in both]


def _apply(operator: str, inputs: list[Tensor], attributes: dict[str, Any]) -> Tensor:
    if operator == "Conv":
        top, left, bottom, right = attributes["pads"]
        x = F.pad(inputs[0], (left, right, top, bottom))
        bias = inputs[2] if len(inputs) > 2 else None
        return F.conv2d(x, inputs[1], bias, attributes["strides"], groups=attributes["group"])
    if operator == "MaxPool":
        top, left, bottom, right = attributes["pads"]
        x = F.pad(inputs[0], (left, right, top, bottom), value=-torch.inf)
        return F.max_pool2d(x, attributes["kernel_shape"], attributes["strides"])
    if operator == "Pad":
        _, _, top, left, _, _, bottom, right = (int(n) for n in inputs[1])
        return F.pad(inputs[0], (left, right, top, bottom), mode="replicate")
    if operator == "Relu":
        return inputs[0].relu()
    if operator == "Mul":
        return inputs[0] * inputs[1]
    if operator == "Clip":
        return inputs[0].clamp(0, 6)
    if operator == "Add":
        return inputs[0] + inputs[1]
    if operator == "Identity":
        return inputs[0]
    raise AssertionError(f"the feature graph has an operator {operator} that no network of andon.graphs.features uses")

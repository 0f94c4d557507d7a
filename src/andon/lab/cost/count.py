"""Count parameters, multiply-adds and the memory of intermediate values in a graph."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference

from andon.engines import runtime

Shape = tuple[int, ...]


class Counts(NamedTuple):
    """The counts of a graph."""

    parameters: int
    constants: int  # bytes
    multiply_adds: int | None  # for one tile; None if the graph has loops, inputs besides tiles, or tiles of any size
    forward: int | None  # bytes of all computed values for one tile; None as above


_VIEWS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}


def count(graph: bytes) -> Counts:
    """Count parameters, constants, multiply-adds and computed values of a graph, including its local functions."""
    model = onnx.inliner.inline_local_functions(onnx.load_model_from_string(graph))
    nodes, tile = model.graph.node, model.graph.input[0].name
    producers: dict[str, onnx.NodeProto] = {output: node for node in nodes for output in node.output if output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                tensors[node.output[0]] = attribute.t
    variable = {tile}  # names of the values that depend on the tile
    for node in nodes:  # in topological order
        if variable.intersection(node.input):
            variable.update(filter(None, node.output))
    work = [node for node in nodes if node.op_type in _WORK and variable.intersection(node.input)]
    weights: set[str] = set()
    waiting = [name for node in work for name in node.input if name not in variable]
    while waiting:
        name = waiting.pop()
        if name in tensors:
            weights.add(name)
        elif name in producers:
            waiting += producers[name].input
    sizes = {name: math.prod(tensor.dims) for name, tensor in tensors.items()}
    parameters = sum(sizes[name] for name in weights if tensors[name].data_type != onnx.TensorProto.INT64)
    constants = sum(size * _bytes(tensors[name].data_type) for name, size in sizes.items())
    shapes = _shapes(model)
    loops = any(attribute.HasField("g") for node in nodes for attribute in node.attribute)
    unknown = variable - shapes.keys()
    if loops or (unknown and (tile in unknown or len(model.graph.input) > 1)):
        return Counts(parameters, constants, None, None)
    if unknown:
        shapes |= _measure_shapes(model, shapes[tile], sorted(unknown))
    computed = [name for node in nodes if node.op_type not in _VIEWS for name in node.output if name in variable]
    forward = sum(math.prod(shape) * _bytes(kind) for shape, kind in (shapes[name] for name in computed))
    multiply_adds = sum(
        _WORK[node.op_type](node, {name: shape for name, (shape, _) in shapes.items()}) for node in work
    )
    return Counts(parameters, constants, multiply_adds, forward)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[Shape, int]]:
    """Shape and type of every value whose shape can be inferred for one tile."""
    graph = model.graph
    del graph.value_info[:]
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = (tuple(dim.dim_value for dim in kind.shape.dim), kind.elem_type)
    return shapes


def _measure_shapes(model: onnx.ModelProto, tile: tuple[Shape, int], names: list[str]) -> dict[str, tuple[Shape, int]]:
    """Shape and type of values whose shape cannot be inferred, from a run on one tile of zeros."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = runtime.session(copy.SerializeToString())
    zeros = np.zeros(tile[0], onnx.helper.tensor_dtype_to_np_dtype(tile[1]))
    values = session.run(names, {model.graph.input[0].name: zeros})
    return {
        name: (value.shape, onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
        for name, value in zip(names, values, strict=True)
    }


def _bytes(kind: int) -> int:
    return onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def _conv(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # Each output value is a sum over the kernel and the channels of its group; weights (out, in / groups, …).
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # Each input value contributes to the kernel and the channels of its group; weights (in, out / groups, …).
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _gemm(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _matmul(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _einsum(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # Each output value is a sum over the indices that are not in the output; the axes of "…" are in the output.
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    terms, arrow, output = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, name in zip(terms.split(","), node.input, strict=True):
        first, _, last = term.partition("...")
        sizes |= zip(first, shapes[name], strict=False)
        sizes |= zip(reversed(last), reversed(shapes[name]), strict=False)
    summed = [size for index, size in sizes.items() if (index not in output if arrow else terms.count(index) > 1)]
    return math.prod(shapes[node.output[0]]) * math.prod(summed)


_WORK: dict[str, Callable[[onnx.NodeProto, Mapping[str, Shape]], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}

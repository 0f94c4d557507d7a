"""What a graph says of itself: parameters, multiply-adds, and what it computes on its way from one tile."""

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
    """What a graph says of itself."""

    parameters: int
    constants: int  # bytes
    multiply_adds: int | None  # of one tile; None where the graph has loops, or takes more than tiles of one size
    forward: int | None  # bytes, of one tile


_VIEWS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}


def count(graph: bytes) -> Counts:
    """Count what a graph holds and does for one tile, functions of its own included."""
    model = onnx.inliner.inline_local_functions(onnx.load_model_from_string(graph))
    nodes, given = model.graph.node, model.graph.input[0].name
    made: dict[str, onnx.NodeProto] = {output: node for node in nodes for output in node.output if output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                tensors[node.output[0]] = attribute.t
    moving = {given}  # what depends on the tile
    for node in nodes:  # in the order in which they are computed
        if moving.intersection(node.input):
            moving.update(filter(None, node.output))
    work = [node for node in nodes if node.op_type in _WORK and moving.intersection(node.input)]
    weights: set[str] = set()
    waiting = [name for node in work for name in node.input if name not in moving]
    while waiting:
        name = waiting.pop()
        if name in tensors:
            weights.add(name)
        elif name in made:
            waiting += made[name].input
    sizes = {name: math.prod(tensor.dims) for name, tensor in tensors.items()}
    parameters = sum(sizes[name] for name in weights if tensors[name].data_type != onnx.TensorProto.INT64)
    constants = sum(size * _bytes(tensors[name].data_type) for name, size in sizes.items())
    shapes = _shapes(model)
    loops = any(attribute.HasField("g") for node in nodes for attribute in node.attribute)
    untold = moving - shapes.keys()
    if loops or (untold and (given in untold or len(model.graph.input) > 1)):
        return Counts(parameters, constants, None, None)
    if untold:
        shapes |= _seen(model, shapes[given], sorted(untold))
    computed = [name for node in nodes if node.op_type not in _VIEWS for name in node.output if name in moving]
    forward = sum(math.prod(shape) * _bytes(kind) for shape, kind in (shapes[name] for name in computed))
    adds = sum(_WORK[node.op_type](node, {name: shape for name, (shape, _) in shapes.items()}) for node in work)
    return Counts(parameters, constants, adds, forward)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[Shape, int]]:
    """Shape and type of every value whose shape is known when there is one tile."""
    graph = model.graph
    del graph.value_info[:]
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            found[value.name] = (tuple(dim.dim_value for dim in kind.shape.dim), kind.elem_type)
    return found


def _seen(model: onnx.ModelProto, tile: tuple[Shape, int], names: list[str]) -> dict[str, tuple[Shape, int]]:
    """Shape and type of values whose shape the graph does not tell beforehand, from running it on one tile of zeros."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {output.name for output in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = runtime.session(watched.SerializeToString())
    zeros = np.zeros(tile[0], onnx.helper.tensor_dtype_to_np_dtype(tile[1]))
    values = session.run(names, {model.graph.input[0].name: zeros})
    return {
        name: (value.shape, onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
        for name, value in zip(names, values, strict=True)
    }


def _bytes(kind: int) -> int:
    return onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def _conv(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # Each value that comes out is a sum over the kernel and its group's channels; weights (out, in / groups, …).
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # Each value that goes in is spread over the kernel and its group's channels; weights (in, out / groups, …).
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _gemm(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if turned else 1]


def _matmul(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _einsum(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # Each value that comes out is a sum over the indices that do not come out; "…" are axes that do.
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    terms, arrow, kept = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, name in zip(terms.split(","), node.input, strict=True):
        first, _, last = term.partition("...")
        sizes |= zip(first, shapes[name], strict=False)
        sizes |= zip(reversed(last), reversed(shapes[name]), strict=False)
    summed = [size for index, size in sizes.items() if (index not in kept if arrow else terms.count(index) > 1)]
    return math.prod(shapes[node.output[0]]) * math.prod(summed)


_WORK: dict[str, Callable[[onnx.NodeProto, Mapping[str, Shape]], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}

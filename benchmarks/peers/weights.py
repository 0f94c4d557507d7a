"""The weights of andon's EfficientNet-Lite0 as one file of arrays, which the environments of peers can read."""

from pathlib import Path

import numpy as np
from onnx import numpy_helper

from andon.engines import runtime
from andon.graphs import features

NETWORK, BLOCKS = "efficientnet-lite0", (4, 10)


def write(path: Path) -> None:
    """Write the convolutions in order, a picture of noise and its feature maps."""
    model = features.load(NETWORK, BLOCKS)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    arrays, count = {}, 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            arrays[f"weight{count}"], arrays[f"bias{count}"] = values[node.input[1]], values[node.input[2]]
            count += 1
    images = np.random.default_rng(0).uniform(-1, 1, (1, 3, 128, 128)).astype(np.float32)
    session = runtime.session(model)
    names = [stage.name for stage in features.select(NETWORK, BLOCKS)]
    maps = session.run(names, {session.get_inputs()[0].name: images})
    np.savez(path, count=count, images=images, **arrays, **dict(zip(("block4", "block10"), maps, strict=True)))

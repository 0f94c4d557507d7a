"""EfficientNet-Lite0 of timm with the weights of andon, for the environments of peers.

The file (`weights.py` writes it) has the convolutions of andon's graph up to block 10, batch normalisation folded in.
Here they become convolutions whose normalisation only adds the bias, so the function is the same; `create` compares the
feature maps with those of the graph.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

try:
    import torchvision
except RuntimeError:  # the wheel of torchvision is built for CUDA: its operators cannot be loaded with torch for CPU
    for operator in ("nms", "qnms"):  # boxes of detections: no peer uses them
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

import timm

NETWORK = "tf_efficientnet_lite0"
LAYERS = ["blocks.2", "blocks.4"]  # 40 channels at stride 8, 112 at stride 16: andon's blocks 4 and 10
TOLERANCE = 1e-4  # relative difference of the feature maps

_create = timm.create_model


def use(weights: str) -> None:
    """Let timm make the pretrained network from a file, and no other: nothing is downloaded."""

    def create_model(name: str, *arguments: Any, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained and name != NETWORK:
            raise RuntimeError(f"the weights of {name} are not on this machine; only those of {NETWORK} are")
        net = _create(name, *arguments, pretrained=False, **options)
        if pretrained:
            fill(net, weights)
        return net

    timm.create_model = create_model


def features(weights: str) -> nn.Module:
    """Return the network up to stride 16: images (n, 3, h, w) in [-1, 1] → two feature maps."""
    net = _create(NETWORK, pretrained=False, features_only=True, out_indices=(2, 3))
    fill(net, weights)
    return net.eval()


def fill(net: nn.Module, weights: str) -> None:
    """Copy the convolutions in order. RuntimeError when the feature maps differ from those of the graph."""
    data = np.load(weights)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for number in range(int(data["count"])):
            convolution, norm = convolutions[number], norms[number]
            convolution.weight.copy_(torch.from_numpy(data[f"weight{number}"]))
            norm.weight.fill_(1)
            norm.bias.copy_(torch.from_numpy(data[f"bias{number}"]))
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
    difference = compare(net, data)
    if difference > TOLERANCE:
        raise RuntimeError(
            f"the feature maps of {NETWORK} differ from andon's by {difference:.2g} of the largest value"
        )


def compare(net: nn.Module, data: Any) -> float:
    """Return the largest difference from the graph's feature maps of a picture of noise, relative to their maximum."""
    maps: list[torch.Tensor] = []
    trunk = net if hasattr(net, "blocks") else net.model
    hooks = [trunk.blocks[i].register_forward_hook(lambda module, inputs, output: maps.append(output)) for i in (2, 4)]
    training = net.training
    with torch.no_grad():
        net.eval()(torch.from_numpy(data["images"]))
    net.train(training)
    for hook in hooks:
        hook.remove()
    pairs = zip(maps, (data["block4"], data["block10"]), strict=True)
    return max(float(np.abs(a.numpy() - b).max() / np.abs(b).max()) for a, b in pairs)
